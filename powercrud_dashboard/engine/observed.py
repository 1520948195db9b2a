"""Records of tasks that no manager of this package runs, as far as somebody tells what happens to them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import islice
from typing import Any, Generic, TypeVar

from django.db import IntegrityError
from django.db.models import F, Q
from django.utils.translation import gettext_lazy as _

from powercrud_dashboard.engine import history, registry, release, statistics
from powercrud_dashboard.engine.arguments import NAME_LENGTH
from powercrud_dashboard.engine.failure_texts import outcome
from powercrud_dashboard.engine.spec import TaskSpec, argument_names, resolve_function
from powercrud_dashboard.engine.values import to_json
from powercrud_dashboard.exceptions import UnimportableCallable
from powercrud_dashboard.models import FailureReason, Resolution, Source, TaskEvent, TaskRecord, TaskStatus
from powercrud_dashboard.models.changes import RecordChange
from powercrud_dashboard.models.database import impatient_transaction, in_chunks, short_wait_on_sqlite
from powercrud_dashboard.models.prepared import PreparedInsert
from powercrud_dashboard.text import MESSAGE, SHORT, KeptText, clean_text, error_text, storable

#: A lifecycle event and its payload.
Event = tuple[str, dict[str, Any]]

#: Records written in one transaction, so that a launch never waits long for it.
WRITTEN_AT_ONCE = 100
#: Characters of signed arguments that are kept for a retry.
PAYLOAD_AT_MOST = 10_000_000
#: How often a batch is tried if somebody else inserts a record of it at the same moment.
TRIES = 3

_OBSERVED = KeptText(_("Observed in django-q2 as %(name)s"))


@dataclass(frozen=True)
class PlainTask:
    """A task that django-q2's own functions have launched, as its message or its row tells of it.

    Its record has django-q2's id as ``task_name``, as django-q2's names need not be unique.
    """

    #: django-q2's id, the name of the record.
    id: str
    #: django-q2's name: made of four words, or the one that the launch gave.
    name: str
    #: The dotted path of the function.
    func: str
    args: Sequence[Any] = field(default=(), repr=False)
    kwargs: Mapping[str, Any] = field(default_factory=dict, repr=False)
    #: When it was enqueued.
    created_at: datetime = field(kw_only=True)
    group: str = ""
    cluster: str = ""
    #: The label of the record; the path of the function by default.
    label: str = ""
    #: django-q2's own options of the launch, for a retry: ``hook``, ``timeout``, ...
    options: Mapping[str, Any] = field(default_factory=dict)
    #: The project's release at the launch; None for the one that runs now.
    release: str | None = None
    #: The ORM broker's key of the message that a worker has begun; "" if there is none.
    receipt: str = ""
    #: Whether the arguments are those of the launch, so that a retry can have them.
    has_whole_arguments: bool = True


@dataclass(frozen=True)
class EndedTask(PlainTask):
    """Such a task that has ended."""

    success: bool = field(kw_only=True)
    #: What the function has returned, or django-q2's text of the failure: the error and its traceback.
    result: Any = field(default=None, kw_only=True, repr=False)
    stopped_at: datetime = field(kw_only=True)
    #: When a worker began it; None if that is not known, as in django-q2's rows.
    started_at: datetime | None = None
    attempts: int = 1
    worker_host: str = ""
    worker_pid: int | None = None


Told = TypeVar("Told", bound=PlainTask)


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
    by_name = _prepared({_fitting(task.id): task for task in tasks}, _new_columns)

    def write() -> int:
        known = _known(by_name)
        new = [found for name, found in by_name.items() if name not in known]
        _insert(new)
        return len(new)

    return _insert_what_is_new(write)


def _insert_what_is_new(write: Callable[[], int]) -> int:
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
        _insert(_prepared({name: task}, _new_columns).values())
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
    lines_of = [_lines(task) for task in tasks.values()]
    lines = iter(_ADD_EVENTS.converted([{**line, "record": None} for lines in lines_of for line in lines]))
    return {
        name: _Prepared(name, task, record, list(islice(lines, len(found))))
        for (name, task), record, found in zip(tasks.items(), records, lines_of, strict=True)
    }


def _write_part(tasks: Mapping[str, EndedTask], recorder: Any, by_rows: bool) -> int:
    part = _prepared(tasks, _ended_columns)
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


_KNOWN_COLUMNS = ("task_name", "source", "status", "failure_reason", "attempts", "started_at", "finished_at")


def _known(names: Iterable[str]) -> dict[str, TaskRecord]:
    records = TaskRecord.objects.all()
    return {
        record.task_name: record
        for chunk in in_chunks(names, using=records.db)
        for record in records.filter(task_name__in=chunk).only(*_KNOWN_COLUMNS)
    }


def _write_end(record: TaskRecord, task: EndedTask, recorder: Any) -> bool:
    """Write the end of a task that has a record. Return whether it was not known yet."""
    is_later = record.started_at is not None and _is_earlier(record.started_at, task.started_at)
    is_inferred = TaskRecord.objects.inferred_ends().filter(pk=record.pk)
    is_corrected = not (is_later and record.status == TaskStatus.FAILED) and is_inferred.exists()
    if not record.is_finished or is_corrected:
        started_at = task.started_at or record.started_at
        events = [_end_of(task, started_at)]
        if events[0][0] == "cancel" and record.is_finished:
            # Whoever has cancelled it was right.
            return False
        if started_at is not None and (is_later or record.attempts < task.attempts):
            attempts = max(task.attempts, record.attempts + 1)
            events.insert(0, ("start", _start_of(replace(task, attempts=attempts), started_at)))
        recorder.record_lifecycle_events(record.task_name, events)
        return True
    if is_later and record.status == TaskStatus.SUCCESS:
        return _write_further_run(record, task)
    if record.started_at is None and task.started_at is not None and record.finished_at == task.stopped_at:
        _add_start(record, task)
        return False
    return _write_later_end(record, task)


def _write_further_run(record: TaskRecord, task: EndedTask) -> bool:
    """Write that a task which has succeeded was run once more, as its broker has delivered it again.

    The record keeps its end, as django-q2's row does.
    """
    lines = _lines(replace(task, attempts=record.attempts + 1))[1:]
    event, at = lines[-1]["event"], lines[-1]["timestamp"]
    if TaskEvent.objects.filter(record=record, event=event, timestamp=at).exists():
        return False
    TaskRecord.objects.filter(pk=record.pk).update(attempts=F("attempts") + 1)
    TaskEvent.objects.add([{**line, "record": record.pk} for line in lines])
    return True


def _add_start(record: TaskRecord, task: EndedTask) -> None:
    """Write what a worker knows of an end that django-q2's row has told before: when the task began, and where."""
    columns = {"started_at": task.started_at, "run_time": _change_of(task).columns["run_time"], **_place_of(task)}
    if TaskRecord.objects.filter(pk=record.pk, started_at=None).update(**columns):
        TaskEvent.objects.add([{**_lines(task)[1], "record": record.pk}])


def _write_later_end(record: TaskRecord, task: EndedTask) -> bool:
    """Write that django-q2 has run a failed task again, as its broker had kept the message."""
    is_newer = Q(finished_at__lt=task.stopped_at)
    if task.started_at is not None:
        # Whoever has given an attempt up may have been slower than the next one.
        is_newer |= Q(started_at__lt=task.started_at)
    failed = TaskRecord.objects.failed().filter(is_newer, pk=record.pk)
    if record.status != TaskStatus.FAILED or not failed.lock():
        return False
    # Both ends count.
    statistics.count_records([record.pk])
    task = replace(task, attempts=record.attempts + 1)
    columns = {**_change_of(task).columns, "counted_as": None, "started_at": task.started_at, **_place_of(task)}
    failed.update(**columns, attempts=F("attempts") + 1)
    TaskEvent.objects.add([{**line, "record": record.pk} for line in _lines(task)[1:]])
    return True


def _insert(prepared: Collection[_Prepared[Any]]) -> None:
    if not prepared:
        return
    lines = {found.name: found.lines for found in prepared}
    _ADD_RECORDS.insert([found.record for found in prepared])
    inserted = TaskRecord.objects.filter(task_name__in=lines).values_list("task_name", "pk")
    _ADD_EVENTS.insert([{**line, "record": pk} for name, pk in inserted for line in lines[name]])


_ADD_RECORDS = PreparedInsert(TaskRecord)
_ADD_EVENTS = PreparedInsert(TaskEvent)


# What is kept of a task


def _new_columns(task: PlainTask) -> dict[str, Any]:
    """Return the columns of the record of a queued task, but for its name and those that have their defaults."""
    func = clean_text(task.func, SHORT)
    return {
        "label": clean_text(task.label or func, SHORT),
        "func": func,
        "task_args": to_json(list(task.args)),
        "argument_names": _argument_names(task.func, len(task.args)),
        "task_kwargs": to_json(dict(task.kwargs)),
        "payload": _signed(task),
        "group": clean_text(task.group, NAME_LENGTH),
        "cluster": clean_text(task.cluster, NAME_LENGTH),
        "release": release.current() if task.release is None else task.release,
        "source": Source.DJANGO_Q,
        "created_at": task.created_at,
    }


def _ended_columns(task: EndedTask) -> dict[str, Any]:
    end = _change_of(task).columns
    resolution = Resolution.OPEN if end["status"] == TaskStatus.FAILED else ""
    ran = {"attempts": task.attempts, "started_at": task.started_at, **_place_of(task)}
    return {**_new_columns(task), **ran, **end, "resolution": resolution}


def _place_of(task: EndedTask) -> dict[str, Any]:
    return {"worker_host": clean_text(task.worker_host, SHORT), "worker_pid": task.worker_pid}


def _change_of(task: EndedTask) -> RecordChange:
    times: dict[str, Any] = {"at": task.stopped_at, "started_at": task.started_at}
    event, facts = outcome(task.func, task.success, task.result)
    if event == "complete":
        return RecordChange.succeeded(**times, result=to_json(facts["result"]))
    if event == "cancel":
        return RecordChange.cancelled(**times)
    failure: dict[str, Any] = history.failure_facts(facts)
    return RecordChange.failed(**times, **failure)


def _end_of(task: EndedTask, started_at: datetime | None) -> Event:
    event, facts = outcome(task.func, task.success, task.result)
    return event, {"started_at": started_at, "timestamp": task.stopped_at, **facts}


def _start_of(task: EndedTask, started_at: datetime) -> dict[str, Any]:
    return {"timestamp": started_at, **_start_details(task)}


def _lines(task: PlainTask) -> list[dict[str, Any]]:
    """Return the lines of the timeline, by the fields of the events."""
    lines = [_line("create", task.created_at, _OBSERVED(name=task.name))]
    if not isinstance(task, EndedTask):
        return lines
    if task.started_at is not None:
        lines.append(_line("start", task.started_at, payload=_start_details(task)))
    event, facts = outcome(task.func, task.success, task.result)
    details: dict[str, Any] = {name: facts[name] for name in ("exception_class", "reason") if name in facts}
    return [*lines, _line(event, task.stopped_at, facts.get("error", ""), payload=details)]


def _start_details(task: EndedTask) -> dict[str, Any]:
    worker = {"worker_host": task.worker_host, "worker_pid": task.worker_pid}
    details = {"attempt": task.attempts, **worker, "receipt": task.receipt}
    return {name: value for name, value in details.items() if value}


def _line(event: str, at: datetime, message: str = "", payload: Mapping[str, Any] | None = None) -> dict[str, Any]:
    text = error_text(message, MESSAGE) if message else ""
    who = {"actor": None, "actor_label": ""}
    return {"event": event, "timestamp": at, **who, "message": text, "payload": payload or {}}


def _signed(task: PlainTask) -> str:
    """Return the signed spec for a retry; "" if its arguments can't be pickled, are not all there, or take too much."""
    if not task.has_whole_arguments:
        return ""
    spec = TaskSpec(
        task.func,
        tuple(task.args),
        task.kwargs,
        options=task.options,
        label=task.label,
        group=task.group,
        cluster=task.cluster,
    )
    try:
        signed = spec.to_signed()
    except (Exception, SystemExit):
        # Other people's objects.
        return ""
    return signed if len(signed) <= PAYLOAD_AT_MOST else ""


def _argument_names(path: str, count: int) -> list[str]:
    return list(argument_names(func, count)) if count and (func := _function(path)) is not None else []


@lru_cache(maxsize=500)
def _function(path: str) -> Any:
    try:
        return resolve_function(path)[1]
    except UnimportableCallable:
        return None


def _fitting(task_name: str) -> str:
    """Return the name, or a digest of one that is too long for the column."""
    name = storable(str(task_name))
    return name if len(name) <= NAME_LENGTH else hashlib.blake2s(name.encode()).hexdigest()
