"""The running task in the records of the module logging.

``LOGGING`` names the filter, and Django reads that before there are models: nothing is imported here that needs them.
"""

from __future__ import annotations

import logging
from contextvars import ContextVar
from dataclasses import dataclass

__all__ = ["TaskContextFilter"]


@dataclass(frozen=True)
class RunningTask:
    """What records tell of the task that the code runs in."""

    name: str
    func: str = ""
    label: str = ""
    #: Who has launched it.
    user: str = ""
    #: The number of the attempt; None outside of a worker.
    attempt: int | None = None


#: The task that this code runs in, for the length of its function.
running_task: ContextVar[RunningTask | None] = ContextVar("powercrud_dashboard_log_records", default=None)


class TaskContextFilter(logging.Filter):
    """Adds the running task to each record, and lets all records through.

    The attributes are ``task_name``, ``task_func``, ``task_label``, ``task_user`` and ``task_attempt``. What the call
    that logs has given in ``extra`` stays. The context tells the task: a thread that the task starts belongs to it if
    it runs in a copy of the context (``contextvars.copy_context()``).
    """

    def __init__(self, default: str | None = "") -> None:
        """Make a filter.

        Args:
            default: the value of the attributes where no task runs, such as ``"-"``, or None for JSON.
        """
        super().__init__()
        self._default = default

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the attributes. Return True."""
        task = running_task.get()
        facts = record.__dict__
        facts.setdefault("task_name", task.name if task else self._default)
        facts.setdefault("task_func", task.func if task else self._default)
        facts.setdefault("task_label", task.label if task else self._default)
        facts.setdefault("task_user", task.user if task else self._default)
        facts.setdefault("task_attempt", task.attempt if task and task.attempt is not None else self._default)
        return True
