from __future__ import annotations

from typing import TYPE_CHECKING, Any

import django_tables2 as tables
from django.db.models import QuerySet
from django.http import HttpRequest
from django.template.loader import render_to_string
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.html import format_html
from django.utils.timezone import localtime
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _
from django_tables2.data import TableListData

from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.dashboard.formatting import duration
from powercrud_dashboard.dashboard.rows import TaskRow, rendered
from powercrud_dashboard.models import ConflictLock
from powercrud_dashboard.models.status import UNFINISHED

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from powercrud_dashboard.dashboard.selection import BulkAction
    from powercrud_dashboard.dashboard.triage import FailureGroup


class InOrder(TableListData):  # type: ignore[misc]
    """Rows that the database has put in order already."""

    def order_by(self, aliases: Sequence[str]) -> None:
        """Leave them as they are."""


class TaskTable(tables.Table):  # type: ignore[misc]
    """The columns of the task list, and their order; the rows have a template of their own."""

    selected = tables.Column(verbose_name=_("Select"), orderable=False)
    status = tables.Column(verbose_name=_("Status"))
    label = tables.Column(verbose_name=_("Task"))
    affected_count = tables.Column(verbose_name=_("Objects"))
    user_label = tables.Column(verbose_name=_("Launched by"))
    progress = tables.Column(verbose_name=_("Progress"), orderable=False)
    duration = tables.Column(verbose_name=_("Time"))
    created_at = tables.Column(verbose_name=_("Created"))
    actions = tables.Column(verbose_name=_("Actions"), orderable=False)

    class Meta:
        template_name = "powercrud_dashboard/tasks/_task_table.html"
        empty_text = _("No tasks here.")

    def __init__(self, rows: Sequence[TaskRow], *, sort: str, status: str, is_actionable: bool) -> None:
        exclude = [] if is_actionable else ["selected", "actions"]
        # Not with the request: the table would cut the rows, which are one page already, into pages of its own.
        super().__init__(InOrder(list(rows)), exclude=exclude, order_by=sort)
        self.columns["duration"].column.orderable = status not in UNFINISHED
        self._task_rows = rows
        self._is_actionable = is_actionable

    @property
    def rendered_rows(self) -> list[str]:
        """Return the HTML of each row."""
        # Translated once, not for each row.
        labels = {column.name: str(column.header) for column in self.columns}
        return rendered(self._task_rows, labels=labels, is_actionable=self._is_actionable)


class FailureTable(tables.Table):  # type: ignore[misc]
    """The rows of the failures page: what the failures of a group share, how many, since when."""

    pattern = tables.Column(verbose_name=_("Error"), attrs={"td": {"class": "pcrud-label"}}, empty_values=())
    func = tables.Column(verbose_name=_("Function"), attrs={"td": {"class": "pcrud-label"}})
    count = tables.Column(
        verbose_name=_("Tasks"), attrs={"td": {"class": "pcrud-number"}}, initial_sort_descending=True
    )
    first = tables.DateTimeColumn(verbose_name=_("First"), short=True, initial_sort_descending=True)
    last = tables.DateTimeColumn(verbose_name=_("Last"), short=True, initial_sort_descending=True)
    actions = tables.Column(verbose_name=_("Actions"), empty_values=(), orderable=False)

    class Meta:
        template_name = "powercrud_dashboard/tasks/_table.html"
        empty_text = _("Nothing failed in this time.")

    def __init__(
        self,
        groups: Sequence[FailureGroup],
        *,
        group_url: Callable[[FailureGroup], str],
        function_url: Callable[[FailureGroup], str],
        task_url: Callable[[int], str],
        actions: Sequence[BulkAction],
        bulk_url: str,
        request: HttpRequest,
    ) -> None:
        super().__init__(groups, exclude=() if actions else ("actions",))
        self.group_url = group_url
        self.function_url = function_url
        self.task_url = task_url
        self.bulk_actions = actions
        self.bulk_url = bulk_url
        tables.RequestConfig(request, paginate=False).configure(self)

    def render_pattern(self, record: FailureGroup) -> str:
        return self._partial("_error.html", record, url=self.group_url(record) if record.query else "")

    def render_func(self, record: FailureGroup) -> str:
        return link(self.function_url(record), record.func)

    def render_last(self, record: FailureGroup) -> str:
        return link(self.task_url(record.newest_pk), date_format(localtime(record.last), "SHORT_DATETIME_FORMAT"))

    def render_actions(self, record: FailureGroup) -> str:
        if not record.query:
            return ""
        return self._partial("_actions.html", record, actions=self.bulk_actions, bulk_url=self.bulk_url)

    def _partial(self, name: str, group: FailureGroup, **more: Any) -> str:
        return render_to_string(f"powercrud_dashboard/failures/{name}", {"group": group, **more}, request=self.request)


class LockTable(tables.Table):  # type: ignore[misc]
    """The rows of the locks page."""

    object_id = tables.Column(verbose_name=_("Object"), attrs={"td": {"class": "pcrud-label"}})
    holder = tables.Column(
        verbose_name=_("Held by"),
        accessor="active_task__label",
        empty_values=(),
        attrs={"td": {"class": "pcrud-label"}},
    )
    locked_at = tables.Column(verbose_name=_("Held for"), attrs={"td": {"class": "pcrud-time"}})
    expires_at = tables.DateTimeColumn(
        verbose_name=_("Expires"), accessor="active_task__expires_at", short=True, default=_("when its task ends")
    )
    release = tables.Column(verbose_name=_("Action"), empty_values=(), orderable=False)

    class Meta:
        model = ConflictLock
        fields = ("object_id", "holder", "locked_at", "expires_at", "release")
        order_by = ("locked_at",)
        template_name = "powercrud_dashboard/tasks/_table.html"
        empty_text = _("Nothing is locked.")

    def __init__(
        self,
        *args: Any,
        holder_urls: Mapping[str, str],
        object_url: Callable[[ConflictLock], str],
        release_url: Callable[[ConflictLock], str] | None,
        **kwargs: Any,
    ) -> None:
        exclude = () if release_url else ("release",)
        super().__init__(*args, exclude=exclude, **kwargs)
        self.holder_urls = holder_urls
        self.object_url = object_url
        self.release_url = release_url

    def order_object_id(
        self, queryset: QuerySet[ConflictLock], is_descending: bool
    ) -> tuple[QuerySet[ConflictLock], bool]:
        sign = "-" if is_descending else ""
        return queryset.order_by(f"{sign}model_label", f"{sign}object_id"), True

    def render_object_id(self, record: ConflictLock) -> str:
        return link(self.object_url(record), str(record))

    def render_holder(self, record: ConflictLock) -> str:
        holder = record.active_task
        return link(self.holder_urls.get(holder.task_name, ""), str(holder))

    def render_locked_at(self, record: ConflictLock) -> str:
        return duration(timezone.now() - record.locked_at)

    def render_release(self, record: ConflictLock) -> str:
        return link(self.release_url(record), gettext("Release")) if self.release_url else ""


def show_page(table: tables.Table, request: HttpRequest) -> None:
    """Sort the table and cut it to the page that the address asks for, without counting all rows."""
    page = {"per_page": app_settings.DASHBOARD_PAGE_SIZE, "paginator_class": tables.LazyPaginator}
    tables.RequestConfig(request, paginate=page).configure(table)


def link(url: str, text: str) -> str:
    """Return a link, or the text alone where there is nothing to link to."""
    return format_html('<a href="{}">{}</a>', url, text) if url else text
