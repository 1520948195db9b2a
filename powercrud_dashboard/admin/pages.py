"""Task information on the project's own admin pages: the strip, the lock icons and the tasks of an object."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.http import HttpRequest, QueryDict

from powercrud_dashboard.admin.edits import locks_of_other_tasks
from powercrud_dashboard.admin.selection import lock_label
from powercrud_dashboard.dashboard.links import dashboard_url
from powercrud_dashboard.dashboard.listing import WIDE_COLUMNS
from powercrud_dashboard.engine import locks
from powercrud_dashboard.models import ConflictLock, TaskObject, TaskRecord
from powercrud_dashboard.models.database import Now
from powercrud_dashboard.models.locks import WHOLE_MODEL

if TYPE_CHECKING:
    from powercrud_dashboard.admin.actions import Admin


def task_url(site_name: str, task_name: str) -> str:
    """Return the URL of the page of a task, or "" if there is none."""
    pk = TaskRecord.objects.filter(task_name=task_name).values_list("pk", flat=True).first()
    return dashboard_url(site_name, "change", pk) if pk else ""


#: Tasks shown on the page of an object; a link leads to the complete list.
OBJECT_TASKS = 10

#: Maximum number of rows whose locks the strip returns. A changelist rarely shows more than two hundred rows.
MAX_STRIP_KEYS = 500


def mark_locked_rows(model_admin: Admin, rows: Iterable[Any]) -> None:
    """Set ``pcrud_lock`` of each row to the lock on it, or None. The locks are read in one query."""
    rows = list(rows)
    locks_by_key = lock_by_key(model_admin, (row.pk for row in rows))
    for row in rows:
        row.pcrud_lock = locks_by_key.get(str(row.pk)) or locks_by_key.get(WHOLE_MODEL)


def lock_by_key(model_admin: Admin, pks: Iterable[Any]) -> dict[str, ConflictLock]:
    """Return the locks on these objects by key. The key of a lock on the whole model is ``WHOLE_MODEL``."""
    return locks.locks_by_key(model_admin.opts.label_lower, pks)


@dataclass(frozen=True)
class ObjectTask:
    record: TaskRecord
    #: The outcome for the object.
    entry: TaskObject
    url: str


def object_context(model_admin: Admin, request: HttpRequest, obj: Any) -> dict[str, Any]:
    """Return the template context for the tasks of an object and for the holders of its locks."""
    site, label, key = model_admin.admin_site.name, lock_label(model_admin), str(obj.pk)
    entries = TaskObject.objects.touching(label, key).defer("traceback").order_by("-record")
    visible = TaskRecord.objects.visible_to(request.user)
    shown = entries.filter(record__in=visible.values("pk"))[:OBJECT_TASKS]
    by_record = {entry.record_id: entry for entry in shown}
    records = visible.filter(pk__in=by_record).defer(*WIDE_COLUMNS).annotate(read_at=Now()).order_by("-pk")
    holders = [
        (str(lock.active_task), task_url(site, lock.active_task.task_name), lock.active_task.state)
        for lock in locks_of_other_tasks([obj])
    ]
    return {
        "object_tasks": [
            ObjectTask(record, by_record[record.pk], dashboard_url(site, "change", record.pk)) for record in records
        ],
        "object_holders": holders,
        "object_edit_is_blocked": bool(holders and getattr(model_admin, "lock_blocks_edit", False)),
        "object_tasks_url": all_tasks_url(model_admin, obj),
    }


def all_tasks_url(model_admin: Admin, obj: Any) -> str:
    """Return the URL of the task list, filtered by this object."""
    query = QueryDict(mutable=True)
    query.update({"model": lock_label(model_admin), "object_id": str(obj.pk)})
    url = dashboard_url(model_admin.admin_site.name, "changelist")
    return f"{url}?{query.urlencode()}" if url else ""
