"""The ``OPTIONS`` of the backend: which cluster runs a task, how long, and how often it is retried."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from difflib import get_close_matches
from typing import Any

from django.core.checks import CheckMessage, Error, Warning

from powercrud_dashboard.contrib.django_tasks.framework import (
    DEFAULT_TASK_QUEUE_NAME,
    TASK_MAX_PRIORITY,
    TASK_MIN_PRIORITY,
)
from powercrud_dashboard.engine.arguments import QueueOptions
from powercrud_dashboard.engine.policy import RetryPolicy
from powercrud_dashboard.q2 import queue

NAMES = ("clusters", "timeout", "retry")

#: A cluster's name, or clusters by the lowest priority of the tasks that they run.
ClusterChoice = str | Mapping[int, str]


@dataclass(frozen=True)
class BackendOptions:
    """The options, of which :meth:`problems` tells what is wrong with them."""

    #: Queue name -> cluster. A queue that is missing is the cluster of the same name.
    clusters: Mapping[str, ClusterChoice] = field(default_factory=dict)
    #: Seconds after which a worker stops a task; -1 for no limit, None for the cluster's own.
    timeout: float | timedelta | None = None
    retry: RetryPolicy | int | None = None

    @classmethod
    def of(cls, given: Any) -> BackendOptions:
        """Return them. What is not known, or no mapping, is left out, as a system check reports it."""
        known = {name: given[name] for name in NAMES if name in given} if isinstance(given, Mapping) else {}
        if not isinstance(known.get("clusters", {}), Mapping):
            del known["clusters"]
        return cls(**known)

    def has_priorities(self, queue_name: str) -> bool:
        """Return whether the tasks of a queue are distributed to clusters by their priorities."""
        return isinstance(self.clusters.get(queue_name), Mapping)

    @property
    def has_any_priorities(self) -> bool:
        return any(map(self.has_priorities, self.clusters))

    def cluster(self, queue_name: str, priority: int) -> str:
        """Return the name of the cluster that runs such a task; "" for the default one."""
        usual = queue_name if queue_name != DEFAULT_TASK_QUEUE_NAME else queue.main_cluster()
        chosen = self.clusters.get(queue_name, usual)
        if chosen == queue.main_cluster():
            return ""
        if isinstance(chosen, str):
            return chosen
        return chosen[max((lowest for lowest in chosen if lowest <= priority), default=min(chosen))]


def problems(alias: str, params: Mapping[str, Any]) -> Iterator[CheckMessage]:
    """Yield what is wrong with a backend in ``TASKS``."""
    place = f"TASKS[{alias!r}]"
    queues = params.get("QUEUES", [DEFAULT_TASK_QUEUE_NAME])
    if isinstance(queues, str) or not isinstance(queues, Iterable) or not all(isinstance(item, str) for item in queues):
        yield _error(f"{place}['QUEUES'] is {queues!r}.", "Set it to a list of names; an empty list allows all names.")
        queues = []
    given = params.get("OPTIONS", {})
    if not isinstance(given, Mapping):
        yield _error(f"{place}['OPTIONS'] is {given!r}.", "Set it to a dict.")
        return
    for name in given:
        if name not in NAMES:
            similar = get_close_matches(str(name), NAMES, n=1)
            hint = f"Did you mean {similar[0]}?" if similar else f"Known options: {', '.join(NAMES)}."
            yield _error(f"{place}['OPTIONS'] has the unknown option {name!r}.", hint)
    try:
        QueueOptions.of(None, timeout=given.get("timeout"))
    except (TypeError, ValueError) as error:
        yield _error(f"{place}['OPTIONS']['timeout']: {error}", "Set it to seconds, or to -1 for no limit.")
    try:
        if (policy := RetryPolicy.of(given.get("retry"))) is not None:
            policy.check()
    except (TypeError, ValueError) as error:
        yield _error(f"{place}['OPTIONS']['retry']: {error}", "Set it to a number of retries, or to a RetryPolicy.")
    yield from _wrong_clusters(f"{place}['OPTIONS']['clusters']", given.get("clusters", {}), list(queues))


def _wrong_clusters(place: str, clusters: Any, queues: list[str]) -> Iterator[CheckMessage]:
    hint = (
        "Map names of queues to names of clusters, or to clusters by the lowest priority of their tasks: "
        '{"default": {0: "mysite", 50: "urgent"}, "reports": "reports"}.'
    )
    if not isinstance(clusters, Mapping):
        yield _error(f"{place} is {clusters!r}.", hint)
        return
    known = set(queue.cluster_settings())
    for name, chosen in clusters.items():
        if queues and name not in queues:
            yield _error(f"{place} has the queue {name!r}, which is not in QUEUES.", hint)
        by_priority = {0: chosen} if isinstance(chosen, str) else chosen
        if not (isinstance(by_priority, Mapping) and by_priority and all(map(_is_choice, by_priority.items()))):
            yield _error(f"{place}[{name!r}] is {chosen!r}.", hint)
            continue
        for cluster in by_priority.values():
            if cluster and cluster not in known:
                yield Warning(
                    f"{place} names the cluster {cluster!r}, which Q_CLUSTER does not have.",
                    hint=f"Add it to Q_CLUSTER['ALT_CLUSTERS'], and start it with Q_CLUSTER_NAME={cluster} in the "
                    "environment of 'manage.py qcluster'.",
                    id="powercrud_dashboard.W030",
                )


def _is_choice(item: tuple[Any, Any]) -> bool:
    priority, cluster = item
    is_priority = isinstance(priority, int) and TASK_MIN_PRIORITY <= priority <= TASK_MAX_PRIORITY
    return is_priority and isinstance(cluster, str)


def _error(text: str, hint: str) -> Error:
    return Error(text, hint=hint, id="powercrud_dashboard.E030")
