"""The manager that keeps history: it writes lifecycle events as records, events and objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from powercrud_dashboard.async_manager import AsyncManager
from powercrud_dashboard.engine import history

__all__ = ["DashboardAsyncManager"]


class DashboardAsyncManager(AsyncManager):
    """The default manager, and the recorder of all managers' tasks (``DASHBOARD_RECORDER``).

    A subclass may override :meth:`async_task_lifecycle`; the history is kept in any case.
    """

    def async_task_lifecycle(self, event: str, task_name: str, *, recorded: bool = False, **payload: Any) -> None:
        """Write the event into the history, unless that was done already (``recorded``)."""
        if not recorded:
            history.record_events(task_name, [(event, payload)])

    @property
    def has_lifecycle_hook(self) -> bool:
        """Whether a subclass overrides :meth:`async_task_lifecycle`."""
        return type(self).async_task_lifecycle is not DashboardAsyncManager.async_task_lifecycle

    def record_lifecycle_events(self, task_name: str, events: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """Write events of one task into the history, in the transaction that makes the change."""
        history.record_events(task_name, events)

    def record_failed_hook(self, what: str, owner: Any, task_name: str, error: BaseException) -> None:
        """Write into the history that a hook of a manager class, or a receiver of a signal, raised an error."""
        history.record_failed_hook(what, owner, task_name, error)
