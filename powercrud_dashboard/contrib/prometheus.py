"""Metrics for Prometheus. Needs the package prometheus-client: ``pip install "powercrud-dashboard[prometheus]"``."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Any

from django.db import Error as DatabaseError
from django.db import close_old_connections, connections
from django.db.models import Count
from django.http import HttpRequest, HttpResponse
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from powercrud_dashboard.dashboard.listing import CappedCount
from powercrud_dashboard.dashboard.views.health import MonitoringView
from powercrud_dashboard.engine.statistics import Figures
from powercrud_dashboard.engine.vitals import Workers, waiting_by_queue
from powercrud_dashboard.models import ActiveTask, Alert, ConflictLock, TaskTotal
from powercrud_dashboard.models.prepared import values_of
from powercrud_dashboard.models.statistics import PER_DOUBLING, Histogram
from powercrud_dashboard.q2 import queue

__all__ = ["MetricsView", "TaskCollector"]

logger = logging.getLogger(__name__)

UNREADABLE = "The metrics can't be read from the database now"
#: Pairs of function and queue that have series of their own; the others are added up.
MAX_SERIES = 200
OTHER = "other"
#: The limits of the buckets are 2 to the power of these, in milliseconds: from 16 milliseconds to 4.7 hours. They are
#: limits of the histograms' intervals too, so that the buckets are exact.
EXPONENTS = range(4, 25, 2)


class _Tasks(Collector):
    """Reads all metrics, in five queries whose cost does not grow with the history."""

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that a registry does not read the database when this is registered."""
        return []

    def collect(self) -> Iterable[Metric]:
        yield from self._of_queues()
        locks, alerts = values_of(
            lambda: [
                CappedCount(ConflictLock.objects.values("pk")),
                CappedCount(Alert.objects.all().open().values("pk")),
            ],
            "metrics",
        )
        yield GaugeMetricFamily("pcrud_locks", "Objects that are locked.", value=locks or 0)
        yield GaugeMetricFamily("pcrud_alerts", "Alerts that are open.", value=alerts or 0)
        yield from self._of_ended_tasks()

    @staticmethod
    def _of_queues() -> Iterator[Metric]:
        waiting, workers = waiting_by_queue(), Workers.now()
        running: dict[str, int] = {}
        rows: Any = ActiveTask.objects.running().order_by().values_list("cluster").annotate(Count("pk"))
        for cluster, number in rows:
            name = cluster or queue.main_cluster()
            running[name] = running.get(name, 0) + number
        gauges = {
            "waiting": GaugeMetricFamily("pcrud_queue_tasks", "Tasks that a worker may take now.", labels=["queue"]),
            "wait": GaugeMetricFamily(
                "pcrud_queue_oldest_wait_seconds", "How long the oldest of them has waited.", labels=["queue"]
            ),
            "running": GaugeMetricFamily("pcrud_running_tasks", "Tasks that run now.", labels=["queue"]),
            "workers": GaugeMetricFamily("pcrud_workers", "Workers that send heartbeats.", labels=["queue"]),
        }
        for name in sorted({*queue.cluster_settings(), *waiting, *workers.queues, *running}):
            its = waiting.get(name)
            gauges["waiting"].add_metric([name], its.tasks if its else 0)
            gauges["wait"].add_metric([name], its.oldest_wait.total_seconds() if its else 0)
            gauges["running"].add_metric([name], running.get(name, 0))
            gauges["workers"].add_metric([name], sum(worker.cluster == name for worker in workers.alive))
        yield from gauges.values()

    @staticmethod
    def _of_ended_tasks() -> Iterator[Metric]:
        labels = ["function", "queue"]
        finished = CounterMetricFamily("pcrud_tasks_finished", "Tasks that have ended.", labels=[*labels, "outcome"])
        waits = HistogramMetricFamily("pcrud_task_wait_seconds", "Time from launch to start.", labels=labels)
        runs = HistogramMetricFamily("pcrud_task_run_seconds", "Time that tasks ran.", labels=labels)
        for function, name, total in _totals():
            for outcome in ("completed", "failed", "cancelled"):
                finished.add_metric([function, name, outcome], getattr(total, outcome))
            waits.add_metric([function, name], _buckets(total.waits), total.wait_ms / 1_000)
            runs.add_metric([function, name], _buckets(total.runs), total.run_ms / 1_000)
        yield from (finished, waits, runs)


class TaskCollector(_Tasks):
    """Reads all metrics for a registry of the project, in five queries whose cost does not grow with the history.

    There are none, and the error is logged, while the database can't be read: an error would take the metrics of all
    other collectors of the registry with it.
    """

    def collect(self) -> Iterable[Metric]:
        kept = {it.alias for it in connections.all(initialized_only=True) if it.connection is not None}
        try:
            return list(super().collect())
        except DatabaseError:
            logger.warning(UNREADABLE, exc_info=True)
            # No request ends in a thread that serves metrics, which would give up a connection that is lost.
            close_old_connections()
            return []
        finally:
            # Nor would it give this one back, to a pool for instance, and the server may have a thread for each scrape.
            for connection in connections.all(initialized_only=True):
                if connection.alias not in kept:
                    connection.close()


def _totals() -> Iterator[tuple[str, str, Figures]]:
    """Return the totals of each function and queue; those beyond the limit added up.

    In the order of their first ends, so that what has series of its own keeps them.
    """
    totals: dict[tuple[str, str], Figures] = {}
    for row in TaskTotal.objects.order_by("pk"):
        key = row.func, row.cluster or queue.main_cluster()
        if key not in totals and len(totals) >= MAX_SERIES:
            key = OTHER, OTHER
        totals.setdefault(key, Figures()).merge(Figures.of_total(row))
    for (func, name), figures in totals.items():
        yield func, name, figures


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    so_far = list(accumulate(histogram.counts))
    limits = [(str(2**exponent / 1_000), so_far[PER_DOUBLING * exponent]) for exponent in EXPONENTS]
    return [*limits, ("+Inf", so_far[-1])]


class MetricsView(MonitoringView):
    """The metrics in the format that Prometheus reads, behind the token of the health address."""

    def get(self, request: HttpRequest) -> HttpResponse:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Tasks())
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        try:
            return HttpResponse(encode(registry), content_type=content_type)
        except DatabaseError:
            logger.warning(UNREADABLE, exc_info=True)
            return self.unavailable(HttpResponse(UNREADABLE, content_type="text/plain"))
