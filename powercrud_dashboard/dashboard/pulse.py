"""Whether the workers keep up with the queue, in a few queries whose cost does not grow with the number of tasks."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db.models import DurationField, Exists, OuterRef, Subquery, Value
from django.db.models.functions import Coalesce
from django.utils.functional import cached_property
from django.utils.translation import gettext as _
from django.utils.translation import ngettext, pgettext

from powercrud_dashboard.dashboard.formatting import duration
from powercrud_dashboard.dashboard.listing import CAP, CappedCount, Count
from powercrud_dashboard.engine import plain
from powercrud_dashboard.engine.processes import max_heartbeat_age
from powercrud_dashboard.engine.vitals import plain_waiting, with_message
from powercrud_dashboard.models import ActiveTask, Alert, TaskRecord, TaskStatus, WorkerProcess
from powercrud_dashboard.models.database import Now
from powercrud_dashboard.models.pausing import Pause
from powercrud_dashboard.models.prepared import values_of
from powercrud_dashboard.q2 import queue

#: Arrivals are counted in three periods of this length, and the middle one counts: a click that launches a thousand
#: tasks is no stream of them.
PERIOD = timedelta(minutes=5)
PERIODS = 3
#: Up to so many tasks are counted in each period.
MAX_RATE = 5_000
#: The run times of so many tasks that ended last tell how long a task takes.
SAMPLE = 200
#: Of so many tasks that have waited longest, one that no worker takes is looked for.
LOOKED_THROUGH = 1_000
#: A free worker takes a queued task within this time.
SOON = timedelta(minutes=1)
#: Running tasks are long if they have run for so many times as long as the last ones took, and for at least so long.
TIMES_AS_LONG = 3
RUNS_LONG = timedelta(seconds=1)


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
    #: A queue in which tasks wait though no worker runs for it; "" if there is none.
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
    #: How long the youngest task has run in each queue whose workers are all busy.
    youngest_runs: dict[str, timedelta]
    open_failures: Count
    #: Whether a queue or a function is paused.
    has_pauses: bool
    #: Whether there are open alerts that nobody has acknowledged.
    has_alerts: bool

    @classmethod
    def now(cls, open_failures: Count | None = None) -> Pulse:
        """Read it, in two queries. ``open_failures`` is their number if it is known already."""
        runs = _runs_by_queue()
        return cls(
            workers_by_queue={name: len(found) for name, found in runs.items()},
            busy=sum(run is not None for found in runs.values() for run in found),
            youngest_runs={
                name: min(run for run in found if run is not None) for name, found in runs.items() if None not in found
            },
            **_queue_and_rates(set(runs), open_failures),
        )

    @property
    def workers(self) -> int:
        return sum(self.workers_by_queue.values())

    def start_interval(self, cluster: str) -> timedelta | None:
        """Return the time from the start of one task of this queue to that of the next; None if it is not known."""
        name = cluster or queue.main_cluster()
        workers = self.workers_by_queue.get(name, 0)
        if self.run_time is None or not workers or self._runs_long(name):
            return None
        return self.run_time / workers

    def _runs_long(self, name: str) -> bool:
        """Return whether all workers of a queue run longer tasks than the last ones, which do not tell their ends."""
        long = max(TIMES_AS_LONG * (self.run_time or timedelta()), RUNS_LONG)
        return name in self.youngest_runs and self.youngest_runs[name] > long

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
        if self.unserved_queue:
            return "bad", _("No worker runs for the queue %(queue)s") % {"queue": self.unserved_queue}
        if not self.waiting.number:
            return ("ok", _("Keeping up")) if self.busy else ("quiet", pgettext("the workers", "Idle"))
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
        is_measured = was_busy_throughout and self.ending > 0
        capacity = self.ending if is_measured else possible
        if capacity > self.steadily_arriving:
            # In a queue with a free worker nothing waits for long.
            runs_long = bool(self.youngest_runs) and all(map(self._runs_long, self.youngest_runs))
            if runs_long and not is_measured:
                tone = "ok" if (self.oldest_wait or timedelta()) < SOON else "warn"
                return tone, _("Busy with long tasks")
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


def _runs_by_queue() -> dict[str, list[timedelta | None]]:
    """Return for each queue how long each of its workers has run its task; None for a free worker."""
    tasks = ActiveTask.objects.running().filter(worker=OuterRef("pk"), worker__isnull=False)
    running = plain.unfinished().filter(status=TaskStatus.IN_PROGRESS)
    observed = running.filter(worker_host=OuterRef("host"), worker_pid=OuterRef("pid"))
    start = Coalesce("started_at", Now())
    began = [Subquery(rows.order_by(start.desc()).values_list(start)[:1]) for rows in (tasks, observed)]
    alive = WorkerProcess.objects.alive_workers(max_heartbeat_age())
    found: dict[str, list[timedelta | None]] = {}
    for cluster, now, *times in alive.values_list("cluster", Now(), *began):
        runs = [max(now - at, timedelta()) for at in times if at is not None]
        found.setdefault(cluster, []).append(min(runs, default=None))
    return found


def _queue_and_rates(served: set[str], open_failures: Count | None) -> dict[str, Any]:
    names = frozenset(served | {""} if queue.main_cluster() in served else served)
    counts_failures, has_messages = open_failures is None, queue.untaken_messages() is not None
    read_at, ends, run_time, failures, has_pauses, has_alerts, *values = values_of(
        lambda: [*_rates(counts_failures), *_waiting(names)], "pulse", names, counts_failures, has_messages, CAP
    )
    arrivals, waiting = values[:PERIODS], values[PERIODS:]
    minutes = PERIOD / timedelta(minutes=1)
    return {
        **_what_waits(read_at, waiting),
        "arriving": arrivals[0] / minutes,
        "ending": ends / minutes,
        "steadily_arriving": statistics.median(arrivals) / minutes,
        "run_time": run_time,
        "open_failures": open_failures or Count.capped(failures, CAP),
        "has_pauses": bool(has_pauses),
        "has_alerts": bool(has_alerts),
    }


def _rates(counts_failures: bool) -> list[Any]:
    ended = TaskRecord.objects.order_by("-finished_at")
    ran = ended.filter(finished_at__gte=Now() - PERIODS * PERIOD, started_at__isnull=False).values("run_time")
    failed = TaskRecord.objects.open_failures().order_by("-finished_at").values("pk")
    return [
        Now(),
        _number_in("finished_at"),
        _MeanOf(ran[:SAMPLE]),
        CappedCount(failed[: CAP + 1]) if counts_failures else Value(0),
        Exists(Pause.objects.all()),
        Exists(Alert.objects.all().open().unacknowledged()),
        *(_number_in("created_at", period * PERIOD) for period in range(PERIODS)),
    ]


def _waiting(served: Collection[str]) -> list[Any]:
    """Return the number, the oldest time and a queue without a worker: of managers' tasks, of others, of messages."""
    waiting = ActiveTask.objects.ready().filter(missing_since=None)
    recorded = plain.unfinished().filter(status=TaskStatus.PENDING)
    found = [*_of_rows(waiting, "queued_at", "cluster", served), *_of_rows(recorded, "created_at", "cluster", served)]
    if (messages := queue.untaken_messages()) is not None:
        # Their lock is the time of the launch.
        found += _of_rows(messages, "lock", "key", served)
        found.append(CappedCount(with_message().values("pk")[: CAP + 1]))
    return found


def _of_rows(rows: Any, since: str, name: str, served: Collection[str]) -> list[Any]:
    in_order = rows.order_by(since)
    # Tasks that nobody takes are soon the oldest.
    oldest = in_order.filter(pk__in=in_order.values("pk")[:LOOKED_THROUGH])
    return [
        CappedCount(in_order.values(since)[: CAP + 1]),
        Subquery(in_order.values(since)[:1]),
        Subquery(oldest.exclude(**{f"{name}__in": served}).values(name)[:1]),
    ]


def _what_waits(read_at: datetime, values: list[Any]) -> dict[str, Any]:
    number, *of_managers = values[:3]
    recorded, *of_recorded = values[3:6]
    messages, since, unserved, with_messages = values[6:] or (0, None, None, 0)
    has_unrecorded = messages > with_messages
    parts = [of_managers, of_recorded, [since, unserved] if has_unrecorded else [None, None]]
    times = [since for since, _unserved in parts if since is not None]
    queues = [name or queue.main_cluster() for _since, name in parts if name is not None]
    return {
        "waiting": Count.capped(number + plain_waiting(recorded, messages, with_messages), CAP),
        "oldest_wait": max(read_at - min(times), timedelta()) if times else None,
        "unserved_queue": queues[0] if queues else "",
    }


def _number_in(column: str, ago: timedelta = timedelta()) -> CappedCount:
    """Return the number of records with a time in the period that ended so long ago, as an expression."""
    within = {f"{column}__gt": Now() - (ago + PERIOD), f"{column}__lte": Now() - ago}
    return CappedCount(TaskRecord.objects.filter(**within).order_by(f"-{column}").values(column)[: MAX_RATE + 1])
