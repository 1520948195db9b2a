"""django-q2's queue: enqueue a task, look into the queue, ask the clusters."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.core.cache import caches
from django.core.cache.backends.dummy import DummyCache
from django.core.cache.backends.locmem import LocMemCache
from django.db import DatabaseError
from django.db.models import Q, QuerySet
from django.utils import timezone
from django.utils.translation import gettext_noop
from django_q import VERSION
from django_q.brokers import Broker, get_broker
from django_q.brokers.orm import ORM as ORMBroker
from django_q.conf import Conf
from django_q.models import OrmQ, Task
from django_q.signals import pre_enqueue
from django_q.signing import BadSignature, SignedPackage
from django_q.status import Stat
from django_q.tasks import async_task

from powercrud_dashboard.models import WorkerProcess
from powercrud_dashboard.models.database import Now, coordination_db, in_chunks
from powercrud_dashboard.text import storable

logger = logging.getLogger(__name__)

#: What django-q2's monitor calls after each task whose end its worker could not record.
COMPLETION_HOOK = "powercrud_dashboard.async_hooks.task_completion_hook"

#: django-q2 saves a cluster's state twice a second or so. A message that was taken out of the queue before a state was
#: saved is counted in one that was saved this much later.
FRESH_STATE_AFTER = timedelta(seconds=1.5)
#: Seconds within which each cluster must have been seen without a message in hand.
SEEN_WITHIN = 6.0
#: What the names of probes begin with.
PROBE_PREFIX = "pcrud-probe-"
#: Their group, and how long after its end another process may still read the result of one.
PROBE_GROUP = "pcrud-probe"
PROBES_ARE_READ_WITHIN = timedelta(minutes=1)
#: Messages that are looked through in a queue; in a longer one nothing is missed.
LISTED_AT_MOST = 20_000
#: Messages that are counted for the pages and alerts.
COUNTED_AT_MOST = 100_000
#: The states of clusters: django-q2's words, in our catalogues for languages that it has not.
STATES = (
    gettext_noop("Starting"),
    gettext_noop("Working"),
    gettext_noop("Idle"),
    gettext_noop("Stopped"),
    gettext_noop("Stopping"),
)


class _ReceiptBroker:
    """Passes one message to the real broker and keeps the receipt that it returns."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self.list_key = broker.list_key
        self.receipt = ""
        self._message = ""

    def enqueue(self, message: str) -> object:
        self._message = message
        answer = self._broker.enqueue(message)
        if isinstance(self._broker, ORMBroker):
            self.receipt = str(answer)
        return answer

    def take_back(self) -> None:
        """Remove the message, if nobody has taken it and the broker lets one do so: the ORM broker and Redis do."""
        withdraw(self.receipt)
        if (remove := getattr(self._broker.connection, "lrem", None)) is not None:
            remove(self.list_key, 1, self._message)


def enqueue(call: object, *args: Any, task_name: str, cluster: str = "", broker: Any = None, **options: Any) -> str:
    """Hand a call to the broker and return its receipt ("" from a broker that returns none).

    Args:
        call: a callable object, or a dotted path.
        *args: its positional arguments.
        task_name: the name of the task.
        cluster: the cluster that is to run it; "" for the default cluster.
        broker: the django-q2 broker to use instead of that cluster's.
        **options: django-q2's own options (``hook``, ``group``, ``timeout`` in seconds, ``sync``, ...).

    Failed tasks are acknowledged, so that the broker does not deliver them again. Errors of the broker are raised.
    """
    # Workers of any cluster send what is due, such as retries, for all of them.
    real = broker or get_broker(cluster or main_cluster())
    receipts = real if isinstance(real, _ReceiptBroker) else _ReceiptBroker(real)
    async_task(
        call,
        *args,
        q_options={
            "ack_failure": True,
            **options,
            "broker": receipts,
            "cluster": cluster or None,
            "task_name": task_name,
        },
    )
    return receipts.receipt


def is_listened_to() -> bool:
    """Return whether the project has a receiver of django-q2's ``pre_enqueue`` signal."""
    return bool(pre_enqueue.has_listeners("django_q"))


def broker_database(broker: Any = None) -> str | None:
    """Return the alias of the database that holds the queue of this or the usual broker; None for other brokers."""
    if broker is not None and not isinstance(broker, ORMBroker):
        return None
    uses_another = Conf.BROKER_CLASS or Conf.IRON_MQ or isinstance(Conf.SQS, dict)
    return None if uses_another else Conf.ORM or None


def runs_synchronously() -> bool:
    """Return whether django-q2 is set to run every task in the caller's process."""
    return bool(Conf.SYNC)


def withdraw(receipt: str) -> None:
    """Take a message that no worker should see any more out of an ORM broker's queue.

    If that is in a database of its own which does not answer, this is only logged: a worker that gets the message runs
    nothing.
    """
    alias = broker_database()
    if not (receipt and alias):
        return
    try:
        message = OrmQ.objects.using(alias).filter(pk=receipt)
        message._raw_delete(alias)
    except DatabaseError:
        if alias == coordination_db():
            raise
        logger.warning("The message %s could not be taken out of the queue", receipt, exc_info=True)


def hand_back(message: dict[str, Any]) -> bool:
    """Put a message that this cluster has taken, and no worker has begun, back where every cluster can take it.

    Return whether that is done; it is not while the broker is away.
    """
    try:
        broker = get_broker()
        receipt = message["ack_id"]
        if isinstance(broker, ORMBroker):
            # If it is gone, it was withdrawn meanwhile.
            OrmQ.objects.using(Conf.ORM).filter(pk=receipt).update(lock=timezone.now())
        else:
            broker.enqueue(SignedPackage.dumps({name: message[name] for name in message if name != "ack_id"}))
            if receipt:
                broker.acknowledge(receipt)
    except Exception:
        logger.warning("A message could not be handed back to the queue", exc_info=True)
        return False
    return True


def mark_as_managed(task: dict[str, Any]) -> None:
    """Let django-q2's row of a task that has run tell that it was a manager's, whose arguments are not in it.

    A list of no arguments: those of all other tasks are tuples.
    """
    task["args"] = []


def is_marked_as_managed(task: Mapping[str, Any]) -> bool:
    """Return whether a row tells that its task was a manager's."""
    args = task.get("args")
    # No method of somebody else's class is called.
    return type(args) is list and not args


def receipts_still_queued(receipts: Sequence[str]) -> set[str]:
    """Return those receipts whose messages an ORM broker still holds."""
    alias = broker_database()
    if not alias:
        return set()
    messages = OrmQ.objects.using(alias)
    chunks = in_chunks(receipts, using=alias)
    return {str(pk) for chunk in chunks for pk in messages.filter(pk__in=chunk).values_list("pk", flat=True)}


def free_misdated() -> int:
    """Let an ORM broker deliver messages that are locked for longer than it ever locks them.

    There are such messages after a clock was set back. Returns how many there were.
    """
    alias = broker_database()
    if not alias:
        return 0
    longest = max((int(its.get("retry") or 0) for its in cluster_settings().values()), default=0)
    now = timezone.now()
    misdated = OrmQ.objects.using(alias).filter(lock__gt=now + timedelta(seconds=max(longest, Conf.RETRY) + 60))
    freed: int = misdated.update(lock=now)
    return freed


def missing_from(cluster: str, task_names: Collection[str]) -> set[str] | None:
    """Return those of the tasks whose messages are neither in the queue nor in the hands of a living cluster.

    None if that is not known. For brokers without receipts; takes up to ``SEEN_WITHIN`` seconds.
    """
    cluster = cluster or main_cluster()
    broker = get_broker(cluster)
    queued = _queued_names(broker)
    if queued is None:
        return None
    missing = set(task_names) - queued
    if not missing:
        return missing
    if not _hands_were_empty(broker, cluster):
        return None
    # Somebody may have sent one meanwhile.
    queued = _queued_names(broker)
    return None if queued is None else missing - queued


def _queued_names(broker: Broker) -> set[str] | None:
    """Return the names and ids of the tasks in a queue; None if they can't be listed."""
    size = broker.queue_size() + (broker.lock_size() or 0)
    if not size:
        return set()
    # Redis has it. The client of MongoDB answers any name with a database that is called so.
    list_range = getattr(broker.connection, "lrange", None)
    if not callable(list_range) or size > LISTED_AT_MOST:
        return None
    names: set[str] = set()
    for message in list_range(broker.list_key, 0, -1):
        try:
            task = SignedPackage.loads(message)
            names.update((task["name"], task["id"]))
        except BadSignature:
            # django-q2 drops it.
            continue
        except Exception:
            logger.warning("A message in the queue %s can't be read", broker.list_key, exc_info=True)
            return None
    return names


def _hands_were_empty(broker: Broker, cluster: str) -> bool:
    """Return whether each living cluster has been seen to hold no message that it had taken before this call.

    Each is judged by its own clock alone: two states tell how much time has passed between them.
    """
    if not states_are_shared(broker):
        # A broker that locks messages until they are acknowledged was asked for these.
        return broker.lock_size() is not None
    before = {state.cluster_id: state.timestamp for state in Stat.get_all(broker)}
    first_saved_since: dict[Any, datetime] = {}
    seen_empty: set[Any] = set()
    deadline = time.monotonic() + SEEN_WITHIN
    while True:
        states = [state for state in Stat.get_all(broker) if not _is_of_another_queue(state, cluster)]
        for state in states:
            if state.timestamp == before.get(state.cluster_id):
                continue
            first = first_saved_since.setdefault(state.cluster_id, state.timestamp)
            if state.timestamp - first >= FRESH_STATE_AFTER and not state.task_q_size:
                seen_empty.add(state.cluster_id)
        if all(state.cluster_id in seen_empty for state in states):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)


def _is_of_another_queue(state: Stat, cluster: str) -> bool:
    """Return whether the workers of this cluster are known to belong to another queue."""
    workers = WorkerProcess.objects.filter(host=state.host, pid__in=state.workers, lost_at=None).exclude(cluster="")
    queues = set(workers.values_list("cluster", flat=True))
    return bool(queues) and cluster not in queues


def clusters() -> list[Stat] | None:
    """Return the state of each living cluster, as django-q2 keeps it in its cache or broker; None if those are away."""
    try:
        found: list[Stat] = Stat.get_all()
    except Exception:
        logger.warning("The clusters' state can't be read", exc_info=True)
        return None
    return found


def clusters_are_listed() -> bool:
    """Return whether :func:`clusters` knows the clusters of other processes."""
    try:
        return states_are_shared(get_broker())
    except Exception:
        # Without a broker.
        return False


def states_are_shared(broker: Broker) -> bool:
    """Return whether the state that a cluster saves is seen by other processes, as it is in a shared cache."""
    return is_shared_cache(state_cache()) or type(broker).get_stats is not Broker.get_stats


def finished_task(task_name: str) -> Task | None:
    """Return django-q2's own row of a finished task, if it keeps one."""
    return Task.objects.filter(name=storable(str(task_name))).first()


def forget_finished(task_name: str) -> None:
    """Delete django-q2's own row of a finished task."""
    Task.objects.filter(name=storable(str(task_name))).delete()


def as_finished_task(task_name: str, *, success: bool, result: Any, started: datetime | None) -> Task:
    """Return an unsaved row in the form of django-q2's own, for ``handle_task_completion``."""
    now = timezone.now()
    return Task(name=task_name, func=task_name, success=success, result=result, started=started or now, stopped=now)


#: Under this keyword a finished task tells which attempt it was, if its worker could not record the end.
ATTEMPT = "attempt"
#: Under this one how the attempt ended, as far as django-q2 does not save that.
ENDING = "ending"
#: And under this one the project's own hook, in whose place ours is called first.
OWN_HOOK = "own_hook"


def attempt_of(finished: Task) -> Any:
    """Return the attempt that django-q2's row of a finished task tells of; None if it tells of none."""
    return _told_by(finished, ATTEMPT)


def ending_of(finished: Task) -> dict[str, str]:
    """Return what the worker has told of the end: ``event``, ``kind``, ``reason`` and ``exception_class``."""
    return _told_by(finished, ENDING) or {}


def own_hook_of(finished: Task) -> Any:
    """Return the project's own hook for a finished task whose worker could not record the end, if it has one."""
    return _told_by(finished, OWN_HOOK)


def _told_by(finished: Task, name: str) -> Any:
    return finished.kwargs.get(name) if isinstance(finished.kwargs, dict) else None


def current_cluster() -> str:
    """Return the name of the cluster that this process belongs to, or puts tasks into by default."""
    return str(Conf.CLUSTER_NAME)


def version() -> str:
    """Return the version of django-q2."""
    return ".".join(map(str, VERSION))


def main_cluster() -> str:
    """Return the name of the cluster that ``Q_CLUSTER`` itself describes, whichever this process belongs to."""
    main = getattr(settings, "Q_CLUSTER", None)
    name = main.get("cluster_name") if isinstance(main, dict) else None
    return str(name or Conf.PREFIX)


def probe(timeout_ms: int) -> bool:
    """Run a trivial task through a real cluster; return whether it came back in time.

    Its queue entry and result are removed again. What comes after that time, as from a busy cluster that had taken it
    already, is removed by a later probe.
    """
    name = f"{PROBE_PREFIX}{uuid.uuid4().hex}"
    message = _ReceiptBroker(get_broker())
    enqueue("math.floor", 1, task_name=name, save=True, cached=False, group=PROBE_GROUP, broker=message)
    deadline = time.monotonic() + timeout_ms / 1000
    try:
        while time.monotonic() < deadline:
            if (task := finished_task(name)) is not None:
                return bool(task.success)
            time.sleep(0.02)
        return False
    finally:
        message.take_back()
        late = Q(group=PROBE_GROUP, stopped__lt=timezone.now() - PROBES_ARE_READ_WITHIN)
        Task.objects.filter(Q(name=name) | late).delete()


def cluster_settings() -> dict[str, dict[str, Any]]:
    """Return the effective Q_CLUSTER settings of each cluster, under its name."""
    main = getattr(settings, "Q_CLUSTER", None)
    if not isinstance(main, dict):
        return {}
    found = {str(main.get("cluster_name") or main.get("name", "default")): main}
    alternatives = main.get("ALT_CLUSTERS")
    if isinstance(alternatives, dict):
        found.update({str(name): {**main, **own} for name, own in alternatives.items() if isinstance(own, dict)})
    return found


def time_limit(cluster: str) -> int | None:
    """Return the seconds after which this cluster stops a task, "" for the default one; None for no limit."""
    of_all = cluster_settings()
    seconds = of_all.get(cluster or main_cluster(), of_all.get(main_cluster(), {})).get("timeout", Conf.TIMEOUT)
    return seconds if isinstance(seconds, int) and seconds > 0 else None


def redelivery_interval(cluster: str) -> int:
    """Return the seconds after which a broker delivers a message of this cluster again that nobody acknowledges."""
    of_all = cluster_settings()
    seconds = of_all.get(cluster or main_cluster(), of_all.get(main_cluster(), {})).get("retry", Conf.RETRY)
    return seconds if isinstance(seconds, int) else int(Conf.RETRY)


#: Keys of Q_CLUSTER that choose a broker.
BROKER_KEYS = ("orm", "redis", "django_redis", "sqs", "iron_mq", "mongo", "broker_class")


def names_a_broker() -> bool:
    """Return whether Q_CLUSTER chooses a broker; without, django-q2 uses Redis on this host."""
    return any(cluster.get(key) for cluster in cluster_settings().values() for key in BROKER_KEYS)


def state_cache() -> str:
    """Return the name of the cache in which django-q2's clusters save their state."""
    return str(Conf.CACHE)


def is_shared_cache(alias: str) -> bool:
    """Return whether the processes of a project share what is in this cache."""
    return not isinstance(caches[alias], LocMemCache | DummyCache)


def ask_broker() -> None:
    """Ask the broker for something. With a queue in the coordination database no query is made.

    Raises:
        Exception: whatever the broker raises while it is away.
    """
    alias = broker_database()
    if alias is None:
        get_broker().queue_size()
    elif alias != coordination_db():
        # The owner of that one has been asked already.
        OrmQ.objects.using(alias).exists()


def broker_answers() -> bool:
    """Return whether the broker can be reached; if not, this is logged."""
    try:
        ask_broker()
    except Exception:
        logger.warning("The broker can't be reached", exc_info=True)
        return False
    return True


def untaken_messages() -> QuerySet[OrmQ] | None:
    """Return the messages of all queues that no cluster has taken; None if they are not in the coordination database.

    Of a longer queue only some are among them, as each is a row to be read.
    """
    alias = coordination_db()
    if broker_database() != alias:
        return None
    messages: QuerySet[OrmQ] = OrmQ.objects.using(alias).order_by()
    return messages.filter(lock__lte=Now(), pk__in=messages.values("pk")[:COUNTED_AT_MOST])


@dataclass(frozen=True)
class QueueState:
    """How many messages wait in a queue, and how many clusters have taken and not acknowledged."""

    name: str
    waiting: int | None
    in_hand: int | None


def queue_states(names: Iterable[str]) -> list[QueueState]:
    """Return the state of each of these queues; None for numbers that the broker doesn't tell."""
    return [_queue_state(name) for name in names]


def _queue_state(name: str) -> QueueState:
    try:
        broker = get_broker(name)
        return QueueState(name, broker.queue_size(), broker.lock_size())
    except Exception:
        logger.warning("The queue %s can't be read", name, exc_info=True)
        return QueueState(name, None, None)
