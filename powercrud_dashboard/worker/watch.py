"""A thread in each worker process that queues tasks whose next try is due, whether the worker is busy or not."""

from __future__ import annotations

import logging
import random
import signal
import threading
import time

from django.db import connections
from django.utils.module_loading import import_string

logger = logging.getLogger(__name__)

#: Managers are found by path: the layers below them never import one.
MANAGER = "powercrud_dashboard.async_manager.AsyncManager"

#: Seconds between two looks of one worker, give or take, so that the workers of a cluster take turns.
WATCH_INTERVAL = 4.0


def _watch() -> None:
    if hasattr(signal, "pthread_sigmask"):
        # Signals are for the thread that runs the task.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    manager = import_string(MANAGER)
    while True:
        time.sleep(WATCH_INTERVAL * random.uniform(0.75, 1.25))  # noqa: S311 - no secret depends on it
        try:
            manager.send_due_tasks()
        except Exception:
            # The database may be away for a while; the next round tries again.
            logger.warning("Tasks that are due could not be queued; trying on", exc_info=True)
        finally:
            connections.close_all()


def start() -> None:
    """Start the thread."""
    threading.Thread(target=_watch, name="powercrud-dashboard-watch", daemon=True).start()
