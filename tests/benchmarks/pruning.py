"""Whether launches wait while much of a long history is pruned."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from tests.benchmarks.clock import Timing, of
from tests.benchmarks.parts import WORK, empty_queue, line

PRUNE = """
import django
django.setup()
from django.conf import settings
settings.POWERCRUD_SETTINGS = {**settings.POWERCRUD_SETTINGS, "DASHBOARD_RETENTION_DAYS": %r}
from powercrud_dashboard.dashboard_manager import DashboardAsyncManager
print(DashboardAsyncManager().cleanup_completed_tasks()["pruned_records"])
"""


def pruning(records: int, share: float) -> Iterator[dict[str, Any]]:
    """A launch every few milliseconds, without and with a prune of this share of the records beside it."""
    from powercrud_dashboard.dashboard_manager import DashboardAsyncManager
    from powercrud_dashboard.models import TaskRecord
    from powercrud_dashboard.models.statuses import FINISHED

    manager = DashboardAsyncManager()
    oldest_first = TaskRecord.objects.order_by("created_at").values_list("created_at", flat=True)
    days = (_now() - oldest_first[int(records * share)]) / timedelta(days=1)
    retention = {str(status): days for status in FINISHED}
    empty_queue()
    quiet = [_launch(manager) for _ in range(200)]
    prune = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", PRUNE % retention], stdout=subprocess.PIPE, text=True
    )
    began, beside = time.perf_counter(), []
    while prune.poll() is None:
        beside.append(_launch(manager))
        time.sleep(0.01)
    took = time.perf_counter() - began
    assert prune.returncode == 0
    assert prune.stdout is not None
    pruned = int(prune.stdout.read())
    timings: dict[str, Timing] = {"alone": of(quiet), "beside it": of(beside)}
    yield line(f"a launch while {pruned:,} records are pruned in {took:.0f} s", "ms", timings)
    empty_queue()


def _launch(manager: Any) -> float:
    start = time.perf_counter()
    manager.launch_async_task(f"{WORK}.nothing")
    return time.perf_counter() - start


def _now() -> Any:
    from django.utils import timezone

    return timezone.now()
