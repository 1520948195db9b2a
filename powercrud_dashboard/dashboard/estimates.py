"""How long tasks usually run, from the statistics."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from datetime import timedelta
from functools import lru_cache

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
#: Seconds for which a process keeps what it has read for the task list.
KEPT_FOR = 60


def kept_run_times(host: str, functions: Collection[str]) -> Mapping[str, timedelta]:
    """Return :func:`usual_run_times`, of up to a minute ago.

    ``host`` is the request's: projects with tenants choose their database or schema by it.
    """
    return _kept(host, frozenset(functions), time.time() // KEPT_FOR)


@lru_cache(maxsize=100)
def _kept(host: str, functions: frozenset[str], minute: float) -> Mapping[str, timedelta]:
    return usual_run_times(functions)


def forget_run_times() -> None:
    """Have the next list read them again."""
    _kept.cache_clear()


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
