"""Start the demo's processes and end exactly those again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType

MANAGE = Path(__file__).with_name("manage.py")
#: Seconds that a process gets to end by itself.
PATIENCE = 20


class Processes:
    """The processes that a block started; all of them have ended when it has."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Processes:
        return self

    def start(self, *arguments: str, quiet: bool = False) -> subprocess.Popen[bytes]:
        """Start ``manage.py`` with these arguments, in a process group of its own."""
        process = subprocess.Popen(
            [sys.executable, str(MANAGE), *arguments],
            stdout=subprocess.DEVNULL if quiet else None,
            stderr=subprocess.DEVNULL if quiet else None,
            # Ctrl-C reaches this process only, which then stops the others in order.
            start_new_session=True,
        )
        self._running.append(process)
        return process

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(self._running):
            process.terminate()
        for process in self._running:
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def manage(*arguments: str) -> None:
    """Run ``manage.py`` to its end; an error ends the demo."""
    subprocess.run([sys.executable, str(MANAGE), *arguments], check=True)
