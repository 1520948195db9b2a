"""The tables of the pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import django_tables2 as tables
from django.db.models import QuerySet
from django.http import HttpRequest
from django.template.loader import render_to_string
from django.utils.functional import cached_property
from django.utils.html import format_html_join
from django.utils.translation import gettext_lazy as _
from django_tables2.data import TableListData

from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.dashboard.formatting import Moment, duration
from powercrud_dashboard.dashboard.rows import TaskRow, render_rows
from powercrud_dashboard.extension import dashboard
from powercrud_dashboard.models import TaskStatus
from powercrud_dashboard.models.statuses import UNFINISHED

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from powercrud_dashboard.dashboard.selection import BulkAction
    from powercrud_dashboard.dashboard.views.failures import FailureGroup
    from powercrud_dashboard.dashboard.views.locks import Holder
    from powercrud_dashboard.models import ActiveTask


class PresortedData(TableListData):  # type: ignore[misc]
    """Rows that the database has already sorted."""

    def order_by(self, aliases: Sequence[str]) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class SortLink:
    """A further order that the header of a column offers."""

    label: Any
    #: The value of the ``sort`` parameter for this order, or for its reverse if the list has it already.
    sort: str
    #: "ascending" or "descending" if the list has this order, else "".
    direction: str


NO_MATCH = _("No task matches the filters. Remove a filter above, or look at another tab.")

#: What an empty list says, by its tab.
EMPTY_TABS = {
    "": _(
        "There are no tasks yet. A task appears here as soon as somebody runs a background action in the admin, or "
        "code of the project launches one."
    ),
    TaskStatus.PENDING.value: _("No task is queued: the workers have taken all of them."),
    TaskStatus.IN_PROGRESS.value: _("No task is running. What runs is shown here with its progress."),
    TaskStatus.FAILED.value: _(
        "No failure is left here. A failed task is listed until a retry completes or somebody dismisses it."
    ),
    TaskStatus.SUCCESS.value: _("No task has completed yet."),
    TaskStatus.CANCELLED.value: _("No task was cancelled."),
    "waiting": _("No task waits for a retry. Tasks with a retry policy wait here after a failure."),
}


class TaskTable(tables.Table):  # type: ignore[misc]
    """The columns of the task list. A separate template renders the rows."""

    selected = tables.Column(verbose_name=_("Select"), orderable=False)
    status = tables.Column(verbose_name=_("Status"))
    label = tables.Column(verbose_name=_("Task"))
    progress = tables.Column(verbose_name=_("Progress"), orderable=False)
    created_at = tables.Column(verbose_name=_("Created"), initial_sort_descending=True)
    finished_at = tables.Column(verbose_name=_("Ended"), initial_sort_descending=True)
    actions = tables.Column(verbose_name=_("Actions"), orderable=False)

    css_class = "pcrud-task-table"

    #: Orders by what the second line of a column shows.
    more_orders: Mapping[str, Mapping[str, Any]] = {
        "label": {"affected_count": _("Objects"), "user_label": _("Launched by")},
        "finished_at": {"duration": _("Time")},
    }

    class Meta:
        template_name = "powercrud_dashboard/tasks/_task_table.html"
        empty_text = _("There are no tasks.")

    def __init__(
        self, rows: Sequence[TaskRow], *, sort: str, status: str, is_actionable: bool, is_filtered: bool
    ) -> None:
        exclude = [] if is_actionable else ["selected", "actions"]
        added = {}
        if columns := dashboard().columns:
            # One below the other, as there is no room for more columns.
            header = format_html_join(
                "", '<span class="pcrud-project-label">{}</span>', ((column.label,) for column in columns)
            )
            added["project"] = tables.Column(verbose_name=header, orderable=False)
        # No RequestConfig: the rows are one page already.
        super().__init__(
            PresortedData(list(rows)),
            exclude=exclude,
            extra_columns=added.items(),
            sequence=("...", *added, "actions"),
            order_by=sort,
            empty_text=NO_MATCH if is_filtered else EMPTY_TABS.get(status, EMPTY_TABS[""]),
        )
        has_ends = status not in UNFINISHED
        self.columns["finished_at"].column.orderable = has_ends
        for column, orders in self.more_orders.items():
            if column != "finished_at" or has_ends:
                links = [_sort_link(name, label, sort) for name, label in orders.items()]
                self.columns[column].column.sort_links = links
                self.columns[column].column.direction = "".join(link.direction for link in links)
        self._task_rows = rows
        self._is_actionable = is_actionable

    @property
    def rendered_rows(self) -> list[str]:
        """Return the HTML of each row."""
        # Translate the headers once, not for each row.
        labels = {column.name: str(column.header) for column in self.columns}
        return render_rows(self._task_rows, labels=labels, is_actionable=self._is_actionable)


def _sort_link(name: str, label: Any, current: str) -> SortLink:
    directions = {name: "ascending", f"-{name}": "descending"}
    return SortLink(label, f"-{name}" if current == name else name, directions.get(current, ""))


@dataclass(frozen=True)
class FailureRow:
    """What the failures page shows of a group."""

    group: FailureGroup
    #: The URL of the list of its tasks; "" for none.
    url: str
    function_url: str
    changed_url: str
    first: Moment
    last: Moment
    newest_url: str
    actions: Sequence[BulkAction]


class FailureTable(tables.Table):  # type: ignore[misc]
    """The groups of failed tasks on the failures page. A separate template renders the rows."""

    pattern = tables.Column(verbose_name=_("Error"))
    func = tables.Column(verbose_name=_("Function"))
    count = tables.Column(verbose_name=_("Tasks"), initial_sort_descending=True)
    first = tables.Column(verbose_name=_("First seen"), initial_sort_descending=True)
    last = tables.Column(verbose_name=_("Last"), initial_sort_descending=True)
    actions = tables.Column(verbose_name=_("Actions"), empty_values=(), orderable=False)

    class Meta:
        template_name = "powercrud_dashboard/failures/_table.html"

    def __init__(
        self,
        groups: Sequence[FailureGroup],
        *,
        row: Callable[[FailureGroup], FailureRow],
        is_actionable: bool,
        bulk_url: str,
        request: HttpRequest,
        empty_text: str,
    ) -> None:
        super().__init__(groups, exclude=() if is_actionable else ("actions",), empty_text=empty_text)
        self.is_actionable = is_actionable
        self.bulk_url = bulk_url
        self._row = row
        tables.RequestConfig(request, paginate=False).configure(self)

    @property
    def failure_rows(self) -> list[FailureRow]:
        return [self._row(row.record) for row in self.rows]

    @cached_property
    def labels(self) -> dict[str, str]:
        """The headers of the columns, translated once and not for each row."""
        return {column.name: str(column.header) for column in self.columns}


class LockTable(tables.Table):  # type: ignore[misc]
    """The holders of locks on the locks page, in orders that an index has: there may be many."""

    holder = tables.Column(
        verbose_name=_("Held by"), empty_values=(), orderable=False, attrs={"td": {"class": "pcrud-label"}}
    )
    objects = tables.Column(
        verbose_name=_("Objects"), empty_values=(), orderable=False, attrs={"td": {"class": "pcrud-label"}}
    )
    locked_at = tables.Column(
        verbose_name=_("Held for"), accessor="created_at", empty_values=(), attrs={"td": {"class": "pcrud-time"}}
    )
    free = tables.Column(verbose_name=_("Free"), empty_values=(), orderable=False)

    class Meta:
        # Without "model": django-tables2 would ask Django for the relations of all models, some of which may not be
        # loaded yet.
        order_by = ("locked_at",)
        template_name = "powercrud_dashboard/tasks/_table.html"
        empty_text = _("There are no locks. A task locks the objects that it works on until it has ended.")

    def __init__(self, *args: Any, holders: Mapping[int, Holder], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.holders = holders

    def order_locked_at(self, queryset: QuerySet[ActiveTask], is_descending: bool) -> tuple[QuerySet[ActiveTask], bool]:
        # The keys are in the order in which the holders were made.
        return queryset.order_by("-pk" if is_descending else "pk"), True

    def render_holder(self, record: ActiveTask) -> str:
        return self._render_partial("_holder.html", record)

    def render_objects(self, record: ActiveTask) -> str:
        return self._render_partial("_objects.html", record)

    def render_locked_at(self, record: ActiveTask) -> str:
        return duration(self.holders[record.pk].read_at - record.created_at)

    def render_free(self, record: ActiveTask) -> str:
        return self._render_partial("_free.html", record)

    def _render_partial(self, name: str, record: ActiveTask) -> str:
        return render_to_string(f"powercrud_dashboard/locks/{name}", {"holder": self.holders[record.pk]})


#: No list has so many pages, and every database can skip so many rows.
MAX_PAGE = 1_000_000


class _Paginator(tables.LazyPaginator):  # type: ignore[misc]
    """Limits what the query string can ask for."""

    def __init__(self, rows: Any, per_page: int) -> None:
        super().__init__(rows, app_settings.DASHBOARD_PAGE_SIZE)

    def validate_number(self, number: Any) -> int:
        valid: int = super().validate_number(number)
        return min(valid, MAX_PAGE)


def paginate_table(table: tables.Table, request: HttpRequest) -> None:
    """Sort and paginate the table by the query parameters, without counting all rows."""
    tables.RequestConfig(request, paginate={"paginator_class": _Paginator}).configure(table)
