"""What the tasks of a period add up to: over time, by queue, by host and by function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Count, Max, Min, QuerySet, Sum
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.functional import cached_property
from django.utils.timezone import is_aware
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from powercrud_dashboard.dashboard.charts import Chart, Mark, Scale, Series
from powercrud_dashboard.dashboard.formatting import figure, local, percentage, precise_duration
from powercrud_dashboard.engine.statistics import HOSTS, NUMBERS, SUMS, Figures, uncounted
from powercrud_dashboard.models import TaskStatistics, TaskStatus
from powercrud_dashboard.models.statistics import Span, StepOf, floor

#: Ended tasks that are added at request time, the newest; those before them wait for the next cleanup.
MAX_UNCOUNTED = 2_000
#: Periods, of all queues or one, whose older rows a process keeps added up.
MAX_KEPT = 50
#: Functions in the table.
MAX_FUNCTIONS = 100


@dataclass(frozen=True)
class Period:
    """A time that ends now, and the steps in which it is shown."""

    label: Any
    step_label: Any
    length: timedelta
    #: In seconds; a multiple of the rows' spans at that age.
    step: int


PERIODS = {
    "1h": Period(gettext_lazy("1 h"), gettext_lazy("per 2 minutes"), timedelta(hours=1), 120),
    "24h": Period(gettext_lazy("24 h"), gettext_lazy("per hour"), timedelta(hours=24), 3_600),
    "7d": Period(gettext_lazy("7 d"), gettext_lazy("per 6 hours"), timedelta(days=7), 6 * 3_600),
    "30d": Period(gettext_lazy("30 d"), gettext_lazy("per day"), timedelta(days=30), 86_400),
}
DEFAULT_PERIOD = "24h"


@dataclass
class FunctionFigures:
    """What the tasks of one function add up to, and how many ended in each step."""

    func: str
    steps: int
    figures: Figures = field(default_factory=Figures)
    by_queue: dict[str, Figures] = field(default_factory=dict)
    #: That of the last failure, also if it was before the period.
    last_failed_at: datetime | None = None

    def __post_init__(self) -> None:
        self.succeeded_in = [0] * self.steps
        self.failed_in = [0] * self.steps

    @property
    def name(self) -> str:
        return self.func.rpartition(".")[2]

    @property
    def module(self) -> str:
        return self.func.rpartition(".")[0]

    @property
    def ended(self) -> int:
        return self.figures.ended

    @property
    def failure_rate(self) -> float:
        return failure_rate(self.figures)


def failure_rate(figures: Figures) -> float:
    """Return the share of failed tasks among those that were not cancelled."""
    finished = figures.completed + figures.failed
    return figures.failed / finished if finished else 0.0


def percent(share: float) -> str:
    """Return a share in percent; a little is never shown as nothing, and not quite all never as all."""
    value = 100 * share
    digits = 0 if value == 0 or 10 <= value <= 99 or value == 100 else 1
    if 0 < value < 0.1:
        return _("under 0.1%")
    shown = min(value, 99.9) if value < 100 else value
    return percentage(figure(shown, digits))


@dataclass(frozen=True)
class Sums:
    """What rows add up to. Nothing of it is changed."""

    #: With the function and the queue.
    by_queue: Sequence[tuple[str, str, Figures]] = ()
    #: With the number of the step. Only these have the hosts of the workers.
    by_step: Sequence[tuple[int, Figures]] = ()
    #: Function, number of the step, completed and failed tasks, and two of the releases.
    trends: Sequence[tuple[str, int, int, int, str, str]] = ()


def _sums_of(rows: QuerySet[TaskStatistics], since: datetime, step: int) -> Sums:
    """Have the database add the rows up in three ways, as there may be thousands of them."""
    by_queue: Any = rows.values("func", "cluster").annotate(**SUMS)
    in_steps = rows.annotate(step=StepOf(since, step))
    by_step: Any = in_steps.values("step").annotate(**SUMS, **HOSTS)
    trends: Any = in_steps.values_list("func", "step").annotate(
        Sum("completed"), Sum("failed"), Min("release"), Max("release")
    )
    return Sums(
        [(sums["func"], sums["cluster"], Figures.of_sums(sums)) for sums in by_queue],
        [(sums["step"], Figures.of_sums(sums)) for sums in by_step],
        list(trends),
    )


def _kept_sums(rows: QuerySet[TaskStatistics], since: datetime, step: int) -> Sums:
    """Return the sums of rows that rarely change, which the process has added up before as a rule."""
    numbers = rows.aggregate(Count("pk"), Max("last_ended_at"), *(Sum(name) for name in NUMBERS))
    # Rows that differ do not add up to the same milliseconds.
    key = (since, step, *numbers.values())
    if (sums := _kept.get(key)) is None:
        sums = _sums_of(rows, since, step) if numbers["pk__count"] else Sums()
        _kept[key] = sums
        if len(_kept) > MAX_KEPT:
            _kept.pop(next(iter(_kept)), None)
    return sums


_kept: dict[tuple[object, ...], Sums] = {}


class Insights:
    """The figures of one period, of all queues or one."""

    def __init__(self, period: str, *, cluster: str | None = None, func: str | None = None) -> None:
        """Choose what to add up.

        Args:
            period: a key of ``PERIODS``; the default one for any other text.
            cluster: the name of a queue, "" for the default one; None for all.
            func: the path of a function; None for all.
        """
        self.name = period if period in PERIODS else DEFAULT_PERIOD
        self.period = PERIODS[self.name]
        self.cluster = cluster
        self._which = {name: value for name, value in (("cluster", cluster), ("func", func)) if value is not None}
        self.now = timezone.now()
        self.since = floor(self.now - self.period.length, self.period.step)
        self.starts = [self.since + timedelta(seconds=self.period.step) * number for number in range(self._steps())]

    def _steps(self) -> int:
        return (self.now - self.since) // timedelta(seconds=self.period.step) + 1

    @property
    def since_text(self) -> str:
        """The start of the period as a parameter of the task list."""
        return f"{self.since:%Y-%m-%dT%H:%M}{'Z' if is_aware(self.since) else ''}"

    def load(self) -> None:
        """Add up the rows of the period, and the ended tasks that are not counted yet."""
        self.by_step = [Figures() for _start in self.starts]
        self.releases: list[set[str]] = [set() for _start in self.starts]
        self.functions: dict[str, FunctionFigures] = {}
        rows = TaskStatistics.objects.all().since(self.since).filter(**self._which)
        if "func" in self._which:
            self._add(_sums_of(rows, self.since, self.period.step))
        else:
            # Those of the last hours change all the time, the many others rarely.
            self._add(_sums_of(rows.filter(span=Span.MINUTE), self.since, self.period.step))
            self._add(_kept_sums(rows.exclude(span=Span.MINUTE), self.since, self.period.step))
        ends, self.is_incomplete = uncounted(MAX_UNCOUNTED, finished_at__gte=self.since, **self._which)
        for end in ends:
            # A clock that is ahead gives times to come.
            step = self._existing((end.ended_at - self.since) // timedelta(seconds=self.period.step))
            function = self._function(end.func)
            self.by_step[step].add(end)
            function.by_queue.setdefault(end.cluster, Figures()).add(end)
            function.succeeded_in[step] += end.status == TaskStatus.SUCCESS
            function.failed_in[step] += end.status == TaskStatus.FAILED
            self.releases[step].add(end.release)
        self.queues: dict[str, Figures] = {}
        self.total = Figures()
        for figures in self.by_step:
            self.total.merge(figures)
        for function in self.functions.values():
            for name, figures in function.by_queue.items():
                function.figures.merge(figures)
                self.queues.setdefault(name, Figures()).merge(figures)
            function.last_failed_at = function.figures.last_failed_at
        self._find_earlier_failures()

    def _add(self, sums: Sums) -> None:
        for func, cluster, figures in sums.by_queue:
            self._function(func).by_queue.setdefault(cluster, Figures()).merge(figures)
        for step, figures in sums.by_step:
            self.by_step[self._existing(step)].merge(figures)
        for func, number, completed, failed, *releases in sums.trends:
            step, function = self._existing(number), self._function(func)
            function.succeeded_in[step] += completed
            function.failed_in[step] += failed
            self.releases[step].update(releases)

    def _function(self, func: str) -> FunctionFigures:
        if (function := self.functions.get(func)) is None:
            function = self.functions[func] = FunctionFigures(func, len(self.starts))
        return function

    def _existing(self, step: int) -> int:
        return min(max(step, 0), len(self.starts) - 1)

    def _find_earlier_failures(self) -> None:
        """Find the last failures before the period, in one query."""
        names = [function.func for function in self.functions.values() if function.last_failed_at is None]
        if not names:
            return
        rows = TaskStatistics.objects.filter(func__in=names, failed__gt=0).values("func")
        for row in rows.annotate(last=Max("last_failed_at")):
            self.functions[row["func"]].last_failed_at = row["last"]

    @cached_property
    def failure_rate_before(self) -> float | None:
        """The share of failures in the period of the same length before; None if nothing ended then."""
        before = TaskStatistics.objects.filter(
            start__gte=self.since - self.period.length, start__lt=self.since, **self._which
        ).aggregate(completed=Sum("completed"), failed=Sum("failed"))
        finished = (before["completed"] or 0) + (before["failed"] or 0)
        return before["failed"] / finished if finished else None

    @property
    def largest_functions(self) -> list[FunctionFigures]:
        """The functions of which most tasks ended, up to ``MAX_FUNCTIONS``."""
        return sorted(self.functions.values(), key=lambda function: -function.ended)[:MAX_FUNCTIONS]

    @property
    def has_more_functions(self) -> bool:
        return len(self.functions) > MAX_FUNCTIONS

    @property
    def busy_workers(self) -> float:
        """How many workers were busy on average."""
        return self.total.run_ms / 1_000 / max((self.now - self.since).total_seconds(), 1)

    @property
    def busiest(self) -> tuple[datetime, float]:
        """The start of the step in which most workers were busy, and how many on average."""
        number = max(range(len(self.starts)), key=lambda number: self.by_step[number].run_ms)
        return self.starts[number], self.by_step[number].run_ms / 1_000 / self.period.step

    @property
    def hosts(self) -> list[tuple[str, int, int, float]]:
        """Each host of workers: name, ended and failed tasks, workers that were busy there on average."""
        seconds = max((self.now - self.since).total_seconds(), 1)
        return [
            (host, ended, failed, run_ms / 1_000 / seconds)
            for host, (ended, failed, run_ms) in sorted(self.total.hosts.items())
        ]

    # Charts

    @property
    def charts(self) -> list[Chart]:
        """Throughput, wait and run time over the period."""
        return [self._throughput(), self._times("wait"), self._times("run")]

    def _throughput(self) -> Chart:
        steps = self.by_step
        series = [
            Series("pcrud-chart-ok", _("Completed"), [step.completed for step in steps]),
            Series("pcrud-chart-cancelled", _("Cancelled"), [step.cancelled for step in steps]),
            Series("pcrud-chart-bad", _("Failed"), [step.failed for step in steps]),
        ]
        text = ngettext(
            "%(count)d ended task, %(failed)d failed", "%(count)d ended tasks, %(failed)d failed", self.total.ended
        )
        return Chart(
            key="throughput",
            title=_("Ended, and failed"),
            description=text % {"count": self.total.ended, "failed": self.total.failed},
            scale=Scale.of_counts(max(step.ended for step in steps)),
            hints=[
                _("%(time)s: %(ended)d ended, %(failed)d failed")
                % {"time": moment, "ended": step.ended, "failed": step.failed}
                for moment, step in zip(self._moments, steps, strict=True)
            ],
            labels=self.axis_labels(),
            # Cancelled ones are rare: without them the legend is shorter.
            bars=series if self.total.cancelled else [series[0], series[2]],
            marks=self._releases(),
            columns=[_("From"), _("Completed"), _("Failed"), _("Cancelled")],
            rows=[
                (moment, step.completed, step.failed, step.cancelled)
                for moment, step in zip(self._moments, steps, strict=True)
            ],
        )

    def _times(self, kind: str) -> Chart:
        is_wait = kind == "wait"
        times = [wait_times(step) if is_wait else run_times(step) for step in self.by_step]
        known = [time.total_seconds() for of_step in times for time in of_step if time is not None]
        p50, p95, longest = wait_times(self.total) if is_wait else run_times(self.total)
        columns = [
            [None if time is None else time.total_seconds() for time in of_kind] for of_kind in zip(*times, strict=True)
        ]
        series = [
            Series(f"pcrud-chart-line pcrud-chart-{css_class}", label, values)
            for css_class, label, values in zip(("p50", "p95", "max"), ("p50", "p95", _("max")), columns, strict=True)
        ]
        figures = {"p50": _shown(p50), "p95": _shown(p95), "max": _shown(longest)}
        return Chart(
            key=kind,
            title=_("Wait before a worker took it") if is_wait else _("Run time"),
            description=_("p50 %(p50)s, p95 %(p95)s, at most %(max)s") % figures,
            scale=Scale.of_times(known),
            hints=[
                _("%(time)s: p50 %(p50)s, p95 %(p95)s, at most %(max)s")
                % {"time": moment, "p50": _shown(its[0]), "p95": _shown(its[1]), "max": _shown(its[2])}
                for moment, its in zip(self._moments, times, strict=True)
            ],
            labels=self.axis_labels(),
            lines=series,
            columns=[_("From"), "p50", "p95", _("max")],
            rows=[(moment, *map(_shown, its)) for moment, its in zip(self._moments, times, strict=True)],
        )

    def _releases(self) -> Sequence[Mark]:
        """Return the steps in which a release was first seen, but for that at the beginning."""
        seen: set[str] = set()
        marks = []
        for number, releases in enumerate(self.releases):
            if new := releases - seen - {""}:
                if seen:
                    marks.append(Mark(number, max(new)[:16]))
                seen |= new
        # More labels would lie on top of each other.
        return marks[-2:]

    @cached_property
    def _moments(self) -> list[str]:
        """The start of each step, as a text."""
        return [self.moment(start) for start in self.starts]

    def moment(self, start: datetime) -> str:
        """Return a time in the local zone, as exact as the steps of the period are."""
        shown = local(start)
        if self.period.step >= 86_400:
            return date_format(shown, "SHORT_DATE_FORMAT")
        if self.period.length > timedelta(hours=24):
            return f"{date_format(shown, 'D')} {date_format(shown, 'TIME_FORMAT')}"
        return date_format(shown, "TIME_FORMAT")

    def axis_labels(self) -> list[tuple[float, str]]:
        return [(0, self.moment(self.starts[0])), (0.5, self.moment(self.starts[len(self.starts) // 2])), (1, _("now"))]


def wait_times(figures: Figures) -> tuple[timedelta | None, timedelta | None, timedelta | None]:
    """Return p50, p95 and the longest of the waits."""
    p50, p95 = (figures.waits.percentile(share, figures.max_wait_ms) for share in (0.5, 0.95))
    return p50, p95, None if p50 is None else timedelta(milliseconds=figures.max_wait_ms)


def run_times(figures: Figures) -> tuple[timedelta | None, timedelta | None, timedelta | None]:
    """Return p50, p95 and the longest of the run times."""
    p50, p95 = (figures.runs.percentile(share, figures.max_run_ms) for share in (0.5, 0.95))
    return p50, p95, None if p50 is None else timedelta(milliseconds=figures.max_run_ms)


def _shown(time: timedelta | None) -> str:
    return precise_duration(time) or "–"
