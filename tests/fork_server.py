"""Forks processes that have started Django already, which takes longer than most of what is tested in them.

Run as a program it forks a child for each line on its standard input that is a list of a command's arguments, and
answers with the child's process id; for a line that is such an id, it answers with the child's exit code, or null while
it runs.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from typing import Any

import django

from tests.services import DEADLINE


class Forked:
    """A process like :class:`subprocess.Popen`, as far as the tests need it."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self._server = server
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._server.ask(self.pid)
        return self.returncode

    def wait(self, timeout: float = DEADLINE) -> int:
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(["forked"], timeout)
            time.sleep(0.02)
        return code

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)


class ForkServer:
    """The process that forks. It ends with the process that has started it."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, question: object) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{json.dumps(question)}\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, *arguments: str) -> Forked:
        """Run ``django-admin`` with these arguments, in a process group of its own."""
        return Forked(self, self.ask(arguments))

    def close(self) -> None:
        with self._process:
            self._process.kill()


def run(arguments: list[str]) -> None:
    """Be ``python -m django`` with these arguments."""
    from django.core.management import execute_from_command_line

    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    # The pipes belong to the parent.
    for stream in (0, 1):
        os.dup2(nothing, stream)
    sys.argv = ["django", *arguments]
    execute_from_command_line(sys.argv)


def main() -> None:
    django.setup()
    # What the commands of clusters import.
    import django_q.cluster  # noqa: F401

    # The garbage collector of a child would write to all of the memory that it shares with the others.
    gc.freeze()
    while line := sys.stdin.readline():
        question = json.loads(line)
        if isinstance(question, int):
            found, status = os.waitpid(question, os.WNOHANG)
            print(os.waitstatus_to_exitcode(status) if found else "null", flush=True)
        elif pid := os.fork():
            print(pid, flush=True)
        else:
            run(question)
            return


if __name__ == "__main__":
    main()
