"""In a worker, the managers' hooks are called by a thread of their own, so that no task waits for a slow hook."""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable

from django.db import connections

from powercrud_dashboard.engine import lifecycle

logger = logging.getLogger(__name__)

#: Events that a task can produce without limit. Further ones are dropped while so many calls wait for a slow hook.
DROPPABLE = ("progress", "log", "objects")
WAITING_AT_MOST = 1_000

#: Seconds that a worker waits after a task until its hooks have returned.
PATIENCE = 60.0

#: Seconds without a call after which the thread closes its database connections.
IDLE_BEFORE_CLOSE = 10.0


class HookThread:
    """Calls hooks one after the other, in the order of their events."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def put(self, event: str, call: Callable[[], None]) -> None:
        """Have a hook called soon."""
        if event in DROPPABLE and self._calls.qsize() >= WAITING_AT_MOST:
            logger.warning("A lifecycle hook is slow: it is not called for every %r event", event)
            return
        self._calls.put(call)
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="powercrud-dashboard-hooks", daemon=True)
                self._thread.start()

    def drain(self) -> None:
        """Wait until the hooks that are queued now have returned, up to a limit."""
        if self._thread is None:
            return
        drained = threading.Event()
        self._calls.put(drained.set)
        if not drained.wait(PATIENCE):
            logger.error("A lifecycle hook has not returned within %s s; the worker goes on without it", PATIENCE)

    def _run(self) -> None:
        while True:
            try:
                call = self._calls.get(timeout=IDLE_BEFORE_CLOSE)
            except queue.Empty:
                connections.close_all()
                call = self._calls.get()
            try:
                call()
            except BaseException:
                # Without this thread no further hook would be called.
                logger.exception("A lifecycle hook has failed")
            for connection in connections.all(initialized_only=True):
                if connection.errors_occurred:
                    # The database may have been restarted. The next hook connects again.
                    connection.close()


_thread: HookThread | None = None


def drain() -> None:
    """Wait until the hooks of this worker process have returned, up to a limit."""
    if _thread is not None:
        _thread.drain()


def install() -> None:
    """Have the hooks of this process called by a thread."""
    global _thread
    _thread = HookThread()
    lifecycle.deliver_hooks_with(_deliver)


def _deliver(event: str, call: Callable[[], None]) -> None:
    if _thread is None:
        call()
    else:
        _thread.put(event, call)


def _forget_the_parents_thread() -> None:
    global _thread
    _thread = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_the_parents_thread)
