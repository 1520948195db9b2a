"""The timelines of tasks: what happened, when, and by whom."""

from __future__ import annotations

from typing import Any

from django.core.serializers.json import DjangoJSONEncoder
from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from powercrud_dashboard.models.database import PrimaryManager
from powercrud_dashboard.models.fields import CharField, TextField, user_key
from powercrud_dashboard.models.history import TaskRecord
from powercrud_dashboard.models.prepared import PreparedInsert

#: Events that may be committed after later ones, which have higher keys.
COMMITTED_OUT_OF_ORDER = 20

#: Up to so many events are inserted by a prepared statement, one for each number of rows.
FEW_EVENTS = 4


class TaskEventQuerySet(models.QuerySet["TaskEvent"]):
    def of_task(self, task_name: str) -> TaskEventQuerySet:
        return self.filter(record__task_name=task_name)


_TaskEventBase = PrimaryManager.from_queryset(TaskEventQuerySet)


class TaskEventManager(_TaskEventBase["TaskEvent"]):
    """What is written and asked of all events."""

    def add(self, events: list[dict[str, Any]]) -> None:
        """Insert events, given by their fields; no signals are sent."""
        if len(events) > FEW_EVENTS:
            # The values of foreign keys are keys.
            names = {field.name: field.attname for field in TaskEvent._meta.concrete_fields}
            self.bulk_create(TaskEvent(**{names[name]: value for name, value in event.items()}) for event in events)
        elif events:
            _ADD_EVENTS.execute(events)

    def newest_state(self) -> str:
        """Return a text that changes whenever an event is added.

        It is made of the newest few events, as one may be committed after others that have higher keys.
        """
        newest = list(self.order_by("-pk").values_list("pk", flat=True)[:COMMITTED_OUT_OF_ORDER])
        return f"{newest[0]}-{sum(newest[0] - pk for pk in newest)}" if newest else ""


class TaskEvent(models.Model):
    """Something that happened to a task, when, and by whom."""

    record = models.ForeignKey(TaskRecord, verbose_name=_("task"), on_delete=models.CASCADE, related_name="events")
    event = CharField(_("event"), max_length=30)
    timestamp = models.DateTimeField(_("time"), default=timezone.now)
    actor = user_key(_("actor"))
    actor_label = CharField(_("actor's name"), max_length=255, blank=True)
    message = TextField(_("message"), blank=True)
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


_ADD_EVENTS = PreparedInsert(TaskEvent)
