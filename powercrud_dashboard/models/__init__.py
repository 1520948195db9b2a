from __future__ import annotations

from powercrud_dashboard.models.coordination import ActiveTask, ConflictLock
from powercrud_dashboard.models.files import TaskFile
from powercrud_dashboard.models.history import TaskEvent, TaskObject, TaskRecord
from powercrud_dashboard.models.status import FailureReason, TaskStatus

__all__ = [
    "ActiveTask",
    "ConflictLock",
    "FailureReason",
    "TaskEvent",
    "TaskFile",
    "TaskObject",
    "TaskRecord",
    "TaskStatus",
]
