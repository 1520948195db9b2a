"""Retries: launch an ended task again as a new task, and queue tasks whose own retry is due."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from powercrud_dashboard.engine import lifecycle, plain, policy, registry
from powercrud_dashboard.engine.arguments import as_person
from powercrud_dashboard.engine.launch import LaunchingManager, enqueueing, launch, send
from powercrud_dashboard.engine.spec import TaskSpec, is_plain_json, resolve_function
from powercrud_dashboard.exceptions import (
    ArgumentsNotEditable,
    EnqueueError,
    TaskNotRetryable,
    UnimportableCallable,
    UnreadableSpec,
)
from powercrud_dashboard.models import ActiveTask, FailureReason, TaskObject, TaskRecord, TaskStatus
from powercrud_dashboard.models.database import impatient_transaction
from powercrud_dashboard.models.locks import WHOLE_MODEL
from powercrud_dashboard.models.objects import Outcome
from powercrud_dashboard.text import MESSAGE, KeptText, error_text, lazy_text

logger = logging.getLogger(__name__)

NOT_ENDED = _("it has not ended yet. Wait for its end, or cancel it first.")

_NOT_RETRIED = KeptText(_("It could not be retried: %(reason)s."), inner=["reason"])

#: Due tasks that are read at a time. After at least as many were queued, the rest follows in the next pass.
QUEUED_PER_PASS = 100

#: What is kept of the session in which somebody edits arguments.
_session: ContextVar[Mapping[str, Any]] = ContextVar("powercrud_dashboard_session", default=MappingProxyType({}))


@contextmanager
def in_session(kept: Mapping[str, Any]) -> Iterator[None]:
    """Give tasks that are retried with edited arguments in this block what is kept of the session of their editor."""
    token = _session.set(kept)
    try:
        yield
    finally:
        _session.reset(token)


#: The objects of a retry: model label -> keys as text.
Only = Mapping[str, Collection[str]]


def retry(
    manager: LaunchingManager,
    task_name: str,
    user: Any = None,
    *,
    task_args: Sequence[Any] | None = None,
    task_kwargs: Mapping[str, Any] | None = None,
    only: Only | None = None,
) -> str:
    """Launch a recorded task again with the same function, arguments, objects and locks.

    Args:
        manager: the manager that launches the new task.
        task_name: the ended task.
        user: who retries it.
        task_args: positional arguments to use instead of its own.
        task_kwargs: keyword arguments to use instead of its own, as far as they are editable.
        only: restricts its objects and locks to these. The function gets their keys, as text, in its argument
            ``only``.

    Returns:
        The new task's name. Changed arguments are recorded with the retry.

    Raises:
        TaskNotRetryable: if there is no such record, it has not ended, a try of the same task is queued or running,
            or its spec can't be restored.
        TaskConflict: if somebody else holds one of its objects.
        TaskAlreadyActive: if a task with its unique key is queued or running.
        EnqueueError: if the broker does not take the new task.
        TaskBusy: if another session has the record locked in the database and does not finish.
        TypeError: if the arguments don't fit the function.
    """
    user = as_person(user)
    record = _retryable(task_name)
    before = _restored(record)
    after = replace(
        before,
        is_partial=only is not None,
        args=before.args if task_args is None else tuple(task_args),
        kwargs=before.kwargs if task_kwargs is None else _edited(before, task_kwargs, user),
    )
    if only is not None:
        after = _restricted(after, only)
    elif task_args is None and task_kwargs is None:
        after = _left_of(record, after)
    facts: dict[str, Any] = {"actor": user}
    if changed := _changed_arguments(before, after, record.argument_names):
        facts["changed_arguments"] = changed

    @contextmanager
    def recorded(new_name: str) -> Iterator[None]:
        """Record the retry in the transaction that writes the new task, in which nobody else can retry it too."""
        with impatient_transaction():
            _retryable(task_name, locked=True)
        yield
        lifecycle.emit(manager, "retry", task_name, new_task_name=new_name, **facts)

    if record.is_plain:
        return plain.launch_again(after, task_name, user, within=recorded)
    return launch(manager, after, user=user, retry_of=task_name, within=recorded)


def _retryable(task_name: str, *, locked: bool = False) -> TaskRecord:
    """Return the record of a task that can be retried now; if ``locked``, nobody else can retry it meanwhile.

    Raises:
        TaskNotRetryable: if there is none.
    """
    named = TaskRecord.objects.filter(task_name=task_name)
    record = named.first()
    if record is not None and locked:
        # The first of the chain stands for all of it. Read again after that, as somebody may have been faster, and
        # locked as well, so that nobody deletes it meanwhile.
        TaskRecord.objects.chain_of(record).locking().only("pk").first()
        record = named.locking().first()
    if record is None:
        raise TaskNotRetryable(task_name, _("there is no record of it."))
    if record.is_observed and not record.is_plain:
        raise TaskNotRetryable(task_name, _("it is only observed. Run it again where it was launched."))
    if not record.is_finished:
        raise TaskNotRetryable(task_name, NOT_ENDED)
    if unfinished := TaskRecord.objects.chain_of(record).unfinished().first():
        reason = _("its retry %(name)s has not ended yet.")
        raise TaskNotRetryable(task_name, lazy_text(reason, name=unfinished.task_name))
    return record


def editable_arguments(record: TaskRecord) -> tuple[list[Any], dict[str, Any]]:
    """Return the positional and keyword arguments of the task that can be changed for a retry.

    A function whose attribute ``editable_arguments`` names keyword arguments lets only these be changed.

    Raises:
        TaskNotRetryable: if they can't be restored.
        ArgumentsNotEditable: if they are more than plain JSON.
    """
    spec = _restored(record)
    editable = _editable_names(spec)
    args = list(spec.args)
    kwargs = {name: value for name, value in spec.kwargs.items() if editable is None or name in editable}
    if not (is_plain_json(args) and is_plain_json(kwargs)):
        raise ArgumentsNotEditable(record.task_name)
    return args, kwargs


def for_objects_not_done(record: TaskRecord) -> dict[str, Any]:
    """Return the options of a retry for only those objects that failed or were not reached, also in later tries.

    Raises:
        TaskNotRetryable: if the task does not report its objects, all known objects were done, or its spec can't be
            restored.
    """
    only = _not_done(record)
    if not (record.by_object and only):
        raise TaskNotRetryable(record.task_name, _("it has no objects that failed."))
    return {"only": {label: frozenset(keys) for label, keys in only.items()}}


def _not_done(record: TaskRecord) -> dict[str, list[str]]:
    """Return the keys of the objects that failed or were not reached, as far as the history knows them, by model."""
    entries = TaskObject.objects.all().left_of(record).filter(outcome__in=[Outcome.FAILED, Outcome.NOT_REACHED])
    found: dict[str, list[str]] = {}
    for label, key in entries.order_by("pk").values_list("model_label", "object_id"):
        found.setdefault(label, []).append(key)
    return found


def _editable_names(spec: TaskSpec) -> Collection[str] | None:
    """Return the names of the keyword arguments that can be changed for a retry; None for all."""
    names: Collection[str] | None = getattr(_function_of(spec), "editable_arguments", None)
    return names


def _function_of(spec: TaskSpec) -> object:
    """Return the function of the task; None if it can't be imported any more, which the launch refuses."""
    try:
        return resolve_function(spec.func)[1]
    except UnimportableCallable:
        return None


def _edited(spec: TaskSpec, kwargs: Mapping[str, Any], user: Any) -> dict[str, Any]:
    """Return the keyword arguments for a retry with these, by this user.

    A function that acts as a user has an attribute ``acting_as``: it returns the arguments with which the function acts
    as the one who has changed them, given its arguments, the user, and what is kept of the user's session.
    """
    editable = _editable_names(spec)
    if editable is None:
        return dict(kwargs)
    kept = {name: value for name, value in spec.kwargs.items() if name not in editable}
    changed = {name: value for name, value in kwargs.items() if name in editable}
    acting_as = getattr(_function_of(spec), "acting_as", None)
    if acting_as is not None and hasattr(user, "pk"):
        kept = acting_as(kept, user, _session.get())
    return {**kept, **changed}


def _restored(record: TaskRecord) -> TaskSpec:
    try:
        return TaskSpec.from_signed(record.payload)
    except UnreadableSpec as error:
        raise TaskNotRetryable(record.task_name, lazy_text("%(reason)s.", reason=error.reason)) from error


def _restricted(spec: TaskSpec, only: Only, *, keys: list[str] | None = None) -> TaskSpec:
    def kept(objects: Mapping[str, list[str]]) -> dict[str, list[str]]:
        chosen = {
            label: [key for key in ids if key == WHOLE_MODEL or key in only.get(label, ())]
            for label, ids in objects.items()
        }
        return {label: ids for label, ids in chosen.items() if ids}

    return replace(
        spec,
        kwargs={**spec.kwargs, "only": [key for ids in only.values() for key in ids] if keys is None else keys},
        conflict_ids=kept(spec.conflict_ids),
        object_ids=kept(spec.object_ids),
        object_count=None,
        affected_objects=[],
    )


def _left_of(record: TaskRecord, spec: TaskSpec) -> TaskSpec:
    """Return the spec for the objects that a failed or cancelled task has not done, if its function can tell them.

    Such a function has an attribute ``left_of``, which is called with the keyword arguments of the task, the keys of
    the objects that are known not to be done, and the key up to which all objects have an outcome. It returns the
    arguments that differ.
    """
    newest = TaskRecord.objects.chain_of(record).filter(pk__gt=record.pk).order_by("-pk").first()
    if newest is not None and newest.status != TaskStatus.SUCCESS:
        # It has gone on from there already.
        record, spec = newest, _restored(newest)
    left_of: Callable[..., dict[str, Any]] | None = getattr(_function_of(spec), "left_of", None)
    if left_of is None or not record.by_object or record.status == TaskStatus.SUCCESS:
        return spec
    if not (record.position or record.objects_worked_on.filter(outcome=Outcome.DONE).exists()):
        return spec
    try:
        changed = left_of(spec.kwargs, [key for keys in _not_done(record).values() for key in keys], record.position)
    except LookupError:
        # The admin is gone, as the worker will say.
        return spec
    if "after" in changed:
        left = max(0, record.affected_count - record.done_count - record.skipped_count)
        return replace(spec, kwargs={**spec.kwargs, **changed}, object_count=left, affected_objects=[])
    if "only" not in changed:
        return spec
    labels = {*spec.object_ids, *spec.conflict_ids}
    return _restricted(spec, {label: frozenset(changed["only"]) for label in labels}, keys=changed["only"])


def _changed_arguments(before: TaskSpec, after: TaskSpec, names: Sequence[str]) -> dict[str, Any]:
    """Return the arguments that differ: their name, or number (from 1) if they have none, and both values."""
    old, new = _named(before, names), _named(after, names)
    if (editable := _editable_names(before)) is not None:
        # As whom it runs is told by who has retried it.
        for named in (old, new):
            for name in set(named) - {*editable, "only"}:
                del named[name]
    return {
        name: {side: values[name] for side, values in (("before", old), ("after", new)) if name in values}
        for name in {**old, **new}
        if name not in old or name not in new or not _is_same(old[name], new[name])
    }


def _named(spec: TaskSpec, names: Sequence[str]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for number, value in enumerate(spec.args, 1):
        name = names[number - 1] if number <= len(names) else str(number)
        # Those of one "*args" share their name.
        named[f"{name} {number}" if name in named else name] = value
    return {**named, **spec.kwargs}


def _is_same(before: object, after: object) -> bool:
    try:
        return before is after or (type(before) is type(after) and bool(before == after))
    except Exception:
        # Arguments that can't be compared, such as arrays, are the same if they are the same object.
        return False


# Retries under a policy


def send_released() -> int:
    """Queue the first of the tasks whose queue or function is not paused any more; return how many were queued."""
    sent = 0
    for active in ActiveTask.objects.all().released().defer(None).order_by("queued_at", "pk")[:QUEUED_PER_PASS]:
        try:
            sent += _queue_again(registry.manager_of(active), active)
        except Exception:
            logger.exception(
                "Task %s, which was held back, could not be queued",
                active.task_name,
                extra={"task_name": active.task_name},
            )
    return sent


def send_due() -> int:
    """Queue the tasks whose retry is due, and those that are not held back any more; return how many were queued.

    One that can't be queued stops no other.
    """
    sent = send_released()
    due = ActiveTask.objects.due().defer(None).order_by("next_run_at", "pk")
    batch = list(due[:QUEUED_PER_PASS])
    # Those that can't be queued are not counted, as they would keep the others waiting.
    while batch and sent < QUEUED_PER_PASS:
        last = (batch[-1].next_run_at, batch[-1].pk)
        for active in batch:
            try:
                sent += _queue_again(registry.manager_of(active), active)
            except Exception:
                logger.exception(
                    "The retry of task %s could not be queued", active.task_name, extra={"task_name": active.task_name}
                )
        later = Q(next_run_at__gt=last[0]) | Q(next_run_at=last[0], pk__gt=last[1])
        batch = list(due.filter(later)[:QUEUED_PER_PASS])
    return sent


def run_now(manager: lifecycle.LifecycleManager, active: ActiveTask, user: Any = None) -> bool:
    """Queue a task at once that waits for its retry, or whose message the broker has lost.

    Return whether that was still so.
    """
    return _queue_again(manager, active, actor=user)


def spec_of(active: ActiveTask) -> TaskSpec:
    """Return the spec that a task was launched with which has not ended.

    Raises:
        UnreadableSpec: if it can't be restored.
    """
    # Without a retry policy the task itself does not keep it.
    return TaskSpec.from_signed(active.payload or _recorded_payload(active.task_name))


def _recorded_payload(task_name: str) -> str:
    return TaskRecord.objects.filter(task_name=task_name).values_list("payload", flat=True).first() or ""


def _queue_again(manager: lifecycle.LifecycleManager, active: ActiveTask, actor: Any = None) -> bool:
    try:
        spec = spec_of(active)
    except UnreadableSpec as error:
        if error.is_newer:
            logger.info(
                "Task %s waits for a process of a newer release: %s",
                active.task_name,
                error.reason,
                extra={"task_name": active.task_name},
            )
            return False
        logger.exception("Task %s can't be retried", active.task_name, extra={"task_name": active.task_name})
        text = error_text(_NOT_RETRIED(reason=error.reason), MESSAGE)
        lifecycle.end(manager, active, "fail", **policy.failure_payload(FailureReason.NOT_QUEUED, text))
        return False
    active.released_from = active.held_by or active.released_from
    try:
        with impatient_transaction():
            if not ActiveTask.objects.all().queue_again(active):
                return False
            if actor is not None:
                event = "run_now" if active.missing_since is None else "send_again"
                lifecycle.emit(manager, event, active.task_name, actor=actor)
            active.refresh_from_db()
            failure = send(manager, active, enqueueing(spec, active.task_name))
    except EnqueueError:
        # It was recorded and logged where it was raised.
        return False
    return failure is None
