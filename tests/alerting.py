"""What the tests of alerts need: the next evaluation, workers as their rows show them, and somebody to be told."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Iterator
from datetime import timedelta

from django.db.models import F
from django.utils import timezone

from powercrud_dashboard.engine import alerts
from powercrud_dashboard.models import Alert, AlertEvaluation, TaskRecord, WorkerProcess
from powercrud_dashboard.q2 import queue

#: What ``tell`` was told.
told: list[dict] = []


def tell(alert: dict) -> None:
    told.append(alert)


async def tell_later(alert: dict) -> None:
    await asyncio.sleep(0)
    told.append(alert)


def tell_step_by_step(alert: dict) -> Iterator[None]:
    told.append(alert)
    yield


def refuse(alert: dict) -> None:
    raise ConnectionError("nobody there")


def is_quiet() -> bool:
    """Return whether no thread of this process evaluates alerts or sends messages."""
    return not any(thread.name.startswith("powercrud-dashboard-alert") for thread in threading.enumerate())


def later(seconds: float = 30) -> None:
    """Let so much time pass until the next evaluation."""
    earlier = timedelta(seconds=seconds)
    AlertEvaluation.objects.update(
        due_at=timezone.now() - timedelta(seconds=1), without_workers_since=F("without_workers_since") - earlier
    )


def evaluate(*, times: int = 2) -> None:
    """Evaluate so often, each time half a minute after the last."""
    for _time in range(times):
        later()
        assert alerts.evaluate()


def worker(pid: int, *, started: float = 3_600, silent: float = 0, cluster: str | None = None) -> WorkerProcess:
    """A worker on another host that was started, and has sent its last heartbeat, so many seconds ago."""
    now = timezone.now()
    return WorkerProcess.objects.create(
        identity=uuid.uuid4().hex,
        host="web1",
        pid=pid,
        cluster=queue.current_cluster() if cluster is None else cluster,
        started_at=now - timedelta(seconds=started),
        heartbeat_at=now - timedelta(seconds=silent),
        clock_at=now - timedelta(seconds=silent),
    )


def ended(count: int, status: str, *, func: str = "app.work", minutes: float = 1, **fields: object) -> None:
    """Tasks that have ended so many minutes ago."""
    at = timezone.now() - timedelta(minutes=minutes)
    TaskRecord.objects.bulk_create(
        TaskRecord(task_name=uuid.uuid4().hex, label=func, func=func, status=status, finished_at=at, **fields)
        for _number in range(count)
    )


def open_alerts() -> list[tuple[str, str]]:
    return sorted(Alert.objects.all().open().values_list("kind", "subject"))


def past_alerts() -> list[tuple[str, str]]:
    return sorted(Alert.objects.all().past().values_list("kind", "subject"))
