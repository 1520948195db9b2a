"""What django-q2's sentinel does with a worker that it has terminated and that does not end."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

from powercrud_dashboard.worker import process
from tests.services import wait_until


class Sentinel:
    """As much of django-q2's as is needed."""

    def __init__(self) -> None:
        self.ended: list[Any] = []

    def reincarnate(self, worker: Any) -> None:
        self.ended.append(worker)

    def status(self) -> str:
        return "Working"


class StubbornWorker:
    """A process that ignores a SIGTERM, with the methods of those of multiprocessing."""

    def __init__(self, timer: float) -> None:
        self.timer = SimpleNamespace(value=timer)
        ignore = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
        code = f"{ignore}; print('ready', flush=True); time.sleep(600)"
        self._process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        with self._process.stdout as output:
            assert output.readline() == "ready\n"
        self._process.terminate()
        self.pid, self.kill = self._process.pid, self._process.kill

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def join(self, timeout: float | None = None) -> None:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)

    @property
    def exitcode(self) -> int | None:
        return self._process.poll()


def test_one_whose_task_has_overrun_its_limit_is_killed_and_no_other(monkeypatch):
    monkeypatch.setattr(process, "KILLED_AFTER", 0.0)
    sentinel = Sentinel()
    overruns = process._Overruns(sentinel)
    late, recycled = StubbornWorker(0), StubbornWorker(-2)
    try:
        for worker in (late, recycled):
            sentinel.reincarnate(worker)
        assert sentinel.ended == [late, recycled]
        assert sentinel.status() == "Working"
        wait_until(lambda: late.exitcode == -signal.SIGKILL, "it is killed")
        overruns.end()
        assert recycled.is_alive()
    finally:
        for worker in (late, recycled):
            worker.kill()
            worker.join()


def test_the_end_of_the_cluster_waits_until_it_has_ended(monkeypatch):
    monkeypatch.setattr(process, "KILLED_AFTER", 0.5)
    sentinel = Sentinel()
    overruns = process._Overruns(sentinel)
    late = StubbornWorker(0)
    sentinel.reincarnate(late)
    overruns.end()
    assert late.exitcode == -signal.SIGKILL
