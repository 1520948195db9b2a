"""The objects that tasks work on, and what became of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from django.db import models
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy

from powercrud_dashboard.models.database import PrimaryManager
from powercrud_dashboard.models.fields import CharField, TextField
from powercrud_dashboard.models.history import TaskRecord
from powercrud_dashboard.models.labels import label_of_rows, name_of_row
from powercrud_dashboard.models.prepared import PreparedUpdate, Slot
from powercrud_dashboard.text import MESSAGE, SHORT, clean_text

#: Rows that one statement inserts, so that it has no more parameters than PostgreSQL takes.
ROWS_AT_ONCE = 10_000
#: Characters of the traceback of one object, of which a task may have thousands.
TRACEBACK = 10_000


class Outcome(models.TextChoices):
    DONE = "done", _("Done")
    FAILED = "failed", _("Failed")
    SKIPPED = "skipped", pgettext_lazy("of an object", "Skipped")
    NOT_REACHED = "not_reached", _("Not reached")


@dataclass(frozen=True)
class ObjectOutcome:
    """The outcome of one object."""

    model_label: str
    object_id: str
    outcome: str
    error: str = ""
    text: str = ""
    traceback: str = ""


class TaskObjectQuerySet(models.QuerySet["TaskObject"]):
    def touching(self, model_label: str, object_id: object) -> TaskObjectQuerySet:
        """The entries of this object, for "which tasks worked on it".

        ``model_label`` may be that of a proxy model, or of a child or parent model (multi-table inheritance).
        """
        return self.filter(model_label=label_of_rows(model_label), object_id=str(object_id))

    def record_outcomes(self, record_pk: int, outcomes: Iterable[ObjectOutcome]) -> None:
        """Write the outcomes of objects; entries that are missing are added."""
        for item in outcomes:
            facts = {
                "outcome": item.outcome,
                "error": clean_text(item.error, MESSAGE),
                "traceback": clean_text(item.traceback, TRACEBACK),
            }
            if text := clean_text(item.text, SHORT):
                facts["text"] = text
            known = self.filter(record=record_pk, model_label=item.model_label, object_id=item.object_id)
            if not known.update(**facts):
                self.create(record_id=record_pk, model_label=item.model_label, object_id=item.object_id, **facts)

    def update_outcome(self, task_name: str, item: ObjectOutcome) -> bool:
        """Write the outcome of one object of a task in one statement. Return whether there is an entry for it."""
        columns: dict[str, Any] = {
            "outcome": item.outcome,
            "error": clean_text(item.error, MESSAGE),
            "traceback": clean_text(item.traceback, TRACEBACK),
        }
        if text := clean_text(item.text, SHORT):
            columns["text"] = text
        which = {"model_label": item.model_label, "object_id": item.object_id, "task_name": task_name}
        return _UPDATE_OUTCOME.execute(columns, **which, **columns) > 0

    def count_outcomes(self, record: TaskRecord) -> dict[str, int]:
        """Return how many of the task's objects have which outcome."""
        rows = self.filter(record=record).order_by().values_list("outcome")
        return dict(rows.annotate(models.Count("pk")))

    def close(self, record: TaskRecord, outcome: str) -> None:
        """Give this outcome to those of the task's objects that have none."""
        self.filter(record=record, outcome="").update(outcome=outcome)

    def left_of(self, record: TaskRecord) -> TaskObjectQuerySet:
        """The task's objects that neither it nor a later try of its chain has done."""
        later = TaskRecord.objects.chain_of(record).filter(pk__gt=record.pk)
        done_later = TaskObject.objects.filter(
            object_id=models.OuterRef("object_id"),
            model_label=models.OuterRef("model_label"),
            record__in=list(later.values_list("pk", flat=True)),
            outcome=Outcome.DONE,
        )
        left = self.filter(record=record).exclude(outcome__in=[Outcome.DONE, Outcome.SKIPPED])
        return left.filter(~models.Exists(done_later))

    def create_for(
        self, record: TaskRecord, keys: Iterable[tuple[str, str]], texts: Mapping[tuple[str, str], str]
    ) -> None:
        """Add an entry for each object, given as (model label, object id), with its text where that is known."""
        self.bulk_create(
            (
                TaskObject(
                    record=record, model_label=label, object_id=object_id, text=texts.get((label, object_id), "")
                )
                for label, object_id in keys
            ),
            batch_size=ROWS_AT_ONCE,
        )


class TaskObject(models.Model):
    """One object that a task was launched for, and its outcome."""

    record = models.ForeignKey(
        TaskRecord, verbose_name=_("task"), on_delete=models.CASCADE, related_name="objects_worked_on"
    )
    model_label = CharField(_("model"), max_length=201)
    object_id = CharField(_("object id"), max_length=255)
    text = CharField(_("object"), max_length=255, blank=True)
    #: Empty until the task has reported it.
    outcome = CharField(_("outcome"), max_length=20, choices=Outcome, blank=True)
    error = TextField(_("error"), blank=True)
    traceback = TextField(_("traceback"), blank=True)

    objects = PrimaryManager.from_queryset(TaskObjectQuerySet)()

    class Meta:
        verbose_name = _("task object")
        verbose_name_plural = _("task objects")
        default_permissions = ()
        # The key first: it tells more, and is also looked for without its model.
        indexes = [models.Index(fields=["object_id", "model_label", "-record"], name="pcrud_object_key")]

    def __str__(self) -> str:
        return self.text or name_of_row(self.model_label, self.object_id)


_UPDATE_OUTCOME = PreparedUpdate(
    TaskObject,
    lambda: TaskObject.objects.filter(
        object_id=Slot("object_id"),
        model_label=Slot("model_label"),
        record__in=TaskRecord.objects.filter(task_name=Slot("object_id", "task_name")),
    ),
)
