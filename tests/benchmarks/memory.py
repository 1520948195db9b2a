"""What a worker process takes, with this package and without."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.clock import Timing, of
from tests.benchmarks.parts import cluster, empty_queue, line
from tests.services import wait_until

TASKS = 40


def memory() -> Iterator[dict[str, Any]]:
    """The resident memory of a worker that has run a few tasks, in bytes."""
    from django_q.tasks import async_task

    from powercrud_dashboard.dashboard_manager import DashboardAsyncManager

    manager = DashboardAsyncManager()
    sizes: dict[str, list[float]] = {"bare": [], "ours": []}
    for _ in range(3):
        sizes["bare"].append(_worker(lambda: async_task("math.floor", 1), "bare"))
        sizes["ours"].append(_worker(lambda: manager.launch_async_task("math.floor", 1), "ours"))
    timings: dict[str, Timing] = {name: of(found) for name, found in sizes.items()}
    yield line("a worker's resident memory", "MB", timings)


def _worker(launch: Callable[[], object], apps: str) -> float:
    from django_q.models import Task

    from powercrud_dashboard import queueing

    empty_queue()
    with cluster(PCRUD_BENCH_APPS=apps) as process:
        for _ in range(TASKS):
            launch()
        wait_until(lambda: Task.objects.count() >= TASKS, "the tasks end", 120)
        workers = [pid for state in queueing.clusters() if state.pid == process.pid for pid in state.workers]
        return statistics.mean(_resident(pid) for pid in workers)


def _resident(pid: int) -> float:
    found = re.search(r"^VmRSS:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found, "Linux tells"
    return int(found[1]) * 1024
