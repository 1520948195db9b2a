"""Conflict locks: who has the right to work on which object."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from django.db import connections, models
from django.utils.translation import gettext_lazy as _

from powercrud_dashboard.models.database import Now, PrimaryManager, as_one_parameter, in_chunks, one_column
from powercrud_dashboard.models.fields import CharField
from powercrud_dashboard.models.labels import name_of_row

if TYPE_CHECKING:
    from powercrud_dashboard.models.coordination import ActiveTask

#: Stands for all objects of a model, in the place of an object's key.
WHOLE_MODEL = "*"

#: Locks that are read to show who holds objects of a whole model.
READ_OF_WHOLE_MODEL = 1_000


class ConflictLockQuerySet(models.QuerySet["ConflictLock"]):
    def with_holders(self) -> ConflictLockQuerySet:
        """The locks with their holders, each without its payload: many locks may have the same holder."""
        return self.select_related("active_task").defer("active_task__payload")

    def on_objects(self, keys: Mapping[str, Iterable[str]]) -> Iterator[ConflictLockQuerySet]:
        """The locks on the given objects, as querysets that are small enough for the database.

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
        """The locks on the given objects, or on all objects of their model, with their holders.

        For a whole model these are the locks on any of its objects, of which only the first are returned.
        """
        found: list[ConflictLock] = []
        for model_label, object_ids in keys.items():
            is_about_all = WHOLE_MODEL in object_ids
            for locks in self.conflicting_with({model_label: object_ids}):
                found += locks.with_holders()[: READ_OF_WHOLE_MODEL if is_about_all else None]
        return found

    def conflicting_with(self, keys: Mapping[str, Iterable[str]]) -> Iterator[ConflictLockQuerySet]:
        """The locks on the given objects, or on all objects of their model, as querysets."""
        for model_label, object_ids in keys.items():
            wanted = list(object_ids)
            if WHOLE_MODEL in wanted:
                yield self.filter(model_label=model_label)
            else:
                yield from self.on_objects({model_label: [*wanted, WHOLE_MODEL]})

    def insert_free(self, keys: Mapping[str, list[str]], holder: ActiveTask, own: Iterable[int]) -> bool:
        """Lock those of the objects that are free, in one statement for each model. Return whether all were free.

        ``own`` are the holders whose locks on a whole model do not count, ``holder`` itself among them.
        """
        connection = connections[self.db]
        rows = {"sqlite": "SELECT value AS id FROM json_each(%s)", "postgresql": "SELECT unnest(%s::text[]) AS id"}
        table, own = self.model._meta.db_table, list(own)
        statement = f"""
            INSERT INTO {table} (model_label, object_id, active_task_id)
            SELECT %s, wanted.id, %s FROM ({rows[connection.vendor]}) AS wanted
            WHERE NOT EXISTS (
                SELECT 1 FROM {table}
                WHERE model_label = %s AND object_id = %s AND active_task_id NOT IN ({", ".join(["%s"] * len(own))})
            )
            ON CONFLICT DO NOTHING
        """  # noqa: S608 - names of our own table
        inserted = 0
        with connection.cursor() as cursor:
            for model_label, object_ids in keys.items():
                wanted = as_one_parameter(object_ids, connection)
                cursor.execute(statement, [model_label, holder.pk, wanted, model_label, WHOLE_MODEL, *own])
                inserted += cursor.rowcount
        return inserted == sum(map(len, keys.values()))

    def select(self, task_name: str, keys: Mapping[str, Iterable[str]]) -> None:
        """Note that the task has these locks because it was launched for their objects."""
        for locks in self.on_objects(keys):
            locks.filter(active_task__task_name=task_name).update(is_selected=True)

    def orphaned(self) -> ConflictLockQuerySet:
        """Locks whose holder is gone, which is possible only in a database without foreign keys."""
        tasks: Any = self.model._meta.get_field("active_task").related_model
        holders = tasks.objects.using(self.db).filter(pk=models.OuterRef("active_task_id"))
        return self.filter(~models.Exists(holders))


class ConflictLock(models.Model):
    """The right of one task or reservation to work on one object."""

    model_label = CharField(_("model"), max_length=201)
    object_id = CharField(_("object id"), max_length=255)
    active_task = models.ForeignKey(
        "powercrud_dashboard.ActiveTask",
        verbose_name=_("holder"),
        # Locks are deleted together with their holder, by ActiveTaskManager.end().
        on_delete=models.DO_NOTHING,
        related_name="locks",
    )
    locked_at = models.DateTimeField(_("locked at"), db_default=Now())
    #: Whether a worker has looked the object up as one of the selection. The task may lock others of the same model.
    is_selected = models.BooleanField(_("is selected"), db_default=False)

    objects = PrimaryManager.from_queryset(ConflictLockQuerySet)()

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
        return name_of_row(self.model_label, self.object_id)
