from __future__ import annotations

import socket
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db.models import F
from django.http import QueryDict
from django.utils import timezone
from django.utils.translation import gettext as _

from powercrud_dashboard.dashboard import access
from powercrud_dashboard.dashboard.live import served_queues
from powercrud_dashboard.dashboard.views.base import RefreshingPageView
from powercrud_dashboard.engine import plain
from powercrud_dashboard.engine.processes import max_heartbeat_age
from powercrud_dashboard.engine.vitals import CLOCK_TOLERANCE, Waiting, waiting_by_queue
from powercrud_dashboard.models import ActiveTask, TaskRecord, TaskStatus, WorkerProcess
from powercrud_dashboard.models.database import database_now
from powercrud_dashboard.models.pausing import PauseKind
from powercrud_dashboard.q2 import queue, schedules
from powercrud_dashboard.q2.messages import queue_names
from powercrud_dashboard.q2.queue import QueueState


@dataclass(frozen=True)
class ClusterRow:
    """The state of a cluster as django-q2 saves it."""

    state: Any
    uptime: timedelta
    heartbeat_age: timedelta
    #: How many of its workers run a task. django-q2 calls a cluster idle as soon as its workers have taken all tasks.
    busy: int


@dataclass(frozen=True)
class ProcessRow:
    """A process that runs tasks, and the tasks that it runs, each with its URL."""

    process: WorkerProcess
    heartbeat_age: timedelta
    tasks: list[tuple[ActiveTask | TaskRecord, str]]

    @property
    def is_silent(self) -> bool:
        """Whether heartbeats are overdue. Only a process with a task is declared lost."""
        return self.heartbeat_age.total_seconds() > max_heartbeat_age()


@dataclass(frozen=True)
class QueueRow:
    """A queue, the URL of its messages, and the one that starts a test of its cluster; "" for who may not."""

    state: QueueState
    oldest_wait: timedelta | None
    #: Whether tasks wait in it and no worker runs for it.
    is_unserved: bool
    url: str
    test_url: str


class ClusterView(RefreshingPageView):
    """Clusters, workers and queues."""

    page_name = "cluster"
    required_permission = "view_taskrecord"
    template_name = "powercrud_dashboard/cluster/page.html"
    partial_template_name = "powercrud_dashboard/cluster/_cluster.html"

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        now = database_now()
        # Before anything else is asked, which may take long: of this page's own host, whatever its workers said last.
        own_offset = timezone.now() - now
        states = queue.clusters()
        workers = list(WorkerProcess.objects.order_by(F("lost_at").asc(nulls_first=True), "host", "pid"))
        processes = self._processes(workers, now)
        offsets = _clock_offsets(workers)
        offsets[socket.gethostname()] = own_offset
        schedule_count, missed_count = schedules.count()
        served = served_queues()
        queues = self._queues(served)
        return super().get_context_data(
            title=_("Cluster"),
            now=now,
            clusters=self._clusters(now, offsets, states or [], processes),
            clusters_are_unknown=states is None,
            clusters_are_not_listed=not queue.clusters_are_listed(),
            state_cache=queue.state_cache(),
            processes=processes,
            wrong_clocks=[
                (host, abs(offset), offset > timedelta())
                for host, offset in sorted(offsets.items())
                if abs(offset) > CLOCK_TOLERANCE
            ],
            no_cluster_runs=not served,
            queues=queues,
            has_unacknowledged=any(row.state.in_hand for row in queues),
            held_count=ActiveTask.objects.all().held().count(),
            pause_kinds=PauseKind.choices,
            pause_form_url=self.url("pause_queue") if access.may_pause_queues(self.request.user) else "",
            **self.pauses(),
            schedule_count=schedule_count,
            missed_count=missed_count,
            schedules_url=self.url("schedules"),
            **kwargs,
        )

    def _queues(self, served: set[str]) -> list[QueueRow]:
        """Return the queues of the settings, and others in which something waits."""
        waiting = waiting_by_queue()
        known = queue_names()
        states = queue.queue_states(known)
        # To ask some brokers for a queue is to create it.
        states += [QueueState(name, its.tasks, None) for name, its in sorted(waiting.items()) if name not in known]
        return [self._queue(state, waiting.get(state.name), served) for state in states]

    def _queue(self, state: QueueState, waiting: Waiting | None, served: set[str]) -> QueueRow:
        query = QueryDict(mutable=True)
        query["queue"] = state.name
        may_test = access.may_test_clusters(self.request.user)
        return QueueRow(
            state,
            waiting.oldest_wait if waiting else None,
            waiting is not None and bool(served) and state.name not in served,
            f"{self.url('queue')}?{query.urlencode()}",
            self.url("start_test", state.name) if may_test else "",
        )

    @staticmethod
    def _clusters(
        now: datetime, offsets: dict[str, timedelta], states: list[Any], processes: list[ProcessRow]
    ) -> list[ClusterRow]:
        busy = [(row.process.host, row.process.pid) for row in processes if row.tasks and not row.process.lost_at]
        return [
            ClusterRow(
                state,
                state.timestamp - state.tob,
                # django-q2 saves the time of the cluster's host.
                now + offsets.get(state.host, timedelta()) - state.timestamp,
                sum(host == state.host and pid in state.workers for host, pid in busy),
            )
            for state in states
        ]

    def _processes(self, processes: list[WorkerProcess], now: datetime) -> list[ProcessRow]:
        """Return the worker processes, those declared lost last."""
        tasks: dict[str, list[ActiveTask]] = {}
        for active in ActiveTask.objects.running().exclude(worker=None):
            tasks.setdefault(active.worker_id or "", []).append(active)
        names = [active.task_name for of_process in tasks.values() for active in of_process]
        keys = dict(TaskRecord.objects.filter(task_name__in=names).values_list("task_name", "pk"))

        def url(active: ActiveTask) -> str:
            pk = keys.get(active.task_name)
            return self.url("change", pk) if pk else ""

        observed: dict[tuple[str, int | None], list[TaskRecord]] = {}
        running = plain.unfinished().filter(status=TaskStatus.IN_PROGRESS)
        for record in running.only("label", "worker_host", "worker_pid"):
            observed.setdefault((record.worker_host, record.worker_pid), []).append(record)
        return [
            ProcessRow(
                process,
                now - process.heartbeat_at,
                [
                    *((active, url(active)) for active in tasks.get(process.pk, ())),
                    *((it, self.url("change", it.pk)) for it in observed.get((process.host, process.pid), ())),
                ],
            )
            for process in processes
        ]


def _clock_offsets(processes: list[WorkerProcess]) -> dict[str, timedelta]:
    """Return how far the clock of each host was ahead of the database's at its last heartbeat."""
    newest_last = sorted(processes, key=lambda process: process.heartbeat_at)
    return {process.host: process.clock_offset for process in newest_last if process.lost_at is None}
