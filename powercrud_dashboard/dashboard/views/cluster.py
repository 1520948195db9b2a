from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db.models import Min
from django.utils import timezone
from django.utils.translation import gettext as _

from powercrud_dashboard import access, queueing, timetable
from powercrud_dashboard.dashboard.views.base import RefreshingPageView
from powercrud_dashboard.models import ActiveTask, TaskRecord
from powercrud_dashboard.timetable import ScheduleState


@dataclass(frozen=True)
class Worker:
    """A worker process and the task that it runs now, if any."""

    pid: int
    active: ActiveTask | None
    task_url: str
    #: Since the task's last heartbeat.
    silent_for: timedelta | None


@dataclass(frozen=True)
class ClusterRow:
    state: Any
    workers: list[Worker]
    uptime: timedelta
    heard_ago: timedelta


@dataclass(frozen=True)
class ScheduleRow:
    """A schedule and the buttons for it, as (label, address)."""

    state: ScheduleState
    actions: list[tuple[str, str]]


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
            schedules=[self._schedule(state) for state in timetable.schedule_states()],
            **kwargs,
        )

    def _schedule(self, state: ScheduleState) -> ScheduleRow:
        if not access.may_change_schedules(self.request.user):
            return ScheduleRow(state, [])
        offered = {
            "run": _("Run now"),
            **({"pause": _("Pause")} if state.can_pause else {}),
            **({"resume": _("Resume")} if state.is_paused else {}),
        }
        pk = state.schedule.pk
        return ScheduleRow(state, [(label, self.url("schedule", pk, name)) for name, label in offered.items()])

    def _clusters(self) -> list[ClusterRow]:
        states = queueing.clusters()
        running = {(active.worker_host, active.worker_pid): active for active in ActiveTask.objects.running()}
        names = [active.task_name for active in running.values()]
        records = TaskRecord.objects.filter(task_name__in=names).values_list("task_name", "pk")
        urls = {name: self.url("change", pk) for name, pk in records}
        rows, now = [], timezone.now()
        for state in states:
            workers = []
            for pid in state.workers:
                active = running.get((state.host, pid))
                url = urls.get(active.task_name, "") if active else ""
                beat = active.heartbeat_at if active else None
                workers.append(Worker(pid, active, url, now - beat if beat else None))
            rows.append(ClusterRow(state, workers, now - state.tob, now - state.timestamp))
        return rows
