"""The connection with which a worker writes the start and the end of its tasks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from powercrud_dashboard.models.database import coordination_db

#: Seconds without use after which the connection is closed: a firewall or a proxy may have dropped it.
CLOSE_AFTER = 10.0


class WorkerConnection:
    """Stays open from one task to the next, which Django's own does not if ``CONN_MAX_AGE`` is 0.

    Connecting takes longer than writing the start and the end of a short task. The functions of tasks never get this
    connection, so that nothing that one of them sets for its session is there for the next.
    """

    def __init__(self) -> None:
        self._connection: BaseDatabaseWrapper | None = None
        self._last_used = 0.0

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Let the block, in this thread, use this connection instead of Django's own."""
        alias = coordination_db()
        djangos = connections[alias]
        if djangos.settings_dict["CONN_MAX_AGE"] != 0 or djangos.settings_dict["OPTIONS"].get("pool"):
            yield
            return
        if time.monotonic() - self._last_used > CLOSE_AFTER:
            self.close()
        if self._connection is None:
            self._connection = connections.create_connection(alias)
        connections[alias] = self._connection
        try:
            yield
        except BaseException:
            # An interruption may have left it in any state.
            self.close()
            raise
        finally:
            connections[alias] = djangos
            self._last_used = time.monotonic()

    def close(self) -> None:
        """Close the connection; the next use opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


_worker_connection: WorkerConnection | None = None


def install() -> None:
    """Have this process keep a connection."""
    global _worker_connection
    _worker_connection = WorkerConnection()


@contextmanager
def worker_connection() -> Iterator[None]:
    """Let the block write with the connection that this process keeps, if it keeps one."""
    if _worker_connection is None:
        yield
        return
    with _worker_connection.in_use():
        yield
