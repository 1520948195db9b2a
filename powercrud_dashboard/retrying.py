"""Launch an ended task once more, as a new task that is linked to the first."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from powercrud_dashboard import lifecycle, queueing
from powercrud_dashboard.exceptions import TaskNotRetryable
from powercrud_dashboard.launching import Launch, LaunchingManager, launch
from powercrud_dashboard.locks import LockKeys
from powercrud_dashboard.models import TaskRecord
from powercrud_dashboard.models.coordination import WHOLE_MODEL, write_transaction
from powercrud_dashboard.models.history import Outcome
from powercrud_dashboard.retry_policy import RetryPolicy

NOT_ENDED = gettext_lazy("it has not ended yet. Wait for its end, or cancel it first.")
_NOT_RESTORED = gettext_lazy("its arguments can't be restored (%(error)s).")


def retry(
    manager: LaunchingManager,
    task_name: str,
    user: Any = None,
    *,
    task_args: Sequence[Any] | None = None,
    task_kwargs: Mapping[str, Any] | None = None,
    only: Mapping[str, Collection[str]] | None = None,
) -> str:
    """Launch the recorded task again with the same function, arguments, objects and locks.

    ``task_args`` and ``task_kwargs``, if given, take the place of the arguments; what differs is
    recorded with the retry. ``only`` leaves of its objects and locks those with these keys, as text, by model label.
    Returns the new task's name.

    Raises:
        TaskNotRetryable: if there is no such record, it has not ended, a retry of it is under
            way, or what it was launched with can't be restored.
        TaskConflict: if somebody else holds one of its objects.
        EnqueueError: if the broker does not take the new task.
        TaskAlreadyActive: if the same task was launched anew meanwhile.
        TypeError: if the arguments don't fit the function.
    """
    with write_transaction():
        # The row lock keeps two people from retrying the same task at the same moment.
        record = TaskRecord.objects.select_for_update().filter(task_name=task_name).first()
        if record is None:
            raise TaskNotRetryable(task_name, _("there is no record of it."))
        if not record.is_finished:
            raise TaskNotRetryable(task_name, NOT_ENDED)
        if under_way := record.retries.unfinished().first():
            raise TaskNotRetryable(
                task_name, _("its retry %(name)s is already under way.") % {"name": under_way.task_name}
            )
        package = _restore(record)
        args = package["args"] if task_args is None else tuple(task_args)
        kwargs = package["kwargs"] if task_kwargs is None else dict(task_kwargs)
        new_name = launch(
            manager,
            Launch(
                func=package["func"],
                args=args,
                kwargs=kwargs,
                conflict_ids=_restricted(package["conflict_ids"], only),
                affected_objects=package["affected_objects"] if only is None else None,
                # Packages of before this was kept do without.
                object_texts=package.get("object_texts"),
                user=user,
                label=package["label"],
                group=package["group"],
                timeout=package["timeout"],
                cluster=package["cluster"],
                q_options=package["q_options"],
                unique_key=package.get("unique_key", ""),
                object_ids=_restricted(package.get("object_ids") or {}, only),
                object_count=package.get("object_count") if only is None else None,
                by_object=package.get("by_object", False),
                func_name=package.get("func_name", ""),
                policy=RetryPolicy.from_json(package.get("policy") or {}),
                retry_of=task_name,
            ),
        )
        changed = _changed_arguments(package, args, kwargs)
        lifecycle.emit(
            manager,
            "retry",
            task_name,
            actor=user,
            new_task_name=new_name,
            **({"changed_arguments": changed} if changed else {}),
        )
    return new_name


def editable_arguments(record: TaskRecord) -> tuple[list[Any], dict[str, Any]]:
    """Return the positional and keyword arguments that the task was launched with.

    Raises:
        TaskNotRetryable: if they can't be restored, or are more than JSON can say.
    """
    package = _restore(record)
    args, kwargs = list(package["args"]), package["kwargs"]
    if not (_is_json(args) and _is_json(kwargs)):
        raise TaskNotRetryable(
            record.task_name, _("with other arguments, as its own are more than plain JSON. Retry it as it is.")
        )
    return args, kwargs


def for_objects_not_done(record: TaskRecord) -> dict[str, Any]:
    """Return what makes of a retry one for those objects only that failed or were not reached.

    The function gets their keys, as text, in its argument ``only``.

    Raises:
        TaskNotRetryable: if the task does not report its objects, if all that are known by name were done, or
            what it was launched with can't be restored.
    """
    entries = record.objects_worked_on.filter(outcome__in=[Outcome.FAILED, Outcome.NOT_REACHED])
    only: dict[str, list[str]] = {}
    for label, key in entries.order_by("pk").values_list("model_label", "object_id"):
        only.setdefault(label, []).append(key)
    if not (record.by_object and only):
        raise TaskNotRetryable(record.task_name, _("it has no objects that failed."))
    kwargs = {**_restore(record)["kwargs"], "only": [key for keys in only.values() for key in keys]}
    return {"task_kwargs": kwargs, "only": {label: frozenset(keys) for label, keys in only.items()}}


def _restricted(keys: LockKeys, only: Mapping[str, Collection[str]] | None) -> LockKeys:
    if only is None:
        return keys
    kept = {
        label: [key for key in ids if key == WHOLE_MODEL or key in only.get(label, ())] for label, ids in keys.items()
    }
    return {label: ids for label, ids in kept.items() if ids}


def _is_json(value: object) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str and _is_json(item) for key, item in value.items())
    if type(value) is list:
        return all(_is_json(item) for item in value)
    if type(value) is float:
        return math.isfinite(value)
    return value is None or type(value) in (str, int, bool)


def _changed_arguments(package: Mapping[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what differs from the first launch: the argument's number (from 1) or name, and both values."""
    before = {**{str(number): value for number, value in enumerate(package["args"], 1)}, **package["kwargs"]}
    after = {**{str(number): value for number, value in enumerate(args, 1)}, **kwargs}
    return {
        name: {side: values[name] for side, values in (("before", before), ("after", after)) if name in values}
        for name in {**before, **after}
        if name not in before or name not in after or not _is_same(before[name], after[name])
    }


def _is_same(before: object, after: object) -> bool:
    # Also of things that can't be compared, such as arrays; these are the same ones if nobody has changed them.
    return before is after or (type(before) is type(after) and bool(before == after))


def _restore(record: TaskRecord) -> dict[str, Any]:
    if not record.payload:
        raise TaskNotRetryable(record.task_name, _("its arguments were not kept."))
    try:
        package: dict[str, Any] = queueing.unsign(record.payload)
    except ValueError as error:
        raise TaskNotRetryable(record.task_name, _NOT_RESTORED % {"error": error}) from error
    except Exception as error:
        # Unpickling imports the arguments' classes, which may be gone or changed since.
        reason = _NOT_RESTORED % {"error": f"{type(error).__name__}: {error}"}
        raise TaskNotRetryable(record.task_name, reason) from error
    return package
