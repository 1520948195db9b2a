"""What task code imports: the task it runs in, its progress, its log, and its cancellation."""

from __future__ import annotations

import operator
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from django.db.models import QuerySet

from powercrud_dashboard.exceptions import ClusterStopping, TaskCancelled
from powercrud_dashboard.models.history import ObjectOutcome, Outcome

__all__ = ["TaskContext", "get_current_task", "register_descendant_conflicts", "skip_nested_async", "track"]

Item = TypeVar("Item")

#: What a task last reported: message, current, total.
Report = tuple[object, int | None, int | None]

#: Log lines kept until the reporter fetches them; the oldest give way.
PENDING_LOG_LINES = 1_000

_current_task: ContextVar[TaskContext | None] = ContextVar("powercrud_dashboard_task", default=None)


class TaskContext:
    """The running task, as its function sees it. Get it with :func:`get_current_task`."""

    #: Seconds between two writes of a tracked loop, where no reporter thread does the writing.
    WRITE_INTERVAL = 0.5

    def __init__(
        self,
        task_name: str,
        manager_class: str,
        *,
        take_locks: Callable[[str, Iterable[Any]], bool],
        write_outcome: Callable[[ObjectOutcome], None],
        write_report: Callable[[Report], None] | None = None,
        write_log: Callable[[str, str], None] | None = None,
    ) -> None:
        """Make the context of one attempt.

        ``write_report`` and ``write_log`` are given where there is no reporter thread: then every
        report is written at once. Otherwise the reporter fetches the newest report and the log lines.
        """
        self.task_name = task_name
        self.manager_class = manager_class
        #: Whether the cluster stops, so that the task should come to a point where it can be left.
        self.stopping = False
        self._stopped_by: type[TaskCancelled] | type[ClusterStopping] | None = None
        self._log_lines: deque[tuple[str, str]] = deque(maxlen=PENDING_LOG_LINES)
        self._latest: Report | _Tracker | None = None
        self._take_locks = take_locks
        self._write_outcome = write_outcome
        #: How many objects have come to which outcome.
        self.outcomes: Counter[str] = Counter()
        self._write_report = write_report
        self._write_log = write_log

    def update_progress(self, message: object = None, *, current: int | None = None, total: int | None = None) -> None:
        """Note how far the task is; the newest report wins.

        Raises:
            TaskCancelled: if somebody has cancelled the task.
        """
        self.check_cancelled()
        report = (message, current, total)
        self._latest = report
        if self._write_report is not None:
            self._write_report(report)

    def log(self, message: str, level: str = "info") -> None:
        """Add a line to the task's timeline; ``level`` is a name of :mod:`logging` in lower case."""
        if self._write_log is not None:
            self._write_log(message, level)
        else:
            self._log_lines.append((message, level))

    def note_outcome(self, model_label: str, key: Any, outcome: str, error: str = "", text: str = "") -> None:
        """Record what became of one object: ``"done"``, ``"failed"``, ``"skipped"`` or ``"not_reached"``.

        Written at once, so that inside of ``atomic()`` it is true exactly if the object's own changes are.
        """
        self._write_outcome(ObjectOutcome(model_label.lower(), str(key), Outcome(outcome).value, error, text))
        self.outcomes[outcome] += 1

    def take_locks(self, model_label: str, keys: Iterable[Any]) -> bool:
        """Lock more objects for this task, all or none. Return whether it holds them now."""
        return self._take_locks(model_label, keys)

    @property
    def cancel_requested(self) -> bool:
        """Whether somebody has cancelled the task."""
        return self._stopped_by is TaskCancelled

    def stop_with(self, error: type[TaskCancelled] | type[ClusterStopping]) -> None:
        """Have this raised in the task at its next report; for the reporter thread."""
        self._stopped_by = error

    def check_cancelled(self) -> None:
        """Raise :class:`TaskCancelled` if somebody has cancelled the task.

        Raises :class:`ClusterStopping` if its cluster stops and the task is to be queued again.
        """
        if self._stopped_by is not None:
            raise self._stopped_by(self.task_name)

    def latest_report(self) -> Report | None:
        """Return what was last reported, for the reporter thread."""
        latest = self._latest
        return latest.report() if isinstance(latest, _Tracker) else latest

    @property
    def has_log_lines(self) -> bool:
        """Whether there are log lines that nobody has fetched yet."""
        return bool(self._log_lines)

    def drain_log(self) -> Iterator[tuple[str, str]]:
        """Yield the log lines that nobody has fetched yet, each once even if two threads ask."""
        while True:
            try:
                yield self._log_lines.popleft()
            except IndexError:
                return

    def take_back_log(self, lines: list[tuple[str, str]]) -> None:
        """Put fetched lines that could not be written back to where they were."""
        self._log_lines.extendleft(reversed(lines))

    def track(self, iterable: Iterable[Item], total: int | None, description: str) -> Iterator[Item]:
        tracker = _Tracker(description, total)
        self._latest = tracker
        if self._write_report is not None:
            return self._track_and_write(iterable, tracker, self._write_report)
        return self._track(iterable, tracker)

    def _track(self, iterable: Iterable[Item], tracker: _Tracker) -> Iterator[Item]:
        for item in iterable:
            yield item
            tracker.current += 1
            # Again for each item: a tracked loop inside this one has put itself there.
            self._latest = tracker
            if self._stopped_by is not None:
                raise self._stopped_by(self.task_name)

    def _track_and_write(
        self, iterable: Iterable[Item], tracker: _Tracker, write_report: Callable[[Report], None]
    ) -> Iterator[Item]:
        next_write = 0.0
        for item in self._track(iterable, tracker):
            yield item
            if (now := time.monotonic()) >= next_write:
                next_write = now + self.WRITE_INTERVAL
                message, current, total = tracker.report()
                # The item just worked on is counted when the loop asks for the next one.
                write_report((message, (current or 0) + 1, total))
        write_report(tracker.report())


class _Tracker:
    __slots__ = ("current", "description", "total")

    def __init__(self, description: str, total: int | None) -> None:
        self.description = description
        self.total = total
        self.current = 0

    def report(self) -> Report:
        return self.description, self.current, self.total


def get_current_task() -> TaskContext | None:
    """Return the task that this code runs in, or None outside of one."""
    return _current_task.get()


def skip_nested_async() -> bool:
    """Return whether this code already runs in a task, so that it need not launch another."""
    return get_current_task() is not None


def register_descendant_conflicts(model_path: str, ids: Iterable[Any]) -> bool:
    """Lock more objects for the running task: the ones that it found on its way.

    Args:
        model_path: ``"app_label.Model"``.
        ids: primary keys.

    Returns:
        True if the task now holds them all. False, with none of them locked, if somebody else
        holds one, or if this code runs in no task.
    """
    task = get_current_task()
    if task is None:
        return False
    return task.take_locks(model_path, ids)


def track(iterable: Iterable[Item], total: int | None = None, description: str = "") -> Iterator[Item]:
    """Yield the items of ``iterable`` and report how many are done; outside of a task, just yield them.

    Args:
        iterable: what the loop runs over.
        total: number of items; asked from the iterable if it knows.
        description: message shown beside the bar.

    Raises:
        TaskCancelled: between two items, if somebody has cancelled the task.
    """
    task = get_current_task()
    if task is None:
        return iter(iterable)
    return task.track(iterable, _count(iterable) if total is None else total, description)


def _count(iterable: Iterable[Any]) -> int | None:
    if isinstance(iterable, QuerySet):
        return iterable.count()
    hint = operator.length_hint(iterable, -1)
    return hint if hint >= 0 else None


@contextmanager
def running_task(context: TaskContext) -> Iterator[TaskContext]:
    """Make ``context`` the current task while a worker runs its function."""
    token = _current_task.set(context)
    try:
        yield context
    finally:
        _current_task.reset(token)
