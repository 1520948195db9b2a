"""``lock_blocks_edit``: prevents changes and deletion of locked objects in the admin."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

from django import forms
from django.contrib.admin.utils import NestedObjects
from django.core.exceptions import ValidationError
from django.db import router
from django.db.models import Model
from django.forms.models import BaseModelFormSet
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from powercrud_dashboard.async_context import get_current_task
from powercrud_dashboard.engine import locks
from powercrud_dashboard.exceptions import TaskBusy, TaskConflict
from powercrud_dashboard.models import ConflictLock


def locks_of_other_tasks(objects: Iterable[Model]) -> list[ConflictLock]:
    """Return the locks on these objects, except those of the current task."""
    task = get_current_task()
    return [
        lock for lock in locks.locks_on(_keys(objects)) if task is None or lock.active_task.task_name != task.task_name
    ]


def refuse_locked(objects: Iterable[Model]) -> None:
    """Raise ``TaskConflict`` if another task holds a lock on one of these objects."""
    if others := locks_of_other_tasks(objects):
        raise locks.conflict_error(others)


@contextmanager
def hold_for_edit(objects: list[Any]) -> Iterator[None]:
    """Hold locks on these objects while the block changes or deletes them, until the surrounding transaction ends.

    Raises:
        TaskConflict: if another task holds a lock on one of them.
    """
    if get_current_task() is not None:
        # The current task may change the objects that it has locked itself.
        refuse_locked(objects)
        yield
        return
    with locks.held(_keys(objects), f"edit-{uuid.uuid4()}"):
        yield


def lock_aware_form(form: type[forms.ModelForm[Any]], *, if_changed: bool) -> type[forms.ModelForm[Any]]:
    """Return a subclass of the form that is invalid while another task has locked the object.

    ``if_changed`` is for forms that Django saves only if something was changed in them.
    """

    class LockAwareForm(form):  # type: ignore[valid-type, misc]
        def clean(self) -> Any:
            cleaned = super().clean()
            is_saved = self.instance.pk is not None and (self.has_changed() or not if_changed)
            if is_saved and (held := locks_of_other_tasks([self.instance])):
                raise ValidationError(lock_message(held))
            return cleaned

    return LockAwareForm


def lock_aware_formset(formset: type[BaseModelFormSet[Any, Any]]) -> type[BaseModelFormSet[Any, Any]]:
    """Return a subclass of the formset that is invalid while another task has locked a row that it would change."""

    class LockAwareFormSet(formset):  # type: ignore[valid-type, misc]
        def clean(self) -> None:
            super().clean()
            deleted = {form.instance for form in getattr(self, "deleted_forms", ()) if form.instance.pk is not None}
            changed = {form.instance for form in self.initial_forms if form.has_changed()}
            if held := locks_of_other_tasks([*(changed - deleted), *rows_deleted_with(deleted)]):
                raise ValidationError(lock_message(held))

    return LockAwareFormSet


def rows_deleted_with(objects: Iterable[Model]) -> list[Model]:
    """Return these objects, and the rows that are deleted or changed with them, as they refer to them."""
    rows: list[Model] = []
    for using, group in _by_database(objects).items():
        collector: Any = NestedObjects(using=using, origin=group)
        collector.collect(group)
        rows.extend(chain.from_iterable(collector.data.values()))
        for updates in collector.field_updates.values():
            rows.extend(chain.from_iterable(updates))
    return rows


def _by_database(objects: Iterable[Model]) -> dict[str, list[Model]]:
    found: dict[str, list[Model]] = {}
    for item in objects:
        found.setdefault(router.db_for_write(type(item), instance=item), []).append(item)
    return found


def lock_message(held: list[ConflictLock]) -> str:
    """Return the error message for locked objects."""
    holders = ", ".join(dict.fromkeys(str(lock.active_task) for lock in held))
    text = ngettext(
        "This object is locked by %(holders)s and can't be changed until the lock is released.",
        "%(count)d of these objects are locked by %(holders)s and can't be changed until the locks are released.",
        len(held),
    )
    return text % {"count": len(held), "holders": holders}


def conflict_message(conflict: TaskBusy | TaskConflict, *, is_undone: bool) -> str:
    """Return the error message for a conflict while saving or deleting, or in an action that may have done more."""
    if isinstance(conflict, TaskBusy):
        return str(conflict)
    holders = ", ".join(dict.fromkeys(item.holder_label or item.holder for item in conflict.held))
    undone = _("Nothing was changed: the object is locked by %(holders)s.")
    stopped = _("The action was stopped: an object is locked by %(holders)s.")
    return (undone if is_undone else stopped) % {"holders": holders}


def _keys(objects: Iterable[Model]) -> locks.LockKeys:
    """Return the keys of these objects' rows, those in the tables of parent models included."""
    keys: dict[str, list[Any]] = {}
    for item in objects:
        for model in (type(item), *item._meta.get_parent_list()):
            keys.setdefault(model._meta.label_lower, []).append(getattr(item, model._meta.pk.attname))
    return locks.normalise(keys)
