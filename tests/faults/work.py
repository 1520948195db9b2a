"""What the tasks of a round do, and the managers that launch them."""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from django.conf import settings

from powercrud_dashboard.async_context import get_current_task
from powercrud_dashboard.dashboard_manager import DashboardAsyncManager
from tests.faults.crashes import crash_here
from tests.faults.ledger import Ledger
from tests.faults.ways import TICK, WAYS


def work(
    ledger: str,
    objects: list[str],
    seconds: float,
    outcome: str = "done",
    way: str = "",
    others: Sequence[str] = (),
    *,
    task_key: str = "",
) -> Any:
    """Work on these objects for so long, then end in the wanted way.

    Args:
        ledger: the path of the round's ledger.
        objects: what the task was launched for.
        seconds: how long it works.
        outcome: how it ends.
        way: what it does before that, see ``ways.WAYS``.
        others: objects that it may lock as well.
        task_key: the task's name.
    """
    with _ledger(ledger).run(task_key, objects) as book:
        if way:
            objects = WAYS[way](book, objects, list(others))
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(TICK)
            book.tick(objects)
            crash_here("in the function")
            get_current_task().update_progress(f"{end - time.monotonic():.1f} s to go")
            get_current_task().check_paused()
        if outcome == "fails":
            raise ValueError("this one fails")
        if outcome == "runs out of memory":
            _allocate_too_much()
        if outcome == "dies of memory":
            crash_here("in the function")
    return RESULTS.get(outcome, lambda: outcome)()


def _ledger(path: str) -> Ledger:
    return Ledger(Path(path), settings.OPTIONS.get("cluster", ""))


RESULTS = {
    "returns what can't be pickled": threading.Lock,
    "returns very much": lambda: "x" * 100_000_000,
    "returns NUL": lambda: {"text": "a\x00b\ud800", "nested": ["\x00"]},
}


def ignore_its_time_limit(ledger: str, objects: list[str], *, task_key: str = "") -> None:
    with _ledger(ledger).run(task_key, objects) as book:
        # The worker's own time limit ends its process.
        book.note("killed")
        while True:
            try:
                time.sleep(TICK)
                book.tick(objects)
            except BaseException:
                continue


def _allocate_too_much() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + 50_000_000, before[1]))
    try:
        bytearray(500_000_000)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


class Manager(DashboardAsyncManager):
    """Its processes can be killed in the middle of the transactions that begin and end a task."""

    def record_lifecycle_events(self, task_name: str, events: Sequence[tuple[str, dict[str, Any]]]) -> None:
        super().record_lifecycle_events(task_name, events)
        for event, _payload in events:
            if event == "start":
                crash_here("while claiming")
            if event in ("complete", "fail"):
                crash_here("while finishing")


class RaisingManager(Manager):
    def async_task_lifecycle(self, event: str, task_name: str, **payload: Any) -> None:
        raise RuntimeError(f"no {event} for you")


class HangingManager(Manager):
    def async_task_lifecycle(self, event: str, task_name: str, **payload: Any) -> None:
        if event in ("start", "complete"):
            time.sleep(3)
