"""A group of tasks as one: how far it is, and what can still be done with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from django.db.models import Count, QuerySet, Sum
from django.utils.functional import cached_property

from powercrud_dashboard.models import ActiveTask, TaskRecord, TaskStatus
from powercrud_dashboard.models.history import TaskRecordQuerySet
from powercrud_dashboard.models.status import FINISHED
from powercrud_dashboard.progress import newest

if TYPE_CHECKING:
    from powercrud_dashboard.access import Person


@dataclass(frozen=True)
class _Part:
    """The tasks of a group that have one status."""

    tasks: int
    objects: int
    failed_objects: int


class TaskGroup:
    """The tasks of a group that this person may see. Of a task and its retry only the retry counts."""

    def __init__(self, name: str, user: Person) -> None:
        self.name = name
        self.tasks: TaskRecordQuerySet = TaskRecord.objects.visible_to(user).filter(group=name, retries=None)

    @cached_property
    def parts(self) -> dict[str, _Part]:
        """The group's tasks by status."""
        rows = (
            self.tasks.order_by()
            .values_list("status")
            .annotate(Count("pk"), Sum("affected_count"), Sum("failed_count"))
        )
        return {status: _Part(tasks, objects or 0, failed or 0) for status, tasks, objects, failed in rows}

    @property
    def exists(self) -> bool:
        return bool(self.parts)

    @property
    def is_finished(self) -> bool:
        return all(status in FINISHED for status in self.parts)

    @property
    def object_count(self) -> int:
        return sum(part.objects for part in self.parts.values())

    @property
    def failed_object_count(self) -> int:
        return sum(part.failed_objects for part in self.parts.values())

    @cached_property
    def objects_through(self) -> int:
        """How many objects the group is through with: those of ended tasks, and what running ones report."""
        ended = sum(part.objects for status, part in self.parts.items() if status in FINISHED)
        running = self.tasks.running().values("task_name")
        reports = newest(list(ActiveTask.objects.running().filter(task_name__in=running)))
        return ended + sum(report.current or 0 for report in reports.values())

    @property
    def percent(self) -> int | None:
        total = self.object_count
        return min(100, 100 * self.objects_through // total) if total else None

    def count(self, status: TaskStatus) -> int:
        part = self.parts.get(status)
        return part.tasks if part else 0

    def unfinished(self) -> QuerySet[TaskRecord]:
        return self.tasks.filter(status__in=[TaskStatus.PENDING, TaskStatus.IN_PROGRESS])

    def not_done(self) -> QuerySet[TaskRecord]:
        """The tasks that failed or were cancelled."""
        return self.tasks.filter(status__in=[TaskStatus.FAILED, TaskStatus.CANCELLED])
