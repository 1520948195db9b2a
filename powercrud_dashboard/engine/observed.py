"""Records of tasks that no manager of this package runs, as far as somebody tells what happens to them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, Generic, TypeVar

from django.db import IntegrityError
from django.db.models import F, Q

from powercrud_dashboard.engine import failures, registry, statistics
from powercrud_dashboard.engine.arguments import NAME_LENGTH
from powercrud_dashboard.engine.failure_texts import outcome
from powercrud_dashboard.engine.observed_rows import (
    EndedTask,
    Event,
    PlainTask,
    change_of,
    end_of,
    ended_columns,
    lines_of,
    new_columns,
    place_of,
    start_of,
)
from powercrud_dashboard.models import FailureReason, Source, TaskEvent, TaskRecord, TaskStatus
from powercrud_dashboard.models.changes import RecordChange
from powercrud_dashboard.models.database import impatient_transaction, in_chunks, short_wait_on_sqlite
from powercrud_dashboard.models.prepared import PreparedInsert
from powercrud_dashboard.text import storable

#: Records written in one transaction, so that a launch never waits long for it.
WRITTEN_AT_ONCE = 100
#: How often a batch is tried if somebody else inserts a record of it at the same moment.
TRIES = 3

Told = TypeVar("Told", bound=PlainTask)
Answer = TypeVar("Answer")


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

    def write() -> None:
        known = TaskRecord.objects.filter(task_name=name).values_list("source", "attempts").first()
        if known is None:
            recorder.record_lifecycle_events(name, [("create", dict(creation)), *events])
            return
        source, attempts = known
        new = [item for item in events if item[0] != "start" or item[1]["attempt"] > attempts]
        if new and source == creation["source"]:
            recorder.record_lifecycle_events(name, new)

    # Somebody's task waits for this.
    with short_wait_on_sqlite():
        _insert_what_is_new(write)


def record_ended(tasks: Iterable[EndedTask], *, by_rows: bool = False) -> int:
    """Write how tasks of plain django-q2 have ended, some of them in each transaction.

    A task without a record gets one. One that is recorded as queued or running, as lost, or as cancelled in the queue,
    ends. One that is recorded as failed and that django-q2 has run again since gets its newer end. All else is known
    already, so that the same tasks can be given again.

    Args:
        tasks: what is told of them.
        by_rows: whether django-q2's rows tell it. That of a manager's task has the name of its record and no arguments,
            and is left out.

    Returns:
        How many ends were written. 0 where no history is kept.

    Raises:
        TaskBusy, DatabaseError: if a part can't be written; the parts before it are.
    """
    recorder = registry.recorder_for(None)
    if recorder is None:
        return 0
    written = 0
    part: dict[str, EndedTask] = {}
    for task in tasks:
        name = _fitting(task.id)
        # A broker may have delivered a message more than once: each delivery is another attempt.
        if len(part) == WRITTEN_AT_ONCE or name in part:
            written += _write_part(part, recorder, by_rows)
            part = {}
        part[name] = task
    return written + _write_part(part, recorder, by_rows)


def record_queued(tasks: Iterable[PlainTask]) -> int:
    """Write that tasks of plain django-q2 wait in their queue. Those that have a record are known already.

    Returns:
        How many were written. 0 where no history is kept.

    Raises:
        TaskBusy, DatabaseError: if they can't be written.
    """
    if registry.recorder_for(None) is None:
        return 0
    by_name = _prepared({_fitting(task.id): task for task in tasks}, new_columns)

    def write() -> int:
        known = _known(by_name)
        new = [found for name, found in by_name.items() if name not in known]
        _insert(new)
        return len(new)

    return _insert_what_is_new(write)


def _insert_what_is_new(write: Callable[[], Answer]) -> Answer:
    """Call this in a transaction; again if somebody else inserts one of the records at the same moment."""
    for tries_left in reversed(range(TRIES)):
        try:
            with impatient_transaction():
                return write()
        except IntegrityError:
            if not tries_left:
                raise
    raise AssertionError


def record_started(task: PlainTask, started_at: datetime, **where: Any) -> None:
    """Write, in the open transaction, that a worker has begun a task; its place is given as in a ``start`` event.

    Raises:
        DatabaseError: if it can't be written.
    """
    recorder = registry.recorder_for(None)
    if recorder is None:
        return
    name = _fitting(task.id)
    record = _known({name}).get(name)
    attempt = 1
    if record is None:
        _insert(_prepared({name: task}, new_columns).values())
    elif record.source != Source.DJANGO_Q or record.status == TaskStatus.SUCCESS:
        # Of a further run of a task that has succeeded, its end tells.
        return
    elif _is_earlier(record.started_at, started_at):
        attempt += record.attempts
        if record.status == TaskStatus.FAILED:
            _queue_again(record, has_ended=True)
    elif record.failure_reason == FailureReason.WORKER_LOST and record.started_at == started_at:
        # Its worker was only silent for a while.
        attempt = record.attempts
        _queue_again(record, has_ended=False)
    else:
        return
    start = {"attempt": attempt, "timestamp": started_at, "receipt": task.receipt or None, **where}
    recorder.record_lifecycle_events(name, [("start", start)])


def _is_earlier(known: datetime | None, told: datetime | None) -> bool:
    """Return whether the start that is known is of an earlier attempt than the one that is told, if it is told."""
    return told is not None and (known is None or known < told)


def _queue_again(record: TaskRecord, *, has_ended: bool) -> None:
    """Write, in the open transaction, that the broker has delivered a failed task again, or that it has not ended."""
    failed = TaskRecord.objects.failed().filter(pk=record.pk)
    statistics.take_turn()
    if not failed.lock():
        return
    no_end: dict[str, Any] = {"finished_at": None, "run_time": timedelta(), "is_counted": False}
    if has_ended:
        # The end counts, also if the task ends once more.
        statistics.count_records([record.pk])
        no_end["counted_as"] = None
    else:
        # Its start is recorded once more.
        no_end["attempts"] = F("attempts") - 1
    failed.update(**RecordChange.queued_again(**no_end).columns)


@dataclass(frozen=True)
class _Prepared(Generic[Told]):
    """What is told of a task, and its record and its timeline as the database takes them, if there are none yet."""

    name: str
    task: Told
    record: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]]


def _prepared(tasks: Mapping[str, Told], columns_of: Callable[[Told], dict[str, Any]]) -> dict[str, _Prepared[Told]]:
    """Prepare the rows of tasks before a transaction begins, by their names.

    Other people's objects are printed, and may ask the database; and it takes longer than to insert the rows, for which
    others wait.
    """
    records = _ADD_RECORDS.converted([{"task_name": name, **columns_of(task)} for name, task in tasks.items()])
    lines_by_task = [lines_of(task) for task in tasks.values()]
    lines = iter(_ADD_EVENTS.converted([{**line, "record": None} for lines in lines_by_task for line in lines]))
    return {
        name: _Prepared(name, task, record, list(islice(lines, len(found))))
        for (name, task), record, found in zip(tasks.items(), records, lines_by_task, strict=True)
    }


def _write_part(tasks: Mapping[str, EndedTask], recorder: Any, by_rows: bool) -> int:
    part = _prepared(tasks, ended_columns)
    return _insert_what_is_new(lambda: _write_ends(part, recorder, by_rows) if part else 0)


def _write_ends(part: Mapping[str, _Prepared[EndedTask]], recorder: Any, by_rows: bool) -> int:
    names = {storable(found.task.name) for found in part.values() if by_rows and not found.task.args}
    known = _known({*part, *names})
    of_managers = {name for name in names if name in known and known[name].source == ""}
    new: list[_Prepared[EndedTask]] = []
    written = 0
    for name, prepared in part.items():
        record = known.get(name)
        if not prepared.task.args and storable(prepared.task.name) in of_managers:
            continue
        if record is None:
            new.append(prepared)
        elif record.source == Source.DJANGO_Q:
            written += _write_end(record, prepared.task, recorder)
    _insert(new)
    return written + len(new)


_KNOWN_COLUMNS = ("task_name", "source", "status", "failure_reason", "attempts", "started_at", "finished_at", "chain")


def _known(names: Iterable[str]) -> dict[str, TaskRecord]:
    records = TaskRecord.objects.all()
    return {
        record.task_name: record
        for chunk in in_chunks(names, using=records.db)
        for record in records.filter(task_name__in=chunk).only(*_KNOWN_COLUMNS)
    }


def _write_end(record: TaskRecord, task: EndedTask, recorder: Any) -> bool:
    """Write the end of a task that has a record. Return whether it was not known yet."""
    event = outcome(task.func, task.success, task.result)[0]
    told = TaskEvent.objects.filter(record=record, event=event, timestamp=task.stopped_at)
    if task.started_at is None and record.finished_at != task.stopped_at and told.exists():
        # A row of a run that its worker has told of, while the record tells of a newer one.
        return False
    if event == "fail" and _is_of_earlier_attempt(task, record):
        # The record tells of a newer one, which may be running.
        return _add_run(record, task)
    is_later = record.started_at is not None and _is_earlier(record.started_at, task.started_at)
    is_inferred = TaskRecord.objects.inferred_ends().filter(pk=record.pk)
    is_corrected = not (is_later and record.status == TaskStatus.FAILED) and is_inferred.exists()
    if not record.is_finished or is_corrected:
        if event == "cancel" and record.is_finished:
            # Whoever has cancelled it was right.
            return False
        _end(record, task, recorder, is_later=is_later)
        return True
    if record.started_at is None and task.started_at is not None and record.finished_at == task.stopped_at:
        _add_start(record, task)
        return False
    if record.status == TaskStatus.SUCCESS:
        # Its broker has delivered it again. The record keeps its end, as django-q2's row does.
        return task.started_at is not None and _add_run(record, task)
    return _write_later_end(record, task, recorder, has_succeeded=event == "complete")


def _is_of_earlier_attempt(task: EndedTask, record: TaskRecord) -> bool:
    """Return whether the attempt that the record tells of began after this one, or after its end."""
    return record.started_at is not None and (task.started_at or task.stopped_at) < record.started_at


def _end(record: TaskRecord, task: EndedTask, recorder: Any, *, is_later: bool) -> None:
    """Write, in the open transaction, the end of a task that has not ended, or that was given up."""
    started_at = task.started_at or record.started_at
    events = [end_of(task, started_at)]
    if started_at is not None and (is_later or record.attempts < task.attempts):
        attempts = max(task.attempts, record.attempts + 1)
        events.insert(0, ("start", start_of(replace(task, attempts=attempts), started_at)))
    elif not record.attempts:
        # It has run, though nobody has told when it began.
        TaskRecord.objects.filter(pk=record.pk).update(attempts=task.attempts)
    recorder.record_lifecycle_events(record.task_name, events)
    if _is_earlier(task.started_at, record.started_at) and task.started_at is not None:
        # The record tells of the run that has ended, not of the one which has overtaken it.
        start = [line for line in _new_lines(record, task) if line["event"] == "start"]
        TaskEvent.objects.add([{**line, "record": record.pk} for line in start])
        columns = {"started_at": task.started_at, **place_of(task)}
        TaskRecord.objects.filter(pk=record.pk).update(attempts=F("attempts") + len(start), **columns)


def _new_lines(record: TaskRecord, task: EndedTask) -> list[dict[str, Any]]:
    """Return the lines of a run that are not in the timeline yet, its end last."""
    lines = lines_of(replace(task, attempts=record.attempts + 1))[1:]
    stored = TaskEvent.objects.filter(record=record, timestamp__in=[line["timestamp"] for line in lines])
    known = set(stored.values_list("event", "timestamp"))
    return [line for line in lines if (line["event"], line["timestamp"]) not in known]


def _add_run(record: TaskRecord, task: EndedTask) -> bool:
    """Write in the timeline a run that is not the one which the record tells of. Return whether it was not known."""
    lines = _new_lines(record, task)
    if lines and lines[0]["event"] == "start":
        TaskRecord.objects.filter(pk=record.pk).update(attempts=F("attempts") + 1)
    TaskEvent.objects.add([{**line, "record": record.pk} for line in lines])
    # What a row has told is known without its start.
    return bool(lines) and lines[-1]["event"] != "start"


def _add_start(record: TaskRecord, task: EndedTask) -> None:
    """Write what a worker knows of an end that django-q2's row has told before: when the task began, and where."""
    columns = {"started_at": task.started_at, "run_time": change_of(task).columns["run_time"], **place_of(task)}
    if TaskRecord.objects.filter(pk=record.pk, started_at=None).update(**columns):
        # It may be known, as the row's run may be one of several that have begun.
        lines = [line for line in _new_lines(record, task) if line["event"] == "start"]
        TaskEvent.objects.add([{**line, "record": record.pk} for line in lines])


def _write_later_end(record: TaskRecord, task: EndedTask, recorder: Any, *, has_succeeded: bool) -> bool:
    """Write that django-q2 has run a failed task again, as its broker had kept the message."""
    is_newer = Q(finished_at__lt=task.stopped_at)
    if task.started_at is not None:
        # Whoever has given an attempt up may have been slower than the next one.
        is_newer |= Q(started_at__lt=task.started_at)
    failed = TaskRecord.objects.failed().filter(pk=record.pk)
    # A success counts whenever it was, as for django-q2.
    newer = failed if has_succeeded else failed.filter(is_newer)
    lines = _new_lines(record, task) if record.status == TaskStatus.FAILED else []
    if not lines or lines[-1]["event"] == "start":
        return False
    statistics.take_turn()
    if not newer.lock():
        return False
    # Both ends count.
    statistics.count_records([record.pk])
    columns = {**change_of(task).columns, "counted_as": None, "started_at": task.started_at, **place_of(task)}
    if lines[0]["event"] == "start" or (task.started_at is None and not _has_begun_more_than_ended(record)):
        columns["attempts"] = F("attempts") + 1
    newer.update(**columns)
    TaskEvent.objects.add([{**line, "record": record.pk} for line in lines])
    if has_succeeded and record.chain is not None:
        _resolve_earlier(record, recorder)
    return True


def _has_begun_more_than_ended(record: TaskRecord) -> bool:
    """Return whether the timeline has the start of a run whose end it does not have, as a row may tell of that one."""
    events = list(TaskEvent.objects.filter(record=record).values_list("event", flat=True))
    return events.count("start") > sum(events.count(end) for end in ("complete", "fail", "cancel"))


def _resolve_earlier(record: TaskRecord, recorder: Any) -> None:
    """Write that this retry has done the work of the earlier failures of its chain."""
    facts = {"actor": record.user_label, "new_task_name": record.task_name}
    resolved = TaskRecord.objects.filter(pk__in=failures.resolve_earlier(record))
    for name in resolved.values_list("task_name", flat=True):
        recorder.record_lifecycle_events(name, [("resolve", facts)])


def _insert(prepared: Collection[_Prepared[Any]]) -> None:
    if not prepared:
        return
    lines = {found.name: found.lines for found in prepared}
    _ADD_RECORDS.insert([found.record for found in prepared])
    inserted = TaskRecord.objects.filter(task_name__in=lines).values_list("task_name", "pk")
    _ADD_EVENTS.insert([{**line, "record": pk} for name, pk in inserted for line in lines[name]])


_ADD_RECORDS = PreparedInsert(TaskRecord)
_ADD_EVENTS = PreparedInsert(TaskEvent)


def _fitting(task_name: str) -> str:
    """Return the name, or a digest of one that is too long for the column."""
    name = storable(str(task_name))
    return name if len(name) <= NAME_LENGTH else hashlib.blake2s(name.encode()).hexdigest()
