"""What django-q2 calls by its dotted path after it has saved a finished task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django_q.signals import call_hook

from powercrud_dashboard.engine import cleanup
from powercrud_dashboard.q2 import queue

if TYPE_CHECKING:
    from django_q.models import Task


def task_completion_hook(task: Task) -> None:
    """End a task whose end its worker could not record, as while the database was away.

    A worker records the end of a task before django-q2 saves it, so that as a rule there is nothing left to do.
    """
    try:
        cleanup.finish_from(task)
    finally:
        if own_hook := queue.own_hook_of(task):
            task.hook = own_hook
            call_hook(type(task), task)
