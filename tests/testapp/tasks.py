"""Task functions that the tests launch. They say what they did in files, for other processes to see."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import connection, transaction
from django.db.backends.signals import connection_created

from powercrud_dashboard.async_context import get_current_task, register_descendant_conflicts, task_context, track
from powercrud_dashboard.async_manager import AsyncManager
from powercrud_dashboard.models import ActiveTask
from tests.testapp.models import Project


def add(left: int, right: int = 0) -> int:
    return left + right


def count_items(items: Iterable[Any]) -> int:
    return len(list(items))


def nested(depth: int, value: Any) -> Any:
    """Return the value in so many lists."""
    for __ in range(depth):
        value = [value]
    return value


class Scale(list[int]):
    """A callable that can't be hashed, as lists can't."""

    def __call__(self, value: int, *, task_key: str = "") -> list[int]:
        return [factor * value for factor in self] if task_key else []


double_and_triple = Scale([2, 3])


def fail(message: str = "it broke") -> None:
    raise ValueError(message)


def fail_until(attempt: int, *, task_key: str = "") -> int:
    """Fail until this is the so many'th attempt."""
    this = ActiveTask.objects.get(task_name=task_key).attempt
    if this < attempt:
        raise LookupError(f"not yet, this is attempt {this}")
    return this


def leave() -> None:
    raise SystemExit("the task wanted out")


def rebuild_project(project_id: int, *, task_key: str = "", manager_class: str = "", **kwargs: Any) -> dict[str, Any]:
    manager = AsyncManager.resolve_manager(manager_class)
    project = Project.objects.get(pk=project_id)
    steps = ["read", "build", "write"]
    for number, step in enumerate(steps, start=1):
        manager.update_progress(task_key, f"Step {number}/{len(steps)}: {step}")
    return {"project": project.pk, "steps": len(steps), **kwargs}


def injected(*, task_key: str, manager_class: str) -> list[str]:
    return [task_key, manager_class]


def echo(**kwargs: Any) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name not in ("task_key", "manager_class")}


def wait_for_file(path: str, poll: float = 0.02) -> str:
    """Run until somebody makes the file; say by a file of its own that it has begun."""
    Path(f"{path}.started-{os.getpid()}").touch()
    while not Path(path).exists():
        time.sleep(poll)
    return path


def run_until_told_to_stop(path: str, then: float = 0) -> str:
    """Run until the cluster is being stopped, and for so many seconds longer."""
    Path(f"{path}.started-{os.getpid()}").touch()
    while not get_current_task().stopping:
        time.sleep(0.02)
    time.sleep(then)
    return "told"


def log_until_taken(line: str) -> None:
    """Log a line and end as soon as the reporter has it in hand."""
    context = get_current_task()
    context.log(line)
    while context.has_log_lines:
        time.sleep(0.001)


def work_in_small_steps(path: str, *, stubborn: bool = False) -> str:
    """Leave a line in a ledger for each step, until somebody makes the file; if stubborn, go on past any error."""
    me = f"{os.getpid()}\n"
    with open(f"{path}.ledger", "a", buffering=1) as ledger:
        Path(f"{path}.started-{os.getpid()}").touch()
        while not Path(path).exists():
            with suppress(BaseException) if stubborn else nullcontext():
                ledger.write(me)
                time.sleep(0.005)
    return path


def ignore_everything(path: str) -> None:
    Path(f"{path}.started-{os.getpid()}").touch()
    while True:
        with suppress(BaseException):
            time.sleep(60)


def sleep_without_reporting(path: str, seconds: float) -> None:
    Path(f"{path}.started-{os.getpid()}").touch()
    time.sleep(seconds)


def swallow_errors(path: str) -> None:
    """Go on past the errors of each round, as loops over many objects do."""
    Path(f"{path}.started-{os.getpid()}").touch()
    while True:
        try:
            time.sleep(0.05)
        except Exception:
            continue


def count_runs(path: str, seconds: float = 0) -> int:
    """Leave one line for each time that this really runs."""
    with open(path, "a") as ledger:
        ledger.write(f"{os.getpid()}\n")
    time.sleep(seconds)
    return os.getpid()


def rename_in_transaction(project_id: int, path: str) -> str:
    """Report progress from within a transaction that stays open until the file is there."""
    with transaction.atomic():
        Project.objects.filter(pk=project_id).update(name="renamed")
        task = get_current_task()
        assert task is not None
        task.update_progress("half way", current=5, total=10)
        return wait_for_file(path)


def database_sessions(times: int) -> tuple[int, list[int]]:
    """Return the id of this process, and the PostgreSQL sessions that it has used, each time one from the pool."""
    sessions = []
    for _ in range(times):
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            sessions.append(cursor.fetchone()[0])
        connection.close()
    return os.getpid(), sessions


def track_projects(pks: Iterable[int], fail_at: int | None = None) -> int:
    done = 0
    for pk in track(list(pks), description="Working"):
        if pk == fail_at:
            raise LookupError(f"project {pk} is odd")
        done += 1
    return done


def lock_descendants(label: str, pks: list[int]) -> bool:
    return register_descendant_conflicts(label, pks)


def log_lines() -> None:
    task = get_current_task()
    assert task is not None
    task.log("first line")
    task.log("second line", "warning")


def unpicklable() -> Any:
    return lambda: None


def awkward_result() -> dict[str, Any]:
    return {"nul": "a\x00b", "nan": float("nan"), "surrogate": "\ud800", "set": {3, 1, 2}}


def debug_setting() -> bool:
    return settings.DEBUG


def touch_projects(*, pks: list[int], model: str) -> dict[str, Any]:
    return {"model": model, "touched": Project.objects.filter(pk__in=pks).update(archived=True)}


def connect(shop: str, options: Any, limit: int = 0, password: str = "", **more: Any) -> None:
    """Take arguments of many kinds, some of them secret."""


def read_file(path: str) -> str:
    return Path(path).read_text()


def fail_if(message: str, *, fails: bool) -> None:
    if fails:
        raise ValueError(message)


def mark_project(project: Project, *, cleaned_data: dict[str, Any]) -> None:
    project.name = f"{cleaned_data['prefix']}{project.name}"
    project.save()


def save_through_admin(pk: int, user_pk: int) -> None:
    """Save as a view of the admin does, from within a task."""
    from django.contrib import admin
    from django.http import HttpRequest

    from tests.testapp.models import SpecialProject

    project = SpecialProject.objects.get(pk=pk)
    project.name = "saved"
    admin.site.get_model_admin(SpecialProject).save_model(HttpRequest(), project, None, True)


def fail_with_a_secret(secret: str) -> None:
    password = secret  # noqa: F841 - a local variable, as a debugger's traceback would show it
    raise ValueError("no details")


def return_much(size: int) -> str:
    return "x" * size


_connections_made = 0


def _count_connection(**kwargs: Any) -> None:
    global _connections_made
    # Others are the reporter's and the watch's, which come and go.
    if threading.current_thread() is threading.main_thread():
        _connections_made += 1


connection_created.connect(_count_connection)


def connections_made() -> dict[str, int]:
    """Return how many connections the thread that runs tasks has opened in this process."""
    return {"pid": os.getpid(), "made": _connections_made}


def connections_made_by_a_query() -> dict[str, int]:
    Project.objects.exists()
    return connections_made()


def lock_more_in_transaction(pk: int, path: str, *, task_key: str = "") -> bool:
    """Lock one more object inside of a transaction, and keep that open until the file is there."""
    with transaction.atomic():
        locked = register_descendant_conflicts("testapp.Project", [pk])
        wait_for_file(path)
    return locked


def enter_its_context(*, task_key: str, manager_class: str) -> bool:
    """Return whether the context that it enters is the one that it has."""
    with task_context(task_key, manager_class) as context:
        return context is get_current_task()
