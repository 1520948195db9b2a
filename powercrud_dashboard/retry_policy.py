"""Whether, and when, a failed task is to run again by itself."""

from __future__ import annotations

import logging
import pkgutil
import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from powercrud_dashboard.exceptions import ClusterStopping, EnqueueError, WorkerLost

logger = logging.getLogger(__name__)

#: Seconds to the first retry, where nothing else is said.
DEFAULT_BACKOFF = 30.0

#: Seconds that a wait is never longer than.
LONGEST_WAIT = 24 * 60 * 60.0

#: Failures that are no doing of the task's function; they are retried only if ``retry_on`` names them.
OF_ITS_SURROUNDINGS = (WorkerLost, EnqueueError)

ExceptionClass = type[BaseException] | str


@dataclass(frozen=True)
class RetryPolicy:
    """How often, how soon and after which errors a task runs again by itself."""

    max_retries: int
    #: Seconds to the first retry; each further wait is twice as long.
    backoff: float = DEFAULT_BACKOFF
    #: Dotted paths of exception classes; empty for all errors of the function itself, and its time limit.
    retry_on: tuple[str, ...] = ()
    give_up_on: tuple[str, ...] = ()
    #: Whether the task is queued again when its cluster stops, rather than waited for.
    requeue_on_stop: bool = False

    @classmethod
    def make(
        cls,
        *,
        max_retries: int = 0,
        backoff: float = DEFAULT_BACKOFF,
        retry_on: Iterable[ExceptionClass] = (),
        give_up_on: Iterable[ExceptionClass] = (),
        requeue_on_stop: bool | None = None,
    ) -> RetryPolicy | None:
        """Return the policy, or None if there is nothing to do.

        Raises:
            ValueError: if a number is negative.
            TypeError: if something that is no exception class is named.
        """
        if max_retries < 0:
            raise ValueError(f"max_retries is {max_retries}; use 0 or more.")
        if backoff < 0:
            raise ValueError(f"retry_backoff is {backoff}; use 0 or more seconds.")
        requeue = max_retries > 0 if requeue_on_stop is None else requeue_on_stop
        policy = cls(max_retries, float(backoff), _paths(retry_on), _paths(give_up_on), requeue)
        return policy if max_retries or requeue else None

    @classmethod
    def from_json(cls, kept: dict[str, Any]) -> RetryPolicy | None:
        """Return the policy that :meth:`as_json` has kept; None if there was none."""
        if not kept:
            return None
        lists = {name: tuple(kept[name]) for name in ("retry_on", "give_up_on")}
        return cls(**{**kept, **lists})

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def allows_retry(self, retries: int, error: type[BaseException]) -> bool:
        """Return whether a task that was retried so often is to be retried after this kind of error."""
        if issubclass(error, ClusterStopping):
            return self.requeue_on_stop
        if retries >= self.max_retries or issubclass(error, _classes(self.give_up_on)):
            return False
        if self.retry_on:
            return issubclass(error, _classes(self.retry_on))
        return not issubclass(error, OF_ITS_SURROUNDINGS)

    def wait(self, retries: int, error: type[BaseException]) -> timedelta:
        """Return how long to wait before the next run: twice as long each time, and never quite the same.

        What failed together would otherwise come back together.
        """
        if issubclass(error, ClusterStopping):
            return timedelta()
        # Beyond this exponent every wait is the longest, whatever the first was.
        longest = min(self.backoff * 2 ** min(retries, 64), LONGEST_WAIT)
        return timedelta(seconds=random.uniform(longest / 2, longest))  # noqa: S311 - no secret depends on it


def _paths(classes: Iterable[ExceptionClass]) -> tuple[str, ...]:
    return tuple(item if isinstance(item, str) else _path(item) for item in classes)


def _path(item: object) -> str:
    if not (isinstance(item, type) and issubclass(item, BaseException)):
        raise TypeError(f"{item!r} is no exception class; name classes, or their dotted paths.")
    return f"{item.__module__}.{item.__qualname__}"


def _classes(paths: Iterable[str]) -> tuple[type[BaseException], ...]:
    found = []
    for path in paths:
        try:
            found.append(pkgutil.resolve_name(path))
        except (ImportError, AttributeError, ValueError):
            # A deploy may have removed it; what is gone can't be raised any more.
            logger.warning("The exception class %s of a retry policy is not there (any more)", path)
    return tuple(found)
