"""Files that go with tasks: those that a form was sent with, and those that an action answered with."""

from __future__ import annotations

from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from powercrud_dashboard.models.coordination import ActiveTask
from powercrud_dashboard.models.history import TaskRecord
from powercrud_dashboard.models.managers import OfPrimary
from powercrud_dashboard.models.status import TaskStatus


class FilePurpose(models.TextChoices):
    PARAMETER = "parameter", _("Parameter")
    RESULT = "result", _("Result")


class TaskFileQuerySet(models.QuerySet["TaskFile"]):
    def parameters_of(self, owner: str) -> TaskFileQuerySet:
        return self.filter(owner=owner, purpose=FilePurpose.PARAMETER)

    def results_of(self, task_name: str) -> TaskFileQuerySet:
        """The files that a task made, without their content."""
        return self.filter(owner=task_name, purpose=FilePurpose.RESULT).defer("content").order_by("pk")

    def of_no_use(self) -> TaskFileQuerySet:
        """Parameters that no task will read any more: none is under way, and none failed that could be retried."""
        active = ActiveTask.objects.using(self.db).filter(task_name=models.OuterRef("owner"))
        needed = TaskRecord.objects.using(self.db).filter(
            status__in=[TaskStatus.PENDING, TaskStatus.IN_PROGRESS, TaskStatus.FAILED]
        )
        by_task = needed.filter(task_name=models.OuterRef("owner"))
        by_group = needed.filter(group=models.OuterRef("owner")).exclude(group="")
        return self.filter(
            ~models.Exists(active), ~models.Exists(by_task), ~models.Exists(by_group), purpose=FilePurpose.PARAMETER
        ).defer("content")


class TaskFile(models.Model):
    """A file in the database, where each worker finds it and nobody comes at it but through a task's page."""

    #: The name of the task, or of the group of tasks, that the file goes with.
    owner = models.CharField(_("task or group"), max_length=100)
    purpose = models.CharField(_("purpose"), max_length=20, choices=FilePurpose)
    #: The form's field, for a parameter.
    field = models.CharField(_("field"), max_length=255, blank=True)
    name = models.CharField(_("name"), max_length=255)
    content_type = models.CharField(_("content type"), max_length=255, blank=True)
    size = models.PositiveBigIntegerField(_("size"))
    content = models.BinaryField(_("content"))
    created_at = models.DateTimeField(_("created at"), default=timezone.now)

    objects = OfPrimary.from_queryset(TaskFileQuerySet)()

    class Meta:
        verbose_name = _("task file")
        verbose_name_plural = _("task files")
        default_permissions = ()
        indexes = [models.Index(fields=["owner", "purpose"], name="pcrud_file_owner")]

    def __str__(self) -> str:
        return self.name
