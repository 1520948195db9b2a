"""What several measurements need: a line of the table, a cluster, an empty queue."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

WORK = "tests.benchmarks.work"
LIST = "/admin/powercrud_dashboard/taskrecord/"


def line(what: str, unit: str, timings: dict[str, Any], **facts: Any) -> dict[str, Any]:
    return {"what": what, "unit": unit, "timings": {name: it.as_json() for name, it in timings.items()}, **facts}


@contextmanager
def cluster(**environment: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "django", "qcluster"],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def empty_queue() -> None:
    from django.core.cache import cache
    from django_q.brokers import get_broker
    from django_q.models import Task

    from powercrud_dashboard.models import ActiveTask, ConflictLock, WorkerProcess

    get_broker().purge_queue()
    ConflictLock.objects.all()._raw_delete("default")
    ActiveTask.objects.all()._raw_delete("default")
    WorkerProcess.objects.all()._raw_delete("default")
    Task.objects.all()._raw_delete("default")
    cache.clear()
