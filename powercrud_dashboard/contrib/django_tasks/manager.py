"""The manager of the backend's tasks: it calls their functions as the framework does, and sends its signals."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from django.dispatch import Signal

from powercrud_dashboard.async_context import get_current_task
from powercrud_dashboard.contrib.django_tasks import results
from powercrud_dashboard.contrib.django_tasks.framework import (
    TaskContext,
    TaskResultStatus,
    task_backends,
    task_enqueued,
    task_finished,
    task_started,
)
from powercrud_dashboard.dashboard_manager import DashboardAsyncManager
from powercrud_dashboard.engine import calls
from powercrud_dashboard.engine.spec import TaskFunction

ENDS = ("complete", "fail", "cancel")


class DjangoTasksManager(DashboardAsyncManager):
    """Launches the tasks of a :class:`DjangoQ2Backend`.

    Its configuration is what a task has beside its function, in the form of ``results.config_of``.
    """

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        super().__init__(config)
        #: The result of the task that was launched last, if its hook was called in this process.
        self.enqueued: Any = None

    def wrap_function(self, func: TaskFunction) -> TaskFunction:
        return _TaskFunction(func, self.config["backend"], self.config.get("takes_context", False))

    def async_task_lifecycle(self, event: str, task_name: str, *, recorded: bool = False, **payload: Any) -> None:
        """Send the framework's signal for the event, if there is one."""
        super().async_task_lifecycle(event, task_name, recorded=recorded, **payload)
        if event == "create":
            task = results.task_of(payload["func"], self.config)
            arguments = payload["task_args"], payload["task_kwargs"]
            self.enqueued = results.new_result(task, task_name, *arguments, payload["timestamp"])
            self._send(task_enqueued, self.enqueued)
        elif event == "start":
            facts = {"attempt": payload["attempt"], "at": payload["timestamp"]}
            where = {"host": payload.get("worker_host", ""), "pid": payload.get("worker_pid")}
            self._send(task_started, results.as_started(self._result(task_name), **facts, **where))
        elif event in ENDS and (event == "complete" or not payload.get("late")):
            self._send_finished(self._result(task_name))

    def _result(self, task_name: str) -> Any:
        return task_backends[self.config["backend"]].get_result(task_name)

    def _send(self, signal: Signal, result: Any) -> None:
        signal.send_robust(type(task_backends[self.config["backend"]]), task_result=result)

    def _send_finished(self, result: Any) -> None:
        if result.status != TaskResultStatus.FAILED:
            self._send(task_finished, result)
            return
        try:
            # The framework's own receiver logs the exception that is being handled.
            raise FailedInWorker(result.errors[-1].traceback)
        except FailedInWorker:
            self._send(task_finished, result)


class FailedInWorker(Exception):
    """Stands for a task's error in the log. Its text is the traceback of that error."""

    def __init__(self, traceback: str) -> None:
        super().__init__(f"\n{traceback}")


@dataclass(frozen=True)
class _TaskFunction:
    """A task's function as a worker calls it: with the context if it takes that, and its result as JSON.

    Two of the same function are equal, so that its signature is found out once.
    """

    func: TaskFunction
    backend: str
    takes_context: bool

    #: A task gets the arguments that it was enqueued with, and no others.
    injects_nothing: ClassVar[bool] = True

    @property
    def __signature__(self) -> inspect.Signature:
        signature = inspect.signature(self.func)
        if not self.takes_context:
            return signature
        return signature.replace(parameters=list(signature.parameters.values())[1:])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.takes_context and (current := get_current_task()) is not None:
            args = (TaskContext(task_result=task_backends[self.backend].get_result(current.task_name)), *args)
        return results.as_return_value(calls.call(self.func, *args, **kwargs))
