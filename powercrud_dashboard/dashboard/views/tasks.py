from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.db.models import Count, QuerySet
from django.utils.functional import cached_property
from django.utils.translation import gettext_lazy as _

from powercrud_dashboard import queueing
from powercrud_dashboard.dashboard.filters import TaskFilter
from powercrud_dashboard.dashboard.live import live_tasks
from powercrud_dashboard.dashboard.selection import actions_for
from powercrud_dashboard.dashboard.tables import TaskTable, show_page
from powercrud_dashboard.dashboard.views.base import RefreshingPageView
from powercrud_dashboard.models import TaskRecord, TaskStatus

#: The order of the tabs, by their value in the address.
TABS = (
    (TaskStatus.PENDING, _("Queued")),
    (TaskStatus.IN_PROGRESS, _("Running")),
    (TaskStatus.FAILED, _("Failed")),
    (TaskStatus.SUCCESS, _("Completed")),
    (TaskStatus.CANCELLED, _("Cancelled")),
)


@dataclass(frozen=True)
class Tab:
    status: str | None
    label: Any
    count: int
    is_current: bool


class TaskListView(RefreshingPageView):
    """All tasks that this person may see, by status and filters; its moving part refreshes itself."""

    page_name = "changelist"
    template_name = "powercrud_dashboard/tasks/page.html"
    partial_template_name = "powercrud_dashboard/tasks/_list.html"

    @property
    def status(self) -> str:
        """The tab asked for; anything unknown shows all tasks."""
        asked = self.request.GET.get("status", "")
        return asked if asked in TaskStatus.values else ""

    @cached_property
    def filter(self) -> TaskFilter:
        return TaskFilter(self.request.GET, queryset=TaskRecord.objects.visible_to(self.request.user))

    def get_queryset(self) -> QuerySet[TaskRecord]:
        # Wide columns that no row of the list shows.
        narrow = self.filter.found.defer("payload", "traceback", "result", "task_args", "task_kwargs", "conflict_ids")
        return narrow.filter(status=self.status) if self.status else narrow

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        tabs = self._tabs()
        actions = actions_for(self.request.user)
        return super().get_context_data(
            title=_("Background tasks"),
            tabs=tabs,
            table=self._table(is_selectable=bool(actions)),
            filter=self.filter,
            status=self.status,
            bulk_actions=actions,
            bulk_url=self.url("bulk"),
            exports=[(name, self.url("export", name)) for name in ("csv", "json")],
            matching_count=next(tab.count for tab in tabs if tab.is_current),
            no_cluster_runs=queueing.no_cluster_runs(),
            **kwargs,
        )

    def _tabs(self) -> list[Tab]:
        counts = dict(self.filter.found.order_by().values_list("status").annotate(Count("pk")))
        tabs = [Tab(status, label, counts.get(status, 0), status == self.status) for status, label in TABS]
        return [*tabs, Tab(None, _("All"), sum(counts.values()), not self.status)]

    def _table(self, *, is_selectable: bool) -> TaskTable:
        live: dict[str, Any] = {}
        table = TaskTable(
            self.get_queryset(),
            live=live,
            task_url=lambda record: self.url("change", record.pk),
            is_selectable=is_selectable,
            request=self.request,
        )
        show_page(table, self.request)
        live.update(live_tasks(row.record for row in table.page.object_list))
        return table
