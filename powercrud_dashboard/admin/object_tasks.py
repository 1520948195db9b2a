"""The tasks that touched one object, for its change form and its history."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.http import HttpRequest, QueryDict

from powercrud_dashboard.admin.addresses import dashboard_url, task_url
from powercrud_dashboard.admin.edits import locks_of_others
from powercrud_dashboard.admin.selected import lock_label
from powercrud_dashboard.dashboard.listing import WIDE
from powercrud_dashboard.models import TaskObject, TaskRecord
from powercrud_dashboard.models.coordination import ActiveTaskState

if TYPE_CHECKING:
    from powercrud_dashboard.admin.actions import Admin

#: Tasks that the panel shows; a link leads to all.
SHOWN_TASKS = 10


@dataclass(frozen=True)
class ObjectTask:
    record: TaskRecord
    #: What became of this object.
    entry: TaskObject
    url: str


def object_context(model_admin: Admin, request: HttpRequest, obj: Any) -> dict[str, Any]:
    """Return what the templates say of the object's tasks, and of the one that holds it."""
    site, label, key = model_admin.admin_site.name, lock_label(model_admin), str(obj.pk)
    entries = TaskObject.objects.touching(label, key).order_by("-record")
    visible = TaskRecord.objects.visible_to(request.user)
    shown = entries.filter(record__in=visible.values("pk"))[:SHOWN_TASKS]
    by_record = {entry.record_id: entry for entry in shown}
    records = visible.filter(pk__in=by_record).defer(*WIDE).order_by("-pk")
    holders = [
        (str(lock.active_task), task_url(site, lock.active_task.task_name), lock.active_task.state)
        for lock in locks_of_others([obj])
    ]
    return {
        "object_tasks": [
            ObjectTask(record, by_record[record.pk], dashboard_url(site, "change", record.pk)) for record in records
        ],
        "object_holders": holders,
        "object_is_reserved": any(state == ActiveTaskState.RESERVED for __, __, state in holders),
        "object_edit_is_blocked": bool(holders and getattr(model_admin, "lock_blocks_edit", False)),
        "object_tasks_url": all_tasks_url(model_admin, obj),
    }


def all_tasks_url(model_admin: Admin, obj: Any) -> str:
    """Return the address of the task list with the tasks that touched this object."""
    query = QueryDict(mutable=True)
    query.update({"model": lock_label(model_admin), "object_id": str(obj.pk)})
    address = dashboard_url(model_admin.admin_site.name, "changelist")
    return f"{address}?{query.urlencode()}" if address else ""
