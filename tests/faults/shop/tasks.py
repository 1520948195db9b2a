"""What the first release can do already: work that goes on for as long as it is held."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.conf import settings

from powercrud_dashboard.async_context import get_current_task
from tests.faults.ledger import Ledger
from tests.faults.ways import TICK, tick_for

#: Seconds of a task that is not held.
BRIEFLY = 0.3
#: Objects that a process does before it is held.
DONE_BEFORE = 3

_begun = 0


def hold() -> Path:
    """Return the file that is there as long as tasks are held."""
    return Path(settings.STATE_DIR) / "hold"


def work_briefly(*, pks: list[int], model: str, task_key: str = "") -> str:
    return work(pks, task_key, is_held=False)


def work_while_held(*, pks: list[int], model: str, task_key: str = "") -> str:
    return work(pks, task_key, is_held=True)


def work(pks: list[int], task_key: str, *, is_held: bool) -> str:
    objects = [str(pk) for pk in pks]
    ledger: Any = Ledger(Path(settings.OPTIONS["ledger"]), settings.OPTIONS["cluster"])
    with ledger.run(task_key, objects) as book:
        tick_for(BRIEFLY, book, objects)
        steps = 0
        while is_held and hold().exists():
            steps += 1
            get_current_task().update_progress(f"held for {steps} steps")
            tick_for(TICK, book, objects)
    return "done"


def wait_while_held() -> float:
    """Return the seconds that the next object of an action waits."""
    global _begun
    if hold().exists() and _begun >= DONE_BEFORE:
        return TICK
    _begun += 1
    return 0
