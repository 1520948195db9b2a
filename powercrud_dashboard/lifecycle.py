"""Lifecycle events: record them, tell a manager's hook, and end a task in one transaction."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Protocol

from django.db import transaction
from django.utils import timezone

from powercrud_dashboard import progress
from powercrud_dashboard.models import ActiveTask
from powercrud_dashboard.models.coordination import coordination_db, in_callers_transaction, write_transaction
from powercrud_dashboard.signals import task_finished

logger = logging.getLogger(__name__)

#: Calls a hook later, elsewhere, or at once. The event's name comes along, as some can be left out.
Deliver = Callable[[str, Callable[[], None]], None]

#: A lifecycle event and its payload.
Event = tuple[str, dict[str, Any]]


class LifecycleManager(Protocol):
    """What the rooms below the managers need of a manager."""

    @property
    def has_lifecycle_hook(self) -> bool: ...

    def record_lifecycle_events(self, task_name: str, events: Sequence[Event]) -> None: ...

    def async_task_lifecycle(self, event: str, task_name: str, **payload: Any) -> None: ...

    def lifecycle_hook_failed(self, event: str, task_name: str, payload: dict[str, Any], error: Exception) -> None: ...


def emit(manager: LifecycleManager, event: str, task_name: str, **payload: Any) -> None:
    """Record an event, and call the manager's lifecycle hook; whatever either raises is logged and harms nothing.

    What is recorded is part of the transaction. The hook is called after it, so that a slow one keeps no lock that
    others wait for; in a transaction of the caller's, whose end is not ours to wait for, it is called at once.
    """
    emit_all(manager, task_name, [(event, payload)])


def emit_all(manager: LifecycleManager, task_name: str, events: Sequence[Event]) -> None:
    """Do the same for several events of one task, which takes fewer statements than one after the other."""
    if not events:
        return
    for _event, payload in events:
        payload.setdefault("timestamp", timezone.now())
    _record(manager, task_name, events)
    if not manager.has_lifecycle_hook:
        return
    for event, payload in events:
        call = partial(_call_hook, manager, event, task_name, payload)
        if in_callers_transaction():
            call()
        else:
            transaction.on_commit(partial(_deliver_later, event, call), using=coordination_db())


def _record(manager: LifecycleManager, task_name: str, events: Sequence[Event]) -> None:
    try:
        with transaction.atomic(using=coordination_db()):
            manager.record_lifecycle_events(task_name, events)
    except Exception:
        names = ", ".join(event for event, _payload in events)
        logger.exception("The %s event of task %s could not be recorded", names, task_name)
        if len(events) > 1:
            # One of them may be what is wrong.
            for event in events:
                _record(manager, task_name, [event])


def _call_hook(manager: LifecycleManager, event: str, task_name: str, payload: dict[str, Any]) -> None:
    try:
        # A savepoint keeps the caller's transaction usable; a transaction of our own would keep SQLite's only write
        # lock for as long as the hook takes.
        with transaction.atomic(using=coordination_db()) if in_callers_transaction() else nullcontext():
            manager.async_task_lifecycle(event, task_name, **payload, recorded=True)
    except Exception as error:
        logger.exception("The lifecycle hook of %s failed at %r of task %s", type(manager).__name__, event, task_name)
        try:
            with transaction.atomic(using=coordination_db()):
                manager.lifecycle_hook_failed(event, task_name, payload, error)
        except Exception:
            logger.exception("The failed hook of task %s could not be recorded", task_name)


def _at_once(event: str, call: Callable[[], None]) -> None:
    call()


_deliver: Deliver = _at_once


def _deliver_later(event: str, call: Callable[[], None]) -> None:
    # What delivers is looked up when the transaction has been committed.
    _deliver(event, call)


def deliver_hooks_with(deliver: Deliver) -> None:
    """Have all hooks of this process called in another way than at once after the commit."""
    global _deliver
    _deliver = deliver


def end(
    manager: LifecycleManager, active: ActiveTask, event: str, *, may_have_reported: bool = True, **payload: Any
) -> bool:
    """End a task: its row and locks go and ``event`` is recorded, all or nothing.

    ``may_have_reported`` is false if it is known that the task has reported no progress.

    Returns False, with nothing changed, if the task has ended already or has passed to another attempt.
    """
    task_name = active.task_name
    with write_transaction():
        released = ActiveTask.objects.end(active)
        if released is None:
            return False
        cleanup = {"reason": event, "conflict_lock_keys": released}
        emit_all(manager, task_name, [(event, payload), ("cleanup", cleanup)])
        transaction.on_commit(
            lambda: task_finished.send_robust(sender=type(manager), task_name=task_name, event=event),
            using=coordination_db(),
        )
    if may_have_reported:
        progress.forget(task_name)
    return True
