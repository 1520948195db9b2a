"""A project's code in the pattern of PowerCRUD's guide to its async manager, with nothing changed but the import."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.http import HttpRequest, HttpResponse

from powercrud_dashboard.async_manager import AsyncManager
from powercrud_dashboard.models import TaskRecord
from tests.testapp.models import Project


def rebuild_project(project_id: int, *, task_key: str | None = None, manager_class: str | None = None, **kwargs: Any):
    manager = AsyncManager.resolve_manager(manager_class)
    project = Project.objects.get(pk=project_id)
    steps = ["read", "sort", "write"]
    for number, step in enumerate(steps, start=1):
        manager.update_progress(task_key, f"Step {number}/{len(steps)}: {step}")
    project.name = f"rebuilt with {kwargs.get('extra')}"
    project.save()
    return {"project": project_id, "steps": len(steps)}


def launch_custom_task(*, user: Any, affected_objects: Iterable[Project]) -> list[str]:
    """Reserve all objects, then launch a task for each."""
    manager = AsyncManager()
    projects = list(affected_objects)
    reserved = {"testapp.Project": {project.pk for project in projects}}
    if not manager.add_conflict_ids("custom-task", reserved):
        raise RuntimeError("Another task already works on these projects")
    return [
        manager.launch_async_task(
            "tests.testapp.guide.rebuild_project",
            project.pk,
            conflict_ids={"testapp.Project": {project.pk}},
            user=user,
            affected_objects=[str(project)],
            task_kwargs={"extra": "info"},
        )
        for project in projects
    ]


def rebuild_projects(modeladmin: Any, request: HttpRequest, queryset: Any) -> None:
    """An admin action."""
    launch_custom_task(user=request.user, affected_objects=queryset)


def start_rebuild(request: HttpRequest, pk: int) -> HttpResponse:
    """A view."""
    [name] = launch_custom_task(user=request.user, affected_objects=[Project.objects.get(pk=pk)])
    return HttpResponse(name)


class NotificationsAsyncManager(AsyncManager):
    """Follows what happens to its tasks; what it has heard is kept as objects of the project."""

    def async_task_lifecycle(self, event: str, task_name: str, **payload: Any) -> None:
        if event in ("create", "progress", "complete", "fail"):
            Project.objects.create(name=f"{event} {task_name} {payload['status']}")

    def handle_task_completion(self, task: Any, task_name: str) -> None:
        super().handle_task_completion(task, task_name)
        Project.objects.create(name=f"completion {task_name} {task.success} {task.result}")


def heard(task_name: str) -> list[str]:
    """Return what the manager above has heard of a task, in order."""
    names = Project.objects.filter(name__contains=task_name).order_by("pk").values_list("name", flat=True)
    return [name.replace(f" {task_name}", "") for name in names]


def is_over(task_name: str) -> bool:
    return TaskRecord.objects.finished().filter(task_name=task_name).exists()
