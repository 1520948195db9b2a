"""Figures of the project's own, from the models."""

from __future__ import annotations

from typing import Any

from powercrud_dashboard.models import (
    ActiveTask,
    Alert,
    AlertEvaluation,
    AlertEvent,
    AlertKind,
    AlertMessage,
    ConflictLock,
    FailureReason,
    NoticePreference,
    Pause,
    Resolution,
    Source,
    TaskCursor,
    TaskEvent,
    TaskFile,
    TaskLogLine,
    TaskNotice,
    TaskObject,
    TaskRecord,
    TaskStatistics,
    TaskStatus,
    TaskTotal,
    WorkerProcess,
)


def counts(user: Any) -> dict[str, int]:
    """Return how many rows of each kind there are that the user may see."""
    visible = TaskRecord.objects.visible_to(user)
    return {
        "queued": visible.queued().count(),
        "running": visible.running().count(),
        "open failures": visible.open_failures().count(),
        "completed": visible.filter(status=TaskStatus.SUCCESS).count(),
        "dismissed": visible.of_resolution(Resolution.DISMISSED).count(),
        "lost": visible.filter(failure_reason=FailureReason.WORKER_LOST).count(),
        "plain": visible.filter(source=Source.DJANGO_Q).count(),
        "events": TaskEvent.objects.filter(record__in=visible).count(),
        "objects": TaskObject.objects.filter(record__in=visible).count(),
        "lines": TaskLogLine.objects.filter(record__in=visible).count(),
    }


def rows_of_all() -> dict[str, int]:
    """Return the number of rows of the other tables."""
    return {
        "tasks": ActiveTask.objects.count(),
        "locks": ConflictLock.objects.count(),
        "workers": WorkerProcess.objects.count(),
        "pauses": Pause.objects.count(),
        "cursors": TaskCursor.objects.count(),
        "files": TaskFile.objects.count(),
        "notices": TaskNotice.objects.count(),
        "preferences": NoticePreference.objects.count(),
        "statistics": TaskStatistics.objects.count(),
        "totals": TaskTotal.objects.count(),
        "alerts": Alert.objects.filter(kind=AlertKind.CHECK).count(),
        "messages": AlertMessage.objects.filter(event=AlertEvent.OPENED).count(),
        "evaluations": AlertEvaluation.objects.count(),
    }
