"""Records as the framework's task results."""

from __future__ import annotations

import json
import os
import pkgutil
import socket
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from powercrud_dashboard.contrib.django_tasks.framework import (
    DEFAULT_TASK_PRIORITY,
    DEFAULT_TASK_QUEUE_NAME,
    InvalidTask,
    Task,
    TaskError,
    TaskResult,
    TaskResultDoesNotExist,
    TaskResultStatus,
    task_backends,
)
from powercrud_dashboard.engine.policy import STAND_INS
from powercrud_dashboard.engine.spec import TaskSpec
from powercrud_dashboard.engine.values import to_json
from powercrud_dashboard.exceptions import TaskCancelled, UnreadableSpec
from powercrud_dashboard.models import ActiveTask, TaskEvent, TaskRecord, TaskStatus

#: What of a record a result is made of.
COLUMNS = (
    *("task_name", "func", "status", "manager_config", "payload", "task_args", "task_kwargs", "result", "attempts"),
    *("created_at", "started_at", "finished_at", "worker_host", "worker_pid"),
    *("failure_reason", "error", "exception_class", "traceback"),
)

_STATUSES = {
    TaskStatus.PENDING: TaskResultStatus.READY,
    TaskStatus.PAUSED: TaskResultStatus.READY,
    TaskStatus.IN_PROGRESS: TaskResultStatus.RUNNING,
    TaskStatus.SUCCESS: TaskResultStatus.SUCCESSFUL,
    TaskStatus.FAILED: TaskResultStatus.FAILED,
    # The framework knows no cancellation.
    TaskStatus.CANCELLED: TaskResultStatus.FAILED,
}


# The task of a result


def config_of(task: Any) -> dict[str, Any]:
    """Return what a task has beside its function, in plain JSON; what is usual is left out."""
    run_after: datetime | None = task.run_after
    config = {"backend": task.backend}
    if task.priority != DEFAULT_TASK_PRIORITY:
        config["priority"] = int(task.priority)
    if task.queue_name != DEFAULT_TASK_QUEUE_NAME:
        config["queue_name"] = task.queue_name
    if run_after is not None:
        config["run_after"] = run_after.isoformat()
    if task.takes_context:
        config["takes_context"] = True
    return config


def task_of(path: str, config: Mapping[str, Any]) -> Any:
    """Return the task that :func:`config_of` was called for, whose function is at this path.

    Raises:
        TaskResultDoesNotExist: if there is no such task any more, or the backend does not take it any more.
    """
    backend, run_after = config["backend"], config.get("run_after")
    given = {
        "priority": config.get("priority", DEFAULT_TASK_PRIORITY),
        "queue_name": config.get("queue_name", DEFAULT_TASK_QUEUE_NAME),
        "run_after": datetime.fromisoformat(run_after) if run_after else None,
        "backend": backend,
    }
    try:
        task = pkgutil.resolve_name(path)
        if isinstance(task, Task):
            return task.using(**given)
        takes_context = config.get("takes_context", False)
        return task_backends[backend].task_class(func=task, takes_context=takes_context, **given)
    except (ImportError, AttributeError, InvalidTask) as error:
        raise TaskResultDoesNotExist(f"{path} is no task of the backend {backend!r} any more: {error}") from error


def function_path(task: Any) -> str:
    """Return the path by which a worker finds the function of a task.

    Raises:
        InvalidTask: if there is none.
    """
    path: str = task.module_path
    try:
        found = None if task.func.__module__ == "__main__" else pkgutil.resolve_name(path)
    except (ImportError, AttributeError):
        found = None
    if isinstance(found, Task) and found.func == task.func:
        return f"{path}.func"
    if found is not None and found == task.func:
        return path
    raise InvalidTask(f"A worker would not find the task at {path}: name the task as its function is named.")


# The results


def new_result(task: Any, task_name: str, args: Sequence[Any], kwargs: Mapping[str, Any], at: datetime | None) -> Any:
    """Return the result of a task that was enqueued at this time."""
    return TaskResult(
        task=task,
        id=task_name,
        status=TaskResultStatus.READY,
        enqueued_at=at,
        started_at=None,
        finished_at=None,
        last_attempted_at=None,
        args=list(args),
        kwargs=dict(kwargs),
        backend=task.backend,
        errors=[],
        worker_ids=[],
    )


def result_of(record: TaskRecord) -> Any:
    """Return the result that a record tells of, with what is known of a running attempt."""
    task = task_of(record.func, record.manager_config)
    starts, errors = _attempts(record)
    status = _STATUSES[TaskStatus(record.status)]
    if not record.is_finished and (running := _running(record.task_name)) is not None:
        status = TaskResultStatus.RUNNING
        if running.attempt > len(starts):
            # Its start is recorded a little later.
            starts.append((running.started_at, _worker_id(*_place_of(running))))
    args, kwargs = _arguments(record)
    result = replace(
        new_result(task, record.task_name, args, kwargs, record.created_at),
        status=status,
        started_at=starts[0][0] if starts else None,
        last_attempted_at=starts[-1][0] if starts else None,
        finished_at=record.finished_at,
        errors=errors,
        worker_ids=[worker_id for _at, worker_id in starts],
    )
    if status == TaskResultStatus.SUCCESSFUL:
        object.__setattr__(result, "_return_value", record.result)
    return result


def as_started(result: Any, *, attempt: int, at: datetime, host: str, pid: int | None) -> Any:
    """Return a result as it was when an attempt began, whatever has happened since."""
    earlier = result.worker_ids[: attempt - 1]
    return replace(
        result,
        status=TaskResultStatus.RUNNING,
        started_at=result.started_at if earlier and result.started_at else at,
        last_attempted_at=at,
        finished_at=None,
        errors=result.errors[: attempt - 1],
        worker_ids=[*earlier, _worker_id(host, pid)],
    )


def _place_of(running: ActiveTask) -> tuple[str, int | None]:
    """Return the host and the process that run a task: this one if it runs in a transaction of the caller's."""
    worker = running.worker
    return (worker.host, worker.pid) if worker else (socket.gethostname(), os.getpid())


def _running(task_name: str) -> ActiveTask | None:
    running = ActiveTask.objects.running().filter(task_name=task_name)
    return running.select_related("worker").only("attempt", "started_at", "worker__host", "worker__pid").first()


def _attempts(record: TaskRecord) -> tuple[list[tuple[Any, str]], list[Any]]:
    """Return when and where each attempt began, and the errors of those that failed."""
    last = [_error_of(record)] if _STATUSES[TaskStatus(record.status)] == TaskResultStatus.FAILED else []
    if record.attempts == 0:
        return [], last
    if record.attempts == 1 and record.started_at is not None:
        return [(record.started_at, _worker_id(record.worker_host, record.worker_pid))], last
    starts: list[tuple[Any, str]] = []
    errors: list[Any] = []
    events = TaskEvent.objects.filter(record=record.pk, event__in=["start", "retry"]).order_by("pk")
    for event, at, facts in events.values_list("event", "timestamp", "payload"):
        if event == "start":
            starts.append((at, _worker_id(facts.get("worker_host"), facts.get("worker_pid"))))
        elif facts.get("postponed"):
            errors.append(_error(facts.get("exception_class"), facts.get("reason"), facts.get("traceback"), ""))
    return starts, [*errors, *last]


def _worker_id(host: str | None, pid: int | None) -> str:
    return f"{host}-{pid}" if pid else str(host or "")


def _error_of(record: TaskRecord) -> Any:
    if record.status == TaskStatus.CANCELLED:
        return _error(_path(TaskCancelled), "", "", "The task was cancelled.")
    return _error(record.exception_class, record.failure_reason, record.traceback, record.error)


def _error(exception_class: str | None, reason: str | None, traceback: str | None, text: str) -> Any:
    path = exception_class or _path(STAND_INS.get(reason or "", Exception))
    shown = traceback or f"{path}: {text}"
    return TaskError(exception_class_path=path, traceback=shown if shown.endswith("\n") else f"{shown}\n")


def _path(kind: type[BaseException]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _arguments(record: TaskRecord) -> tuple[Sequence[Any], Mapping[str, Any]]:
    try:
        spec = TaskSpec.from_signed(record.payload)
    except UnreadableSpec:
        # After a change of SECRET_KEY. What the pages show may be cut.
        return record.task_args, record.task_kwargs
    return spec.args, spec.kwargs


# Return values


def as_return_value(value: Any) -> Any:
    """Return a value as plain JSON, in which it is stored.

    Raises:
        TypeError: if it has something that JSON does not have.
        ValueError: if it can't be stored whole.
    """
    plain = json.loads(json.dumps(_plain(value), allow_nan=False))
    if to_json(plain) != plain:
        raise ValueError("The return value can't be stored: it is too long, too deep, or has characters such as NUL.")
    return plain


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"Unsupported value: {type(value)}") from error
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    raise TypeError(f"Unsupported type: {type(value)}")
