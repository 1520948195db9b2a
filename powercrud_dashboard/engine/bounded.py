"""Calls of code and servers that may not answer, each in a thread that is waited for no longer than it may take."""

from __future__ import annotations

import threading
from collections.abc import Callable

from django.db import connections

#: By name, the thread that has not finished in time.
_late: dict[str, threading.Thread] = {}


def late() -> set[str]:
    """Return the names of the calls that have not finished in time, and go on in this process."""
    return {name for name, thread in _late.items() if thread.is_alive()}


def run_within(seconds: float, name: str, do: Callable[[], object]) -> BaseException | None:
    """Call ``do`` in a thread, wait for its end for so many seconds at most, and return its error, if any.

    The timeouts of sockets don't do: each is for one operation, of which a server can cause any number. Who calls this
    again under the name of a call that is :func:`late` has two of them.
    """
    errors: list[BaseException] = []

    def run() -> None:
        try:
            do()
        except BaseException as error:
            # A server may be away, and the project's code may raise anything.
            errors.append(error)
        finally:
            connections.close_all()

    thread = threading.Thread(target=run, name=f"powercrud-dashboard-{name}", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        _late[name] = thread
        return TimeoutError(f"Not finished within {seconds} seconds")
    # Taken out, so that the error, the frame in its traceback and this list don't keep each other, and a socket, alive.
    return errors.pop() if errors else None
