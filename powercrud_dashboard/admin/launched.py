"""The objects of a split selection that have a task of the group already, when the splitter is tried again."""

from __future__ import annotations

from typing import Any

from powercrud_dashboard.models import FailureReason, TaskObject, TaskRecord, TaskStatus
from powercrud_dashboard.models.objects import TaskObjectQuerySet


class LaunchedObjects:
    """Tells which objects earlier tries of a splitter have launched a task for.

    The ledger of a chunk is written with its launch, all or nothing, so that this is right wherever a try was
    interrupted, and however the selection has changed since.
    """

    def __init__(self, entries: TaskObjectQuerySet) -> None:
        self._entries = entries
        self._are_there_any = entries.exists()

    @classmethod
    def before(cls, task_name: str, group: str, model_label: str) -> LaunchedObjects:
        """Return those of the earlier attempts of this splitter, and of the failed tasks that it is a retry of."""
        first = TaskRecord.objects.known_of(task_name)
        while first is not None and (original := first.retry_of) is not None:
            if original.status == TaskStatus.SUCCESS:
                # To retry a completed splitter is to run the whole selection again.
                break
            first = original
        if first is None:
            return cls(TaskObject.objects.none())
        # A splitter itself has no objects.
        chunks = TaskObject.objects.filter(record__group=group, record__gt=first.pk, record__affected_count__gt=0)
        return cls(
            # A chunk that was not queued has never run.
            chunks.filter(model_label=model_label).exclude(record__failure_reason=FailureReason.NOT_QUEUED)
        )

    def left_of(self, keys: list[Any]) -> list[Any]:
        """Return those of the keys that no task was launched for."""
        if not self._are_there_any:
            return keys
        launched = set(
            self._entries.filter(object_id__in=[str(key) for key in keys]).values_list("object_id", flat=True)
        )
        return [key for key in keys if str(key) not in launched]
