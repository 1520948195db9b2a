"""The backend: it enqueues tasks on django-q2 and finds their results in the history."""

from __future__ import annotations

import uuid
from typing import Any

from django.core.checks import CheckMessage, Error
from django.core.exceptions import ImproperlyConfigured

from powercrud_dashboard.conf import SETTING_NAME, app_settings
from powercrud_dashboard.contrib.django_tasks import results
from powercrud_dashboard.contrib.django_tasks.framework import (
    DEFAULT_TASK_PRIORITY,
    BaseTaskBackend,
    InvalidTask,
    TaskResultDoesNotExist,
)
from powercrud_dashboard.contrib.django_tasks.manager import DjangoTasksManager
from powercrud_dashboard.contrib.django_tasks.options import BackendOptions, problems
from powercrud_dashboard.engine import launch
from powercrud_dashboard.exceptions import UnimportableCallable
from powercrud_dashboard.models import TaskRecord
from powercrud_dashboard.text import storable

_NO_HISTORY = f"{SETTING_NAME}['DASHBOARD_RECORDER'] is None: there is no history that keeps the results of tasks."


class DjangoQ2Backend(BaseTaskBackend):
    """Runs the tasks of Django's tasks framework on django-q2, with records on the pages."""

    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    #: True if the option ``clusters`` distributes the tasks of a queue by their priorities.
    supports_priority = False

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        self._params = params
        self._options = BackendOptions.of(self.options)
        self.supports_priority = self._options.has_any_priorities

    def validate_task(self, task: Any) -> None:
        """Check that the backend can run the task.

        Raises:
            InvalidTask: if it can't.
        """
        super().validate_task(task)
        if task.priority != DEFAULT_TASK_PRIORITY and not self._options.has_priorities(task.queue_name):
            raise InvalidTask(f"Backend does not support setting priority of tasks in the queue {task.queue_name!r}.")

    def enqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        """Launch the task, as a part of the open transaction if there is one, and return its result.

        Raises:
            InvalidTask: if the backend, or a worker, can't run the task.
            TypeError: if the arguments are not JSON, or do not fit the function.
            EnqueueError: if the broker does not take the task.
        """
        self.validate_task(task)
        if app_settings.DASHBOARD_RECORDER is None:
            raise ImproperlyConfigured(_NO_HISTORY)
        new = results.new_result(task, str(uuid.uuid4()), args, kwargs, None)
        runs_here = launch.runs_in_caller()
        manager = DjangoTasksManager(results.config_of(task))
        try:
            name = manager.launch_async_task(
                results.function_path(task),
                task_args=new.args,
                task_kwargs=new.kwargs,
                # What runs here may raise: then it is found by this name.
                task_key=new.id if runs_here else None,
                label=task.name,
                shown_func=task.module_path,
                cluster=self._options.cluster(task.queue_name, task.priority) or None,
                timeout=self._options.timeout,
                retry=self._options.retry,
                run_after=task.run_after,
            )
        except UnimportableCallable as error:
            raise InvalidTask(str(error)) from error
        except BaseException as error:
            if not runs_here:
                raise
            if isinstance(error.__cause__, KeyboardInterrupt):
                raise error.__cause__ from None
            return self._result_of_failure(new.id, error)
        return self.get_result(name) if runs_here or manager.enqueued is None else manager.enqueued

    def _result_of_failure(self, task_name: str, error: BaseException) -> Any:
        """Return the result of a task that has failed in this process; raise the error if the task was not begun."""
        try:
            result = self.get_result(task_name)
        except TaskResultDoesNotExist:
            result = None
        if result is None or not result.worker_ids:
            raise error
        return result

    def get_result(self, result_id: Any) -> Any:
        """Return the result of the task with this name, in whichever process it was enqueued.

        Raises:
            TaskResultDoesNotExist: if there is no record of it, or it belongs to another backend.
        """
        named = TaskRecord.objects.filter(task_name=storable(str(result_id)), manager_class=_MANAGER)
        record = named.only(*results.COLUMNS).first()
        if record is None or record.manager_config.get("backend") != self.alias:
            raise TaskResultDoesNotExist(result_id)
        return results.result_of(record)

    def check(self, **kwargs: Any) -> list[CheckMessage]:
        """Return what is wrong with the backend's settings."""
        found = list(problems(self.alias, self._params))
        if app_settings.DASHBOARD_RECORDER is None:
            hint = "Name a recorder, or use another backend."
            found.append(Error(f"TASKS[{self.alias!r}]: {_NO_HISTORY}", hint=hint, id="powercrud_dashboard.E031"))
        return found


_MANAGER = f"{DjangoTasksManager.__module__}.{DjangoTasksManager.__qualname__}"
