from __future__ import annotations

from powercrud_dashboard.models.alerts import Alert, AlertEvaluation, AlertEvent, AlertKind, AlertMessage
from powercrud_dashboard.models.coordination import ActiveTask
from powercrud_dashboard.models.cursor import TaskCursor
from powercrud_dashboard.models.events import TaskEvent
from powercrud_dashboard.models.files import TaskFile
from powercrud_dashboard.models.history import TaskRecord
from powercrud_dashboard.models.locks import ConflictLock
from powercrud_dashboard.models.logs import TaskLogLine
from powercrud_dashboard.models.notices import NoticePreference, TaskNotice
from powercrud_dashboard.models.objects import TaskObject
from powercrud_dashboard.models.pausing import Pause
from powercrud_dashboard.models.processes import WorkerProcess
from powercrud_dashboard.models.statistics import TaskStatistics, TaskTotal
from powercrud_dashboard.models.statuses import FailureReason, Resolution, Source, TaskStatus

__all__ = [
    "ActiveTask",
    "Alert",
    "AlertEvaluation",
    "AlertEvent",
    "AlertKind",
    "AlertMessage",
    "ConflictLock",
    "FailureReason",
    "NoticePreference",
    "Pause",
    "Resolution",
    "Source",
    "TaskCursor",
    "TaskEvent",
    "TaskFile",
    "TaskLogLine",
    "TaskNotice",
    "TaskObject",
    "TaskRecord",
    "TaskStatistics",
    "TaskStatus",
    "TaskTotal",
    "WorkerProcess",
]
