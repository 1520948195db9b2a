"""Whether the workers keep up with the queue, in a few queries whose cost does not grow with the number of tasks."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db.models import (
    Count as CountOf,
)
from django.db.models import DateTimeField, DurationField, Exists, Max, Min, OuterRef, Q, Subquery
from django.utils import timezone
from django.utils.functional import cached_property
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from powercrud_dashboard.dashboard.formatting import duration
from powercrud_dashboard.dashboard.listing import CAP, CappedCount, Count
from powercrud_dashboard.dashboard.live import max_heartbeat_age
from powercrud_dashboard.models import ActiveTask, TaskRecord, WorkerProcess
from powercrud_dashboard.models.database import Now
from powercrud_dashboard.q2 import queue

#: Arrivals are counted in three periods of this length, and the middle one counts: a click that launches a thousand
#: tasks is no stream of them.
PERIOD = timedelta(minutes=5)
PERIODS = 3
#: Up to so many tasks are counted in each period.
MAX_RATE = 5_000
#: The run times of so many tasks that ended last tell how long a task takes.
SAMPLE = 200
#: A free worker takes a queued task within this time.
SOON = timedelta(minutes=1)


class _MeanOf(Subquery):
    """The mean run time of the rows of a queryset that is limited."""

    template = "(SELECT AVG(newest.run_time) FROM (%(subquery)s) AS newest)"
    output_field = DurationField()


@dataclass(frozen=True)
class Pulse:
    """What waits, what comes and goes, and who works."""

    #: Queued tasks that a worker may take now: not those that wait for a retry, are paused or planned for later.
    waiting: Count
    oldest_wait: timedelta | None
    #: Tasks that wait in queues for which no worker runs, and the name of one of these queues.
    unserved: int
    unserved_queue: str
    #: Workers that send heartbeats, and those of them that run a task, by queue.
    workers_by_queue: dict[str, int]
    busy: int
    #: Tasks a minute, in the last five minutes.
    arriving: float
    ending: float
    #: Tasks a minute that come in steadily.
    steadily_arriving: float
    #: How long the last tasks ran, on average; None if none has ended in the last quarter of an hour.
    run_time: timedelta | None
    open_failures: Count

    @classmethod
    def now(cls) -> Pulse:
        """Read it, in three queries."""
        workers = _workers()
        waiting, rates = _waiting(set(workers)), _rates()
        return cls(
            workers_by_queue={name: number for name, (number, _busy) in workers.items()},
            busy=sum(busy for _number, busy in workers.values()),
            **waiting,
            **rates,
        )

    @property
    def workers(self) -> int:
        return sum(self.workers_by_queue.values())

    def start_interval(self, cluster: str) -> timedelta | None:
        """Return the time from the start of one task of this queue to that of the next; None if it is not known."""
        workers = self.workers_by_queue.get(cluster or queue.current_cluster(), 0)
        return self.run_time / workers if self.run_time is not None and workers else None

    @cached_property
    def tone(self) -> str:
        """How good the news is: "bad", "warn", "ok" or "quiet"."""
        return self._verdict[0]

    @property
    def sentence(self) -> str:
        """The answer to "is the queue keeping up?"."""
        return self._verdict[1]

    @cached_property
    def _verdict(self) -> tuple[str, str]:
        if not self.workers:
            return "bad", _("No worker runs")
        if self.unserved:
            return "bad", _("No worker runs for the queue %(queue)s") % {"queue": self.unserved_queue}
        if not self.waiting.number:
            return ("ok", _("Keeping up")) if self.busy else ("quiet", _("Idle"))
        if self.busy < self.workers and (self.oldest_wait or timedelta()) < SOON:
            return "ok", _("Keeping up")
        if self.run_time is None:
            return "warn", _("No task has ended in the last 15 minutes")
        return self._forecast(self.run_time)

    def _forecast(self, run_time: timedelta) -> tuple[str, str]:
        minutes = max(run_time / timedelta(minutes=1), 1e-6)
        possible = self.workers / minutes
        # What workers need between two tasks is known only from a time in which all of them were busy.
        was_busy_throughout = self.busy == self.workers and (self.oldest_wait or timedelta()) >= PERIOD
        capacity = self.ending if was_busy_throughout and self.ending else possible
        if capacity > self.steadily_arriving:
            left = timedelta(minutes=self.waiting.number / (capacity - self.steadily_arriving))
            # An estimate of less is none.
            left = max(left, timedelta(seconds=1))
            if self.waiting.is_capped:
                return "warn", _("Not empty before %(time)s") % {"time": duration(left)}
            return "ok" if left < PERIOD else "warn", _("Empty in about %(time)s") % {"time": duration(left)}
        more = math.floor(self.steadily_arriving * self.workers / capacity) + 1 - self.workers
        text = ngettext(
            "Growing, %(count)d more worker would hold it",
            "Growing, %(count)d more workers would hold it",
            max(more, 1),
        )
        return "bad", text % {"count": max(more, 1)}


def _workers() -> dict[str, tuple[int, int]]:
    """Return the number of workers of each queue, and how many of them run a task."""
    tasks = ActiveTask.objects.running().filter(worker=OuterRef("pk"), worker__isnull=False)
    alive = WorkerProcess.objects.alive_workers(max_heartbeat_age())
    found: dict[str, tuple[int, int]] = {}
    for cluster, is_busy in alive.values_list("cluster", Exists(tasks)):
        number, busy = found.get(cluster, (0, 0))
        found[cluster] = number + 1, busy + is_busy
    return found


def _waiting(served: set[str]) -> dict[str, Any]:
    names = served | {""} if queue.current_cluster() in served else served
    is_unserved = ~Q(cluster__in=names)
    oldest = ActiveTask.objects.ready().filter(missing_since=None).order_by("queued_at").values("queued_at", "cluster")
    found = oldest[: CAP + 1].aggregate(
        number=CountOf("queued_at"),
        since=Min("queued_at"),
        now=Max(Now(), output_field=DateTimeField()),
        unserved=CountOf("queued_at", filter=is_unserved),
        queue=Min("cluster", filter=is_unserved),
    )
    return {
        "waiting": Count.capped(found["number"], CAP),
        "oldest_wait": max(found["now"] - found["since"], timedelta()) if found["since"] else None,
        "unserved": found["unserved"],
        "unserved_queue": found["queue"] or queue.current_cluster(),
    }


def _rates() -> dict[str, Any]:
    now = timezone.now()
    ended = TaskRecord.objects.order_by("-finished_at")
    long_ago = now - PERIODS * PERIOD
    ran = ended.filter(finished_at__gte=long_ago, started_at__isnull=False).values("run_time")[:SAMPLE]
    failed = TaskRecord.objects.open_failures().order_by("-finished_at").values("pk")
    row = TaskRecord.objects.order_by("-created_at", "-pk").values_list(
        *(_number_in("created_at", now - period * PERIOD) for period in range(PERIODS)),
        _number_in("finished_at", now),
        _MeanOf(ran),
        CappedCount(failed[: CAP + 1]),
    )
    *arrivals, ends, run_time, failures = next(iter(row[:1]), (0, 0, 0, 0, None, 0))
    minutes = PERIOD / timedelta(minutes=1)
    return {
        "arriving": arrivals[0] / minutes,
        "ending": ends / minutes,
        "steadily_arriving": statistics.median(arrivals) / minutes,
        "run_time": run_time,
        "open_failures": Count.capped(failures, CAP),
    }


def _number_in(column: str, until: datetime) -> CappedCount:
    """Return the number of records with a time in the period before this moment, as an expression."""
    within = {f"{column}__gt": until - PERIOD, f"{column}__lte": until}
    return CappedCount(TaskRecord.objects.filter(**within).order_by(f"-{column}").values(column)[: MAX_RATE + 1])
