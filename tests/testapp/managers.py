"""Managers whose hooks misbehave."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from powercrud_dashboard.dashboard_manager import DashboardAsyncManager


class BlockedManager(DashboardAsyncManager):
    """In a worker its hook blocks at the start and at each progress until there is a file of this name."""

    def async_task_lifecycle(self, event: str, task_name: str, **payload: Any) -> None:
        while event in ("start", "progress", "complete") and not Path(self.config["until"]).exists():
            time.sleep(0.02)


class RaisingManager(DashboardAsyncManager):
    def async_task_lifecycle(self, event: str, task_name: str, **payload: Any) -> None:
        raise RuntimeError(f"no {event} for you")
