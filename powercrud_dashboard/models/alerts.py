"""What is wrong, since when, who has taken note of it, and which messages about it are still to be sent."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.core.serializers.json import DjangoJSONEncoder
from django.db import IntegrityError, models, transaction
from django.db.models import Case, Exists, F, OuterRef, Q, When
from django.utils.translation import gettext_lazy as _

from powercrud_dashboard.models.database import Now, PrimaryManager
from powercrud_dashboard.models.fields import CharField, TextField

#: Seconds between two evaluations in the whole installation, at least.
EVALUATED_EVERY = 30
#: Seconds after each try to send a message until the next one.
SENT_AGAIN_AFTER = (60, 300, 1_800)
#: How often a message is tried to be sent.
MAX_TRIES = len(SENT_AGAIN_AFTER) + 1
#: Days for which alerts that have ended are kept.
KEPT_DAYS = 90


class AlertKind(models.TextChoices):
    FAILURE_RATE = "failure_rate", _("Failure rate")
    OLDEST_WAIT = "oldest_wait", _("Oldest wait")
    QUEUE_DEPTH = "queue_depth", _("Queue depth")
    WORKERS_LOST = "workers_lost", _("Worker lost")
    NO_WORKERS = "no_workers", _("No workers")
    MISSED_SCHEDULE = "missed_schedule", _("Missed schedule")
    #: What a callable of the project has found.
    CHECK = "check", _("Check of the project")


class AlertEvent(models.TextChoices):
    OPENED = "opened", _("Opened")
    RESOLVED = "resolved", _("Resolved")


class AlertQuerySet(models.QuerySet["Alert"]):
    def open(self) -> AlertQuerySet:
        return self.filter(resolved_at=None)

    def unacknowledged(self) -> AlertQuerySet:
        return self.filter(acknowledged_at=None)

    def causes_first(self) -> AlertQuerySet:
        """The newest first, but before them that no worker runs: waits and missed schedules follow from that."""
        is_cause = Case(When(kind=AlertKind.NO_WORKERS, then=0), default=1)
        return self.order_by(is_cause, "-opened_at", "-pk")

    def past(self) -> AlertQuerySet:
        return self.filter(resolved_at__isnull=False)

    def resolve(self) -> bool:
        """End the alert. Return whether it was still open."""
        return self.open().update(resolved_at=Now()) == 1

    def acknowledge(self, user: Any, label: str) -> bool:
        """Note that a person deals with the alert. Return whether nobody had, and it is still open."""
        changes = {"acknowledged_at": Now(), "acknowledged_by": user, "acknowledged_label": label}
        return self.open().unacknowledged().update(**changes) == 1

    def outdated(self) -> AlertQuerySet:
        return self.filter(resolved_at__lt=Now() - timedelta(days=KEPT_DAYS))


_AlertBase = PrimaryManager.from_queryset(AlertQuerySet)


class AlertManager(_AlertBase["Alert"]):
    def open_one(self, kind: str, subject: str, details: dict[str, Any]) -> Alert | None:
        """Open an alert. Return None if one of this kind and subject is open already."""
        alert = Alert(kind=kind, subject=subject, details=details)
        try:
            with transaction.atomic(using=self.db):
                alert.save(using=self.db, force_insert=True)
        except IntegrityError:
            return None
        return alert


class Alert(models.Model):
    """Something that is wrong, or was."""

    kind = CharField(_("kind"), max_length=20, choices=AlertKind)
    #: What it is about: a function, a queue, a worker or a schedule, or a check of the project and what it has named;
    #: empty for the whole installation.
    subject = CharField(_("subject"), max_length=255, blank=True)
    opened_at = models.DateTimeField(_("opened at"), db_default=Now())
    resolved_at = models.DateTimeField(_("resolved at"), null=True, blank=True)
    acknowledged_at = models.DateTimeField(_("acknowledged at"), null=True, blank=True)
    acknowledged_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        verbose_name=_("acknowledged by"),
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        db_constraint=False,
        related_name="+",
        db_index=False,
    )
    #: The person's name, which stays when the account is deleted.
    acknowledged_label = CharField(_("acknowledged by"), max_length=255, blank=True)
    #: The figures by which it was opened.
    details = models.JSONField(_("details"), default=dict, blank=True, encoder=DjangoJSONEncoder)

    objects = AlertManager()

    class Meta:
        verbose_name = _("alert")
        verbose_name_plural = _("alerts")
        default_permissions = ()
        permissions = [("acknowledge_alert", _("Can acknowledge alerts"))]
        constraints = [
            models.UniqueConstraint(
                fields=["kind", "subject"], condition=Q(resolved_at__isnull=True), name="pcrud_alert_open_uniq"
            ),
        ]
        indexes = [
            models.Index(fields=["-resolved_at"], condition=Q(resolved_at__isnull=False), name="pcrud_alert_past")
        ]

    def __str__(self) -> str:
        return f"{self.get_kind_display()} {self.subject}".strip()


class AlertMessageQuerySet(models.QuerySet["AlertMessage"]):
    def due(self) -> AlertMessageQuerySet:
        """Those to send now. Nobody hears that an alert has ended before its beginning was told, or given up."""
        same = AlertMessage.objects.filter(alert=OuterRef("alert"), channel=OuterRef("channel"))
        earlier = same.filter(pk__lt=OuterRef("pk"), due_at__isnull=False)
        return self.filter(~Exists(earlier), due_at__lte=Now(), tries__lt=MAX_TRIES)

    def give_up_abandoned(self) -> None:
        """Give up those whose process died at the last try."""
        abandoned = self.filter(due_at__lte=Now(), tries__gte=MAX_TRIES)
        abandoned.update(due_at=None, error="The process that was sending it has died.")

    def given_up(self) -> AlertMessageQuerySet:
        """Those that are not tried to be sent any more."""
        return self.filter(due_at=None)

    def claim(self, tries: int) -> str:
        """Reserve those that are due, after so many tries, for this process. Return what they are known by then."""
        claim = uuid.uuid4().hex
        # The next process tries again if this one dies, but not for ever.
        seconds = SENT_AGAIN_AFTER[min(tries, len(SENT_AGAIN_AFTER) - 1)]
        due = self.due().filter(tries=tries)
        due.update(claim=claim, tries=F("tries") + 1, due_at=Now() + timedelta(seconds=seconds))
        return claim

    def claimed(self, claim: str) -> AlertMessageQuerySet:
        return self.filter(claim=claim)

    def note_failure(self, error: str) -> None:
        """Note why they could not be sent. After the last try they are given up."""
        self.filter(tries__gte=MAX_TRIES).update(due_at=None)
        self.update(error=error)


_AlertMessageBase = PrimaryManager.from_queryset(AlertMessageQuerySet)


class AlertMessageManager(_AlertMessageBase["AlertMessage"]):
    def add(self, alert_pk: int, event: str, channels: Iterable[str]) -> None:
        """Have each of these channels told of an alert."""
        self.bulk_create([AlertMessage(alert_id=alert_pk, event=event, channel=channel) for channel in channels])


class AlertMessage(models.Model):
    """A message that is still to be sent, or could not be."""

    alert = models.ForeignKey(Alert, verbose_name=_("alert"), on_delete=models.CASCADE, related_name="messages")
    event = CharField(_("event"), max_length=10, choices=AlertEvent)
    #: ``mail``, ``webhook``, or the dotted path of a callable.
    channel = CharField(_("channel"), max_length=255)
    tries = models.PositiveSmallIntegerField(_("tries"), default=0)
    #: When it is sent at the earliest; empty if it was given up.
    due_at = models.DateTimeField(_("due at"), null=True, blank=True, db_default=Now())
    #: Random, of the process that sends it.
    claim = CharField(_("claim"), max_length=32, blank=True)
    error = TextField(_("error"), blank=True)

    objects = AlertMessageManager()

    class Meta:
        verbose_name = _("alert message")
        verbose_name_plural = _("alert messages")
        default_permissions = ()
        indexes = [models.Index(fields=["due_at"], condition=Q(due_at__isnull=False), name="pcrud_alert_message_due")]

    def __str__(self) -> str:
        return f"{self.alert_id} {self.event} {self.channel}"


def _is_due() -> Q:
    # Far ahead: the clock was set back.
    return Q(due_at__lte=Now()) | Q(due_at__gt=Now() + timedelta(seconds=2 * EVALUATED_EVERY))


class AlertEvaluationManager(PrimaryManager["AlertEvaluation"]):
    def is_due(self) -> bool:
        """Return whether some process is to evaluate now, in a query that waits for nobody."""
        return not self.filter(pk=1).exclude(_is_due()).exists()

    def without_workers(self) -> timedelta | None:
        """Note that no worker lives. Return how long ago that was noted first; None if it was not."""
        if self.filter(pk=1, without_workers_since=None).update(without_workers_since=Now()):
            return None
        row: Any = self.filter(pk=1).annotate(read_at=Now()).first()
        return row.read_at - row.without_workers_since if row and row.without_workers_since else None

    def with_workers(self) -> None:
        """Note that a worker lives."""
        self.filter(pk=1, without_workers_since__isnull=False).update(without_workers_since=None)

    def claim(self) -> bool:
        """Return whether this process is to evaluate now. For the next seconds no other is."""
        next_time = Now() + timedelta(seconds=EVALUATED_EVERY)
        if self.filter(_is_due(), pk=1).update(due_at=next_time):
            return True
        try:
            with transaction.atomic(using=self.db):
                self.create(pk=1, due_at=next_time)
        except IntegrityError:
            return False
        return True


class AlertEvaluation(models.Model):
    """When the alerts are evaluated again, by whichever process asks first. There is one row."""

    due_at = models.DateTimeField(_("due at"))
    #: Since when no worker lives, as far as evaluations have seen; empty if one did at the last.
    without_workers_since = models.DateTimeField(_("without workers since"), null=True, blank=True)

    objects = AlertEvaluationManager()

    class Meta:
        verbose_name = _("alert evaluation")
        verbose_name_plural = _("alert evaluations")
        default_permissions = ()

    def __str__(self) -> str:
        return str(self.due_at)
