"""Brokers of the tests' process. Set ``Conf.BROKER_CLASS`` to the path of one."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

from django.utils import timezone
from django_q.brokers import Broker
from django_q.signing import SignedPackage


class MemoryBroker(Broker):
    """Keeps no receipts, as Redis, and its messages in memory. The lists are shared by all instances."""

    messages: list[str] = []
    #: The living clusters: seconds by which the clock of each is wrong, and messages that it holds.
    clusters: list[tuple[float, int]] = []
    readings = 0

    def enqueue(self, task: str) -> None:
        self.messages.append(task)

    def queue_size(self) -> int:
        return len(self.messages)

    def get_stats(self, pattern: str) -> list[str]:
        """Return the clusters' states, each saved two seconds after the one before by its own clock."""
        MemoryBroker.readings += 1
        return [SignedPackage.dumps(self._state(number), True) for number in range(len(self.clusters))]

    def _state(self, number: int) -> Any:
        skew, held = self.clusters[number]
        return SimpleNamespace(
            cluster_id=number,
            host="elsewhere",
            workers=[number],
            task_q_size=held,
            timestamp=timezone.now() + timedelta(seconds=skew + 2 * self.readings),
        )

    @staticmethod
    def get_connection(list_key: str | None = None) -> Any:
        """Return what lists the messages as Redis does."""
        return SimpleNamespace(lrange=lambda key, first, last: list(MemoryBroker.messages))

    @classmethod
    def flush(cls) -> None:
        cls.messages.clear()
        cls.clusters.clear()

    @classmethod
    def names(cls) -> list[str]:
        return [SignedPackage.loads(message)["name"] for message in cls.messages]


class UnlistedBroker(MemoryBroker):
    """Does not let anybody list its messages. Its client is as that of MongoDB: each name is a database."""

    @staticmethod
    def get_connection(list_key: str | None = None) -> Any:
        return AnyName()


class AnyName:
    def __getattr__(self, name: str) -> object:
        return object()


class AwayBroker(Broker):
    """Can't be reached."""

    def enqueue(self, task: str) -> None:
        raise ConnectionError("Nobody listens.")

    def queue_size(self) -> int:
        raise ConnectionError("Nobody listens.")
