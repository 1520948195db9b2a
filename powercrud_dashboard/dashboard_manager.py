"""The manager that keeps history: lifecycle events become records, events and objects."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from typing import Any

from powercrud_dashboard import recording
from powercrud_dashboard.async_manager import AsyncManager
from powercrud_dashboard.models.text import LONG, clean_text

__all__ = ["DashboardAsyncManager"]


class DashboardAsyncManager(AsyncManager):
    """An :class:`AsyncManager` whose tasks are recorded for the dashboard.

    A subclass may override :meth:`async_task_lifecycle`; the history is kept in any case.
    """

    def async_task_lifecycle(self, event: str, task_name: str, *, recorded: bool = False, **payload: Any) -> None:
        """Write the event into the history, unless that is done."""
        if not recorded:
            recording.record_events(task_name, [(event, payload)])

    @property
    def has_lifecycle_hook(self) -> bool:
        """Whether a subclass wants to hear of events."""
        return type(self).async_task_lifecycle is not DashboardAsyncManager.async_task_lifecycle

    def record_lifecycle_events(self, task_name: str, events: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """Write the events into the history."""
        recording.record_events(task_name, events)

    def lifecycle_hook_failed(self, event: str, task_name: str, payload: dict[str, Any], error: Exception) -> None:
        """Write the subclass's error into the history."""
        trace = clean_text("".join(traceback.format_exception(error)), LONG)
        message = f"The {event} hook of {self.manager_class_path} failed: {type(error).__name__}: {error}"
        recording.record_events(task_name, [("hook_error", {"message": message, "traceback": trace})])
