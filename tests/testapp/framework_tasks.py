"""Functions that are tasks of Django's tasks framework; for tests of where there is one."""

from __future__ import annotations

import asyncio
import importlib
from pathlib import Path
from typing import Any

from django.conf import settings

from powercrud_dashboard.async_context import get_current_task, track
from tests.testapp.models import Project

framework = importlib.import_module(settings.TASKS_FRAMEWORK)
task = framework.task


class Unprintable(Exception):
    """An error of a module that is no built-in one."""


@task
def nothing(*args: Any, **kwargs: Any) -> None:
    return None


@task()
def multiply(left: int, right: int = 1) -> int:
    return left * right


@task()
def echo(*args: Any, **kwargs: Any) -> dict[str, Any]:
    return {"args": list(args), "kwargs": kwargs}


@task(queue_name="queue_1")
def in_queue_1() -> str:
    return "queue 1"


@task()
async def add_in_coroutine(left: int, right: int) -> int:
    await asyncio.sleep(0)
    count = await Project.objects.acount()
    return left + right + count


@task()
def raise_value_error(message: str = "it broke") -> None:
    raise ValueError(message)


@task()
def raise_nested() -> None:
    raise ValueError(ValueError("inside"))


@task()
def raise_own_error() -> None:
    raise Unprintable("an error of ours")


@task()
def leave() -> None:
    raise SystemExit("it leaves")


@task()
def interrupt() -> None:
    raise KeyboardInterrupt("it interrupts")


@task()
def return_an_object() -> Any:
    return object()


@task()
def return_text(size: int, character: str = "x") -> str:
    return character * size


@task()
def return_json() -> Any:
    return {"tuple": (1, 2), "bytes": b"text", 3: [None, True, 1.5]}


@task(takes_context=True)
def own_id(context: Any) -> str:
    return context.task_result.id


@task(takes_context=True)
def describe_context(context: Any, secret: str = "", *, fail_before: int = 0) -> dict[str, Any]:
    result = context.task_result
    if context.attempt < fail_before:
        raise ValueError(f"attempt {context.attempt}")
    return {
        "attempt": context.attempt,
        "status": result.status,
        "workers": len(result.worker_ids),
        "errors": [error.exception_class_path for error in result.errors],
        "started": result.started_at is not None,
    }


@task()
def report(steps: int) -> str:
    for _step in track(range(steps), description="Stepping"):
        pass
    current = get_current_task()
    current.log("it has stepped")
    return current.task_name


@task()
def wait_for(path: str) -> str:
    while not Path(path).exists():
        get_current_task().check_cancelled()
    return "found"


@task()
def enqueue_another(number: int) -> str:
    return multiply.enqueue(number, 2).id


def _plain(number: int) -> int:
    return number


#: Its path leads to no task.
under_another_name = task(_plain)


@task()
def run_at_once(number: int) -> str:
    return multiply.using(backend="immediate").enqueue(number, 2).id
