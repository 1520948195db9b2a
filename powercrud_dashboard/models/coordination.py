"""What is queued, running or reserved now: small rows that are gone when the task ends."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from django.conf import settings
from django.db import OperationalError, connections, models, router, transaction
from django.db.models import F, Q
from django.db.models.expressions import RawSQL
from django.db.models.functions import Now
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.models.managers import OfPrimary
from powercrud_dashboard.models.prepared import PreparedDelete, PreparedSave, PreparedSelect, PreparedUpdate, Slot

if TYPE_CHECKING:
    from django.contrib.auth.models import AbstractUser


Item = TypeVar("Item")

#: In the place of an object's key: the lock on all objects of its model.
WHOLE_MODEL = "*"

#: Whether the outermost transaction is one of this package's own.
_own_transaction: ContextVar[bool] = ContextVar("powercrud_dashboard_own_transaction", default=False)

#: By how much the clocks of one project may differ, or be set, without anybody noticing.
CLOCKS_DIFFER = timedelta(seconds=60)

#: Locks that are read of those in the way of a whole model.
MET_AT_MOST = 1_000


class ActiveTaskState(models.TextChoices):
    RESERVED = "reserved", _("Reserved")
    PENDING = "pending", _("Queued")
    IN_PROGRESS = "in_progress", _("Running")


class ActiveTaskQuerySet(models.QuerySet["ActiveTask"]):
    def tasks(self) -> ActiveTaskQuerySet:
        """Queued and running tasks, without reservations."""
        return self.exclude(state=ActiveTaskState.RESERVED)

    def reservations(self) -> ActiveTaskQuerySet:
        return self.filter(state=ActiveTaskState.RESERVED)

    def pending(self) -> ActiveTaskQuerySet:
        return self.filter(state=ActiveTaskState.PENDING)

    def running(self) -> ActiveTaskQuerySet:
        return self.filter(state=ActiveTaskState.IN_PROGRESS)

    def expired_reservations(self) -> ActiveTaskQuerySet:
        return self.reservations().filter(expires_at__lte=Now())

    def silent_for(self, seconds: float) -> ActiveTaskQuerySet:
        """Running tasks whose worker has not been heard of for so long, by the database's clock.

        Also those last heard of in the future: the clock was set back since, and tells nothing.
        """
        silence = timedelta(seconds=seconds)
        return self.running().filter(Q(heartbeat_at__lt=Now() - silence) | Q(heartbeat_at__gt=Now() + silence))

    def ready(self) -> ActiveTaskQuerySet:
        """Queued tasks that a worker may begin, which those that wait for their next try are not."""
        return self.pending().filter(next_run_at=None)

    def waiting(self) -> ActiveTaskQuerySet:
        """Failed tasks that wait for their next try."""
        return self.pending().filter(next_run_at__isnull=False)

    def due(self) -> ActiveTaskQuerySet:
        """Those of them whose time has come, by the database's clock; all, if that was set back meanwhile."""
        return self.waiting().filter(Q(next_run_at__lte=Now()) | Q(queued_at__gt=Now() + CLOCKS_DIFFER))

    def queued_for(self, seconds: float) -> ActiveTaskQuerySet:
        """Tasks that have been in the queue for so long, by the database's clock; all, if that was set back."""
        long_ago = Q(queued_at__lt=Now() - timedelta(seconds=seconds))
        return self.ready().filter(long_ago | Q(queued_at__gt=Now() + CLOCKS_DIFFER))

    def postpone(self, active: ActiveTask, wait: timedelta, *, counts: bool) -> bool:
        """Let a task that failed wait for its next try; its locks stay. Return whether it was still that attempt's.

        ``counts`` says whether this is one of the retries that its policy allows.
        """
        nobody_cancelled = self.of_attempt(active).filter(cancel_requested_at=None)
        postponed = nobody_cancelled.update(
            state=ActiveTaskState.PENDING,
            next_run_at=Now() + wait,
            queued_at=Now(),
            retries=F("retries") + int(counts),
            queue_receipt="",
            sent_at=None,
            worker_host="",
            worker_pid=None,
            started_at=None,
            heartbeat_at=None,
            progress_message="",
            progress_current=None,
            progress_total=None,
        )
        return postponed == 1

    def queue_again(self, active: ActiveTask) -> bool:
        """Put a task that waits for its next try among the queued ones. Return whether it still waited."""
        still_waiting = self.waiting().filter(pk=active.pk, attempt=active.attempt)
        return still_waiting.update(next_run_at=None, sent_at=None, queued_at=Now()) == 1

    def claimed_by(self, *, host: str, pid: int, within: float) -> ActiveTaskQuerySet:
        """Running tasks that this worker has claimed in the last so many seconds."""
        since = Now() - timedelta(seconds=within)
        return self.running().filter(worker_host=host, worker_pid=pid, started_at__gte=since)

    def still_silent(self, lost: ActiveTask) -> ActiveTaskQuerySet:
        """The row of a task that looked lost, as long as no heartbeat came after the one that was read."""
        # Counted, as clocks can be set.
        return self.of_attempt(lost).filter(beats=lost.beats)

    def of_attempt(self, active: ActiveTask) -> ActiveTaskQuerySet:
        """The row as long as it still is in the state and attempt in which ``active`` was read."""
        return self.filter(pk=active.pk, attempt=active.attempt, state=active.state)

    def beat(self, active: ActiveTask, **progress: Any) -> bool:
        """Keep the task alive and store new progress. Return False if it was cancelled or taken away."""
        undisturbed = self.of_attempt(active).filter(cancel_requested_at=None)
        return undisturbed.update(heartbeat_at=Now(), beats=F("beats") + 1, **progress) == 1

    def keep_alive(self, **progress: Any) -> bool:
        """Write a heartbeat even though the task was cancelled. Return whether the row is still there."""
        return self.update(heartbeat_at=Now(), beats=F("beats") + 1, **progress) == 1

    def request_cancel(self, task_name: str, user: AbstractUser | None) -> bool:
        """Ask a running task's worker to stop it. Return whether this was the first request."""
        running = self.running().filter(task_name=task_name, cancel_requested_at=None)
        return running.update(cancel_requested_at=Now(), cancel_requested_by=user) == 1

    def drop_empty_reservations(self, **which: Any) -> None:
        """Remove the reservations among ``which`` that hold no lock any more."""
        locks = ConflictLock.objects.using(self.db).filter(active_task_id=models.OuterRef("pk"))
        self.reservations().filter(~models.Exists(locks), **which)._raw_delete(self.db)


_ActiveTaskBase = OfPrimary.from_queryset(ActiveTaskQuerySet)


class ActiveTaskManager(_ActiveTaskBase["ActiveTask"]):
    """What is done to one task at a time."""

    def add(self, active: ActiveTask) -> None:
        """Insert a new task.

        Raises:
            IntegrityError: if one of its name, or of its unique key, is there.
        """
        _ADD.execute(active)

    def claim_pending(self, task_name: str, *, host: str, pid: int) -> ActiveTask | None:
        """Make a queued task this worker's, and return it; None if it was not to be had any more."""
        if not _CLAIM.execute(task_name=task_name, worker_host=host, worker_pid=pid):
            return None
        return _CLAIMED.first(task_name=task_name)

    def note_sent(self, active: ActiveTask, receipt: str) -> None:
        """Note that the broker has taken the task, and what it knows the message by, if it tells."""
        _NOTE_SENT.execute(id=active.pk, queue_receipt=receipt, sent_at=timezone.now())

    def take_over(self, lost: ActiveTask, *, host: str, pid: int) -> ActiveTask | None:
        """Make a lost worker's task this worker's, and return it; None if it has shown life since it was read."""
        if not self.all().still_silent(lost).update(**_BEGUN, worker_host=host, worker_pid=pid):
            return None
        return _CLAIMED.first(task_name=lost.task_name)

    def end(self, active: ActiveTask) -> int | None:
        """Remove the row and its locks if ``active`` still describes it.

        Return the number of locks released, or None if the task has passed to another
        attempt or has ended already: then nothing is touched.
        """
        # One conditional DELETE whose row count is the answer. Locks refer to the row with a constraint that is
        # checked at commit, so they may go second.
        if not _END.execute(id=active.pk, attempt=active.attempt, state=active.state):
            return None
        return _RELEASE.execute(active_task=active.pk)


class ActiveTask(models.Model):
    """A task that is queued or running, or a named reservation of objects."""

    task_name = models.CharField(_("task name"), max_length=100)
    state = models.CharField(_("state"), max_length=20, choices=ActiveTaskState)
    label = models.CharField(_("label"), max_length=255, blank=True)
    manager_class = models.CharField(_("manager class"), max_length=255, blank=True)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        verbose_name=_("user"),
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="+",
    )
    created_at = models.DateTimeField(_("created at"), db_default=Now())
    #: Since when it has been in the queue for this try, or waits for the next.
    queued_at = models.DateTimeField(_("queued at"), db_default=Now())
    expires_at = models.DateTimeField(_("expires at"), null=True, blank=True)
    #: As long as there is a task with this key, none is launched with the same; empty for no such wish.
    unique_key = models.CharField(_("unique key"), max_length=100, blank=True)

    cluster = models.CharField(_("cluster"), max_length=100, blank=True)
    #: What the broker knows the queue entry by, where it tells (the ORM broker does).
    queue_receipt = models.CharField(_("queue receipt"), max_length=100, blank=True)
    #: Empty from commit until the broker has taken the task.
    sent_at = models.DateTimeField(_("sent at"), null=True, blank=True)

    #: What is to happen after a failure, as :class:`powercrud_dashboard.retry_policy.RetryPolicy` keeps it.
    policy = models.JSONField(_("retry policy"), default=dict, blank=True)
    #: What another try needs, pickled and signed; only kept for tasks with a policy.
    payload = models.TextField(_("signed payload"), blank=True, editable=False)
    #: Retries made by the policy so far.
    retries = models.PositiveIntegerField(_("retries"), default=0)
    #: When the next try is due, while the task waits for it.
    next_run_at = models.DateTimeField(_("next run at"), null=True, blank=True)

    attempt = models.PositiveIntegerField(_("attempt"), default=0)
    worker_host = models.CharField(_("worker host"), max_length=255, blank=True)
    worker_pid = models.PositiveIntegerField(_("worker pid"), null=True, blank=True)
    started_at = models.DateTimeField(_("started at"), null=True, blank=True)
    heartbeat_at = models.DateTimeField(_("heartbeat at"), null=True, blank=True)
    beats = models.PositiveBigIntegerField(_("heartbeats"), default=0)

    progress_message = models.TextField(_("progress message"), blank=True)
    progress_current = models.BigIntegerField(_("progress current"), null=True, blank=True)
    progress_total = models.BigIntegerField(_("progress total"), null=True, blank=True)

    cancel_requested_at = models.DateTimeField(_("cancel requested at"), null=True, blank=True)
    cancel_requested_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        verbose_name=_("cancel requested by"),
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="+",
    )

    objects = ActiveTaskManager()

    class Meta:
        verbose_name = _("active task")
        verbose_name_plural = _("active tasks")
        default_permissions = ()
        constraints = [
            # Reservations may share a name: two people reserve different objects as "custom-task".
            models.UniqueConstraint(
                fields=["task_name"],
                condition=~Q(state=ActiveTaskState.RESERVED),
                name="pcrud_active_task_name_uniq",
            ),
            models.UniqueConstraint(
                fields=["unique_key"], condition=~Q(unique_key=""), name="pcrud_active_task_unique_key"
            ),
        ]
        indexes = [
            models.Index(fields=["task_name"], name="pcrud_active_task_name"),
            models.Index(
                fields=["heartbeat_at"],
                condition=Q(state=ActiveTaskState.IN_PROGRESS),
                name="pcrud_active_heartbeat",
            ),
            models.Index(
                fields=["queued_at"],
                condition=Q(state=ActiveTaskState.PENDING),
                name="pcrud_active_queued",
            ),
            models.Index(
                fields=["next_run_at"],
                condition=Q(next_run_at__isnull=False),
                name="pcrud_active_next_run",
            ),
            models.Index(
                fields=["expires_at"],
                condition=Q(state=ActiveTaskState.RESERVED),
                name="pcrud_active_reserved",
            ),
        ]

    def __str__(self) -> str:
        return self.label or self.task_name


class ConflictLockQuerySet(models.QuerySet["ConflictLock"]):
    def on_objects(self, keys: Mapping[str, Iterable[str]]) -> Iterator[ConflictLockQuerySet]:
        """The locks on the wanted objects, as querysets small enough for the database.

        ``keys`` maps a normalised model label to object ids as text.
        """
        for model_label, object_ids in keys.items():
            rows = one_column(list(object_ids), using=self.db)
            if rows is not None:
                yield self.filter(model_label=model_label, object_id__in=rows)
                continue
            for chunk in in_chunks(object_ids, using=self.db):
                yield self.filter(model_label=model_label, object_id__in=chunk)

    def held_among(self, keys: Mapping[str, Iterable[str]]) -> list[ConflictLock]:
        """The locks that lie on the wanted objects, or on all of their model, with their holders.

        Who wants all of a model meets each lock on one of its objects; of those the first are returned.
        """
        found: list[ConflictLock] = []
        for locks in self.in_the_way_of(keys):
            found += locks.select_related("active_task")
        return found

    def in_the_way_of(self, keys: Mapping[str, Iterable[str]]) -> Iterator[ConflictLockQuerySet]:
        """The locks that lie on the wanted objects, or on all of their model, as querysets."""
        for model_label, object_ids in keys.items():
            wanted = list(object_ids)
            if WHOLE_MODEL in wanted:
                yield self.filter(model_label=model_label)[:MET_AT_MOST]
            else:
                yield from self.on_objects({model_label: [*wanted, WHOLE_MODEL]})

    def insert_free(self, keys: Mapping[str, list[str]], holder: ActiveTask) -> bool:
        """Lock those of the objects that are free, in one statement for each model. Return whether these were all.

        On a database whose words for it are not known here nothing is done, and False returned.
        """
        connection = connections[self.db]
        rows = {"sqlite": "SELECT value AS id FROM json_each(%s)", "postgresql": "SELECT unnest(%s::text[]) AS id"}
        if connection.vendor not in rows:
            return False
        table = self.model._meta.db_table
        statement = f"""
            INSERT INTO {table} (model_label, object_id, active_task_id, locked_at)
            SELECT %s, wanted.id, %s, %s FROM ({rows[connection.vendor]}) AS wanted
            WHERE NOT EXISTS (SELECT 1 FROM {table} WHERE model_label = %s AND object_id = %s)
            ON CONFLICT DO NOTHING
        """  # noqa: S608 - names of our own table
        now = connection.ops.adapt_datetimefield_value(timezone.now())
        inserted = 0
        with connection.cursor() as cursor:
            for model_label, object_ids in keys.items():
                wanted = _one_parameter(object_ids, connection)
                cursor.execute(statement, [model_label, holder.pk, now, wanted, model_label, WHOLE_MODEL])
                inserted += cursor.rowcount
        return inserted == sum(map(len, keys.values()))

    def hand_over(self, lock_ids: Iterable[int], holder: ActiveTask) -> int:
        """Make the locks this holder's. Return how many there still were."""
        chunks = in_chunks(lock_ids, using=self.db)
        return sum(self.filter(pk__in=chunk).update(active_task=holder) for chunk in chunks)

    def orphaned(self) -> ConflictLockQuerySet:
        """Locks whose holder is gone, which only a database without foreign keys can have."""
        holders = ActiveTask.objects.using(self.db).filter(pk=models.OuterRef("active_task_id"))
        return self.filter(~models.Exists(holders))


class ConflictLock(models.Model):
    """The right of one task or reservation to work on one object."""

    model_label = models.CharField(_("model"), max_length=201)
    object_id = models.CharField(_("object id"), max_length=255)
    active_task = models.ForeignKey(
        ActiveTask,
        verbose_name=_("holder"),
        # Locks are released together with their holder in two statements, see ActiveTaskQuerySet.end().
        on_delete=models.DO_NOTHING,
        related_name="locks",
    )
    locked_at = models.DateTimeField(_("locked at"), default=timezone.now)

    objects = OfPrimary.from_queryset(ConflictLockQuerySet)()

    class Meta:
        verbose_name = _("conflict lock")
        verbose_name_plural = _("conflict locks")
        default_permissions = ("view",)
        permissions = [("release_conflictlock", _("Can release conflict locks"))]
        constraints = [
            models.UniqueConstraint(fields=["model_label", "object_id"], name="pcrud_lock_object_uniq"),
        ]

    def __str__(self) -> str:
        if self.object_id == WHOLE_MODEL:
            return _("%(model)s (all objects)") % {"model": self.model_label}
        return f"{self.model_label} {self.object_id}"


#: What changes in the row of a task when a worker begins it.
_BEGUN = {
    "state": ActiveTaskState.IN_PROGRESS,
    "attempt": F("attempt") + 1,
    "started_at": Now(),
    "heartbeat_at": Now(),
    "beats": F("beats") + 1,
}
_ADD = PreparedSave(ActiveTask)
_CLAIM = PreparedUpdate(
    ActiveTask,
    lambda: ActiveTask.objects.ready().filter(task_name=Slot("task_name")),
    **_BEGUN,
    worker_host=Slot("worker_host"),
    worker_pid=Slot("worker_pid"),
)
_CLAIMED = PreparedSelect(ActiveTask, lambda: ActiveTask.objects.running().filter(task_name=Slot("task_name")))
_NOTE_SENT = PreparedUpdate(
    ActiveTask,
    lambda: ActiveTask.objects.filter(pk=Slot("id")),
    queue_receipt=Slot("queue_receipt"),
    sent_at=Slot("sent_at"),
)
_END = PreparedDelete(
    ActiveTask,
    lambda: ActiveTask.objects.all().of_attempt(
        ActiveTask(id=Slot("id"), attempt=Slot("attempt"), state=Slot("state")),
    ),
)
_RELEASE = PreparedDelete(ConflictLock, lambda: ConflictLock.objects.filter(active_task=Slot("active_task")))


def reservation_expiry() -> Any:
    """When a reservation made now expires, as an expression on the database's clock."""
    return Now() + timedelta(seconds=app_settings.CONFLICT_TTL)


def coordination_db() -> str:
    """The alias of the database that the coordination tables are written to."""
    return router.db_for_write(ActiveTask)


@contextmanager
def write_transaction() -> Iterator[None]:
    """An atomic block on the coordination database that is ready to write from its start.

    Raises:
        OperationalError: at its end, if it can't be committed.
    """
    using = coordination_db()
    connection = connections[using]
    token = None if connection.in_atomic_block else _own_transaction.set(True)
    try:
        with transaction.atomic(using=using):
            _take_sqlites_write_lock(connection)
            yield
            if connection.needs_rollback:
                # A part of it has failed so that nothing of it can be kept, as when the connection was lost, and
                # whoever caught that error went on. Django would undo all the rest without a word.
                raise OperationalError("The transaction could not be completed, and was undone.")
    finally:
        if token is not None:
            _own_transaction.reset(token)


def in_callers_transaction() -> bool:
    """Return whether a transaction is open that the package's caller began, and will end."""
    return connections[coordination_db()].in_atomic_block and not _own_transaction.get()


def _take_sqlites_write_lock(connection: Any) -> None:
    if connection.vendor == "sqlite" and connection.transaction_mode != "IMMEDIATE":
        # A deferred SQLite transaction that reads first can't wait for the write lock later: it fails
        # at once with "database is locked". An update of no row takes the lock, and waits for it.
        ActiveTask.objects.using(connection.alias).filter(pk=0).update(attempt=0)


def one_column(values: list[str], *, using: str) -> RawSQL | None:
    """Return a query of these texts that is one parameter, however many they are; None where that is not known how."""
    connection = connections[using]
    if connection.vendor == "sqlite":
        return RawSQL("SELECT value FROM json_each(%s)", [_one_parameter(values, connection)])
    if connection.vendor == "postgresql":
        return RawSQL("SELECT unnest(%s::text[])", [_one_parameter(values, connection)])
    return None


def _one_parameter(values: list[str], connection: Any) -> Any:
    # In order, as SQLite then goes through its index once instead of here and there.
    return json.dumps(sorted(values)) if connection.vendor == "sqlite" else values


def in_chunks(items: Iterable[Item], *, using: str) -> Iterator[list[Item]]:
    """Cut a collection into lists that fit as parameters into one statement of this database."""
    # A hundred are left for the other conditions of the statement.
    size = (connections[using].features.max_query_params or 1_000_100) - 100
    remaining = iter(items)
    while chunk := list(islice(remaining, size)):
        yield chunk
