"""The page of a task function: its runs over time, and what changed when it began to fail."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

from django.http import Http404, HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.formats import date_format, number_format
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from powercrud_dashboard.dashboard import access
from powercrud_dashboard.dashboard.charts import Chart, Mark, Point, Scale, Series
from powercrud_dashboard.dashboard.filters import ALL_FAILURES
from powercrud_dashboard.dashboard.formatting import Moment, local, precise_duration
from powercrud_dashboard.dashboard.insights import PERIODS, Insights, failure_rate, percent, run_times, wait_times
from powercrud_dashboard.dashboard.runs import FailureSeries, Runs
from powercrud_dashboard.dashboard.views.base import RefreshingPageView
from powercrud_dashboard.models import TaskEvent, TaskRecord, TaskStatus
from powercrud_dashboard.text import is_storable

#: The page is rendered again after this many seconds.
STALE_AFTER = 60
#: The period that is shown first: an error that began some days ago is in it.
DEFAULT_PERIOD = "7d"
#: Runs in the table behind the chart.
LISTED_RUNS = 50


class FunctionView(RefreshingPageView):
    """One task function. The parameter ``func`` is its path, ``pattern`` an error that is asked about."""

    page_name = "insights"
    required_permission = "view_taskrecord"
    template_name = "powercrud_dashboard/function/page.html"
    partial_template_name = "powercrud_dashboard/function/_function.html"

    func: str

    def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        self.func = request.GET.get("func", "")
        if not self.func or not is_storable(self.func):
            raise Http404(_("Function not found."))
        return super().get(request, *args, **kwargs)

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        # Read the version before the runs, so that the next refresh includes concurrent changes.
        version = self.current_version()
        runs = Runs(self.func, self.request.user)
        asked = self.request.GET.get("period", DEFAULT_PERIOD)
        insights = Insights(asked if asked in PERIODS else DEFAULT_PERIOD, func=self.func)
        insights.load()
        total, series = insights.total, runs.series
        pattern = self.request.GET.get("pattern", "")
        first_seen = runs.first_with(pattern) if pattern and is_storable(pattern) else None
        return super().get_context_data(
            title=self.func.rpartition(".")[2],
            func=self.func,
            insights=insights,
            periods=[(name, period.label, name == insights.name) for name, period in PERIODS.items()],
            ended=number_format(total.ended, force_grouping=True),
            failed=number_format(total.failed, force_grouping=True),
            failure_rate=percent(failure_rate(total)),
            wait=[precise_duration(value) for value in wait_times(total)],
            run=[precise_duration(value) for value in run_times(total)],
            series=series,
            changed=self._changed(series) if series else None,
            first_seen=first_seen,
            first_seen_url=self.url("change", first_seen.pk) if first_seen else "",
            runs_chart=self._runs_chart(runs.newest),
            charts=[chart for chart in insights.charts if chart.key != "wait"],
            releases=self._releases(runs.newest),
            listed=[self._run(record) for record in reversed(runs.newest[-LISTED_RUNS:])],
            tasks_url=self.list_of(function=self.func, since=insights.since_text),
            failed_url=self.list_of(
                function=self.func,
                since=insights.since_text,
                status=TaskStatus.FAILED,
                resolution=ALL_FAILURES,
            ),
            pause_form_url=self.url("pause_queue") if access.may_pause_queues(self.request.user) else "",
            version=version,
            **self.pauses(queue=None, func=self.func),
            **kwargs,
        )

    def current_version(self) -> str:
        return f"{TaskEvent.objects.newest_state()}.{int(time.time() // STALE_AFTER)}"

    def _changed(self, series: FailureSeries) -> dict[str, Any]:
        """Return what the page says of a series of failures."""
        first, last = series.first_bad.finished_at, series.last_bad.finished_at
        return {
            "first": Moment.of(first, timezone.now()).exact if first else "",
            "last": Moment.of(last, timezone.now()).exact if last else "",
            "good_url": self.url("change", series.last_good.pk) if series.last_good else "",
            "bad_url": self.url("change", series.first_bad.pk),
            "last_bad_url": self.url("change", series.last_bad.pk),
            "is_over": series.recovered is not None,
            "recovered_url": self.url("change", series.recovered.pk) if series.recovered else "",
        }

    def _run(self, record: TaskRecord) -> tuple[TaskRecord, str, str, str]:
        where = f"{record.worker_host} {record.worker_pid or ''}".strip() or "–"
        return record, self.url("change", record.pk), precise_duration(record.duration) or "–", where

    @staticmethod
    def _releases(newest: list[TaskRecord]) -> list[tuple[str, int, int, str]]:
        """Return the releases of the newest runs, newest first: runs, failures and their share."""
        counts: dict[str, list[int]] = {}
        for record in reversed(newest):
            numbers = counts.setdefault(record.release, [0, 0])
            numbers[0] += 1
            numbers[1] += record.status == TaskStatus.FAILED
        if set(counts) <= {""}:
            return []
        return [(name or "–", runs, failed, percent(failed / runs)) for name, (runs, failed) in counts.items()]

    def _runs_chart(self, newest: list[TaskRecord]) -> Chart | None:
        ran = [record for record in newest if record.started_at is not None]
        if not ran:
            return None
        moments = [record.finished_at or record.created_at for record in ran]
        first, last = moments[0], moments[-1]
        length = max((last - first).total_seconds(), 1.0)
        seconds = [max(record.run_time.total_seconds(), 0.001) for record in ran]
        places = [(moment - first).total_seconds() / length for moment in moments]
        failed = sum(record.status == TaskStatus.FAILED for record in ran)
        marks: dict[str, Mark] = {}
        for record, place in zip(ran, places, strict=True):
            marks.setdefault(record.release, Mark(place, record.release[:16]))
        text = ngettext("%(count)d run, %(failed)d failed", "%(count)d runs, %(failed)d failed", len(ran))
        return Chart(
            key="runs",
            title=_("Duration of the newest runs"),
            description=text % {"count": len(ran), "failed": failed},
            scale=Scale.of_times(seconds),
            hints=[],
            labels=[(0, _axis_label(first, length)), (1, _axis_label(last, length))],
            lines=[
                Series("pcrud-chart-dot", _("Completed"), []),
                *([Series("pcrud-chart-cross", _("Failed"), [])] if failed else []),
            ],
            points=[
                Point(place, value, self._hint(record), record.status == TaskStatus.FAILED)
                for record, value, place in zip(ran, seconds, places, strict=True)
            ],
            # The first is where the chart begins, and says nothing.
            marks=[mark for name, mark in list(marks.items())[1:] if name][-3:],
        )

    @staticmethod
    def _hint(record: TaskRecord) -> str:
        facts = [
            _moment(record.finished_at),
            str(record.get_status_display()),
            precise_duration(record.run_time),
            record.release,
            record.error_line[:100] if record.status == TaskStatus.FAILED else "",
        ]
        return ", ".join(filter(None, facts))


def _moment(moment: Any) -> str:
    return date_format(local(moment), "SHORT_DATETIME_FORMAT")


def _axis_label(moment: datetime, seconds: float) -> str:
    """Return a time as an axis of so many seconds needs it."""
    return date_format(local(moment), "MONTH_DAY_FORMAT" if seconds > 86_400 else "TIME_FORMAT")
