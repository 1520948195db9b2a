"""The database that the package writes to: its transactions, its primary, and statements with many parameters."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from datetime import datetime
from itertools import islice
from typing import Any, TypeVar

from django.apps import apps
from django.conf import settings
from django.db import OperationalError, connections, models, router, transaction
from django.db.models import functions
from django.db.models.expressions import RawSQL
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from powercrud_dashboard.exceptions import TaskBusy
from powercrud_dashboard.text import KeptText

Item = TypeVar("Item")
Row = TypeVar("Row", bound=models.Model)

_LEFT_OPEN = KeptText(
    _(
        "The changes were rolled back: a transaction was left open on %(databases)s. "
        'Use "with atomic():", or commit what was begun by hand.'
    )
)

#: The outermost transaction that this package has begun; as long as its ``on_commit`` hooks run, it is there still.
_own_transaction: ContextVar[Any] = ContextVar("powercrud_dashboard_own_transaction", default=None)

#: Milliseconds that a statement about what others work on waits for a lock on PostgreSQL. The process that has the lock
#: may be frozen, or cut off, in the middle of a transaction, which PostgreSQL then keeps open for hours.
LOCK_TIMEOUT = 1_000
#: What PostgreSQL says then.
LOCK_NOT_AVAILABLE = "55P03"
#: What SQLite says if somebody else has its write lock for longer than ``timeout`` in the OPTIONS.
SQLITE_BUSY = 5
#: Seconds after which PostgreSQL ends such a transaction of this package's own if its process does not go on with it.
IDLE_TIMEOUT = 30

#: Parameters that PostgreSQL takes in a statement, where they are bound on the server; Django does not tell.
MAX_BOUND_PARAMETERS = 65_535

#: libpq's ``PQTRANS_INTRANS`` and ``PQTRANS_INERROR``, in psycopg 2 and 3.
POSTGRESQL_IN_TRANSACTION, POSTGRESQL_IN_ERROR = 2, 3

#: Parameters of a statement that :func:`in_chunks` leaves for its other conditions.
OTHER_PARAMETERS = 100


class PrimaryManager(models.Manager[Row]):
    """Reads from the database that it writes to, as a replica may lag behind.

    A lock must not be granted from an old copy, and a task that was just launched must be found.
    """

    def get_queryset(self) -> models.QuerySet[Row]:
        return super().get_queryset().using(router.db_for_write(self.model))


def coordination_db() -> str:
    """Return the alias of the database that the coordination tables are written to."""
    return router.db_for_write(_active_task_model())


def database_now() -> datetime:
    """Return the time by the clock of the coordination database."""
    connection = connections[coordination_db()]
    is_sqlite = connection.vendor == "sqlite"
    # As in Now().
    local = "" if settings.USE_TZ else ", 'localtime'"
    sqlite = f"SELECT STRFTIME('%Y-%m-%d %H:%M:%f', 'NOW'{local})"
    with connection.cursor() as cursor:
        cursor.execute(sqlite if is_sqlite else "SELECT STATEMENT_TIMESTAMP()")
        value = cursor.fetchone()[0]
    ops: Any = connection.ops
    now: datetime = ops.convert_datetimefield_value(value, None, connection) if is_sqlite else value
    return timezone.make_naive(now) if timezone.is_aware(now) and not settings.USE_TZ else now


@contextmanager
def write_transaction() -> Iterator[None]:
    """Run the block in a transaction on the coordination database that holds SQLite's write lock from its start.

    Raises:
        OperationalError: at the end of the block, if a part of it failed in a way that lets nothing be committed.
        TaskBusy: if somebody else keeps a lock. Nothing was changed.
    """
    using = coordination_db()
    connection = connections[using]
    atomic: Any = transaction.atomic(using=using)
    token = None if connection.in_atomic_block else _own_transaction.set(atomic)
    try:
        with not_waiting_for_locks(), atomic:
            _take_sqlite_write_lock(connection)
            yield
            check_can_commit(using)
    finally:
        if token is not None:
            _own_transaction.reset(token)


@contextmanager
def impatient_transaction(milliseconds: int = LOCK_TIMEOUT) -> Iterator[None]:
    """Run the block in such a transaction, in which PostgreSQL waits only so long for each lock.

    Raises:
        TaskBusy: if another session kept a lock for longer. Nothing was changed.
    """
    connection = connections[coordination_db()]
    is_nested = connection.in_atomic_block
    with write_transaction():
        if connection.vendor != "postgresql":
            yield
            return
        before = set_lock_timeout(str(milliseconds))
        yield
        if is_nested:
            set_lock_timeout(before)


@contextmanager
def short_wait_on_sqlite(milliseconds: int = LOCK_TIMEOUT) -> Iterator[None]:
    """Let SQLite wait only so long for its write lock in this block; a transaction that is open already may have it."""
    connection = connections[coordination_db()]
    if connection.vendor != "sqlite" or connection.in_atomic_block:
        yield
        return
    with connection.cursor() as cursor:
        (usual,) = cursor.execute("PRAGMA busy_timeout").fetchone()
        cursor.execute(f"PRAGMA busy_timeout = {milliseconds:d}")
        try:
            yield
        finally:
            cursor.execute(f"PRAGMA busy_timeout = {usual:d}")


def take_turn(what: str) -> None:
    """Wait until no other transaction has the turn for ``what``, and have it until the end of this one.

    For changes that are made of a read and a write. SQLite has one writer in any case.
    """
    connection = connections[coordination_db()]
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [f"powercrud_dashboard {what}"])


def give_way(seconds: float) -> None:
    """Leave others as much time as a transaction took: SQLite has one writer, and no queue for those who wait."""
    if connections[coordination_db()].vendor == "sqlite":
        time.sleep(seconds)


def set_lock_timeout(timeout: str, *also: str, params: Sequence[Any] = ()) -> str:
    """Limit the wait for locks until the end of this transaction on PostgreSQL. Return the limit that there was.

    Not for the session, as a pooler may give that to another process. A transaction that is not the caller's also gets
    a limit for how long it may be left open with nothing to do, as by a process that freezes.

    ``also`` are expressions, with their ``params``, that are evaluated after that in the same statement.
    """
    limits = ["current_setting('lock_timeout')", "set_config('lock_timeout', %s, true)"]
    if not in_callers_transaction():
        limits.append(f"set_config('idle_in_transaction_session_timeout', '{IDLE_TIMEOUT}s', true)")
    expressions = ", ".join((*limits, *also))
    with connections[coordination_db()].cursor() as cursor:
        cursor.execute(f"SELECT {expressions}", [timeout, *params])
        return str(cursor.fetchone()[0])


@contextmanager
def not_waiting_for_locks() -> Iterator[None]:
    """Raise :class:`TaskBusy` for a statement of the block that did not get a lock in time."""
    try:
        yield
    except OperationalError as error:
        if is_lock_timeout(error):
            raise TaskBusy from error
        raise


def is_lock_timeout(error: BaseException) -> bool:
    """Return whether a statement did not get a lock in time, of SQLite the only one."""
    if isinstance(error, TaskBusy):
        return True
    of_driver = error.__cause__
    # The higher bits tell in which of several ways SQLite is busy.
    is_busy = getattr(of_driver, "sqlite_errorcode", 0) & 0xFF == SQLITE_BUSY
    return is_busy or getattr(of_driver, "sqlstate", "") == LOCK_NOT_AVAILABLE


@contextmanager
def checked_transaction(using: str) -> Iterator[None]:
    """Run the block in a transaction or savepoint; unlike ``atomic()``, never roll it back without raising.

    Raises:
        OperationalError: at the end of the block, if it caught a database error after which nothing can be committed.
    """
    with transaction.atomic(using=using):
        yield
        check_can_commit(using)


@contextmanager
def savepoints_in_open_transactions() -> Iterator[None]:
    """Undo what the block writes if it raises, in each database in which a transaction is open already.

    Raises:
        OperationalError: as :func:`checked_transaction`, and if the block leaves a transaction of its own open, whose
            changes nobody would commit.
    """
    with ExitStack() as savepoints:
        for connection in connections.all(initialized_only=True):
            if connection.in_atomic_block:
                savepoints.enter_context(checked_transaction(connection.alias))
        savepoints.enter_context(_no_transaction_left_open())
        yield


@contextmanager
def _no_transaction_left_open() -> Iterator[None]:
    opened = connections.all(initialized_only=True)
    before = {connection.alias: len(connection.atomic_blocks) for connection in opened}
    by_hand = {connection.alias for connection in opened if _is_by_hand(connection)}
    try:
        yield
    except BaseException:
        # This error counts, whatever state it has left the connections in.
        with suppress(Exception):
            _roll_back_what_is_open(before, by_hand)
        raise
    if left := _roll_back_what_is_open(before, by_hand):
        raise OperationalError(_LEFT_OPEN(databases=", ".join(map(repr, left))))


def _roll_back_what_is_open(before: Mapping[str, int], by_hand: set[str]) -> list[str]:
    """Roll back all but so many transactions of each database. Return the names of those that had more."""
    left: list[str] = []
    for connection in connections.all(initialized_only=True):
        blocks = connection.atomic_blocks[before.get(connection.alias, 0) :]
        if blocks:
            left.append(connection.alias)
        for block in reversed(blocks):
            connection.needs_rollback = True
            block.__exit__(None, None, None)
        if connection.alias not in by_hand and _is_by_hand(connection):
            if _has_uncommitted(connection):
                left.append(connection.alias)
            connection.rollback()
            connection.set_autocommit(True)
    return left


def _is_by_hand(connection: Any) -> bool:
    """Return whether transactions are begun and committed by hand, after ``set_autocommit(False)``."""
    has_autocommit = connection.autocommit or connection.in_atomic_block or connection.connection is None
    return not has_autocommit and connection.settings_dict["AUTOCOMMIT"]


def _has_uncommitted(connection: Any) -> bool:
    """Return whether something was written in a transaction that was begun by hand; False where that is not known."""
    if connection.vendor != "postgresql":
        return connection.vendor == "sqlite" and bool(connection.connection.in_transaction)
    if (status := connection.connection.info.transaction_status) != POSTGRESQL_IN_TRANSACTION:
        return bool(status == POSTGRESQL_IN_ERROR)
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_current_xact_id_if_assigned()")
        return cursor.fetchone()[0] is not None


def check_can_commit(using: str) -> None:
    """Check that the open transaction can be committed. Django would roll it back without raising.

    Raises:
        OperationalError: if code has caught a database error that spoils the whole transaction, such as a violated
            constraint or a lost connection.
    """
    connection: Any = connections[using]
    is_spoiled = connection.needs_rollback
    if connection.vendor == "postgresql" and not is_spoiled:
        # After an error of a statement that Django's ORM has not run.
        is_spoiled = connection.connection.info.transaction_status == POSTGRESQL_IN_ERROR
    if is_spoiled:
        raise OperationalError(
            "The changes were rolled back: a database error was caught inside of their transaction. "
            "Put atomic() around the statements whose errors are caught."
        )


def in_callers_transaction() -> bool:
    """Return whether a transaction is open that code outside of this package began."""
    connection: Any = connections[coordination_db()]
    return bool(connection.in_atomic_block) and _own_transaction.get() is not next(iter(connection.atomic_blocks), None)


def is_in_transaction() -> bool:
    """Return whether a transaction is open on any database."""
    return any(connection.in_atomic_block for connection in connections.all(initialized_only=True))


def _take_sqlite_write_lock(connection: Any) -> None:
    if connection.vendor == "sqlite" and connection.transaction_mode != "IMMEDIATE":
        # A deferred transaction that has read something can't wait for the write lock: it fails at once with
        # "database is locked". An UPDATE that matches no row takes the lock first, and waits for it.
        _active_task_model()._base_manager.using(connection.alias).filter(pk=0).update(attempt=0)


def _active_task_model() -> type[models.Model]:
    # By name, as the models are built on this module.
    return apps.get_model("powercrud_dashboard", "ActiveTask")


class Now(functions.Now):
    """The time by the database's clock, in the form in which Django stores times.

    On SQLite Django's own is always the time in UTC, but without ``USE_TZ`` local times are stored.
    """

    def as_sqlite(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        if settings.USE_TZ:
            return super().as_sqlite(compiler, connection, **extra)
        template = "STRFTIME('%%%%Y-%%%%m-%%%%d %%%%H:%%%%M:%%%%f', 'NOW', 'localtime')"
        return self.as_sql(compiler, connection, template=template, **extra)


def forget_inherited_pools() -> None:
    """Let this process open connection pools of its own: those that it has inherited by a fork are its parent's.

    Two processes that use one socket read each other's answers.
    """
    for connection in connections.all():
        pools = getattr(connection, "_connection_pools", None)
        if not pools:
            continue
        for pool in pools.values():
            for inherited in getattr(pool, "_pool", ()):
                _close_socket(inherited)
        _close_socket(connection.connection)
        # Kept, as a pool that is deleted looks after its threads, which have stayed with the parent.
        _pools_of_parents.extend(pools.values())
        pools.clear()
        del connections[connection.alias]


_pools_of_parents: list[Any] = []


def _close_socket(inherited: Any) -> None:
    # Only this process's descriptor: to close the connection would end the parent's session.
    with suppress(Exception):
        os.close(inherited.fileno())


def one_column(values: list[str], *, using: str) -> RawSQL | None:
    """Return a subquery that yields these texts and takes them as one parameter.

    None on a database for which no such subquery is known.
    """
    connection = connections[using]
    if connection.vendor == "sqlite":
        return RawSQL("SELECT value FROM json_each(%s)", [as_one_parameter(values, connection)])
    if connection.vendor == "postgresql":
        return RawSQL("SELECT unnest(%s::text[])", [as_one_parameter(values, connection)])
    return None


def as_one_parameter(values: list[str], connection: Any) -> Any:
    """Return a list of texts in the form that the subquery of :func:`one_column` takes."""
    # Sorted, so that SQLite walks its index once.
    return json.dumps(sorted(values)) if connection.vendor == "sqlite" else values


def in_chunks(items: Iterable[Item], *, using: str) -> Iterator[list[Item]]:
    """Cut a collection into lists that fit into one statement of this database as parameters."""
    size = (connections[using].features.max_query_params or MAX_BOUND_PARAMETERS) - OTHER_PARAMETERS
    remaining = iter(items)
    while chunk := list(islice(remaining, size)):
        yield chunk
