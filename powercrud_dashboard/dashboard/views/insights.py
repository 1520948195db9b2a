"""Throughput, failures, waits and run times over time, by queue, by host and by function."""

from __future__ import annotations

import time
from typing import Any

import django_tables2 as tables
from django.http import HttpRequest
from django.utils.formats import number_format
from django.utils.functional import cached_property
from django.utils.html import format_html, format_html_join
from django.utils.safestring import mark_safe
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from powercrud_dashboard.dashboard.charts import Series, sparkline
from powercrud_dashboard.dashboard.filters import ALL_FAILURES
from powercrud_dashboard.dashboard.formatting import precise_duration
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
from powercrud_dashboard.dashboard.tables import link, time_html
from powercrud_dashboard.dashboard.views.base import RefreshingPageView
from powercrud_dashboard.models import TaskStatistics
from powercrud_dashboard.models.statuses import TaskStatus
from powercrud_dashboard.q2 import queue

#: The page is rendered again after this many seconds.
STALE_AFTER = 30
#: Queues that can be chosen.
MAX_QUEUES = 50

_NUMBER = {"td": {"class": "pcrud-number"}, "th": {"class": "pcrud-number"}}


def _time_column(label: Any, accessor: Any) -> tables.Column:
    return tables.Column(
        verbose_name=label, accessor=accessor, attrs=_NUMBER, initial_sort_descending=True, empty_values=()
    )


class FunctionTable(tables.Table):  # type: ignore[misc]
    """The figures of each function, each with a link to the tasks behind it."""

    func = tables.Column(verbose_name=gettext_lazy("Function"), attrs={"td": {"class": "pcrud-label"}})
    ended = tables.Column(verbose_name=gettext_lazy("Runs"), attrs=_NUMBER, initial_sort_descending=True)
    failure_rate = tables.Column(verbose_name=gettext_lazy("Failed"), attrs=_NUMBER, initial_sort_descending=True)
    wait_p50 = _time_column(gettext_lazy("Wait p50"), "wait__0")
    wait_p95 = _time_column(gettext_lazy("Wait p95"), "wait__1")
    run_p50 = _time_column(gettext_lazy("Run p50"), "run__0")
    run_p95 = _time_column(gettext_lazy("Run p95"), "run__1")
    run_max = _time_column(gettext_lazy("Run max"), "run__2")
    last_ended_at = tables.Column(verbose_name=gettext_lazy("Last run"), attrs=_NUMBER, initial_sort_descending=True)
    last_failed_at = tables.Column(
        verbose_name=gettext_lazy("Last failure"), attrs=_NUMBER, initial_sort_descending=True, empty_values=()
    )
    trend = tables.Column(verbose_name=gettext_lazy("Trend"), empty_values=(), orderable=False)

    class Meta:
        template_name = "powercrud_dashboard/tasks/_table.html"
        empty_text = gettext_lazy("No task has ended in this period.")

    def __init__(self, insights: Insights, view: InsightsView, request: HttpRequest) -> None:
        self._view, self._now = view, insights.now
        rows = [_row(function) for function in insights.largest_functions]
        super().__init__(rows, order_by="-ended")
        tables.RequestConfig(request, paginate=False).configure(self)

    def render_func(self, record: dict[str, Any]) -> str:
        function: FunctionFigures = record["function"]
        return format_html(
            '<a href="{}" data-pcrud-row>{}</a> <span class="pcrud-module">{}</span>',
            self._view.function_url(function.func),
            function.name or _("(no function)"),
            # A line may end after each dot.
            format_html_join(mark_safe(".<wbr>"), "{}", ([part] for part in function.module.split("."))),
        )

    def render_ended(self, record: dict[str, Any]) -> str:
        return link(self._view.tasks_url(record), number_format(record["ended"], force_grouping=True))

    def render_failure_rate(self, record: dict[str, Any]) -> str:
        text = percent(record["failure_rate"])
        return (
            link(self._view.tasks_url(record, status=TaskStatus.FAILED, resolution=ALL_FAILURES), text)
            if record["failure_rate"]
            else text
        )

    def render_wait_p50(self, record: dict[str, Any]) -> str:
        return link(self._view.tasks_url(record), precise_duration(record["wait"][0]) or "–")

    def render_wait_p95(self, record: dict[str, Any]) -> str:
        return link(self._view.tasks_url(record), precise_duration(record["wait"][1]) or "–")

    def render_run_p50(self, record: dict[str, Any]) -> str:
        return self._longer_than(record, 0)

    def render_run_p95(self, record: dict[str, Any]) -> str:
        return self._longer_than(record, 1)

    def render_run_max(self, record: dict[str, Any]) -> str:
        # The longest run is the first.
        return link(self._view.tasks_url(record, sort="-duration"), precise_duration(record["run"][2]) or "–")

    def _longer_than(self, record: dict[str, Any], number: int) -> str:
        length = record["run"][number]
        if length is None:
            return "–"
        seconds = f"{length.total_seconds():.3f}"
        return link(self._view.tasks_url(record, longer_than=seconds, sort="-duration"), precise_duration(length))

    def render_last_ended_at(self, record: dict[str, Any]) -> str:
        return link(self._view.list_of(function=record["func"]), time_html(record["last_ended_at"], self._now))

    def render_last_failed_at(self, record: dict[str, Any]) -> str:
        if record["last_failed_at"] is None:
            return _("never")
        url = self._view.list_of(function=record["func"], status=TaskStatus.FAILED, resolution=ALL_FAILURES)
        return link(url, time_html(record["last_failed_at"], self._now))

    def render_trend(self, record: dict[str, Any]) -> str:
        function: FunctionFigures = record["function"]
        series = [
            Series("pcrud-chart-ok", "", function.succeeded_in),
            Series("pcrud-chart-bad", "", function.failed_in),
        ]
        text = _("%(function)s: runs over time, failures on top") % {"function": function.name}
        return sparkline(series, text)


def _row(function: FunctionFigures) -> dict[str, Any]:
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
            busy_workers=number_format(insights.busy_workers, 1),
            busiest=number_format(busiest, 1),
            busiest_at=insights.moment(busiest_at) if busiest >= 0.1 else "",
            charts=insights.charts,
            table=FunctionTable(insights, self, self.request),
            by_queue=[
                (name or queue.current_cluster(), self._queue_url(name), figures, *self._figures_of(figures))
                for name, figures in sorted(insights.queues.items())
            ],
            hosts=[
                (host, ended, failed, percent(failed / ended if ended > 0 else 0), number_format(busy, 2))
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
        known = set(TaskStatistics.objects.values_list("cluster", flat=True).distinct()[:MAX_QUEUES])
        names = sorted(known | set(self.insights.queues))
        if len(names) < 2 and chosen == "all":
            return []
        return [
            ("all", _("All queues"), chosen == "all"),
            *((name, name or queue.current_cluster(), name == chosen) for name in names),
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
