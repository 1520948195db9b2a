"""What a project changes about the pages: a subclass of :class:`Dashboard` that ``DASHBOARD_CLASS`` names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from powercrud_dashboard.conf import app_settings

if TYPE_CHECKING:
    from django.contrib.auth.models import AbstractUser, AnonymousUser
    from django.db.models import QuerySet
    from django.http import HttpRequest

    from powercrud_dashboard.models import TaskRecord
    from powercrud_dashboard.models.history import TaskRecordQuerySet

    User = AbstractUser | AnonymousUser

__all__ = ["Column", "Dashboard"]

#: What users may do with the tasks that they launched, without further permissions.
OWN_TASKS = frozenset({"retry_taskrecord", "cancel_taskrecord", "dismiss_taskrecord", "pause_taskrecord"})


@dataclass(frozen=True)
class Column:
    """A column that a project adds to the task list.

    Args:
        name: part of the CSS class of its values, as ``customer`` of ``pcrud-project-customer``.
        label: the header, which may be a lazy translation.
        value: returns what a cell shows, for the record of its row. It is escaped unless it is a safe string.
    """

    name: str
    label: Any
    value: Callable[[TaskRecord], object]


class Dashboard:
    """What the pages ask a project. Override what differs; each method is its own default.

    There is one instance for all requests of a process, so keep nothing of a request in it.

    The ``may_`` methods are asked about active users only. With a ``record`` they answer for this task, and without one
    for all tasks that the user sees: actions on a whole list, and the buttons for them, ask that first. Either way each
    task is asked about before something is done to it. A task's state decides as well: none of these methods lets
    somebody cancel a task that has ended.
    """

    #: What the task list shows after its own columns, one below the other.
    columns: Sequence[Column] = ()
    #: Further filters of the task list, by the name of their query parameter. Values are those of django-filter.
    filters: Mapping[str, Any] = {}

    # Who may do what

    def has_permission(self, user: User, codename: str, record: TaskRecord | None = None) -> bool:
        """Return whether the user has this permission of the package, or may do it to a task that they launched.

        The ``may_`` methods return this by default.
        """
        is_own = record is not None and record.user_id is not None and record.user_id == user.pk
        if is_own and codename in OWN_TASKS and app_settings.DASHBOARD_MANAGE_OWN_TASKS:
            return True
        return user.has_perm(f"powercrud_dashboard.{codename}")

    def may_view_all(self, user: User) -> bool:
        """Return whether the user sees all tasks, and the pages about all of them: Insights, Cluster and others."""
        return self.has_permission(user, "view_taskrecord")

    def visible_tasks(self, tasks: TaskRecordQuerySet, user: User) -> TaskRecordQuerySet:
        """Return those of the tasks that a user sees who may not view all: by default those that they launched."""
        return tasks.filter(user=user.pk)

    def may_retry(self, user: User, record: TaskRecord | None = None) -> bool:
        """Return whether the user may retry ended tasks, and run waiting ones now."""
        return self.has_permission(user, "retry_taskrecord", record)

    def may_edit(self, user: User, record: TaskRecord | None = None) -> bool:
        """Return whether the user, who may retry the task, may change its arguments for that."""
        return self.has_permission(user, "change_taskrecord", record)

    def may_cancel(self, user: User, record: TaskRecord | None = None) -> bool:
        """Return whether the user may cancel unfinished tasks."""
        return self.has_permission(user, "cancel_taskrecord", record)

    def may_pause(self, user: User, record: TaskRecord | None = None) -> bool:
        """Return whether the user may pause unfinished tasks, and resume them."""
        return self.has_permission(user, "pause_taskrecord", record)

    def may_dismiss(self, user: User, record: TaskRecord | None = None) -> bool:
        """Return whether the user may dismiss failures, and reopen them."""
        return self.has_permission(user, "dismiss_taskrecord", record)

    def may_delete(self, user: User, record: TaskRecord | None = None) -> bool:
        """Return whether the user may delete the records of ended tasks."""
        return self.has_permission(user, "delete_taskrecord", record)

    def may_view_locks(self, user: User) -> bool:
        """Return whether the user sees the Locks page."""
        return self.has_permission(user, "view_conflictlock")

    def may_release_locks(self, user: User) -> bool:
        """Return whether the user may release locks."""
        return self.has_permission(user, "release_conflictlock")

    def may_pause_queues(self, user: User) -> bool:
        """Return whether the user may pause and resume queues, and functions on all queues."""
        return self.has_permission(user, "pause_queue")

    def may_acknowledge_alerts(self, user: User) -> bool:
        """Return whether the user may acknowledge alerts."""
        return self.has_permission(user, "acknowledge_alert")

    def may_change_schedules(self, user: User) -> bool:
        """Return whether the user may run, pause and resume django-q2's schedules."""
        return user.has_perm("django_q.change_schedule")

    def may_change_messages(self, user: User, action: str) -> bool:
        """Return whether the user may ``change`` or ``delete`` messages in the queue that are for no manager's task."""
        return user.has_perm(f"django_q.{action}_ormq")

    # How things are shown. An error in these is logged, and the page shows what it shows by default.

    def user_text(self, record: TaskRecord) -> str:
        """Return who launched the task; "" for nobody. Search, sorting and exports use the name of the record."""
        return record.user_label

    def object_text(self, model_label: str, object_id: str, text: str) -> str:
        """Return what an object is called whose text was ``text`` when it was recorded.

        It is called for each object that a page shows, so a query in it is one for each of them.
        """
        return text

    def arguments_text(self, record: TaskRecord) -> str | None:
        """Return what the page of a task shows in the place of its arguments; None to show them as JSON.

        This is no protection: "All data of this task as JSON" has them, with secrets masked by Django's filter.
        """
        return None

    def result_text(self, record: TaskRecord) -> str | None:
        """Return what the page of a completed task shows in the place of its result; None to show it as JSON."""
        return None

    def prepare_list(self, tasks: QuerySet[TaskRecord]) -> QuerySet[TaskRecord]:
        """Return the tasks of the list with what the columns and texts need, such as annotations and related rows.

        The arguments and the result are deferred there, as they may be large.
        """
        return tasks

    def task_panel(self, record: TaskRecord, request: HttpRequest) -> str:
        """Return HTML that the page of a task shows below its facts; a text that is not safe is escaped."""
        return ""

    def index_panel(self, request: HttpRequest) -> str:
        """Return HTML that the index of the admin shows below the counts; a text that is not safe is escaped."""
        return ""


def dashboard() -> Dashboard:
    """Return the instance of the project's class.

    Raises:
        ImproperlyConfigured: if the class can't be used. Nothing is shown then: the default may show more than it.
    """
    path = app_settings.DASHBOARD_CLASS
    if not isinstance(path, str | None):
        raise ImproperlyConfigured(f"{path!r} is not a dotted path")
    return dashboard_of(path)


@cache
def dashboard_of(path: str | None) -> Dashboard:
    """Return the instance of the class at a dotted path, and raise as :func:`dashboard` does."""
    if path is None:
        return Dashboard()
    try:
        found = import_string(path)
    except Exception as error:
        # Importing runs the module, which may raise anything.
        raise ImproperlyConfigured(f"{path!r} can't be imported: {type(error).__name__}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Dashboard)):
        raise ImproperlyConfigured(f"{path!r} is not a subclass of powercrud_dashboard.extension.Dashboard")
    return found()
