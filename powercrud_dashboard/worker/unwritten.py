"""The ends of tasks that a worker has still to write. It keeps only so many of them while the database is away."""

from __future__ import annotations

import logging
import pickle
import threading
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice

from powercrud_dashboard.engine.plain import Run, without_large_values

logger = logging.getLogger(__name__)

#: Ends that a worker keeps, and the bytes that they take as pickles. Of more, those of failed tasks are kept.
KEPT_AT_MOST = 20_000
KEPT_BYTES = 50_000_000
#: The share of these that one end may take. Of a larger one only what the pages show is kept.
_SHARE = 0.1
#: Bytes that an end takes beside the values of its task.
_OVERHEAD = 1_000


class Unwritten:
    """Ends in the order in which they came. The thread of the tasks adds them, another one writes them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ends: deque[tuple[Run, int]] = deque()
        self._bytes = 0
        self._dropped = 0

    def __len__(self) -> int:
        return len(self._ends)

    def add(self, run: Run) -> None:
        """Keep this end. If there is no room, drop it or an older one, first those of tasks that did not fail."""
        size = _size_of(run)
        if size > _SHARE * KEPT_BYTES:
            run = without_large_values(run)
            size = _size_of(run)
        with self._lock:
            while not self._has_room_for(size):
                older = self._first_to_drop()
                if older is None or run.message["success"]:
                    self._note_dropped()
                    return
                self._bytes -= self._ends[older][1]
                del self._ends[older]
                self._note_dropped()
            self._ends.append((run, size))
            self._bytes += size

    def _has_room_for(self, size: int) -> bool:
        return len(self._ends) < KEPT_AT_MOST and self._bytes + size <= KEPT_BYTES

    def _first_to_drop(self) -> int | None:
        succeeded = (number for number, (run, _size) in enumerate(self._ends) if run.message["success"])
        return next(succeeded, 0 if self._ends else None)

    def _note_dropped(self) -> None:
        if not self._dropped:
            logger.warning("The ends of tasks can't be written for so long that some are not recorded")
        self._dropped += 1

    def write(self, at_most: int, write: Callable[[Sequence[Run]], object]) -> None:
        """Write them all, some at a time. Those that could not be written stay, and the error is raised."""
        while self._ends:
            with self._lock:
                part = list(islice(self._ends, at_most))
                for _end in part:
                    self._ends.popleft()
            try:
                write([run for run, _size in part])
            except BaseException:
                with self._lock:
                    self._ends.extendleft(reversed(part))
                raise
            with self._lock:
                self._bytes -= sum(size for _run, size in part)
                dropped, self._dropped = self._dropped, 0
            if dropped:
                logger.warning("The ends of %d tasks were not recorded, as the database was away for too long", dropped)


def _size_of(run: Run) -> int:
    message = run.message
    kept = run.arguments or b""
    names = ("result",) if kept else ("args", "kwargs", "result")
    try:
        return _OVERHEAD + len(kept) + len(pickle.dumps([message.get(name) for name in names]))
    except (Exception, SystemExit):
        # Other people's objects.
        return 10 * _OVERHEAD
