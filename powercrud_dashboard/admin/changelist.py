"""A changelist that knows which of its rows are locked, and the strip of its model's unfinished tasks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.contrib.admin.views.main import ChangeList
from django.db.models import Q, QuerySet
from django.http import HttpRequest

from powercrud_dashboard import access, locks
from powercrud_dashboard.admin.addresses import dashboard_url
from powercrud_dashboard.admin.selected import lock_label
from powercrud_dashboard.dashboard.listing import WIDE
from powercrud_dashboard.dashboard.live import LiveTask, live_tasks
from powercrud_dashboard.models import ConflictLock, TaskRecord
from powercrud_dashboard.models.coordination import WHOLE_MODEL

if TYPE_CHECKING:
    from powercrud_dashboard.admin.actions import Admin

#: Tasks that the strip shows; it says how many there are beyond.
SHOWN_TASKS = 5

#: Rows whose locks the strip is asked for at once; a changelist shows two hundred at most, as a rule.
ASKED_KEYS = 500


class LockAwareChangeList(ChangeList):
    """Reads the locks of all rows of the page in one query."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        # Iterating fills the result's own cache, so these are the rows that will be shown.
        rows = list(self.result_list)
        found = lock_by_key(self.model_admin, (row.pk for row in rows))
        for row in rows:
            row.pcrud_lock = found.get(str(row.pk)) or found.get(WHOLE_MODEL)


def lock_by_key(model_admin: Admin, pks: Iterable[Any]) -> dict[str, ConflictLock]:
    """Return the locks on these objects by key; one on the whole model is under ``WHOLE_MODEL``."""
    keys = locks.normalise({lock_label(model_admin): list(pks)})
    return {lock.object_id: lock for lock in locks.locks_on(keys)}


@dataclass(frozen=True)
class StripTask:
    record: TaskRecord
    live: LiveTask | None
    url: str
    cancel_url: str


def unfinished_tasks(model_admin: Admin, user: Any) -> QuerySet[TaskRecord]:
    """Return the queued and running tasks on this model that this person may see, newest first."""
    label = lock_label(model_admin)
    touches = (
        Q(model_labels=label)
        | Q(model_labels__startswith=f"{label} ")
        | Q(model_labels__endswith=f" {label}")
        | Q(model_labels__contains=f" {label} ")
    )
    return TaskRecord.objects.visible_to(user).unfinished().filter(touches).order_by("-created_at", "-pk")


def strip_context(model_admin: Admin, request: HttpRequest) -> dict[str, Any]:
    """Return what the strip's template needs; ``strip_tasks`` is empty if there is nothing to show."""
    site = model_admin.admin_site.name
    list_url = dashboard_url(site, "changelist")
    records = list(unfinished_tasks(model_admin, request.user).defer(*WIDE)[: SHOWN_TASKS + 1])
    shown = records[:SHOWN_TASKS]
    live = live_tasks(shown)
    tasks = [
        StripTask(
            record,
            live.get(record.task_name),
            dashboard_url(site, "change", record.pk),
            dashboard_url(site, "cancel", record.pk) if access.may_cancel(request.user, record) else "",
        )
        for record in shown
    ]
    return {
        "strip_tasks": tasks,
        "strip_has_more": len(records) > SHOWN_TASKS,
        "strip_list_url": f"{list_url}?model={lock_label(model_admin)}" if list_url else "",
    }
