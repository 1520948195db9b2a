"""Signals for code that does not subclass a manager.

They are sent for the tasks that managers launch, in the process that made the change, after it was committed.
``sender`` is the class of the manager. Each signal has these arguments:

- ``task_name``: the task.
- ``event``: the name of the lifecycle event, such as ``"fail"``.
- ``attempt``: the number of the attempt; None where the event is not that of an attempt.
- ``payload``: what a manager's ``async_task_lifecycle`` gets.

What a receiver raises is logged with its traceback, shown on the timeline of the task, and harms nothing. In a worker
the receivers are called by a thread of their own, as hooks are.
"""

from __future__ import annotations

from asyncio import CancelledError
from functools import wraps
from typing import Any

from django.dispatch import Signal

__all__ = [
    "task_cancelled",
    "task_cleaned",
    "task_completed",
    "task_created",
    "task_dismissed",
    "task_event",
    "task_failed",
    "task_finished",
    "task_paused",
    "task_progress",
    "task_reopened",
    "task_resumed",
    "task_retried",
    "task_started",
]


class TaskSignal(Signal):
    """A signal each of whose receivers is called, whatever the others do."""

    def _live_receivers(self, sender: Any) -> tuple[list[Any], list[Any]]:
        # Django calls the rest of them only after an ``Exception``, and if the receiver has a name.
        synchronous, asynchronous = super()._live_receivers(sender)
        return [_robust(receiver) for receiver in synchronous], [_robust_async(receiver) for receiver in asynchronous]


def _robust(receiver: Any) -> Any:
    @wraps(receiver)
    def call(**facts: Any) -> Any:
        try:
            return receiver(**facts)
        except NO_EXCEPTIONS as error:
            raise _as_exception(error) from error

    return call


def _robust_async(receiver: Any) -> Any:
    @wraps(receiver)
    async def call(**facts: Any) -> Any:
        try:
            return await receiver(**facts)
        except NO_EXCEPTIONS as error:
            raise _as_exception(error) from error

    return call


#: Errors of a receiver that Django lets through, to the caller and past the other receivers.
NO_EXCEPTIONS = (SystemExit, CancelledError)


def _as_exception(error: BaseException) -> RuntimeError:
    what = f"called sys.exit({error.code!r})" if isinstance(error, SystemExit) else f"raised {error!r}"
    return RuntimeError(f"It has {what}.")


#: Any lifecycle event, those without a signal of their own among them.
task_event = TaskSignal()

#: A task was launched. The payload has ``func``, ``label``, ``user``, ``task_args``, ``task_kwargs`` and
#: ``affected_objects``.
task_created = TaskSignal()

#: A worker began an attempt. The payload has ``worker_host`` and ``worker_pid``.
task_started = TaskSignal()

#: A task has told how far it is. The payload has ``message``, ``current`` and ``total``.
task_progress = TaskSignal()

#: A task has completed. The payload has ``result``.
task_completed = TaskSignal()

#: A task has failed for good. The payload has ``error``, ``exception_class``, ``traceback`` and ``reason``.
task_failed = TaskSignal()

#: A task was cancelled and has ended. The payload has ``actor``.
task_cancelled = TaskSignal()

#: A task has ended in any of these ways, once for each task: ``event`` is ``complete``, ``fail`` or ``cancel``.
task_finished = TaskSignal()

#: Somebody has retried an ended task, whose new name is ``new_task_name`` in the payload; or an attempt has failed and
#: the task waits for its automatic retry: then ``postponed`` is True and ``next_run_at`` the time.
task_retried = TaskSignal()

#: A task was paused. The payload has ``actor``.
task_paused = TaskSignal()

#: A paused task was queued again. The payload has ``actor``.
task_resumed = TaskSignal()

#: The locks of an ended task are released. The payload has ``reason`` and ``conflict_lock_keys``, their number.
task_cleaned = TaskSignal()

#: A failure was settled without a retry. The payload has ``actor``.
task_dismissed = TaskSignal()

#: A dismissed failure is open again. The payload has ``actor``.
task_reopened = TaskSignal()

#: The signal of each event that has one of its own.
BY_EVENT = {
    "create": task_created,
    "start": task_started,
    "progress": task_progress,
    "complete": task_completed,
    "fail": task_failed,
    "cancel": task_cancelled,
    "retry": task_retried,
    "pause": task_paused,
    "resume": task_resumed,
    "cleanup": task_cleaned,
    "dismiss": task_dismissed,
    "reopen": task_reopened,
}
