"""Records of tasks that no manager of this package runs, as far as somebody tells what happens to them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from powercrud_dashboard.engine import registry
from powercrud_dashboard.engine.arguments import NAME_LENGTH
from powercrud_dashboard.models import TaskRecord
from powercrud_dashboard.models.database import impatient_transaction, short_wait_on_sqlite
from powercrud_dashboard.text import storable

#: A lifecycle event and its payload.
Event = tuple[str, dict[str, Any]]


def record(task_name: str, creation: Mapping[str, Any], events: Sequence[Event]) -> None:
    """Write what is told of a task.

    Args:
        task_name: the name that its own system gives to it.
        creation: the payload of its ``create`` event, with ``source``; written if there is no record of it yet, as
            when a transaction was rolled back or nobody listened.
        events: what has happened now, with the start of the attempt before its end. Nothing for a task that was only
            enqueued.

    A task of a manager with the same name is left alone. Where no history is kept, nothing is written.

    It waits at most a second for each lock of the database.

    Raises:
        TaskBusy: if another session keeps the record locked on PostgreSQL.
        DatabaseError: if it can't be written. Then nothing is, and an open transaction can go on.
    """
    recorder = registry.recorder_for(None)
    if recorder is None:
        return
    name = _fitting(task_name)
    # Somebody's task waits for this.
    with short_wait_on_sqlite(), impatient_transaction():
        known = TaskRecord.objects.filter(task_name=name).values_list("source", "attempts").first()
        if known is None:
            recorder.record_lifecycle_events(name, [("create", dict(creation)), *events])
            return
        source, attempts = known
        new = [item for item in events if item[0] != "start" or item[1]["attempt"] > attempts]
        if new and source == creation["source"]:
            recorder.record_lifecycle_events(name, new)


def _fitting(task_name: str) -> str:
    """Return the name, or a digest of one that is too long for the column."""
    name = storable(str(task_name))
    return name if len(name) <= NAME_LENGTH else hashlib.blake2s(name.encode()).hexdigest()
