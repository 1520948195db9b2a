"""What is known of unfinished tasks beyond their records: progress, worker, heartbeat, locks, place in the queue."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db.models import Count
from django.utils import timezone

from powercrud_dashboard.models import ActiveTask, TaskRecord
from powercrud_dashboard.models.coordination import ActiveTaskState
from powercrud_dashboard.progress import Progress, newest

#: A task's first seconds say little about its pace.
TOO_EARLY_TO_TELL = timedelta(seconds=3)

#: Places in the queue beyond this are not told.
COUNTED_IN_QUEUE = 1_000

#: Running tasks that a refresh looks at for news; as many as there are workers, as a rule.
WATCHED = 200


@dataclass(frozen=True)
class LiveTask:
    active: ActiveTask
    progress: Progress
    lock_count: int
    #: From 1 for the task that is next; None if it does not wait, or far down the queue.
    position: int | None = None

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
    def waits_for_retry(self) -> bool:
        """Whether it has failed, and waits for its next try."""
        return self.active.next_run_at is not None

    @property
    def runs_again_in(self) -> timedelta | None:
        """How long it still waits for its next try; zero if that is due."""
        due = self.active.next_run_at
        return max(due - timezone.now(), timedelta()) if due else None

    @property
    def max_retries(self) -> int:
        """How often it may run again by itself."""
        return int(self.active.policy.get("max_retries", 0))

    @property
    def is_being_cancelled(self) -> bool:
        return self.active.cancel_requested_at is not None


def live_tasks(records: Iterable[TaskRecord]) -> dict[str, LiveTask]:
    """Return, by task name, the live state of those records that have not ended (one query, two if some are queued)."""
    names = [record.task_name for record in records if not record.is_finished]
    if not names:
        return {}
    rows: list[Any] = list(ActiveTask.objects.tasks().filter(task_name__in=names).annotate(lock_count=Count("locks")))
    progress = newest(rows)
    waits = any(row.state == ActiveTaskState.PENDING for row in rows)
    positions = queue_positions() if waits else {}
    return {
        row.task_name: LiveTask(row, progress[row.task_name], row.lock_count, positions.get(row.task_name))
        for row in rows
    }


def queue_positions() -> dict[str, int]:
    """Return the places of the first queued tasks, each in the queue of its own cluster."""
    waiting = ActiveTask.objects.ready().order_by("queued_at", "pk").values_list("task_name", "cluster")
    ahead: Counter[str] = Counter()
    positions = {}
    for task_name, cluster in waiting[:COUNTED_IN_QUEUE]:
        ahead[cluster] += 1
        positions[task_name] = ahead[cluster]
    return positions


def running_state() -> str:
    """Return a text that differs when anything that a page shows of a running task has changed."""
    rows = list(ActiveTask.objects.running().order_by("pk")[:WATCHED])
    progress = newest(rows)
    state = [(row.pk, row.attempt, row.heartbeat_at, row.cancel_requested_at, progress[row.task_name]) for row in rows]
    return hashlib.blake2s(repr(state).encode(), digest_size=8).hexdigest()
