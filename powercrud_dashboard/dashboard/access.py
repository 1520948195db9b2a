"""Permission rules for tasks and locks, and the session in refreshes, shared by endpoint, pages and admin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.utils.crypto import constant_time_compare
from django.utils.translation import gettext as _

from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.extension import OWN_TASKS, dashboard
from powercrud_dashboard.models import ActiveTask, Resolution, Source, TaskRecord, TaskStatus

if TYPE_CHECKING:
    from django.contrib.auth.models import AbstractUser, AnonymousUser
    from django.http import HttpRequest

    User = AbstractUser | AnonymousUser


#: The methods of ``Dashboard`` that answer for each permission.
_METHODS = {
    "view_taskrecord": "may_view_all",
    "retry_taskrecord": "may_retry",
    "change_taskrecord": "may_edit",
    "cancel_taskrecord": "may_cancel",
    "pause_taskrecord": "may_pause",
    "dismiss_taskrecord": "may_dismiss",
    "delete_taskrecord": "may_delete",
    "view_conflictlock": "may_view_locks",
    "release_conflictlock": "may_release_locks",
    "pause_queue": "may_pause_queues",
    "acknowledge_alert": "may_acknowledge_alerts",
}


def has_permission(user: User, codename: str, *record: TaskRecord) -> bool:
    """Return whether the user is active and has this permission of the package, or has it for this one task."""
    return user.is_active and bool(getattr(dashboard(), _METHODS[codename])(user, *record))


#: What can be done only to the tasks of this package's managers, and what also to those of plain django-q2.
NEED_A_MANAGER = frozenset({"retry_taskrecord", "cancel_taskrecord", "pause_taskrecord"})
ALSO_FOR_PLAIN = frozenset({"retry_taskrecord", "cancel_taskrecord"})


def sources_for(codename: str) -> list[str] | None:
    """Return the sources of the tasks to which this can be done; None for all."""
    if codename not in NEED_A_MANAGER:
        return None
    return ["", Source.DJANGO_Q.value] if codename in ALSO_FOR_PLAIN else [""]


def is_only_observed(record: TaskRecord, codename: str) -> bool:
    """Return whether this can't be done to the task, whoever wants it, as it is only observed."""
    sources = sources_for(codename)
    return sources is not None and record.source not in sources


def manages_own_tasks(user: User, codename: str) -> bool:
    """Return whether the user needs no permission for the tasks that they launched themselves."""
    return codename in OWN_TASKS and user.is_active and bool(app_settings.DASHBOARD_MANAGE_OWN_TASKS)


def has_permission_for(user: User, codename: str, record: TaskRecord) -> bool:
    """Return whether the user has this permission, or needs none because they launched the task.

    Nobody has one for what can't be done to a task that is only observed.
    """
    if is_only_observed(record, codename):
        return False
    return has_permission(user, codename, record)


def refusal(user: User, codename: str, record: TaskRecord) -> str:
    """Return the reason why the user may not do this to the task, whatever its state is, or ""."""
    if is_only_observed(record, codename):
        return _("is only observed")
    if has_permission_for(user, codename, record):
        return ""
    is_others = record.user_id != user.pk and not has_permission(user, codename)
    return _("was launched by somebody else") if is_others else _("you have no permission for it")


def may_see(user: User, task_name: str) -> bool:
    """Return whether the user may see the task, recorded or only active."""
    if not (user.is_authenticated and user.is_active):
        return False
    if TaskRecord.objects.visible_to(user).filter(task_name=task_name).exists():
        return True
    active = ActiveTask.objects.tasks().filter(task_name=task_name)
    if has_permission(user, "view_taskrecord"):
        return active.exists()
    return active.filter(user_id=user.pk).exists()


def may_retry(user: User, record: TaskRecord) -> bool:
    return record.is_finished and has_permission_for(user, "retry_taskrecord", record)


def may_dismiss(user: User, record: TaskRecord) -> bool:
    """Return whether the user may dismiss the failure."""
    return record.resolution == Resolution.OPEN and has_permission_for(user, "dismiss_taskrecord", record)


def may_reopen(user: User, record: TaskRecord) -> bool:
    """Return whether the user may open the dismissed failure again."""
    return record.resolution == Resolution.DISMISSED and has_permission_for(user, "dismiss_taskrecord", record)


def may_run_now(user: User, record: TaskRecord) -> bool:
    """Return whether the user may start a task that waits for its next attempt."""
    return not record.is_finished and has_permission_for(user, "retry_taskrecord", record)


def may_edit_and_retry(user: User, record: TaskRecord) -> bool:
    """Return whether the user may retry the task with changed arguments."""
    return may_retry(user, record) and has_permission(user, "change_taskrecord", record)


def may_delete(user: User, record: TaskRecord) -> bool:
    # What is only observed may never be told to end.
    return (record.is_finished or record.is_observed) and has_permission(user, "delete_taskrecord", record)


def may_release_locks(user: User) -> bool:
    return has_permission(user, "release_conflictlock")


def may_change_schedules(user: User) -> bool:
    """Return whether the user may run, pause and resume django-q2's schedules."""
    return user.is_active and dashboard().may_change_schedules(user)


def may_change_messages(user: User, action: str) -> bool:
    """Return whether the user may ``change`` or ``delete`` messages in the queue that are for no manager's task."""
    return user.is_active and dashboard().may_change_messages(user, action)


def may_test_clusters(user: User) -> bool:
    """Return whether the user may run a task that tests a cluster: who may run others again."""
    return has_permission(user, "retry_taskrecord")


def may_cancel(user: User, record: TaskRecord) -> bool:
    return not record.is_finished and has_permission_for(user, "cancel_taskrecord", record)


def kept_session(request: HttpRequest) -> dict[str, Any]:
    """Return what an action in a worker has of the session of this request."""
    session = getattr(request, "session", {})
    return {key: session[key] for key in app_settings.DASHBOARD_WORKER_SESSION_KEYS if key in session}


def may_pause(user: User, record: TaskRecord) -> bool:
    is_active = record.status in (TaskStatus.PENDING, TaskStatus.IN_PROGRESS)
    return is_active and has_permission_for(user, "pause_taskrecord", record)


def may_resume(user: User, record: TaskRecord) -> bool:
    """Return whether the user may resume the task, if it is paused or was asked to."""
    is_pausable = record.status in (TaskStatus.PAUSED, TaskStatus.IN_PROGRESS)
    return is_pausable and has_permission_for(user, "pause_taskrecord", record)


def may_pause_queues(user: User) -> bool:
    """Return whether the user may pause and resume queues, and functions on all queues."""
    return has_permission(user, "pause_queue")


def may_acknowledge_alerts(user: User) -> bool:
    return has_permission(user, "acknowledge_alert")


def has_monitoring_token(request: HttpRequest) -> bool:
    """Return whether the request has the bearer token of the settings."""
    token = app_settings.DASHBOARD_HEALTH_TOKEN
    scheme, _space, sent = request.headers.get("Authorization", "").partition(" ")
    return bool(token) and scheme.lower() == "bearer" and constant_time_compare(sent.strip(), token or "")


def do_not_renew_session(request: HttpRequest) -> None:
    """Save the session only if this request changes it, also with ``SESSION_SAVE_EVERY_REQUEST``.

    A page that refreshes itself is no sign of a person: it must not keep a session alive.
    """
    session = getattr(request, "session", None)
    if session is None:  # Other kinds of authentication need no session.
        return
    save = session.save

    def save_if_modified(must_create: bool = False) -> None:
        if session.modified:
            save(must_create)

    session.save = save_if_modified
