"""The live state of unfinished tasks: progress, worker, heartbeat, locks and queue position."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from operator import attrgetter
from typing import Any

from django.db.models import F, OuterRef, Q
from django.utils.formats import localize

from powercrud_dashboard.dashboard.estimates import kept_run_times, usual_run_times
from powercrud_dashboard.dashboard.formatting import duration, rough_duration
from powercrud_dashboard.dashboard.listing import CappedCount, Count
from powercrud_dashboard.engine.processes import max_heartbeat_age
from powercrud_dashboard.engine.progress import Progress, newest
from powercrud_dashboard.models import ActiveTask, ConflictLock, TaskRecord, TaskStatus, WorkerProcess
from powercrud_dashboard.models.coordination import ActiveTaskState
from powercrud_dashboard.models.database import Now
from powercrud_dashboard.q2 import queue

#: The remaining time is not estimated before a task has run this long.
MIN_ELAPSED = timedelta(seconds=3)

#: Queue positions are shown up to this number.
MAX_QUEUE_POSITION = 1_000

#: The locks of a task are counted up to this number.
MAX_LOCKS = 1_000

#: Running tasks that a refresh checks for changes. There are rarely more than workers.
MAX_WATCHED_TASKS = 200


@dataclass(frozen=True)
class LiveTask:
    active: ActiveTask
    progress: Progress
    lock_count: Count
    #: When the row was read, by the database's clock, which also set its other times.
    read_at: datetime
    #: Position in the queue, from 1; None if the task is not queued or beyond ``MAX_QUEUE_POSITION``.
    position: int | None = None
    #: How long tasks of its function usually run; None if that is not known, or the task tells its progress.
    usual: timedelta | None = None
    #: Time from the start of one task in its queue to that of the next; None if it is not known.
    start_interval: timedelta | None = None
    #: The queue of the queued task if no worker runs for it, though workers run for others; "" else, or if not known.
    unserved_queue: str = ""

    @property
    def passing_texts(self) -> dict[str, str]:
        """What a row shows that changes as time passes, by the names of the attributes."""
        lengths = {"heartbeat_age": self.heartbeat_age, "time_to_retry": self.time_to_retry}
        if self.starts_in:
            lengths["starts_in"] = self.starts_in
        texts = {name: duration(length) for name, length in lengths.items() if length is not None}
        if self.remaining is not None:
            texts["remaining"] = rough_duration(self.remaining)
        if self.position and self.position > 1:
            texts["position"] = str(localize(self.position))
        return texts

    @property
    def shown(self) -> tuple[object, ...]:
        """All else that a row shows of it, and which of the passing texts."""
        worker = self.active.worker
        return (
            *(self.waits, self.waits_for_retry, self.is_missing, self.is_being_cancelled, self.is_pausing),
            *(self.has_released_locks, self.max_retries, self.active.retries, worker and (worker.host, worker.pid)),
            bool(self.active.held_by),
            *(self.progress, self.lock_count, self.position == 1, self.usual, self.unserved_queue, *self.passing_texts),
        )

    @property
    def starts_in(self) -> timedelta | None:
        """The estimated time until a worker takes the queued task, or None if it is not known."""
        if self.position is None or self.start_interval is None:
            return None
        # An estimate of less is none.
        return max(self.position * self.start_interval, timedelta(seconds=1))

    @property
    def remaining(self) -> timedelta | None:
        """The estimated remaining time, or None if it is not known. The time limit ends it."""
        return self.time_to_limit if self.is_stopped_by_limit else self._estimated_time

    @property
    def time_limit(self) -> timedelta | None:
        """After how long the worker stops the task: its own limit, or that of its cluster; None for no limit."""
        seconds = self.active.time_limit
        if seconds is None:
            seconds = queue.time_limit(self.active.cluster)
        return timedelta(seconds=seconds) if seconds is not None and seconds > 0 else None

    @property
    def time_to_limit(self) -> timedelta | None:
        """Time until the time limit; None if the task does not run, has no limit, or has run past it already."""
        if self.duration is None or self.time_limit is None or self.duration > self.time_limit:
            return None
        return self.time_limit - self.duration

    @property
    def is_stopped_by_limit(self) -> bool:
        """Whether the time limit will probably stop the task before it is done.

        One that has given its worker back before will do so again, before its limit.
        """
        estimated, limit = self._estimated_time, self.time_to_limit
        is_in_slices = bool(self.active.ran_before)
        return estimated is not None and limit is not None and estimated > limit and not is_in_slices

    @property
    def _estimated_time(self) -> timedelta | None:
        done, total = self.progress.current, self.progress.total
        if not done or not total or done > total or self.active.started_at is None:
            return None
        elapsed = self.read_at - self.active.started_at
        # Without what earlier attempts have done.
        done_now = done - self.active.resume_at if self.active.goes_on else done
        return elapsed * (total - done) / done_now if elapsed >= MIN_ELAPSED and done_now > 0 else None

    @property
    def duration(self) -> timedelta | None:
        """How long the task has run in this attempt; None if it is queued."""
        return self.read_at - self.active.started_at if self.active.started_at else None

    @property
    def waiting_time(self) -> timedelta:
        """Time since the task was launched."""
        return self.read_at - self.active.created_at

    @property
    def heartbeat_age(self) -> timedelta | None:
        """Time since the last heartbeat of the worker process."""
        return self.read_at - self.active.worker.heartbeat_at if self.active.worker else None

    @property
    def waits(self) -> bool:
        """Whether the task is not to start before a certain time."""
        return self.active.state == ActiveTaskState.PENDING and self.active.next_run_at is not None

    @property
    def waits_for_retry(self) -> bool:
        """Whether an attempt has failed and the task waits for the next one."""
        return self.waits and (self.active.attempt > 0 or self.active.retries > 0)

    @property
    def is_missing(self) -> bool:
        """Whether the task is in no queue any more: the broker has lost it."""
        return self.active.state == ActiveTaskState.PENDING and self.active.missing_since is not None

    @property
    def time_to_retry(self) -> timedelta | None:
        """Time until the next attempt; zero if it is due."""
        due = self.active.next_run_at
        return max(due - self.read_at, timedelta()) if due else None

    @property
    def max_retries(self) -> int:
        """Number of automatic retries that the retry policy allows."""
        return int(self.active.policy.get("max_retries", 0))

    @property
    def is_being_cancelled(self) -> bool:
        return self.active.cancel_requested_at is not None

    @property
    def is_pausing(self) -> bool:
        """Whether the task is to pause at its next object or item."""
        return self.active.pause_requested_at is not None and not self.is_being_cancelled

    @property
    def has_released_locks(self) -> bool:
        """Whether the paused task has to lock its objects again to be resumed."""
        return self.active.state == ActiveTaskState.PAUSED and not self.active.pause_keeps_locks


def live_tasks(
    records: Iterable[TaskRecord],
    start_interval: Callable[[str], timedelta | None] | None = None,
    served: Collection[str] = (),
) -> dict[str, LiveTask]:
    """Return the live state of the unfinished records by task name.

    It takes one query, one more if some are queued, and one more if some run and do not tell how far they are.

    Args:
        records: the records; those of ended tasks are left out.
        start_interval: returns the time from the start of one task of a queue to that of the next.
        served: the queues for which workers run, as :func:`served_queues` returns them; none if that is not known.
    """
    functions = _unfinished(records)
    return (
        _live(_rows(Q(task_name__in=functions)), functions, start_interval, served, usual_run_times)
        if functions
        else {}
    )


def live_list(
    records: Collection[TaskRecord],
    start_interval: Callable[[str], timedelta | None] | None,
    served: Collection[str],
    host: str,
) -> tuple[dict[str, LiveTask], str]:
    """Return what :func:`live_tasks` does, and the version of the running tasks; "" if none of the records runs.

    ``host`` is that of the request, for which run times may have been read already.
    """
    functions = _unfinished(records)
    if not functions:
        return {}, ""
    has_running = any(record.status == TaskStatus.IN_PROGRESS for record in records)
    shown = Q(task_name__in=functions)
    rows = _rows(shown | _WATCHED if has_running else shown)
    running = [row for row in rows if row.worker_id is not None]
    version = _version_of(sorted(running, key=attrgetter("pk"))[:MAX_WATCHED_TASKS]) if has_running else ""
    of_records = [row for row in rows if row.task_name in functions]
    return _live(of_records, functions, start_interval, served, partial(kept_run_times, host)), version


def _unfinished(records: Iterable[TaskRecord]) -> dict[str, str]:
    """Return the functions of the unfinished records by task name."""
    return {record.task_name: record.func for record in records if not record.is_finished}


def _rows(which: Q) -> list[Any]:
    locks = ConflictLock.objects.filter(active_task=OuterRef("pk")).values("pk")
    tasks = ActiveTask.objects.tasks().filter(which).select_related("worker")
    return list(tasks.annotate(lock_count=CappedCount(locks[: MAX_LOCKS + 1]), read_at=Now(), beats=_BEATS))


def _live(
    rows: list[Any],
    functions: Mapping[str, str],
    start_interval: Callable[[str], timedelta | None] | None,
    served: Collection[str],
    usual_times: Callable[[set[str]], Mapping[str, timedelta]],
) -> dict[str, LiveTask]:
    progress = newest(rows)
    has_queued = any(row.state == ActiveTaskState.PENDING for row in rows)
    positions = queue_positions() if has_queued else {}
    untold = {functions[row.task_name] for row in rows if row.started_at and not progress[row.task_name].total}
    usual = usual_times(untold)
    return {
        row.task_name: LiveTask(
            row,
            progress[row.task_name],
            Count.capped(row.lock_count, MAX_LOCKS),
            row.read_at,
            positions.get(row.task_name),
            usual.get(functions[row.task_name]),
            start_interval(row.cluster) if start_interval else None,
            _unserved_queue(row, served),
        )
        for row in rows
    }


def _unserved_queue(active: ActiveTask, served: Collection[str]) -> str:
    name = active.cluster or queue.main_cluster()
    return name if active.state == ActiveTaskState.PENDING and served and name not in served else ""


def queue_positions() -> dict[str, int]:
    """Return the positions of the first queued tasks, each within the queue of its cluster."""
    waiting = ActiveTask.objects.ready().order_by("queued_at", "pk").values_list("task_name", "cluster")
    ahead: Counter[str] = Counter()
    positions = {}
    for task_name, cluster in waiting[:MAX_QUEUE_POSITION]:
        ahead[cluster] += 1
        positions[task_name] = ahead[cluster]
    return positions


def running_version() -> str:
    """Return a hash that changes whenever the displayed state of a running task changes."""
    rows: Any = ActiveTask.objects.filter(_WATCHED).annotate(beats=_BEATS).order_by("pk")
    return _version_of(list(rows.values_list(*_STATE, named=True)[:MAX_WATCHED_TASKS]))


#: The running tasks that other processes can see, by an index.
_WATCHED = Q(worker__isnull=False)
_BEATS = F("worker__beats")
#: What the version of a running task depends on.
_STATE = (
    *("pk", "attempt", "beats", "cancel_requested_at", "pause_requested_at"),
    *("task_name", "progress_message", "progress_current", "progress_total", "progress_at"),
)


def _version_of(rows: list[Any]) -> str:
    progress = newest(rows)
    state = [
        (row.pk, row.attempt, row.beats, row.cancel_requested_at, row.pause_requested_at, progress[row.task_name])
        for row in rows
    ]
    return hashlib.blake2s(repr(state).encode(), digest_size=8).hexdigest()


def no_cluster_runs() -> bool:
    """Return whether no worker of a cluster sends heartbeats."""
    return not WorkerProcess.objects.alive_workers(max_heartbeat_age()).exists()


def served_queues() -> set[str]:
    """Return the queues for which a worker sends heartbeats."""
    return set(WorkerProcess.objects.alive_workers(max_heartbeat_age()).values_list("cluster", flat=True))
