"""What the function of a task, or a hook, may leave behind in its process: forked children and closed streams."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def contained() -> Iterator[None]:
    """Run code of the project, in the block, so that what it does to the process harms nothing after it.

    A child process that the block has forked ends where it leaves the block, as the interpreter would end it: it is no
    second worker. Standard streams that the block has closed are replaced, as a logger raises errors with a closed one.
    """
    pid = os.getpid()
    try:
        yield
    except BaseException as error:
        if os.getpid() != pid:
            _exit(error)
        raise
    finally:
        if os.getpid() != pid:
            _exit(None)
        replace_closed_streams()


def _exit(error: BaseException | None) -> None:
    code = 1
    try:
        if isinstance(error, SystemExit) and (error.code is None or isinstance(error.code, int)):
            code = error.code or 0
        elif isinstance(error, SystemExit):
            print(error.code, file=sys.stderr)  # noqa: T201 - as the interpreter does
        elif error is not None:
            traceback.print_exception(error)
        else:
            code = 0
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
    finally:
        os._exit(code)


def replace_closed_streams() -> None:
    """Let ``sys.stdout`` and ``sys.stderr`` be open files."""
    for name in ("stdout", "stderr"):
        if getattr(getattr(sys, name), "closed", False):
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - stays open
