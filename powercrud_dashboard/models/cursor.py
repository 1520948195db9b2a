"""How far an action that runs per object is: what its next attempt goes on from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from django.db import models
from django.db.models import F
from django.utils.translation import gettext_lazy as _

from powercrud_dashboard.exceptions import TaskGivenUp
from powercrud_dashboard.models.coordination import ActiveTask
from powercrud_dashboard.models.database import PrimaryManager, impatient_transaction
from powercrud_dashboard.models.fields import CharField
from powercrud_dashboard.models.locks import ConflictLock
from powercrud_dashboard.models.objects import ObjectOutcome, Outcome
from powercrud_dashboard.models.prepared import PreparedUpdate, Slot

#: How many attempts may end with the loss of their worker, or at their time limit, while they work on the same object.
TRIES_OF_AN_OBJECT = 3


class TaskCursorManager(PrimaryManager["TaskCursor"]):
    def take(self, task_name: str, attempt: int) -> TaskCursor:
        """Return the cursor, which belongs to this attempt from now on: no earlier one can advance it any more.

        Raises:
            TaskGivenUp: if the task has ended or has passed to another attempt.
        """
        with impatient_transaction():
            running = ActiveTask.objects.running().filter(task_name=task_name, attempt=attempt)
            # Locked, so that the task can't end before its cursor is there.
            if not running.select_for_update().values_list("pk", flat=True):
                raise TaskGivenUp(task_name)
            if not self.filter(pk=task_name).update(attempt=attempt):
                self.create(task_name=task_name, attempt=attempt)
            # Read after the change, which has waited for whoever was advancing it.
            return self.get(pk=task_name)

    def is_under_way(self, task_name: str, attempt: int) -> bool:
        """Return whether this attempt has begun with an object, and has not said why it stopped."""
        return self.filter(pk=task_name, attempt=attempt, is_open=True).exists()


class TaskCursor(models.Model):
    """The position of a task in the order of its objects' keys, with the counts of the objects up to there.

    It is written in the transaction that records an object's outcome. So it holds for any number of objects, and
    without a history, and an attempt that was given up can store nothing any more. It is deleted with its task.
    """

    task_name = CharField(_("task name"), max_length=100, primary_key=True)
    #: The attempt that may advance it.
    attempt = models.PositiveIntegerField(_("attempt"))
    #: The key of the last object that has an outcome; all before it have one as well. Empty before the first.
    position = CharField(_("position"), max_length=255, blank=True)
    done = models.PositiveIntegerField(_("objects done"), default=0)
    failed = models.PositiveIntegerField(_("objects failed"), default=0)
    skipped = models.PositiveIntegerField(_("objects skipped"), default=0)
    #: Whether a worker has looked the objects up and locked them all: then those of its locks are the selection.
    has_locked_all = models.BooleanField(_("has locked all objects"), default=False)
    #: Whether an attempt works on an object, or has ended in the middle of one.
    is_open = models.BooleanField(_("is open"), default=False)
    #: The object that the last attempt was in the middle of when it was lost, and how often one was.
    suspect = CharField(_("suspect"), max_length=255, blank=True)
    tries = models.PositiveSmallIntegerField(_("tries of the suspect"), default=0)

    objects = TaskCursorManager()

    class Meta:
        verbose_name = _("task cursor")
        verbose_name_plural = _("task cursors")
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.task_name} {self.position}"

    @property
    def counts(self) -> dict[str, int]:
        """How many objects have which outcome."""
        return {
            Outcome.DONE.value: self.done,
            Outcome.FAILED.value: self.failed,
            Outcome.SKIPPED.value: self.skipped,
        }

    def note_locked(self, model_label: str, keys: Iterable[str], *, skipped: int) -> None:
        """Note that all objects are locked now, which are these, but for so many that are skipped."""
        ConflictLock.objects.all().select(self.task_name, {model_label: keys})
        self._update(has_locked_all=True, skipped=skipped)

    def open(self, key: str) -> bool:
        """Begin with the first object that has no outcome. Return False if it has used up its tries.

        Raises:
            TaskGivenUp: if another attempt has the cursor.
        """
        if self.is_open:
            # The last attempt was lost in the middle of this object, or at its time limit.
            tries = self.tries + 1 if self.suspect == key else 1
            self._update(suspect=key, tries=tries)
        else:
            self._update(is_open=True)
        return self.suspect != key or self.tries < TRIES_OF_AN_OBJECT

    def has_passed(self, key: str) -> bool:
        """Return whether this object is the last one that has an outcome, as the database knows."""
        return TaskCursor.objects.filter(pk=self.pk, attempt=self.attempt, position=key).exists()

    def close(self) -> None:
        """Note that the attempt has stopped for a reason that is not the fault of an object."""
        self._update(is_open=False)

    def restart(self) -> None:
        """Begin with the first object again."""
        self._update(position="", done=0, failed=0, skipped=0, is_open=False, suspect="", tries=0)

    def advance(self, entries: Iterable[ObjectOutcome], *, instead_of: str = "") -> None:
        """Pass objects, in their order, as a part of the transaction that records their outcomes.

        ``instead_of`` is the outcome with which the last object was passed already.

        Raises:
            TaskGivenUp: if the task has ended or has passed to another attempt: then nothing is to be committed.
        """
        entries = list(entries)
        added = Counter(entry.outcome for entry in entries)
        added[instead_of] -= 1
        advanced = _ADVANCE.execute(
            task_name=self.task_name,
            attempt=self.attempt,
            position=entries[-1].object_id,
            done=added[Outcome.DONE],
            failed=added[Outcome.FAILED],
            skipped=added[Outcome.SKIPPED],
        )
        if not advanced:
            raise TaskGivenUp(self.task_name)

    def _update(self, **columns: object) -> None:
        if not TaskCursor.objects.filter(pk=self.pk, attempt=self.attempt).update(**columns):
            raise TaskGivenUp(self.task_name)
        for name, value in columns.items():
            setattr(self, name, value)


_ADVANCE = PreparedUpdate(
    TaskCursor,
    lambda: TaskCursor.objects.filter(pk=Slot("task_name"), attempt=Slot("attempt")),
    position=Slot("position"),
    done=F("done") + Slot("done"),
    failed=F("failed") + Slot("failed"),
    skipped=F("skipped") + Slot("skipped"),
)
