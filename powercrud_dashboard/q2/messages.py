"""The messages in django-q2's queues: list them, delete one, deliver one before the others."""

from __future__ import annotations

import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from django.conf import settings
from django.db import IntegrityError, connections, transaction
from django.db.models import Min, Q, QuerySet
from django.utils import timezone
from django.utils.translation import gettext_lazy as _
from django_q.brokers import Broker, get_broker
from django_q.brokers.orm import ORM as ORMBroker
from django_q.conf import Conf
from django_q.models import OrmQ
from django_q.signing import BadSignature, SignedPackage
from django_q.utils import get_func_repr

from powercrud_dashboard.exceptions import MessageNotMovable
from powercrud_dashboard.models.database import coordination_db
from powercrud_dashboard.q2.queue import LISTED_AT_MOST, broker_database, cluster_settings
from powercrud_dashboard.text import SHORT, clean_text, error_summary, storable

#: On PostgreSQL, how long the other messages are kept back so that one is delivered before them. Clusters ask for
#: messages several times a second.
STEP_BACK = timedelta(seconds=3)
#: Messages that are kept back at most: each is a row to be written.
STEP_BACK_AT_MOST = 10_000
#: How often a key is looked for that no other message has.
TRIES = 3

_NOT_SIGNED = _("It was not signed by this project: SECRET_KEY, or the name in Q_CLUSTER, is another one.")
_NO_PACKAGE = _("It is no package of django-q2.")


@dataclass(frozen=True)
class Message:
    """A message in a queue. It is read only after django-q2 has verified its signature."""

    #: Identifies this very message, in URLs.
    key: str
    payload: Any = field(repr=False)
    #: The ORM broker's key of the message; "" from other brokers.
    receipt: str = ""
    #: Whether a cluster has it in hand, and has not acknowledged it.
    is_taken: bool = False

    @cached_property
    def _read(self) -> tuple[dict[str, Any], object]:
        """The content, and why it can't be read."""
        try:
            content = SignedPackage.loads(self.payload)
        except BadSignature:
            return {}, _NOT_SIGNED
        except (Exception, SystemExit) as error:
            # Unpickling imports the classes of the arguments, and runs their modules.
            return {}, error_summary(error, SHORT)
        return (content, "") if isinstance(content, dict) and "func" in content else ({}, _NO_PACKAGE)

    @property
    def content(self) -> dict[str, Any]:
        """What django-q2 reads in it; nothing if it can't be read."""
        return self._read[0]

    @property
    def problem(self) -> object:
        """Why the message can't be read; "" if it can."""
        return self._read[1]

    @property
    def name(self) -> str:
        return clean_text(self._read[0].get("name", ""), SHORT)

    @property
    def task_id(self) -> str:
        """django-q2's id of the task."""
        return clean_text(self._read[0].get("id", ""), SHORT)

    @property
    def call(self) -> Any:
        """What is to be called: a function, its dotted path, or a callable object."""
        return self._read[0].get("func")

    @property
    def func(self) -> str:
        """The text by which django-q2 shows the function."""
        return clean_text(text_of(self.call), SHORT) if self._read[0] else ""

    @property
    def group(self) -> str:
        return clean_text(self._read[0].get("group") or "", SHORT)

    @property
    def enqueued_at(self) -> datetime | None:
        moment = self._read[0].get("started")
        is_time = isinstance(moment, datetime) and timezone.is_aware(moment) == settings.USE_TZ
        return moment if is_time else None


def text_of(call: Any) -> str:
    """Return the text by which django-q2 shows what is called: a dotted path, as far as there is one."""
    try:
        return str(get_func_repr(call))
    except Exception:
        # An object of somebody's own, which is shown by its text.
        return f"{type(call).__module__}.{type(call).__qualname__}"


def _digest(payload: str | bytes) -> str:
    content = payload.encode() if isinstance(payload, str) else payload
    return hashlib.blake2s(content, digest_size=12).hexdigest()


class MessageQueue(ABC):
    """The messages of one queue, in the order in which they are delivered. Errors of the broker are raised."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    @abstractmethod
    def slice(self, start: int, stop: int) -> list[Message]:
        """Return the messages from this position up to that one."""

    @abstractmethod
    def first(self, count: int, known: Collection[str]) -> tuple[set[str], dict[str, Message]]:
        """Look at the first so many messages.

        Return what identifies each of them, and by that those that are not among the ``known``.
        """

    @abstractmethod
    def find(self, key: str) -> Message | None:
        """Return the message with this key, if it is still in the queue."""

    @abstractmethod
    def task_ids(self, at_most: int) -> set[str] | None:
        """Return django-q2's ids of the tasks of all messages; None if there are more, or one can't be read."""

    @abstractmethod
    def of_task(self, task_name: str, receipt: str) -> Message | None:
        """Return the message of this task, if it is in the queue."""

    @abstractmethod
    def delete(self, message: Message) -> bool:
        """Delete a message that no cluster has taken. Return whether it was there."""

    @abstractmethod
    def move_to_front(self, message: Message) -> str | None:
        """Have a message that no cluster has taken delivered before all others.

        Return its receipt, which may have changed; None if the message was taken meanwhile.

        Raises:
            MessageNotMovable: if the broker does not allow that.
        """


class _OrmQueue(MessageQueue):
    def __init__(self, broker: Broker, name: str) -> None:
        super().__init__(broker)
        self._alias = broker_database(broker) or Conf.ORM
        self._rows: QuerySet[OrmQ] = OrmQ.objects.using(self._alias).filter(key=name)

    def slice(self, start: int, stop: int) -> list[Message]:
        free_until = self._free_until()
        return [_of_row(row, free_until) for row in self._rows.order_by("pk")[start:stop]]

    def first(self, count: int, known: Collection[str]) -> tuple[set[str], dict[str, Message]]:
        pks = list(self._rows.order_by("pk").values_list("pk", flat=True)[:count])
        unknown = self._rows.filter(pk__in=[pk for pk in pks if str(pk) not in known]).order_by("pk")
        return set(map(str, pks)), {str(row.pk): _of_row(row, self._free_until()) for row in unknown}

    def find(self, key: str) -> Message | None:
        pk, __, digest = key.partition(".")
        try:
            row = self._rows.filter(pk=int(pk)).first()
        except (ValueError, OverflowError):
            return None
        if row is None or _digest(row.payload) != digest:
            # Somebody may have moved it to the front meanwhile.
            moved = self._rows.filter(pk__lt=0).order_by("pk")
            row = next((row for row in moved[:LISTED_AT_MOST] if _digest(row.payload) == digest), None)
        return None if row is None else _of_row(row, self._free_until())

    def task_ids(self, at_most: int) -> set[str] | None:
        # In one query, as messages come and go, and not all in memory.
        payloads = self._rows.values_list("payload", flat=True)[: at_most + 1]
        return _ids_of((Message("", payload) for payload in payloads.iterator(chunk_size=100)), at_most)

    def of_task(self, task_name: str, receipt: str) -> Message | None:
        row = self._rows.filter(pk=receipt).first() if receipt else None
        return None if row is None else _of_row(row, self._free_until())

    def delete(self, message: Message) -> bool:
        return bool(self._untaken(message)._raw_delete(self._alias))

    def move_to_front(self, message: Message) -> str | None:
        if self._is_on_sqlite:
            return self._rekeyed(message)
        return self._others_kept_back(message)

    def _untaken(self, message: Message) -> QuerySet[OrmQ]:
        """The row of the message, as long as no cluster has it."""
        free = Q(lock__lte=self._free_until()) | Q(lock=None)
        return self._rows.filter(free, pk=message.receipt, payload=message.payload)

    @property
    def _is_on_sqlite(self) -> bool:
        return connections[self._alias].vendor == "sqlite"

    def _free_until(self) -> datetime:
        """Return the latest time of a lock with which a message waits: those that are kept back for a moment do."""
        now = timezone.now()
        return now if self._is_on_sqlite else now + STEP_BACK

    def _rekeyed(self, message: Message) -> str | None:
        """Give the message the smallest key: SQLite returns rows in the order of their keys."""
        if self._alias != coordination_db():
            raise MessageNotMovable(_("the queue is in another database than the tasks, which know its keys"))
        for _try in range(TRIES):
            smallest = OrmQ.objects.using(self._alias).aggregate(smallest=Min("pk"))["smallest"] or 0
            # Below all others, and never one that was used before: a cluster acknowledges what it has taken by its key,
            # whatever has become of the message.
            key = min(smallest - 1, -time.time_ns())
            try:
                with transaction.atomic(using=self._alias):
                    return str(key) if self._untaken(message).update(id=key) else None
            except IntegrityError:
                # Somebody else has moved another one to the front.
                continue
        return None

    def _others_kept_back(self, message: Message) -> str | None:
        """Keep the other messages back for a moment: other databases return rows in no certain order."""
        others = self._rows.filter(lock__lte=self._free_until()).exclude(pk=message.receipt)
        if others[STEP_BACK_AT_MOST:].exists():
            raise MessageNotMovable(_("too many other messages would have to be kept back"))
        # A cluster that takes one at this moment has it locked.
        free = others.select_for_update(skip_locked=True).values("pk")
        with transaction.atomic(using=self._alias):
            # It may be kept back itself, for the sake of another one.
            if not self._untaken(message).update(lock=timezone.now()):
                return None
            others.filter(pk__in=free).update(lock=timezone.now() + STEP_BACK)
        return message.receipt


def _ids_of(messages: Iterator[Message], at_most: int) -> set[str] | None:
    ids: set[str] = set()
    for number, message in enumerate(messages):
        if number == at_most or message.problem:
            return None
        ids.add(message.task_id)
    return ids


def _of_row(row: OrmQ, free_until: datetime) -> Message:
    is_taken = row.lock is not None and row.lock > free_until
    return Message(f"{row.pk}.{_digest(row.payload)}", row.payload, str(row.pk), is_taken)


class _RedisQueue(MessageQueue):
    """A list in Redis. A message that is taken is not in it any more."""

    #: Moves a message, unless it was taken meanwhile.
    _MOVE = "if redis.call('lrem', KEYS[1], 1, ARGV[1]) == 1 then return redis.call('lpush', KEYS[1], ARGV[1]) end"

    def slice(self, start: int, stop: int) -> list[Message]:
        if stop <= start:
            return []
        found = self._broker.connection.lrange(self._broker.list_key, start, stop - 1)
        return [Message(_digest(payload), payload) for payload in found]

    def first(self, count: int, known: Collection[str]) -> tuple[set[str], dict[str, Message]]:
        found = {message.key: message for message in self.slice(0, count)}
        return set(found), {key: message for key, message in found.items() if key not in known}

    def find(self, key: str) -> Message | None:
        return next((message for message in self._all() if message.key == key), None)

    def task_ids(self, at_most: int) -> set[str] | None:
        return _ids_of(iter(self.slice(0, at_most + 1)), at_most)

    def of_task(self, task_name: str, receipt: str) -> Message | None:
        return next((message for message in self._all() if message.name == task_name), None)

    def _all(self) -> Iterator[Message]:
        at_once = 500
        for start in range(0, LISTED_AT_MOST, at_once):
            found = self.slice(start, start + at_once)
            yield from found
            if len(found) < at_once:
                return

    def delete(self, message: Message) -> bool:
        return bool(self._broker.connection.lrem(self._broker.list_key, 1, message.payload))

    def move_to_front(self, message: Message) -> str | None:
        moved = self._broker.connection.eval(self._MOVE, 1, self._broker.list_key, message.payload)
        return message.receipt if moved else None


def open_queue(name: str) -> MessageQueue | None:
    """Return the messages of this queue; None if its broker does not let anybody look into it.

    Raises:
        Exception: whatever the broker raises, as while it is away.
    """
    broker = get_broker(name)
    if isinstance(broker, ORMBroker):
        return _OrmQueue(broker, name)
    commands = ("lrange", "lrem", "eval")
    is_redis = all(callable(getattr(broker.connection, command, None)) for command in commands)
    return _RedisQueue(broker) if is_redis else None


#: Queues without a cluster that are named.
NAMED_QUEUES = 50


def is_queue(name: str) -> bool:
    """Return whether there is such a queue: it is in the settings, or the ORM broker has messages in it.

    To ask some brokers for a queue is to create it.
    """
    if name in (str(Conf.CLUSTER_NAME), *cluster_settings()):
        return True
    alias = broker_database()
    return bool(alias and name and storable(name) == name and OrmQ.objects.using(alias).filter(key=name).exists())


def queue_names() -> list[str]:
    """Return the names of the queues: those in the settings, and of the ORM broker also others that hold messages."""
    names = dict.fromkeys((str(Conf.CLUSTER_NAME), *cluster_settings()))
    if alias := broker_database():
        others = OrmQ.objects.using(alias).exclude(key__in=["", *names]).values_list("key", flat=True).distinct()
        names.update(dict.fromkeys(others.order_by("key")[:NAMED_QUEUES]))
    return list(names)
