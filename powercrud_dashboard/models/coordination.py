"""What is queued, running or reserved now: small rows that are gone when the task ends."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Coalesce, Greatest
from django.utils import timezone
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy

from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.models.database import Now, PrimaryManager
from powercrud_dashboard.models.fields import CharField, TextField, user_key
from powercrud_dashboard.models.locks import ConflictLock
from powercrud_dashboard.models.pausing import Pause
from powercrud_dashboard.models.prepared import PreparedDelete, PreparedSave, PreparedUpdate, Slot
from powercrud_dashboard.models.processes import WorkerProcess

if TYPE_CHECKING:
    from django.contrib.auth.models import AbstractUser

#: A timestamp that is this far in the future shows that a clock was set back since it was written.
CLOCK_TOLERANCE = timedelta(seconds=60)


class ActiveTaskState(models.TextChoices):
    RESERVED = "reserved", _("Reserved")
    PENDING = "pending", pgettext_lazy("of a task", "Queued")
    IN_PROGRESS = "in_progress", _("Running")
    PAUSED = "paused", _("Paused")


class ActiveTaskQuerySet(models.QuerySet["ActiveTask"]):
    def tasks(self) -> ActiveTaskQuerySet:
        """Queued, running and paused tasks, without reservations."""
        return self.exclude(state=ActiveTaskState.RESERVED)

    def reservations(self) -> ActiveTaskQuerySet:
        return self.filter(state=ActiveTaskState.RESERVED)

    def pending(self) -> ActiveTaskQuerySet:
        return self.filter(state=ActiveTaskState.PENDING)

    def running(self) -> ActiveTaskQuerySet:
        return self.filter(state=ActiveTaskState.IN_PROGRESS)

    def paused(self) -> ActiveTaskQuerySet:
        return self.filter(state=ActiveTaskState.PAUSED)

    def expired_reservations(self) -> ActiveTaskQuerySet:
        return self.reservations().filter(expires_at__lte=Now())

    def of_lost_workers(self) -> ActiveTaskQuerySet:
        """Running tasks whose process was declared lost, with the process."""
        return self.running().filter(worker__lost_at__isnull=False).select_related("worker")

    def ready(self) -> ActiveTaskQuerySet:
        """Queued tasks that a worker may claim: those that neither wait for their time nor are held back."""
        return self.pending().filter(next_run_at=None, held_by="")

    def held(self) -> ActiveTaskQuerySet:
        """Queued tasks that wait until their queue or function is resumed."""
        return self.pending().exclude(held_by="")

    def released(self) -> ActiveTaskQuerySet:
        """Those of them that may be queued again, as what they waited for has been resumed."""
        pauses = Pause.objects.using(self.db).filter(pk=models.OuterRef("held_by"))
        return self.held().filter(~models.Exists(pauses))

    def hold(self, task_name: str, *, queue: str, func: str) -> bool:
        """Let a queued task wait whose queue or function is paused. Return whether it is."""
        pause = Pause.objects.all().applying_to(queue, func).first()
        if pause is None:
            return False
        held = self.ready().filter(models.Exists(Pause.objects.filter(pk=pause.pk)), task_name=task_name)
        return held.update(held_by=pause.pk, queue_receipt="", sent_at=None, missing_since=None) == 1

    def hold_again(self, active: ActiveTask) -> bool:
        """Let a task wait again that was released and has no message yet. Return whether it does."""
        unsent = self.unsent().filter(pk=active.pk, attempt=active.attempt)
        return unsent.update(held_by=active.released_from) == 1

    def missing(self) -> ActiveTaskQuerySet:
        """Queued tasks whose message the broker has lost."""
        return self.ready().filter(missing_since__isnull=False)

    def waiting(self) -> ActiveTaskQuerySet:
        """Queued tasks that are not to start before a certain time: their retry, or the launch, says so."""
        return self.pending().filter(next_run_at__isnull=False)

    def waiting_for_retry(self) -> ActiveTaskQuerySet:
        """Those of them that have failed before."""
        return self.waiting().exclude(attempt=0, retries=0)

    def due(self) -> ActiveTaskQuerySet:
        """Waiting tasks that are due by the database's clock; all that wait, if that was set back meanwhile."""
        return self.waiting().filter(Q(next_run_at__lte=Now()) | Q(queued_at__gt=Now() + CLOCK_TOLERANCE))

    def queued_for(self, seconds: float) -> ActiveTaskQuerySet:
        """Tasks queued for at least so many seconds by the database's clock; all, if that was set back."""
        long_ago = Q(queued_at__lt=Now() - timedelta(seconds=seconds))
        return self.ready().filter(long_ago | Q(queued_at__gt=Now() + CLOCK_TOLERANCE))

    def unsent(self) -> ActiveTaskQuerySet:
        """Queued tasks that the broker does not have yet, as far as is known."""
        return self.ready().filter(sent_at=None)

    def postpone(self, active: ActiveTask, wait: timedelta, *, counts: bool, resume_at: int | None = None) -> bool:
        """Let a failed task wait for a retry and keep its locks. Return False if the task has passed on meanwhile.

        ``counts`` says whether this uses up one of the retries that its policy allows.
        """
        not_cancelled = self.as_read(active).filter(cancel_requested_at=None)
        postponed = not_cancelled.update(
            **_WITHOUT_WORKER,
            **({} if resume_at is None else {"resume_at": resume_at}),
            **({"ran_before": _RAN} if active.goes_on else {}),
            state=ActiveTaskState.PENDING,
            next_run_at=Now() + wait,
            retries=F("retries") + int(counts),
            progress_message="",
            progress_current=None,
            progress_total=None,
            progress_at=None,
        )
        return postponed == 1

    def request_pause(self, active: ActiveTask, user: AbstractUser | None, *, keep_locks: bool) -> bool:
        """Ask the worker that runs the task to pause it. Return whether this was the first request."""
        running = self.as_read(active).filter(pause_requested_at=None, cancel_requested_at=None)
        return running.update(pause_requested_at=Now(), pause_requested_by=user, pause_keeps_locks=keep_locks) == 1

    def withdraw_pause(self, active: ActiveTask) -> bool:
        """Let a running task go on that was asked to pause. Return whether it was still running."""
        asked = self.as_read(active).filter(pause_requested_at__isnull=False)
        return asked.update(**_NOT_ASKED) == 1

    def pause(self, active: ActiveTask, *, keep_locks: bool, resume_at: int | None = None) -> bool:
        """Let a task wait until somebody resumes it. Return False if it was cancelled or has passed on meanwhile."""
        not_cancelled = self.as_read(active).filter(cancel_requested_at=None)
        paused = not_cancelled.update(
            **_WITHOUT_WORKER,
            **_NOT_ASKED,
            **({} if resume_at is None else {"resume_at": resume_at}),
            ran_before=_RAN,
            state=ActiveTaskState.PAUSED,
            pause_keeps_locks=keep_locks,
        )
        return paused == 1

    def hand_back(self, active: ActiveTask, *, resume_at: int | None = None) -> bool:
        """Let a task that has given its worker back, or that was paused, be due: it is queued as soon as possible.

        Return False if somebody has cancelled it or asked it to pause, or it has passed on meanwhile.
        """
        undisturbed = self.as_read(active).filter(cancel_requested_at=None, pause_requested_at=None)
        handed_back = undisturbed.update(
            **_WITHOUT_WORKER,
            **({} if resume_at is None else {"resume_at": resume_at}),
            ran_before=_RAN,
            state=ActiveTaskState.PENDING,
            # A paused task that waited for its time still does.
            next_run_at=Greatest(Coalesce("next_run_at", Now()), Now()),
        )
        return handed_back == 1

    def queue_again(self, active: ActiveTask) -> bool:
        """Make a task ready that waits, or whose message is lost. Return whether that is still so."""
        waits = Q(next_run_at__isnull=False) | Q(missing_since__isnull=False) | ~Q(held_by="")
        changed = (
            self.as_read(active)
            .filter(waits)
            .update(
                next_run_at=None,
                held_by="",
                sent_at=None,
                expires_at=None,
                missing_since=None,
                queued_at=Now(),
                queue_receipt="",
            )
        )
        return changed == 1

    def note_missing(self, active: ActiveTask, is_missing: bool) -> bool:
        """Note whether the message of a queued task is lost. Return False if the task has changed meanwhile."""
        row = self.ready().filter(pk=active.pk, attempt=active.attempt)
        unchanged = row.filter(missing_since__isnull=is_missing)
        return unchanged.update(missing_since=Now() if is_missing else None) == 1

    def as_read(self, active: ActiveTask) -> ActiveTaskQuerySet:
        """The row, as long as it is in the attempt and state in which ``active`` was read.

        Of a lost task also only as long as its process has sent no heartbeat since it was read.
        """
        row = self.filter(pk=active.pk, attempt=active.attempt, state=active.state)
        if (judged := active.judged_worker) is None:
            return row
        # Not by a join, with which the row's other conditions are in a subquery: PostgreSQL does not look at that again
        # after it has waited for somebody else's change of the row.
        unchanged = WorkerProcess.objects.filter(pk=judged.pk, beats=judged.beats)
        return row.filter(models.Exists(unchanged), worker=judged)

    def write_progress(self, active: ActiveTask, **progress: Any) -> bool:
        """Store new progress. Return False if the task is not in this attempt any more."""
        return self.as_read(active).update(progress_at=Now(), **progress) == 1

    def request_cancel(self, active: ActiveTask, user: AbstractUser | None) -> bool:
        """Ask the worker that runs the task to stop it. Return whether this was the first request."""
        running = self.as_read(active).filter(cancel_requested_at=None)
        return running.update(cancel_requested_at=Now(), cancel_requested_by=user) == 1

    def drop_empty_reservations(self, **which: Any) -> None:
        """Delete those of the reservations that hold no lock any more."""
        locks = ConflictLock.objects.using(self.db).filter(active_task_id=models.OuterRef("pk"))
        self.reservations().filter(~models.Exists(locks), **which)._raw_delete(self.db)


_ActiveTaskBase = PrimaryManager.from_queryset(ActiveTaskQuerySet)


class ActiveTaskManager(_ActiveTaskBase["ActiveTask"]):
    """What is written of one task at a time."""

    def get_queryset(self) -> models.QuerySet[ActiveTask]:
        # They may be megabytes, and only a retry or a resumption needs them. They are loaded when they are asked for.
        return super().get_queryset().defer("payload", "released_locks")

    def add(self, active: ActiveTask) -> None:
        """Insert a new task.

        Raises:
            IntegrityError: if there is one of its name or of its unique key.
        """
        _ADD.save(active)

    def claim(self, task_name: str, *, worker: str | None, queue: str = "", func: str = "") -> ActiveTask | None:
        """Make a queued task this process's and return it.

        Return None if it is not ready (any more), if ``worker`` was declared lost, or if nothing new of this queue or
        function is to start.
        """
        if worker is not None:
            return _CLAIM.first(task_name=task_name, worker=worker, queue=queue, func=func)
        claimed = self.all().ready().filter(task_name=task_name).update(**_CLAIMED)
        return self.all().running().get(task_name=task_name) if claimed else None

    def take_over(self, lost: ActiveTask, *, worker: str | None) -> ActiveTask | None:
        """Make a lost task this process's and return it; None if its own process has sent a heartbeat since."""
        row = self.all().as_read(lost)
        if worker is not None:
            row = row.filter(models.Exists(WorkerProcess.objects.filter(pk=worker, lost_at=None)))
        if not row.update(**_CLAIMED, worker=worker):
            return None
        return self.get(pk=lost.pk)

    def write_progress_of(self, task_name: str, **progress: Any) -> ActiveTask | None:
        """Store new progress of a queued or running task. Return it with its manager and whether it was cancelled."""
        return _WRITE_PROGRESS.first(progress, task_name=task_name, **progress)

    def note_sent(self, active: ActiveTask, receipt: str) -> None:
        """Note that the broker has taken the task, and the receipt that it gave for the message."""
        # A worker may have claimed or even ended the task already: then there is nothing to note.
        self.filter(pk=active.pk).update(queue_receipt=receipt, sent_at=timezone.now(), expires_at=None)

    def end(self, active: ActiveTask) -> int | None:
        """Delete the row and its locks, as long as the row is as ``active`` was read.

        Return the number of locks released, or None if the task has ended or has passed to another attempt: then
        nothing is changed.
        """
        # One conditional DELETE whose row count is the answer. The foreign key of the locks is checked at commit, so
        # they can be deleted after it.
        if active.judged_worker is not None:
            row = self.all().as_read(active)
            deleted = row._raw_delete(row.db)
        else:
            deleted = _END.execute(id=active.pk, attempt=active.attempt, state=active.state)
        return _RELEASE.execute(active_task=active.pk) if deleted else None


class ActiveTask(models.Model):
    """A task that is queued or running, or a named reservation of objects."""

    task_name = CharField(_("task name"), max_length=100)
    state = CharField(_("state"), max_length=20, choices=ActiveTaskState)
    label = CharField(_("label"), max_length=255, blank=True)
    manager_class = CharField(_("manager class"), max_length=255, blank=True)
    #: What the manager is made with, wherever one is made for this task.
    manager_config = models.JSONField(_("manager configuration"), default=dict, blank=True)
    user = user_key(_("user"), db_index=True)
    created_at = models.DateTimeField(_("created at"), db_default=Now())
    #: Since when the current attempt has been queued, or has waited for its retry.
    queued_at = models.DateTimeField(_("queued at"), db_default=Now())
    #: When a reservation expires, or when a task counts as lost that its launch has not handed to the broker by then.
    expires_at = models.DateTimeField(_("expires at"), null=True, blank=True)
    #: No second task with this key is launched as long as this one has not ended; empty for no such key. Of a
    #: reservation it is random: the manager that made it knows it by this, as SQLite uses primary keys again.
    unique_key = CharField(_("unique key"), max_length=100, blank=True)

    cluster = CharField(_("cluster"), max_length=100, blank=True)
    #: The broker's key of the message, from a broker that tells it (the ORM broker does).
    queue_receipt = CharField(_("queue receipt"), max_length=100, blank=True)
    #: Whether the next attempt goes on with the objects that have no outcome; then the task may have a ``TaskCursor``.
    goes_on = models.BooleanField(_("goes on"), default=False)
    #: Empty from commit until the broker has taken the task.
    sent_at = models.DateTimeField(_("sent at"), null=True, blank=True)

    #: Since when a queued task is known to be in no queue and with no living cluster: its broker has lost the message.
    missing_since = models.DateTimeField(_("missing since"), null=True, blank=True)

    #: The pause of its queue or function that keeps a queued task from starting; it has no message meanwhile.
    held_by = CharField(_("held by"), max_length=32, blank=True)

    #: What happens after a failure, in the form of ``RetryPolicy.to_json``.
    policy = models.JSONField(_("retry policy"), default=dict, blank=True)
    #: The signed task spec; kept only for tasks with a retry policy.
    payload = TextField(_("signed task spec"), blank=True, editable=False)
    #: Retries made under the policy so far.
    retries = models.PositiveIntegerField(_("retries"), default=0)
    #: When the task is to be queued, while it waits for its retry, or for the time that its launch has named.
    next_run_at = models.DateTimeField(_("next run at"), null=True, blank=True)

    #: Seconds after which a worker stops the task, -1 for never; empty for the limit of its cluster.
    time_limit = models.IntegerField(_("time limit"), null=True, blank=True)
    attempt = models.PositiveIntegerField(_("attempt"), default=0)
    #: The process that runs the task; empty also for a synchronous task in a transaction of its caller's, which no
    #: other process can see.
    worker = models.ForeignKey(
        WorkerProcess,
        verbose_name=_("worker process"),
        null=True,
        blank=True,
        # A process that tasks belong to is never deleted.
        on_delete=models.DO_NOTHING,
        related_name="tasks",
        db_index=False,
    )
    started_at = models.DateTimeField(_("started at"), null=True, blank=True)
    #: How long it had run when it last gave its worker back, to go on later.
    ran_before = models.DurationField(_("ran before"), default=timedelta)

    #: Since when somebody wants the running task to pause.
    pause_requested_at = models.DateTimeField(_("pause requested at"), null=True, blank=True)
    pause_requested_by = user_key(_("pause requested by"))
    #: Whether it is to keep its locks meanwhile.
    pause_keeps_locks = models.BooleanField(_("keeps its locks"), default=True)
    #: The locks that it has given back while it is paused, and those of them that are its selection, each as model
    #: label -> keys; empty if it has not.
    released_locks = models.JSONField(_("released locks"), default=dict, blank=True)
    #: How many items of its loop the last attempt had done when it stopped.
    resume_at = models.PositiveBigIntegerField(_("resume at"), default=0)

    progress_message = TextField(_("progress message"), blank=True)
    progress_current = models.BigIntegerField(_("progress current"), null=True, blank=True)
    progress_total = models.BigIntegerField(_("progress total"), null=True, blank=True)
    progress_at = models.DateTimeField(_("progress at"), null=True, blank=True)

    cancel_requested_at = models.DateTimeField(_("cancel requested at"), null=True, blank=True)
    cancel_requested_by = user_key(_("cancel requested by"), db_index=True)

    objects = ActiveTaskManager()

    if TYPE_CHECKING:
        # mypy finds it only if it happens to read the module of the processes first.
        worker_id: str | None

    #: The lost process as it was when the task was judged; set on instances that are to be given up.
    judged_worker: WorkerProcess | None = None
    #: The pause that has ended, set on instances that are queued again after it and wait on if that does not work.
    released_from: str = ""

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
            models.Index(fields=["worker"], condition=Q(worker__isnull=False), name="pcrud_active_worker"),
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


#: What changes in the row of a task that has no worker any more, and no message in the queue.
_WITHOUT_WORKER: dict[str, Any] = {
    "queued_at": Now(),
    "expires_at": None,
    "queue_receipt": "",
    "sent_at": None,
    "missing_since": None,
    "worker": None,
    "started_at": None,
    "held_by": "",
}
#: How long a task has run by now.
_RAN = F("ran_before") + Coalesce(
    models.ExpressionWrapper(Now() - F("started_at"), models.DurationField()),
    models.Value(timedelta(), models.DurationField()),
)
_NOT_ASKED: dict[str, Any] = {"pause_requested_at": None, "pause_requested_by": None}
#: What a claim changes in the row.
_CLAIMED: dict[str, Any] = {
    "state": ActiveTaskState.IN_PROGRESS,
    "attempt": F("attempt") + 1,
    "started_at": Now(),
}
_ADD = PreparedSave(ActiveTask)
_CLAIM = PreparedUpdate(
    ActiveTask,
    lambda: ActiveTask.objects.ready().filter(
        models.Exists(WorkerProcess.objects.filter(pk=Slot("worker"), lost_at=None)),
        # The label has room for a function's path as well.
        ~models.Exists(Pause.objects.all().applying_to(Slot("label", "queue"), Slot("label", "func"))),
        task_name=Slot("task_name"),
    ),
    # What a worker needs of it; the others are loaded if they are asked for.
    (
        *("id", "task_name", "state", "label", "manager_class", "manager_config", "policy", "retries", "attempt"),
        *("worker", "started_at", "progress_at", "queue_receipt", "goes_on", "resume_at", "ran_before"),
    ),
    **_CLAIMED,
    worker=Slot("worker"),
)
_WRITE_PROGRESS = PreparedUpdate(
    ActiveTask,
    lambda: ActiveTask.objects.tasks().filter(task_name=Slot("task_name")),
    ("id", "task_name", "manager_class", "manager_config", "cancel_requested_at"),
    progress_at=Now(),
)
_END = PreparedDelete(
    ActiveTask,
    lambda: ActiveTask.objects.filter(pk=Slot("id"), attempt=Slot("attempt"), state=Slot("state")),
)
_RELEASE = PreparedDelete(ConflictLock, lambda: ConflictLock.objects.filter(active_task=Slot("active_task")))


def reservation_expiry() -> Any:
    """When a reservation made now expires, as an expression on the database's clock."""
    return Now() + timedelta(seconds=app_settings.CONFLICT_TTL)
