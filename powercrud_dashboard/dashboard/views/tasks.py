from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from django.utils.functional import cached_property
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from powercrud_dashboard import access, queueing
from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.dashboard.counting import Count
from powercrud_dashboard.dashboard.listing import NEWER_AT_MOST, Listing
from powercrud_dashboard.dashboard.live import live_tasks, running_state
from powercrud_dashboard.dashboard.objects import ObjectLinks
from powercrud_dashboard.dashboard.rows import TaskRow
from powercrud_dashboard.dashboard.selection import BulkAction, RowAction, actions_for
from powercrud_dashboard.dashboard.tables import TaskTable
from powercrud_dashboard.dashboard.views.base import RefreshingPageView
from powercrud_dashboard.models import TaskEvent, TaskRecord, TaskStatus
from powercrud_dashboard.models.search import CONSIDERED

#: The order of the tabs, by their value in the address.
TABS = (
    (TaskStatus.PENDING, gettext_lazy("Queued")),
    (TaskStatus.IN_PROGRESS, gettext_lazy("Running")),
    (TaskStatus.FAILED, gettext_lazy("Failed")),
    (TaskStatus.SUCCESS, gettext_lazy("Completed")),
    (TaskStatus.CANCELLED, gettext_lazy("Cancelled")),
)

#: An open list is made anew after so many seconds at the latest: what was deleted leaves no event, and ages grow.
STALE_AFTER = 60
STALE_AFTER_WITH_UNFINISHED = 10


@dataclass(frozen=True)
class Tab:
    status: str | None
    label: Any
    count: Count
    is_current: bool


class TaskListView(RefreshingPageView):
    """All tasks that this person may see, by status and filters; its moving part refreshes itself."""

    page_name = "changelist"
    template_name = "powercrud_dashboard/tasks/page.html"
    partial_template_name = "powercrud_dashboard/tasks/_list.html"

    @cached_property
    def listing(self) -> Listing:
        return Listing(self.request.GET, self.request.user)

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        # The state of things before the things themselves: what happens between the two is then still news.
        happened = TaskEvent.objects.newest_state()
        listing, user = self.listing, self.request.user
        matching = listing.counts[listing.status]
        # Rows that are ticked stay where they are; new ones are announced above them.
        held_at = self.shown_newest if self.is_held and listing.is_first_page else ""
        page = listing.page(app_settings.DASHBOARD_PAGE_SIZE, start=held_at or None)
        flags = "".join(sorted({_FLAGS[record.status] for record in page.records if record.status in _FLAGS}))
        state = self._state(flags, happened)
        newest, newer = self._newest(page.records, held_at)
        actions = actions_for(user)
        rows = self._rows(page.records, actions)
        table = TaskTable(rows, sort=listing.sort, status=listing.status, is_actionable=bool(actions))
        return super().get_context_data(
            title=_("Background tasks"),
            is_task_list=True,
            tabs=self._tabs(),
            table=table,
            page=page,
            filter=listing.filter,
            status=listing.status,
            bulk_actions=actions,
            bulk_url=self.url("bulk"),
            exports=[(name, self.url("export", name)) for name in ("csv", "json")],
            has_matching=bool(page.records),
            matching=matching,
            is_bounded=listing.is_bounded,
            considered=Count(CONSIDERED),
            newest=newest,
            newer=newer,
            newer_words=f"{NEWER_AT_MOST}+" if newer > NEWER_AT_MOST else str(newer),
            state=state,
            no_cluster_runs=queueing.no_cluster_runs(),
            models=self._model_labels(),
            **kwargs,
        )

    def current_state(self) -> str:
        """Return what the state of the shown list would be now, at the cost of two queries."""
        shown, __, __ = self.shown_state.partition(".")
        return self._state(shown.removesuffix(_HELD), TaskEvent.objects.newest_state())

    def _state(self, flags: str, happened: str) -> str:
        """Return a text that differs when a list with such rows (``flags``) may have changed."""
        seconds = STALE_AFTER_WITH_UNFINISHED if flags else STALE_AFTER
        running = running_state() if _RUNNING in flags else ""
        held = _HELD if self.is_held else ""
        return f"{flags}{held}.{int(time.time() // seconds)}.{happened}.{running}"

    def _newest(self, records: list[TaskRecord], held_at: str) -> tuple[str, int]:
        """Return the place of the list's first task as the person knows it, and how many came since."""
        listing = self.listing
        if not listing.shows_newest_first:
            return "", 0
        if listing.is_first_page and not held_at:
            return (listing.order.place_of(records[0]) if records else ""), 0
        known = self.shown_newest if self.is_partial_request else ""
        if not known:
            return listing.newest_place(), 0
        return known, listing.newer_than(known)

    def _tabs(self) -> list[Tab]:
        counts, current = self.listing.counts, self.listing.status
        tabs = [Tab(status, label, counts[status], status == current) for status, label in TABS]
        return [*tabs, Tab(None, _("All"), counts[""], not current)]

    def _rows(self, records: list[TaskRecord], actions: list[BulkAction]) -> list[TaskRow]:
        live = live_tasks(records)
        links = ObjectLinks(self.admin_site, self.request)
        return [
            TaskRow(
                record,
                live.get(record.task_name),
                self.url("change", record.pk),
                [
                    (item.get("text") or f"{item['model']} {item['id']}", links.url(item["model"], item["id"]))
                    for item in record.first_objects
                ],
                self._row_actions(actions, record),
            )
            for record in records
        ]

    def _row_actions(self, allowed: list[BulkAction], record: TaskRecord) -> list[RowAction]:
        bulk_url = self.url("bulk")
        return [
            RowAction(action.name, action.label, bulk_url, f"{action.name}:{record.pk}")
            if action.name == "delete"
            else RowAction(action.name, action.label, self.url(action.name, record.pk))
            for action in allowed
            if not action.obstacle(record)
        ]

    def _model_labels(self) -> list[str]:
        """Return the models to propose for the filter: those of the admin that this person knows."""
        if self.is_partial_request or not access.has_permission(self.request.user, "view_taskrecord"):
            return []
        return sorted(model._meta.label_lower for model in self.admin_site._registry)


_UNFINISHED, _RUNNING, _HELD = "q", "r", "h"
#: What rows of these statuses make the state depend on.
_FLAGS: dict[str, str] = {TaskStatus.PENDING: _UNFINISHED, TaskStatus.IN_PROGRESS: _RUNNING}
