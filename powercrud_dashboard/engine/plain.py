"""Tasks of plain django-q2: which of them are recorded, and what becomes of them.

What is told of them are django-q2's messages: dicts, with ``id``, ``name``, ``func``, ``args``, ``kwargs`` and more.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from functools import lru_cache, partial
from typing import Any

from django.core.signals import setting_changed
from django.db import DataError, IntegrityError, transaction
from django.db import Error as DatabaseFault
from django.db.models import Q, QuerySet
from django.dispatch import receiver
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from powercrud_dashboard.conf import SETTING_NAME, app_settings, is_share
from powercrud_dashboard.engine import observed, policy, processes, registry, release, statistics
from powercrud_dashboard.engine.arguments import with_kept_arguments
from powercrud_dashboard.engine.failure_texts import shortened, tells_of_failure
from powercrud_dashboard.engine.observed_rows import EndedTask, PlainTask
from powercrud_dashboard.engine.spec import TaskSpec, argument_names, resolve_function
from powercrud_dashboard.engine.values import to_json
from powercrud_dashboard.exceptions import EnqueueError, TaskNotCancellable, TaskNotRetryable
from powercrud_dashboard.models import FailureReason, Source, TaskEvent, TaskRecord, TaskStatus, WorkerProcess
from powercrud_dashboard.models.database import coordination_db, impatient_transaction, in_chunks, short_wait_on_sqlite
from powercrud_dashboard.models.history import TaskRecordQuerySet
from powercrud_dashboard.q2 import observe, queue
from powercrud_dashboard.q2.observe import Message
from powercrud_dashboard.text import SHORT, clean_text

logger = logging.getLogger(__name__)

#: Returns, for the name of a task, a context that its record is written in.
Within = Callable[[str], AbstractContextManager[None]]

#: Milliseconds that a worker's thread waits for a lock, so that what a task has locked never stops it.
LOCK_TIMEOUT = 250
#: Ends that are written in one transaction.
WRITTEN_AT_ONCE = observed.WRITTEN_AT_ONCE
#: The number of different values of a checksum.
_CHECKSUMS = 2**32
#: Seconds that the clocks of a worker and of the database may differ by, beside what is known.
CLOCKS_DIFFER = 1.0


# Which are recorded


@lru_cache(maxsize=1_000)
def _share_of(path: str) -> float | None:
    """Return the share of a function's tasks that is recorded; None if they are not observed."""
    if app_settings.DASHBOARD_TRACK != "all" or app_settings.DASHBOARD_RECORDER is None:
        return None
    included, excluded = app_settings.DASHBOARD_TRACK_INCLUDE, app_settings.DASHBOARD_TRACK_EXCLUDE
    if not _matches(path, included) or _matches(path, excluded):
        return None
    shares = app_settings.DASHBOARD_TRACK_SAMPLE
    found = next((share for pattern, share in shares.items() if fnmatchcase(path, str(pattern))), 1.0)
    # The check tells of a mistake.
    return found if is_share(found) else 1.0


def is_sampled(path: str) -> bool:
    """Return whether only a share of a function's tasks that complete is recorded."""
    share = _share_of(path)
    return share is not None and share < 1


def takes_samples() -> bool:
    """Return whether that may be so for some function."""
    return bool(app_settings.DASHBOARD_TRACK_SAMPLE)


@receiver(setting_changed)
def _forget_on_change(*, setting: str, **kwargs: Any) -> None:
    if setting == SETTING_NAME:
        _share_of.cache_clear()


def _matches(path: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def is_observed(message: Message) -> bool:
    """Return whether the task is one of plain django-q2 whose end is recorded or counted."""
    return not observe.is_own(message) and _share_of(observe.path_of(message)) is not None


def is_recorded(message: Message) -> bool:
    """Return whether the task is recorded also if it does not fail. The answer for one task is always the same."""
    if observe.is_own(message):
        return False
    share = _share_of(observe.path_of(message))
    return share is not None and zlib.crc32(str(message["id"]).encode()) < share * _CHECKSUMS


# What is told of them


@dataclass(frozen=True)
class Run:
    """What a worker tells of a message that it has run."""

    message: Message
    started_at: datetime | None = None
    host: str = ""
    pid: int | None = None
    has_whole_arguments: bool = True
    #: The arguments before it ran, as ``kept_arguments`` returns them.
    arguments: bytes | None = None


def record_ends(runs: Iterable[Run], *, by_rows: bool = False) -> int:
    """Record and count tasks that have ended; return how many ends were recorded.

    One that can't be recorded is logged and left out. ``by_rows`` tells that django-q2's rows tell of them.

    Raises:
        TaskBusy, DatabaseError: if a part can't be written now. All can be given again.
    """

    def write(runs: Sequence[Run]) -> int:
        return observed.record_ended((_ended(run) for run in runs), by_rows=by_rows)

    return _record_all(list(runs), write)


def record_end_here(run: Run) -> None:
    """Record or count a task that has ended in this process, whose caller waits for this: not for long.

    Raises:
        TaskBusy, DatabaseError: if it can't be recorded now.
    """
    if is_only_counted(run):
        # No part of the caller's transaction, as others wait for their turn to count until that ends.
        transaction.on_commit(partial(_count_here, run), using=coordination_db(), robust=True)
        return

    def write(runs: Sequence[Run]) -> int:
        with short_wait_on_sqlite():
            return observed.record_ended(_ended(run) for run in runs)

    _record_all([run], write)


def _count_here(run: Run) -> None:
    with short_wait_on_sqlite():
        count_ends([run])


def _record_all(told: Sequence[Any], write: Callable[[Sequence[Any]], int]) -> int:
    """Write them together; if that fails for another reason than the database, one by one."""
    try:
        return write(told)
    except (Exception, SystemExit) as error:
        if isinstance(error, DatabaseFault) and not isinstance(error, DataError | IntegrityError):
            raise
        if len(told) > 1:
            return sum(_record_all([one], write) for one in told)
        if _is_forbidden(error):
            logger.debug("A task of plain django-q2 is not observed: %s", error)
        else:
            # It would keep all others from being recorded.
            logger.exception("A task of plain django-q2 could not be observed")
        return 0


def _is_forbidden(error: BaseException) -> bool:
    """Return whether a test may not use the database, as in a ``SimpleTestCase``."""
    testcases = sys.modules.get("django.test.testcases")
    return testcases is not None and isinstance(error, getattr(testcases, "DatabaseOperationForbidden", ()))


def is_only_counted(run: Run) -> bool:
    """Return whether the end of a task is counted in the statistics without a record."""
    message = run.message
    if not message["success"] or is_recorded(message):
        return False
    return not tells_of_failure(observe.path_of(message), message["result"])


def count_ends(runs: Iterable[Run]) -> None:
    """Count the ends of tasks that get no record.

    Raises:
        TaskBusy, DatabaseError: if they can't be counted now. None of them is.
    """
    statistics.count_ends([_end(run) for run in runs])


def _end(run: Run) -> statistics.End:
    message, started_at = run.message, run.started_at
    ran = message["stopped"] - started_at if started_at else timedelta()
    times = (message["started"], started_at, message["stopped"], ran, started_at)
    func = clean_text(observe.path_of(message), SHORT)
    where = (run.host, release.current(), None)
    return statistics.End.of((func, observe.queue_of(message), TaskStatus.SUCCESS, *times, *where))


def with_plain_result(run: Run) -> Run:
    """Return what is told of an ended task with its result as plain data, which nobody changes any more."""
    message = run.message
    return replace(run, message={**message, "result": to_json(message["result"])}) if message["success"] else run


def without_large_values(run: Run) -> Run:
    """Return what is told of an ended task with what the pages show of its arguments and its result."""
    message = run.message
    result = shortened(message["result"]) if isinstance(message["result"], str) else to_json(message["result"])
    shown = {"args": tuple(to_json(list(message["args"]))), "kwargs": to_json(message["kwargs"]), "result": result}
    return replace(run, message={**message, **shown}, has_whole_arguments=False, arguments=None)


#: What is counted of an ended task.
_COUNTED = ("id", "name", "func", "cluster", "started", "stopped", "success")


def without_values(run: Run) -> Run:
    """Return what is told of a task that is only counted, without its arguments and its result."""
    return replace(run, message={name: run.message[name] for name in _COUNTED if name in run.message}, arguments=None)


def _facts(message: Message) -> dict[str, Any]:
    return {
        "id": str(message["id"]),
        "name": str(message["name"]),
        "func": observe.path_of(message),
        "args": message["args"],
        "kwargs": message["kwargs"],
        "created_at": message["started"],
        "group": message.get("group") or "",
        "cluster": observe.queue_of(message),
        "label": observe.given_name(message),
        "options": observe.options_of(message),
        "receipt": observe.receipt_of(message),
    }


def _ended(run: Run) -> EndedTask:
    message = with_kept_arguments(run.message, run.arguments)
    return EndedTask(
        **_facts(message),
        success=message["success"],
        result=message["result"],
        stopped_at=message["stopped"],
        started_at=run.started_at,
        worker_host=run.host,
        worker_pid=run.pid,
        has_whole_arguments=run.has_whole_arguments,
    )


def record_queued(messages: Iterable[Message]) -> int:
    """Record tasks that wait in the queue; return how many were not known yet.

    Raises:
        TaskBusy, DatabaseError: if they can't be written now.
    """

    def write(messages: Sequence[Message]) -> int:
        return observed.record_queued(PlainTask(**_facts(message)) for message in messages)

    return _record_all(list(messages), write)


def record_running(message: Message, started_at: datetime) -> None:
    """Record that this process runs a task.

    Raises:
        TaskBusy, DatabaseError: if that can't be written now.
    """
    where = {"worker_host": socket.gethostname(), "worker_pid": os.getpid()}
    with short_wait_on_sqlite(LOCK_TIMEOUT), impatient_transaction(LOCK_TIMEOUT):
        observed.record_started(PlainTask(**_facts(message)), started_at, **where)


def unfinished() -> TaskRecordQuerySet:
    """Return the records of those that wait or run."""
    # All conditions of the index.
    records = TaskRecord.objects.unfinished().filter(source=Source.DJANGO_Q, finished_at=None)
    return records.exclude(source="")


# What people do to them


def cancel(task_name: str, actor: Any) -> bool:
    """Take a queued task out of its queue, or ask its worker to stop it. Return whether that was done.

    Raises:
        TaskNotCancellable: if the message can't be taken out of the queue.
        TaskBusy: if another session keeps the record locked in the database, and does not finish.
    """
    record, recorder = unfinished().filter(task_name=task_name).first(), registry.recorder_for(None)
    if record is None or recorder is None:
        return False
    if record.status == TaskStatus.IN_PROGRESS:
        return _ask_to_stop(record, actor, recorder)
    found, message = observe.find(task_name, record.cluster)
    if found is None:
        raise TaskNotCancellable(task_name, _("its broker does not let anybody take messages out of the queue."))
    with impatient_transaction():
        if message is not None and found.delete(message):
            recorder.record_lifecycle_events(task_name, [("cancel", {"actor": actor})])
            return True
    # A cluster has taken it: the worker that begins it stops it.
    return _ask_to_stop(record, actor, recorder)


_CANCEL_REQUESTED = "cancel_requested"


def _ask_to_stop(record: TaskRecord, actor: Any, recorder: Any) -> bool:
    with impatient_transaction():
        if not unfinished().filter(pk=record.pk).lock() or is_to_stop(record.task_name):
            return False
        recorder.record_lifecycle_events(record.task_name, [(_CANCEL_REQUESTED, {"actor": actor})])
    return True


def is_to_stop(task_name: str) -> bool:
    """Return whether somebody has cancelled this running task."""
    return TaskEvent.objects.all().of_task(task_name).filter(event=_CANCEL_REQUESTED).exists()


def launch_again(spec: TaskSpec, original: str, user: Any, *, within: Within) -> str:
    """Launch a task as plain django-q2 does, as a retry of another one; return the name of its record.

    Args:
        spec: what is launched.
        original: the name of the task that this is a retry of.
        user: who retries it.
        within: returns, for the new task's name, a context that its record is written in.

    Raises:
        UnimportableCallable: if a worker could not import its function.
        TaskNotRetryable: if its broker has delivered the original again, or its group is a schedule under a lock.
        EnqueueError: if the broker does not take the task. With a broker in another database or server it is raised
            at commit, and the record stays as failed.
        TaskBusy: if another session keeps the record locked in the database, and does not finish.
    """
    _path, function = resolve_function(spec.func)
    if spec.group in app_settings.DASHBOARD_SCHEDULE_LOCKS:
        # Its message would be replaced by a call that launches another task.
        raise TaskNotRetryable(original, _("its schedule is under a lock. Run the schedule."))
    place = {"group": spec.group, "cluster": spec.cluster}
    task_id, send = observe.prepare(
        spec.func, spec.args, spec.kwargs, name=spec.label, options=dict(spec.options), **place
    )
    recorder = registry.recorder_for(None)

    def record(event: str, facts: dict[str, Any]) -> None:
        if recorder is not None:
            recorder.record_lifecycle_events(task_id, [(event, facts)])

    def enqueue() -> None:
        try:
            send()
        except Exception as error:
            raise EnqueueError(task_id, f"{type(error).__name__}: {error}") from error

    def enqueue_later() -> None:
        try:
            enqueue()
        except EnqueueError:
            with impatient_transaction():
                record("fail", {**policy.failure_payload(FailureReason.NOT_QUEUED), "started_at": None})
            raise

    creation: dict[str, Any] = {
        **place,
        "func": spec.func,
        "label": spec.label,
        "task_args": spec.args,
        "task_kwargs": spec.kwargs,
        "argument_names": argument_names(function, len(spec.args)),
        "payload": spec.to_signed(),
        "source": Source.DJANGO_Q.value,
        "user": user,
        "retry_of": original,
        "timestamp": timezone.now(),
    }
    is_in_transaction = queue.broker_database() == coordination_db()
    with impatient_transaction(), within(task_id):
        _withdraw_failed(original)
        record("create", creation)
        if is_in_transaction:
            enqueue()
    if not is_in_transaction:
        transaction.on_commit(enqueue_later, using=coordination_db())
    return task_id


def _withdraw_failed(task_name: str) -> None:
    """Take the messages of the failed tries of a task out of the queue, whose broker may deliver them again.

    Raises:
        TaskNotRetryable: if that has happened, so that a retry would do the work twice.
    """
    record = TaskRecord.objects.only("pk", "chain").get(task_name=task_name)
    for failed in TaskRecord.objects.chain_of(record).failed():
        start = TaskEvent.objects.filter(record=failed, event="start").order_by("timestamp", "pk").last()
        if start is None or not (receipt := start.payload.get("receipt")):
            continue
        if not observe.withdraw(failed.task_name, failed.cluster, receipt, start.timestamp):
            raise TaskNotRetryable(task_name, _("the broker has delivered it again. Wait for its end."))


# Those that are lost


def seem_lost() -> set[str]:
    """Return the names of the recorded running tasks whose worker process sends no heartbeat, is gone, or runs another.

    One that has just ended may be among them: what is still so after a few seconds is lost.
    """
    running: list[Any] = list(
        unfinished()
        .filter(status=TaskStatus.IN_PROGRESS)
        .values_list("task_name", "worker_host", "worker_pid", "started_at")
    )
    if not running:
        return set()
    places = {(host, pid) for _name, host, pid, _started in running}
    processes.declare_silent_lost(worker_processes := _at(places))
    began: dict[tuple[str, int], list[datetime]] = {}
    for row in worker_processes.filter(lost_at=None):
        began.setdefault((row.host, row.pid), []).append(row.started_at + row.clock_offset)
    newest = {(host, pid): started for _name, host, pid, started in sorted(running, key=lambda row: row[3])}

    def may_run(host: str, pid: int, started: datetime) -> bool:
        # A process that began after the task only has the same number.
        found = [at for at in began.get((host, pid), ()) if at <= started + timedelta(seconds=CLOCKS_DIFFER)]
        # It runs one task at a time. Of two of the same number it is not known which one runs what.
        return len(found) > 1 or (bool(found) and started == newest[host, pid])

    return {name for name, host, pid, started in running if not may_run(host, pid, started)}


def _at(places: set[tuple[str, int]]) -> Any:
    hosts, pids = {host for host, _pid in places}, {pid for _host, pid in places}
    return WorkerProcess.objects.filter(host__in=hosts, pid__in=pids)


def give_up(names: Iterable[str]) -> int:
    """Record that the workers of these running tasks are lost. Return how many were still running."""
    recorder = registry.recorder_for(None)
    if recorder is None:
        return 0
    running = unfinished().filter(status=TaskStatus.IN_PROGRESS, task_name__in=list(names))
    given_up = 0
    for name, started_at in running.values_list("task_name", "started_at"):
        lost = {**policy.failure_payload(FailureReason.WORKER_LOST), "started_at": started_at}
        with impatient_transaction():
            # Its broker may have delivered it to another worker at this moment.
            if not running.filter(task_name=name, started_at=started_at).lock():
                continue
            recorder.record_lifecycle_events(name, [("fail", lost)])
        given_up += 1
        logger.warning("Task %s of plain django-q2 was given up: its worker is lost", name)
    return given_up


def collected_from_records(task_ids: Iterable[str]) -> set[str]:
    """Return those of the ids that are of the collected results of iterations whose tasks are recorded.

    Such a result has the id of the group.
    """
    records = TaskRecord.objects.all()
    chunks = in_chunks(task_ids, using=records.db)
    return {group for ids in chunks for group in records.filter(group__in=ids).values_list("group", flat=True)}


def expired() -> Iterator[QuerySet[TaskRecord]]:
    """Yield the ended tasks that are kept no longer: those that are old, and those above the limit of their number."""
    ended = TaskRecord.objects.finished().filter(source=Source.DJANGO_Q).exclude(source="")
    if (days := app_settings.DASHBOARD_TRACK_RETENTION_DAYS) is not None:
        yield ended.filter(finished_at__lt=timezone.now() - timedelta(days=days))
    if (most := app_settings.DASHBOARD_TRACK_MAX_RECORDS) is not None:
        for at, pk in ended.order_by("-finished_at", "-pk").values_list("finished_at", "pk")[most : most + 1]:
            # Of those that ended at the same moment, too.
            yield ended.filter(Q(finished_at__lt=at) | Q(finished_at=at, pk__lte=pk))
