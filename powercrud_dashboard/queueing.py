"""All that is said to django-q2's queue: enqueue, look into it, ask clusters."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.core.cache.backends.dummy import DummyCache
from django.core.cache.backends.locmem import LocMemCache
from django.utils import timezone
from django_q import core_signing
from django_q.brokers import Broker, get_broker
from django_q.brokers.orm import ORM as ORMBroker
from django_q.conf import Conf
from django_q.models import OrmQ, Task
from django_q.signing import BadSignature, PickleSerializer, SignedPackage
from django_q.status import Stat
from django_q.tasks import async_task

logger = logging.getLogger(__name__)

#: What django-q2's monitor calls after each task whose worker does not say that there is nothing left to do.
COMPLETION_HOOK = "powercrud_dashboard.async_hooks.task_completion_hook"

#: Keywords that ``django_q.tasks.async_task`` keeps for itself. A worker argument of
#: such a name has to travel another way.
RESERVED_KEYWORDS = frozenset(
    {
        "ack_failure",
        "broker",
        "cached",
        "chain",
        "cluster",
        "func",
        "group",
        "hook",
        "iter_cached",
        "iter_count",
        "q_options",
        "save",
        "sync",
        "task_name",
        "timeout",
    }
)

#: django-q2 saves a cluster's state twice a second or so; two readings this far apart differ.
FRESH_STATE_AFTER = timedelta(seconds=1.5)


class _ReceiptBroker:
    """Passes one message on to the real broker and remembers the receipt it gave."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self.list_key = broker.list_key
        self.receipt = ""

    def enqueue(self, message: str) -> object:
        answer = self._broker.enqueue(message)
        if isinstance(self._broker, ORMBroker):
            self.receipt = str(answer)
        return answer


def enqueue(
    call: object,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    task_name: str,
    cluster: str = "",
    **options: Any,
) -> str:
    """Hand a call to the broker and return its receipt ("" from a broker that gives none).

    ``options`` are django-q2's own (``hook``, ``group``, ``timeout`` in seconds, ``sync``, ...).
    Failed tasks are acknowledged, so that the broker does not deliver them again.
    Whatever the broker raises goes to the caller.
    """
    broker = _ReceiptBroker(get_broker(cluster or None))
    async_task(
        call,
        *args,
        **kwargs,
        q_options={
            "ack_failure": True,
            **options,
            "broker": broker,
            "cluster": cluster or None,
            "task_name": task_name,
        },
    )
    return broker.receipt


def broker_database() -> str | None:
    """Return the alias of the database that holds the queue, or None for other brokers."""
    uses_another = Conf.BROKER_CLASS or Conf.IRON_MQ or isinstance(Conf.SQS, dict)
    return None if uses_another else Conf.ORM or None


def runs_synchronously() -> bool:
    """Return whether django-q2 is set to run every task in the caller's process."""
    return bool(Conf.SYNC)


def withdraw(receipt: str) -> None:
    """Take a message that no worker should see any more out of an ORM broker's queue."""
    alias = broker_database()
    if receipt and alias:
        OrmQ.objects.using(alias).filter(pk=receipt).delete()


def receipts_still_queued(receipts: Sequence[str]) -> set[str]:
    """Return those receipts whose messages an ORM broker still holds."""
    found = OrmQ.objects.using(broker_database()).filter(pk__in=receipts)
    return {str(pk) for pk in found.values_list("pk", flat=True)}


def free_misdated() -> int:
    """Let an ORM broker deliver messages that it holds back for longer than it ever would.

    It does so when a clock was set back. Returns how many there were.
    """
    alias = broker_database()
    if not alias:
        return 0
    longest = max((int(its.get("retry") or 0) for its in cluster_settings().values()), default=0)
    now = timezone.now()
    misdated = OrmQ.objects.using(alias).filter(lock__gt=now + timedelta(seconds=max(longest, Conf.RETRY) + 60))
    freed: int = misdated.update(lock=now)
    return freed


def is_drained(cluster: str = "") -> bool:
    """Return whether nothing can be on its way to a worker, for a broker without receipts.

    Takes up to a few seconds: after the queue was seen empty, every living cluster
    must say, in a state saved later than that, that it holds no message either.
    """
    broker = get_broker(cluster or None)
    if broker.queue_size() or broker.lock_size():
        return False
    seen_empty = timezone.now()
    deadline = time.monotonic() + 3 * FRESH_STATE_AFTER.total_seconds()
    while time.monotonic() < deadline:
        states = Stat.get_all(broker)
        if any(state.task_q_size for state in states):
            return False
        if all(state.timestamp > seen_empty + FRESH_STATE_AFTER for state in states):
            return not broker.queue_size()
        time.sleep(0.1)
    return False


def clusters() -> list[Stat]:
    """Return the state of each living cluster, as django-q2 keeps it in its cache or broker."""
    found: list[Stat] = Stat.get_all()
    return found


def finished_task(task_name: str) -> Task | None:
    """Return django-q2's own row of a finished task, if it keeps one."""
    return Task.objects.filter(name=task_name).first()


def sign(package: object) -> str:
    """Pickle and sign ``package`` with the project's secret key."""
    signed: str = SignedPackage.dumps(package)
    return signed


def unsign(signed: str) -> Any:
    """Verify the signature, then unpickle. Keys in ``SECRET_KEY_FALLBACKS`` count as well.

    Raises:
        ValueError: if the signature is not from a secret key of this project.
        Exception: whatever unpickling raises, such as an import error of a class that is gone.
    """
    for key in (Conf.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS):
        try:
            return core_signing.loads(signed, key=key, salt=Conf.PREFIX, serializer=PickleSerializer)
        except BadSignature:
            continue
    raise ValueError("its signature does not match this project's SECRET_KEY and Q_CLUSTER name")


def probe(timeout_ms: int) -> bool:
    """Run a trivial task through a real cluster; return whether it came back in time.

    Its queue entry and result are removed again in any case.
    """
    name = f"pcrud-probe-{uuid.uuid4().hex}"
    receipt = enqueue("math.floor", (1,), {}, task_name=name, save=True, cached=False, group="pcrud-probe")
    deadline = time.monotonic() + timeout_ms / 1000
    try:
        while time.monotonic() < deadline:
            if (task := finished_task(name)) is not None:
                return bool(task.success)
            time.sleep(0.02)
        return False
    finally:
        withdraw(receipt)
        Task.objects.filter(name=name).delete()


def cluster_settings() -> dict[str, dict[str, Any]]:
    """Return the effective Q_CLUSTER settings of each cluster, under its name."""
    main = getattr(settings, "Q_CLUSTER", None)
    if not isinstance(main, dict):
        return {}
    found = {str(main.get("name", "default")): main}
    alternatives = main.get("ALT_CLUSTERS")
    if isinstance(alternatives, dict):
        found.update({str(name): {**main, **own} for name, own in alternatives.items() if isinstance(own, dict)})
    return found


def no_cluster_runs() -> bool:
    """Return True if it is known that no cluster runs.

    Clusters tell of themselves through django-q2's cache, or the broker itself; where that
    is a cache which each process has for itself, nothing can be known.
    """
    broker = get_broker()
    if isinstance(broker.cache, LocMemCache | DummyCache) and type(broker).get_stats is Broker.get_stats:
        return False
    try:
        return not Stat.get_all(broker)
    except Exception:
        logger.warning("The clusters' state can't be read", exc_info=True)
        return False


@dataclass(frozen=True)
class QueueState:
    """How much waits in a queue, and how much of it clusters have taken and not acknowledged."""

    name: str
    waiting: int | None
    in_hand: int | None


def queue_states() -> list[QueueState]:
    """Return the state of each queue named in the settings; None for numbers that the broker doesn't tell."""
    return [_queue_state(name) for name in dict.fromkeys((Conf.CLUSTER_NAME, *cluster_settings()))]


def _queue_state(name: str) -> QueueState:
    try:
        broker = get_broker(name)
        return QueueState(name, broker.queue_size(), broker.lock_size())
    except Exception:
        logger.warning("The queue %s can't be read", name, exc_info=True)
        return QueueState(name, None, None)
