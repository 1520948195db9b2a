"""Send tasks that wait for their next try to the broker: when they are due, or when somebody says so."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from powercrud_dashboard import failing, lifecycle, queueing
from powercrud_dashboard.exceptions import EnqueueError
from powercrud_dashboard.launching import enqueueing, send
from powercrud_dashboard.models import ActiveTask, FailureReason
from powercrud_dashboard.models.coordination import write_transaction

logger = logging.getLogger(__name__)

#: Finds the manager of a task by the path that was recorded at launch.
ManagerOf = Callable[[str], lifecycle.LifecycleManager]

#: Tasks sent in one go; the rest follows in the next.
SENT_AT_ONCE = 100


def send_due(manager_of: ManagerOf) -> int:
    """Send the tasks whose time has come; return how many were sent."""
    due = ActiveTask.objects.due().order_by("next_run_at")[:SENT_AT_ONCE]
    return sum(_resend(manager_of(active.manager_class), active) for active in due)


def run_now(manager: lifecycle.LifecycleManager, active: ActiveTask, user: Any = None) -> bool:
    """Send a task that waits for its next try at once. Return whether it still waited."""
    return _resend(manager, active, actor=user)


def _resend(manager: lifecycle.LifecycleManager, active: ActiveTask, actor: Any = None) -> bool:
    try:
        package = queueing.unsign(active.payload)
    except Exception as error:
        # Unpickling imports the arguments' classes, which a deploy may have removed.
        logger.exception("Task %s can't be tried again", active.task_name)
        text = f"It could not be tried again: {type(error).__name__}: {error}"
        lifecycle.end(manager, active, "fail", **failing.verdict(FailureReason.NOT_QUEUED, text))
        return False
    enqueue = enqueueing(active.manager_class, active.task_name, package, sync=False)
    try:
        with write_transaction():
            if not ActiveTask.objects.all().queue_again(active):
                return False
            if actor is not None:
                lifecycle.emit(manager, "run_now", active.task_name, actor=actor)
            active.refresh_from_db()
            failed = send(manager, active, enqueue)
    except EnqueueError:
        # Recorded, and logged, where it happened.
        return False
    return failed is None
