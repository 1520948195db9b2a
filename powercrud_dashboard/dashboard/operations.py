"""What people do to recorded tasks, on the pages and on the command line. Each refusal is a text."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.utils.translation import gettext as _

from powercrud_dashboard.async_manager import AsyncManager
from powercrud_dashboard.engine import registry, retry
from powercrud_dashboard.engine.launch import runs_in_caller
from powercrud_dashboard.exceptions import (
    EnqueueError,
    TaskAlreadyActive,
    TaskBusy,
    TaskConflict,
    TaskNotCancellable,
    TaskNotPausable,
    TaskNotRetryable,
)
from powercrud_dashboard.models import TaskRecord

logger = logging.getLogger(__name__)

#: Expected errors of what is done to a task. A deployment that removes or changes its function causes the last two.
REFUSALS = (
    TaskNotCancellable,
    TaskNotPausable,
    TaskBusy,
    TaskConflict,
    TaskNotRetryable,
    TaskAlreadyActive,
    EnqueueError,
    TypeError,
    ValueError,
)

#: Locked objects that a refusal names.
SHOWN_LOCKS = 2


def manager_of(record: TaskRecord) -> AsyncManager:
    """Return the manager that launched the task. Its hooks are called for what is done to the task."""
    manager: AsyncManager = registry.manager_of(record)
    return manager


def is_done(record: TaskRecord) -> bool:
    """Return whether the work is done, by this task or a later try, so that a retry would do it a second time."""
    return record.is_done or not TaskRecord.objects.filter(pk=record.pk).not_done_later().exists()


def retry_task(record: TaskRecord, actor: Any, **changes: Any) -> TaskRecord:
    """Retry a finished task, with these options of the manager's ``retry_task``. Return the record of the new task.

    Raises:
        Exception: whatever ``retry_task`` raises, but for the error of a task that has run in this process: then
            the new task is on record as failed.
    """
    newest = record.retries.order_by("-pk")
    runs_here = runs_in_caller()
    before = newest.first() if runs_here else None
    try:
        name = manager_of(record).retry_task(record.task_name, user=actor, **changes)
    except Exception:
        after = newest.first() if runs_here else None
        if after is None or after == before:
            raise
        return after
    return TaskRecord.objects.filter(task_name=name).first() or record


@dataclass(frozen=True)
class Answer:
    """What has come of an action on one task."""

    #: Why the task was not changed; "" if it was.
    refusal: str = ""
    #: The new task of a retry.
    new: TaskRecord | None = None


class Operations:
    """The actions that one person applies to tasks, one after the other."""

    def __init__(self, actor: Any, *, note: str = "", keep_locks: bool = True) -> None:
        """Choose how.

        Args:
            actor: whom the history records: a user, or a text.
            note: kept with the failures that are dismissed.
            keep_locks: whether the objects of tasks that are paused stay locked.
        """
        self._actor = actor
        self._note = note
        self._keep_locks = keep_locks

    def perform(self, action: str, record: TaskRecord) -> Answer:
        """Apply an action, by its name in ``BULK_ACTIONS`` or ``retry_objects``. It raises nothing."""
        act: Callable[[TaskRecord], Answer] = {
            "retry": self._retry,
            "run_again": self._retry,
            "retry_objects": self._retry_objects,
            "cancel": self._cancel,
            "dismiss": self._dismiss,
            "reopen": self._reopen,
            "pause": self._pause,
            "resume": self._resume,
        }[action]
        try:
            return act(record)
        except TaskConflict as error:
            # Shorter than the error's own text: there may be many.
            more = " …" if error.total > SHOWN_LOCKS else ""
            named = ", ".join(map(str, error.held[:SHOWN_LOCKS])) + more
            return Answer(_("Locked: %(objects)s") % {"objects": named})
        except REFUSALS as error:
            return Answer(str(error))
        except Exception as error:
            # A manager of the project may raise anything.
            logger.exception("An action on task %s failed", record.task_name, extra={"task_name": record.task_name})
            return Answer(f"{type(error).__name__}: {error}")

    def _retry(self, record: TaskRecord) -> Answer:
        return Answer(new=retry_task(record, self._actor))

    def _retry_objects(self, record: TaskRecord) -> Answer:
        return Answer(new=retry_task(record, self._actor, **retry.for_objects_not_done(record)))

    def _cancel(self, record: TaskRecord) -> Answer:
        is_done = manager_of(record).cancel_task(record.task_name, user=self._actor)
        return Answer("" if is_done else _("has already ended or is being cancelled"))

    def _pause(self, record: TaskRecord) -> Answer:
        manager = manager_of(record)
        is_done = manager.pause_task(record.task_name, user=self._actor, keep_locks=self._keep_locks)
        return Answer("" if is_done else _("has already ended, or is paused or being cancelled"))

    def _resume(self, record: TaskRecord) -> Answer:
        is_done = manager_of(record).resume_task(record.task_name, user=self._actor)
        return Answer("" if is_done else _("is not paused"))

    def _dismiss(self, record: TaskRecord) -> Answer:
        is_dismissed = manager_of(record).dismiss_failure(record.task_name, user=self._actor, note=self._note)
        return Answer("" if is_dismissed else _("is no open failure"))

    def _reopen(self, record: TaskRecord) -> Answer:
        is_reopened = manager_of(record).reopen_failure(record.task_name, user=self._actor)
        return Answer("" if is_reopened else _("was not dismissed"))
