"""Who may see a task and act on it; asked by the endpoint, the pages and the admin alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from powercrud_dashboard.models import ActiveTask, TaskRecord

if TYPE_CHECKING:
    from django.contrib.auth.models import AbstractUser, AnonymousUser

    Person = AbstractUser | AnonymousUser


def has_permission(user: Person, codename: str) -> bool:
    """Return whether an active user has one of this package's permissions."""
    if not user.is_active:
        return False
    return user.has_perm(f"powercrud_dashboard.{codename}")


def may_see(user: Person, task_name: str) -> bool:
    """Return whether this person may see the task, be it recorded or only active."""
    if not user.is_authenticated or not user.is_active:
        return False
    if TaskRecord.objects.visible_to(user).filter(task_name=task_name).exists():
        return True
    active = ActiveTask.objects.tasks().filter(task_name=task_name)
    if has_permission(user, "view_taskrecord"):
        return active.exists()
    return active.filter(user_id=user.pk).exists()


def may_retry(user: Person, record: TaskRecord) -> bool:
    return record.is_finished and has_permission(user, "retry_taskrecord")


def may_run_now(user: Person, record: TaskRecord) -> bool:
    """Return whether this person may end a task's wait for its next try."""
    return not record.is_finished and has_permission(user, "retry_taskrecord")


def may_edit_and_retry(user: Person, record: TaskRecord) -> bool:
    """Return whether this person may run the task again with other arguments than those it was launched with."""
    return may_retry(user, record) and has_permission(user, "change_taskrecord")


def may_delete(user: Person, record: TaskRecord) -> bool:
    return record.is_finished and has_permission(user, "delete_taskrecord")


def may_release_locks(user: Person) -> bool:
    return has_permission(user, "release_conflictlock")


def may_change_schedules(user: Person) -> bool:
    """Return whether this person may run, pause and resume schedules, which are django-q2's."""
    return user.is_active and user.has_perm("django_q.change_schedule")


def may_cancel(user: Person, record: TaskRecord) -> bool:
    return not record.is_finished and has_permission(user, "cancel_taskrecord")
