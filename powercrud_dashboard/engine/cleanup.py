"""Find what was lost, end it, and delete what is old. Nothing that is alive is touched."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

from django.db import models
from django.db.models import Exists, OuterRef

from powercrud_dashboard.conf import app_settings, is_retention
from powercrud_dashboard.engine import (
    alert_messages,
    lifecycle,
    mails,
    missed,
    plain,
    policy,
    processes,
    pruning,
    registry,
    requests,
    statistics,
)
from powercrud_dashboard.engine.alerts import look_after_alerts
from powercrud_dashboard.engine.failure_texts import FailureText
from powercrud_dashboard.engine.vitals import Workers
from powercrud_dashboard.exceptions import TaskAlreadyActive, TaskConflict
from powercrud_dashboard.models import (
    ActiveTask,
    ConflictLock,
    FailureReason,
    TaskFile,
    TaskNotice,
    TaskRecord,
)
from powercrud_dashboard.models.coordination import ActiveTaskState
from powercrud_dashboard.models.database import Now, impatient_transaction
from powercrud_dashboard.q2 import queue

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

#: Seconds that a launch may take from its commit, or rather from the first cleanup after it, until the broker has it.
SENDING_MAY_TAKE = 60
#: Seconds that a record may stay open after its task's row was deleted.
RECORDING_MAY_TAKE = 60
#: Seconds after which an unfinished observed task is forgotten if nothing is heard of it.
SILENT_AFTER = 7 * 24 * 60 * 60
#: Tasks that a summary names, of those cleaned and those skipped: django-q2 stores the summary of each scheduled pass.
NAMED_TASKS = 100
#: How long an ended test of the cluster can be looked at.
TESTS_ARE_KEPT = timedelta(hours=1)


@dataclass
class Summary:
    """What cleanup found and did (or, in a dry run, would do). The first tasks are named; the counts are exact."""

    active_tasks: int = 0
    cleaned: dict[str, dict[str, Any]] = field(default_factory=dict)
    cleaned_count: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    skipped_count: int = 0
    orphaned_locks: int = 0
    pruned_records: int = 0

    def add_cleaned(self, task_name: str, found: dict[str, Any]) -> None:
        self.cleaned_count += 1
        if len(self.cleaned) < NAMED_TASKS:
            self.cleaned[task_name] = found

    def add_skipped(self, task_name: str, reason: str) -> None:
        self.skipped_count += 1
        if len(self.skipped) < NAMED_TASKS:
            self.skipped[task_name] = reason

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Cleanup:
    """One pass over everything that may have been left behind."""

    def __init__(self, *, dry_run: bool = False) -> None:
        self._dry_run = dry_run
        self._summary = Summary()
        #: Tasks that were given up, or would be.
        self._given_up: set[str] = set()

    def run(self) -> Summary:
        self._summary.active_tasks = ActiveTask.objects.tasks().count()
        steps: list[Callable[[], None]] = [
            self._give_up_lost_workers,
            self._give_up_what_was_never_sent,
            self._free_misdated,
            self._give_up_what_the_queue_lost,
            self._expire_reservations,
            self._close_abandoned_records,
            self._end_plain_tasks,
            self._delete_silent_records,
            self._delete_old_tests,
            self._delete_orphaned_locks,
            self._count_ended,
            self._prune_history,
            self._delete_unneeded_files,
            self._forget_old_notices,
            # Before the processes are forgotten whose loss may still have to be told.
            self._look_after_alerts,
            self._forget_old_processes,
            self._send_messages,
        ]
        for step in steps:
            try:
                step()
            except Exception:
                # The broker may be away, for instance, which the other steps don't need.
                logger.exception("A step of the cleanup failed: %s", step.__name__)
        self._note_the_rest()
        return self._summary

    def _give_up_lost_workers(self) -> None:
        lost = processes.seem_lost() if self._dry_run else processes.find_lost()
        self._give_up_all(lost, FailureReason.WORKER_LOST, "worker lost")

    def _give_up_what_was_never_sent(self) -> None:
        self._give_up_all(self._never_sent(), FailureReason.NOT_QUEUED, "could not be queued")

    def _free_misdated(self) -> None:
        if not self._dry_run:
            with impatient_transaction():
                freed = queue.free_misdated()
            if freed:
                logger.warning("%s queued messages were dated in the future", freed)

    def _give_up_what_the_queue_lost(self) -> None:
        self._give_up_all(self._lost_in_the_queue(), FailureReason.NEVER_STARTED, "lost in the queue")

    def _delete_unneeded_files(self) -> None:
        if not self._dry_run:
            with impatient_transaction():
                TaskFile.objects.all().unneeded().delete()

    def _forget_old_processes(self) -> None:
        if not self._dry_run:
            processes.forget_old()

    def _forget_old_notices(self) -> None:
        if not self._dry_run:
            expired = TaskNotice.objects.all().expired()
            with impatient_transaction():
                expired._raw_delete(expired.db)

    def _look_after_alerts(self) -> None:
        if not self._dry_run:
            look_after_alerts()

    def _send_messages(self) -> None:
        # Threads of the workers send them, unless none runs. A task of theirs, as this one may be, waits for no server.
        if not self._dry_run and not Workers.now().alive:
            alert_messages.send_due()
            mails.send_due()

    def _give_up_all(self, tasks: Iterable[ActiveTask], reason: FailureReason, words: str) -> None:
        for active in tasks:
            try:
                found = self._describe(active, words)
                if policy.waits_after(active, reason):
                    # It keeps its locks.
                    found.update(reason=f"{words}, waits for its retry", conflict_lock_keys=0)
                if self._dry_run or give_up(registry.manager_of(active), active, reason):
                    self._given_up.add(active.task_name)
                    self._summary.add_cleaned(active.task_name, found)
            except Exception:
                # One task must not stop the cleanup of the others.
                logger.exception("Task %s could not be cleaned up", active.task_name)

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

    def _never_sent(self) -> list[ActiveTask]:
        """Return the tasks whose launching process died between the commit and the broker."""
        overdue = list(ActiveTask.objects.unsent().filter(expires_at__lte=Now()))
        if not self._dry_run:
            # A row says when it was written, which may be long before its transaction was committed. So the time for
            # sending is counted from here, where it is seen for the first time.
            with impatient_transaction():
                ActiveTask.objects.unsent().filter(expires_at=None).update(
                    expires_at=Now() + timedelta(seconds=SENDING_MAY_TAKE)
                )
        return overdue

    def _lost_in_the_queue(self) -> Iterator[ActiveTask]:
        """Queued tasks whose message the broker does not have any more.

        Of a broker without receipts they are those that this pass and an earlier one have missed.
        """
        grace_period = app_settings.CLEANUP_GRACE_PERIOD
        if queue.broker_database() is not None:
            # The ORM broker keeps a message until its task has ended: without one, no worker will ever claim the task.
            waiting = ActiveTask.objects.queued_for(min(SENDING_MAY_TAKE, grace_period)).exclude(queue_receipt="")
            receipted = list(waiting)
            known = queue.receipts_still_queued([active.queue_receipt for active in receipted])
            yield from (active for active in receipted if active.queue_receipt not in known)
            return
        sent = ActiveTask.objects.ready().exclude(sent_at=None)
        for cluster in set(sent.values_list("cluster", flat=True)):
            tasks = list(sent.filter(cluster=cluster).defer("payload"))
            missing = queue.missing_from(cluster, [active.task_name for active in tasks])
            if missing is None:
                continue
            overdue = set(ActiveTask.objects.missing().queued_for(grace_period).values_list("task_name", flat=True))
            for active in tasks:
                is_missing = active.task_name in missing
                if is_missing and active.task_name in overdue:
                    yield active
                elif is_missing == (active.missing_since is None) and not self._dry_run:
                    self._note_missing(active, is_missing)

    @staticmethod
    def _note_missing(active: ActiveTask, is_missing: bool) -> None:
        try:
            with impatient_transaction():
                if ActiveTask.objects.all().note_missing(active, is_missing) and is_missing:
                    logger.warning(
                        "Task %s is not in the queue any more", active.task_name, extra={"task_name": active.task_name}
                    )
                    lifecycle.emit(registry.manager_of(active), "missing", active.task_name)
        except Exception:
            logger.exception("Whether task %s is lost could not be noted", active.task_name)

    def _expire_reservations(self) -> None:
        for reservation in ActiveTask.objects.expired_reservations():
            try:
                found = self._describe(reservation, "reservation expired")
                if self._dry_run or end_reservation(reservation):
                    self._summary.add_cleaned(reservation.task_name, found)
            except Exception:
                logger.exception("The reservation %s could not be ended", reservation.task_name)

    def _close_abandoned_records(self) -> None:
        """End records that stayed open although their task's row is gone, from what django-q2 knows of the task."""
        abandoned = TaskRecord.objects.abandoned(RECORDING_MAY_TAKE)
        for record in abandoned.only("task_name", "started_at", "manager_class", "manager_config"):
            try:
                if not self._dry_run:
                    with impatient_transaction():
                        self._close(record)
            except Exception:
                logger.exception("The record of task %s could not be closed", record.task_name)
                continue
            found = {
                "reason": "record without a task",
                "conflict_lock_keys": 0,
                "progress_entries": 0,
                "dashboard_records": 1,
            }
            self._summary.add_cleaned(record.task_name, found)

    def _close(self, record: TaskRecord) -> None:
        manager = registry.manager_of(record)
        finished = queue.finished_task(record.task_name)
        facts: dict[str, Any] = {"started_at": record.started_at}
        if finished is not None and finished.success:
            lifecycle.emit(manager, "complete", record.task_name, result=finished.result, **facts)
        elif finished is not None:
            lifecycle.emit(manager, "fail", record.task_name, **failure_of(finished), **facts)
        else:
            lost = policy.failure_payload(FailureReason.WORKER_LOST)
            lifecycle.emit(manager, "fail", record.task_name, **lost, **facts)

    def _end_plain_tasks(self) -> None:
        """End those of plain django-q2 whose workers are lost, or whose end nobody has recorded."""
        if not self._dry_run and (suspects := plain.seem_lost()):
            time.sleep(processes.OBSERVATION)
            missed.give_up(suspects & plain.seem_lost())
        if not self._dry_run:
            missed.settle_queued()

    def _delete_silent_records(self) -> None:
        """Delete records of observed tasks whose end nobody will tell any more; whether they failed is not known."""
        silent = TaskRecord.objects.silent(SILENT_AFTER).order_by("pk").values_list("pk", flat=True)
        if self._dry_run:
            self._summary.pruned_records += silent.count()
            return
        after = 0
        while batch := list(silent.filter(pk__gt=after)[: pruning.DELETED_AT_ONCE]):
            self._summary.pruned_records += len(batch) - len(pruning.delete_records(batch))
            after = batch[-1]

    def _delete_old_tests(self) -> None:
        tests = TaskRecord.objects.tests_of_the_cluster().finished()
        old = list(tests.filter(finished_at__lt=Now() - TESTS_ARE_KEPT).values_list("pk", flat=True))
        old = old[: pruning.DELETED_AT_ONCE]
        self._summary.pruned_records += len(old) if self._dry_run else len(old) - len(pruning.delete_records(old))

    def _delete_orphaned_locks(self) -> None:
        orphaned = ConflictLock.objects.all().orphaned()
        with impatient_transaction():
            self._summary.orphaned_locks = orphaned.count() if self._dry_run else orphaned._raw_delete(orphaned.db)

    def _count_ended(self) -> None:
        if not self._dry_run:
            statistics.count_ended()
            statistics.merge_old()

    def _prune_history(self) -> None:
        for status, days in app_settings.DASHBOARD_RETENTION_DAYS.items():
            # Others are kept: the check tells of a mistake, and None means all.
            if days is not None and is_retention(days):
                self._prune(TaskRecord.objects.expired(status, days))
        for expired in plain.expired():
            self._prune(expired)

    def _prune(self, expired: models.QuerySet[TaskRecord]) -> None:
        try:
            self._summary.pruned_records += expired.count() if self._dry_run else pruning.prune(expired)
        except Exception:
            logger.exception("Old records could not be pruned")

    def _note_the_rest(self) -> None:
        for active in ActiveTask.objects.tasks().only(*_SITUATION_COLUMNS):
            if active.task_name not in self._given_up:
                self._summary.add_skipped(active.task_name, _situation(active))


_SITUATION_COLUMNS = ("task_name", "state", "next_run_at", "missing_since", "held_by", "attempt", "retries")


def _situation(active: ActiveTask) -> str:
    """Return why a task is left alone."""
    if active.state == ActiveTaskState.IN_PROGRESS:
        return "task is running"
    if active.state == ActiveTaskState.PAUSED:
        return "task is paused"
    if active.held_by:
        return "its queue or function is paused"
    if active.next_run_at is not None:
        return "task waits for its retry" if active.attempt or active.retries else "task waits for its time"
    return "task is queued" if active.missing_since is None else "task is missing from the queue"


def give_up(manager: lifecycle.LifecycleManager, active: ActiveTask, reason: FailureReason) -> bool:
    """End a task from outside, unless it has changed since it was read. Return whether it was ended.

    Raises:
        TaskBusy: if another session has its rows locked in the database and does not finish.
    """
    with impatient_transaction():
        ended = policy.fail(manager, active, **policy.failure_payload(reason))
    if ended:
        logger.warning(
            "Task %s was given up: %s", active.task_name, reason.value, extra={"task_name": active.task_name}
        )
        queue.withdraw(active.queue_receipt)
    return ended


def end_reservation(reservation: ActiveTask) -> bool:
    """Release a reservation's locks and delete it. Return whether it was still there."""
    with impatient_transaction():
        return ActiveTask.objects.end(reservation) is not None


def release_stale_holders(model_labels: set[str]) -> bool:
    """End the lost tasks and expired reservations that hold locks of these models. Return whether there was one."""
    locks = ConflictLock.objects.filter(active_task=OuterRef("pk"), model_label__in=model_labels)
    stale = [*processes.find_lost(Exists(locks)), *ActiveTask.objects.expired_reservations().filter(Exists(locks))]
    return sum(map(_release_stale, stale)) > 0


def without_stale_holders(launch_it: Callable[[], Answer]) -> Answer:
    """Launch; as long as lost tasks or expired reservations are in the way, end those and launch again."""
    while True:
        try:
            return launch_it()
        except TaskConflict as conflict:
            if not release_stale_holders({item.model_label for item in conflict.held}):
                raise
        except TaskAlreadyActive as other:
            if not give_up_if_lost(other.task_name):
                raise


def give_up_if_lost(task_name: str) -> bool:
    """Give up this task if its worker is lost. Return whether it was."""
    return sum(map(_release_stale, processes.find_lost(task_name=task_name))) > 0


def _release_stale(holder: ActiveTask) -> bool:
    try:
        if holder.state == ActiveTaskState.RESERVED:
            return end_reservation(holder)
        return give_up(registry.manager_of(holder), holder, FailureReason.WORKER_LOST)
    except Exception:
        # One holder must not keep the others' locks.
        logger.exception("The locks of %s could not be released", holder.task_name)
        return False


def finish_from(finished: Any) -> bool:
    """End a task whose worker could not record its end, from django-q2's row of it.

    Return False if there is nothing to end, or the row tells of another attempt.
    """
    active = ActiveTask.objects.running().filter(task_name=finished.name).first()
    if active is None or queue.attempt_of(finished) != active.attempt:
        return False
    manager = registry.manager_of(active)
    if finished.success:
        return lifecycle.end(manager, active, "complete", result=finished.result)
    told = queue.ending_of(finished)
    if told.get("event") in requests.GIVES_BACK:
        return requests.give_worker_back(manager, active)
    if told.get("event") == "cancel":
        return lifecycle.end(manager, active, "cancel", actor=active.cancel_requested_by)
    return policy.fail(manager, active, policy.exception_class(told.get("kind", "")), **failure_of(finished))


def failure_of(finished: Any) -> dict[str, Any]:
    """Return the payload of a ``fail`` event for django-q2's row, whose text is error and traceback in one."""
    told = queue.ending_of(finished)
    error, _class, traceback = FailureText.of(str(finished.result))
    return {
        "reason": told.get("reason") or FailureReason.ERROR.value,
        "error": error,
        "result": error,
        "exception_class": told.get("exception_class", ""),
        "traceback": traceback,
    }
