"""Lifecycle events: record them, call the manager's hooks, and end a task in one transaction."""

from __future__ import annotations

import logging
from asyncio import CancelledError
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Protocol, TypeVar

from django.db import connections, transaction
from django.dispatch import Signal
from django.utils import timezone
from django.utils.translation import gettext_noop

from powercrud_dashboard.engine import calls, locks, progress, registry
from powercrud_dashboard.engine.boundary import contained
from powercrud_dashboard.models import ActiveTask, TaskCursor, TaskRecord, TaskStatus
from powercrud_dashboard.models.coordination import ActiveTaskState
from powercrud_dashboard.models.database import (
    coordination_db,
    impatient_transaction,
    in_callers_transaction,
    is_lock_timeout,
    write_transaction,
)
from powercrud_dashboard.models.statuses import GIVEN_UP
from powercrud_dashboard.q2 import queue
from powercrud_dashboard.signals import BY_EVENT, task_event, task_finished

logger = logging.getLogger(__name__)

#: Calls a hook, at once or later. The event's name is passed as some events may be left out.
Deliver = Callable[[str, Callable[[], None]], None]

Answer = TypeVar("Answer")

#: A lifecycle event and its payload.
Event = tuple[str, dict[str, Any]]

#: What the payload of every event has, None where there is nothing to say.
COMMON_KEYS = (
    "status",
    "message",
    "progress_payload",
    "user",
    "affected_objects",
    "task_args",
    "task_kwargs",
    "result",
    "timestamp",
    "extra",
)

#: The facts of an event that the change of state needs. They are recorded if the whole event can't be.
_BARE_FACTS = (
    "argument_names",
    "attempt",
    "cluster",
    "func",
    "group",
    "is_partial",
    "label",
    "late",
    "manager_class",
    "outcome_counts",
    "outcomes",
    "payload",
    "position",
    "postponed",
    "ran_before",
    "reason",
    "requeued",
    "retry_of",
    "run_after",
    "source",
    "started_at",
    "timestamp",
)
_WITHOUT_DETAILS = gettext_noop("The details of this event could not be recorded.")

#: What a hook may raise without harm: neither ``sys.exit()`` nor what it has cancelled ends a launch or a worker.
HOOK_ERRORS = (Exception, SystemExit, CancelledError)

#: Events whose payloads always say who it was; None for nobody who is known.
_BY_PEOPLE = ("cancel", "pause", "resume", "dismiss", "reopen")

#: The task's status after an event.
_STATUS = {
    "create": TaskStatus.PENDING,
    "start": TaskStatus.IN_PROGRESS,
    "progress": TaskStatus.IN_PROGRESS,
    "complete": TaskStatus.SUCCESS,
    "fail": TaskStatus.FAILED,
    "cancel": TaskStatus.CANCELLED,
    "pause": TaskStatus.PAUSED,
    "slice": TaskStatus.PENDING,
    "dismiss": TaskStatus.FAILED,
    "reopen": TaskStatus.FAILED,
}


class LifecycleManager(Protocol):
    """What the engine needs of a manager."""

    @property
    def has_lifecycle_hook(self) -> bool: ...

    @property
    def has_completion_hook(self) -> bool: ...

    def async_task_lifecycle(self, event: str, task_name: str, **payload: Any) -> None: ...

    def handle_task_completion(self, task: Any, task_name: str) -> None: ...


def emit(manager: LifecycleManager, event: str, task_name: str, **payload: Any) -> None:
    """Record an event and call the manager's lifecycle hook. What either raises is logged and harms nothing.

    The record is part of the open transaction. The hook is called after it, so that a slow hook keeps no lock that
    others wait for; in a transaction of the caller's, whose end is not in our hands, it is called at once.
    """
    emit_all(manager, task_name, [(event, payload)])


def emit_all(manager: LifecycleManager, task_name: str, events: Sequence[Event]) -> None:
    """Do the same for several events of one task, in fewer statements."""
    record(manager, task_name, events)
    call_hooks(manager, task_name, events)


class NotRecorded(Exception):
    """Events could not be written into the history outside of a savepoint."""


def twice_if_need_be(work: Callable[[bool], Answer]) -> Answer:
    """Call ``work(False)``; if it raises :class:`NotRecorded`, call ``work(True)``.

    The argument is whether to record events in a savepoint. The savepoint keeps an error in the history from undoing
    the change of state, but costs two statements, and there is hardly ever an error. So the first transaction does
    without; it is rolled back by an error, and done again.
    """
    try:
        return work(False)
    except NotRecorded:
        return work(True)


def record(manager: LifecycleManager, task_name: str, events: Sequence[Event], *, in_savepoint: bool = True) -> None:
    """Write events into the history, without calling hooks.

    An error is logged. Without a savepoint it is raised as :class:`NotRecorded`.
    """
    if not events:
        return
    now = timezone.now()
    for _event, payload in events:
        payload.setdefault("timestamp", now)
    recorder = registry.recorder_for(manager)
    if recorder is None:
        return
    if in_savepoint:
        _record(recorder, task_name, events)
        return
    try:
        recorder.record_lifecycle_events(task_name, events)
    except Exception as error:
        if is_lock_timeout(error):
            # Whoever has the lock may write to the record: nothing is lost by doing all of it later.
            raise
        raise NotRecorded(f"It could not be recorded. {type(error).__name__}: {error}") from error


def call_hooks(manager: LifecycleManager, task_name: str, events: Sequence[Event]) -> None:
    """Call the manager's lifecycle hook for events, and send their signals, without recording them."""
    has_hook = manager.has_lifecycle_hook
    recorder = registry.recorder_for(manager) if has_hook else None
    for event, payload in events:
        if event == "lines":
            # Of the log, which may have thousands.
            continue
        heard = [signal for signal in (BY_EVENT.get(event), task_event) if signal and _has_receivers(signal, manager)]
        if not (has_hook or heard):
            continue
        payload.setdefault("timestamp", timezone.now())
        facts = _with_common_keys(event, payload)
        if has_hook:
            # The manager need not record the event itself.
            hook_payload = {**facts, "recorded": True}
            _deliver_after_commit(event, partial(_call_hook, manager, recorder, event, task_name, hook_payload))
        for signal in heard:
            _send_after_commit(signal, manager, event, task_name, facts)


def _with_common_keys(event: str, payload: dict[str, Any]) -> dict[str, Any]:
    is_queued_again = payload.get("postponed") or payload.get("requeued")
    status = _STATUS.get(event, TaskStatus.PENDING if is_queued_again else None)
    common = dict.fromkeys(COMMON_KEYS) | {"status": status.value if status else None}
    if event in _BY_PEOPLE:
        common["actor"] = None
    if event == "progress":
        common["progress_payload"] = payload.get("message")
    return {**common, **payload}


def _has_receivers(signal: Signal, manager: LifecycleManager) -> bool:
    # The list is looked at first, as it takes no lock.
    return bool(signal.receivers) and signal.has_listeners(type(manager))


def _send_after_commit(
    signal: Signal, manager: LifecycleManager, event: str, task_name: str, payload: dict[str, Any]
) -> None:
    send = partial(_send, signal, manager, event, task_name, payload)
    # Also if the transaction is the caller's: receivers are to hear of nothing that is rolled back.
    transaction.on_commit(partial(_deliver_later, event, send), using=coordination_db())


def _send(signal: Signal, manager: LifecycleManager, event: str, task_name: str, payload: dict[str, Any]) -> None:
    answers: list[tuple[Any, Any]] = []
    try:
        with contained():
            answers = signal.send_robust(
                type(manager), task_name=task_name, event=event, attempt=payload.get("attempt"), payload=payload
            )
    except HOOK_ERRORS:
        # Such as sys.exit(), which is no Exception.
        logger.exception(
            "A receiver of the signal for %r of task %s failed", event, task_name, extra={"task_name": task_name}
        )
    recorder = None
    for receiver, error in answers:
        if isinstance(error, Exception):
            # Django has logged it.
            recorder = recorder or registry.recorder_for(manager)
            if recorder is not None:
                receiver = getattr(receiver, "__wrapped__", receiver)
                culprit = receiver if hasattr(receiver, "__qualname__") else type(receiver)
                _record_failed_hook(recorder, f"{event} receiver", culprit, task_name, error)


def _record(recorder: Any, task_name: str, events: Sequence[Event]) -> None:
    if _is_recorded(recorder, task_name, events):
        return
    # Only one of them may be at fault, and of that one only a detail.
    for event, payload in events:
        if len(events) > 1 and _is_recorded(recorder, task_name, [(event, payload)]):
            continue
        bare = {name: payload[name] for name in _BARE_FACTS if name in payload}
        _is_recorded(recorder, task_name, [(event, {**bare, "message": _WITHOUT_DETAILS})])


def _is_recorded(recorder: Any, task_name: str, events: Sequence[Event]) -> bool:
    try:
        with transaction.atomic(using=coordination_db()):
            recorder.record_lifecycle_events(task_name, events)
    except Exception as error:
        # Outside of a transaction there is nothing that could be done again as a whole.
        if is_lock_timeout(error) and connections[coordination_db()].in_atomic_block:
            raise
        names = ", ".join(event for event, _payload in events)
        logger.exception(
            "The %s event of task %s could not be recorded", names, task_name, extra={"task_name": task_name}
        )
        return False
    return True


def _deliver_after_commit(event: str, call: Callable[[], None]) -> None:
    if in_callers_transaction():
        call()
    else:
        transaction.on_commit(partial(_deliver_later, event, call), using=coordination_db())


def _call_hook(manager: LifecycleManager, recorder: Any, event: str, task_name: str, payload: dict[str, Any]) -> None:
    try:
        with _savepoint_in_callers_transaction(), contained():
            calls.call(manager.async_task_lifecycle, event, task_name, **payload)
    except HOOK_ERRORS as error:
        logger.exception(
            "The lifecycle hook of %s failed at %r of task %s",
            type(manager).__name__,
            event,
            task_name,
            extra={"task_name": task_name},
        )
        if recorder is not None:
            _record_failed_hook(recorder, f"{event} hook", type(manager), task_name, error)


def _call_completion_hook(manager: LifecycleManager, active: ActiveTask, event: str, payload: dict[str, Any]) -> None:
    name = active.task_name
    try:
        finished = queue.as_finished_task(
            name, success=event == "complete", result=payload.get("result"), started=active.started_at
        )
        with _savepoint_in_callers_transaction(), contained():
            calls.call(manager.handle_task_completion, finished, name)
    except HOOK_ERRORS as error:
        logger.exception(
            "handle_task_completion of %s failed for task %s", type(manager).__name__, name, extra={"task_name": name}
        )
        recorder = registry.recorder_for(manager)
        if recorder is not None:
            _record_failed_hook(recorder, "handle_task_completion", type(manager), name, error)


def _savepoint_in_callers_transaction() -> Any:
    # A savepoint keeps the caller's transaction usable. Outside of one there is no transaction, which would keep
    # SQLite's write lock for as long as the hook takes.
    return transaction.atomic(using=coordination_db()) if in_callers_transaction() else nullcontext()


def _record_failed_hook(recorder: Any, what: str, culprit: Any, task_name: str, error: BaseException) -> None:
    try:
        with transaction.atomic(using=coordination_db()):
            recorder.record_failed_hook(what, culprit, task_name, error)
    except Exception:
        logger.exception("The failed hook of task %s could not be recorded", task_name, extra={"task_name": task_name})


def _call_now(event: str, call: Callable[[], None]) -> None:
    call()


_deliver: Deliver = _call_now


def _deliver_later(event: str, call: Callable[[], None]) -> None:
    # Looked up now that the transaction was committed.
    _deliver(event, call)


def deliver_hooks_with(deliver: Deliver) -> None:
    """Have the hooks of this process called by ``deliver`` instead of directly after the commit."""
    global _deliver
    _deliver = deliver


def end(
    manager: LifecycleManager,
    active: ActiveTask,
    event: str,
    *,
    earlier: Sequence[Event] = (),
    unrecorded: Sequence[Event] | None = None,
    **payload: Any,
) -> bool:
    """End a task: delete its row and locks and record ``event``, all or nothing.

    Args:
        manager: the manager that launched it.
        active: the task as it was read.
        event: ``complete``, ``fail`` or ``cancel``.
        earlier: events that precede it.
        unrecorded: events before those whose hooks were called already. None to find out whether the start of the
            running attempt is missing.
        **payload: the payload of ``event``.

    Returns:
        False, with nothing changed, if the task has ended or has passed to another attempt.
    """
    task_name = active.task_name
    payload.setdefault("started_at", active.started_at)
    payload.setdefault("ran_before", active.ran_before)

    def write(in_savepoint: bool) -> bool:
        with write_transaction():
            released = ActiveTask.objects.end(active)
            if released is None:
                return False
            if active.goes_on:
                _end_cursor(task_name, payload)
            if queue.broker_database() == coordination_db():
                # With the end, so that django-q2's monitor need not connect for it.
                queue.withdraw(active.queue_receipt)
            before = missing_start(active) if unrecorded is None else unrecorded
            events = _events_of_end(event, earlier, payload, released)
            record(manager, task_name, [*before, *events], in_savepoint=in_savepoint)
            _tell_of_end(manager, active, events, event, payload)
        return True

    if not twice_if_need_be(write):
        return False
    if active.progress_at is not None or payload.get("message"):
        progress.forget(task_name)
    return True


def _end_cursor(task_name: str, payload: dict[str, Any]) -> None:
    """Delete the cursor of a task that has ended, so that nothing can be stored for it any more."""
    if (cursor := TaskCursor.objects.filter(pk=task_name).first()) is not None:
        payload.setdefault("outcome_counts", cursor.counts)
        payload["position"] = cursor.position
        cursor.delete()


def end_from_outside(manager: LifecycleManager, active: ActiveTask, event: str, **payload: Any) -> bool:
    """End a task that this process does not run, as :func:`end` does, and take its message out of the queue.

    Raises:
        TaskBusy: if another session has its rows locked in the database and does not finish.
    """
    with impatient_transaction():
        ended = end(manager, active, event, **payload)
    if ended:
        queue.withdraw(active.queue_receipt)
    return ended


def note_paused(
    manager: LifecycleManager,
    active: ActiveTask,
    *,
    keep_locks: bool,
    actor: Any,
    earlier: Sequence[Event] = (),
    unrecorded: Sequence[Event] = (),
    **payload: Any,
) -> None:
    """Give the locks of a task back that was just paused, unless it keeps them, and record the pause."""
    if not keep_locks:
        payload["conflict_lock_keys"] = locks.give_back(active)
    events = [*earlier, ("pause", {**payload, "actor": actor})]
    record(manager, active.task_name, [*unrecorded, *events])
    call_hooks(manager, active.task_name, events)


def has_ended_so(active: ActiveTask, event: str) -> bool:
    """Return whether this attempt is recorded as ended by ``event``, and not as given up by somebody else."""
    ended = TaskRecord.objects.filter(task_name=active.task_name, attempts=active.attempt, status=_STATUS[event])
    return ended.exclude(failure_reason__in=GIVEN_UP).exists()


def tell_of_end(
    manager: LifecycleManager, active: ActiveTask, event: str, *, earlier: Sequence[Event] = (), **payload: Any
) -> None:
    """Call the hooks and send the signal for an end that is recorded already, as after a commit without an answer."""
    payload.setdefault("started_at", active.started_at)
    payload.setdefault("ran_before", active.ran_before)
    _tell_of_end(manager, active, _events_of_end(event, earlier, payload), event, payload)


def _events_of_end(
    event: str, earlier: Sequence[Event], payload: dict[str, Any], released: int | None = None
) -> list[Event]:
    cleanup = {"reason": event, "conflict_lock_keys": released}
    if "timestamp" in payload:
        cleanup["timestamp"] = payload["timestamp"]
    return [*earlier, (event, payload), ("cleanup", cleanup)]


def _tell_of_end(
    manager: LifecycleManager, active: ActiveTask, events: list[Event], event: str, payload: dict[str, Any]
) -> None:
    call_hooks(manager, active.task_name, events)
    if manager.has_completion_hook:
        _deliver_after_commit("completion", partial(_call_completion_hook, manager, active, event, payload))
    if _has_receivers(task_finished, manager):
        _send_after_commit(task_finished, manager, event, active.task_name, _with_common_keys(event, payload))


def start_payload(active: ActiveTask, **facts: Any) -> dict[str, Any]:
    """Return the payload of the ``start`` event of the attempt that ``active`` is in."""
    worker = active.worker
    where = {"worker_host": worker.host, "worker_pid": worker.pid} if worker else {}
    return {"attempt": active.attempt, "timestamp": active.started_at, **where, **facts}


def missing_start(active: ActiveTask) -> list[Event]:
    """Return the ``start`` event of a running attempt whose worker did not come to record it; [] if it did."""
    if active.state != ActiveTaskState.IN_PROGRESS:
        return []
    unrecorded = TaskRecord.objects.filter(task_name=active.task_name, attempts__lt=active.attempt)
    return [("start", start_payload(active))] if unrecorded.exists() else []
