"""The project's manager, and what it does about what a launch may raise."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from powercrud_dashboard import exceptions
from powercrud_dashboard.async_manager import AsyncManager, RetryPolicy
from powercrud_dashboard.dashboard_manager import DashboardAsyncManager
from powercrud_dashboard.exceptions import (
    AllObjectsFailed,
    ArgumentsNotEditable,
    BrowserAnswer,
    ClusterStopping,
    DeletionRefused,
    EnqueueError,
    ErrorAnswer,
    FailedAfterCommit,
    FileTooLarge,
    HeldObject,
    InvalidParameters,
    MessageNotMovable,
    MiddlewareAnswered,
    ScheduleNotDeclared,
    SliceEnded,
    TaskAlreadyActive,
    TaskBusy,
    TaskCancelled,
    TaskConflict,
    TaskGivenUp,
    TaskNameTaken,
    TaskNotCancellable,
    TaskNotPausable,
    TaskNotRetryable,
    TaskPaused,
    UnimportableCallable,
    UnreadableSpec,
    WorkerLost,
    and_more,
)

#: What a task function may see that is no ``Exception``, and has to let pass.
STOPS: tuple[type[BaseException], ...] = (TaskCancelled, TaskGivenUp, TaskPaused, SliceEnded, ClusterStopping)
#: What the record of a failed task may name as its error.
ERRORS_OF_TASKS: tuple[type[Exception], ...] = (
    AllObjectsFailed,
    BrowserAnswer,
    DeletionRefused,
    ErrorAnswer,
    FailedAfterCommit,
    FileTooLarge,
    InvalidParameters,
    MiddlewareAnswered,
    ScheduleNotDeclared,
    UnreadableSpec,
    WorkerLost,
)
#: What a manager refuses.
REFUSALS: tuple[type[Exception], ...] = (
    ArgumentsNotEditable,
    MessageNotMovable,
    TaskNotCancellable,
    TaskNotPausable,
    TaskNotRetryable,
    UnimportableCallable,
)


class PaymentManager(DashboardAsyncManager):
    def async_task_lifecycle(self, event: str, task_name: str, **payload: Any) -> None:
        super().async_task_lifecycle(event, task_name, **payload)
        if event == "fail":
            logging.getLogger(__name__).error("%s failed: %s", task_name, payload["error"])


def names_of(held: Sequence[HeldObject]) -> str:
    return ", ".join(f"{item.model_label} {item.object_id}" for item in held)


def launch(path: str, *args: Any, user: Any = None, **kwargs: Any) -> tuple[str, str]:
    """Launch a task with three retries. Return its name, or "", and what to tell the person."""
    manager: AsyncManager = PaymentManager()
    try:
        name = manager.launch_async_task(path, *args, user=user, retry=RetryPolicy(max_retries=3), **kwargs)
    except TaskConflict as error:
        return "", and_more(names_of(error.held), error.total - len(error.held))
    except TaskAlreadyActive as error:
        return error.task_name, "It runs already."
    except (TaskBusy, TaskNameTaken, EnqueueError) as error:
        return "", str(error)
    return name, "It was launched."


def stop(task_name: str, user: Any = None) -> bool:
    """Cancel a task, if that is possible."""
    try:
        return PaymentManager().cancel_task(task_name, user=user)
    except exceptions.TaskNotCancellable:
        return False
