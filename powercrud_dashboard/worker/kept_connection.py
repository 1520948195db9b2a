"""The connection by which a worker process writes the begin and the end of its tasks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from powercrud_dashboard.models.coordination import coordination_db

#: Seconds without use after which the connection is not trusted any more: what lies between may have dropped it.
TRUSTED_FOR = 10.0


class KeptConnection:
    """Stays open from one task to the next, which Django's own does not as long as ``CONN_MAX_AGE`` is 0.

    To connect takes longer than all that is written of a short task. The functions of tasks never get this
    connection, so that what one of them sets for its session is not there for the next.
    """

    def __init__(self) -> None:
        self._connection: BaseDatabaseWrapper | None = None
        self._last_used = 0.0

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Let the block, in this thread, have this connection in the place of Django's own."""
        alias = coordination_db()
        djangos = connections[alias]
        if djangos.settings_dict["CONN_MAX_AGE"] != 0 or djangos.settings_dict["OPTIONS"].get("pool"):
            yield
            return
        if time.monotonic() - self._last_used > TRUSTED_FOR:
            self.close()
        if self._connection is None:
            self._connection = connections.create_connection(alias)
        connections[alias] = self._connection
        try:
            yield
        except BaseException:
            # An interruption may have left it anywhere.
            self.close()
            raise
        finally:
            connections[alias] = djangos
            self._last_used = time.monotonic()

    def close(self) -> None:
        """Give the connection back; the next use opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


_kept: KeptConnection | None = None


def install() -> None:
    """Have this process keep a connection."""
    global _kept
    _kept = KeptConnection()


@contextmanager
def kept_connection() -> Iterator[None]:
    """Let the block write by the connection that this process keeps, if it does."""
    if _kept is None:
        yield
        return
    with _kept.in_use():
        yield
