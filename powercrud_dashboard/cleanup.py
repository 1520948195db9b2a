"""Find what was lost and prune what is old. Nothing that lives is ever touched."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from django.db import connections

from powercrud_dashboard import failing, lifecycle, queueing
from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.liveness import LOOK_FOR_PROCESS_AFTER, is_lost, stay_silent
from powercrud_dashboard.models import (
    ActiveTask,
    ConflictLock,
    FailureReason,
    TaskEvent,
    TaskFile,
    TaskObject,
    TaskRecord,
)
from powercrud_dashboard.models.coordination import coordination_db, in_chunks, write_transaction

logger = logging.getLogger(__name__)

#: Finds the manager of a task by the path that was recorded at launch.
ManagerOf = Callable[[str], lifecycle.LifecycleManager]

#: Seconds that a task may be between commit and the broker.
SENDING_MAY_TAKE = 60
#: Seconds that a record may stay open after its task's row is gone.
RECORDING_MAY_TAKE = 60
#: Records deleted in one transaction, so that a launch never waits long.
PRUNED_AT_ONCE = 250


@dataclass
class Summary:
    """What cleanup saw and did (or, in a dry run, would do)."""

    active_tasks: int = 0
    cleaned: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    orphaned_locks: int = 0
    pruned_records: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {
            "active_tasks": self.active_tasks,
            "cleaned": self.cleaned,
            "skipped": self.skipped,
            "orphaned_locks": self.orphaned_locks,
            "pruned_records": self.pruned_records,
        }


class Cleanup:
    """One pass over everything that may have been left behind."""

    def __init__(self, manager_of: ManagerOf, *, dry_run: bool = False) -> None:
        self._manager_of = manager_of
        self._dry_run = dry_run
        self._summary = Summary()

    def run(self) -> Summary:
        self._summary.active_tasks = ActiveTask.objects.tasks().count()
        for active in lost_workers():
            self._give_up(active, FailureReason.WORKER_LOST, "worker lost")
        for active in self._never_sent():
            self._give_up(active, FailureReason.NOT_QUEUED, "could not be queued")
        if not self._dry_run and (freed := queueing.free_misdated()):
            logger.warning("%s queued messages were dated in the future", freed)
        for active in self._lost_in_the_queue():
            self._give_up(active, FailureReason.NEVER_STARTED, "lost in the queue")
        self._expire_reservations()
        self._close_abandoned_records()
        self._drop_orphaned_locks()
        self._prune_history()
        self._drop_useless_files()
        self._note_the_living()
        return self._summary

    def _give_up(self, active: ActiveTask, reason: FailureReason, words: str) -> None:
        found = self._describe(active, words)
        if self._dry_run or give_up(self._manager_of(active.manager_class), active, reason):
            self._summary.cleaned[active.task_name] = found

    @staticmethod
    def _describe(active: ActiveTask, words: str) -> dict[str, Any]:
        """Count what belongs to a task or reservation, before it is ended."""
        has_progress = bool(active.progress_message) or active.progress_current is not None
        return {
            "reason": words,
            "conflict_lock_keys": active.locks.count(),
            "progress_entries": int(has_progress),
            "dashboard_records": TaskRecord.objects.filter(task_name=active.task_name).count(),
        }

    def _never_sent(self) -> Iterator[ActiveTask]:
        """Tasks whose process died between the commit and the broker."""
        yield from ActiveTask.objects.queued_for(SENDING_MAY_TAKE).filter(sent_at=None)

    def _lost_in_the_queue(self) -> Iterator[ActiveTask]:
        """Tasks that wait and that the broker does not know any more."""
        grace_period = app_settings.CLEANUP_GRACE_PERIOD
        if queueing.broker_database() is not None:
            # It keeps a message until the task has ended: without one, nobody will ever come for the task.
            waiting = ActiveTask.objects.queued_for(min(SENDING_MAY_TAKE, grace_period)).exclude(queue_receipt="")
            receipted = list(waiting)
            known = queueing.receipts_still_queued([active.queue_receipt for active in receipted])
            yield from (active for active in receipted if active.queue_receipt not in known)
            return
        waiting = ActiveTask.objects.queued_for(grace_period).exclude(sent_at=None)
        by_cluster: dict[str, list[ActiveTask]] = {}
        for active in waiting:
            by_cluster.setdefault(active.cluster, []).append(active)
        for cluster, tasks in by_cluster.items():
            if queueing.is_drained(cluster):
                yield from tasks

    def _expire_reservations(self) -> None:
        for reservation in ActiveTask.objects.expired_reservations():
            found = self._describe(reservation, "reservation expired")
            if not self._dry_run:
                with write_transaction():
                    ActiveTask.objects.end(reservation)
            self._summary.cleaned[reservation.task_name] = found

    def _close_abandoned_records(self) -> None:
        """End records that stayed open although their task is gone, from what django-q2 knows of it."""
        for record in TaskRecord.objects.abandoned(RECORDING_MAY_TAKE):
            if not self._dry_run:
                self._close(record)
            self._summary.cleaned[record.task_name] = {
                "reason": "record without a task",
                "conflict_lock_keys": 0,
                "progress_entries": 0,
                "dashboard_records": 1,
            }

    def _close(self, record: TaskRecord) -> None:
        manager = self._manager_of(record.manager_class)
        finished = queueing.finished_task(record.task_name)
        if finished is not None and finished.success:
            lifecycle.emit(manager, "complete", record.task_name, result=finished.result)
        elif finished is not None:
            lifecycle.emit(manager, "fail", record.task_name, **failure_of(finished))
        else:
            lifecycle.emit(manager, "fail", record.task_name, **failing.verdict(FailureReason.WORKER_LOST))

    def _drop_orphaned_locks(self) -> None:
        orphaned = ConflictLock.objects.all().orphaned()
        self._summary.orphaned_locks = orphaned.count() if self._dry_run else orphaned._raw_delete(orphaned.db)

    def _drop_useless_files(self) -> None:
        if not self._dry_run:
            TaskFile.objects.all().of_no_use().delete()

    def _prune_history(self) -> None:
        for status, days in app_settings.DASHBOARD_RETENTION_DAYS.items():
            if days is not None:
                self._summary.pruned_records += self._prune(status, days)

    def _prune(self, status: str, days: float) -> int:
        expired = TaskRecord.objects.expired(status, days)
        if self._dry_run:
            return expired.count()
        pruned = 0
        # In the order of the index that finds them: otherwise all that are left are sorted for each batch.
        oldest = expired.order_by("finished_at").values_list("pk", flat=True)
        while batch := list(oldest[:PRUNED_AT_ONCE]):
            pruned += len(batch)
            began = time.monotonic()
            delete_records(batch)
            if connections[coordination_db()].vendor == "sqlite":
                # It has one writer, and no queue for those who wait: let them have as much time as this took.
                time.sleep(time.monotonic() - began)
        return pruned

    def _note_the_living(self) -> None:
        for active in ActiveTask.objects.tasks():
            if active.task_name not in self._summary.cleaned:
                self._summary.skipped[active.task_name] = f"task is {active.get_state_display().lower()}"


def delete_records(pks: list[int]) -> None:
    """Delete these records with everything that belongs to them, in one transaction."""
    using = TaskRecord.objects.all().db
    for chunk in in_chunks(pks, using=using):
        with write_transaction():
            TaskEvent.objects.filter(record__in=chunk).delete()
            TaskObject.objects.filter(record__in=chunk).delete()
            names = TaskRecord.objects.filter(pk__in=chunk).values_list("task_name", flat=True)
            TaskFile.objects.filter(owner__in=list(names)).delete()
            TaskRecord.objects.filter(retry_of__in=chunk).update(retry_of=None)
            TaskRecord.objects.filter(first_try__in=chunk).update(first_try=None)
            records = TaskRecord.objects.filter(pk__in=chunk)
            records._raw_delete(records.db)


def lost_workers(**which: Any) -> list[ActiveTask]:
    """Return the running tasks (among ``which``) whose worker is gone."""
    silent = min(LOOK_FOR_PROCESS_AFTER, app_settings.DASHBOARD_HEARTBEAT_TIMEOUT, app_settings.MAX_TASK_DURATION)
    return stay_silent(
        active for active in ActiveTask.objects.all().silent_for(silent).filter(**which) if is_lost(active)
    )


def give_up(manager: lifecycle.LifecycleManager, active: ActiveTask, reason: FailureReason) -> bool:
    """End a task from outside, unless it has shown life since it was read. Return whether it was ended."""
    with write_transaction():
        tasks = ActiveTask.objects.all()
        unchanged = tasks.still_silent(active) if active.heartbeat_at else tasks.of_attempt(active)
        if not unchanged.exists():
            return False
        ended = failing.fail(manager, active, **failing.verdict(reason))
    if ended:
        logger.warning("Task %s was given up: %s", active.task_name, reason.value)
        queueing.withdraw(active.queue_receipt)
    return ended


def release_stale_holders(manager_of: ManagerOf, conflicting: list[str]) -> bool:
    """Give up those holders of locks that are lost or expired. Return whether there was one."""
    released = False
    for active in lost_workers(task_name__in=conflicting):
        released |= give_up(manager_of(active.manager_class), active, FailureReason.WORKER_LOST)
    for reservation in ActiveTask.objects.expired_reservations().filter(task_name__in=conflicting):
        with write_transaction():
            released |= ActiveTask.objects.end(reservation) is not None
    return released


def finish_from(manager: lifecycle.LifecycleManager, finished: Any, task_name: str) -> bool:
    """End a task whose worker could not, from django-q2's row of it. Return whether there was anything to end."""
    active = ActiveTask.objects.tasks().filter(task_name=task_name).first()
    if active is None or (active.attempt and not active.heartbeat_at):
        # Of a task that waits for its next try, or is queued for it, this tells of a try before that.
        return False
    if active.heartbeat_at and not ActiveTask.objects.silent_for(LOOK_FOR_PROCESS_AFTER).filter(pk=active.pk).exists():
        # Another worker has taken the task over and is at it now.
        return False
    if finished.success:
        return lifecycle.end(manager, active, "complete", result=finished.result)
    return failing.fail(manager, active, **failure_of(finished))


def failure_of(finished: Any) -> dict[str, Any]:
    """Make the payload of a ``fail`` event from django-q2's row: its text is error and traceback in one."""
    text = str(finished.result)
    error, __, traceback = text.partition(" : Traceback")
    return {
        "reason": FailureReason.ERROR.value,
        "error": error,
        "result": error,
        "exception_class": "",
        "traceback": f"Traceback{traceback}" if traceback else text,
    }
