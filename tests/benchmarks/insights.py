"""The statistics: how long it takes to make them, their size beside that of the records, and the pages made of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from tests.benchmarks.parts import LIST, line

PAGES = {
    "1 h": "insights/?period=1h",
    "24 h": "insights/?period=24h",
    "7 d": "insights/?period=7d",
    "30 d": "insights/?period=30d",
    "a function": "function/?func=billing.tasks.send_invoices",
}
#: Records that are counted while it is measured.
COUNTED = 20_000


def insights(records: int) -> Iterator[dict[str, Any]]:
    """Measure with so many records, which are added unless they are there."""
    from django.contrib.auth.models import User
    from django.db import connection
    from django.test import Client
    from django.test.utils import CaptureQueriesContext

    from powercrud_dashboard.dashboard.pulse import Pulse
    from powercrud_dashboard.engine import statistics
    from powercrud_dashboard.models import TaskRecord, TaskStatistics
    from tests.benchmarks.clock import in_turn, of
    from tests.benchmarks.seed import fill

    if TaskRecord.objects.count() < records:
        fill(records)
    analyze(connection)
    seconds, number = _count(statistics, TaskRecord)
    if number:  # In a database that was kept, all are counted already.
        yield line("one record counted by cleanup", "µs", {"ours": of([seconds / number])})
    statistics.merge_old()
    analyze(connection)
    sizes = {model: _bytes(connection, model) for model in (TaskRecord, TaskStatistics)}
    rows = TaskStatistics.objects.count()
    share = 100 * sizes[TaskStatistics] / (sizes[TaskRecord] * _part_of_a_year(TaskRecord))
    yield line(
        f"size of the statistics: {rows:,} rows, {share:.2f} % of the records of the same time",
        "MB",
        {"statistics": of([sizes[TaskStatistics]]), "records": of([sizes[TaskRecord]])},
    )
    client = Client()
    client.force_login(User.objects.get())
    queries = {}
    for name, address in PAGES.items():
        with CaptureQueriesContext(connection) as captured:
            assert client.get(LIST + address).status_code == 200
        queries[name] = len(captured)
    timings = in_turn({name: (lambda it=it: client.get(LIST + it)) for name, it in PAGES.items()}, rounds=9)
    yield line(f"insights, {records:,} records", "ms", timings, queries=queries)
    yield line("whether the queue keeps up", "ms", in_turn({"ours": Pulse.now}, rounds=15))


def _count(statistics: Any, records: Any) -> tuple[float, int]:
    """Count all records; return the time that the last of them took, and their number."""
    last = list(records.objects.uncounted().order_by("-finished_at").values_list("pk", flat=True)[:COUNTED])
    records.objects.filter(pk__in=last).update(is_counted=True)
    statistics.count_ended()
    records.objects.filter(pk__in=last).update(is_counted=False)
    start = time.perf_counter()
    number = statistics.count_ended()
    return time.perf_counter() - start, number


def _part_of_a_year(records: Any) -> float:
    """Return which part of the records is not older than the statistics are kept."""
    from datetime import timedelta

    from django.utils import timezone

    recent = records.objects.filter(created_at__gte=timezone.now() - timedelta(days=366)).count()
    return recent / max(1, records.objects.count())


def analyze(connection: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE" if connection.vendor == "postgresql" else "ANALYZE")


def _bytes(connection: Any, model: Any) -> float:
    """Return the size of a table with its indexes."""
    table = model._meta.db_table
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SELECT pg_total_relation_size(%s)", [table])
        else:
            cursor.execute(
                """SELECT SUM(pgsize) FROM dbstat WHERE name IN
                   (SELECT name FROM sqlite_master WHERE tbl_name = %s)""",
                [table],
            )
        return float(cursor.fetchone()[0])
