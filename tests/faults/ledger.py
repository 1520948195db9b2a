"""What the workers did, in a file beside the database: who ran which task on which objects, from when to when."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Run:
    """One run of a function body, as far as it told of itself."""

    task: str
    objects: tuple[str, ...]
    pid: int
    began: float
    last_seen: float
    #: Whether it came to its regular end.
    ended: bool = False


@dataclass
class Ledger:
    path: Path
    _run: str = field(default_factory=lambda: uuid.uuid4().hex)

    @contextmanager
    def run(self, task: str, objects: Sequence[str]) -> Iterator[Ledger]:
        """Note a run; what leaves the block with an error has no regular end."""
        self._write("begin", task, objects)
        yield self
        self._write("end", task, objects)

    def tick(self, task: str, objects: Sequence[str]) -> None:
        self._write("tick", task, objects)

    def _write(self, what: str, task: str, objects: Sequence[str]) -> None:
        # One clock for all processes of the machine, that nobody can set.
        line = {"at": time.monotonic(), "what": what, "run": self._run, "task": task, "objects": list(objects)}
        data = json.dumps({**line, "pid": os.getpid()}).encode() + b"\n"
        # One write at the end of the file is whole, whatever others write.
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(handle, data)
        finally:
            os.close(handle)


def read(path: Path) -> list[Run]:
    """Return all runs in the order of their beginnings."""
    runs: dict[str, Run] = {}
    for text in path.read_text().splitlines() if path.exists() else ():
        line = json.loads(text)
        if line["what"] == "begin":
            runs[line["run"]] = Run(line["task"], tuple(line["objects"]), line["pid"], line["at"], line["at"])
            continue
        run = runs[line["run"]]
        run.last_seen = line["at"]
        run.ended = run.ended or line["what"] == "end"
    return sorted(runs.values(), key=lambda run: run.began)
