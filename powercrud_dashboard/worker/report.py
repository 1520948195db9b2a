"""What django-q2 gets of the run of a task, whose end is recorded already as a rule."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from django_q.exceptions import TimeoutException
from django_q.signals import post_execute_in_worker

from powercrud_dashboard.engine.spec import TaskCall
from powercrud_dashboard.exceptions import TaskGivenUp, WorkerLost
from powercrud_dashboard.q2 import queue
from powercrud_dashboard.text import LONG, error_summary, is_printable
from powercrud_dashboard.worker import messages


@dataclass(frozen=True)
class NotRun:
    """Returned to django-q2 for a delivery that ran nothing.

    Unless it is ``acknowledged``, the message is delivered again; at once if it ``is_for_others``.
    """

    acknowledged: bool
    is_for_others: bool = False


class TimeLimitReached(TimeoutException, Exception):  # type: ignore[misc]  # django-q2 has no types
    """Stands for the time limit in a retry policy, where ``Exception`` covers it too."""


class TaskStopped(RuntimeError):
    """Tells django-q2 of an end that would end its worker process as well."""


@dataclass(frozen=True)
class Ending:
    """How a run ended: the lifecycle event with its payload, and what django-q2 gets of it."""

    event: str
    payload: dict[str, Any]
    result: Any = None
    error: BaseException | None = None


@dataclass(frozen=True)
class _LastRun:
    """The task that this process ran last."""

    task_name: str = ""
    attempt: int = 0
    is_recorded: bool = False
    #: The receipt of the message that was taken out of the queue with the end.
    withdrawn: str = ""
    #: How it ended, if that is known.
    ending: Ending | None = None


_last_run = _LastRun()


def _after_execution(sender: object, task: dict[str, Any], **kwargs: Any) -> None:
    """Prepare what django-q2's monitor gets."""
    global _last_run
    last, _last_run = _last_run, _LastRun()
    result = task.get("result")
    if isinstance(task.get("func"), TaskCall):
        if task.get("success") is False and task["name"] != last.task_name:
            # Interrupted before the claim, as by the time limit of a process that was frozen: it is still to be run.
            result = NotRun(acknowledged=False)
        # The monitor needs the name only.
        task["func"] = str(task["func"])
        queue.mark_as_managed(task)
    if isinstance(result, NotRun):
        # It must not overwrite the result of the delivery that runs the task. django-q2 saves nothing of a successful
        # task with "save" off that is not cached either.
        task.update(result=None, success=True, save=False, cached=False)
        if not result.acknowledged:
            messages.leave_in_queue(task["id"], is_for_others=result.is_for_others)
            task["ack_id"] = None
        return
    if task["name"] != last.task_name:
        return
    if not last.is_recorded:
        # The hook ends the task from what django-q2 saves, so that it must be saved, whatever the options are.
        own_hook = task.get("hook")
        # django-q2 saves a row for each id, and calls only the hook that it was first saved with. A delivery before
        # this one may have had none.
        task["id"] = uuid.uuid4().hex
        task["kwargs"] = {**task["kwargs"], queue.ATTEMPT: last.attempt, queue.ENDING: _told_of(last.ending)}
        if own_hook != queue.COMPLETION_HOOK:
            task["kwargs"][queue.OWN_HOOK] = own_hook
        task.update(save=True, cached=False, hook=queue.COMPLETION_HOOK)
    elif task.get("hook") == queue.COMPLETION_HOOK:
        # The monitor saves one task after the other; it has nothing to do for this one.
        task["hook"] = None
    if last.withdrawn and str(task.get("ack_id")) == last.withdrawn:
        task["ack_id"] = None


def _told_of(ending: Ending | None) -> dict[str, str]:
    """Return what django-q2 does not save of an end: the event, and for a failure its reason and exception."""
    if ending is None:
        return {}
    facts = {name: str(ending.payload.get(name, "")) for name in ("reason", "exception_class")}
    kind = kind_of(ending.error)
    return {"event": ending.event, "kind": f"{kind.__module__}.{kind.__qualname__}", **facts}


def kind_of(error: BaseException | None) -> type[BaseException]:
    """Return the class that stands for an error in a retry policy."""
    if isinstance(error, TaskGivenUp):
        return WorkerLost
    return TimeLimitReached if isinstance(error, TimeoutException) else type(error) if error else Exception


post_execute_in_worker.connect(_after_execution, dispatch_uid="powercrud_dashboard.after_execution")


def note_last_run(
    task_name: str, attempt: int, is_recorded: bool, withdrawn: str = "", ending: Ending | None = None
) -> None:
    global _last_run
    # Of an end that is recorded nothing more is needed, such as its result.
    _last_run = _LastRun(task_name, attempt, is_recorded, withdrawn, None if is_recorded else ending)


def for_django_q(error: BaseException, name: str) -> BaseException:
    """Return what to raise in django-q2's worker.

    It survives only an Exception that can be printed, and its own time limit.
    """
    if isinstance(error, Exception | TimeoutException) and is_printable(error):
        return error
    stopped = TaskStopped(f"{name} was stopped by {error_summary(error, LONG)}")
    stopped.__cause__ = error
    return stopped
