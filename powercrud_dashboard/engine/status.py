"""What a task's status and progress are, queued, running or ended."""

from __future__ import annotations

import time
from typing import Any

from powercrud_dashboard.engine.progress import Progress, read
from powercrud_dashboard.models import ActiveTask, TaskRecord, TaskStatus
from powercrud_dashboard.models.statuses import UNFINISHED
from powercrud_dashboard.q2 import queue

#: Seconds between two looks while waiting for a task's end.
POLL_INTERVAL = 0.05


def status_of(task_name: str) -> str | None:
    """Return the status; None if nothing is known of the task."""
    active = ActiveTask.objects.tasks().filter(task_name=task_name).values_list("state", flat=True).first()
    if active is not None:
        return str(active)
    recorded = TaskRecord.objects.filter(task_name=task_name).values_list("status", flat=True).first()
    if recorded is not None:
        return str(recorded)
    finished = queue.finished_task(task_name)
    if finished is None:
        return None
    return TaskStatus.SUCCESS.value if finished.success else TaskStatus.FAILED.value


def status_after(task_name: str, wait: int) -> str | None:
    """Return the status once the task has ended, but after ``wait`` milliseconds (no limit if negative) in any case."""
    deadline = time.monotonic() + wait / 1000
    while not has_ended(found := status_of(task_name)):
        if wait >= 0 and time.monotonic() >= deadline:
            break
        time.sleep(POLL_INTERVAL)
    return found


def has_ended(status: str | None) -> bool:
    """Return whether a task with this status needs no more waiting for."""
    return status not in UNFINISHED


def progress_of(task_name: str) -> Progress:
    """Return the newest progress, the last of a task that has ended."""
    found = read(task_name)
    if found is None:
        columns = ("message", "progress_current", "progress_total")
        recorded = TaskRecord.objects.filter(task_name=task_name).values_list(*columns).first()
        found = Progress(*recorded) if recorded is not None else Progress()
    return found


def described(task_name: str) -> dict[str, Any]:
    """Return what the progress endpoint answers."""
    status, found = status_of(task_name), progress_of(task_name)
    return {
        "task_name": task_name,
        "status": status or "unknown",
        "progress": found.message or None,
        "current": found.current,
        "total": found.total,
        "percent": found.percent,
        "finished": has_ended(status),
    }
