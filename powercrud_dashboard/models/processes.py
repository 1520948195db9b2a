"""The processes that run tasks: one row and one heartbeat each."""

from __future__ import annotations

from datetime import timedelta

from django.apps import apps
from django.db import models
from django.db.models import F, Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from powercrud_dashboard.models.database import Now, PrimaryManager
from powercrud_dashboard.models.fields import CharField


class WorkerProcessQuerySet(models.QuerySet["WorkerProcess"]):
    def alive_workers(self, seconds: float) -> WorkerProcessQuerySet:
        """Workers of clusters that have sent a heartbeat within so many seconds, by the database's clock.

        As in :meth:`silent_for`, one in the future counts as none.
        """
        age = timedelta(seconds=seconds)
        return self.exclude(cluster="").filter(lost_at=None, heartbeat_at__range=(Now() - age, Now() + age))

    def silent_for(self, seconds: float) -> WorkerProcessQuerySet:
        """Processes without a heartbeat for so many seconds, by the database's clock, that are not known to be lost.

        A heartbeat in the future counts as none: the clock was set back, and the timestamp tells nothing.
        """
        silence = timedelta(seconds=seconds)
        too_old = Q(heartbeat_at__lt=Now() - silence) | Q(heartbeat_at__gt=Now() + silence)
        return self.filter(too_old, lost_at=None)

    def lost_for(self, days: float) -> WorkerProcessQuerySet:
        """Processes that were declared lost at least so many days ago."""
        return self.filter(lost_at__lt=Now() - timedelta(days=days))

    def tell_loss(self) -> bool:
        """Note that an alert tells of the loss of these workers. Return whether none has told of some so far."""
        return self.filter(is_loss_told=False).update(is_loss_told=True) > 0

    def without_tasks(self) -> WorkerProcessQuerySet:
        # By name, as the tasks are built on this module.
        active_tasks = apps.get_model("powercrud_dashboard", "ActiveTask").objects.all()
        return self.filter(~models.Exists(active_tasks.filter(worker=models.OuterRef("pk"))))


_WorkerProcessBase = PrimaryManager.from_queryset(WorkerProcessQuerySet)


class WorkerProcessManager(_WorkerProcessBase["WorkerProcess"]):
    """What is written of one process at a time."""

    def beat(self, identity: str) -> bool:
        """Write a heartbeat. Return False if the process has no row or was declared lost."""
        alive = self.filter(pk=identity, lost_at=None)
        # If it was only silent for a while, its loss is still to be told.
        news = {"heartbeat_at": Now(), "clock_at": timezone.now(), "is_loss_told": False}
        return alive.update(beats=F("beats") + 1, **news) == 1

    def is_lost(self, identity: str) -> bool:
        """Return whether the process was declared lost, or has no row any more."""
        return not self.filter(pk=identity, lost_at=None).exists()

    def declare_lost(self, judged: WorkerProcess) -> bool:
        """Declare a process lost if it has sent no heartbeat since ``judged`` was read. Return whether it is."""
        # Heartbeats are counted, as clocks can be set. A heartbeat that is on its way waits for this row, and then
        # finds the process declared lost.
        unchanged = self.filter(pk=judged.pk, beats=judged.beats, lost_at=None)
        return unchanged.update(lost_at=Now()) == 1


class WorkerProcess(models.Model):
    """A process that runs tasks: a worker of a cluster, or a web process during a synchronous task."""

    #: Random, as containers use the same host names and process ids again.
    identity = CharField(_("identity"), max_length=32, primary_key=True)
    host = CharField(_("host"), max_length=255)
    pid = models.PositiveIntegerField(_("process id"))
    #: The cluster that it is a worker of; empty for other processes.
    cluster = CharField(_("cluster"), max_length=100, blank=True)
    started_at = models.DateTimeField(_("started at"), db_default=Now())
    heartbeat_at = models.DateTimeField(_("heartbeat at"), db_default=Now())
    beats = models.PositiveBigIntegerField(_("heartbeats"), default=0)
    #: What the clock of its host said at the last heartbeat.
    clock_at = models.DateTimeField(_("clock at"), null=True, blank=True)
    #: When the process was declared lost, as its heartbeat had stopped.
    lost_at = models.DateTimeField(_("lost at"), null=True, blank=True)
    #: Whether an alert has told of its loss.
    is_loss_told = models.BooleanField(_("loss is told"), default=False)

    objects = WorkerProcessManager()

    class Meta:
        verbose_name = _("worker process")
        verbose_name_plural = _("worker processes")
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.host} {self.pid}"

    @property
    def clock_offset(self) -> timedelta:
        """How far the clock of its host is ahead of the database's; less than 0 if it is behind."""
        return self.clock_at - self.heartbeat_at if self.clock_at else timedelta()
