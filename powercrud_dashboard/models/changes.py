"""How the states of records change: the columns of each change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar

from django.utils import timezone

from powercrud_dashboard.models.statuses import GIVEN_UP, FailureReason, TaskStatus


@dataclass(frozen=True)
class RecordChange:
    """A change of state of one record: the values of its columns, and which records may be changed like that."""

    columns: Mapping[str, Any]

    #: Of an earlier attempt nothing but its events is kept.
    _NO_FAILURE: ClassVar[Mapping[str, Any]] = {
        **dict.fromkeys(("failure_reason", "error", "error_pattern", "exception_class", "traceback"), ""),
        **dict.fromkeys(("resolution", "resolution_by", "resolution_note"), ""),
        "resolution_at": None,
    }

    def followed_by(self, later: RecordChange) -> RecordChange:
        """Return both changes as one."""
        return RecordChange({**self.columns, **later.columns})

    @property
    def is_reported_end(self) -> bool:
        """Whether a worker reports how its task ended, and not somebody who gave the task up."""
        has_ended = self.columns["status"] in (TaskStatus.SUCCESS, TaskStatus.FAILED)
        return has_ended and self.columns.get("failure_reason") not in GIVEN_UP

    @classmethod
    def started(
        cls, *, attempt: int, at: datetime | None = None, worker_host: str = "", worker_pid: int | None = None
    ) -> RecordChange:
        where = {"worker_host": worker_host, "worker_pid": worker_pid}
        return cls({"status": TaskStatus.IN_PROGRESS, "started_at": at or timezone.now(), "attempts": attempt, **where})

    @classmethod
    def postponed(cls, *, reason: FailureReason | str, **facts: Any) -> RecordChange:
        """An attempt has failed, and the task waits for a retry."""
        return cls({"status": TaskStatus.PENDING, "failure_reason": reason, "started_at": None, **facts})

    @classmethod
    def paused(cls, **facts: Any) -> RecordChange:
        """The task has stopped and waits until somebody resumes it."""
        return cls({"status": TaskStatus.PAUSED, "started_at": None, **cls._NO_FAILURE, **facts})

    @classmethod
    def queued_again(cls, **facts: Any) -> RecordChange:
        """The task goes on as soon as a worker has time."""
        return cls({"status": TaskStatus.PENDING, "started_at": None, **cls._NO_FAILURE, **facts})

    @classmethod
    def succeeded(cls, *, started_at: datetime | None, **facts: Any) -> RecordChange:
        return cls._ended(started_at, **{"status": TaskStatus.SUCCESS, **cls._NO_FAILURE, **facts})

    @classmethod
    def failed(cls, *, reason: FailureReason | str, started_at: datetime | None, **facts: Any) -> RecordChange:
        return cls._ended(started_at, status=TaskStatus.FAILED, failure_reason=reason, **facts)

    @classmethod
    def cancelled(cls, *, started_at: datetime | None, **facts: Any) -> RecordChange:
        return cls._ended(started_at, status=TaskStatus.CANCELLED, **cls._NO_FAILURE, **facts)

    @classmethod
    def _ended(cls, started_at: datetime | None, *, ran_before: timedelta | None = None, **facts: Any) -> RecordChange:
        at = facts.pop("at", None) or timezone.now()
        # Whoever has given a task up may have another clock than its worker.
        run_time = max(at - started_at, timedelta()) if started_at else timedelta()
        run_time += ran_before or timedelta()
        return cls({"finished_at": at, "run_time": run_time, "is_counted": False, **facts})
