"""What happened: one record a task for good, its events and the objects it worked on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core.serializers.json import DjangoJSONEncoder
from django.db import models
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from powercrud_dashboard.models.coordination import ActiveTask
from powercrud_dashboard.models.managers import OfPrimary
from powercrud_dashboard.models.prepared import PreparedInsert, PreparedSave, PreparedSelect, PreparedUpdate, Slot
from powercrud_dashboard.models.status import FINISHED, GIVEN_UP, UNFINISHED, FailureReason, TaskStatus

if TYPE_CHECKING:
    from django.contrib.auth.models import AbstractUser, AnonymousUser


#: Events that are committed while later ones, with higher keys, already are.
COMMITTED_OUT_OF_ORDER = 20

#: More than these are inserted in one statement, which has to be written for that.
FEW_EVENTS = 3


class TaskRecordQuerySet(models.QuerySet["TaskRecord"]):
    def queued(self) -> TaskRecordQuerySet:
        return self.filter(status=TaskStatus.PENDING)

    def running(self) -> TaskRecordQuerySet:
        return self.filter(status=TaskStatus.IN_PROGRESS)

    def failed(self) -> TaskRecordQuerySet:
        return self.filter(status=TaskStatus.FAILED)

    def completed(self) -> TaskRecordQuerySet:
        return self.filter(status=TaskStatus.SUCCESS)

    def cancelled(self) -> TaskRecordQuerySet:
        return self.filter(status=TaskStatus.CANCELLED)

    def finished(self) -> TaskRecordQuerySet:
        return self.filter(status__in=FINISHED)

    def unfinished(self) -> TaskRecordQuerySet:
        return self.filter(status__in=UNFINISHED)

    def visible_to(self, user: AbstractUser | AnonymousUser) -> TaskRecordQuerySet:
        """The records this person may see: all with the view permission, else the own ones."""
        if not user.is_authenticated or not user.is_active:
            return self.none()
        if user.has_perm("powercrud_dashboard.view_taskrecord"):
            return self.all()
        return self.filter(user_id=user.pk)

    def abandoned(self, seconds: float) -> TaskRecordQuerySet:
        """Unfinished records that no queued or running task stands behind any more."""
        active = ActiveTask.objects.using(self.db).tasks().filter(task_name=models.OuterRef("task_name"))
        old = timezone.now() - timedelta(seconds=seconds)
        return self.unfinished().filter(~models.Exists(active), created_at__lt=old)

    def expired(self, status: str, days: float) -> TaskRecordQuerySet:
        """Records of this status that ended more than so many days ago."""
        return self.filter(status=status, finished_at__lt=timezone.now() - timedelta(days=days))

    def guessed(self) -> TaskRecordQuerySet:
        """Failed records of tasks that were given up, which may still turn out to have ended in another way."""
        return self.filter(status=TaskStatus.FAILED, failure_reason__in=GIVEN_UP)


_TaskRecordBase = OfPrimary.from_queryset(TaskRecordQuerySet)


class TaskRecordManager(_TaskRecordBase["TaskRecord"]):
    """What is written of one task at a time."""

    def add(self, record: TaskRecord) -> None:
        """Insert a new record."""
        _ADD_RECORD.execute(record)

    def record_start(self, task_name: str, *, attempt: int) -> bool:
        return self._move(task_name, status=TaskStatus.IN_PROGRESS, started_at=timezone.now(), attempts=attempt)

    def record_postponed(self, task_name: str, *, reason: FailureReason | str, **facts: Any) -> bool:
        """A try has failed, and the task waits for its next one."""
        return self._move(task_name, status=TaskStatus.PENDING, failure_reason=reason, started_at=None, **facts)

    def record_success(self, record: TaskRecord, **facts: Any) -> bool:
        return self._end(
            record,
            status=TaskStatus.SUCCESS,
            failure_reason="",
            error="",
            error_pattern="",
            exception_class="",
            traceback="",
            **facts,
        )

    def record_failure(self, record: TaskRecord, *, reason: FailureReason | str, **facts: Any) -> bool:
        return self._end(record, status=TaskStatus.FAILED, failure_reason=reason, **facts)

    def record_cancel(self, record: TaskRecord, **facts: Any) -> bool:
        return self._end(record, status=TaskStatus.CANCELLED, **facts)

    def known_of(self, task_name: str) -> TaskRecord | None:
        """Return the record with what its later events need to know of it, without its wide columns."""
        return _KNOWN.first(task_name=task_name)

    def _end(self, record: TaskRecord, **facts: Any) -> bool:
        now = timezone.now()
        ran_for = now - record.started_at if record.started_at else timedelta()
        return self._move(record.task_name, finished_at=now, run_time=ran_for, **facts)

    def _move(self, task_name: str, **facts: Any) -> bool:
        """Change a record that has not ended, or whose end was a guess that the worker now corrects."""
        ended_for_sure = facts["status"] in (TaskStatus.SUCCESS, TaskStatus.FAILED)
        corrects = ended_for_sure and facts.get("failure_reason") not in GIVEN_UP
        change = _CORRECT if corrects else _CHANGE
        return change.execute(columns=facts, task_name=task_name, **facts) == 1


class TaskRecord(models.Model):
    """The whole history of one task in one row; it outlives the task."""

    task_name = models.CharField(_("task name"), max_length=100, unique=True)
    label = models.CharField(_("label"), max_length=255)
    func = models.CharField(_("function"), max_length=255)
    status = models.CharField(_("status"), max_length=20, choices=TaskStatus, default=TaskStatus.PENDING)
    failure_reason = models.CharField(_("failure reason"), max_length=20, choices=FailureReason, blank=True)
    message = models.TextField(_("message"), blank=True)

    user = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        verbose_name=_("user"),
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="+",
        db_index=False,
    )
    #: The person's name at launch, which stays when the account is deleted.
    user_label = models.CharField(_("launched by"), max_length=255, blank=True)

    affected_objects = models.JSONField(_("affected objects"), default=list, blank=True, encoder=DjangoJSONEncoder)
    affected_count = models.PositiveIntegerField(_("number of objects"), default=0)
    #: The first few objects as ``{"model": label, "id": key, "text": words}``, for lists; model and id
    #: are empty where only words are known.
    first_objects = models.JSONField(_("first objects"), default=list, blank=True, encoder=DjangoJSONEncoder)
    #: The models of the objects, as labels in lower case with a space between.
    model_labels = models.TextField(_("models"), blank=True)
    #: Whether the task says of each object what became of it.
    by_object = models.BooleanField(_("reports each object"), default=False)
    done_count = models.PositiveIntegerField(_("objects done"), default=0)
    failed_count = models.PositiveIntegerField(_("objects failed"), default=0)
    skipped_count = models.PositiveIntegerField(_("objects skipped"), default=0)
    conflict_ids = models.JSONField(_("locked objects"), default=dict, blank=True, encoder=DjangoJSONEncoder)
    task_args = models.JSONField(_("arguments"), default=list, blank=True, encoder=DjangoJSONEncoder)
    task_kwargs = models.JSONField(_("keyword arguments"), default=dict, blank=True, encoder=DjangoJSONEncoder)
    #: What a retry needs, pickled and signed. Only ever loaded after its signature was verified.
    payload = models.TextField(_("signed payload"), blank=True, editable=False)

    result = models.JSONField(_("result"), null=True, blank=True, encoder=DjangoJSONEncoder)
    error = models.TextField(_("error"), blank=True)
    exception_class = models.CharField(_("exception class"), max_length=255, blank=True)
    #: What errors of the same kind share: class and message without the parts that vary.
    error_pattern = models.CharField(_("error pattern"), max_length=255, blank=True)
    traceback = models.TextField(_("traceback"), blank=True)
    progress_current = models.BigIntegerField(_("progress current"), null=True, blank=True)
    progress_total = models.BigIntegerField(_("progress total"), null=True, blank=True)

    attempts = models.PositiveIntegerField(_("attempts"), default=0)
    retry_of = models.ForeignKey(
        "self",
        verbose_name=_("retry of"),
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="retries",
        db_index=False,
    )
    #: The task that a chain of retries began with; empty for that task itself.
    first_try = models.ForeignKey(
        "self",
        verbose_name=_("first try"),
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="later_tries",
        db_index=False,
    )
    group = models.CharField(_("group"), max_length=100, blank=True)
    cluster = models.CharField(_("cluster"), max_length=100, blank=True)
    manager_class = models.CharField(_("manager class"), max_length=255)

    created_at = models.DateTimeField(_("created at"), default=timezone.now)
    started_at = models.DateTimeField(_("started at"), null=True, blank=True)
    finished_at = models.DateTimeField(_("finished at"), null=True, blank=True)
    #: From start to end; zero as long as the task has not ended, or if no worker began it.
    run_time = models.DurationField(_("run time"), default=timedelta)

    objects = TaskRecordManager()

    class Meta:
        verbose_name = _("task")
        verbose_name_plural = _("tasks")
        ordering = ["-created_at", "-pk"]
        # Who may change a task, and retry it, may retry it with other arguments.
        default_permissions = ("view", "change", "delete")
        permissions = [
            ("retry_taskrecord", _("Can retry tasks")),
            ("cancel_taskrecord", _("Can cancel tasks")),
        ]
        indexes = [
            models.Index(fields=["-created_at", "-id"], name="pcrud_record_newest"),
            models.Index(fields=["status", "-created_at", "-id"], name="pcrud_record_status"),
            models.Index(fields=["user", "-created_at", "-id", "status"], name="pcrud_record_user"),
            models.Index(fields=["status", "finished_at"], name="pcrud_record_retention"),
            models.Index(
                fields=["created_at"],
                condition=Q(status__in=["pending", "in_progress"]),
                name="pcrud_record_unfinished",
            ),
            # The list's other orders and filters. Those with the status at their end also answer the tabs' counts.
            models.Index(fields=["-run_time", "-id"], name="pcrud_record_run_time"),
            models.Index(fields=["status", "-run_time", "-id"], name="pcrud_record_status_run_time"),
            models.Index(
                fields=["-finished_at", "-id"], condition=Q(finished_at__isnull=False), name="pcrud_record_finished"
            ),
            models.Index(
                fields=["group", "-created_at", "-id", "status"], condition=~Q(group=""), name="pcrud_record_group"
            ),
            models.Index(
                fields=["cluster", "-created_at", "-id", "status"],
                condition=~Q(cluster=""),
                name="pcrud_record_cluster",
            ),
            models.Index(
                fields=["error_pattern", "-created_at", "-id", "status"],
                condition=~Q(error_pattern=""),
                name="pcrud_record_pattern",
            ),
            models.Index(fields=["retry_of"], condition=Q(retry_of__isnull=False), name="pcrud_record_retry_of"),
            models.Index(fields=["first_try"], condition=Q(first_try__isnull=False), name="pcrud_record_first_try"),
        ]

    def __str__(self) -> str:
        return self.label or self.task_name

    @property
    def is_finished(self) -> bool:
        return self.status in FINISHED

    @property
    def has_failed_objects(self) -> bool:
        """Whether the task went on to its end past objects that failed."""
        return self.status == TaskStatus.SUCCESS and self.failed_count > 0

    @property
    def error_line(self) -> str:
        """The error's last line, which says what went wrong where the others say where."""
        lines = [line.strip() for line in self.error.splitlines() if line.strip()]
        return lines[-1] if lines else ""

    @property
    def waiting_time(self) -> timedelta:
        """How long the task waited for a worker, or has waited so far."""
        return (self.started_at or self.finished_at or timezone.now()) - self.created_at

    @property
    def duration(self) -> timedelta | None:
        """How long the task ran, or has run so far; None if no worker began it."""
        if self.started_at is None:
            return None
        return (self.finished_at or timezone.now()) - self.started_at


_ADD_RECORD = PreparedSave(TaskRecord)
_CHANGE = PreparedUpdate(TaskRecord, lambda: TaskRecord.objects.unfinished().filter(task_name=Slot("task_name")))
_CORRECT = PreparedUpdate(
    TaskRecord,
    lambda: (TaskRecord.objects.unfinished() | TaskRecord.objects.guessed()).filter(task_name=Slot("task_name")),
)
_KNOWN = PreparedSelect(
    TaskRecord,
    lambda: (
        TaskRecord.objects.order_by()
        .filter(task_name=Slot("task_name"))
        .only("task_name", "affected_count", "by_object", "started_at")
    ),
)


class TaskEventQuerySet(models.QuerySet["TaskEvent"]):
    def of_task(self, task_name: str) -> TaskEventQuerySet:
        return self.filter(record__task_name=task_name)


_TaskEventBase = OfPrimary.from_queryset(TaskEventQuerySet)


class TaskEventManager(_TaskEventBase["TaskEvent"]):
    """What is written and asked of all events."""

    def add(self, events: list[TaskEvent]) -> None:
        """Insert events; no signals are sent."""
        if len(events) > FEW_EVENTS:
            self.bulk_create(events)
            return
        for event in events:
            _ADD_EVENT.execute(event)

    def newest_state(self) -> str:
        """Return a text that differs when something has happened.

        It tells of the newest few events, as one may be committed after others with higher keys.
        """
        newest = _NEWEST.keys()
        return f"{newest[0]}-{sum(newest[0] - pk for pk in newest)}" if newest else ""


class TaskEvent(models.Model):
    """Something that happened to a task, when, and by whom."""

    record = models.ForeignKey(TaskRecord, verbose_name=_("task"), on_delete=models.CASCADE, related_name="events")
    event = models.CharField(_("event"), max_length=30)
    timestamp = models.DateTimeField(_("time"), default=timezone.now)
    actor = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        verbose_name=_("actor"),
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="+",
        db_index=False,
    )
    actor_label = models.CharField(_("actor's name"), max_length=255, blank=True)
    message = models.TextField(_("message"), blank=True)
    payload = models.JSONField(_("details"), default=dict, blank=True, encoder=DjangoJSONEncoder)

    objects = TaskEventManager()

    class Meta:
        verbose_name = _("task event")
        verbose_name_plural = _("task events")
        ordering = ["timestamp", "pk"]
        default_permissions = ()
        indexes = [models.Index(fields=["record", "timestamp", "id"], name="pcrud_event_timeline")]

    def __str__(self) -> str:
        return f"{self.event} {self.timestamp:%Y-%m-%d %H:%M:%S}"


_ADD_EVENT = PreparedInsert(TaskEvent)
_NEWEST = PreparedSelect(TaskEvent, lambda: TaskEvent.objects.order_by("-pk").only("pk")[:COMMITTED_OUT_OF_ORDER])


class Outcome(models.TextChoices):
    DONE = "done", _("Done")
    FAILED = "failed", _("Failed")
    SKIPPED = "skipped", _("Skipped")
    NOT_REACHED = "not_reached", _("Not reached")


@dataclass(frozen=True)
class ObjectOutcome:
    """What became of one object."""

    model_label: str
    object_id: str
    outcome: str
    error: str = ""
    text: str = ""


class TaskObjectQuerySet(models.QuerySet["TaskObject"]):
    def touching(self, model_label: str, object_id: str) -> TaskObjectQuerySet:
        """The entries of this object, for "which tasks worked on it"."""
        return self.filter(model_label=model_label, object_id=object_id)

    def record_outcomes(self, record_pk: int, outcomes: Iterable[ObjectOutcome]) -> None:
        """Write what became of objects; those that were not noted before are added."""
        for item in outcomes:
            facts = {"outcome": item.outcome, "error": item.error, **({"text": item.text} if item.text else {})}
            known = self.filter(record=record_pk, model_label=item.model_label, object_id=item.object_id)
            if not known.update(**facts):
                self.create(record_id=record_pk, model_label=item.model_label, object_id=item.object_id, **facts)

    def close(self, record: TaskRecord, outcome: str) -> None:
        """Give this outcome to the task's objects that have none yet."""
        self.filter(record=record, outcome="").update(outcome=outcome)

    def create_for(
        self, record: TaskRecord, keys: Iterable[tuple[str, str]], texts: Mapping[tuple[str, str], str]
    ) -> None:
        """Note the objects, as (model label, object id), that a task was launched for, and what they are called."""
        self.bulk_create(
            TaskObject(record=record, model_label=label, object_id=object_id, text=texts.get((label, object_id), ""))
            for label, object_id in keys
        )


class TaskObject(models.Model):
    """One object that a task was launched for, and what became of it."""

    record = models.ForeignKey(
        TaskRecord, verbose_name=_("task"), on_delete=models.CASCADE, related_name="objects_worked_on"
    )
    model_label = models.CharField(_("model"), max_length=201)
    object_id = models.CharField(_("object id"), max_length=255)
    text = models.CharField(_("object"), max_length=255, blank=True)
    #: Empty until the task says what became of this object.
    outcome = models.CharField(_("outcome"), max_length=20, choices=Outcome, blank=True)
    error = models.TextField(_("error"), blank=True)

    objects = OfPrimary.from_queryset(TaskObjectQuerySet)()

    class Meta:
        verbose_name = _("task object")
        verbose_name_plural = _("task objects")
        default_permissions = ()
        # The key first: it tells more, and is also looked for without its model.
        indexes = [models.Index(fields=["object_id", "model_label", "-record"], name="pcrud_object_key")]

    def __str__(self) -> str:
        return self.text or f"{self.model_label} {self.object_id}"
