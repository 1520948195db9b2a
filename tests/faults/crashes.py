"""A process kills itself at a named point, once, when a file asks it to."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from django.conf import settings

from tests.faults.ledger import Ledger

#: Points of a worker's way through a task.
WORKER_STAGES = (
    "before the claim",
    "while claiming",
    "in the function",
    "while finishing",
    "before the acknowledgement",
)

_is_spared = False


def _file(stage: str) -> Path:
    return Path(settings.STATE_DIR) / f"crash {stage}"


def crash_once(stage: str) -> None:
    """Have the next process that comes by this point kill itself."""
    _file(stage).touch()


def crash_nowhere() -> None:
    for left in Path(settings.STATE_DIR).glob("crash *"):
        left.unlink(missing_ok=True)


def spare_this_process() -> None:
    """Leave the crashes to others: the driver of a lane runs tasks and records ends as well."""
    global _is_spared
    _is_spared = True


def crash_here(stage: str) -> None:
    """Kill this process if it is to be killed here."""
    if _is_spared:
        return
    try:
        # Of several processes one removes it.
        _file(stage).unlink()
    except FileNotFoundError:
        return
    note_kill()
    os.kill(os.getpid(), signal.SIGKILL)


def note_kill() -> None:
    """Note in the ledger that a part of this cluster does not come to its regular end."""
    Ledger(Path(settings.OPTIONS["ledger"]), settings.OPTIONS["cluster"]).note("killed")
