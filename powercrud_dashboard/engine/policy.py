"""Retry policies: what users declare, and the decision between a failure and a retry."""

from __future__ import annotations

import dataclasses
import logging
import math
import pkgutil
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any

from django.db import transaction

from powercrud_dashboard.engine import lifecycle, progress
from powercrud_dashboard.exceptions import ClusterStopping, EnqueueError, WorkerLost
from powercrud_dashboard.models import ActiveTask, FailureReason, TaskCursor, TaskEvent
from powercrud_dashboard.models.database import coordination_db, write_transaction
from powercrud_dashboard.text import SHORT, describe, error_text

logger = logging.getLogger(__name__)

#: Seconds that no wait before a retry exceeds.
MAX_WAIT = 24 * 60 * 60.0

#: Failures that the task's function did not cause. They are retried only if ``retry_on`` names them.
EXTERNAL_FAILURES = (WorkerLost, EnqueueError)

#: The exceptions that stand in a policy for failures which no exception reports.
STAND_INS: dict[str, type[BaseException]] = {
    FailureReason.WORKER_LOST: WorkerLost,
    FailureReason.NOT_QUEUED: EnqueueError,
    FailureReason.NEVER_STARTED: EnqueueError,
}

ExceptionClass = type[BaseException] | str


@dataclass(frozen=True)
class RetryPolicy:
    """How often, when and after which errors a failed task is retried by itself.

    Args:
        max_retries: how often the task is retried; its locks are kept meanwhile.
        backoff: seconds, or a ``timedelta``, before the first retry, less up to a half at random. Each further wait
            is twice as long, up to a day.
        retry_on: exception classes, or their dotted paths, after which the task is retried. Empty for all errors of
            its function and for its time limit. ``WorkerLost`` and ``EnqueueError``, in
            ``powercrud_dashboard.exceptions``, stand for a lost worker and for a broker that did not take the task.
        give_up_on: exception classes after which the task is not retried.
        requeue_on_stop: whether a cluster that is being stopped interrupts the task, so that it is queued again, or
            waits for its end. None stands for True if there are retries.

    Raises:
        ValueError: if a number is negative.
        TypeError: if ``retry_on`` or ``give_up_on`` has something that is neither an exception class nor a text.
    """

    max_retries: int = 0
    backoff: float | timedelta = 30.0
    retry_on: Iterable[ExceptionClass] = ()
    give_up_on: Iterable[ExceptionClass] = ()
    requeue_on_stop: bool | None = None

    def __post_init__(self) -> None:
        if isinstance(self.max_retries, bool) or not isinstance(self.max_retries, int):
            raise TypeError(f"max_retries is {describe(self.max_retries, SHORT)}; use a whole number.")
        if self.max_retries < 0:
            raise ValueError(f"max_retries is {self.max_retries}; use 0 or more.")
        object.__setattr__(self, "backoff", _as_seconds(self.backoff))
        for name in ("retry_on", "give_up_on"):
            object.__setattr__(self, name, _as_paths(name, getattr(self, name)))

    @classmethod
    def of(cls, retry: RetryPolicy | int | None) -> RetryPolicy | None:
        """Return the policy that a ``retry`` option stands for: itself, or a number of retries.

        None if it asks for nothing.

        Raises:
            TypeError: if it is neither a policy nor a whole number.
        """
        policy = retry if isinstance(retry, RetryPolicy) else cls(max_retries=retry or 0)
        return policy if policy.max_retries or policy.requeues_on_stop else None

    @property
    def requeues_on_stop(self) -> bool:
        return self.max_retries > 0 if self.requeue_on_stop is None else self.requeue_on_stop

    def check(self) -> None:
        """Check that every dotted path leads to an exception class.

        Raises:
            TypeError: if one does not.
        """
        for path in (*self._paths("retry_on"), *self._paths("give_up_on")):
            if exception_class(path) is None:
                raise TypeError(
                    f"{path!r} is not the dotted path of an exception class. Correct it, or pass the class."
                )

    def to_json(self) -> dict[str, Any]:
        """Return plain data that :meth:`from_json` takes."""
        return asdict(self)

    @classmethod
    def from_json(cls, kept: dict[str, Any]) -> RetryPolicy | None:
        """Return the policy that :meth:`to_json` was called for; None for an empty dict.

        Keys of later releases are ignored. A policy that can't be read is logged, and is none.
        """
        if not kept:
            return None
        known = {field.name for field in dataclasses.fields(cls)}
        try:
            return cls(**{name: value for name, value in kept.items() if name in known})
        except Exception:
            logger.exception("The retry policy %r can't be read; the task is not retried", kept)
            return None

    def allows_retry(self, retries: int, error: type[BaseException]) -> bool:
        """Return whether a task is retried after this kind of error, having been retried ``retries`` times."""
        if issubclass(error, ClusterStopping):
            return self.requeues_on_stop
        if retries >= self.max_retries or issubclass(error, self._classes("give_up_on")):
            return False
        if self.retry_on:
            return issubclass(error, self._classes("retry_on"))
        return not issubclass(error, EXTERNAL_FAILURES)

    def wait(self, retries: int, error: type[BaseException]) -> timedelta:
        """Return how long to wait before the next retry: twice as long each time, with a random part.

        Without the random part, tasks that failed together would be retried together.
        """
        if issubclass(error, ClusterStopping):
            return timedelta()
        # Above this exponent the wait is MAX_WAIT, whatever the backoff is.
        longest = min(self.backoff * 2 ** min(retries, 64), MAX_WAIT)
        return timedelta(seconds=random.uniform(longest / 2, longest))  # noqa: S311 - no secret depends on it

    def _paths(self, option: str) -> tuple[str, ...]:
        paths: tuple[str, ...] = getattr(self, option)
        return paths

    def _classes(self, option: str) -> tuple[type[BaseException], ...]:
        return tuple(found for path in self._paths(option) if (found := exception_class(path)) is not None)


def _as_seconds(backoff: Any) -> float:
    seconds = backoff.total_seconds() if isinstance(backoff, timedelta) else backoff
    if isinstance(seconds, bool) or not isinstance(seconds, int | float | Decimal):
        raise TypeError(f"backoff is {describe(backoff, SHORT)}; use a number of seconds.")
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"backoff is {seconds}; use 0 or more seconds.")
    # A longer wait than the longest makes no difference, and is no number that every column takes.
    return float(min(seconds, MAX_WAIT))


def _as_paths(option: str, classes: Any) -> tuple[str, ...]:
    if isinstance(classes, str) or not isinstance(classes, Iterable):
        classes = (classes,)
    return tuple(item if isinstance(item, str) else _path_of(option, item) for item in classes)


def _path_of(option: str, item: object) -> str:
    if not (isinstance(item, type) and issubclass(item, BaseException)):
        raise TypeError(f"{option} has {item!r}, which is not an exception class; use classes or their dotted paths.")
    return f"{item.__module__}.{item.__qualname__}"


def exception_class(path: str) -> type[BaseException] | None:
    """Return the exception class at this path; None if there is none, as after a deploy that removed it."""
    if not path:
        return None
    try:
        found = pkgutil.resolve_name(path)
    except Exception:
        # Importing runs the module, which may raise anything.
        logger.warning("A retry policy names %s, which can't be imported", path, exc_info=True)
        return None
    if isinstance(found, type) and issubclass(found, BaseException):
        return found
    logger.warning("A retry policy names %s, which is not an exception class", path)
    return None


def failure_payload(reason: FailureReason, text: str = "") -> dict[str, Any]:
    """Return the payload of a failure that no exception reports; its text is by default that of the reason."""
    # Without a translation: the pages translate it.
    error = text or error_text(reason.label, SHORT)
    return {"reason": reason.value, "error": error, "result": error, "exception_class": "", "traceback": ""}


def fail(
    manager: lifecycle.LifecycleManager,
    active: ActiveTask,
    raised: type[BaseException] | None = None,
    /,
    *,
    earlier: Sequence[lifecycle.Event] = (),
    unrecorded: Sequence[lifecycle.Event] | None = None,
    is_repeated: bool = False,
    **payload: Any,
) -> bool:
    """End a task as failed, or let it wait for a retry if its policy allows one.

    ``raised`` is the class of the exception; without one, the payload's ``reason`` decides which exception stands for
    the failure. ``earlier`` and ``unrecorded`` are those of :func:`lifecycle.end`. ``is_repeated`` says that the
    worker of the task has asked the database before, which did not answer.

    Returns False, with nothing changed, if the task has ended or has passed to another attempt.
    """
    kind = raised or STAND_INS.get(payload["reason"], Exception)
    resume_at = payload.pop("resume_at", None)
    if is_repeated and _was_postponed_by_worker(active):
        # The database did it nevertheless, but nobody was told.
        lifecycle.call_hooks(manager, active.task_name, _events_of_postponement(active, earlier, payload))
        return True
    is_raised = raised is not None
    if (policy := _policy_that_retries(active, kind, is_raised=is_raised)) is not None:
        wait = policy.wait(active.retries, kind)
        counts = not (
            _is_no_failure(active, kind, is_raised=is_raised) or _stopped_at_an_object(active, payload["reason"])
        )
        with write_transaction():
            if ActiveTask.objects.all().postpone(active, wait, counts=counts, resume_at=resume_at):
                before = lifecycle.missing_start(active) if unrecorded is None else unrecorded
                _emit_postponed(manager, active, [*before], [*earlier], payload)
                _pause_if_asked(manager, active)
                return True
    return lifecycle.end(manager, active, "fail", earlier=earlier, unrecorded=unrecorded, **payload)


def waits_after(active: ActiveTask, reason: FailureReason) -> bool:
    """Return whether :func:`fail` would let the task wait for a retry after a failure that no exception reports."""
    kind = STAND_INS.get(reason, Exception)
    return active.cancel_requested_at is None and _policy_that_retries(active, kind) is not None


def is_requeued_on_stop(active: ActiveTask) -> bool:
    """Return whether the task is queued again if its cluster is stopped while it runs."""
    return _policy_that_retries(active, ClusterStopping) is not None


def _policy_that_retries(
    active: ActiveTask, kind: type[BaseException], *, is_raised: bool = False
) -> RetryPolicy | None:
    policy = RetryPolicy.from_json(active.policy)
    if active.goes_on and policy is None:
        # Nothing is done twice.
        policy = RetryPolicy(requeue_on_stop=True)
    if (
        policy is not None
        and _is_no_failure(active, kind, is_raised=is_raised)
        and not issubclass(kind, ClusterStopping)
    ):
        return policy
    return policy if policy is not None and policy.allows_retry(active.retries, kind) else None


def _is_no_failure(active: ActiveTask, kind: type[BaseException], *, is_raised: bool) -> bool:
    """Return whether a task is only to be queued again: its cluster stops, or it goes on and the broker is away.

    An ``EnqueueError`` that the function has raised is about another task.
    """
    was_begun = active.goes_on and active.attempt > 0
    return issubclass(kind, ClusterStopping) or (was_begun and not is_raised and issubclass(kind, EnqueueError))


def _stopped_at_an_object(active: ActiveTask, reason: str) -> bool:
    """Return whether an attempt was lost, or reached its time limit, while it worked on an object.

    That uses up no retry: the next attempt gets further, or the object uses up its own tries.
    """
    from_outside = reason in (FailureReason.WORKER_LOST, FailureReason.TIMEOUT)
    return from_outside and active.goes_on and TaskCursor.objects.is_under_way(active.task_name, active.attempt)


def _emit_postponed(
    manager: lifecycle.LifecycleManager,
    active: ActiveTask,
    unrecorded: list[lifecycle.Event],
    earlier: list[lifecycle.Event],
    payload: dict[str, Any],
) -> None:
    events = _events_of_postponement(active, earlier, payload)
    lifecycle.record(manager, active.task_name, [*unrecorded, *events])
    lifecycle.call_hooks(manager, active.task_name, events)
    transaction.on_commit(lambda: progress.forget(active.task_name), using=coordination_db())


def _pause_if_asked(manager: lifecycle.LifecycleManager, active: ActiveTask) -> None:
    """Pause a task that waits for its retry, if somebody wanted that while it ran."""
    tasks = ActiveTask.objects.all()
    asked = tasks.filter(pk=active.pk, pause_requested_at__isnull=False).prefetch_related("pause_requested_by").first()
    if asked is not None and tasks.pause(asked, keep_locks=asked.pause_keeps_locks):
        actor = asked.pause_requested_by
        lifecycle.note_paused(manager, asked, keep_locks=asked.pause_keeps_locks, actor=actor)


def _events_of_postponement(
    active: ActiveTask, earlier: Sequence[lifecycle.Event], payload: dict[str, Any]
) -> list[lifecycle.Event]:
    next_run_at = ActiveTask.objects.filter(pk=active.pk).values_list("next_run_at", flat=True).first()
    facts = {**payload, "message": payload["error"], "next_run_at": next_run_at, "postponed": True}
    return [*earlier, ("retry", facts)]


def _was_postponed_by_worker(active: ActiveTask) -> bool:
    """Return whether the worker of this attempt has let the task wait; what others record tells no attempt."""
    events = TaskEvent.objects.filter(record__task_name=active.task_name, event="retry")
    return events.filter(payload__attempt=active.attempt, payload__postponed=True).exists()
