"""The processes that run tasks: their heartbeats, and which of them are lost."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from django.db import DatabaseError, connections, transaction
from django.db.models import QuerySet
from django.utils import timezone

from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.models import ActiveTask, WorkerProcess
from powercrud_dashboard.models.database import coordination_db, impatient_transaction, write_transaction

logger = logging.getLogger(__name__)

#: Seconds between two heartbeats of a process that runs a task.
HEARTBEAT_INTERVAL = 1.0
#: Seconds between two heartbeats of an idle worker, at most.
IDLE_HEARTBEAT_INTERVAL = 10.0
#: Seconds that a process which seems lost is watched for; more than two heartbeats.
OBSERVATION = 2.5
#: Looks at the database meanwhile, and the seconds within which each must get the write lock.
LOOKS = 5
FREE_WITHIN = 0.2
#: Days that a lost process is shown for.
KEEP_LOST = 1.0


def idle_heartbeat_interval() -> float:
    """Return the seconds between two heartbeats of an idle worker: so that none is overdue when it claims a task."""
    return min(IDLE_HEARTBEAT_INTERVAL, app_settings.DASHBOARD_HEARTBEAT_TIMEOUT / 3)


def max_heartbeat_age() -> float:
    """Return the seconds after which the heartbeat of a process is overdue."""
    return app_settings.DASHBOARD_HEARTBEAT_TIMEOUT + idle_heartbeat_interval()


class ThisProcess:
    """The row of the process that this code runs in."""

    def __init__(self) -> None:
        #: Held until a change of the row is committed. It is taken before a transaction begins: SQLite lets only one
        #: thread have a write transaction, and a thread that has it must not wait for this lock.
        self.lock = threading.RLock()
        self._identity: str | None = None
        #: Identities that were declared lost, until the tasks that this process runs have moved to the new one.
        self._former: set[str] = set()
        self._cluster = ""
        #: Reasons to stay registered: being a worker, and synchronous tasks that run now, in one thread each.
        self._users = 0

    def become_worker(self, cluster: str) -> None:
        """Stay registered from now on, as a worker of this cluster."""
        with self.lock:
            self._cluster = cluster
            self._users += 1

    @property
    def identity(self) -> str | None:
        """The identity, if there is one: another one after the process was declared lost."""
        return self._identity

    def register(self) -> str:
        """Insert the row, unless it is there. Return its identity."""
        return self._identity or self._replace(None)

    def beat(self) -> None:
        """Write a heartbeat, under a new identity if this process was declared lost."""
        identity = self.register()
        if not WorkerProcess.objects.beat(identity):
            self.replace(identity)
        else:
            self._move_tasks(identity)

    def replace(self, identity: str) -> str:
        """Insert a new row, as that of ``identity`` was declared lost or deleted. Return the identity to use.

        Tasks that this process still runs, as nobody has ended them or taken them over meanwhile, go with it.
        """
        logger.warning("This process was declared lost, as its heartbeat had stopped. It gets a new identity.")
        return self._replace(identity)

    def _replace(self, old: str | None) -> str:
        with self.lock, write_transaction():
            if self._identity != old and self._identity is not None:
                # Another thread has done so.
                return self._identity
            # It runs since then, and so may a task of plain django-q2.
            began = WorkerProcess.objects.filter(pk=old).values_list("started_at", flat=True).first() if old else None
            row = WorkerProcess(
                identity=uuid.uuid4().hex,
                host=socket.gethostname(),
                pid=os.getpid(),
                cluster=self._cluster,
                clock_at=timezone.now(),
                **({"started_at": began} if began else {}),
            )
            row.save(force_insert=True)
            if old is not None:
                self._former.add(old)
            self._move_tasks(row.identity)
            # Used only once the row is committed.
            transaction.on_commit(partial(self._use, row.identity), using=coordination_db())
        return row.identity

    def _move_tasks(self, identity: str) -> None:
        if self._former:
            ActiveTask.objects.running().filter(worker__in=self._former).update(worker=identity)
            transaction.on_commit(self._former.clear, using=coordination_db())

    def _use(self, identity: str) -> None:
        self._identity = identity

    def abandon(self) -> None:
        """Go on under a new identity, as it is not known whether a task belongs to this one that does not run.

        The old identity sends no heartbeat any more. So that task is lost, unless somebody else ends it.
        """
        with self.lock:
            self._identity = None
            self._former.clear()

    def unregister(self) -> None:
        """Delete the row, unless a task still belongs to it."""
        with self.lock:
            self._delete()

    def _delete(self) -> None:
        row = WorkerProcess.objects.filter(pk=self._identity).without_tasks()
        if self._identity is not None and row._raw_delete(row.db):
            self._identity = None

    def _leave(self) -> None:
        try:
            self._delete()
        except DatabaseError:
            # The task has ended, whatever becomes of this row. Cleanup deletes it later.
            logger.warning("The row of this process could not be deleted", exc_info=True)

    @contextmanager
    def registered(self) -> Iterator[str]:
        """Register the process for the length of a synchronous task."""
        with self.lock:
            self._users += 1
        try:
            yield self.register()
        finally:
            with self.lock:
                self._users -= 1
                if not self._users:
                    self._leave()


_this_process = ThisProcess()


def begin_anew() -> None:
    """Forget the process that this one was until now. It is called after a fork."""
    global _this_process
    _this_process = ThisProcess()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=begin_anew)


def this_process() -> ThisProcess:
    """Return the process that this code runs in, which is another one after a fork."""
    return _this_process


def find_lost(*conditions: Any, **tasks: Any) -> list[ActiveTask]:
    """Declare silent processes lost, and return the running tasks that belong to lost processes.

    The arguments, as of ``filter()``, restrict the search to the processes of some tasks. Each returned task carries
    the process that it was judged by, so that it is given up only as long as that is still true.

    A process is lost if it has sent no heartbeat for ``DASHBOARD_HEARTBEAT_TIMEOUT`` seconds, and sends none while it
    is watched for some more seconds.
    """
    chosen = ActiveTask.objects.running().filter(*conditions, **tasks)
    silent = WorkerProcess.objects.silent_for(app_settings.DASHBOARD_HEARTBEAT_TIMEOUT).filter(tasks__in=chosen)
    if silent.exists():
        _declare_lost(silent)
    lost = list(ActiveTask.objects.of_lost_workers().filter(*conditions, **tasks))
    for active in lost:
        active.judged_worker = active.worker
    return lost


def declare_silent_lost(chosen: QuerySet[WorkerProcess]) -> None:
    """Declare those of these processes lost that are silent; it takes some seconds if there are such."""
    silent = chosen & WorkerProcess.objects.silent_for(app_settings.DASHBOARD_HEARTBEAT_TIMEOUT)
    if silent.exists():
        _declare_lost(silent)


def seem_lost() -> list[ActiveTask]:
    """Return the running tasks whose processes are lost, or are silent for so long that they would be watched."""
    silent = WorkerProcess.objects.silent_for(app_settings.DASHBOARD_HEARTBEAT_TIMEOUT)
    running = ActiveTask.objects.running()
    return list(ActiveTask.objects.of_lost_workers() | running.filter(worker__in=silent))


def _declare_lost(silent: QuerySet[WorkerProcess]) -> None:
    connection = connections[coordination_db()]
    if connection.vendor == "sqlite" and connection.in_atomic_block:
        # This transaction itself keeps every other process from writing its heartbeat.
        return
    try:
        suspects = list(silent.distinct())
        if not _database_is_free_for(OBSERVATION):
            logger.warning("Silent processes are not judged now, as the database is kept locked")
            return
    except DatabaseError:
        logger.warning("Silent processes can't be judged now", exc_info=True)
        return
    for suspect in suspects:
        try:
            with impatient_transaction():
                is_lost = WorkerProcess.objects.declare_lost(suspect)
        except DatabaseError:
            # Its row may be locked by its own heartbeat, in the middle of which it was frozen.
            logger.warning("The process %s can't be judged now", suspect, exc_info=True)
            continue
        if is_lost:
            logger.warning("The process %s was declared lost: its heartbeat has stopped", suspect)


def _database_is_free_for(seconds: float) -> bool:
    """Wait for so long. Return whether all the while other processes could write.

    SQLite has one writer: a task that keeps the write lock keeps all heartbeats from being written, its own too.
    """
    for _look in range(LOOKS):
        began = time.monotonic()
        with write_transaction():
            pass
        if time.monotonic() - began > FREE_WITHIN:
            return False
        time.sleep(seconds / LOOKS)
    return True


def forget_old() -> None:
    """Delete the rows of processes that have ended without saying so, and of those lost long ago."""
    long_silent = WorkerProcess.objects.silent_for(
        10 * app_settings.DASHBOARD_HEARTBEAT_TIMEOUT + IDLE_HEARTBEAT_INTERVAL
    ).filter(is_loss_told=False)
    # Their alerts end when others have taken their places.
    long_told = WorkerProcess.objects.silent_for(KEEP_LOST * 24 * 60 * 60).filter(is_loss_told=True)
    long_lost = WorkerProcess.objects.lost_for(KEEP_LOST)
    for rows in (long_silent, long_told, long_lost):
        gone = rows.without_tasks()
        with impatient_transaction():
            gone._raw_delete(gone.db)
