"""What it costs to observe the tasks of plain django-q2: the same tasks through a cluster, observed and not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from tests.benchmarks.parts import WORK, cluster, empty_queue, line

#: Tasks of one measurement, and how often each is made. Tasks after which a cluster runs at its full speed.
TASKS = {"sqlite": 3000, "postgresql": 1000, "postgresql-redis": 3000}
ROUNDS = 3
FIRST_TASKS = 600


def tracking(environment: str) -> Iterator[dict[str, Any]]:
    """Tasks that are queued already, through a cluster with two workers, until django-q2 has saved all."""
    from django.db import connection

    yield _through_cluster("one task of plain django-q2 through a cluster", TASKS[environment])
    if connection.vendor == "postgresql":
        kept = "one task of plain django-q2 through a cluster, connections kept"
        yield _through_cluster(kept, TASKS["sqlite"], PCRUD_BENCH_CONN_MAX_AGE="600")


def _through_cluster(what: str, tasks: int, **environment: str) -> dict[str, Any]:
    from django_q.models import Task
    from django_q.tasks import async_task

    from powercrud_dashboard.models import TaskRecord
    from tests.benchmarks.clock import of
    from tests.services import wait_until

    rates: dict[str, list[float]] = {"tracked": [], "bare": []}
    for _ in range(ROUNDS):
        for name, track in (("tracked", "all"), ("bare", "own")):
            empty_queue()
            already = TaskRecord.objects.count()
            for _number in range(tasks):
                async_task(f"{WORK}.nothing", 1, a=2)
            with cluster(PCRUD_BENCH_TRACK=track, **environment):
                wait_until(lambda: Task.objects.count() >= FIRST_TASKS, f"the first tasks end ({name})", 120)
                start, first = time.perf_counter(), Task.objects.count()
                wait_until(lambda: Task.objects.count() >= tasks, f"all tasks end ({name})", 120)
                rates[name].append((time.perf_counter() - start) / (tasks - first))
                recorded = already + (tasks if name == "tracked" else 0)
                wait_until(partial(_are_there, recorded), "all are recorded", 60)
    return line(what, "ms", {name: of(seconds) for name, seconds in rates.items()})


def _are_there(records: int) -> bool:
    from powercrud_dashboard.models import TaskRecord

    return TaskRecord.objects.count() == records
