"""What django-q2's sentinel does with a worker that it has terminated and that does not end."""

from __future__ import annotations

import multiprocessing
import signal
import time
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


def _ignore_sigterm(is_ready: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    is_ready.set()
    time.sleep(600)


def stubborn_worker(timer: float) -> Any:
    context = multiprocessing.get_context("fork")
    is_ready = context.Event()
    worker: Any = context.Process(target=_ignore_sigterm, args=(is_ready,), daemon=True)
    worker.timer = context.Value("f", timer)
    worker.start()
    assert is_ready.wait(30)
    worker.terminate()
    return worker


def test_one_whose_task_has_overrun_its_limit_is_killed_and_no_other(monkeypatch):
    monkeypatch.setattr(process, "KILLED_AFTER", 0.0)
    sentinel = Sentinel()
    overruns = process._Overruns(sentinel)
    late, recycled = stubborn_worker(0), stubborn_worker(-2)
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
    monkeypatch.setattr(process, "KILLED_AFTER", 1.0)
    sentinel = Sentinel()
    overruns = process._Overruns(sentinel)
    late = stubborn_worker(0)
    sentinel.reincarnate(late)
    assert sentinel.status() == "Working"
    assert late.is_alive()
    overruns.end()
    assert late.exitcode == -signal.SIGKILL
