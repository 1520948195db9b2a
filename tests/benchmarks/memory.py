"""What a worker process takes, with this package and without."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.clock import of
from tests.benchmarks.parts import cluster, empty_queue, line
from tests.services import wait_until

TASKS = 40


def memory() -> Iterator[dict[str, Any]]:
    """The memory, in bytes, of a worker that has run a few tasks: all, and what it shares with no other process."""
    from django_q.tasks import async_task

    from powercrud_dashboard.dashboard_manager import DashboardAsyncManager

    manager = DashboardAsyncManager()
    launches: dict[str, Callable[[], object]] = {
        "bare": lambda: async_task("math.floor", 1),
        "ours": lambda: manager.launch_async_task("math.floor", 1),
    }
    resident: dict[str, list[float]] = {name: [] for name in launches}
    unshared: dict[str, list[float]] = {name: [] for name in launches}
    for _ in range(3):
        for name, launch in launches.items():
            of_all, of_its_own = _worker(launch, name)
            resident[name].append(of_all)
            unshared[name].append(of_its_own)
    for what, sizes in (("a worker's resident memory", resident), ("what it shares with no other process", unshared)):
        yield line(what, "MB", {name: of(found) for name, found in sizes.items()})


def _worker(launch: Callable[[], object], apps: str) -> tuple[float, float]:
    """Return what a worker takes, and what of it is its own."""
    from django_q.models import Task

    from powercrud_dashboard.q2 import queue

    empty_queue()
    with cluster(PCRUD_BENCH_APPS=apps) as process:
        for _ in range(TASKS):
            launch()
        wait_until(lambda: Task.objects.count() >= TASKS, "the tasks end", 120)
        workers = [pid for state in queue.clusters() if state.pid == process.pid for pid in state.workers]
        sizes = [_sizes(pid) for pid in workers]
    return (
        statistics.mean(size["Rss"] for size in sizes),
        statistics.mean(size["Private_Clean"] + size["Private_Dirty"] for size in sizes),
    )


def _sizes(pid: int) -> dict[str, int]:
    found = re.findall(r"^(\w+):\s+(\d+) kB$", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    return {name: int(kilobytes) * 1024 for name, kilobytes in found}
