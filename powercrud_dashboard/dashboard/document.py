"""Everything that is known of one task, as plain data."""

from __future__ import annotations

from typing import Any

from powercrud_dashboard.dashboard.formatting import masked
from powercrud_dashboard.models import ActiveTask, ConflictLock, TaskFile, TaskLogLine, TaskRecord


def document_of(record: TaskRecord) -> dict[str, Any]:
    """Return everything that is known of a task. Print it with ``readable_json``, which masks secrets."""
    active = ActiveTask.objects.tasks().filter(task_name=record.task_name).defer("payload").first()
    locks = ConflictLock.objects.filter(active_task__task_name=record.task_name).order_by("pk")
    log = TaskLogLine.objects.filter(record=record)
    return {
        "record": {**_columns(record), "task_args": masked(record.task_args, record.argument_names)},
        "active": active and _columns(active),
        "events": list(record.events.values("event", "timestamp", "actor_label", "message", "payload")),
        "log": list(log.values("time", "level", "logger", "message", "left_out")),
        "objects": list(record.objects_worked_on.values("model_label", "object_id", "text", "outcome", "error")),
        "locks": list(locks.values("model_label", "object_id", "locked_at")),
        "files": list(TaskFile.objects.results_of(record.task_name).values("name", "content_type", "size")),
    }


def _columns(row: TaskRecord | ActiveTask) -> dict[str, Any]:
    """Return the columns of a row, without the signed payload: its arguments are not masked."""
    fields = row._meta.concrete_fields
    return {field.attname: getattr(row, field.attname) for field in fields if field.name != "payload"}
