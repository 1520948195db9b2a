"""Managers whose hooks misbehave."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

from django.dispatch import receiver

from powercrud_dashboard.dashboard_manager import DashboardAsyncManager
from powercrud_dashboard.signals import task_started


class BlockedManager(DashboardAsyncManager):
    """In a worker its hook blocks at the start and at each progress until there is a file of this name."""

    def async_task_lifecycle(self, event: str, task_name: str, **payload: Any) -> None:
        while event in ("start", "progress", "complete") and not Path(self.config["until"]).exists():
            time.sleep(0.02)


class RaisingManager(DashboardAsyncManager):
    def async_task_lifecycle(self, event: str, task_name: str, **payload: Any) -> None:
        raise RuntimeError(f"no {event} for you")


class HeardManager(DashboardAsyncManager):
    """There is a receiver for the starts of its tasks."""


@receiver(task_started, sender=HeardManager)
def refuse(task_name: str, **kwargs: Any) -> None:
    raise RuntimeError(f"in {threading.current_thread().name}")


class ForkingManager(DashboardAsyncManager):
    """Its hook forks a child that simply returns, and writes how it ended into the configured file."""

    def async_task_lifecycle(self, event: str, task_name: str, **payload: Any) -> None:
        if event == "start":
            child = os.fork()
            if child:
                code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                Path(self.config["path"]).write_text(str(code))
