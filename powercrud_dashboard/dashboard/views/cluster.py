from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.db.models import Min
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from powercrud_dashboard import queueing
from powercrud_dashboard.dashboard.views.base import RefreshingPageView
from powercrud_dashboard.models import ActiveTask, TaskRecord


@dataclass(frozen=True)
class Worker:
    """A worker process and the task that it runs now, if any."""

    pid: int
    active: ActiveTask | None
    task_url: str


@dataclass(frozen=True)
class ClusterRow:
    state: Any
    workers: list[Worker]
    uptime: Any


class ClusterView(RefreshingPageView):
    """Clusters and workers, queues and schedules, for who may view tasks."""

    page_name = "cluster"
    required_permission = "view_taskrecord"
    template_name = "powercrud_dashboard/cluster/page.html"
    partial_template_name = "powercrud_dashboard/cluster/_cluster.html"

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        oldest = ActiveTask.objects.pending().aggregate(oldest=Min("created_at"))["oldest"]
        return super().get_context_data(
            title=_("Cluster"),
            clusters=self._clusters(),
            no_cluster_runs=queueing.no_cluster_runs(),
            queues=queueing.queue_states(),
            oldest_age=timezone.now() - oldest if oldest else None,
            schedules=queueing.schedules(),
            **kwargs,
        )

    def _clusters(self) -> list[ClusterRow]:
        states = queueing.clusters()
        running = {(active.worker_host, active.worker_pid): active for active in ActiveTask.objects.running()}
        names = [active.task_name for active in running.values()]
        records = TaskRecord.objects.filter(task_name__in=names).values_list("task_name", "pk")
        urls = {name: self.url("change", pk) for name, pk in records}
        rows = []
        for state in states:
            workers = []
            for pid in state.workers:
                active = running.get((state.host, pid))
                workers.append(Worker(pid, active, urls.get(active.task_name, "") if active else ""))
            rows.append(ClusterRow(state, workers, timezone.now() - state.tob))
        return rows
