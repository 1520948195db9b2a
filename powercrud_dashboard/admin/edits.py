"""``lock_blocks_edit``: what a task works on is not changed or deleted by hand meanwhile."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.db.models import Model
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from powercrud_dashboard import locks
from powercrud_dashboard.async_context import get_current_task
from powercrud_dashboard.exceptions import TaskConflict
from powercrud_dashboard.models import ConflictLock


def locks_of_others(objects: Iterable[Model]) -> list[ConflictLock]:
    """Return the locks on these objects, but for those of the task that this code runs in."""
    task = get_current_task()
    return [
        lock for lock in locks.locks_on(_keys(objects)) if task is None or lock.active_task.task_name != task.task_name
    ]


@contextmanager
def not_locked(objects: list[Any]) -> Iterator[None]:
    """Change or delete these objects in the block; no task can lock them before the transaction around it has ended.

    Raises:
        TaskConflict: if a task holds one of them.
    """
    if get_current_task() is not None:
        # A task's own locks are what it works under.
        if others := locks_of_others(objects):
            raise locks.conflict_error(others)
        yield
        return
    with locks.held(_keys(objects), f"edit-{uuid.uuid4()}"):
        yield


def refusing_form(form: type[forms.ModelForm[Any]]) -> type[forms.ModelForm[Any]]:
    """Return the form with a check that nobody holds the object; what was typed stays in it."""

    class LockAwareForm(form):  # type: ignore[valid-type, misc]
        def clean(self) -> Any:
            cleaned = super().clean()
            if self.instance.pk is not None and self.has_changed() and (found := locks_of_others([self.instance])):
                raise ValidationError(words_for(found))
            return cleaned

    return LockAwareForm


def words_for(found: list[ConflictLock]) -> str:
    """Say who works on the object, or objects, so that they can't be changed now."""
    holders = ", ".join(dict.fromkeys(str(lock.active_task) for lock in found))
    words = ngettext(
        "This is being worked on by %(holders)s and can't be changed until that has ended.",
        "%(count)d of these are being worked on by %(holders)s and can't be changed until that has ended.",
        len(found),
    )
    return words % {"count": len(found), "holders": holders}


def words_for_conflict(conflict: TaskConflict) -> str:
    """Say the same of a refusal at the last moment."""
    holders = ", ".join(dict.fromkeys(item.holder_label or item.holder for item in conflict.held))
    return _("Nothing was changed: %(holders)s works on it just now.") % {"holders": holders}


def _keys(objects: Iterable[Model]) -> locks.LockKeys:
    keys: dict[str, list[Any]] = {}
    for item in objects:
        keys.setdefault(item._meta.label_lower, []).append(item.pk)
    return locks.normalise(keys)
