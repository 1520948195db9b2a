"""Lifecycle events: tell a manager's hook, and end a task in one transaction."""

from __future__ import annotations

import logging
from typing import Any, Protocol

from django.db import transaction
from django.utils import timezone

from powercrud_dashboard import progress
from powercrud_dashboard.models import ActiveTask
from powercrud_dashboard.models.coordination import coordination_db, write_transaction
from powercrud_dashboard.signals import task_finished

logger = logging.getLogger(__name__)


class LifecycleManager(Protocol):
    """What the rooms below the managers need of a manager."""

    def async_task_lifecycle(self, event: str, task_name: str, **payload: Any) -> None: ...

    def lifecycle_hook_failed(self, event: str, task_name: str, payload: dict[str, Any], error: Exception) -> None: ...


def emit(manager: LifecycleManager, event: str, task_name: str, **payload: Any) -> None:
    """Call the manager's lifecycle hook; whatever it raises is logged and harms nothing.

    The hook runs in a savepoint of its own: what a failing hook had written is undone, what
    the surrounding transaction has written is not.
    """
    payload.setdefault("timestamp", timezone.now())
    try:
        with transaction.atomic(using=coordination_db()):
            manager.async_task_lifecycle(event, task_name, **payload)
    except Exception as error:
        logger.exception("The lifecycle hook of %s failed at %r of task %s", type(manager).__name__, event, task_name)
        try:
            with transaction.atomic(using=coordination_db()):
                manager.lifecycle_hook_failed(event, task_name, payload, error)
        except Exception:
            logger.exception("The failed hook of task %s could not be recorded", task_name)


def end(manager: LifecycleManager, active: ActiveTask, event: str, **payload: Any) -> bool:
    """End a task: its row and locks go and ``event`` is recorded, all or nothing.

    Returns False, with nothing changed, if the task has ended already or has passed to another attempt.
    """
    task_name = active.task_name
    with write_transaction():
        released = ActiveTask.objects.all().end(active)
        if released is None:
            return False
        emit(manager, event, task_name, **payload)
        emit(manager, "cleanup", task_name, reason=event, conflict_lock_keys=released)
        transaction.on_commit(
            lambda: task_finished.send_robust(sender=type(manager), task_name=task_name, event=event),
            using=coordination_db(),
        )
    progress.forget(task_name)
    return True
