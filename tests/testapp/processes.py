"""Tasks that start programs, processes and threads, and a project that sets signal handlers of its own."""

from __future__ import annotations

import contextvars
import faulthandler
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from powercrud_dashboard.async_context import get_current_task
from tests.testapp.tasks import wait_for_file


def start_processes_by(methods: str) -> None:
    """Set the start method that queues and events are made for, and that of django-q2, which prefers "fork"."""
    default, _, method = methods.partition(":")
    cluster = sys.modules.get("django_q.cluster")
    if cluster is None:
        # Imported now or, where a child process is just importing it, half imported.
        from django_q import cluster
    multiprocessing.set_start_method(default, force=True)
    cluster.get_mp_context = lambda: multiprocessing.get_context(method)


def stop_programs(count: int) -> list[int]:
    """Start programs and terminate them; return how they ended."""
    ends = []
    for _ in range(count):
        program = subprocess.Popen(["sleep", "60"])
        program.terminate()
        ends.append(program.wait(20))
    return ends


def stop_forked_children(count: int) -> list[int]:
    """Fork children and terminate them at once; return how they ended."""
    ends = []
    for _ in range(count):
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
        os.kill(child, signal.SIGTERM)
        ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    return ends


def fork_and_leave(way: str, path: str) -> int:
    """Fork a child that leaves this function; return its exit code when the file is there."""
    child = os.fork()
    if not child:
        if way == "exit":
            sys.exit(3)
        if way == "raise":
            raise LookupError("in the child")
        return 0
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    wait_for_file(path)
    return code


def count_in_threads(count: int) -> list[str]:
    """Report progress from threads that have the task's context."""

    def name_of_task(number: int) -> str:
        task = get_current_task()
        assert task is not None
        task.update_progress("counted", current=number, total=count)
        return task.task_name

    with ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(contextvars.copy_context().run, name_of_task, n) for n in range(1, count + 1)]
        return [call.result() for call in calls]


def close_standard_streams() -> int:
    sys.stdout.close()
    sys.stderr.close()
    return os.getpid()


def own_pid() -> int:
    return os.getpid()


_seen: dict[str, Any] = {}


def own_handlers() -> dict[str, Any]:
    """Return whether the project's handlers were set when this task began; have SIGUSR1 say so itself."""
    os.kill(os.getpid(), signal.SIGUSR1)
    return {**_seen, "pid": os.getpid()}


def install_handlers(path: str) -> None:
    """Set handlers in each worker, and look before each task whether they are still set."""
    from django_q.signals import post_spawn, pre_execute

    def on_sigterm(signum: int, frame: object) -> None:
        Path(f"{path}.sigterm-{os.getpid()}").touch()
        sys.exit(0)

    def on_sigalrm(signum: int, frame: object) -> None:
        pass

    def install(**kwargs: Any) -> None:
        signal.signal(signal.SIGTERM, on_sigterm)
        signal.signal(signal.SIGALRM, on_sigalrm)
        faulthandler.register(signal.SIGUSR1, open(f"{path}.sigusr1-{os.getpid()}", "w"))  # noqa: SIM115 - stays open

    def look(**kwargs: Any) -> None:
        _seen["sigterm"] = signal.getsignal(signal.SIGTERM) is on_sigterm
        _seen["sigalrm"] = signal.getsignal(signal.SIGALRM) is on_sigalrm

    post_spawn.connect(install, weak=False)
    pre_execute.connect(look, weak=False)
