"""How long tasks usually run, from the statistics."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta

from django.db.models import F, Window
from django.db.models.functions import RowNumber
from django.utils import timezone

from powercrud_dashboard.models import TaskStatistics
from powercrud_dashboard.models.statistics import Histogram

#: The rows of a function that are read, the newest with runs: minutes, hours or days.
ROWS = 24
#: Nothing older is taken for usual.
RECENT = timedelta(days=60)
#: Fewer runs tell nothing.
MIN_RUNS = 3


def usual_run_times(functions: Collection[str]) -> dict[str, timedelta]:
    """Return the median of the newest run times of each function of which enough is known, in one query."""
    if not functions:
        return {}
    newest = Window(RowNumber(), partition_by=F("func"), order_by=F("start").desc())
    rows = (
        TaskStatistics.objects.filter(func__in=functions, start__gte=timezone.now() - RECENT, run_ms__gt=0)
        .annotate(place=newest)
        .filter(place__lte=ROWS)
        .values_list("func", "runs", "max_run_ms")
    )
    histograms: dict[str, Histogram] = {}
    longest: dict[str, int] = {}
    for func, runs, max_run_ms in rows:
        histograms.setdefault(func, Histogram()).add_packed(runs)
        longest[func] = max(longest.get(func, 0), max_run_ms)
    medians = {
        func: histogram.percentile(0.5, longest[func])
        for func, histogram in histograms.items()
        if histogram.total() >= MIN_RUNS
    }
    return {func: median for func, median in medians.items() if median is not None}
