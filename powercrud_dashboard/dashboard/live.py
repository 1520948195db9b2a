"""What is known of unfinished tasks beyond their records: progress, worker, heartbeat, locks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from django.db.models import Count

from powercrud_dashboard.models import ActiveTask, TaskRecord
from powercrud_dashboard.progress import Progress, newest


@dataclass(frozen=True)
class LiveTask:
    active: ActiveTask
    progress: Progress
    lock_count: int

    @property
    def is_being_cancelled(self) -> bool:
        return self.active.cancel_requested_at is not None


def live_tasks(records: Iterable[TaskRecord]) -> dict[str, LiveTask]:
    """Return, by task name, the live state of those records that have not ended (one query)."""
    names = [record.task_name for record in records if not record.is_finished]
    if not names:
        return {}
    rows: list[Any] = list(ActiveTask.objects.tasks().filter(task_name__in=names).annotate(lock_count=Count("locks")))
    progress = newest(rows)
    return {row.task_name: LiveTask(row, progress[row.task_name], row.lock_count) for row in rows}
