"""What task code imports: the task that it runs in, its progress, its log, and its cancellation."""

from __future__ import annotations

import logging
import operator
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

from django.db import DatabaseError, transaction
from django.db.models import QuerySet
from django.utils import timezone

from powercrud_dashboard import log_records
from powercrud_dashboard.engine import lifecycle, locks, logs, progress, registry
from powercrud_dashboard.engine.logs import Logged, TimelineLine, lines_event
from powercrud_dashboard.engine.pace import Limit, Pace
from powercrud_dashboard.exceptions import ClusterStopping, TaskCancelled, TaskGivenUp, TaskPaused
from powercrud_dashboard.models import ActiveTask, TaskCursor, TaskRecord
from powercrud_dashboard.models.database import coordination_db, is_in_transaction
from powercrud_dashboard.models.labels import label_of_rows
from powercrud_dashboard.models.objects import ObjectOutcome, Outcome
from powercrud_dashboard.text import MESSAGE, SHORT, clean_text

__all__ = [
    "TaskContext",
    "get_current_task",
    "register_descendant_conflicts",
    "skip_nested_async",
    "task_context",
    "track",
]

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

#: What a task last reported: message, current, total.
Report = tuple[object, int | None, int | None]

#: What may be raised in a task to stop it.
StopError = type[TaskCancelled] | type[ClusterStopping] | type[TaskGivenUp]

#: Lines of the timeline kept until the heartbeat thread writes them; the oldest are dropped first.
PENDING_LINES = 1_000


_current_task: ContextVar[TaskContext | None] = ContextVar("powercrud_dashboard_task", default=None)


class TaskContext:
    """The running task, as its function sees it. Get it with :func:`get_current_task`."""

    #: Seconds between two writes of a tracked loop, where no heartbeat thread does the writing.
    WRITE_INTERVAL = 0.5
    #: Seconds that a task whose process was frozen waits to learn whether it may go on.
    HELD_AT_MOST = 3.0

    def __init__(self, task_name: str, manager: Any, *, writes_at_once: bool, attempt: int | None = None) -> None:
        """Make the context of one attempt.

        Args:
            task_name: the task.
            manager: the manager that it was launched by.
            attempt: the number of the attempt; None where none is made, as outside of a worker.
            writes_at_once: whether reports and log lines are written when they are made; else the heartbeat thread
                fetches them.
        """
        self.task_name = task_name
        self._attempt = attempt
        #: What the project's own log tells of the task.
        self.in_records = log_records.RunningTask(task_name, attempt=attempt)
        #: The manager that it was launched by, and the dotted path of that manager's class.
        self.manager = manager
        self.manager_class_path: str = manager.manager_class_path
        #: Whether the cluster is being stopped, so that the task should come to a point where it can end.
        self.stopping = False
        #: Whether its tracked loop stops, or waits, between two items.
        self.pace = Pace(task_name)
        #: The loop that is not inside of another one.
        self._loop: _Tracker | None = None
        self._is_in_loop = False
        #: How many items of its loop the task had done when an earlier attempt stopped.
        self.resume_at = 0
        #: Returns the time, by the database's clock as well as is known.
        self.now: Callable[[], datetime] = timezone.now
        #: How many objects have which outcome.
        self.outcomes: Counter[str] = Counter()
        self._writes_at_once = writes_at_once
        #: Whether the heartbeat of the process is overdue, so that others may have taken the task; set in a worker.
        self.is_overdue: Callable[[], bool] = _never
        #: Lets the time limit pass; set in a worker.
        self.end_time_limit: Callable[[], None] = _no_limit
        self._stop_error: StopError | None = None
        self._is_committing = False
        self._timeline: deque[TimelineLine] = deque(maxlen=PENDING_LINES)
        self.captured_log = logs.TaskLog(self._time)
        self._has_written_log = False
        self._latest: Report | _Tracker | None = None
        self._reported_at: datetime | None = None

    def update_progress(self, message: object = None, *, current: int | None = None, total: int | None = None) -> None:
        """Report how far the task is. Only the newest report is kept.

        Raises:
            TaskCancelled: if somebody has cancelled the task.
        """
        self.check_cancelled()
        if message is not None and type(message) is not str:
            # Now and by this thread: it may change, or ask the database.
            message = clean_text(message, MESSAGE)
        report = (message, current, total)
        self._reported_at = self.now()
        self._latest = report
        if self._writes_at_once:
            self._write_report(report)

    def log(self, message: object, level: str = "info") -> None:
        """Add a line to the task's timeline and to its log; ``level`` is a name of :mod:`logging` in lower case."""
        message, level = clean_text(message, MESSAGE), clean_text(level, SHORT)
        self.captured_log.add(message, logs.LEVELS.get(level, logging.INFO))
        if self._writes_at_once:
            with logs.not_logging():
                lifecycle.emit(self.manager, "log", self.task_name, message=message, level=level)
        else:
            self._timeline.append((message, level, self.now()))

    def _time(self) -> datetime:
        return self.now()

    def note_outcome(self, model_label: str, key: Any, outcome: str, error: str = "", text: str = "") -> bool:
        """Record the outcome of one object: ``"done"``, ``"failed"``, ``"skipped"`` or ``"not_reached"``.

        It is written at once, so that inside ``atomic()`` it is stored exactly if the object's own changes are.
        Return whether it was written.
        """
        label = label_of_rows(clean_text(model_label, locks.LABEL_LENGTH))
        key = clean_text(key, locks.KEY_LENGTH)
        return self.note_outcomes([ObjectOutcome(label, key, Outcome(outcome).value, error, text)])

    def note_outcomes(
        self, outcomes: list[ObjectOutcome], cursor: TaskCursor | None = None, *, instead_of: str = ""
    ) -> bool:
        """Record the outcomes of several objects, and advance the cursor past them if there is one.

        ``instead_of`` is the outcome that is stored of the one object already.
        Return whether they were written; if not, that is logged.
        """
        try:
            with transaction.atomic(using=coordination_db()):
                self.write_outcomes(outcomes, cursor, instead_of)
        except (lifecycle.NotRecorded, DatabaseError):
            logger.exception("Outcomes of objects of task %s could not be recorded", self.task_name)
            return False
        if self._writes_at_once:
            # The caller may have a transaction open, which is committed after the task has ended.
            self.count_outcomes(outcomes)
        else:
            transaction.on_commit(partial(self.count_outcomes, outcomes), using=coordination_db())
        return True

    def write_outcomes(self, outcomes: list[ObjectOutcome], cursor: TaskCursor | None, instead_of: str = "") -> None:
        """Write outcomes as a part of the open transaction; call :meth:`count_outcomes` after it is committed.

        Raises:
            NotRecorded: if they can't be written.
            TaskGivenUp: if the task has passed to another attempt, whose the cursor is now.
        """
        lifecycle.record(self.manager, self.task_name, [("objects", {"outcomes": outcomes})], in_savepoint=False)
        if cursor is not None:
            cursor.advance(outcomes, instead_of=instead_of)

    def count_outcomes(self, outcomes: list[ObjectOutcome]) -> None:
        """Count outcomes that are stored, and call the manager's hook."""
        self.outcomes.update(entry.outcome for entry in outcomes)
        lifecycle.call_hooks(self.manager, self.task_name, [("objects", {"outcomes": outcomes})])

    def take_cursor(self) -> TaskCursor | None:
        """Return the position that this attempt goes on from; None where there is no other attempt, as in a request.

        Raises:
            TaskGivenUp: if the task has ended or has passed to another attempt.
        """
        if self._attempt is None or self._writes_at_once:
            return None
        cursor = TaskCursor.objects.take(self.task_name, self._attempt)
        self.outcomes.update(cursor.counts)
        return cursor

    def take_locks(self, model_label: str, keys: Iterable[Any]) -> bool:
        """Lock more objects for this task, all or none. Return whether it holds them now.

        A task that was given up, as its worker seemed to be lost, gets none.
        """
        return self.take_conflict_ids({model_label: keys})

    def take_conflict_ids(self, conflict_ids: locks.ConflictIds) -> bool:
        """Do the same for objects of several models."""
        return locks.extend(self.task_name, locks.lock_keys(conflict_ids), attempt=self._attempt)

    @property
    def cancel_requested(self) -> bool:
        """Whether somebody has cancelled the task."""
        return self._stop_error is TaskCancelled

    def stop_with(self, error: StopError) -> None:
        """Have this error raised in the task at its next report; for the heartbeat thread."""
        self._stop_error = error

    def check_cancelled(self) -> None:
        """Raise :class:`TaskCancelled` if somebody has cancelled the task.

        Raises :class:`ClusterStopping` if its cluster is being stopped and its policy requeues it, and
        :class:`TaskGivenUp` if others may work on its objects. After a freeze it waits until that is known.
        """
        if self._is_committing:
            return
        if self.is_overdue():
            self._wait_for_heartbeat()
        if self._stop_error is not None:
            raise self._stop_error(self.task_name)

    def commit_now(self) -> None:
        """Let nobody stop the task from here on, as its function is about to commit all that it has done, and returns.

        Call it as the last thing inside the outermost ``atomic()``: then the task is either recorded as cancelled, and
        nothing of its work is stored, or it completes. Its time limit can't interrupt it any more either.

        Raises:
            TaskCancelled: if somebody has cancelled the task.
        """
        self.check_cancelled()
        self.end_time_limit()
        self._is_committing = True

    def _wait_for_heartbeat(self) -> None:
        # No lock is used: this also runs in a signal handler, which may have interrupted it.
        deadline = time.monotonic() + self.HELD_AT_MOST
        while self._stop_error is None and self.is_overdue():
            if time.monotonic() >= deadline:
                self.stop_with(TaskGivenUp)
            time.sleep(0.01)

    def latest_report(self) -> Report | None:
        """Return what was last reported; for the heartbeat thread."""
        latest = self._latest
        return latest.report() if isinstance(latest, _Tracker) else latest

    @property
    def reported_at(self) -> datetime:
        """When :meth:`latest_report` was made; now, while a tracked loop runs."""
        latest = self._latest
        return (latest.ended_at if isinstance(latest, _Tracker) else self._reported_at) or self.now()

    @property
    def has_log_lines(self) -> bool:
        """Whether something was logged that is not written yet."""
        return bool(self._timeline) or self.captured_log.has_lines

    def take_log(self) -> Logged:
        """Return what was logged and is not written yet, each line once even if two threads ask."""
        is_first = self._attempt == 1 and not self._has_written_log
        lines = self.captured_log.take()
        self._has_written_log |= bool(lines)
        timeline = []
        with suppress(IndexError):
            while True:
                timeline.append(self._timeline.popleft())
        return Logged(timeline, lines, is_first)

    def put_back_log(self, logged: Logged) -> None:
        """Put back what could not be written."""
        self._timeline.extendleft(reversed(logged.timeline))
        self.captured_log.put_back(logged.lines)
        self._has_written_log = not logged.is_first

    def write_log(self) -> None:
        """Write the lines of the log that are not written yet; where no heartbeat thread does."""
        if not self.captured_log.has_lines:
            return
        logged = self.take_log()
        with logs.not_logging():
            lifecycle.record(self.manager, self.task_name, [lines_event(logged)])

    def track(self, iterable: Iterable[Item], total: int | None, description: str, initial: int = 0) -> Iterator[Item]:
        tracker = _Tracker(description, total, initial)
        self._latest = tracker
        return self._track_and_write(iterable, tracker) if self._writes_at_once else self._track(iterable, tracker)

    def _track(self, iterable: Iterable[Item], tracker: _Tracker) -> Iterator[Item]:
        if is_outermost := not self._is_in_loop:
            self._is_in_loop = True
            if not is_in_transaction():
                self._loop = tracker
        try:
            for item in iterable:
                if is_outermost:
                    self.pace.wait(self, is_first=tracker.current == tracker.initial)
                yield item
                tracker.current += 1
                # Set for each item, as a tracked loop inside this one sets it too.
                self._latest = tracker
                if self._stop_error is not None:
                    raise self._stop_error(self.task_name)
        finally:
            if is_outermost:
                self._is_in_loop = False
        tracker.ended_at = self.now()

    @property
    def pausing(self) -> bool:
        """Whether somebody wants the task to pause. A tracked loop stops by itself at its next item."""
        return self.pace.pausing

    def limit_pace(self, *, throttle: Limit | None, slice_of: float | None) -> None:
        """Have tracked loops wait as the throttle says, and give a worker back after so many seconds."""
        goes_on = self._attempt is not None and self._attempt > 1
        self.pace.limit(throttle=throttle, slice_of=None if self._writes_at_once else slice_of, goes_on=goes_on)

    @property
    def items_done(self) -> int:
        """How many items the loop has done that is neither inside of another one nor of a transaction."""
        return self.resume_at if self._loop is None else self._loop.current

    def check_paused(self, resume_at: int | None = None) -> None:
        """Stop here if somebody wants the task to pause: for loops that are not tracked.

        Args:
            resume_at: how many items are done. A function that takes ``resume_at`` gets it when the task is resumed.

        Raises:
            TaskPaused: if so.
        """
        if resume_at is not None and not is_in_transaction():
            self.resume_at = resume_at
        if self.pausing:
            raise TaskPaused(self.task_name)

    def _track_and_write(self, iterable: Iterable[Item], tracker: _Tracker) -> Iterator[Item]:
        next_write = 0.0
        for item in self._track(iterable, tracker):
            yield item
            if (now := time.monotonic()) >= next_write:
                next_write = now + self.WRITE_INTERVAL
                message, current, total = tracker.report()
                # The item just worked on is counted when the loop asks for the next one.
                self._write_report((message, (current or 0) + 1, total))
        self._write_report(tracker.report())

    def _write_report(self, report: Report) -> None:
        news = progress.Progress.parse(*report)
        with logs.not_logging():
            written = progress.write(self.task_name, news)
            if written is None:
                return
            lifecycle.emit(self.manager, "progress", self.task_name, **news.as_payload())
        self.write_log()
        if written.cancel_requested_at is not None:
            self.stop_with(TaskCancelled)
            self.check_cancelled()


def _never() -> bool:
    return False


def _no_limit() -> None:
    pass


class _Tracker:
    __slots__ = ("current", "description", "ended_at", "initial", "total")

    def __init__(self, description: object, total: int | None, initial: int) -> None:
        self.description = clean_text(description, MESSAGE)
        self.total = total
        self.initial = self.current = initial
        #: When the loop came to its end.
        self.ended_at: datetime | None = None

    def report(self) -> Report:
        return self.description, self.current, self.total


def get_current_task() -> TaskContext | None:
    """Return the task that this code runs in, or None outside of one."""
    return _current_task.get()


def skip_nested_async() -> bool:
    """Return whether this code already runs in a task, so that it need not launch another."""
    return get_current_task() is not None


def register_descendant_conflicts(model_path: str, ids: Iterable[Any]) -> bool:
    """Lock more objects for the running task, such as children of the objects that it was launched for.

    Args:
        model_path: ``"app_label.Model"``.
        ids: primary keys.

    Returns:
        True if the task now holds them all. False, with none of them locked, if somebody else
        holds one, if this code runs in no task, or if the task was given up meanwhile.
    """
    task = get_current_task()
    if task is None:
        return False
    return task.take_locks(model_path, ids)


def track(
    iterable: Iterable[Item], total: int | None = None, description: str = "", *, initial: int = 0
) -> Iterator[Item]:
    """Yield the items of ``iterable`` and report how many are done; outside of a task, just yield them.

    Args:
        iterable: what the loop runs over.
        total: number of items; by default the iterable is asked for it.
        description: message shown beside the bar.
        initial: how many items were done before, and are not in ``iterable`` any more.

    Raises:
        TaskCancelled: between two items, if somebody has cancelled the task.
    """
    task = get_current_task()
    if task is None:
        return iter(iterable)
    if total is None and (count := _count(iterable)) is not None:
        total = count + initial
    return task.track(iterable, total, description, initial)


def _count(iterable: Iterable[Any]) -> int | None:
    if isinstance(iterable, QuerySet):
        return iterable.count()
    hint = operator.length_hint(iterable, -1)
    return hint if hint >= 0 else None


@contextmanager
def task_context(task_name: str, manager_class_path: str | None = None) -> Iterator[TaskContext]:
    """Make a task the current one for the length of a block, in code that no worker of this package runs.

    In the task's own worker the block gets the context that is there already.

    Args:
        task_name: the task.
        manager_class_path: dotted path of a manager to use instead of the one that launched the task.

    Raises:
        TaskCancelled: if somebody has cancelled the task; also by each report in the block.
    """
    current = get_current_task()
    if current is not None and current.task_name == str(task_name):
        yield current
        return
    task = ActiveTask.objects.tasks().filter(task_name=task_name).first()
    if task is None:
        is_cancelled = TaskRecord.objects.cancelled().filter(task_name=task_name).exists()
    else:
        is_cancelled = task.cancel_requested_at is not None
    if is_cancelled:
        raise TaskCancelled(task_name)
    if task is not None and manager_class_path is None:
        manager = registry.manager_of(task)
    else:
        manager = registry.resolve_manager(manager_class_path, task.manager_config if task else None)
    context = TaskContext(task_name, manager, writes_at_once=True)
    known = TaskRecord.objects.filter(task_name=task_name).values_list("func", "label", "user_label").first()
    context.in_records = log_records.RunningTask(str(task_name), *(known or ()))
    try:
        with running_task(context):
            yield context
    finally:
        context.write_log()


@contextmanager
def running_task(context: TaskContext) -> Iterator[TaskContext]:
    """Make ``context`` the current task while its function runs, and collect what that logs."""
    token = _current_task.set(context)
    in_records = log_records.running_task.set(context.in_records)
    try:
        with logs.captured(context.captured_log):
            yield context
    finally:
        log_records.running_task.reset(in_records)
        _current_task.reset(token)
