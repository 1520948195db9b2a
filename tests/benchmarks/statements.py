"""What each prepared statement is worth: launches and tasks with all of them, and with all but one.

python -m tests.benchmarks.bench --only statements
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from tests.benchmarks.clock import of
from tests.benchmarks.parts import WORK, empty_queue, line

#: Launches and tasks of one round, and rounds; in each round every variant is measured once.
PER_ROUND = 150
ROUNDS = 12


def statements() -> Iterator[dict[str, Any]]:
    """Measure them in one process, without a cluster beside it."""
    from powercrud_dashboard.models import coordination, history
    from powercrud_dashboard.models.prepared import _Prepared

    known: dict[str, Any] = {
        f"without {name.strip('_').lower()}": statement
        for module in (coordination, history)
        for name, statement in vars(module).items()
        if isinstance(statement, _Prepared)
    }
    variants = {"all prepared": None, **known}
    launches: dict[str, list[float]] = {name: [] for name in variants}
    tasks: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(-1, ROUNDS):
        for name, statement in variants.items():
            with _unprepared(statement):
                launch, task = _measure()
            if number >= 0:
                launches[name].append(launch)
                tasks[name].append(task)
    yield line("a launch", "ms", {name: of(taken) for name, taken in launches.items()})
    yield line("a task in one process", "ms", {name: of(taken) for name, taken in tasks.items()})


def _measure() -> tuple[float, float]:
    """Return the seconds of one launch and of one task."""
    from django_q.models import OrmQ

    from powercrud_dashboard.dashboard_manager import DashboardAsyncManager
    from powercrud_dashboard.engine import processes

    manager = DashboardAsyncManager()
    empty_queue()
    processes.this_process().beat()
    start = time.perf_counter()
    for _ in range(PER_ROUND):
        manager.launch_async_task(f"{WORK}.nothing", 1, a=2)
    launched = time.perf_counter()
    calls = [queued.task["func"] for queued in OrmQ.objects.all()]
    begun = time.perf_counter()
    for call in calls:
        call()
    return (launched - start) / PER_ROUND, (time.perf_counter() - begun) / PER_ROUND


@contextmanager
def _unprepared(statement: Any) -> Iterator[None]:
    """Have Django write this statement each time, as it does for a queryset or a save."""
    from powercrud_dashboard.models.prepared import PreparedSave

    if statement is None:
        yield
    elif isinstance(statement, PreparedSave):
        with patch.object(statement, "save", lambda row: row.save(force_insert=True)):
            yield
    else:
        prepared = statement._executed

        def write_and_execute(*args: Any, **kwargs: Any) -> Any:
            statement._statements.clear()
            return prepared(*args, **kwargs)

        with patch.object(statement, "_executed", write_and_execute):
            yield
