"""What the messages of plain django-q2 tell: whose they are, and which of them wait in a queue."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Q
from django.utils import timezone
from django_q.brokers import Broker, get_broker
from django_q.humanhash import humanize
from django_q.models import OrmQ, Task
from django_q.tasks import async_task

from powercrud_dashboard.q2 import finished, queue
from powercrud_dashboard.q2.finished import FinishedTask
from powercrud_dashboard.q2.messages import Message as QueuedMessage
from powercrud_dashboard.q2.messages import MessageQueue, open_queue, text_of

#: A message as django-q2's cluster knows it.
Message = dict[str, Any]

#: Options of a launch that a second launch of the same task has too. The rest of its chain has run, and the results of
#: an iteration are collected once.
KEPT_OPTIONS = ("hook", "save", "cached", "ack_failure", "timeout")

_PACKAGE = "powercrud_dashboard."


def is_own(message: Message) -> bool:
    """Return whether it is a task of this package: of a manager, its probe or its cleanup."""
    func = message["func"]
    path = func if isinstance(func, str) else str(getattr(func, "__module__", ""))
    is_named_so = path.startswith(_PACKAGE) or str(message["name"]).startswith(queue.PROBE_PREFIX)
    return is_named_so or queue.is_marked_as_managed(message)


def path_of(message: Message) -> str:
    """Return the dotted path of the function."""
    func = message["func"]
    if not isinstance(func, str) and hasattr(func, "__qualname__") and not hasattr(func, "__self__"):
        return f"{func.__module__}.{func.__qualname__}"
    return text_of(func)


def given_name(message: Message) -> str:
    """Return the name that the launch has given to the task; "" if django-q2 has made one."""
    name = str(message["name"])
    try:
        return "" if humanize(message["id"]) == name else name
    except ValueError:
        return name


def queue_of(message: Message) -> str:
    """Return the queue as records name it: "" for the default one."""
    name = message.get("cluster") or ""
    return "" if name == queue.main_cluster() else str(name)


def this_queue() -> str:
    """Return the queue of this process's cluster as records name it."""
    return queue_of({"cluster": queue.current_cluster()})


def options_of(message: Message) -> dict[str, Any]:
    """Return the options of the launch that a retry has too."""
    options = {name: message[name] for name in KEPT_OPTIONS if message.get(name) is not None}
    if message.get("iter_count"):
        # Its result was cached to be collected.
        options.pop("cached", None)
    return options


def waiting(at_most: int) -> list[Message]:
    """Return the oldest messages of this cluster's queue, those included that it has taken from an ORM broker."""
    return list(look(at_most, ())[1].values())


def look(at_most: int, known: Collection[str]) -> tuple[set[str], dict[str, Message]]:
    """Look at these messages. Return what identifies them, and by that those that are not known and can be read."""
    name = queue.current_cluster()
    if (found := open_queue(name)) is None:
        return set(), {}
    keys, messages = found.first(at_most, known)
    # Without a time, as after a change of USE_TZ, it is not known how long one waits.
    readable = {key: message.content for key, message in messages.items() if message.enqueued_at is not None}
    return keys, {key: {**content, "cluster": name} for key, content in readable.items()}


#: Messages that are read at once.
_READ_AT_ONCE = 500


def find(task_id: str, cluster: str) -> tuple[MessageQueue | None, QueuedMessage | None]:
    """Return a queue, given as in records, and the message of a task in it, as far as there are such."""
    found = open_queue(cluster or queue.main_cluster())
    for start in range(0, queue.LISTED_AT_MOST, _READ_AT_ONCE):
        messages = [] if found is None else found.slice(start, start + _READ_AT_ONCE)
        for message in messages:
            if message.task_id == task_id:
                return found, message
        if len(messages) < _READ_AT_ONCE:
            break
    return found, None


def acknowledge(message: Message) -> None:
    """Have the broker not deliver a message again that a worker has begun."""
    if message.get("ack_id"):
        get_broker().acknowledge(message["ack_id"])


def receipt_of(message: Message) -> str:
    """Return the ORM broker's key of a message that a cluster has taken; "" from other brokers."""
    return str(message.get("ack_id") or "") if queue.broker_database() else ""


def withdraw(task_id: str, cluster: str, receipt: str, began: datetime) -> bool:
    """Take the message of a failed task out of the ORM broker's queue, which would deliver it again.

    Args:
        task_id: django-q2's id of the task.
        cluster: its queue, as in records.
        receipt: the broker's key of the message.
        began: when the attempt began that has failed.

    Returns:
        False if the message was delivered again after that. True also if there is none any more.
    """
    if not (alias := queue.broker_database()):
        return True
    queued = OrmQ.objects.using(alias)
    # "Run next" may have given it another, negative key.
    rows = queued.filter(Q(pk=receipt) | Q(pk__lt=0, key=cluster or queue.main_cluster()))
    row = next((row for row in rows.order_by("-pk") if QueuedMessage("", row.payload).task_id == task_id), None)
    if row is None:
        return True
    # A cluster that takes it locks it for so long.
    taken_until = began + timedelta(seconds=queue.redelivery_interval(cluster))
    if row.lock is not None and row.lock > max(timezone.now(), taken_until):
        return False
    unchanged = queued.filter(pk=row.pk, payload=row.payload, lock=row.lock)
    return bool(unchanged._raw_delete(alias))


class _Launch:
    """Takes a message in the place of the broker, so that its id is known before it is sent."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self.list_key = broker.list_key
        self.message = ""

    def enqueue(self, message: str) -> str:
        self.message = message
        return ""

    def send(self) -> None:
        self._broker.enqueue(self.message)


def prepare(func: str, args: Any, kwargs: Any, *, name: str, group: str, cluster: str, options: Any) -> tuple[str, Any]:
    """Return the id of a new task, and a function that sends its message to the broker."""
    launch = _Launch(get_broker(cluster or queue.main_cluster()))
    given = {name: value for name, value in (("task_name", name), ("group", group), ("cluster", cluster)) if value}
    task_id = async_task(func, *args, q_options={**options, **given, "sync": False, "broker": launch}, **kwargs)
    return str(task_id), launch.send


def gone_from(cluster: str, task_ids: list[str]) -> set[str]:
    """Return those of these tasks whose messages are not in a queue any more, nor in the hands of a cluster.

    Args:
        cluster: the queue, as records name it.
        task_ids: django-q2's ids. As far as their places are not known, none of them is returned.
    """
    if queue.broker_database() is None:
        return queue.missing_from(cluster, task_ids) or set()
    # Its broker keeps a message until its task has ended.
    found = open_queue(cluster or queue.main_cluster())
    queued = None if found is None else found.task_ids(queue.LISTED_AT_MOST)
    return set() if queued is None else set(task_ids) - queued


def ids_ended_between(since: datetime, until: datetime) -> list[str]:
    """Return the ids in django-q2's rows of those tasks of this cluster that ended in this time."""
    rows = Task.objects.filter(stopped__gt=since, stopped__lte=until, cluster=queue.current_cluster())
    return list(rows.order_by("stopped").values_list("id", flat=True))


def ended(task_ids: list[str]) -> list[Message]:
    """Return django-q2's rows of those of these tasks that it has kept. A value that can't be read harms no other."""
    rows = Task.objects.filter(id__in=task_ids)
    return [_as_message(row) for part in finished.in_parts(rows, _ROWS_AT_ONCE) for row in part]


#: Rows that are read at once: their results may be large.
_ROWS_AT_ONCE = 20


def _as_message(row: FinishedTask) -> Message:
    names = ("id", "name", "func", "group", "cluster", "result", "success")
    values = {name: getattr(row, name) for name in names}
    times = {"started": row.enqueued_at, "stopped": row.stopped_at}
    return {**values, **times, "args": row.arguments, "kwargs": row.keywords, "hook": row.hook or None}
