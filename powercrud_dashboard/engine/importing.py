"""Bring what django-q2's table of finished tasks holds into the history."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db import InterfaceError, OperationalError
from django.utils import timezone

from powercrud_dashboard.conf import app_settings, is_retention
from powercrud_dashboard.engine import observed, plain
from powercrud_dashboard.engine.observed_rows import EndedTask
from powercrud_dashboard.engine.plain import Run
from powercrud_dashboard.models import TaskStatus
from powercrud_dashboard.q2 import finished, observe
from powercrud_dashboard.q2.finished import FinishedTask
from powercrud_dashboard.text import error_summary

logger = logging.getLogger(__name__)

#: Rows that the summary names, of those that can't be read or written; the counts are exact.
NAMED = 20


@dataclass
class Summary:
    """What was found in the table, and what became of it."""

    #: Rows in django-q2's table.
    found: int = 0
    imported: int = 0
    #: Rows whose tasks were recorded already, by their managers or by an earlier import.
    known: int = 0
    #: Rows of managers' tasks whose records were deleted, and of this package's own work.
    own: int = 0
    #: Rows of tasks that the statistics count without a record (``DASHBOARD_TRACK_SAMPLE``).
    only_counted: int = 0
    #: Rows of functions whose tasks are not to be recorded (``DASHBOARD_TRACK`` and its patterns).
    not_tracked: int = 0
    #: Rows that ended before the time that was asked for.
    before_since: int = 0
    #: Rows that ended so long ago that cleanup would delete their records, or that are beyond the number that it keeps.
    past_retention: int = 0
    over_limit: int = 0
    #: Imported rows of which some values can't be read, and their names with the reasons.
    unreadable: int = 0
    unreadable_rows: dict[str, str] = field(default_factory=dict)
    #: Rows that could not be written, and their names with the reasons.
    failed: int = 0
    failed_rows: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Import:
    """One pass over the table. What an earlier one has written is left out, so that it goes on where that stopped."""

    def __init__(self, *, since: datetime | None, batch_size: int, dry_run: bool) -> None:
        self.summary = Summary()
        self._batch_size = batch_size
        self._dry_run = dry_run
        rows = self._chosen(since)
        chosen = rows.count()
        self._rows = finished.without_record(rows)
        #: How many rows are to be read.
        self.total = self._rows.count()
        self.summary.known = chosen - self.total

    def _chosen(self, since: datetime | None) -> Any:
        """Return the rows whose records would stay, and count the others."""
        summary = self.summary
        every = finished.rows_since(None)
        summary.found = every.count()
        wanted = finished.rows_since(since)
        left = wanted.count()
        summary.before_since = summary.found - left
        kept = finished.kept_since(
            wanted, success=_kept_since(TaskStatus.SUCCESS), failed=_kept_since(TaskStatus.FAILED)
        )
        summary.past_retention = left - kept.count()
        limit = app_settings.DASHBOARD_TRACK_MAX_RECORDS
        if limit is None:
            return kept
        newest = finished.newest(kept, limit)
        summary.over_limit = left - summary.past_retention - newest.count()
        return newest

    def run(self) -> Iterator[int]:
        """Do it, and yield after each part how many of its rows were read.

        Raises:
            TaskBusy, DatabaseError: if the database does not answer. What was written before stays.
        """
        for part in finished.in_parts(self._rows, self._batch_size):
            collected = plain.collected_from_records(row.id for row in part)
            new = [row for row in part if row.id not in collected]
            self.summary.known += len(part) - len(new)
            foreign = [row for row in new if not observe.is_own(_as_message(row))]
            self.summary.own += len(new) - len(foreign)
            observed_rows = [row for row in foreign if plain.is_observed(_as_message(row))]
            self.summary.not_tracked += len(foreign) - len(observed_rows)
            tracked = [row for row in observed_rows if not plain.is_only_counted(Run(_as_message(row)))]
            self.summary.only_counted += len(observed_rows) - len(tracked)
            for row in tracked:
                if row.unreadable:
                    self._note_unreadable(row)
            if self._dry_run:
                self.summary.imported += len(tracked)
            else:
                self._write(tracked)
            yield len(part)

    def _write(self, rows: Sequence[FinishedTask]) -> None:
        try:
            written = observed.record_ended([_ended(row) for row in rows], by_rows=True)
        except (OperationalError, InterfaceError):
            # The database does not answer, whatever the rows are.
            raise
        except Exception as error:
            # One row must not keep the others.
            if len(rows) == 1:
                self._note_failed(rows[0], error)
            else:
                logger.warning("A part could not be written; its rows are written one by one", exc_info=True)
                for row in rows:
                    self._write([row])
            return
        self.summary.imported += written
        self.summary.known += len(rows) - written

    def _note_failed(self, row: FinishedTask, error: Exception) -> None:
        self.summary.failed += 1
        if len(self.summary.failed_rows) < NAMED:
            self.summary.failed_rows[f"{row.name} ({row.id})"] = error_summary(error)

    def _note_unreadable(self, row: FinishedTask) -> None:
        self.summary.unreadable += 1
        if len(self.summary.unreadable_rows) < NAMED:
            reasons = "; ".join(f"{column}: {reason}" for column, reason in row.unreadable.items())
            self.summary.unreadable_rows[f"{row.name} ({row.id})"] = reasons


def _kept_since(status: str) -> datetime | None:
    """Return since when tasks must have ended for cleanup to keep their records; None if it keeps all."""
    settings = (
        app_settings.DASHBOARD_TRACK_RETENTION_DAYS,
        app_settings.DASHBOARD_RETENTION_DAYS.get(status),
    )
    days = [days for days in settings if days is not None and is_retention(days)]
    return timezone.now() - timedelta(days=min(days)) if days else None


def _as_message(row: FinishedTask) -> observe.Message:
    return {name: getattr(row, name) for name in ("id", "name", "func", "args", "success", "result")}


def _ended(row: FinishedTask) -> EndedTask:
    return EndedTask(
        id=row.id,
        name=row.name,
        func=row.func,
        args=row.arguments,
        kwargs=row.keywords,
        created_at=row.enqueued_at,
        group=row.group,
        cluster=observe.queue_of({"cluster": row.cluster}),
        label=observe.given_name({"name": row.name, "id": row.id}),
        options=observe.options_of({"hook": row.hook or None}),
        success=row.success,
        result=row.result,
        stopped_at=row.stopped_at,
        attempts=row.attempts,
        release="",
    )
