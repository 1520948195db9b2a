from __future__ import annotations

from typing import TYPE_CHECKING, Any

import django_tables2 as tables
from django.db.models import F, QuerySet
from django.http import HttpRequest
from django.template.loader import render_to_string
from django.utils import timezone
from django.utils.html import format_html
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.dashboard.formatting import duration
from powercrud_dashboard.models import ConflictLock, TaskRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from powercrud_dashboard.dashboard.live import LiveTask


class TaskTable(tables.Table):  # type: ignore[misc]
    """The rows of the task list. Cells that say more than a value are partials."""

    selected = tables.Column(verbose_name=_("Select"), empty_values=(), orderable=False)
    status = tables.Column(verbose_name=_("Status"))
    label = tables.Column(verbose_name=_("Task"), attrs={"td": {"class": "pcrud-label"}})
    affected_count = tables.Column(verbose_name=_("Objects"), attrs={"td": {"class": "pcrud-number"}})
    user_label = tables.Column(verbose_name=_("Launched by"), default="–")
    progress = tables.Column(
        verbose_name=_("Progress"), empty_values=(), orderable=False, attrs={"td": {"class": "pcrud-doing"}}
    )
    created_at = tables.DateTimeColumn(verbose_name=_("Created"), short=True, attrs={"td": {"class": "pcrud-time"}})
    duration = tables.Column(verbose_name=_("Duration"), empty_values=(), attrs={"td": {"class": "pcrud-time"}})

    class Meta:
        model = TaskRecord
        fields = ("selected", "status", "label", "affected_count", "user_label", "progress", "created_at", "duration")
        order_by = ("-created_at",)
        template_name = "powercrud_dashboard/tasks/_table.html"
        empty_text = _("No tasks here.")

    def __init__(
        self,
        *args: Any,
        live: Mapping[str, LiveTask],
        task_url: Callable[[TaskRecord], str],
        is_selectable: bool,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, exclude=() if is_selectable else ("selected",), **kwargs)
        self.live = live
        self.task_url = task_url

    def render_selected(self, record: TaskRecord) -> str:
        return self._partial("tasks/_select.html", record)

    def render_status(self, record: TaskRecord) -> str:
        return self._partial("shared/_status.html", record)

    def render_label(self, record: TaskRecord) -> str:
        return self._partial("tasks/_label.html", record)

    def render_progress(self, record: TaskRecord) -> str:
        return self._partial("shared/_progress.html", record)

    def render_duration(self, record: TaskRecord) -> str:
        return self._partial("shared/_duration.html", record)

    def order_duration(self, queryset: QuerySet[TaskRecord], is_descending: bool) -> tuple[QuerySet[TaskRecord], bool]:
        length = F("finished_at") - F("started_at")
        order = length.desc(nulls_last=True) if is_descending else length.asc(nulls_last=True)
        return queryset.order_by(order, "-pk"), True

    def _partial(self, name: str, record: TaskRecord) -> str:
        live = self.live.get(record.task_name)
        context = {"record": record, "live": live, "task_url": self.task_url(record)}
        return render_to_string(f"powercrud_dashboard/{name}", context)


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
