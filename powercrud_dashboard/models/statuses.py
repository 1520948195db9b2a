"""The states of tasks, why they fail, and what becomes of failures."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy


class TaskStatus(models.TextChoices):
    PENDING = "pending", pgettext_lazy("of a task", "Queued")
    IN_PROGRESS = "in_progress", _("Running")
    PAUSED = "paused", _("Paused")
    SUCCESS = "success", _("Completed")
    FAILED = "failed", _("Failed")
    CANCELLED = "cancelled", _("Cancelled")


UNFINISHED = (TaskStatus.PENDING, TaskStatus.IN_PROGRESS, TaskStatus.PAUSED)
FINISHED = (TaskStatus.SUCCESS, TaskStatus.FAILED, TaskStatus.CANCELLED)


class FailureReason(models.TextChoices):
    ERROR = "error", _("The task raised an error")
    TIMEOUT = "timeout", _("The task ran out of time")
    WORKER_LOST = "worker_lost", _("Worker lost")
    NOT_QUEUED = "not_queued", _("Could not be queued")
    CLUSTER_STOPPED = "cluster_stopped", _("The cluster was stopped")
    NEVER_STARTED = "never_started", _("Lost in the queue before it started")


#: Reasons that were inferred from outside the worker. A worker that reports its task's end later corrects them.
GIVEN_UP = (FailureReason.WORKER_LOST, FailureReason.NOT_QUEUED, FailureReason.NEVER_STARTED)


class Source(models.TextChoices):
    """What tells of a task that no manager of this package runs."""

    DJANGO_TASKS = "django_tasks", _("Django's tasks framework")
    DJANGO_Q = "django_q", _("django-q2")
    #: A run that a schedule has skipped or could not launch.
    SCHEDULE = "schedule", _("A schedule")


class Resolution(models.TextChoices):
    """What became of a failure."""

    OPEN = "open", _("Open")
    RESOLVED = "resolved", _("Resolved by a retry")
    DISMISSED = "dismissed", _("Dismissed")
