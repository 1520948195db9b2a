"""django-q2's schedules as the pages show them, with the records of their last runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models.expressions import RawSQL
from django.utils.formats import date_format

from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.dashboard.formatting import local, precise_duration
from powercrud_dashboard.dashboard.statuses import SKIPPED, shown_status
from powercrud_dashboard.engine.processes import max_heartbeat_age
from powercrud_dashboard.models import Resolution, TaskRecord, TaskStatus, WorkerProcess
from powercrud_dashboard.q2 import schedules
from powercrud_dashboard.q2.schedules import ScheduleState
from powercrud_dashboard.schedules import RUN_PATH, ScheduledTask, declared_schedules
from powercrud_dashboard.text import translated

#: Runs of each schedule that the page shows, the newest.
SHOWN_RUNS = 10
#: Schedules whose runs are read in one query; SQLite takes at most 500 parts.
READ_TOGETHER = 250

#: The columns by which the page shows a run.
_COLUMNS = ("id", "group", "task_name", "status", "message", "error", "failure_reason", "source", "resolution")
_TIMES = ("failed_count", "created_at", "started_at", "finished_at", "run_time")


@dataclass(frozen=True)
class Run:
    """A run of a schedule, and the URL of its page."""

    record: TaskRecord
    url: str

    @property
    def has_failed(self) -> bool:
        return self.record.status == TaskStatus.FAILED

    @property
    def is_skipped(self) -> bool:
        return shown_status(self.record) is SKIPPED

    @property
    def title(self) -> str:
        """All that the mark of the run says: its status, when it was, how long it took, and what went wrong."""
        record = self.record
        at = record.finished_at or record.started_at or record.created_at
        problem = record.error_line if self.has_failed else record.message if not record.started_at else ""
        facts = [
            str(shown_status(record).label),
            date_format(local(at), "SHORT_DATETIME_FORMAT"),
            precise_duration(record.duration) if record.finished_at else "",
            translated(problem)[:200],
        ]
        return ", ".join(filter(None, facts))


@dataclass(frozen=True)
class ShownSchedule:
    """A schedule, and how it fares."""

    state: ScheduleState
    #: The newest runs that are on record, the oldest first.
    runs: list[Run]
    #: What declares it; None if the code does not (any more).
    declared: ScheduledTask | None
    cluster_lives: bool

    @property
    def name(self) -> str:
        return str(self.state.schedule.name or self.state.schedule.func)

    @property
    def func(self) -> str:
        """The function that does the work."""
        return self.declared.func if self.declared else str(self.state.schedule.func)

    @property
    def calls_declared(self) -> bool:
        """Whether it was made for a declaration."""
        return bool(self.state.schedule.func == RUN_PATH)

    @property
    def has_lock(self) -> bool:
        return self.state.group in app_settings.DASHBOARD_SCHEDULE_LOCKS and not self.calls_declared

    @property
    def last_run(self) -> Run | None:
        """The newest run that has ended; a skipped one only if there is no other."""
        ended = [run for run in reversed(self.runs) if run.record.is_finished]
        return next((run for run in ended if not run.is_skipped), ended[0] if ended else None)

    @property
    def skipped_since(self) -> int:
        """How many runs were skipped after the last one."""
        later = self.runs[self.runs.index(self.last_run) + 1 :] if self.last_run else []
        return sum(run.is_skipped for run in later)

    @property
    def current_run(self) -> Run | None:
        """The newest run that has not ended; later ones may have been skipped."""
        return next((run for run in reversed(self.runs) if not run.record.is_finished), None)

    @property
    def unrecorded(self) -> Any:
        """django-q2's own row of the last run, if there is no record of any and the row is that of the task itself."""
        return None if self.runs or self.calls_declared or self.has_lock else self.state.last

    @property
    def failed_count(self) -> int:
        return sum(run.has_failed for run in self.runs)

    @property
    def has_failed(self) -> bool:
        """Whether the last run has failed, and nothing has settled that."""
        if self.unrecorded is not None:
            return not self.unrecorded.success
        last = next((run for run in reversed(self.runs) if run.record.status in _TELLING), None)
        return last is not None and last.record.resolution == Resolution.OPEN

    @property
    def interval(self) -> str:
        """How often it runs, apart from intervals in minutes."""
        schedule = self.state.schedule
        return str(schedule.cron or schedule.get_schedule_type_display())

    @property
    def urgency(self) -> tuple[int, float]:
        """By which the page is sorted: what has failed, what is missed, what has a next run, and the rest."""
        due: datetime | None = self.state.schedule.next_run
        rank = 0 if self.has_failed else 1 if self.state.missed_since else 2 if due else 3
        return rank, due.timestamp() if due else 0.0


#: The ends that tell whether a schedule works: a cancelled or skipped run does not.
_TELLING = (TaskStatus.SUCCESS, TaskStatus.FAILED)


def shown_schedules(url_of: Callable[[TaskRecord], str]) -> list[ShownSchedule]:
    """Return all schedules, those that have failed first, in as many queries for a hundred as for one."""
    states = schedules.schedule_states()
    runs = _runs({state.group for state in states}) if states else {}
    alive = _living_clusters() if states else set()
    declared = declared_schedules()
    shown = [
        ShownSchedule(
            state,
            [Run(record, url_of(record)) for record in runs.get(state.group, ())],
            declared.get(state.schedule.name or "") if state.schedule.func == RUN_PATH else None,
            state.cluster in alive,
        )
        for state in states
    ]
    return sorted(shown, key=lambda schedule: schedule.urgency)


def not_synced(shown: Iterable[ShownSchedule]) -> list[str]:
    """Return the names of declared schedules that the database does not have."""
    known = {schedule.name for schedule in shown if schedule.calls_declared}
    return sorted(declared_schedules().keys() - known)


def _living_clusters() -> set[str]:
    return set(WorkerProcess.objects.alive_workers(max_heartbeat_age()).values_list("cluster", flat=True))


def _runs(groups: set[str]) -> dict[str, list[TaskRecord]]:
    """Return the newest records of each group, the oldest first."""
    found: dict[str, list[TaskRecord]] = {}
    for record in _newest(sorted(groups)):
        found.setdefault(record.group, []).append(record)
    return {
        group: sorted(records, key=lambda record: (record.created_at, record.pk)) for group, records in found.items()
    }


def _newest(groups: list[str]) -> Iterator[TaskRecord]:
    records = TaskRecord.objects.all()
    for start in range(0, len(groups), READ_TOGETHER):
        parts: list[str] = []
        params: list[Any] = []
        for group in groups[start : start + READ_TOGETHER]:
            # Also not empty, as the index has no others.
            newest = records.filter(group=group).exclude(group="").order_by("-created_at", "-pk").values("pk")
            sql, own_params = newest[:SHOWN_RUNS].query.get_compiler(using=records.db).as_sql()
            parts.append(f"SELECT newest.pk FROM ({sql}) AS newest")  # noqa: S608 - Django has made it
            params += own_params
        # SQLite limits a part of a union only inside of a subquery, which Django does not make.
        keys = RawSQL(" UNION ALL ".join(parts), params)  # noqa: S611 - so it has these
        yield from records.filter(pk__in=keys).only(*_COLUMNS, *_TIMES)
