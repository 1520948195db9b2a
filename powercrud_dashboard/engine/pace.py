"""Between two items of a task's loop: it stops there if it is to pause, and waits there as its throttle says."""

from __future__ import annotations

import time
from collections.abc import Callable
from numbers import Real
from typing import Protocol

from powercrud_dashboard.exceptions import ClusterStopping, SliceEnded, TaskPaused

#: Items a second, or a callable that returns the seconds to wait before the next one, 0 to go on.
Limit = float | Callable[[], float | None]


def is_number(limit: object) -> bool:
    """Return whether the limit is a number of items a second."""
    return isinstance(limit, Real) and not isinstance(limit, bool)


class Throttle:
    """Tells how long to wait before each item."""

    def __init__(self, limit: Limit, *, goes_on: bool = False) -> None:
        """Make the throttle of a loop; ``goes_on`` if an item may have been done just before."""
        self._limit = limit
        self._next_at = 0.0 if callable(limit) or not goes_on else time.monotonic() + 1 / limit

    @property
    def may_take_long(self) -> bool:
        """Whether nothing may begin for hours, in which others can have the worker."""
        return callable(self._limit)

    def delay(self) -> float:
        """Return the seconds to wait before this is asked again; 0 if the next item may begin now."""
        if callable(self._limit):
            return max(0.0, float(self._limit() or 0))
        now = time.monotonic()
        if now < self._next_at:
            return self._next_at - now
        interval = 1 / self._limit
        # A loop that was late catches up with one item at most.
        self._next_at = max(self._next_at, now - interval) + interval if self._next_at else now + interval
        return 0.0


class PacedTask(Protocol):
    """What the pace needs of a running task."""

    stopping: bool

    def check_cancelled(self) -> None: ...


class Pace:
    """When the loop of a task stops, or waits, before its next item."""

    #: Seconds between two looks whether the loop is to stop, while it waits.
    LOOK_INTERVAL = 0.1

    def __init__(self, task_name: str) -> None:
        self._task_name = task_name
        #: Whether somebody wants the task to pause.
        self.pausing = False
        #: Whether it stops if its cluster is being stopped, and is queued again.
        self.yields_to_stop = False
        self._throttle: Throttle | None = None
        self._slice_ends_at: float | None = None

    def limit(self, *, throttle: Limit | None, slice_of: float | None, goes_on: bool) -> None:
        """Have the loop wait as the throttle says, and give its worker back after a slice of so many seconds.

        ``goes_on`` says that this is not its first slice: together they are no faster than the throttle.
        """
        self._throttle = None if throttle is None else Throttle(throttle, goes_on=goes_on)
        self._slice_ends_at = None if slice_of is None else time.monotonic() + slice_of

    def wait(self, task: PacedTask, *, is_first: bool) -> None:
        """Wait until the next item may begin.

        Raises:
            TaskPaused, ClusterStopping, SliceEnded: if the loop is to stop before that. At least one item is done in
                each slice, unless a callable lets none begin.
            TaskCancelled, TaskGivenUp: as ``task.check_cancelled()`` does.
        """
        throttle, may_end = self._throttle, not is_first
        while (stop := self._reason_to_stop(task, may_end)) is None and throttle and (delay := throttle.delay()) > 0:
            may_end = may_end or throttle.may_take_long
            until = time.monotonic() + delay
            while self._reason_to_stop(task, may_end) is None and (left := until - time.monotonic()) > 0:
                task.check_cancelled()
                time.sleep(min(left, self.LOOK_INTERVAL))
        if stop is not None:
            raise stop(self._task_name)

    def _reason_to_stop(
        self, task: PacedTask, may_end_slice: bool
    ) -> type[TaskPaused] | type[ClusterStopping] | type[SliceEnded] | None:
        if self.pausing:
            return TaskPaused
        if task.stopping and self.yields_to_stop:
            return ClusterStopping
        is_over = self._slice_ends_at is not None and time.monotonic() >= self._slice_ends_at
        return SliceEnded if is_over and may_end_slice else None
