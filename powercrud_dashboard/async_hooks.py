"""What django-q2 calls by dotted path when it has saved a finished task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from powercrud_dashboard.async_manager import AsyncManager
from powercrud_dashboard.models import ActiveTask

if TYPE_CHECKING:
    from django_q.models import Task


def task_completion_hook(task: Task) -> None:
    """End a task that its worker could not end itself, such as while the database was away.

    A worker records the end of a task before django-q2 hears of it, so there is nothing left
    to do here as a rule.
    """
    active = ActiveTask.objects.tasks().filter(task_name=task.name).only("manager_class").first()
    if active is not None:
        AsyncManager.resolve_manager(active.manager_class).handle_task_completion(task, task.name)
