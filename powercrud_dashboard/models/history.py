"""The history: one permanent record for each task."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from django.core.serializers.json import DjangoJSONEncoder
from django.db import connections, models
from django.db.models import Case, F, Q, Value, When
from django.db.models.functions import Coalesce, Greatest
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from powercrud_dashboard import extension
from powercrud_dashboard.models.chains import ChainQuerySet
from powercrud_dashboard.models.changes import RecordChange
from powercrud_dashboard.models.coordination import ActiveTask
from powercrud_dashboard.models.database import PrimaryManager
from powercrud_dashboard.models.fields import CharField, ResolutionField, TextField, user_key
from powercrud_dashboard.models.prepared import PreparedSave, PreparedUpdate, Slot
from powercrud_dashboard.models.statuses import (
    FINISHED,
    GIVEN_UP,
    UNFINISHED,
    FailureReason,
    Resolution,
    Source,
    TaskStatus,
)

if TYPE_CHECKING:
    from django.contrib.auth.models import AbstractUser, AnonymousUser


#: How long a worker may take to report the end of a task that was given up.
CORRECTED_WITHIN = timedelta(minutes=10)


#: The group of tests of the cluster. They are no work: statistics leave them out, and cleanup deletes them.
TEST_GROUP = "pcrud-test"


class TaskRecordQuerySet(ChainQuerySet["TaskRecord"]):
    def queued(self) -> TaskRecordQuerySet:
        return self.filter(status=TaskStatus.PENDING)

    def running(self) -> TaskRecordQuerySet:
        return self.filter(status=TaskStatus.IN_PROGRESS)

    def paused(self) -> TaskRecordQuerySet:
        return self.filter(status=TaskStatus.PAUSED)

    def failed(self) -> TaskRecordQuerySet:
        return self.filter(status=TaskStatus.FAILED)

    def completed(self) -> TaskRecordQuerySet:
        return self.filter(status=TaskStatus.SUCCESS)

    def cancelled(self) -> TaskRecordQuerySet:
        return self.filter(status=TaskStatus.CANCELLED)

    def open_failures(self) -> TaskRecordQuerySet:
        """The failed tasks that are to be dealt with: nothing has settled them, and no later try has failed too.

        Of a chain of retries it is at most the last.
        """
        return self.of_resolution(Resolution.OPEN).filter(superseded=False)

    def of_resolution(self, resolution: str) -> TaskRecordQuerySet:
        """The failed tasks with this resolution, earlier tries included."""
        # The second condition is redundant, but SQLite uses a partial index only if the query repeats its condition.
        return self.filter(resolution=resolution).exclude(resolution="")

    def chain_of(self, record: TaskRecord) -> TaskRecordQuerySet:
        """The tries of this task: the first one and all of its retries."""
        return self.filter(Q(pk=record.chain_key) | Q(chain=record.chain_key))

    def locking(self) -> TaskRecordQuerySet:
        """Lock the rows in the database that this reads, until the end of the transaction, in one order for everybody.

        What was read before may have changed by then. Rows that refer to them can still be written.
        """
        has_weaker = connections[self.db].features.has_select_for_no_key_update
        return self.order_by("pk").select_for_update(no_key=has_weaker)

    def lock(self) -> bool:
        """Do so without reading more of them; return whether there are any."""
        return bool(list(self.locking().values_list("pk")))

    def not_being_retried(self) -> TaskRecordQuerySet:
        """Leave out the tasks of which a try is queued or running."""
        under_way = TaskRecord.objects.using(self.db).unfinished().filter(chain=models.OuterRef("chain_or_pk"))
        return self.alias(chain_or_pk=Coalesce("chain", "pk")).filter(~models.Exists(under_way))

    def not_completed_later(self) -> TaskRecordQuerySet:
        """Leave out the tasks of which a later try has completed."""
        return self.alias(chain_or_pk=Coalesce("chain", "pk")).filter(~models.Exists(self._completed_later()))

    def not_done_later(self) -> TaskRecordQuerySet:
        """Leave out the tasks whose work a later try has done. One for some objects only may have left others."""
        done = self._completed_later().filter(is_partial=False)
        # Of a failure its resolution tells.
        is_left = Q(resolution__in=[Resolution.OPEN, Resolution.DISMISSED]) | ~models.Exists(done)
        return self.alias(chain_or_pk=Coalesce("chain", "pk")).filter(is_left)

    def _completed_later(self) -> TaskRecordQuerySet:
        completed = TaskRecord.objects.using(self.db).completed()
        return completed.filter(chain=models.OuterRef("chain_or_pk"), pk__gt=models.OuterRef("pk"))

    def finished(self) -> TaskRecordQuerySet:
        return self.filter(status__in=FINISHED)

    def unfinished(self) -> TaskRecordQuerySet:
        return self.filter(status__in=UNFINISHED)

    def visible_to(self, user: AbstractUser | AnonymousUser) -> TaskRecordQuerySet:
        """The records this person may see: all with the view permission, else the own ones.

        ``DASHBOARD_CLASS`` may have other rules.
        """
        if not user.is_authenticated or not user.is_active:
            return self.none()
        dashboard = extension.dashboard()
        return self.all() if dashboard.may_view_all(user) else dashboard.visible_tasks(self.all(), user)

    def abandoned(self, seconds: float) -> TaskRecordQuerySet:
        """Unfinished records of managers' tasks that no queued or running task stands behind any more."""
        active = ActiveTask.objects.using(self.db).tasks().filter(task_name=models.OuterRef("task_name"))
        old = timezone.now() - timedelta(seconds=seconds)
        return self.unfinished().own().filter(~models.Exists(active), created_at__lt=old)

    def own(self) -> TaskRecordQuerySet:
        """The records of managers' tasks, without those that were only observed."""
        return self.filter(source="")

    def silent(self, seconds: float) -> TaskRecordQuerySet:
        """Unfinished observed records of which nothing has been heard for so long, or since they were due."""
        long_ago = timezone.now() - timedelta(seconds=seconds)
        since = Greatest("created_at", Coalesce("started_at", "created_at"), Coalesce("run_after", "created_at"))
        return (
            self.unfinished()
            .exclude(source="")
            .filter(created_at__lt=long_ago)
            .alias(since=since)
            .filter(since__lt=long_ago)
        )

    def expired(self, status: str, days: float) -> TaskRecordQuerySet:
        """Records of this status that ended more than so many days ago."""
        return self.filter(status=status, finished_at__lt=timezone.now() - timedelta(days=days))

    def uncounted(self) -> TaskRecordQuerySet:
        """Ended records that the statistics do not include yet."""
        return self.filter(is_counted=False, finished_at__isnull=False).exclude(group=TEST_GROUP)

    def tests_of_the_cluster(self) -> TaskRecordQuerySet:
        # The second condition is that of a partial index, which SQLite uses only if the query repeats it.
        return self.filter(group=TEST_GROUP).exclude(group="")

    def inferred_ends(self) -> TaskRecordQuerySet:
        """Records of tasks that were given up; their workers may still report how they really ended.

        So it is with tasks of plain django-q2 that were cancelled before a worker began them: a cluster may have had
        their messages in hand.
        """
        unstarted = Q(status=TaskStatus.CANCELLED, source=Source.DJANGO_Q, started_at=None)
        return self.filter(Q(status=TaskStatus.FAILED, failure_reason__in=GIVEN_UP) | unstarted)


_TaskRecordBase = PrimaryManager.from_queryset(TaskRecordQuerySet)


class TaskRecordManager(_TaskRecordBase["TaskRecord"]):
    """What is written of one task at a time."""

    def add(self, record: TaskRecord) -> None:
        """Insert a new record."""
        _ADD_RECORD.save(record)

    def change(self, task_name: str, change: RecordChange) -> TaskRecord | None:
        """Change a record that has not ended, or one whose end was inferred and that a worker's report corrects.

        Return the record, without its wide columns, or None if there is no such record to change.
        """
        columns = change.columns
        if change.is_reported_end:
            report = _REPORT_FAILURE if columns["status"] == TaskStatus.FAILED else _REPORT_END
            return report.first(columns, task_name=task_name, **columns)
        rows = self.filter(task_name=task_name, status__in=UNFINISHED)
        if columns["status"] == TaskStatus.IN_PROGRESS:
            # The start of an attempt is recorded once, and never after the attempt.
            rows = rows.filter(attempts__lt=columns["attempts"])
        elif columns["status"] == TaskStatus.FAILED:
            columns = {**columns, "resolution": Resolution.OPEN}
        return self.known_of(task_name) if rows.update(**columns) else None

    def known_of(self, task_name: str) -> TaskRecord | None:
        """Return the record without its wide columns; None if there is none."""
        return self.filter(task_name=task_name).only(*_KNOWN).first()


#: The columns by which the tabs of the list are counted.
_TAB_COLUMNS = ("status", "resolution", "superseded")


class TaskRecord(models.Model):
    """The whole history of one task in one row; it outlives the task."""

    task_name = CharField(_("task name"), max_length=100, unique=True)
    label = CharField(_("label"), max_length=255)
    func = CharField(_("function"), max_length=255)
    status = CharField(_("status"), max_length=20, choices=TaskStatus, default=TaskStatus.PENDING)
    failure_reason = CharField(_("failure reason"), max_length=20, choices=FailureReason, blank=True)
    message = TextField(_("message"), blank=True)

    user = user_key(_("user"))
    #: The person's name at launch, which stays when the account is deleted.
    user_label = CharField(_("launched by"), max_length=255, blank=True)

    affected_objects = models.JSONField(_("affected objects"), default=list, blank=True, encoder=DjangoJSONEncoder)
    affected_count = models.PositiveIntegerField(_("number of objects"), default=0)
    #: The first few objects as ``{"model": label, "id": key, "text": description}``, for lists; model and id
    #: are empty where only the description is known.
    first_objects = models.JSONField(_("first objects"), default=list, blank=True, encoder=DjangoJSONEncoder)
    #: The models of the objects, as labels in lower case with a space between.
    model_labels = TextField(_("models"), blank=True)
    #: Whether the task reports the outcome of each object.
    by_object = models.BooleanField(_("reports each object"), default=False)
    done_count = models.PositiveIntegerField(_("objects done"), default=0)
    failed_count = models.PositiveIntegerField(_("objects failed"), default=0)
    skipped_count = models.PositiveIntegerField(_("objects skipped"), default=0)
    #: Of a task that goes on where it was stopped: the key of the last object, in their order, that has an outcome.
    position = CharField(_("position"), max_length=255, blank=True)
    conflict_ids = models.JSONField(_("locked objects"), default=dict, blank=True, encoder=DjangoJSONEncoder)
    task_args = models.JSONField(_("arguments"), default=list, blank=True, encoder=DjangoJSONEncoder)
    #: The names that the function's signature gives to the arguments, so that secret ones are not shown.
    argument_names = models.JSONField(_("names of the arguments"), default=list, blank=True, editable=False)
    task_kwargs = models.JSONField(_("keyword arguments"), default=dict, blank=True, encoder=DjangoJSONEncoder)
    #: The signed task spec, from which a retry is launched. It is read only after its signature was verified.
    payload = TextField(_("signed task spec"), blank=True, editable=False)

    result = models.JSONField(_("result"), null=True, blank=True, encoder=DjangoJSONEncoder)
    error = TextField(_("error"), blank=True)
    exception_class = CharField(_("exception class"), max_length=255, blank=True)
    #: What errors of the same kind share: class and message without the parts that vary.
    error_pattern = CharField(_("error pattern"), max_length=255, blank=True)
    traceback = TextField(_("traceback"), blank=True)
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
    #: The key of the first try, which stays when that is deleted; empty for the first try itself.
    chain = models.PositiveBigIntegerField(_("chain of retries"), null=True, blank=True, editable=False)
    #: Whether it was launched for only some of the objects of the task that it is a retry of.
    is_partial = models.BooleanField(_("for some objects only"), default=False)
    #: What became of the failure; empty if the task has not failed.
    resolution = ResolutionField(_("resolution"), max_length=20, choices=Resolution, blank=True)
    resolution_at = models.DateTimeField(_("settled at"), null=True, blank=True)
    #: Who has dismissed the failure, and why.
    resolution_by = CharField(_("settled by"), max_length=255, blank=True)
    resolution_note = TextField(_("note"), blank=True)
    #: Whether a later try of the chain has failed too: then that one is the open failure.
    superseded = models.BooleanField(_("failed again later"), default=False)
    group = CharField(_("group"), max_length=100, blank=True)
    cluster = CharField(_("cluster"), max_length=100, blank=True)
    #: What has told of a task that no manager of this package runs; empty for a manager's own.
    source = CharField(_("observed through"), max_length=20, choices=Source, blank=True)
    #: When it was to start at the earliest, if the launch says so.
    run_after = models.DateTimeField(_("run after"), null=True, blank=True)
    #: The project's release at launch (``DASHBOARD_RELEASE``).
    release = CharField(_("release"), max_length=100, blank=True)
    #: Where the last attempt ran.
    worker_host = CharField(_("host of the worker"), max_length=255, blank=True)
    worker_pid = models.PositiveIntegerField(_("process id of the worker"), null=True, blank=True)
    manager_class = CharField(_("manager class"), max_length=255)
    manager_config = models.JSONField(_("manager configuration"), default=dict, blank=True)

    created_at = models.DateTimeField(_("created at"), default=timezone.now)
    started_at = models.DateTimeField(_("started at"), null=True, blank=True)
    finished_at = models.DateTimeField(_("finished at"), null=True, blank=True)
    #: How long workers had it, pauses and slices not counted; zero as long as the task has not ended.
    run_time = models.DurationField(_("run time"), default=timedelta)
    #: Whether the statistics include the end that the record tells of.
    is_counted = models.BooleanField(_("is counted"), default=False, editable=False)
    #: What was counted of an inferred end, which may be corrected: the statistics take it back then.
    counted_as = models.JSONField(_("counted as"), null=True, editable=False)

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
            ("pause_taskrecord", _("Can pause and resume tasks")),
            ("dismiss_taskrecord", _("Can dismiss and reopen failures")),
        ]
        indexes = [
            models.Index(fields=["-created_at", "-id"], name="pcrud_record_newest"),
            models.Index(fields=["status", "-created_at", "-id"], name="pcrud_record_status"),
            models.Index(fields=["user", "-created_at", "-id", *_TAB_COLUMNS], name="pcrud_record_user"),
            models.Index(fields=["status", "finished_at"], name="pcrud_record_retention"),
            models.Index(
                fields=["created_at"],
                condition=Q(status__in=["pending", "in_progress", "paused"]),
                name="pcrud_record_unfinished",
            ),
            # The list's other orders and filters. Those with the status at their end also answer the tabs' counts.
            models.Index(fields=["-run_time", "-id"], name="pcrud_record_run_time"),
            models.Index(fields=["status", "-run_time", "-id"], name="pcrud_record_status_run_time"),
            models.Index(
                fields=["-finished_at", "-id"], condition=Q(finished_at__isnull=False), name="pcrud_record_finished"
            ),
            models.Index(
                fields=["group", "-created_at", "-id", *_TAB_COLUMNS], condition=~Q(group=""), name="pcrud_record_group"
            ),
            models.Index(
                fields=["cluster", "-created_at", "-id", *_TAB_COLUMNS],
                condition=~Q(cluster=""),
                name="pcrud_record_cluster",
            ),
            models.Index(
                fields=["error_pattern", "-created_at", "-id", *_TAB_COLUMNS],
                condition=~Q(error_pattern=""),
                name="pcrud_record_pattern",
            ),
            # The newest runs of a function in each status.
            models.Index(
                fields=["func", "status", "-finished_at", "-id"],
                condition=Q(finished_at__isnull=False),
                name="pcrud_record_runs",
            ),
            # What the statistics do not include yet.
            models.Index(
                fields=["finished_at"],
                condition=Q(is_counted=False, finished_at__isnull=False),
                name="pcrud_record_uncounted",
            ),
            # For when a kind of failure was seen first.
            models.Index(
                fields=["error_pattern", "func", "finished_at"],
                condition=~Q(resolution=""),
                name="pcrud_record_first_seen",
            ),
            # The failures by what became of them, in the orders of the list.
            models.Index(
                fields=["resolution", "-created_at", "-id", "superseded"],
                condition=~Q(resolution=""),
                name="pcrud_record_resolution",
            ),
            models.Index(
                fields=["resolution", "-finished_at", "-id", "superseded"],
                condition=~Q(resolution=""),
                name="pcrud_record_res_finished",
            ),
            models.Index(
                fields=["resolution", "-run_time", "-id", "superseded"],
                condition=~Q(resolution=""),
                name="pcrud_record_res_run_time",
            ),
            models.Index(fields=["source", "finished_at", "id"], condition=~Q(source=""), name="pcrud_record_observed"),
            models.Index(fields=["chain"], condition=Q(chain__isnull=False), name="pcrud_record_chain"),
            models.Index(
                fields=["exception_class", "-created_at", "-id", "status"],
                condition=~Q(exception_class=""),
                name="pcrud_record_error_class",
            ),
            models.Index(
                fields=["failure_reason", "-created_at", "-id", "status"],
                condition=~Q(failure_reason=""),
                name="pcrud_record_reason",
            ),
            models.Index(
                fields=["-created_at", "-id"],
                condition=Q(failed_count__gt=0),
                name="pcrud_record_with_errors",
            ),
            models.Index(fields=["retry_of"], condition=Q(retry_of__isnull=False), name="pcrud_record_retry_of"),
            models.Index(fields=["first_try"], condition=Q(first_try__isnull=False), name="pcrud_record_first_try"),
        ]

    def __str__(self) -> str:
        return self.label or self.task_name

    def delete(self, using: str | None = None, keep_parents: bool = False) -> tuple[int, dict[str, int]]:
        with TaskRecord.objects.filter(pk=self.pk).leaving_chains():
            return super().delete(using, keep_parents)

    @property
    def is_finished(self) -> bool:
        return self.status in FINISHED

    @property
    def chain_key(self) -> int:
        """What the tries of a task have in common: the key of the first."""
        return self.pk if self.chain is None else self.chain

    @property
    def is_settled(self) -> bool:
        """Whether the task has failed, and a later try has completed or somebody has dismissed the failure."""
        return self.resolution in (Resolution.RESOLVED, Resolution.DISMISSED)

    @property
    def is_done(self) -> bool:
        """Whether the work is done, by this task or by a later try, so that a retry would do it a second time."""
        return self.status == TaskStatus.SUCCESS or self.resolution == Resolution.RESOLVED

    @property
    def time_to_resolution(self) -> timedelta | None:
        """How long after the failure a later try completed, or somebody dismissed it."""
        if self.resolution_at is None or self.finished_at is None:
            return None
        return max(self.resolution_at - self.finished_at, timedelta())

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
        """How long the task waited for a worker, or has waited so far; from when it was to start at the earliest."""
        until = self.started_at or self.finished_at or timezone.now()
        return max(until - max(self.created_at, self.run_after or self.created_at), timedelta())

    @property
    def is_observed(self) -> bool:
        """Whether no manager of this package runs the task."""
        return bool(self.source)

    @property
    def is_plain(self) -> bool:
        """Whether it is a task of plain django-q2, which can be cancelled and launched again."""
        return self.source == Source.DJANGO_Q

    @property
    def may_be_corrected(self) -> bool:
        """Whether the task was given up so recently that its worker may still report how it really ended."""
        is_inferred = self.status == TaskStatus.FAILED and self.failure_reason in GIVEN_UP
        return is_inferred and self.finished_at is not None and timezone.now() - self.finished_at < CORRECTED_WITHIN

    @property
    def duration(self) -> timedelta | None:
        """How long the task ran, or has run so far; None if no worker began it."""
        if self.finished_at is not None:
            return self.run_time if self.started_at or self.run_time else None
        return None if self.started_at is None else timezone.now() - self.started_at


#: The columns that the writer of events needs of a record.
_KNOWN = ("id", "task_name", "affected_count", "by_object", "created_at", "started_at", "user", "chain")
_ADD_RECORD = PreparedSave(TaskRecord)


def _without_reported_end() -> TaskRecordQuerySet:
    open_ended = TaskRecord.objects.unfinished() | TaskRecord.objects.inferred_ends()
    return open_ended.filter(task_name=Slot("task_name"))


_REPORT_END = PreparedUpdate(TaskRecord, _without_reported_end, _KNOWN)
_REPORT_FAILURE = PreparedUpdate(
    TaskRecord,
    _without_reported_end,
    _KNOWN,
    # An inferred failure may be settled already, and stays so.
    resolution=Case(
        When(resolution="", then=Value(Resolution.OPEN)), default=F("resolution"), output_field=models.CharField()
    ),
)
