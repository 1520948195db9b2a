"""Files of tasks: those uploaded with a form, and those that an action returned."""

from __future__ import annotations

from datetime import timedelta

from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from powercrud_dashboard.models.coordination import ActiveTask
from powercrud_dashboard.models.database import Now, PrimaryManager
from powercrud_dashboard.models.fields import CharField
from powercrud_dashboard.models.history import TaskRecord

#: How long after its upload a file belongs to a task.
LAUNCHED_WITHIN = timedelta(hours=1)


class FilePurpose(models.TextChoices):
    PARAMETER = "parameter", _("Parameter")
    RESULT = "result", _("Result")


class TaskFileQuerySet(models.QuerySet["TaskFile"]):
    def parameters_of(self, owner: str) -> TaskFileQuerySet:
        return self.filter(owner=owner, purpose=FilePurpose.PARAMETER)

    def results_of(self, task_name: str) -> TaskFileQuerySet:
        """The files that a task made, without their content."""
        return self.filter(owner=task_name, purpose=FilePurpose.RESULT).defer("content").order_by("pk")

    def unneeded(self) -> TaskFileQuerySet:
        """Parameters that no task can read any more: there is no record of their task, or of their group.

        Newer ones may be those of a click that has not launched its task yet.
        """
        active = ActiveTask.objects.using(self.db).filter(task_name=models.OuterRef("owner"))
        records = TaskRecord.objects.using(self.db)
        by_task = records.filter(task_name=models.OuterRef("owner"))
        by_group = records.filter(group=models.OuterRef("owner")).exclude(group="")
        return self.filter(
            ~models.Exists(active),
            ~models.Exists(by_task),
            ~models.Exists(by_group),
            purpose=FilePurpose.PARAMETER,
            created_at__lt=Now() - LAUNCHED_WITHIN,
        ).defer("content")


class TaskFile(models.Model):
    """A file in the database: every worker can read it, and people only through a task's page."""

    #: The name of the task, or of the group of tasks, that the file belongs to.
    owner = CharField(_("task or group"), max_length=100)
    purpose = CharField(_("purpose"), max_length=20, choices=FilePurpose)
    #: The form's field, for a parameter.
    field = CharField(_("field"), max_length=255, blank=True)
    name = CharField(_("name"), max_length=255)
    content_type = CharField(_("content type"), max_length=255, blank=True)
    size = models.PositiveBigIntegerField(_("size"))
    content = models.BinaryField(_("content"))
    created_at = models.DateTimeField(_("created at"), default=timezone.now)

    objects = PrimaryManager.from_queryset(TaskFileQuerySet)()

    class Meta:
        verbose_name = _("task file")
        verbose_name_plural = _("task files")
        default_permissions = ()
        indexes = [models.Index(fields=["owner", "purpose"], name="pcrud_file_owner")]

    def __str__(self) -> str:
        return self.name
