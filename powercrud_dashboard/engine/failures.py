"""What settles a failure: a later try that completes, or a person who dismisses it."""

from __future__ import annotations

from typing import Any

from django.utils import timezone

from powercrud_dashboard.engine import lifecycle
from powercrud_dashboard.engine.arguments import as_person
from powercrud_dashboard.models import Resolution, TaskObject, TaskRecord, TaskStatus
from powercrud_dashboard.models.database import impatient_transaction
from powercrud_dashboard.text import MESSAGE, SHORT, clean_text


def resolve_earlier(completed: TaskRecord) -> list[int]:
    """Resolve the failures whose work this completed retry has done. Return the keys of their records.

    A retry for some objects resolves a failure only if no other object of it is left.
    """
    chain = TaskRecord.objects.chain_of(completed)
    if not chain.filter(pk__lt=completed.pk, status=TaskStatus.FAILED).exclude(resolution=Resolution.RESOLVED).lock():
        return []
    known = chain.only("status", "resolution", "retry_of", "is_partial", "affected_count", "chain").order_by("pk")
    tries = {record.pk: record for record in known if record.pk <= completed.pk}
    unresolved = [
        record
        for record in tries.values()
        if record.status == TaskStatus.FAILED and record.resolution != Resolution.RESOLVED
    ]
    same_work = _with_the_same_work(tries[completed.pk], tries)
    resolved = [record.pk for record in unresolved if record.pk in same_work or _is_all_done(record)]
    failures = chain.filter(pk__in=resolved, status=TaskStatus.FAILED).exclude(resolution=Resolution.RESOLVED)
    failures.update(resolution=Resolution.RESOLVED, resolution_at=timezone.now(), resolution_by="", resolution_note="")
    if len(resolved) < len(unresolved):
        TaskRecord.objects.count_last_failures([completed.chain_key])
    return resolved


def _with_the_same_work(completed: TaskRecord, tries: dict[int, TaskRecord]) -> set[int]:
    """Return the keys of the tries whose work is a part of this one's: all, unless it is for some objects only."""
    top = completed
    while not top.is_partial and top.retry_of_id in tries:
        top = tries[top.retry_of_id]
    if not top.is_partial:
        return set(tries)
    same = {top.pk}
    for record in tries.values():
        if record.retry_of_id in same:
            same.add(record.pk)
    return same


def _is_all_done(record: TaskRecord) -> bool:
    """Return whether it or later tries have done all objects, which can be told only if all are kept by name."""
    objects = TaskObject.objects.filter(record=record)
    is_known = 0 < record.affected_count <= objects.count()
    return is_known and not TaskObject.objects.all().left_of(record).exists()


def supersede_earlier(failed: TaskRecord) -> None:
    """Count this failed retry in the place of the earlier failures of its chain."""
    earlier = TaskRecord.objects.chain_of(failed).filter(pk__lt=failed.pk, status=TaskStatus.FAILED)
    # Somebody may delete one of them at this moment, so that the one before counts again.
    if earlier.lock():
        earlier.filter(superseded=False).update(superseded=True)


def dismiss(manager: lifecycle.LifecycleManager, task_name: str, user: Any, note: str) -> bool:
    """Dismiss an open failure, with the earlier tries of its chain. Return whether it was open.

    Raises:
        TaskBusy: if another session has the records locked in the database and does not finish.
    """
    person, note = as_person(user), clean_text(note, MESSAGE)
    facts: dict[str, Any] = {
        "resolution": Resolution.DISMISSED,
        "resolution_at": timezone.now(),
        "resolution_by": "" if person is None else clean_text(person, SHORT),
        "resolution_note": note,
    }
    return _settle(manager, task_name, Resolution.OPEN, facts, ("dismiss", {"actor": person, "message": note}))


def reopen(manager: lifecycle.LifecycleManager, task_name: str, user: Any) -> bool:
    """Open a dismissed failure again, with the earlier tries of its chain. Return whether it was dismissed.

    Raises:
        TaskBusy: if another session has the records locked in the database and does not finish.
    """
    facts = {"resolution": Resolution.OPEN, "resolution_at": None, "resolution_by": "", "resolution_note": ""}
    return _settle(manager, task_name, Resolution.DISMISSED, facts, ("reopen", {"actor": as_person(user)}))


def _settle(
    manager: lifecycle.LifecycleManager, task_name: str, before: Resolution, facts: dict[str, Any], event: Any
) -> bool:
    record = TaskRecord.objects.known_of(task_name)
    if record is None:
        return False
    with impatient_transaction():
        failures = TaskRecord.objects.chain_of(record).of_resolution(before)
        names = list(failures.locking().values_list("task_name", flat=True))
        if task_name not in names:
            return False
        failures.update(**facts)
        name, payload = event
        for changed in names:
            lifecycle.emit(manager, name, changed, **payload)
    return True
