"""Search of the conflict locks."""

from __future__ import annotations

from django.apps import apps
from django.db.models import Exists, OuterRef, Q, QuerySet

from powercrud_dashboard.models import ConflictLock, TaskObject, TaskRecord
from powercrud_dashboard.models.search import MAX_WORDS
from powercrud_dashboard.text import is_storable


def matching_locks(search: str) -> QuerySet[ConflictLock]:
    """Return the locks that match all words of a search: by object, its name or key, model, holder or person."""
    locks: QuerySet[ConflictLock] = ConflictLock.objects.all()
    if not is_storable(search):
        return locks.none()
    for word in search.split()[:MAX_WORDS]:
        locks = locks.filter(_matches(word))
    return locks


def texts_of(locks: list[ConflictLock], task_names: list[str]) -> dict[tuple[str, str, str], str]:
    """Return the descriptions of locked objects by task, model and key, as far as they are known."""
    entries = TaskObject.objects.filter(
        object_id__in={lock.object_id for lock in locks}, record__task_name__in=task_names
    ).exclude(text="")
    rows = entries.values_list("record__task_name", "model_label", "object_id", "text")
    return {(name, label, key): text for name, label, key, text in rows}


def _matches(word: str) -> Q:
    """Return the condition for locks that a word of a search is about."""
    models = [
        model._meta.label_lower for model in apps.get_models() if word.lower() in str(model._meta.verbose_name).lower()
    ]
    of_person = TaskRecord.objects.unfinished().filter(user_label__icontains=word).values("task_name")
    named = TaskObject.objects.filter(
        object_id=OuterRef("object_id"),
        model_label=OuterRef("model_label"),
        record__task_name=OuterRef("active_task__task_name"),
        text__icontains=word,
    )
    return (
        Q(model_label__icontains=word)
        | Q(model_label__in=models)
        | Q(object_id=word)
        | Q(active_task__label__icontains=word)
        | Q(active_task__task_name=word)
        | Q(active_task__task_name__in=of_person)
        | Q(Exists(named))
    )
