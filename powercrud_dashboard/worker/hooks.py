"""In a worker process the managers' hooks are called by a thread of their own, so that nothing waits for a slow one."""

from __future__ import annotations

import logging
import queue
import signal
import threading
from collections.abc import Callable

from django.db import connections

from powercrud_dashboard import lifecycle

logger = logging.getLogger(__name__)

#: Events that there can be any number of: of these, more than so many do not wait for a slow hook.
MANY = ("progress", "log", "objects")
WAITING_AT_MOST = 1_000

#: Seconds that a worker waits after a task until its hooks have returned.
PATIENCE = 60.0


class HookLine:
    """Calls hooks one after the other, in the order of their events."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def put(self, event: str, call: Callable[[], None]) -> None:
        """Have a hook called soon."""
        if event in MANY and self._calls.qsize() >= WAITING_AT_MOST:
            logger.warning("A lifecycle hook is slow; it does not hear of every %r event", event)
            return
        self._calls.put(call)
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="powercrud-dashboard-hooks", daemon=True)
                self._thread.start()

    def drain(self) -> None:
        """Wait until the hooks that are in the line now have returned, but not for ever."""
        if self._thread is None:
            return
        through = threading.Event()
        self._calls.put(through.set)
        if not through.wait(PATIENCE):
            logger.error("A lifecycle hook has not returned within %s s; the worker goes on without it", PATIENCE)

    def _run(self) -> None:
        if hasattr(signal, "pthread_sigmask"):
            # Signals are for the thread that runs the task.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        while True:
            try:
                call = self._calls.get(timeout=IDLE_BEFORE_CLOSE)
            except queue.Empty:
                connections.close_all()
                call = self._calls.get()
            call()


#: Seconds without a call after which the thread gives its connection back.
IDLE_BEFORE_CLOSE = 10.0

_line: HookLine | None = None


def drain() -> None:
    """Wait until the hooks of this worker process have returned, but not for ever."""
    if _line is not None:
        _line.drain()


def install() -> None:
    """Have the hooks of this process called in this way."""
    global _line
    _line = HookLine()
    lifecycle.deliver_hooks_with(_line.put)
