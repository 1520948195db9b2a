"""The exceptions of the package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from django.core.exceptions import ValidationError
from django.db import OperationalError
from django.template.defaultfilters import filesizeformat
from django.utils.functional import lazy
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext_lazy

from powercrud_dashboard.text import KeptText, lazy_text

_lazy_filesize = lazy(filesizeformat, str)

#: How several locked objects are named.
_HELD = KeptText(_("%(object)s (held by %(holder)s)"))
_AND_MORE = KeptText(
    lambda count: ngettext_lazy("%(named)s and %(count)d more", "%(named)s and %(count)d more", count),
    inner=["named"],
)


def and_more(named: str, count: int) -> str:
    """Return the named things, and how many there are beyond them."""
    return str(_AND_MORE(named=named, count=count)) if count > 0 else named


@dataclass(frozen=True)
class HeldObject:
    """A locked object and the holder of the lock."""

    model_label: str
    object_id: str
    holder: str
    holder_label: str
    since: datetime | None = None
    #: The object, or its text.
    text: object = ""

    def __str__(self) -> str:
        named = self.text or f"{self.model_label} {self.object_id}"
        return str(_HELD(object=named, holder=self.holder_label or self.holder))


@dataclass(frozen=True)
class _Named:
    """The first of the locked objects, and how many there are."""

    held: list[HeldObject]
    total: int

    def __str__(self) -> str:
        named = ", ".join(map(str, self.held))
        return and_more(named, self.total - len(self.held))


class TaskConflict(RuntimeError):
    """Objects of a launch, a retry or a reservation are locked by another task or reservation.

    ``held`` lists the objects and their holders, and may be incomplete; ``total`` is their number.
    """

    #: Maximum number of objects in the message.
    NAMED_IN_MESSAGE = 5

    _text = KeptText(
        _(
            "Locked: %(objects)s. Wait until the locks are released, or cancel the task that holds them, then try "
            "again."
        ),
        inner=["objects"],
    )

    def __init__(self, held: Sequence[HeldObject], total: int | None = None) -> None:
        self.held = list(held)
        self.total = len(self.held) if total is None else total
        super().__init__(self._text(objects=_Named(self.held[: self.NAMED_IN_MESSAGE], self.total)))

    @property
    def holders(self) -> list[str]:
        """The names of the tasks and reservations that hold the locks."""
        return list(dict.fromkeys(item.holder for item in self.held))


class TaskCancelled(BaseException):
    """Raised in a running task after its cancellation was requested.

    Like ``KeyboardInterrupt``, this is not a subclass of ``Exception``, so ``except Exception`` does not catch it.
    """

    def __init__(self, task_name: str) -> None:
        self.task_name = task_name
        super().__init__(f"Task {task_name} was cancelled.")


class TaskGivenUp(BaseException):
    """Raised in a running task when its locks may belong to others: its worker was, or may soon be, declared lost."""

    _text = KeptText(_("Task %(name)s was stopped because the heartbeat of its worker had stopped."))

    def __init__(self, task_name: str) -> None:
        self.task_name = task_name
        super().__init__(self._text(name=task_name))


class ClusterStopping(BaseException):
    """Raised in a running task when its cluster stops, if the retry policy requeues the task."""

    _text = KeptText(_("Task %(name)s was interrupted because its cluster is stopping."))

    def __init__(self, task_name: str) -> None:
        self.task_name = task_name
        super().__init__(self._text(name=task_name))


class TaskPaused(BaseException):
    """Raised in a running task at the next item of its tracked loop after somebody has asked it to pause."""

    def __init__(self, task_name: str) -> None:
        self.task_name = task_name
        super().__init__(f"Task {task_name} was paused.")


class SliceEnded(BaseException):
    """Raised in a running task at the next item of its tracked loop after its ``slice`` of time."""

    def __init__(self, task_name: str) -> None:
        self.task_name = task_name
        super().__init__(f"Task {task_name} gives its worker back and is queued again.")


class WorkerLost(RuntimeError):
    """Represents a lost worker in a retry policy: its process was killed, or its host is down."""


class TaskBusy(OperationalError):
    """Another process keeps the rows of a task, or its objects, locked in the database; nothing was changed.

    It may be frozen, or cut off from the database in the middle of a transaction.
    """

    def __init__(self) -> None:
        super().__init__(
            _("Another process is changing this and does not finish. Nothing was changed. Try again in a moment.")
        )


class UnimportableCallable(ValueError):
    """A worker process can't import the callable."""

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.reason = str(reason)
        super().__init__(
            f"{name} can't run in the background: {reason}. "
            "Pass a function defined at the top level of an importable module, or its dotted path."
        )


class TaskNameTaken(ValueError):
    """A task with this ``task_key`` already exists."""

    def __init__(self, task_name: str) -> None:
        self.task_name = task_name
        super().__init__(
            f"A task named {task_name} already exists. Omit task_key to generate a name, or pass an unused one."
        )


class TaskAlreadyActive(RuntimeError):
    """A task with the same ``unique_key`` is queued or running. Its name is ``task_name``."""

    _text = KeptText(_("The same task is already queued or running: %(name)s."))

    def __init__(self, task_name: str) -> None:
        self.task_name = task_name
        super().__init__(self._text(name=task_name))


class ScheduleNotDeclared(LookupError):
    """A schedule was to run that the code does not declare (any more)."""

    _text = KeptText(
        _(
            "No schedule named %(name)s is declared in the code of this worker. Run manage.py pcrud_sync_schedules, "
            "and restart clusters that run older code."
        )
    )

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(self._text(name=name))


class FileTooLarge(ValueError):
    """A file of a task is larger than ``DASHBOARD_FILE_LIMIT`` bytes."""

    _text = KeptText(_("The file %(name)s is larger than %(limit)s (DASHBOARD_FILE_LIMIT)."))

    def __init__(self, name: str, limit: int) -> None:
        self.name = name
        self.limit = limit
        super().__init__(self._text(name=name, limit=_lazy_filesize(limit)))


class AllObjectsFailed(RuntimeError):
    """All objects of a task failed. The message contains the first error."""

    _text = KeptText(
        lambda count: ngettext_lazy(
            "The only object failed: %(error)s", "All %(count)d objects failed. First error: %(error)s", count
        ),
        inner=["error"],
    )

    def __init__(self, count: int, first_error: str) -> None:
        super().__init__(self._text(count=count, error=first_error))


class FailedAfterCommit(RuntimeError):
    """The changes of a function are stored, but a callback after their commit failed."""

    _text = KeptText(_("The changes are stored, but a callback after their commit failed. %(error)s"), inner=["error"])

    def __init__(self, error: str) -> None:
        super().__init__(self._text(error=error))


class EnqueueError(RuntimeError):
    """The broker did not accept the task. The task is recorded as failed and its locks are released."""

    _text = KeptText(
        _("Task %(name)s could not be queued: %(reason)s. Check that the broker is running, then retry the task.")
    )

    def __init__(self, task_name: str, reason: object) -> None:
        self.task_name = task_name
        self.reason = str(reason)
        # The sentence has a full stop of its own.
        super().__init__(self._text(name=task_name, reason=self.reason.removesuffix(".")))


class BrowserAnswer(RuntimeError):
    """An action answered with something that only a browser could use, such as a page or a redirect."""

    _text = KeptText(
        _(
            "The action answered with %(answer)s, which needs a browser. If it asks something first, use form=, "
            "confirm=True or background_when=. Otherwise return nothing, data, or a file."
        ),
        inner=["answer"],
    )

    def __init__(self, answer: object) -> None:
        self.answer = answer
        super().__init__(self._text(answer=answer))


class DeletionRefused(RuntimeError):
    """Nothing was deleted, because protected objects refer to what was selected."""


class ErrorAnswer(RuntimeError):
    """An action answered with the status of an error, ``status_code``."""

    _text = KeptText(_("The action answered with an error: %(answer)s"))

    def __init__(self, status_code: int, content: str) -> None:
        self.status_code = status_code
        super().__init__(self._text(answer=f"{status_code} {content}".strip()))


class MiddlewareAnswered(RuntimeError):
    """A middleware in ``DASHBOARD_WORKER_MIDDLEWARE`` answered in place of the action."""

    _text = KeptText(
        _("The action did not run: a middleware in DASHBOARD_WORKER_MIDDLEWARE answered in its place (%(answer)s).")
    )

    def __init__(self, status_code: int, location: str = "") -> None:
        self.status_code = status_code
        self.location = location
        super().__init__(self._text(answer=f"{status_code} {location}".strip()))


class UnreadableSpec(ValueError):
    """The spec of a task can't be read, for this ``reason``.

    ``is_newer`` is true if a newer release wrote the spec.
    """

    _text = KeptText(_("The task can't be restored: %(reason)s."), inner=["reason"])

    def __init__(self, reason: object, *, is_newer: bool = False) -> None:
        self.reason = reason
        self.is_newer = is_newer
        super().__init__(self._text(reason=reason))


class TaskNotRetryable(RuntimeError):
    """The task can't be retried, for this ``reason``."""

    _text = KeptText(_("Task %(name)s can't be retried: %(reason)s"), inner=["reason"])

    def __init__(self, task_name: str, reason: object) -> None:
        self.task_name = task_name
        self.reason = reason
        super().__init__(self._text(name=task_name, reason=reason))


class TaskNotCancellable(RuntimeError):
    """The task can't be cancelled, for this ``reason``."""

    def __init__(self, task_name: str, reason: object) -> None:
        self.task_name = task_name
        self.reason = reason
        super().__init__(lazy_text(_("Task %(name)s can't be cancelled: %(reason)s"), name=task_name, reason=reason))


class TaskNotPausable(RuntimeError):
    """The task can't be paused, for this ``reason``."""

    def __init__(self, task_name: str, reason: object) -> None:
        self.task_name = task_name
        self.reason = reason
        super().__init__(lazy_text(_("Task %(name)s can't be paused: %(reason)s"), name=task_name, reason=reason))


class MessageNotMovable(RuntimeError):
    """A message in the queue can't be delivered before the others, for this ``reason``."""

    def __init__(self, reason: object) -> None:
        self.reason = reason
        super().__init__(lazy_text(_("The message can't be moved: %(reason)s."), reason=reason))


class ArgumentsNotEditable(RuntimeError):
    """The task can be retried, but not with other arguments: its own are more than plain JSON."""

    def __init__(self, task_name: str) -> None:
        self.task_name = task_name
        text = _(
            "Task %(name)s can't be retried with other arguments, because its arguments are not plain JSON. "
            "Retry it without changes."
        )
        super().__init__(lazy_text(text, name=task_name))


class InvalidParameters(ValidationError):
    """The parameters of an action, which were valid at the click, are not valid any more."""

    _text = KeptText(_("The parameters are no longer valid: %(problems)s"))

    def __init__(self, problems: str) -> None:
        super().__init__(self._text(problems=problems))

    def __str__(self) -> str:
        return str(self.message)
