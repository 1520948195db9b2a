"""Queues, and functions on all queues, of which nothing new starts."""

from __future__ import annotations

import uuid

from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from powercrud_dashboard.models.database import Now, PrimaryManager
from powercrud_dashboard.models.fields import CharField, TextField, user_key


class PauseKind(models.TextChoices):
    QUEUE = "queue", _("Queue")
    FUNCTION = "function", _("Function")


def _new_identity() -> str:
    return uuid.uuid4().hex


class PauseQuerySet(models.QuerySet["Pause"]):
    def applying_to(self, queue: object, func: object) -> PauseQuerySet:
        """The pauses that keep a task of this function in this queue from starting."""
        of_queue, of_function = Q(kind=PauseKind.QUEUE, name=queue), Q(kind=PauseKind.FUNCTION, name=func)
        return self.filter(of_queue | of_function)


class Pause(models.Model):
    """Nothing new starts of this queue, or of this function, until the row is deleted."""

    #: Random, as tasks that are held know by it whether they still are, and SQLite uses primary keys again.
    identity = CharField(_("identity"), max_length=32, primary_key=True, default=_new_identity)
    kind = CharField(_("kind"), max_length=20, choices=PauseKind)
    #: The name of the queue (cluster), or the dotted path of the function.
    name = CharField(_("name"), max_length=255)
    since = models.DateTimeField(_("since"), db_default=Now())
    user = user_key(_("user"))
    #: The person's name, which stays when the account is deleted.
    user_label = CharField(_("paused by"), max_length=255, blank=True)
    note = TextField(_("note"), blank=True)

    objects = PrimaryManager.from_queryset(PauseQuerySet)()

    class Meta:
        verbose_name = _("pause")
        verbose_name_plural = _("pauses")
        default_permissions = ()
        permissions = [("pause_queue", _("Can pause and resume queues and functions"))]
        constraints = [models.UniqueConstraint(fields=["kind", "name"], name="pcrud_pause_uniq")]

    def __str__(self) -> str:
        return self.name
