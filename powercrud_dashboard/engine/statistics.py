"""The statistics of ended tasks: made from their records in the background, merged as they age.

A record is counted in the transaction that marks it as counted. So it is counted once, also if two processes do this at
the same time, or one of them dies.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from django.db.models import Case, DateTimeField, Max, OuterRef, QuerySet, Subquery, Sum, When
from django.utils import timezone

from powercrud_dashboard.models import TaskEvent, TaskRecord, TaskStatistics, TaskStatus, TaskTotal, database
from powercrud_dashboard.models.database import give_way, impatient_transaction
from powercrud_dashboard.models.statistics import Histogram, Joined, Span, floor, span_for
from powercrud_dashboard.models.statuses import GIVEN_UP

#: Records counted, or rows merged, in one transaction.
AT_ONCE = 250
#: Seconds after which a pass leaves the rest to the next one: alerts are evaluated by the same threads.
COUNTS_FOR = 15.0
#: Whose turn it is to change rows of the statistics.
TURN = "statistics"


class Key(NamedTuple):
    """Which row a task is counted in."""

    func: str
    cluster: str
    span: int
    start: datetime

    @classmethod
    def of(cls, end: End, span: int) -> Key:
        return cls(end.func, end.cluster, int(span), floor(end.ended_at, int(span)))


class End(NamedTuple):
    """What is counted of one ended task."""

    func: str
    cluster: str
    status: str
    ended_at: datetime
    #: Milliseconds; None where there was no wait, or no run, that says anything.
    wait: int | None
    run: int | None
    host: str
    release: str

    @classmethod
    def of(cls, row: tuple[Any, ...]) -> End:
        """Return it for the values of :func:`end_columns` of a record."""
        func, cluster, status, created_at, started_at, finished_at, run_time, first_start, host, release, planned = row
        has_run = started_at is not None and status != TaskStatus.CANCELLED
        wait = _milliseconds(first_start - max(created_at, planned or created_at)) if first_start else None
        run = _milliseconds(run_time) if has_run else None
        return cls(func, cluster, status, finished_at, wait, run, host, release)


def end_columns() -> tuple[Any, ...]:
    """Return the columns of a record that :meth:`End.of` reads.

    Made when they are asked for, as a project's models may import this module before they are all there.
    """
    starts = TaskEvent.objects.filter(record=OuterRef("pk"), event="start").order_by("timestamp", "pk")
    # When a worker began the first attempt: the record tells of the last, and a slice is one, too.
    first_start = Case(
        When(attempts__gt=1, then=Subquery(starts.values("timestamp")[:1])),
        default="started_at",
        output_field=DateTimeField(),
    )
    return (
        *("func", "cluster", "status", "created_at", "started_at", "finished_at", "run_time"),
        *(first_start, "worker_host", "release", "run_after"),
    )


def _milliseconds(time: timedelta) -> int:
    return max(0, time // timedelta(milliseconds=1))


NUMBERS = ("completed", "failed", "cancelled", "wait_ms", "max_wait_ms", "run_ms", "max_run_ms")
#: The figures of a row.
ROW_COLUMNS = (*NUMBERS, "waits", "runs", "hosts", "last_ended_at", "last_failed_at", "release")
#: Those of a row of the totals.
TOTAL_COLUMNS = ("completed", "failed", "cancelled", "wait_ms", "waits", "run_ms", "runs")


@dataclass
class Figures:
    """What ended tasks add up to."""

    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    wait_ms: int = 0
    max_wait_ms: int = 0
    run_ms: int = 0
    max_run_ms: int = 0
    waits: Histogram = field(default_factory=Histogram)
    runs: Histogram = field(default_factory=Histogram)
    hosts: dict[str, list[int]] = field(default_factory=dict)
    last_ended_at: datetime | None = None
    last_failed_at: datetime | None = None
    release: str = ""

    def add(self, end: End, times: int = 1) -> None:
        """Count an ended task; with -1 take it back. The longest times and the last ones are not taken back."""
        has_failed = end.status == TaskStatus.FAILED
        self.completed += times * (end.status == TaskStatus.SUCCESS)
        self.failed += times * has_failed
        self.cancelled += times * (end.status == TaskStatus.CANCELLED)
        if end.wait is not None:
            self.wait_ms += times * end.wait
            self.max_wait_ms = max(self.max_wait_ms, end.wait)
            self.waits.add(end.wait, times)
        if end.run is not None:
            self.run_ms += times * end.run
            self.max_run_ms = max(self.max_run_ms, end.run)
            self.runs.add(end.run, times)
        if end.host:
            self._add_host(end.host, (times, times * has_failed, times * (end.run or 0)))
        self._add_last(end.ended_at, end.ended_at if has_failed else None, end.release)

    def add_row(self, row: tuple[Any, ...]) -> None:
        """Add the values of ``ROW_COLUMNS`` of a row."""
        self._add_numbers(*row[:7])
        self.waits.add_packed(row[7])
        self.runs.add_packed(row[8])
        for host, numbers in row[9].items():
            self._add_host(host, numbers)
        self._add_last(*row[10:])

    @classmethod
    def of_sums(cls, sums: Mapping[str, Any]) -> Figures:
        """Return the figures of several rows for the values of ``SUMS``, and of ``HOSTS`` if they are asked for."""
        figures = cls(**{name: sums[f"{name}_"] for name in (*NUMBERS, "last_ended_at", "last_failed_at")})
        figures.waits.add_packed(Joined.bytes_of(sums["waits_"]))
        figures.runs.add_packed(Joined.bytes_of(sums["runs_"]))
        figures.hosts = _sums_of_hosts(json.loads(f"[{sums.get('hosts_', '')}]"))
        return figures

    @classmethod
    def of_total(cls, total: TaskTotal) -> Figures:
        """Return the figures that a row of the totals has."""
        figures = cls(**{name: getattr(total, name) for name in TOTAL_COLUMNS if name not in ("waits", "runs")})
        figures.waits.add_packed(total.waits)
        figures.runs.add_packed(total.runs)
        return figures

    def merge(self, other: Figures) -> None:
        """Add other figures."""
        self._add_numbers(*(getattr(other, name) for name in NUMBERS))
        self.waits.merge(other.waits)
        self.runs.merge(other.runs)
        for host, numbers in other.hosts.items():
            self._add_host(host, numbers)
        self._add_last(other.last_ended_at, other.last_failed_at, other.release)

    def columns(self) -> dict[str, Any]:
        """Return the values of a row."""
        values = {name: getattr(self, name) for name in ROW_COLUMNS}
        return {**values, "waits": self.waits.pack(), "runs": self.runs.pack()}

    @property
    def ended(self) -> int:
        return self.completed + self.failed + self.cancelled

    def _add_numbers(
        self, completed: int, failed: int, cancelled: int, wait: int, max_wait: int, run: int, max_run: int
    ) -> None:
        self.completed += completed
        self.failed += failed
        self.cancelled += cancelled
        self.wait_ms += wait
        self.max_wait_ms = max(self.max_wait_ms, max_wait)
        self.run_ms += run
        self.max_run_ms = max(self.max_run_ms, max_run)

    def _add_host(self, host: str, numbers: Iterable[int]) -> None:
        before = self.hosts.get(host, (0, 0, 0))
        self.hosts[host] = [own + added for own, added in zip(before, numbers, strict=True)]

    def _add_last(self, ended_at: datetime | None, failed_at: datetime | None, release: str) -> None:
        if ended_at is not None and (self.last_ended_at is None or ended_at >= self.last_ended_at):
            self.last_ended_at = ended_at
            self.release = release or self.release
        if failed_at is not None and (self.last_failed_at is None or failed_at > self.last_failed_at):
            self.last_failed_at = failed_at


def _sums_of_hosts(rows: Iterable[Mapping[str, list[int]]]) -> dict[str, list[int]]:
    """Add up the hosts of many rows."""
    found: dict[str, list[int]] = {}
    for row in rows:
        for host, (ended, failed, run) in row.items():
            if (numbers := found.get(host)) is None:
                found[host] = [ended, failed, run]
            else:
                numbers[0] += ended
                numbers[1] += failed
                numbers[2] += run
    return found


#: Expressions that add rows up. Their names are those of the columns, which they must not hide, with a line after them.
SUMS: dict[str, Any] = {
    **{f"{name}_": Max(name) if name.startswith("max") else Sum(name) for name in NUMBERS},
    "last_ended_at_": Max("last_ended_at"),
    "last_failed_at_": Max("last_failed_at"),
    "waits_": Joined("waits"),
    "runs_": Joined("runs"),
}
HOSTS: dict[str, Any] = {"hosts_": Joined("hosts", is_json=True)}


def take_turn() -> None:
    """Take the turn to change the statistics, in the open transaction.

    Before it locks a record that is counted, as whoever has the turn locks those that it counts.
    """
    database.take_turn(TURN)


def count_ended() -> int:
    """Count the ended records that are not counted yet, a part of them in each transaction. Return their number.

    After an import there may be so many that the next passes count the rest.

    Raises:
        TaskBusy: if another process counts and does not finish.
    """
    total, until = 0, time.monotonic() + COUNTS_FOR
    while True:
        began = time.monotonic()
        with impatient_transaction():
            take_turn()
            pks = TaskRecord.objects.uncounted().order_by("finished_at").values_list("pk", flat=True)[:AT_ONCE]
            counted = count_records(list(pks))
        total += counted
        if not counted or time.monotonic() >= until:
            return total
        give_way(time.monotonic() - began)


def count_records(pks: list[int]) -> int:
    """Count those of these records that have ended and are not counted yet, in the open transaction."""
    if not pks:
        return 0
    take_turn()
    # Locked, so that no end that is corrected meanwhile counts as what it was before.
    records = TaskRecord.objects.uncounted().filter(pk__in=pks).select_for_update().order_by("pk")
    rows = list(records.values_list("pk", "failure_reason", "counted_as", *end_columns()))
    if not rows:
        return 0
    now = timezone.now()
    changes: dict[Key, Figures] = {}
    ends: list[End] = []
    for pk, reason, counted_as, *columns in rows:
        end = End.of(tuple(columns))
        if (span := span_for(end.ended_at, now)) is not None:
            changes.setdefault(Key.of(end, span), Figures()).add(end)
        # Of a corrected end the times are counted already.
        ends.append(end if counted_as is None else end._replace(wait=None, run=None))
        if counted_as is not None:
            _take_back(changes, _read(counted_as, end))
        if reason in GIVEN_UP or counted_as is not None:
            # The end was inferred: what is counted of it may have to be taken back.
            kept = _written(end) if reason in GIVEN_UP else None
            TaskRecord.objects.filter(pk=pk).update(counted_as=kept)
    TaskRecord.objects.filter(pk__in=[row[0] for row in rows]).update(is_counted=True)
    _save(changes)
    _add_to_totals(ends)
    return len(rows)


def count_ends(ends: Iterable[End]) -> None:
    """Count ended tasks of which there are no records.

    Raises:
        TaskBusy: if another process counts and does not finish.
    """
    now = timezone.now()
    changes: dict[Key, Figures] = {}
    ends = list(ends)
    for end in ends:
        if (span := span_for(end.ended_at, now)) is not None:
            changes.setdefault(Key.of(end, span), Figures()).add(end)
    with impatient_transaction():
        take_turn()
        _save(changes)
        _add_to_totals(ends)


def uncounted(at_most: int, **which: Any) -> tuple[list[End], bool]:
    """Return the newest ended tasks that are not counted yet, and whether there are more than ``at_most``."""
    newest = TaskRecord.objects.uncounted().filter(**which).order_by("-finished_at")
    # One whose inferred end was corrected is among the counted as what it was, until it is counted anew.
    rows = list(newest.filter(counted_as__isnull=True).values_list(*end_columns())[: at_most + 1])
    return [End.of(row) for row in rows[:at_most]], len(rows) > at_most


def merge_old() -> None:
    """Merge the rows that are old into rows of longer spans, and delete those that are older than a year.

    Raises:
        TaskBusy: if another process changes the statistics and does not finish.
    """
    now = timezone.now()
    for span, longer in ((Span.MINUTE, Span.HOUR), (Span.HOUR, Span.DAY), (Span.DAY, None)):
        while _merge_some(TaskStatistics.objects.all().outlived(span, now).order_by("start", "pk"), longer):
            pass


def _merge_some(rows: QuerySet[TaskStatistics], longer: Span | None) -> bool:
    """Merge a part of these rows, in a transaction. Return whether there were any."""
    began = time.monotonic()
    with impatient_transaction():
        take_turn()
        some = list(rows.values_list("pk", "func", "cluster", "start", *ROW_COLUMNS)[:AT_ONCE])
        merged: dict[Key, Figures] = {}
        for _pk, func, cluster, start, *columns in some if longer else ():
            key = Key(func, cluster, int(longer or 0), floor(start, int(longer or 0)))
            merged.setdefault(key, Figures()).add_row(tuple(columns))
        deleting = TaskStatistics.objects.filter(pk__in=[row[0] for row in some])
        deleting._raw_delete(deleting.db)
        _save(merged)
    give_way(time.monotonic() - began)
    return bool(some)


def _take_back(changes: dict[Key, Figures], end: End) -> None:
    """Take back what was counted of an end, in the row that includes it by now."""
    for span in Span:
        key = Key.of(end, span)
        if TaskStatistics.objects.filter(**key._asdict()).exists():
            changes.setdefault(key, Figures()).add(end, times=-1)
            return


def _save(changes: Mapping[Key, Figures]) -> None:
    """Add figures to the rows, in the open transaction that has the turn."""
    if not changes:
        return
    for key, stored in _stored(changes):
        changes[key].merge(stored)
    TaskStatistics.objects.bulk_create(
        [TaskStatistics(**key._asdict(), **figures.columns()) for key, figures in changes.items()],
        update_conflicts=True,
        unique_fields=list(Key._fields),
        update_fields=list(ROW_COLUMNS),
        batch_size=100,
    )


def _add_to_totals(ends: Iterable[End]) -> None:
    """Add ended tasks to the totals, in the open transaction that has the turn."""
    added: dict[tuple[str, str], Figures] = {}
    for end in ends:
        added.setdefault((end.func, end.cluster), Figures()).add(end)
    if not added:
        return
    stored = TaskTotal.objects.filter(func__in={func for func, _cluster in added})
    for total in stored:
        if (figures := added.get((total.func, total.cluster))) is not None:
            figures.merge(Figures.of_total(total))
    TaskTotal.objects.bulk_create(
        [
            TaskTotal(func=func, cluster=cluster, **{name: figures.columns()[name] for name in TOTAL_COLUMNS})
            for (func, cluster), figures in added.items()
        ],
        update_conflicts=True,
        unique_fields=["func", "cluster"],
        update_fields=list(TOTAL_COLUMNS),
        batch_size=100,
    )


def _stored(keys: Mapping[Key, object]) -> Iterator[tuple[Key, Figures]]:
    """Return the figures of those rows that there are."""
    starts: dict[int, list[datetime]] = {}
    for key in keys:
        starts.setdefault(key.span, []).append(key.start)
    for span, these in starts.items():
        within = TaskStatistics.objects.filter(span=span, start__gte=min(these), start__lte=max(these))
        rows = within.filter(func__in={key.func for key in keys})
        for func, cluster, start, *columns in rows.values_list("func", "cluster", "start", *ROW_COLUMNS):
            if (key := Key(func, cluster, span, start)) in keys:
                figures = Figures()
                figures.add_row(tuple(columns))
                yield key, figures


def _written(end: End) -> list[Any]:
    return [end.status, end.ended_at.isoformat(), end.wait, end.run, end.host]


def _read(counted_as: list[Any], end: End) -> End:
    """Return what was counted of a record, whose function, queue and release stay the same."""
    status, ended_at, wait, run, host = counted_as
    return end._replace(status=status, ended_at=datetime.fromisoformat(ended_at), wait=wait, run=run, host=host)
