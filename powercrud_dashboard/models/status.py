from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _


class TaskStatus(models.TextChoices):
    PENDING = "pending", _("Queued")
    IN_PROGRESS = "in_progress", _("Running")
    SUCCESS = "success", _("Completed")
    FAILED = "failed", _("Failed")
    CANCELLED = "cancelled", _("Cancelled")


UNFINISHED = (TaskStatus.PENDING, TaskStatus.IN_PROGRESS)
FINISHED = (TaskStatus.SUCCESS, TaskStatus.FAILED, TaskStatus.CANCELLED)


class FailureReason(models.TextChoices):
    ERROR = "error", _("The task raised an error")
    TIMEOUT = "timeout", _("The task ran out of time")
    WORKER_LOST = "worker_lost", _("Worker lost")
    NOT_QUEUED = "not_queued", _("Could not be queued")
    CLUSTER_STOPPED = "cluster_stopped", _("The cluster was stopped")
    NEVER_STARTED = "never_started", _("Lost in the queue before it started")


#: Verdicts passed from outside the worker. A worker that reports later knows better.
GIVEN_UP = (FailureReason.WORKER_LOST, FailureReason.NOT_QUEUED, FailureReason.NEVER_STARTED)
