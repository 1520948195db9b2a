"""What the tasks of a round do, and the managers that launch them."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from powercrud_dashboard.async_context import get_current_task
from powercrud_dashboard.dashboard_manager import DashboardAsyncManager
from tests.faults.crashes import crash_here
from tests.faults.ledger import Ledger

#: Seconds between two entries of a run in the ledger.
TICK = 0.03


def work(ledger: str, objects: list[str], seconds: float, outcome: str = "done", *, task_key: str = "") -> Any:
    """Work on these objects for so long, then end in the wanted way."""
    with Ledger(Path(ledger)).run(task_key, objects) as book:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(TICK)
            book.tick(task_key, objects)
            crash_here("in the function")
            get_current_task().update_progress(f"{end - time.monotonic():.1f} s to go")
        if outcome == "fails":
            raise ValueError("this one fails")
        if outcome == "runs out of memory":
            _allocate_too_much()
        if outcome == "dies of memory":
            crash_here("in the function")
    return RESULTS.get(outcome, lambda: outcome)()


RESULTS = {
    "returns what can't be pickled": lambda: (number for number in range(3)),
    "returns very much": lambda: "x" * 100_000_000,
    "returns NUL": lambda: {"text": "a\x00b\ud800", "nested": ["\x00"]},
}


def ignore_its_time_limit(ledger: str, objects: list[str], *, task_key: str = "") -> None:
    book = Ledger(Path(ledger))
    with book.run(task_key, objects):
        while True:
            try:
                time.sleep(TICK)
                book.tick(task_key, objects)
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
