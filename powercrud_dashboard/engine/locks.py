"""Conflict locks: take, hand over and release them, and find out who holds what."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from hashlib import blake2s
from typing import Any

from django.apps import apps
from django.core.exceptions import ValidationError
from django.db import DatabaseError, IntegrityError, connections, models, router
from django.utils.functional import lazystr

from powercrud_dashboard.exceptions import HeldObject, TaskConflict
from powercrud_dashboard.models import ActiveTask, ConflictLock
from powercrud_dashboard.models.coordination import ActiveTaskState, reservation_expiry
from powercrud_dashboard.models.database import (
    LOCK_TIMEOUT,
    coordination_db,
    impatient_transaction,
    in_callers_transaction,
    in_chunks,
    not_waiting_for_locks,
    set_lock_timeout,
    write_transaction,
)
from powercrud_dashboard.models.labels import further_labels, label_of_rows
from powercrud_dashboard.models.locks import WHOLE_MODEL
from powercrud_dashboard.text import SHORT, clean_text, describe, is_storable

logger = logging.getLogger(__name__)

#: What callers pass: ``{"app_label.Model": {pk, ...}}``; a value may be any iterable of keys or a queryset.
ConflictIds = Mapping[str, Iterable[Any]]
#: The form that locks are stored in: model label in lower case -> keys as sorted text.
LockKeys = Mapping[str, list[str]]

#: More objects than this are counted in an error, but not named.
NAMED_CONFLICTS = 20

#: The lengths of the columns for a model's label and for a key.
LABEL_LENGTH = 201
KEY_LENGTH = 255

#: As the value of a model in ``conflict_ids``: all of its objects, those that are created later included.
ALL_OBJECTS = frozenset({WHOLE_MODEL})

#: How often the locks are read and then taken before a launch gives up.
TAKE_ATTEMPTS = 3


def normalise(conflict_ids: ConflictIds | None, *, keeps_empty: bool = False) -> LockKeys:
    """Return the form that locks are stored in, sorted so that two tasks can't deadlock.

    Labels are matched without regard to case, a proxy model counts as its concrete model and a child model as the
    parent whose key it shares, and primary keys are text in the form of that model's key field. A model without keys
    is left out, unless ``keeps_empty``.

    Raises:
        TypeError: if it is no mapping, or a value is one key, where a collection of keys was meant.
        ValueError: if a key can't be a primary key of its model.
    """
    if conflict_ids is not None and not isinstance(conflict_ids, Mapping):
        raise TypeError(f"conflict_ids is a {type(conflict_ids).__name__}; pass a mapping of model labels to keys.")
    keys: dict[str, set[str]] = {}
    for label, values in (conflict_ids or {}).items():
        model_label, originals = _by_key(label, values)
        if originals or keeps_empty:
            keys.setdefault(model_label, set()).update(originals)
    return {label: sorted(keys[label]) for label in sorted(keys)}


def lock_keys(conflict_ids: ConflictIds) -> LockKeys:
    """Return all that is to be locked, in the form of :func:`normalise`: objects with several parents in each table."""
    keys = normalise(conflict_ids)
    return merged(keys, parent_rows(conflict_ids, keys))


def parent_rows(labels: Iterable[str] | None, keys: LockKeys) -> LockKeys:
    """Return the rows of the same objects in the tables of further parents, for models with several of them.

    ``labels`` are those that the objects were given by, and ``keys`` what :func:`normalise` has made of them.
    """
    found: dict[str, set[str]] = {}
    for label in labels or ():
        for parent_label, own_keys in _rows_in_parents(label, keys.get(label_of_rows(label), ())):
            found.setdefault(parent_label, set()).update(own_keys)
    return {label: sorted(found[label]) for label in sorted(found)}


def merged(keys: LockKeys, further: LockKeys) -> LockKeys:
    """Return both, sorted."""
    if not further:
        return keys
    return {label: sorted({*keys.get(label, ()), *further.get(label, ())}) for label in sorted({*keys, *further})}


def _rows_in_parents(label: str, keys: Collection[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield, for each further parent of a model, its label and the keys of these objects' rows with their own keys."""
    try:
        model = apps.get_model(label)
    except (LookupError, ValueError):
        return
    for parent_label, key_field in further_labels(model).items():
        if WHOLE_MODEL in keys:
            yield parent_label, {WHOLE_MODEL: WHOLE_MODEL}
            continue
        rows = model._base_manager.using(router.db_for_write(model)).values_list(key_field, "pk")
        found: dict[str, str] = {}
        for chunk in in_chunks(keys, using=rows.db):
            found.update((str(key), str(pk)) for key, pk in rows.filter(pk__in=chunk))
        if found:
            yield parent_label, found


def _tables(label: str, model_label: str, keys: Collection[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the same for all tables of a model, that of its own key first."""
    yield model_label, {key: key for key in keys}
    yield from _rows_in_parents(label, keys)


def held_ids(conflict_ids: ConflictIds) -> set[Hashable]:
    """Return those of the given ids, as they were given, that anyone holds."""
    held: set[Hashable] = set()
    for label, values in conflict_ids.items():
        model_label, originals = _by_key(label, values)
        for table, own_keys in _tables(label, model_label, originals):
            for locks in ConflictLock.objects.all().conflicting_with({table: own_keys}):
                if WHOLE_MODEL in originals:
                    # A lock on one object holds the whole model, and a lock on the whole model holds each object.
                    held.update(originals.values() if locks.exists() else ())
                    continue
                found = set(locks.values_list("object_id", flat=True))
                is_all = WHOLE_MODEL in found
                held.update(originals.values() if is_all else (originals[own_keys[key]] for key in found))
    return held


def locks_by_key(label: str, keys: Iterable[Any], *, except_for: str = "") -> dict[str, ConflictLock]:
    """Return the locks of others than the task ``except_for`` on these objects, by the object's key.

    The key of a lock on the whole model is ``WHOLE_MODEL``.
    """
    model_label, originals = _by_key(label, keys)
    found: dict[str, ConflictLock] = {}
    for table, own_keys in _tables(label, model_label, originals):
        for lock in locks_on({table: [*own_keys]}):
            if lock.active_task.task_name != except_for:
                found.setdefault(own_keys.get(lock.object_id, WHOLE_MODEL), lock)
    return found


def _by_key(label: str, values: Iterable[Any]) -> tuple[str, dict[str, Any]]:
    """Return the normalised label, and each value under its key as text."""
    if not isinstance(label, str):
        raise TypeError(f"conflict_ids has {describe(label, SHORT)} in the place of a model's label.")
    if isinstance(values, str | bytes):
        raise TypeError(f"conflict_ids[{label!r}] is one string; pass a set of primary keys, such as {{{values!r}}}.")
    where = f"conflict_ids[{label!r}]"
    if not isinstance(values, Iterable):
        raise TypeError(f"{where} is {describe(values, SHORT)}; pass a set of primary keys, or a queryset.")
    if isinstance(values, models.QuerySet):
        values = values.values_list("pk", flat=True)
    model_label = label_of_rows(label)
    try:
        options = apps.get_model(model_label)._meta
    except (LookupError, ValueError):
        _checked("conflict_ids", model_label, LABEL_LENGTH)
        _warn_of_free_label(model_label)
        return model_label, {_checked(where, str(_key_of(value))): _key_of(value) for value in values}
    values = list(values)
    if isinstance(options.pk, models.IntegerField) and all(type(value) is int for value in values):
        # The common case, which may be many: they are in the right form.
        return model_label, dict(zip(map(str, values), values, strict=True))
    try:
        return model_label, {_checked(where, _as_text(options.pk, _key_of(value))): _key_of(value) for value in values}
    except ValidationError as error:
        raise ValueError(f"{where}: {' '.join(error.messages)}") from error
    except (TypeError, OverflowError) as error:
        # Bytes, for instance, or an infinite number.
        raise ValueError(f"{where}: {error}") from error


@lru_cache(maxsize=100)
def _warn_of_free_label(label: str) -> None:
    """Warn, the first time, that a label is not that of a model."""
    logger.warning("conflict_ids has %r, which is not an installed model: no object of a model is locked by it", label)


def _checked(where: str, text: str, length: int = KEY_LENGTH) -> str:
    if len(text) > length or not is_storable(text):
        raise ValueError(
            f"{where} has {clean_text(text, SHORT)!r}; use at most {length} characters, and neither NUL nor half of a "
            "surrogate pair."
        )
    return text


def _as_text(pk: Any, key: Any) -> str:
    return WHOLE_MODEL if key == WHOLE_MODEL else str(pk.to_python(key))


def _key_of(value: Any) -> Any:
    return value.pk if isinstance(value, models.Model) else value


def locks_on(keys: LockKeys) -> list[ConflictLock]:
    """Return the locks that lie on these objects or on all of their model, with their holders."""
    return ConflictLock.objects.all().held_among(keys)


def conflict_on(keys: LockKeys, *, except_for: str = "") -> TaskConflict:
    """Return the error that says who, but for this task, holds these objects."""
    others = ConflictLock.objects.exclude(active_task__task_name=except_for)
    return _conflict_among(others, keys) or conflict_error([])


def take(holder: ActiveTask, keys: LockKeys, *, from_reservations: Iterable[int] = ()) -> None:
    """Lock all objects for ``holder``, or none; call it inside a transaction.

    Locks that ``holder`` itself has are its own already. Of the named reservations (primary keys of ``ActiveTask``)
    it takes over the locks on these objects; reservations that are left without a lock are dropped.

    Raises:
        TaskConflict: if anyone else holds one of the objects.
        TaskBusy: if another session has them locked in the database and does not finish.
    """
    reservations = list(from_reservations)
    own = [holder.pk, *reservations]
    locks = ConflictLock.objects.all()
    is_about_all = any(WHOLE_MODEL in object_ids for object_ids in keys.values())
    with _serialised(keys):
        if is_about_all or not locks.insert_free(keys, holder, own):
            _take_with_own(holder, keys, own)
    if reservations:
        ActiveTask.objects.all().drop_empty_reservations(pk__in=reservations)


def _take_with_own(holder: ActiveTask, keys: LockKeys, own: list[int]) -> None:
    """Lock objects some of which are the holder's already, or reserved for it."""
    locks = ConflictLock.objects.all()
    wanted = sum(map(len, keys.values()))
    for _attempt in range(TAKE_ATTEMPTS):
        if conflict := _conflict_among(locks.exclude(active_task__in=own), keys):
            raise conflict
        for model_label, object_ids in keys.items():
            is_about_all = WHOLE_MODEL in object_ids
            on_model = locks.filter(model_label=model_label)
            for part in [on_model] if is_about_all else locks.on_objects({model_label: object_ids}):
                part.filter(active_task__in=own).update(active_task=holder)
        locks.insert_free(keys, holder, own)
        if wanted == sum(part.filter(active_task=holder).count() for part in locks.on_objects(keys)):
            return
        # Somebody changed the locks between the statements: read them again.
    raise _conflict_among(locks.exclude(active_task__in=own), keys) or conflict_error([])


def _conflict_among(locks: Any, keys: LockKeys) -> TaskConflict | None:
    """Return the error that names some of these locks that conflict with ``keys``; None if there are none."""
    parts = list(locks.conflicting_with(keys))
    found: list[ConflictLock] = []
    for part in parts:
        if (missing := NAMED_CONFLICTS - len(found)) > 0:
            found += part.with_holders()[:missing]
    if not found:
        return None
    return conflict_error(found, None if len(found) < NAMED_CONFLICTS else sum(part.count() for part in parts))


@contextmanager
def _serialised(keys: LockKeys) -> Iterator[None]:
    """Keep a lock on a whole model and locks on its objects from being taken at the same moment.

    They are different rows, so that no unique index refuses one of them. SQLite has one writer at a time. On
    PostgreSQL an advisory lock is taken until the end of the transaction, which locks on single objects share. Nothing
    in the block waits for long for other transactions.
    """
    if connections[coordination_db()].vendor != "postgresql" or not keys:
        yield
        return
    calls, numbers = [], []
    for label, object_ids in keys.items():
        shared = "" if WHOLE_MODEL in object_ids else "_shared"
        calls.append(f"pg_advisory_xact_lock{shared}(%s)")
        numbers.append(int.from_bytes(blake2s(f"pcrud {label}".encode(), digest_size=8).digest(), signed=True))
    with not_waiting_for_locks():
        before = set_lock_timeout(str(LOCK_TIMEOUT), *calls, params=numbers)
        yield
    if in_callers_transaction():
        set_lock_timeout(before)


def reserve(name: str, keys: LockKeys, *, manager_class: str = "") -> ActiveTask | None:
    """Lock the objects under a name, without launching a task. Return the holder.

    If ``name`` is a queued or running task, that task gets the locks as well. Returns None,
    with nothing locked, if anyone holds one of the objects.

    Raises:
        TaskBusy: if another session has the objects locked in the database and does not finish.
    """
    for _attempt in range(TAKE_ATTEMPTS):
        try:
            return _reserve(name, keys, manager_class)
        except IntegrityError:
            # The task has ended before its new locks were committed.
            logger.debug("The task %s has ended while it was given locks", name, exc_info=True)
        except TaskConflict:
            break
    return None


def _reserve(name: str, keys: LockKeys, manager_class: str) -> ActiveTask:
    with write_transaction():
        task = ActiveTask.objects.tasks().filter(task_name=name).first()
        holder = task or ActiveTask.objects.create(
            task_name=name,
            state=ActiveTaskState.RESERVED,
            manager_class=manager_class,
            unique_key=uuid.uuid4().hex,
            expires_at=reservation_expiry(),
        )
        take(holder, keys)
    return holder


def extend(task_name: str, keys: LockKeys, *, attempt: int | None = None) -> bool:
    """Lock more objects for a task, all or none. Return whether it holds them now.

    False also if the task has ended, or is not in this attempt any more (None for any attempt).
    """
    try:
        with write_transaction():
            # The row is not locked, as others write into it while the transaction of the task's function may be long.
            # If it is deleted meanwhile, the foreign key of the locks keeps this transaction from being committed.
            tasks = ActiveTask.objects.tasks().filter(task_name=task_name)
            task = (tasks if attempt is None else tasks.running().filter(attempt=attempt)).first()
            if task is None:
                logger.warning("Task %s gets no more locks: it has ended, or has passed to another worker", task_name)
                return False
            take(task, keys)
    except (TaskConflict, IntegrityError):
        return False
    return True


def release(name: str, keys: LockKeys | None = None, *, own: Collection[str] = ()) -> int:
    """Release what tasks or reservations of this name hold: all of it, or only ``keys``.

    ``own`` are the unique keys of the caller's reservations. If some of this name are among them, only these release
    locks: those of others, and a task of this name, are left alone. Returns the number of locks released.

    Raises:
        TaskBusy: if another session has the locks locked in the database and does not finish.
    """
    with impatient_transaction():
        return _release(name, keys, own)


def _release(name: str, keys: LockKeys | None = None, own: Collection[str] = ()) -> int:
    holders = ActiveTask.objects.filter(task_name=name)
    if own and (mine := holders.filter(unique_key__in=own)).exists():
        holders = mine
    locks = ConflictLock.objects.filter(active_task__in=holders)
    parts = [locks] if keys is None else locks.on_objects(keys)
    released = sum(part._raw_delete(part.db) for part in parts)
    ActiveTask.objects.all().drop_empty_reservations(task_name=name)
    return released


@contextmanager
def held(keys: LockKeys, name: str) -> Iterator[None]:
    """Hold these objects for the length of a block, under a reservation of this name.

    Inside a transaction nobody sees the locks, but nobody can take them before it has ended either.

    Raises:
        TaskConflict: if anyone holds one of them; then the block is not entered.
    """
    _reserve(name, keys, "")
    try:
        yield
    except BaseException:
        if not connections[coordination_db()].needs_rollback:
            try:
                _release(name)
            except DatabaseError:
                # After a failed statement PostgreSQL executes no other in its transaction, whose end undoes the locks.
                logger.debug("The locks of %s are undone with their transaction", name, exc_info=True)
        raise
    if not connections[coordination_db()].needs_rollback:
        _release(name)


def give_back(holder: ActiveTask) -> int:
    """Release all locks of a task, which :func:`take_back` locks again. Return how many there were."""
    own = ConflictLock.objects.filter(active_task=holder)
    released: dict[str, dict[str, list[str]]] = {"all": {}, "selected": {}}
    for label, key, is_selected in own.values_list("model_label", "object_id", "is_selected"):
        for part in ("all", "selected") if is_selected else ("all",):
            released[part].setdefault(label, []).append(key)
    ActiveTask.objects.filter(pk=holder.pk).update(released_locks=released if released["all"] else {})
    return own._raw_delete(own.db)


def take_back(holder: ActiveTask) -> None:
    """Lock again what :func:`give_back` has released, all or none; call it inside a transaction.

    Raises:
        TaskConflict: if anyone else holds one of the objects.
        TaskBusy: if another session has them locked in the database and does not finish.
    """
    if holder.released_locks:
        take(holder, holder.released_locks["all"])
        ConflictLock.objects.all().select(holder.task_name, holder.released_locks["selected"])
        ActiveTask.objects.filter(pk=holder.pk).update(released_locks={})


def release_one(lock: ConflictLock) -> bool:
    """Release this lock if its holder still has it; return whether it had."""
    same = ConflictLock.objects.filter(pk=lock.pk, active_task_id=lock.active_task_id)
    if not same._raw_delete(same.db):
        return False
    ActiveTask.objects.all().drop_empty_reservations(pk=lock.active_task_id)
    return True


def conflict_error(locks: list[ConflictLock], total: int | None = None) -> TaskConflict:
    """Return the error that names the first of these locks. ``total`` is their number, if these are not all."""
    return TaskConflict(
        [
            HeldObject(
                model_label=lock.model_label,
                object_id=lock.object_id,
                holder=lock.active_task.task_name,
                holder_label=lock.active_task.label,
                since=lock.locked_at,
                text=lazystr(lock),
            )
            for lock in locks[:NAMED_CONFLICTS]
        ],
        total=len(locks) if total is None else total,
    )
