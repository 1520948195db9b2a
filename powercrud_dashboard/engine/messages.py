"""What people do to messages in the queue. Those of tasks change with their tasks, so that these stay true."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from django.db.models import Min, Value
from django.db.models.functions import Least
from django.utils.translation import gettext_lazy as _

from powercrud_dashboard.engine import lifecycle, registry
from powercrud_dashboard.engine.requests import OwnerOf
from powercrud_dashboard.engine.spec import TaskCall
from powercrud_dashboard.exceptions import MessageNotMovable
from powercrud_dashboard.models import ActiveTask, Source, TaskRecord
from powercrud_dashboard.models.coordination import ActiveTaskState
from powercrud_dashboard.models.database import impatient_transaction
from powercrud_dashboard.q2.messages import Message, MessageQueue

logger = logging.getLogger(__name__)

#: How much earlier than all others a task counts as queued that is moved before them.
EARLIER = timedelta(milliseconds=1)


def task_name_of(message: Message) -> str:
    """Return the name of the manager's task that the message is for; "" if it is for none, or can't be read."""
    return message.call.task_name if isinstance(message.call, TaskCall) else ""


def record_name_of(message: Message) -> str:
    """Return the name of the record of the message's task. Of a task that is observed it is django-q2's id."""
    return task_name_of(message) or message.task_id


def active_tasks_of(messages: list[Message]) -> dict[str, ActiveTask]:
    """Return the unfinished tasks of managers that the messages are for, by the keys of the messages."""
    names = {message.key: task_name_of(message) for message in messages}
    # Those that can't be read are known by their receipts.
    receipts = {message.key: message.receipt for message in messages if message.problem and message.receipt}
    tasks = ActiveTask.objects.tasks().prefetch_related("user")
    by_name = {active.task_name: active for active in tasks.filter(task_name__in=set(names.values()))}
    by_receipt = {active.queue_receipt: active for active in tasks.filter(queue_receipt__in=receipts.values())}
    found = {key: by_name.get(name) or by_receipt.get(receipts.get(key, "")) for key, name in names.items()}
    return {key: active for key, active in found.items() if active is not None}


def run_by_workers(messages: Iterable[Message]) -> set[str]:
    """Return the keys of those messages whose tasks, of plain django-q2, are recorded as running.

    A broker takes a message that is run for longer than ``Q_CLUSTER["retry"]`` for one that waits.
    """
    ids = {message.key: message.task_id for message in messages if message.task_id}
    running = TaskRecord.objects.running().filter(source=Source.DJANGO_Q, task_name__in=set(ids.values()))
    names = set(running.values_list("task_name", flat=True))
    return {key for key, task_id in ids.items() if task_id in names}


def is_awaited(message: Message, active: ActiveTask) -> bool:
    """Return whether this message is the one by which the task is to start."""
    is_ready = active.state == ActiveTaskState.PENDING and active.next_run_at is None and not active.held_by
    return is_ready and active.queue_receipt in ("", message.receipt)


def delete(queue: MessageQueue, message: Message, actor: Any, owner_of: OwnerOf) -> bool:
    """Delete a message; the task that waits for it is cancelled. Return False if a cluster has taken it meanwhile.

    Raises:
        TaskBusy: if another session keeps the task locked in the database, and does not finish.
    """
    active = active_tasks_of([message]).get(message.key)
    if active is None or not is_awaited(message, active):
        # A worker that got a message which is left over would run nothing.
        is_running = active is not None and active.state == ActiveTaskState.IN_PROGRESS
        return not is_running and _delete_plain(queue, message, actor)
    if not lifecycle.end_from_outside(owner_of(active), active, "cancel", actor=actor):
        return False
    try:
        # Brokers without receipts still have it.
        queue.delete(message)
    except Exception:
        # A worker that gets it runs nothing.
        logger.warning("The message of the cancelled task %s stays in the queue", active.task_name, exc_info=True)
    return True


def _delete_plain(queue: MessageQueue, message: Message, actor: Any) -> bool:
    """Delete a message of no manager's task; if its task is observed, that is recorded as cancelled."""
    recorder = registry.recorder_for(None)
    with impatient_transaction():
        if run_by_workers([message]) or not queue.delete(message):
            return False
        observed = TaskRecord.objects.unfinished().filter(task_name=message.task_id, source=Source.DJANGO_Q)
        if recorder is not None and observed.exists():
            recorder.record_lifecycle_events(message.task_id, [("cancel", {"actor": actor})])
    return True


def run_next(queue: MessageQueue, message: Message, actor: Any, owner_of: OwnerOf) -> bool:
    """Have a message delivered before all others. Return False if a cluster has taken it meanwhile.

    Raises:
        MessageNotMovable: if that is not possible.
        TaskBusy: if another session keeps the task locked in the database, and does not finish.
    """
    active = active_tasks_of([message]).get(message.key)
    if active is None and not task_name_of(message):
        return not run_by_workers([message]) and queue.move_to_front(message) is not None
    if active is None or not is_awaited(message, active):
        raise MessageNotMovable(_("its task does not wait for it"))
    with impatient_transaction():
        receipt = queue.move_to_front(message)
        if receipt is None:
            return False
        waiting = ActiveTask.objects.ready()
        first = waiting.filter(cluster=active.cluster).aggregate(first=Min("queued_at"))["first"] or active.queued_at
        # The receipt is that of a broker in this database, and the position on the pages follows the time.
        waiting.filter(pk=active.pk, attempt=active.attempt).update(
            queue_receipt=receipt, queued_at=Least("queued_at", Value(first - EARLIER))
        )
        lifecycle.emit(owner_of(active), "run_next", active.task_name, actor=actor)
    return True
