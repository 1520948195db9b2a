"""Launch a task: lock, record and enqueue it, all or nothing."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from django.db import IntegrityError, connections, models, transaction
from django.utils import timezone

from powercrud_dashboard import callables, failing, lifecycle, locks, queueing
from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.exceptions import EnqueueError, TaskAlreadyActive, TaskNameTaken
from powercrud_dashboard.models import ActiveTask, FailureReason, TaskRecord
from powercrud_dashboard.models.coordination import ActiveTaskState, coordination_db, write_transaction
from powercrud_dashboard.models.text import SHORT, clean_text
from powercrud_dashboard.retry_policy import RetryPolicy
from powercrud_dashboard.worker.task import TaskCall

logger = logging.getLogger(__name__)

#: As many characters as django-q2's own tables and ours hold.
NAME_LENGTH = 100


class LaunchingManager(lifecycle.LifecycleManager, Protocol):
    """What launching needs of a manager."""

    config: dict[str, Any]
    #: Primary keys of the reservations that this instance made and has not used yet.
    reservations: set[int]

    @property
    def manager_class_path(self) -> str: ...


@dataclass
class Launch:
    """One request to run a function in the background."""

    func: str | Callable[..., Any]
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    conflict_ids: locks.ConflictIds | None = None
    affected_objects: Iterable[Any] | None = None
    #: What the objects are called, by (model label, key), where ``affected_objects`` are words only.
    object_texts: Mapping[tuple[str, str], str] | None = None
    user: Any = None
    task_name: str | None = None
    label: str | None = None
    group: str | None = None
    timeout: int | None = None
    cluster: str | None = None
    sync: bool = False
    q_options: Mapping[str, Any] = field(default_factory=dict)
    unique_key: str = ""
    #: Objects that the task is for without locking them.
    object_ids: locks.ConflictIds | None = None
    #: How many objects it is for, where they are not all named.
    object_count: int | None = None
    by_object: bool = False
    #: What is shown as the function, where that is one which runs others.
    func_name: str = ""
    #: What is to happen after a failure.
    policy: RetryPolicy | None = None
    retry_of: str | None = None


@dataclass(frozen=True)
class _Plan:
    """A request that was found to be feasible, in the terms of the queue and of the record."""

    task_name: str
    path: str
    label: str
    user: Any
    keys: locks.LockKeys
    objects: locks.LockKeys
    affected: list[str]
    object_texts: Mapping[tuple[str, str], str]
    group: str
    cluster: str
    sync: bool
    payload: str
    #: Hands the task to the broker (or runs it, if ``sync``) and returns the broker's receipt.
    enqueue: Callable[[], str]


def launch(manager: LaunchingManager, request: Launch) -> str:
    """Launch the task and return its name.

    Raises:
        UnimportableCallable, TypeError, ValueError: if the request can't be carried out by a worker.
        TaskNameTaken: if the wanted name is in use.
        TaskAlreadyActive: if there is a task with the same unique key.
        TaskConflict: if somebody else holds one of the objects.
        EnqueueError: if the broker does not take the task. Inside a transaction and with a
            broker elsewhere this is raised at commit.

    Nothing is left behind by a launch that raises, but for the failed record that an
    ``EnqueueError`` leaves.
    """
    plan = _plan(manager, request)
    failure: Exception | None = None
    with write_transaction():
        active = _insert(manager, plan, request)
        locks.take(active, plan.keys, from_reservations=manager.reservations)
        _emit_create(manager, request, plan)
        if not plan.sync:
            failure = send(manager, active, plan.enqueue)
        used = set(manager.reservations)
        transaction.on_commit(lambda: manager.reservations.difference_update(used), using=coordination_db())
    if failure is not None:
        raise EnqueueError(plan.task_name, f"{type(failure).__name__}: {failure}") from failure
    if plan.sync:
        _run_here(manager, active, plan.enqueue)
    return plan.task_name


def runs_in_caller() -> bool:
    """Return whether the settings make every task run in the process that launches it."""
    return queueing.runs_synchronously() or not app_settings.ASYNC_ENABLED


def _plan(manager: LaunchingManager, request: Launch) -> _Plan:
    """Check everything that can be checked before anything is written."""
    path, func = callables.resolve(request.func)
    injected = callables.injected_arguments(func, {"task_key": "", "manager_class": ""})
    callables.check_arguments(path, func, request.args, {**injected, **request.kwargs})
    task_name = request.task_name or str(uuid.uuid4())
    label = clean_text(request.label or path, SHORT)
    keys = locks.normalise(request.conflict_ids)
    objects = locks.normalise(request.object_ids)
    affected, object_texts = _described(request.affected_objects)
    object_texts = dict(request.object_texts or object_texts)
    # The same wishes may come as options, as django-q2 takes them.
    options = dict(request.q_options)
    group = request.group or options.pop("group", None) or ""
    cluster = request.cluster or options.pop("cluster", None) or ""
    names = {"task_key": task_name, "group": group, "cluster": cluster, "unique_key": request.unique_key}
    for what, name in names.items():
        _check_name(what, name)
    timeout = request.timeout or options.pop("timeout", None)
    sync = bool(request.sync or options.pop("sync", False) or runs_in_caller())
    package = {
        "func": path,
        "args": tuple(request.args),
        "kwargs": dict(request.kwargs),
        "conflict_ids": keys,
        "affected_objects": affected,
        "object_texts": object_texts,
        "label": label,
        "group": group,
        "timeout": timeout,
        "cluster": cluster,
        "q_options": options,
        "unique_key": request.unique_key,
        "object_ids": objects,
        "object_count": request.object_count,
        "by_object": request.by_object,
        "func_name": request.func_name,
        "policy": request.policy.as_json() if request.policy else {},
        "manager_config": manager.config or None,
    }
    payload = _signed(path, package)
    enqueue = enqueueing(manager.manager_class_path, task_name, package, sync=sync)
    user = _person(request.user)
    return _Plan(
        task_name, path, label, user, keys, objects, affected, object_texts, group, cluster, sync, payload, enqueue
    )


def enqueueing(manager_class: str, task_name: str, package: Mapping[str, Any], *, sync: bool) -> Callable[[], str]:
    """Return what hands a task to the broker (or runs it, if ``sync``) and returns the broker's receipt.

    ``package`` is what the task was launched with, as its payload keeps it.
    """
    kwargs: dict[str, Any] = package["kwargs"]
    shielded = {name: value for name, value in kwargs.items() if name in queueing.RESERVED_KEYWORDS}
    call = TaskCall(
        path=package["func"],
        task_name=task_name,
        manager_class=manager_class,
        manager_config=package["manager_config"],
        shielded_kwargs=shielded,
        sync=sync,
        name=package["func_name"],
    )
    timeout = package["timeout"]
    options = {"hook": queueing.COMPLETION_HOOK, **package["q_options"]}
    if timeout is not None:
        options["timeout"] = timeout
    return partial(
        queueing.enqueue,
        call,
        package["args"],
        {name: value for name, value in kwargs.items() if name not in shielded},
        **{
            "hook": queueing.COMPLETION_HOOK,
            **package["q_options"],
            **({} if timeout is None else {"timeout": timeout}),
        },
        task_name=task_name,
        cluster=package["cluster"],
        group=package["group"] or None,
        sync=sync,
    )


def _insert(manager: LaunchingManager, plan: _Plan, request: Launch) -> ActiveTask:
    """Insert the active task.

    Raises:
        TaskNameTaken: if an active task or a record has the wanted name already.
        TaskAlreadyActive: if an active task has the same unique key.
    """
    active = ActiveTask(
        task_name=plan.task_name,
        state=ActiveTaskState.PENDING,
        label=plan.label,
        manager_class=manager.manager_class_path,
        user=plan.user,
        cluster=plan.cluster,
        unique_key=request.unique_key,
        # In the caller's process there is nobody to try again.
        policy=request.policy.as_json() if request.policy and not plan.sync else {},
        payload=plan.payload if request.policy and not plan.sync else "",
        sent_at=timezone.now() if plan.sync else None,
    )
    if request.task_name is None and not request.unique_key:
        ActiveTask.objects.add(active)
        return active
    if request.task_name is not None and TaskRecord.objects.filter(task_name=plan.task_name).exists():
        raise TaskNameTaken(plan.task_name)
    try:
        with transaction.atomic(using=coordination_db()):
            ActiveTask.objects.add(active)
    except IntegrityError as error:
        same = ActiveTask.objects.exclude(unique_key="").filter(unique_key=request.unique_key).first()
        raise (TaskAlreadyActive(same.task_name) if same else TaskNameTaken(plan.task_name)) from error
    return active


def _emit_create(manager: LaunchingManager, request: Launch, plan: _Plan) -> None:
    lifecycle.emit(
        manager,
        "create",
        plan.task_name,
        func=request.func_name or plan.path,
        label=plan.label,
        user=plan.user,
        affected_objects=plan.affected,
        object_texts=plan.object_texts,
        conflict_ids=plan.keys,
        object_ids=plan.objects,
        object_count=request.object_count,
        by_object=request.by_object,
        task_args=list(request.args),
        task_kwargs=dict(request.kwargs),
        group=plan.group,
        cluster=plan.cluster,
        retry_of=request.retry_of,
        manager_class=manager.manager_class_path,
        payload=plan.payload,
    )


def send(manager: lifecycle.LifecycleManager, active: ActiveTask, enqueue: Callable[[], str]) -> Exception | None:
    """Hand a task to the broker: in this transaction if the queue is in the same database, else after it.

    Returns what went wrong at once, if anything did; that is recorded then.

    Raises:
        EnqueueError: at commit, if a broker elsewhere does not take the task.
    """
    if queueing.broker_database() == coordination_db():
        return _enqueue_in_transaction(manager, active, enqueue)
    transaction.on_commit(lambda: _send_after_commit(manager, active, enqueue), using=coordination_db())
    return None


def _enqueue_in_transaction(
    manager: lifecycle.LifecycleManager, active: ActiveTask, enqueue: Callable[[], str]
) -> Exception | None:
    """Put the queue entry into the same transaction; return what went wrong, which is recorded then."""
    try:
        with transaction.atomic(using=coordination_db()):
            receipt = enqueue()
    except Exception as error:
        return None if _could_not_queue(manager, active, error) else error
    _note_sent(active, receipt)
    return None


def _note_sent(active: ActiveTask, receipt: str) -> None:
    # A worker may be at the task already, or through with it: then nothing is there to note.
    ActiveTask.objects.note_sent(active, receipt)


def _check_name(what: str, name: str) -> None:
    if len(name) > NAME_LENGTH or "\x00" in name:
        raise ValueError(
            f"{what} is {name[:NAME_LENGTH]!r}…; use at most {NAME_LENGTH} characters, and no NUL character."
        )


def _signed(path: str, package: dict[str, Any]) -> str:
    try:
        return queueing.sign(package)
    except Exception as error:
        raise TypeError(
            f"The arguments of {path} can't be sent to a worker ({type(error).__name__}: {error}). "
            "Pass plain values, such as primary keys, and look the objects up in the task."
        ) from error


def _run_here(manager: LaunchingManager, active: ActiveTask, run: Callable[[], str]) -> None:
    """Run a task in this process; its own errors go to the caller, as with any call."""
    try:
        run()
    except Exception as error:
        if not connections[coordination_db()].needs_rollback:
            # Does nothing if the task was begun: then its end is recorded already.
            _could_not_queue(manager, active, error)
        raise


def _send_after_commit(manager: lifecycle.LifecycleManager, active: ActiveTask, enqueue: Callable[[], str]) -> None:
    """Hand a committed task to a broker elsewhere."""
    try:
        receipt = enqueue()
    except Exception as error:
        if _could_not_queue(manager, active, error):
            return
        raise EnqueueError(active.task_name, f"{type(error).__name__}: {error}") from error
    _note_sent(active, receipt)


def _could_not_queue(manager: lifecycle.LifecycleManager, active: ActiveTask, error: Exception) -> bool:
    """Record that the broker did not take the task. Return whether its policy will have it sent once more."""
    text = f"Could not be queued. {type(error).__name__}: {error}"
    kind = type(error)
    noted = failing.fail(
        manager,
        active,
        EnqueueError,
        reason=FailureReason.NOT_QUEUED.value,
        error=text,
        result=text,
        exception_class=f"{kind.__module__}.{kind.__qualname__}",
        traceback="",
    )
    if noted:
        logger.error("Task %s could not be queued", active.task_name, exc_info=error)
    return ActiveTask.objects.waiting().filter(pk=active.pk).exists()


def _person(user: Any) -> Any:
    """Return the user to keep, or None for nobody and for anonymous visitors."""
    return user if getattr(user, "pk", None) is not None else None


def _described(affected_objects: Iterable[Any] | None) -> tuple[list[str], dict[tuple[str, str], str]]:
    """Return one line of text for each object, and those of model instances by (model label, key)."""
    if affected_objects is None:
        return [], {}
    if isinstance(affected_objects, str | models.Model):
        affected_objects = [affected_objects]
    lines: list[str] = []
    texts: dict[tuple[str, str], str] = {}
    for item in affected_objects:
        lines.append(clean_text(item, SHORT))
        if isinstance(item, models.Model):
            model = item._meta.concrete_model or type(item)
            texts[model._meta.label_lower, str(item.pk)] = lines[-1]
    return lines, texts
