"""What happened, in a file beside the database: who ran which task on which objects, and what was done to clusters."""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: How a run ends if its process lives: the function returns, or it raises.
RETURNED, RAISED = "returned", "raised"


@dataclass
class Entry:
    at: float
    #: What the run worked on then.
    objects: frozenset[str]


@dataclass
class Run:
    """One run of a function body, as far as it told of itself."""

    task: str
    pid: int
    host: str = ""
    #: The cluster of its worker; "" in another process.
    cluster: str = ""
    entries: list[Entry] = field(default_factory=list)
    #: "" if it came to no end that it could tell of.
    outcome: str = ""

    @property
    def began(self) -> float:
        return self.entries[0].at

    @property
    def last_seen(self) -> float:
        return self.entries[-1].at


@dataclass(frozen=True)
class Deed:
    """What a fault or a person did to a cluster or a host."""

    #: "killed" (a part of it at least), "stopped" (by a SIGTERM to its main process), "terminated" (by one to each),
    #: "still there" (long after that), "frozen", "thawed", "cut off"; "wrong" (what a task found wrong by itself).
    what: str
    at: float
    cluster: str = ""
    text: str = ""


@dataclass
class Book:
    runs: list[Run] = field(default_factory=list)
    deeds: list[Deed] = field(default_factory=list)


@dataclass
class Ledger:
    path: Path
    cluster: str = ""
    _run: str = field(default_factory=lambda: uuid.uuid4().hex)
    _pid: int = field(default_factory=os.getpid)

    @contextmanager
    def run(self, task: str, objects: Sequence[str]) -> Iterator[Ledger]:
        """Note a run, and how it ends."""
        self._write("begin", task=task, objects=list(objects), host=socket.gethostname())
        try:
            yield self
        except BaseException:
            self._write(RAISED)
            raise
        self._write(RETURNED)

    def tick(self, objects: Sequence[str]) -> None:
        """Note that the run goes on, and what it works on now."""
        self._write("tick", objects=list(objects))

    def note(self, what: str, **facts: str) -> None:
        """Note a deed."""
        self._write(what, **facts)

    def _write(self, what: str, **facts: Any) -> None:
        if os.getpid() != self._pid:
            # A child that the function has forked is no run.
            return
        # One clock for all processes and hosts of the machine, that nobody can set.
        line = {"at": time.monotonic(), "what": what, "run": self._run, "cluster": self.cluster, "pid": self._pid}
        data = json.dumps({**line, **facts}).encode() + b"\n"
        # One write at the end of the file is whole, whatever others write.
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(handle, data)
        finally:
            os.close(handle)


def read(path: Path) -> Book:
    """Return all runs in the order of their beginnings, and all deeds."""
    runs: dict[str, Run] = {}
    deeds = []
    for text in path.read_text().splitlines() if path.exists() else ():
        line = json.loads(text)
        what, at, objects = line["what"], line["at"], frozenset(line.get("objects", ()))
        if what == "begin":
            runs[line["run"]] = Run(line["task"], line["pid"], line["host"], line["cluster"], [Entry(at, objects)])
        elif what in ("tick", RETURNED, RAISED):
            run = runs[line["run"]]
            run.entries.append(Entry(at, objects or run.entries[-1].objects))
            run.outcome = "" if what == "tick" else what
        else:
            deeds.append(Deed(what, at, line["cluster"], line.get("text", "")))
    return Book(sorted(runs.values(), key=lambda run: run.began), deeds)
