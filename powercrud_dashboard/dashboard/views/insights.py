"""Throughput, failures, waits and run times over time, by queue, by host and by function."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

import django_tables2 as tables
from django.http import HttpRequest
from django.utils.formats import number_format
from django.utils.functional import cached_property
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, pgettext_lazy

from powercrud_dashboard.dashboard.charts import Series, sparkline
from powercrud_dashboard.dashboard.filters import ALL_FAILURES
from powercrud_dashboard.dashboard.formatting import Moment, figure, precise_duration
from powercrud_dashboard.dashboard.insights import (
    MAX_FUNCTIONS,
    PERIODS,
    FunctionFigures,
    Insights,
    failure_rate,
    percent,
    run_times,
    wait_times,
)
from powercrud_dashboard.dashboard.pulse import Pulse
from powercrud_dashboard.dashboard.views.base import RefreshingPageView
from powercrud_dashboard.models import TaskStatistics
from powercrud_dashboard.models.statuses import TaskStatus
from powercrud_dashboard.q2 import queue

#: The page is rendered again after this many seconds.
STALE_AFTER = 30
#: Queues that can be chosen.
MAX_QUEUES = 50


def _time_column(label: Any, accessor: Any) -> tables.Column:
    return tables.Column(verbose_name=label, accessor=accessor, initial_sort_descending=True)


@dataclass(frozen=True)
class FunctionRow:
    """What the table shows of a function."""

    url: str
    #: The parts of its name, between underscores, and of the path of its module: a line may end after each.
    name: Sequence[str]
    module: Sequence[str]
    #: Label, text and the URL of the tasks behind it ("" for none) of each column with a number.
    figures: Sequence[tuple[str, str, str]]
    last_ended: Moment
    last_ended_url: str
    #: None if it has never failed.
    last_failed: Moment | None
    last_failed_url: str
    trend: str


class FunctionTable(tables.Table):  # type: ignore[misc]
    """The figures of each function, each with a link to the tasks behind it. A separate template renders the rows."""

    func = tables.Column(verbose_name=gettext_lazy("Function"))
    ended = tables.Column(verbose_name=gettext_lazy("Runs"), initial_sort_descending=True)
    failure_rate = tables.Column(verbose_name=pgettext_lazy("a column", "Failed"), initial_sort_descending=True)
    wait_p50 = _time_column(gettext_lazy("Wait p50"), "wait__0")
    wait_p95 = _time_column(gettext_lazy("Wait p95"), "wait__1")
    run_p50 = _time_column(gettext_lazy("Run p50"), "run__0")
    run_p95 = _time_column(gettext_lazy("Run p95"), "run__1")
    run_max = _time_column(gettext_lazy("Run max"), "run__2")
    last_ended_at = tables.Column(verbose_name=gettext_lazy("Last run"), initial_sort_descending=True)
    last_failed_at = tables.Column(verbose_name=gettext_lazy("Last failure"), initial_sort_descending=True)
    trend = tables.Column(verbose_name=gettext_lazy("Trend"), orderable=False)

    class Meta:
        template_name = "powercrud_dashboard/insights/_function_table.html"
        empty_text = gettext_lazy("No task has ended in this period.")

    def __init__(self, insights: Insights, view: InsightsView, request: HttpRequest) -> None:
        self._view, self._now = view, insights.now
        # Each link is one of these, with the function.
        self._tasks_url, self._all_tasks_url = view.tasks_url({}), view.list_url()
        self._function_url = view.url("function")
        super().__init__([_row(function) for function in insights.largest_functions], order_by="-ended")
        tables.RequestConfig(request, paginate=False).configure(self)

    @property
    def function_rows(self) -> list[FunctionRow]:
        return [self._shown(row.record) for row in self.rows]

    @cached_property
    def labels(self) -> dict[str, str]:
        """The headers of the columns, translated once and not for each row."""
        return {column.name: str(column.header) for column in self.columns}

    def _shown(self, row: dict[str, Any]) -> FunctionRow:
        function: FunctionFigures = row["function"]
        (wait_p50, wait_p95, _longest), (run_p50, run_p95, run_max) = row["wait"], row["run"]
        all_of_period = self._tasks(function)
        failed_url = self._tasks(function, status=TaskStatus.FAILED, resolution=ALL_FAILURES)
        # The longest run is the first.
        longest_url = self._tasks(function, sort="-duration")
        last_failed_at = row["last_failed_at"]
        text = _("%(function)s: runs over time, failures on top") % {"function": function.name}
        figures = {
            "ended": (number_format(row["ended"], force_grouping=True), all_of_period),
            "failure_rate": (percent(row["failure_rate"]), failed_url if row["failure_rate"] else ""),
            "wait_p50": (precise_duration(wait_p50) or "–", all_of_period),
            "wait_p95": (precise_duration(wait_p95) or "–", all_of_period),
            "run_p50": (precise_duration(run_p50) or "–", self._longer_than(function, run_p50)),
            "run_p95": (precise_duration(run_p95) or "–", self._longer_than(function, run_p95)),
            "run_max": (precise_duration(run_max) or "–", longest_url),
        }
        return FunctionRow(
            url=f"{self._function_url}?{urlencode({'func': function.func})}" if function.func else "",
            name=(function.name or _("(no function)")).split("_"),
            module=function.module.split("."),
            figures=[(self.labels[name], *figure) for name, figure in figures.items()],
            last_ended=Moment.of(row["last_ended_at"], self._now),
            last_ended_url=f"{self._all_tasks_url}?{urlencode({'function': function.func})}",
            last_failed=Moment.of(last_failed_at, self._now) if last_failed_at else None,
            last_failed_url=f"{self._all_tasks_url}?"
            + urlencode({"function": function.func, "status": "failed", "resolution": ALL_FAILURES}),
            trend=sparkline(
                [
                    Series("pcrud-chart-ok", "", function.succeeded_in),
                    Series("pcrud-chart-bad", "", function.failed_in),
                ],
                text,
            ),
        )

    def _tasks(self, function: FunctionFigures, **filters: str) -> str:
        which = {"function": function.func} if function.func else {}
        return f"{self._tasks_url}&{urlencode({**which, **filters})}"

    def _longer_than(self, function: FunctionFigures, length: timedelta | None) -> str:
        if length is None:
            return ""
        return self._tasks(function, longer_than=f"{length.total_seconds():.3f}", sort="-duration")


def _workers(number: float) -> str:
    """Return a number of workers on average, of which less than one has two digits."""
    return figure(number, 2 if number < 1 else 1)


def _row(function: FunctionFigures) -> dict[str, Any]:
    """Return what the table is sorted by."""
    return {
        "function": function,
        "func": function.func,
        "ended": function.ended,
        "failure_rate": function.failure_rate,
        "wait": wait_times(function.figures),
        "run": run_times(function.figures),
        "last_ended_at": function.figures.last_ended_at,
        "last_failed_at": function.last_failed_at,
    }


class InsightsView(RefreshingPageView):
    """Figures of a period that ends now. They refresh themselves."""

    page_name = "insights"
    required_permission = "view_taskrecord"
    template_name = "powercrud_dashboard/insights/page.html"
    partial_template_name = "powercrud_dashboard/insights/_insights.html"

    @cached_property
    def insights(self) -> Insights:
        cluster = self.request.GET.get("queue", "all")
        period = self.request.GET.get("period", "")
        insights = Insights(period, cluster=None if cluster == "all" else cluster)
        insights.load()
        return insights

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        insights = self.insights
        total = insights.total
        busiest_at, busiest = insights.busiest
        before = insights.failure_rate_before
        pulse = Pulse.now()
        return super().get_context_data(
            title=_("Insights"),
            insights=insights,
            periods=[(name, period.label, name == insights.name) for name, period in PERIODS.items()],
            queues=self._queues(),
            pulse=pulse,
            no_cluster_runs=not pulse.workers,
            ended=number_format(total.ended, force_grouping=True),
            ended_url=self.tasks_url({}),
            failed=number_format(total.failed, force_grouping=True),
            failed_url=self.tasks_url({}, status=TaskStatus.FAILED, resolution=ALL_FAILURES),
            failure_rate=percent(failure_rate(total)),
            failure_rate_before=None if before is None else percent(before),
            wait=[precise_duration(value) for value in wait_times(total)],
            run=[precise_duration(value) for value in run_times(total)],
            busy_workers=_workers(insights.busy_workers),
            busiest=_workers(busiest),
            busiest_at=insights.moment(busiest_at) if busiest >= 0.1 else "",
            charts=insights.charts,
            table=FunctionTable(insights, self, self.request),
            by_queue=[
                (name or queue.main_cluster(), self._queue_url(name), figures, *self._figures_of(figures))
                for name, figures in sorted(insights.queues.items())
            ],
            hosts=[
                (host, ended, failed, percent(failed / ended if ended > 0 else 0), figure(busy, 2))
                for host, ended, failed, busy in insights.hosts
            ],
            max_functions=MAX_FUNCTIONS,
            version=self.current_version(),
            **kwargs,
        )

    def _queue_url(self, name: str) -> str:
        # The list has no filter for the default queue, so that only where there is no other it is all tasks.
        return self.tasks_url({"queue": name}) if name or len(self.insights.queues) == 1 else ""

    @staticmethod
    def _figures_of(figures: Any) -> tuple[str, list[str], list[str]]:
        waits = [precise_duration(value) or "–" for value in wait_times(figures)]
        runs = [precise_duration(value) or "–" for value in run_times(figures)]
        return percent(failure_rate(figures)), waits, runs

    def _queues(self) -> list[tuple[str, str, bool]]:
        """Return the queues to choose from: value, label, whether it is chosen."""
        chosen = self.request.GET.get("queue", "all")
        names = set(self.insights.queues)
        if chosen != "all":
            names |= set(TaskStatistics.objects.values_list("cluster", flat=True).distinct()[:MAX_QUEUES])
        if len(names) < 2 and chosen == "all":
            return []
        return [
            ("all", _("All queues"), chosen == "all"),
            *((name, name or queue.main_cluster(), name == chosen) for name in sorted(names)),
        ]

    def current_version(self) -> str:
        return str(int(time.time() // STALE_AFTER))

    def tasks_url(self, row: dict[str, Any], **filters: Any) -> str:
        """Return the URL of the task list for the tasks of the period, and those of a row of a table."""
        which = {"since": self.insights.since_text}
        if func := row.get("func"):
            which["function"] = func
        if cluster := row.get("queue", self.insights.cluster):
            which["cluster"] = cluster
        return self.list_of(**which, **filters)
