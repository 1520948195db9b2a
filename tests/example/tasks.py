"""Task functions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from powercrud_dashboard.async_context import (
    TaskContext,
    get_current_task,
    register_descendant_conflicts,
    skip_nested_async,
    task_context,
    track,
)
from powercrud_dashboard.async_manager import ALL_OBJECTS
from powercrud_dashboard.dashboard_manager import DashboardAsyncManager
from powercrud_dashboard.exceptions import TaskCancelled
from tests.testapp.models import Project


def rename(pks: list[int], prefix: str, task_key: str = "") -> dict[str, Any]:
    """Rename projects, and report how far it is."""
    task: TaskContext | None = get_current_task()
    if task is not None:
        task.update_progress("Begins", current=0, total=len(pks))
    renamed = 0
    for project in track(Project.objects.filter(pk__in=pks), description="Rename"):
        if not register_descendant_conflicts("testapp.Project", [project.pk]):
            continue
        project.name = f"{prefix} {project.name}"
        project.save(update_fields=["name"])
        renamed += 1
    if task is not None:
        task.log(f"{renamed} renamed", level="info")
        task.check_cancelled()
    return {"renamed": renamed, "task": task_key}


def rename_all(prefix: str, user: Any = None) -> str | None:
    """Launch it for all projects, unless this runs in a task already."""
    if skip_nested_async():
        return None
    pks = list(Project.objects.values_list("pk", flat=True))
    return DashboardAsyncManager().launch_async_task(
        rename, pks, prefix, user=user, conflict_ids={"testapp.Project": ALL_OBJECTS}, label="Rename all projects"
    )


def follow(task_name: str, steps: Iterable[str]) -> list[str]:
    """Report steps from a process that is no worker, until somebody cancels the task."""
    done: list[str] = []
    try:
        with task_context(task_name) as task:
            for step in steps:
                task.update_progress(step)
                done.append(step)
    except TaskCancelled:
        done.append("cancelled")
    return done
