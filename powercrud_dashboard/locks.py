"""Conflict locks: take, hand over, release, and who holds what."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2s
from typing import Any

from django.apps import apps
from django.core.exceptions import ValidationError
from django.db import IntegrityError, connections, models, transaction

from powercrud_dashboard.exceptions import HeldObject, TaskConflict
from powercrud_dashboard.models import ActiveTask, ConflictLock
from powercrud_dashboard.models.coordination import (
    WHOLE_MODEL,
    ActiveTaskState,
    coordination_db,
    reservation_expiry,
    write_transaction,
)

#: What callers pass: ``{"app_label.Model": {pk, ...}}``; a value may be any iterable of keys or a queryset.
ConflictIds = Mapping[str, Iterable[Any]]
#: What the locks are kept by: model label in lower case, keys as sorted text.
LockKeys = dict[str, list[str]]

#: More objects than this are counted in an error, but not named.
NAMED_CONFLICTS = 100

#: As the value of a model in ``conflict_ids``: all of its objects, and those that come.
ALL_OBJECTS = frozenset({WHOLE_MODEL})

#: Looks at the locks, each followed by a try to take them, before a launch gives up.
TAKE_ATTEMPTS = 3


def normalise(conflict_ids: ConflictIds | None) -> LockKeys:
    """Return the one spelling of each object, sorted so that two tasks never wait for each other in a ring.

    Labels are matched without regard to case, a proxy model counts as its concrete model,
    and primary keys are text in the form of the model's own key field.

    Raises:
        TypeError: if a value is one string, where a collection of keys was meant.
        ValueError: if a key can't be a primary key of its model.
    """
    keys: dict[str, set[str]] = {}
    for label, values in (conflict_ids or {}).items():
        model_label, originals = _by_key(label, values)
        if originals:
            keys.setdefault(model_label, set()).update(originals)
    return {label: sorted(keys[label]) for label in sorted(keys)}


def held_ids(conflict_ids: ConflictIds) -> set[Hashable]:
    """Return those of the given ids, as they were given, that anyone holds."""
    held: set[Hashable] = set()
    for label, values in conflict_ids.items():
        model_label, originals = _by_key(label, values)
        for locks in ConflictLock.objects.all().in_the_way_of({model_label: originals}):
            found = set(locks.values_list("object_id", flat=True))
            # A lock on the whole model is one on each object; who asks for the whole model meets any lock.
            everything = WHOLE_MODEL in found or (found and WHOLE_MODEL in originals)
            held.update(originals.values() if everything else map(originals.__getitem__, found))
    return held


def _by_key(label: str, values: Iterable[Any]) -> tuple[str, dict[str, Any]]:
    """Return the normalised label, and each value under its key as text."""
    if isinstance(values, str | bytes):
        raise TypeError(f"conflict_ids[{label!r}] is one string; pass a set of primary keys, such as {{{values!r}}}.")
    if isinstance(values, models.QuerySet):
        values = values.values_list("pk", flat=True)
    try:
        model = apps.get_model(label)
    except (LookupError, ValueError):
        return label.lower(), {str(_key_of(value)): _key_of(value) for value in values}
    options = model._meta.concrete_model._meta
    values = list(values)
    if isinstance(options.pk, models.IntegerField) and all(type(value) is int for value in values):
        # They are many at times, and as they should be.
        return options.label_lower, dict(zip(map(str, values), values, strict=True))
    try:
        return options.label_lower, {_as_text(options.pk, _key_of(value)): _key_of(value) for value in values}
    except ValidationError as error:
        raise ValueError(f"conflict_ids[{label!r}]: {' '.join(error.messages)}") from error


def _as_text(pk: Any, key: Any) -> str:
    return WHOLE_MODEL if key == WHOLE_MODEL else str(pk.to_python(key))


def _key_of(value: Any) -> Any:
    return value.pk if isinstance(value, models.Model) else value


def holders(keys: LockKeys) -> list[str]:
    """Return the names of the tasks and reservations that hold one of the objects, each once."""
    return list({lock.active_task.task_name for lock in ConflictLock.objects.all().held_among(keys)})


def locks_on(keys: LockKeys) -> list[ConflictLock]:
    """Return the locks that lie on these objects or on all of their model, with their holders."""
    return ConflictLock.objects.all().held_among(keys)


def conflict_on(keys: LockKeys, *, except_for: str = "") -> TaskConflict:
    """Return the error that says who, but for this task, holds these objects."""
    return conflict_error([lock for lock in locks_on(keys) if lock.active_task.task_name != except_for])


def take(holder: ActiveTask, keys: LockKeys, *, from_reservations: Iterable[int] = ()) -> None:
    """Lock all objects for ``holder``, or none; call it inside a transaction.

    Locks that ``holder`` itself has, and locks of the named reservations (primary keys of
    ``ActiveTask``), are its own already; reservations that are left without a lock are dropped.

    Raises:
        TaskConflict: if anyone else holds one of the objects.
    """
    reservations = list(from_reservations)
    own = {holder.pk, *reservations}
    _serialise(keys)
    is_about_all = any(WHOLE_MODEL in object_ids for object_ids in keys.values())
    if not is_about_all and ConflictLock.objects.all().insert_free(keys, holder):
        _drop_empty(reservations)
        return
    for _attempt in range(TAKE_ATTEMPTS):
        held = ConflictLock.objects.all().held_among(keys)
        others = [lock for lock in held if lock.active_task_id not in own]
        if others:
            raise conflict_error(others)
        if _hand_over(held, holder) and _insert_missing(keys, held, holder):
            _drop_empty(reservations)
            return
        # Somebody was faster between the look and the write: look again.
    raise conflict_error(held)


def _drop_empty(reservations: list[int]) -> None:
    if reservations:
        ActiveTask.objects.all().drop_empty_reservations(pk__in=reservations)


def _serialise(keys: LockKeys) -> None:
    """Let no lock on a whole model and none on its objects be taken at the same moment, unseen by each other.

    Two rows for different objects don't meet in an index. SQLite has one writer at a time; PostgreSQL gets advisory
    locks until the end of the transaction, which those who lock single objects share.
    """
    connection = connections[coordination_db()]
    if connection.vendor != "postgresql" or not keys:
        return
    calls, numbers = [], []
    for label, object_ids in keys.items():
        shared = "" if WHOLE_MODEL in object_ids else "_shared"
        calls.append(f"pg_advisory_xact_lock{shared}(%s)")
        numbers.append(int.from_bytes(blake2s(f"pcrud {label}".encode(), digest_size=8).digest(), signed=True))
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {', '.join(calls)}", numbers)


def _hand_over(held: list[ConflictLock], holder: ActiveTask) -> bool:
    """Make reserved locks the holder's; False if one of them is gone meanwhile, as when it has expired."""
    reserved = [lock.pk for lock in held if lock.active_task_id != holder.pk]
    return ConflictLock.objects.all().hand_over(reserved, holder) == len(reserved)


def _insert_missing(keys: LockKeys, held: list[ConflictLock], holder: ActiveTask) -> bool:
    """Lock what is not held yet; False if somebody else has locked one of the objects meanwhile."""
    there = {(lock.model_label, lock.object_id) for lock in held}
    wanted = ((label, object_id) for label, object_ids in keys.items() for object_id in object_ids)
    missing = [
        ConflictLock(model_label=label, object_id=object_id, active_task=holder)
        for label, object_id in wanted
        if (label, object_id) not in there
    ]
    if not missing:
        return True
    try:
        with transaction.atomic(using=coordination_db()):
            ConflictLock.objects.bulk_create(missing)
    except IntegrityError:
        return False
    return True


def reserve(name: str, keys: LockKeys, *, manager_class: str = "") -> ActiveTask | None:
    """Lock the objects under a name, without launching a task. Return the holder.

    If ``name`` is a queued or running task, that task gets the locks as well. Returns None,
    with nothing locked, if anyone holds one of the objects.
    """
    try:
        with write_transaction():
            # The row lock keeps a task from ending, and so from releasing, before it has the new locks.
            task = ActiveTask.objects.tasks().select_for_update().filter(task_name=name).first()
            holder = task or ActiveTask.objects.create(
                task_name=name,
                state=ActiveTaskState.RESERVED,
                manager_class=manager_class,
                expires_at=reservation_expiry(),
            )
            take(holder, keys)
    except TaskConflict:
        return None
    return holder


def release(name: str, keys: LockKeys | None = None) -> int:
    """Release what tasks or reservations of this name hold: all of it, or only ``keys``.

    Returns the number of locks released. Objects that others hold are left alone.
    """
    locks = ConflictLock.objects.filter(active_task__in=ActiveTask.objects.filter(task_name=name))
    parts = [locks] if keys is None else locks.on_objects(keys)
    released = sum(part._raw_delete(part.db) for part in parts)
    ActiveTask.objects.all().drop_empty_reservations(task_name=name)
    return released


@contextmanager
def held(keys: LockKeys, name: str) -> Iterator[None]:
    """Hold these objects for the length of a block, under a reservation of this name.

    Inside a transaction nobody sees the locks, but nobody takes them either before it has ended.

    Raises:
        TaskConflict: if anyone holds one of them; then the block is not entered.
    """
    if reserve(name, keys) is None:
        raise conflict_on(keys)
    try:
        yield
    finally:
        if not connections[coordination_db()].needs_rollback:
            release(name)


def release_one(lock: ConflictLock) -> bool:
    """Release this lock if its holder still has it; return whether it had."""
    same = ConflictLock.objects.filter(pk=lock.pk, active_task_id=lock.active_task_id)
    if not same._raw_delete(same.db):
        return False
    ActiveTask.objects.all().drop_empty_reservations(pk=lock.active_task_id)
    return True


def conflict_error(locks: list[ConflictLock]) -> TaskConflict:
    return TaskConflict(
        [
            HeldObject(
                model_label=lock.model_label,
                object_id=lock.object_id,
                holder=lock.active_task.task_name,
                holder_label=lock.active_task.label,
                since=lock.locked_at,
                text=str(lock),
            )
            for lock in locks[:NAMED_CONFLICTS]
        ],
        total=len(locks),
    )
