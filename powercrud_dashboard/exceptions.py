"""The package's errors. Each carries its facts as attributes and says what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from django.template.defaultfilters import filesizeformat
from django.utils.translation import gettext as _
from django.utils.translation import ngettext


@dataclass(frozen=True)
class HeldObject:
    """An object that is locked, and who holds it."""

    model_label: str
    object_id: str
    holder: str
    holder_label: str
    since: datetime | None = None
    #: What people call it.
    text: str = ""

    def __str__(self) -> str:
        return _("%(object)s (held by %(holder)s)") % {
            "object": self.text or f"{self.model_label} {self.object_id}",
            "holder": self.holder_label or self.holder,
        }


class TaskConflict(RuntimeError):
    """The objects of a launch, a retry or a reservation are held by somebody else.

    ``held`` lists them with their holders; ``total`` counts them all.
    """

    #: A message that names more objects than this is no longer read.
    NAMED_IN_MESSAGE = 5

    def __init__(self, held: Sequence[HeldObject], total: int | None = None) -> None:
        self.held = list(held)
        self.total = len(self.held) if total is None else total
        named = ", ".join(str(item) for item in self.held[: self.NAMED_IN_MESSAGE])
        more = self.total - min(len(self.held), self.NAMED_IN_MESSAGE)
        if more > 0:
            words = ngettext("%(named)s and %(count)d more", "%(named)s and %(count)d more", more)
            named = words % {"named": named, "count": more}
        super().__init__(
            _("Another task already works on %(objects)s. Wait until it has ended, or cancel it, and try again.")
            % {"objects": named}
        )

    @property
    def holders(self) -> list[str]:
        """The names of the tasks and reservations in the way, each once."""
        return list(dict.fromkeys(item.holder for item in self.held))


class TaskCancelled(BaseException):
    """Raised inside a running task that somebody cancelled.

    Like ``KeyboardInterrupt`` it is not an ``Exception``, so that a loop which goes on
    past the errors of single objects still stops.
    """

    def __init__(self, task_name: str) -> None:
        self.task_name = task_name
        super().__init__(f"Task {task_name} was cancelled.")


class ClusterStopping(BaseException):
    """Raised inside a running task whose cluster stops, if the task is to be queued again then."""

    def __init__(self, task_name: str) -> None:
        self.task_name = task_name
        super().__init__(f"Task {task_name} was interrupted, as its cluster stops.")


class WorkerLost(RuntimeError):
    """Stands, in ``retry_on`` and ``give_up_on``, for a worker that was killed or whose host is gone."""


class UnimportableCallable(ValueError):
    """A worker process could not import this callable."""

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.reason = str(reason)
        super().__init__(
            f"{name} can't be run in the background: {reason}. "
            "Pass a function that is defined at the top level of an importable module, or its dotted path."
        )


class TaskNameTaken(ValueError):
    """A task with this ``task_key`` exists already."""

    def __init__(self, task_name: str) -> None:
        self.task_name = task_name
        super().__init__(
            f"A task named {task_name} exists already. "
            "Leave task_key out to get a fresh name, or pass one that was not used before."
        )


class TaskAlreadyActive(RuntimeError):
    """A task with the same ``unique_key`` is queued or running; ``task_name`` is its name."""

    def __init__(self, task_name: str) -> None:
        self.task_name = task_name
        super().__init__(_("The same task is already queued or running: %(name)s.") % {"name": task_name})


class FileTooLarge(ValueError):
    """A file that was to be kept with a task is larger than ``DASHBOARD_FILE_LIMIT`` bytes."""

    def __init__(self, name: str, limit: int) -> None:
        self.name = name
        self.limit = limit
        super().__init__(
            _("The file %(name)s is larger than the %(limit)s that are kept with a task (DASHBOARD_FILE_LIMIT).")
            % {"name": name, "limit": filesizeformat(limit)}
        )


class AllObjectsFailed(RuntimeError):
    """Every object of a task failed; the message has the first error."""

    def __init__(self, count: int, first_error: str) -> None:
        super().__init__(
            ngettext("The only object failed: %(error)s", "All %(count)d objects failed. The first: %(error)s", count)
            % {"count": count, "error": first_error}
        )


class EnqueueError(RuntimeError):
    """The broker did not take the task; it is recorded as failed and its locks are released."""

    def __init__(self, task_name: str, reason: object) -> None:
        self.task_name = task_name
        self.reason = str(reason)
        super().__init__(
            _("Task %(name)s could not be queued: %(reason)s. Check that the broker is running, then retry the task.")
            % {"name": task_name, "reason": reason}
        )


class TaskNotRetryable(RuntimeError):
    """This record can't be launched again; ``reason`` says why."""

    def __init__(self, task_name: str, reason: object) -> None:
        self.task_name = task_name
        self.reason = str(reason)
        super().__init__(_("Task %(name)s can't be retried: %(reason)s") % {"name": task_name, "reason": reason})
