"""Signs of life, each read in one query whose cost does not grow with the history: workers, queues, clocks."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Count, DateTimeField, Max, Min
from django.utils import timezone

from powercrud_dashboard.engine import processes
from powercrud_dashboard.models import ActiveTask, WorkerProcess
from powercrud_dashboard.models.database import Now
from powercrud_dashboard.q2 import queue

#: Clocks that differ by more than this from the database's are apart.
CLOCK_TOLERANCE = timedelta(seconds=5)


@dataclass
class Workers:
    """The workers of clusters: those that send heartbeats, and those that have stopped without saying so."""

    alive: list[WorkerProcess] = field(default_factory=list)
    gone: list[WorkerProcess] = field(default_factory=list)
    #: By the database's clock.
    read_at: datetime = field(default_factory=timezone.now)
    #: How far the clock of this host is ahead of the database's; None without a worker's row to tell by.
    own_offset: timedelta | None = None

    @classmethod
    def now(cls) -> Workers:
        """Read them, in one query."""
        found = cls()
        longest = timedelta(seconds=processes.max_heartbeat_age())
        rows: list[Any] = list(WorkerProcess.objects.exclude(cluster="").annotate(read_at=Now()))
        if rows:
            found.read_at = rows[0].read_at
            found.own_offset = timezone.now() - found.read_at
        for worker in rows:
            is_alive = worker.lost_at is None and worker.heartbeat_at >= found.read_at - longest
            (found.alive if is_alive else found.gone).append(worker)
        return found

    @property
    def lost(self) -> list[WorkerProcess]:
        """Those of the gone that stopped so long ago that workers which stopped with them are known to be gone too."""
        seconds = processes.max_heartbeat_age() + processes.idle_heartbeat_interval() + processes.HEARTBEAT_INTERVAL
        return [it for it in self.gone if it.heartbeat_at < self.read_at - timedelta(seconds=seconds)]

    @property
    def queues(self) -> set[str]:
        """The names of the queues for which a worker runs."""
        return {worker.cluster for worker in self.alive}

    @property
    def not_replaced(self) -> list[WorkerProcess]:
        """The workers that have stopped and in whose place no other of their queue was started since.

        A worker that comes back has another identity; each takes the place of one.
        """
        free = sorted([*self.alive, *self.gone], key=lambda worker: worker.started_at)
        missing = []
        for worker in sorted(self.gone, key=lambda worker: worker.heartbeat_at):
            later = (it for it in free if it.cluster == worker.cluster and it.started_at > worker.heartbeat_at)
            if (successor := next(later, None)) is None:
                missing.append(worker)
            else:
                free.remove(successor)
        return missing

    @property
    def wrong_clocks(self) -> dict[str, timedelta]:
        """How far the clocks of hosts are ahead of the database's, where that is too much."""
        newest_last = sorted(self.alive, key=lambda worker: worker.heartbeat_at)
        offsets = {worker.host: worker.clock_offset for worker in newest_last}
        if self.own_offset is not None:
            offsets[socket.gethostname()] = self.own_offset
        return {host: offset for host, offset in offsets.items() if abs(offset) > CLOCK_TOLERANCE}


@dataclass(frozen=True)
class Waiting:
    """The tasks of a queue that a worker may take now."""

    tasks: int
    oldest_wait: timedelta


def waiting_by_queue() -> dict[str, Waiting]:
    """Return what waits in each queue with a waiting task, in one query."""
    ready = ActiveTask.objects.ready().filter(missing_since=None).order_by()
    rows = ready.values("cluster").annotate(
        tasks=Count("pk"), since=Min("queued_at"), now=Max(Now(), output_field=DateTimeField())
    )
    found: dict[str, Waiting] = {}
    for row in rows:
        name, wait = row["cluster"] or queue.main_cluster(), _since(row["since"], row["now"])
        before = found.get(name, Waiting(0, timedelta()))
        found[name] = Waiting(before.tasks + row["tasks"], max(before.oldest_wait, wait))
    return found


def _since(moment: datetime, now: datetime) -> timedelta:
    return max(now - moment, timedelta())
