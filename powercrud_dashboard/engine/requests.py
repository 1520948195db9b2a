"""What people ask of tasks that have not ended: cancel, pause and resume them, and release their locks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from django.utils.translation import gettext_noop

from powercrud_dashboard.engine import lifecycle, locks, plain, retry
from powercrud_dashboard.engine.progress import Progress
from powercrud_dashboard.exceptions import TaskNotPausable, UnreadableSpec
from powercrud_dashboard.models import ActiveTask, ConflictLock
from powercrud_dashboard.models.coordination import ActiveTaskState
from powercrud_dashboard.models.database import coordination_db, impatient_transaction, write_transaction
from powercrud_dashboard.q2 import queue
from powercrud_dashboard.text import MESSAGE, clean_text, lazy_text

logger = logging.getLogger(__name__)

#: Kept as the message of a task: the pages translate it.
REMOVED = gettext_noop("Removed by hand.")
#: In the place of the pause of a queue: no task waits for its end.
RESUMED = "resumed"

#: Returns the manager that a task was launched by, whose hooks are called.
OwnerOf = Callable[[ActiveTask], lifecycle.LifecycleManager]


def _as_user(actor: Any) -> Any:
    """Return the user who asks; None for somebody who is known by a name only."""
    return None if isinstance(actor, str) else actor


def _unfinished(task_name: str) -> ActiveTask | None:
    return ActiveTask.objects.tasks().filter(task_name=task_name).first()


def cancel(task_name: str, actor: Any, owner_of: OwnerOf) -> bool:
    """End a queued or paused task, or ask the worker of a running one to stop it. Return whether that was done.

    Raises:
        TaskNotCancellable: if it is a queued task of plain django-q2, and its message can't be taken out of the queue.
        TaskBusy: if another session keeps the task locked in the database, and does not finish.
    """
    while (active := _unfinished(task_name)) is not None:
        if active.state != ActiveTaskState.IN_PROGRESS:
            if lifecycle.end_from_outside(owner_of(active), active, "cancel", actor=actor):
                return True
        elif active.cancel_requested_at is not None:
            return False
        elif _asked(active, "cancel_requested", actor, owner_of, ActiveTask.objects.all().request_cancel):
            return True
        # It has begun or failed in this moment, or somebody else has cancelled it: look again.
    return plain.cancel(task_name, actor)


def remove(task_name: str, owner_of: OwnerOf) -> bool:
    """End a task at once, as cancelled, in whatever state it is. Return whether there was one."""
    active = _unfinished(task_name)
    return active is not None and lifecycle.end_from_outside(owner_of(active), active, "cancel", message=REMOVED)


def _asked(
    active: ActiveTask, event: str, actor: Any, owner_of: OwnerOf, ask: Callable[[ActiveTask, Any], bool]
) -> bool:
    with impatient_transaction():
        if asked := ask(active, _as_user(actor)):
            lifecycle.emit(owner_of(active), event, active.task_name, actor=actor)
    return asked


# Pause and resume


def pause(task_name: str, actor: Any, owner_of: OwnerOf, *, keep_locks: bool) -> bool:
    """Pause a queued task, or ask the worker of a running one to do so. Return whether that was done.

    Raises:
        TaskNotPausable: if it could not be resumed, as its arguments can't be restored.
        TaskBusy: if another session keeps the task locked in the database, and does not finish.
    """

    def request(active: ActiveTask, user: Any) -> bool:
        return ActiveTask.objects.all().request_pause(active, user, keep_locks=keep_locks)

    while (active := _unfinished(task_name)) is not None:
        is_running = active.state == ActiveTaskState.IN_PROGRESS
        is_asked = active.pause_requested_at is not None or active.cancel_requested_at is not None
        if active.state == ActiveTaskState.PAUSED or (is_running and is_asked):
            return False
        _check_resumable(active)
        if is_running:
            if _asked(active, "pause_requested", actor, owner_of, request):
                return True
        elif _pause_queued(active, actor, owner_of, keep_locks=keep_locks):
            return True
        # It has begun or ended in this moment, or somebody else has asked: look again.
    return False


def _check_resumable(active: ActiveTask) -> None:
    try:
        retry.spec_of(active)
    except UnreadableSpec as error:
        if not error.is_newer:
            reason = lazy_text("%(reason)s.", reason=error.reason)
            raise TaskNotPausable(active.task_name, reason) from error


def _pause_queued(active: ActiveTask, actor: Any, owner_of: OwnerOf, *, keep_locks: bool) -> bool:
    with impatient_transaction():
        if not ActiveTask.objects.all().pause(active, keep_locks=keep_locks):
            return False
        lifecycle.note_paused(owner_of(active), active, keep_locks=keep_locks, actor=actor)
    # A worker that gets the message nevertheless runs nothing.
    queue.withdraw(active.queue_receipt)
    return True


def resume(task_name: str, actor: Any, owner_of: OwnerOf) -> bool:
    """Queue a paused task again, with its locks. A running one that was asked to pause goes on.

    Return whether there was something to resume.

    Raises:
        TaskConflict: if objects that it has given back are locked by others; it stays paused.
        TaskBusy: if another session keeps the task locked in the database, and does not finish.
    """

    def withdraw(active: ActiveTask, user: Any) -> bool:
        return ActiveTask.objects.all().withdraw_pause(active)

    while (active := _unfinished(task_name)) is not None:
        if active.state == ActiveTaskState.PAUSED:
            if _resume_paused(active, actor, owner_of):
                return True
        elif active.pause_requested_at is None:
            return False
        elif _asked(active, "resume", actor, owner_of, withdraw):
            return True
    return False


def _resume_paused(active: ActiveTask, actor: Any, owner_of: OwnerOf) -> bool:
    owner = owner_of(active)
    with impatient_transaction():
        if not ActiveTask.objects.all().hand_back(active):
            return False
        locks.take_back(active)
        lifecycle.emit(owner, "resume", active.task_name, actor=actor, requeued=True)
    send_soon(owner, active)
    return True


def send_soon(manager: lifecycle.LifecycleManager, active: ActiveTask) -> None:
    """Queue a task that is due. If that does not work now, the workers queue it soon."""
    due = ActiveTask.objects.due().filter(pk=active.pk).first()
    try:
        if due is not None:
            # It may wait again: whoever has resumed it, or its worker, is not there for an error of the broker.
            due.released_from = RESUMED
            retry.run_now(manager, due)
    except Exception:
        logger.warning(
            "Task %s could not be queued now", active.task_name, exc_info=True, extra={"task_name": active.task_name}
        )


# For the worker

#: What a payload says of the progress.
PROGRESS = ("message", "current", "total")
#: The ends of an attempt after which the task goes on later.
GIVES_BACK = ("pause", "slice")


def give_worker_back(
    manager: lifecycle.LifecycleManager,
    active: ActiveTask,
    *,
    earlier: Sequence[lifecycle.Event] = (),
    unrecorded: Sequence[lifecycle.Event] | None = None,
    resume_at: int | None = None,
    **payload: Any,
) -> bool:
    """Pause a running task that has stopped by itself, if somebody wants that; else let it be queued again.

    The arguments are those of :func:`lifecycle.end`, and how many items of its loop the task has done. Returns False,
    with nothing changed, if the task has ended or has passed to another attempt.
    """
    before = lifecycle.missing_start(active) if unrecorded is None else unrecorded
    with write_transaction():
        tasks = ActiveTask.objects.all()
        people = "cancel_requested_by", "pause_requested_by"
        # Locked, so that nobody asks for something between this look and the change that follows from it.
        now = tasks.as_read(active).prefetch_related(*people).select_for_update(of=("self",)).first()
        if now is None:
            return False
        if now.cancel_requested_at is not None:
            facts = {**payload, "actor": now.cancel_requested_by, "earlier": earlier, "unrecorded": before}
            return lifecycle.end(manager, active, "cancel", **facts)
        if queue.broker_database() == coordination_db():
            queue.withdraw(active.queue_receipt)
        if "message" in payload:
            # The last report, which stays with the task.
            tasks.write_progress(active, **Progress.parse(**{name: payload[name] for name in PROGRESS}).as_columns())
        if now.pause_requested_at is not None:
            if not tasks.pause(active, keep_locks=now.pause_keeps_locks, resume_at=resume_at):
                return False
            facts = {**payload, "actor": now.pause_requested_by, "keep_locks": now.pause_keeps_locks}
            lifecycle.note_paused(manager, active, earlier=earlier, unrecorded=before, **facts)
            return True
        if not tasks.hand_back(active, resume_at=resume_at):
            return False
        events = [*earlier, ("slice", payload)]
        lifecycle.record(manager, active.task_name, [*before, *events])
        lifecycle.call_hooks(manager, active.task_name, events)
    send_soon(manager, active)
    return True


# Locks


def release_lock(lock: ConflictLock, actor: Any, owner_of: OwnerOf, note: str = "") -> bool:
    """Release one lock, whoever holds it, and record who did it, and why. Return False if it was released meanwhile."""
    with impatient_transaction():
        # Read now: a reservation that is left without a lock is dropped.
        holder = ActiveTask.objects.filter(pk=lock.active_task_id).first()
        if holder is None or not locks.release_one(lock):
            return False
        if holder.state != ActiveTaskState.RESERVED:
            message = clean_text(f"{clean_text(lock, MESSAGE)}: {note}" if note else lock, MESSAGE)
            lifecycle.emit(owner_of(holder), "release", holder.task_name, actor=actor, message=message)
    logger.info(
        "The lock on %s held by %s was released by %s: %s",
        lock,
        holder.task_name,
        actor,
        note or "no note",
        extra={"task_name": holder.task_name},
    )
    return True
