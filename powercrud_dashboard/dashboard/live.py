"""What is known of unfinished tasks beyond their records: progress, worker, heartbeat, locks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db.models import Count
from django.utils import timezone

from powercrud_dashboard.models import ActiveTask, TaskRecord
from powercrud_dashboard.progress import Progress, newest

#: A task's first seconds say little about its pace.
TOO_EARLY_TO_TELL = timedelta(seconds=3)


@dataclass(frozen=True)
class LiveTask:
    active: ActiveTask
    progress: Progress
    lock_count: int

    @property
    def remaining(self) -> timedelta | None:
        """How much longer the task will take if it goes on as it has; None as long as that can't be told."""
        done, total = self.progress.current, self.progress.total
        if not done or not total or done > total or self.active.started_at is None:
            return None
        elapsed = timezone.now() - self.active.started_at
        return elapsed * (total - done) / done if elapsed >= TOO_EARLY_TO_TELL else None

    @property
    def silent_for(self) -> timedelta | None:
        """How long ago the worker was last heard of."""
        return timezone.now() - self.active.heartbeat_at if self.active.heartbeat_at else None

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
