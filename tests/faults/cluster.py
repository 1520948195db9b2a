"""A real qcluster on one of a lane's hosts, and what can be done to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from django.conf import settings

from tests.faults.hosts import Host
from tests.faults.ledger import Ledger
from tests.services import wait_until

#: Seconds that a cluster gets to stop by itself.
STOP_PATIENCE = 25

#: In a namespace for process ids of its own, as in a container: they begin at 1.
CONTAINER = ["unshare", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]


class NotStarted(RuntimeError):
    """A cluster has ended while it started, as its database was away for instance."""


class Cluster:
    """A cluster in a process group of its own."""

    def __init__(
        self, name: str, host: Host, options: Mapping[str, Any], ledger: Path, directory: Path | None = None
    ) -> None:
        self.host = host
        self.is_frozen = False
        self._ledger = Ledger(ledger, name)
        self._stops_by: float | None = None
        own = {"cluster": name, "ledger": str(ledger), **host.options(), **options}
        command = [sys.executable, "-W", "ignore", "-m", "django", "qcluster"]
        self._is_contained = bool(options.get("contained"))
        self.process = subprocess.Popen(
            host.command([*CONTAINER, *command] if self._is_contained else command),
            cwd=directory,
            env={**os.environ, "PCRUD_FAULTS_OPTIONS": json.dumps(own)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            wait_until(lambda: not self.is_running or self._is_whole, f"the cluster {name} has its processes")
        except AssertionError:
            self._end_all()
            raise
        if not self.is_running:
            raise NotStarted(name)

    @property
    def _is_whole(self) -> bool:
        return len(self.parts) >= settings.Q_CLUSTER["workers"] + 2

    @property
    def main(self) -> int | None:
        """The main process, which is the only child of the one that has made a container."""
        return next(iter(_children(self.process.pid)), None) if self._is_contained else self.process.pid

    @property
    def sentinel(self) -> int | None:
        return next(iter(_children(self.main)), None)

    @property
    def parts(self) -> list[int]:
        """The sentinel's children in the order of their start: the workers, the monitor, the pusher, as a rule."""
        return _children(self.sentinel)

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def note(self, what: str, **facts: str) -> None:
        """Note in the ledger what is done to it."""
        self._ledger.note(what, **facts)

    # Faults

    def kill(self, pid: int | None) -> None:
        if pid is not None:
            self.note("killed")
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def kill_all(self) -> None:
        self.note("killed")
        self._end_all()

    def freeze(self) -> None:
        self.note("frozen")
        self.is_frozen = True
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal_all(signal.SIGCONT)
        self.is_frozen = False
        self.note("thawed")

    # Stops

    def begin_stop(self, *, of_all: bool = False) -> None:
        """Tell its main process to stop it; or send a SIGTERM to each of its processes, as systemd does."""
        if not self.is_running or self._stops_by is not None:
            return
        self._stops_by = time.monotonic() + STOP_PATIENCE
        self.note("terminated" if of_all else "stopped")
        if of_all:
            self._signal_all(signal.SIGTERM)
        elif (main := self.main) is not None:
            with suppress(ProcessLookupError):
                os.kill(main, signal.SIGTERM)

    def stop(self) -> None:
        """Wait for its stop, which begins now if it has not yet begun; what is left after that is killed."""
        self.begin_stop()
        if self._stops_by is not None:
            try:
                self.process.wait(max(0, self._stops_by - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.note("still there", text=f"{len(self.parts)} processes of its sentinel after {STOP_PATIENCE} s")
        self._end_all()

    def _end_all(self) -> None:
        self._signal_all(signal.SIGKILL)
        self.process.wait()

    def _signal_all(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


def _children(pid: int | None) -> list[int]:
    """Return the children of a process that are no zombies, oldest first."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, state, parent = _read(status)
        except (OSError, IndexError):
            continue
        if parent == pid and state != "Z":
            found.append(name)
    return sorted(found)


def _read(status: Path) -> tuple[int, str, int]:
    after_name = status.read_text().rpartition(")")[2].split()
    return int(status.parent.name), after_name[0], int(after_name[1])
