"""Signs of life, each read in one query whose cost does not grow with the history: workers, queues, clocks."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Count, DateTimeField, F, Max, Min, Value
from django.utils import timezone

from powercrud_dashboard.engine import plain, processes
from powercrud_dashboard.models import ActiveTask, TaskStatus, WorkerProcess
from powercrud_dashboard.models.coordination import ActiveTaskQuerySet, ActiveTaskState
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
            # One in the future counts as none: the clock was set back.
            is_alive = worker.lost_at is None and abs(found.read_at - worker.heartbeat_at) <= longest
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

        A worker that comes back has another identity; each takes the place of one. A process that goes on after it was
        declared lost has another row, with the same start.
        """
        by_heartbeat = sorted([*self.gone, *self.alive], key=lambda worker: worker.heartbeat_at)
        last_rows = {(it.host, it.pid, it.started_at): it for it in by_heartbeat}
        stopped = set(self.gone).intersection(last_rows.values())
        free = sorted(last_rows.values(), key=lambda worker: worker.started_at)
        missing = []
        for worker in sorted(stopped, key=lambda worker: worker.heartbeat_at):
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
    """The tasks of a queue that a worker may take now, those of plain django-q2 included."""

    tasks: int
    oldest_wait: timedelta


def with_message() -> ActiveTaskQuerySet:
    """Return the tasks of managers that may have one of the messages in an ORM broker's queue."""
    has_not_begun = [ActiveTaskState.PENDING, ActiveTaskState.PAUSED]
    return ActiveTask.objects.all().tasks().filter(state__in=has_not_begun).exclude(queue_receipt="")


def plain_waiting(recorded: int, messages: int, of_managers: int) -> int:
    """Return how many tasks of plain django-q2 wait.

    Args:
        recorded: those that are recorded: clusters record the oldest ones.
        messages: the messages in the ORM broker's queue.
        of_managers: those of them that are for tasks of managers.
    """
    return max(recorded, messages - of_managers)


def waiting_by_queue() -> dict[str, Waiting]:
    """Return what waits in each queue with a waiting task, in one query."""
    found: dict[str, dict[str, tuple[int, timedelta]]] = {}
    for kind, cluster, tasks, since, now in _waiting_rows():
        of_queue = found.setdefault(cluster or queue.main_cluster(), {})
        before, wait = of_queue.get(kind, (0, timedelta()))
        of_queue[kind] = before + tasks, max(wait, _since(since, now))
    waiting = {name: _waiting(of_queue) for name, of_queue in found.items()}
    return {name: its for name, its in waiting.items() if its.tasks}


def _waiting(numbers: dict[str, tuple[int, timedelta]]) -> Waiting:
    """Return what waits in a queue, from the numbers of ``_waiting_rows`` and the longest wait of each kind."""
    none = 0, timedelta()
    tasks, oldest = numbers.get(_READY, none)
    recorded, recorded_wait = numbers.get(_RECORDED, none)
    messages, message_wait = numbers.get(_MESSAGES, none)
    of_managers, _wait = numbers.get(_OF_MANAGERS, none)
    unrecorded_wait = message_wait if messages > of_managers else timedelta()
    return Waiting(tasks + plain_waiting(recorded, messages, of_managers), max(oldest, recorded_wait, unrecorded_wait))


_READY, _RECORDED, _MESSAGES, _OF_MANAGERS = "ready", "recorded", "messages", "of managers"


def _waiting_rows() -> Iterable[tuple[str, str, int, datetime, datetime]]:
    """Return kind, queue, number and the oldest time of what waits, and the time now."""

    def by_queue(kind: str, rows: Any, name: str, since: str) -> Any:
        figures = {"tasks": Count("pk"), "since": Min(since), "now": Max(Now(), output_field=DateTimeField())}
        counted = rows.order_by().values(queue=F(name)).annotate(kind=Value(kind), **figures)
        return counted.values_list("kind", "queue", "tasks", "since", "now")

    ready = ActiveTask.objects.ready().filter(missing_since=None)
    recorded = plain.unfinished().filter(status=TaskStatus.PENDING)
    others = [by_queue(_RECORDED, recorded, "cluster", "created_at")]
    if (messages := queue.untaken_messages()) is not None:
        others.append(by_queue(_OF_MANAGERS, with_message(), "cluster", "queued_at"))
        # Their lock is the time of the launch, until a cluster takes them.
        others.append(by_queue(_MESSAGES, messages, "key", "lock"))
    rows: Iterable[Any] = by_queue(_READY, ready, "cluster", "queued_at").union(*others, all=True)
    return rows


def _since(moment: datetime, now: datetime) -> timedelta:
    return max(now - moment, timedelta())
