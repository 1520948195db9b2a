"""Launch a task: lock its objects, record it and enqueue it, all or nothing."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any, Protocol

from django.db import IntegrityError, connections, transaction
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.engine import lifecycle, locks, policy, tracing
from powercrud_dashboard.engine.spec import (
    INJECTED,
    TaskCall,
    TaskFunction,
    TaskSpec,
    accepted_arguments,
    argument_names,
    check_arguments,
    is_plain_json,
    resolve_function,
    sign,
)
from powercrud_dashboard.engine.values import to_json
from powercrud_dashboard.exceptions import EnqueueError, TaskAlreadyActive, TaskNameTaken
from powercrud_dashboard.models import ActiveTask, FailureReason, TaskRecord
from powercrud_dashboard.models.coordination import ActiveTaskState
from powercrud_dashboard.models.database import coordination_db, impatient_transaction, write_transaction
from powercrud_dashboard.q2 import queue
from powercrud_dashboard.text import LONG, SHORT, KeptText, clean_text, error_summary, error_text

logger = logging.getLogger(__name__)

_NOT_QUEUED = KeptText(_("Could not be queued. %(error)s"))

#: Makes the context in which a launch writes the rows of the task of this name.
Within = Callable[[str], AbstractContextManager[None]]


def _in_nothing(task_name: str) -> AbstractContextManager[None]:
    return nullcontext()


class LaunchingManager(lifecycle.LifecycleManager, Protocol):
    """What a launch needs of a manager."""

    #: The unique keys of the reservations that this instance has made and no launch has used.
    reservations: set[str]

    def wrap_function(self, func: TaskFunction) -> TaskFunction: ...


def launch(
    manager: LaunchingManager,
    spec: TaskSpec,
    *,
    task_name: str | None = None,
    user: Any = None,
    retry_of: str | None = None,
    sync: bool = False,
    broker: Any = None,
    run_after: datetime | None = None,
    within: Within = _in_nothing,
) -> str:
    """Launch the task and return its name.

    Args:
        manager: the manager that launches it.
        spec: what is launched.
        task_name: the name to use instead of a new UUID.
        user: who launches it, as ``as_person`` returns it.
        retry_of: the name of the task that this is a retry of.
        sync: run it at once in this process; its errors are raised here.
        broker: the django-q2 broker to use instead of the one of the spec's cluster.
        run_after: when it is to start at the earliest. Until then it has no message in the queue.
        within: returns, for the new task's name, a context that its rows are written in, inside their transaction.

    Raises:
        UnimportableCallable, TypeError, ValueError: if a worker could not run the task.
        TaskNameTaken: if the name is in use.
        TaskAlreadyActive: if there is a task with the same unique key.
        TaskConflict: if somebody else holds one of the objects.
        TaskBusy: if another session keeps the objects, or the name, locked in the database and does not finish.
        EnqueueError: if the broker does not take the task. Inside a transaction and with a broker in another
            database or server it is raised at commit.

    A launch that raises leaves nothing behind, but for the failed record that an ``EnqueueError`` leaves.
    """
    sync = sync or runs_in_caller()
    with tracing.launching(str(spec)) as trace:
        spec = replace(spec, trace=trace)
        start = _Launch(manager, spec, task_name, user, retry_of, within, sync=sync, broker=broker, run_after=run_after)
        if sync:
            active = start.write()
            _run_here(manager, active, start.enqueue)
        elif start.waits:
            start.write()
        elif queue.broker_database(broker) == coordination_db():
            start.write_and_enqueue()
        else:
            start.write(enqueue_after_commit=True)
    return start.task_name


def runs_in_caller() -> bool:
    """Return whether the settings make every task run in the process that launches it."""
    return queue.runs_synchronously() or not app_settings.ASYNC_ENABLED


class _Launch:
    """One launch, checked before anything is written."""

    def __init__(
        self,
        manager: LaunchingManager,
        spec: TaskSpec,
        task_name: str | None,
        user: Any,
        retry_of: str | None,
        within: Within,
        *,
        sync: bool,
        broker: Any,
        run_after: datetime | None,
    ) -> None:
        self._argument_names, self._goes_on = _check(manager, spec)
        if spec.retry is not None and retry_of is None:
            # A person can still retry a task whose policy names a class that was removed since.
            spec.retry.check()
        self._manager = manager
        self._spec = spec = replace(spec, launched_by="" if user is None else clean_text(user, SHORT))
        self._is_named = task_name is not None
        self.task_name = task_name or str(uuid.uuid4())
        self._launched_by = user
        self._retry_of = retry_of
        self._within = within
        self._sync = sync
        self._run_after = run_after
        #: Whether a worker queues the task later. In the caller's process there is nobody to do so.
        self.waits = not sync and run_after is not None and run_after > timezone.now()
        self._payload = sign(spec.to_text())
        self.enqueue = enqueueing(spec, self.task_name, sync=sync, broker=broker)

    def write(self, *, enqueue_after_commit: bool = False) -> ActiveTask:
        """Write the rows, without a message in the queue."""

        def write(in_savepoint: bool) -> ActiveTask:
            with write_transaction(), self._within(self.task_name):
                active = self._insert(in_savepoint)
                if enqueue_after_commit:
                    send_after_commit(self._manager, active, self.enqueue)
            return active

        return lifecycle.twice_if_need_be(write)

    def write_and_enqueue(self) -> None:
        """Write the rows and the message in one transaction. If the message can't be written, record the failure.

        Raises:
            EnqueueError: if the message can't be written.
        """

        def write(in_savepoint: bool) -> None:
            with write_transaction(), self._within(self.task_name):
                if not queue.is_listened_to():
                    # The message first, so that the task's row is written once, with the receipt.
                    self._insert(in_savepoint, receipt=_enqueued(self.task_name, self.enqueue))
                    return
                # Somebody hears of each message, and must not hear of those of launches that are refused.
                active = self._insert(in_savepoint)
                ActiveTask.objects.note_sent(active, _enqueued(self.task_name, self.enqueue))

        try:
            lifecycle.twice_if_need_be(write)
            return
        except _NotEnqueued as failure:
            error = failure.error
        with write_transaction(), self._within(self.task_name):
            active = self._insert(in_savepoint=True)
            waits = record_failed_enqueue(self._manager, active, error)
        if not waits:
            raise EnqueueError(self.task_name, error_summary(error)) from error

    def _insert(self, in_savepoint: bool, *, receipt: str | None = None) -> ActiveTask:
        """Insert the task, lock its objects and record it.

        Raises:
            TaskNameTaken: if a task or a record has the name already.
            TaskAlreadyActive: if a task has the same unique key.
            TaskConflict: if somebody else holds one of the objects.
        """
        spec, retry = self._spec, self._spec.retry
        may_retry = retry is not None and not self._sync
        active = ActiveTask(
            task_name=self.task_name,
            state=ActiveTaskState.PENDING,
            label=spec.label,
            manager_class=spec.manager_class,
            manager_config=spec.manager_config,
            user=None if isinstance(self._launched_by, str) else self._launched_by,
            cluster=spec.cluster,
            time_limit=spec.timeout,
            unique_key=spec.unique_key,
            # In the caller's process there is nobody to retry it.
            policy=retry.to_json() if retry is not None and may_retry else {},
            # Without a history there is no other copy, with which to resume it.
            payload=self._payload if may_retry or app_settings.DASHBOARD_RECORDER is None else "",
            goes_on=self._goes_on and not self._sync,
            next_run_at=self._run_after if self.waits else None,
            queue_receipt=receipt or "",
            sent_at=timezone.now() if receipt is not None else None,
        )
        self._add(active)
        reserved = set(self._manager.reservations)
        to_lock = locks.merged(spec.conflict_ids, spec.parent_ids)
        locks.take(active, to_lock, from_reservations=_keys_of(reserved) if reserved else ())
        # By the database's clock, as are the times of the claim and of the end.
        created: list[lifecycle.Event] = [("create", {**self._create_payload(), "timestamp": active.created_at})]
        lifecycle.record(self._manager, self.task_name, created, in_savepoint=in_savepoint)
        lifecycle.call_hooks(self._manager, self.task_name, created)
        if reserved:
            transaction.on_commit(partial(self._forget_used, reserved), using=coordination_db())
        return active

    def _forget_used(self, reserved: set[str]) -> None:
        """Forget the reservations of which no lock is left."""
        left = ActiveTask.objects.reservations().filter(unique_key__in=reserved).values_list("unique_key", flat=True)
        self._manager.reservations.difference_update(reserved - set(left))

    def _add(self, active: ActiveTask) -> None:
        if not self._is_named and not self._spec.unique_key:
            ActiveTask.objects.add(active)
            return
        for _attempt in range(locks.TAKE_ATTEMPTS):
            if self._is_named and TaskRecord.objects.filter(task_name=self.task_name).exists():
                raise TaskNameTaken(self.task_name)
            try:
                with impatient_transaction():
                    ActiveTask.objects.add(active)
                return
            except IntegrityError as error:
                failure = error
            same_key = ActiveTask.objects.exclude(unique_key="").filter(unique_key=self._spec.unique_key).first()
            if same_key is not None:
                raise TaskAlreadyActive(same_key.task_name) from failure
            if ActiveTask.objects.tasks().filter(task_name=self.task_name).exists():
                break
            # The other task has ended in this moment.
        raise TaskNameTaken(self.task_name) from failure

    def _create_payload(self) -> dict[str, Any]:
        spec = self._spec
        return {
            "func": spec.shown_func or spec.func,
            "label": spec.label,
            "user": self._launched_by,
            "affected_objects": spec.affected_objects,
            "object_texts": spec.object_texts,
            "conflict_ids": spec.conflict_ids,
            "object_ids": spec.object_ids,
            "object_count": spec.object_count,
            "by_object": spec.by_object,
            "task_args": list(spec.args),
            "argument_names": self._argument_names,
            "task_kwargs": dict(spec.kwargs),
            "group": spec.group,
            "cluster": spec.cluster,
            "retry_of": self._retry_of,
            "is_partial": spec.is_partial,
            "manager_class": spec.manager_class,
            "manager_config": spec.manager_config,
            "payload": self._payload,
            "run_after": self._run_after,
        }


def _keys_of(reserved: set[str]) -> list[int]:
    """Return the primary keys of the reservations with these unique keys."""
    return list(ActiveTask.objects.reservations().filter(unique_key__in=reserved).values_list("pk", flat=True))


def _check(manager: LaunchingManager, spec: TaskSpec) -> tuple[list[str], bool]:
    """Check that a worker can run the task.

    Return the names of its positional arguments, and whether another attempt goes on where the last one has stopped: a
    function that does so has the attribute ``goes_on``.
    """
    path, func = resolve_function(spec.func)
    func = manager.wrap_function(func)
    injected = accepted_arguments(func, INJECTED)
    check_arguments(path, func, spec.args, {**injected, **spec.kwargs})
    if to_json(spec.manager_config) != spec.manager_config or not is_plain_json(spec.manager_config):
        raise TypeError(f"The config of {spec.manager_class} is kept as JSON: use plain values in it.")
    return argument_names(func, len(spec.args)), spec.by_object and getattr(func, "goes_on", False)


def enqueueing(spec: TaskSpec, task_name: str, *, sync: bool = False, broker: Any = None) -> Callable[[], str]:
    """Return what hands a task to the broker (or runs it, if ``sync``) and returns the broker's receipt."""
    call = TaskCall(task_name, spec.for_worker().to_text(), str(spec), sync)
    options: Mapping[str, Any] = {"hook": queue.COMPLETION_HOOK, **spec.options}
    return partial(
        queue.enqueue,
        call,
        task_name=task_name,
        cluster=spec.cluster,
        group=spec.group or None,
        sync=sync,
        broker=broker,
        **(options if spec.timeout is None else {**options, "timeout": spec.timeout}),
    )


class _NotEnqueued(Exception):
    """The broker did not take a task, so that its transaction is rolled back."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def _enqueued(task_name: str, enqueue: Callable[[], str]) -> str:
    try:
        return enqueue()
    except Exception as error:
        logger.debug("Task %s could not be queued", task_name, exc_info=True, extra={"task_name": task_name})
        raise _NotEnqueued(error) from error


def send(manager: lifecycle.LifecycleManager, active: ActiveTask, enqueue: Callable[[], str]) -> Exception | None:
    """Hand a task that has a row already to the broker, in this transaction or after it, as its place allows.

    Returns the error of a broker in this database, which is recorded then.

    Raises:
        EnqueueError: at commit, if a broker elsewhere does not take the task.
    """
    if queue.broker_database() != coordination_db():
        send_after_commit(manager, active, enqueue)
        return None
    try:
        with transaction.atomic(using=coordination_db()):
            receipt = enqueue()
    except Exception as error:
        return None if record_failed_enqueue(manager, active, error) else error
    ActiveTask.objects.note_sent(active, receipt)
    return None


def send_after_commit(manager: lifecycle.LifecycleManager, active: ActiveTask, enqueue: Callable[[], str]) -> None:
    """Hand a task to a broker elsewhere once this transaction is committed.

    Raises:
        EnqueueError: at commit, if the broker does not take the task. That is recorded then.
    """

    hooks = connections[coordination_db()].run_on_commit

    def send_now() -> None:
        try:
            if (failure := _sent(manager, active, enqueue)) is not None:
                _raise_after(hooks, send_now, failure)
        except Exception:
            # The database may be away. The cleanup finds the task.
            logger.exception(
                "It could not be recorded whether task %s was queued",
                active.task_name,
                extra={"task_name": active.task_name},
            )

    transaction.on_commit(send_now, using=coordination_db())


def _sent(manager: lifecycle.LifecycleManager, active: ActiveTask, enqueue: Callable[[], str]) -> EnqueueError | None:
    """Hand a task to the broker and record whether it was taken. Return the error if it was not, and has ended so."""
    try:
        receipt = enqueue()
    except Exception as error:
        if record_failed_enqueue(manager, active, error):
            return None
        failure = EnqueueError(active.task_name, error_summary(error))
        failure.__cause__ = error
        return failure
    ActiveTask.objects.note_sent(active, receipt)
    return None


def _raise_after(hooks: list[Any], hook: Callable[[], None], failure: Exception) -> None:
    """Raise ``failure`` in the caller, whose transaction is committed, after all of its other hooks have run.

    An error in a hook keeps Django from calling the hooks after it, which may be those of other launches or of the
    project. ``hooks`` are those that were there when ``hook`` was registered.
    """

    def raise_failure() -> None:
        raise failure

    # Django takes one hook after the other out of its list. If this is not that list any more, as after the rollback
    # of a savepoint, the hook is still in it; then the failure is only recorded.
    if all(registered is not hook for _savepoints, registered, _robust in hooks):
        hooks.append((set(), raise_failure, False))


def record_failed_enqueue(manager: lifecycle.LifecycleManager, active: ActiveTask, error: BaseException) -> bool:
    """Record that the broker did not take the task. Return whether it waits for a retry, as its policy may have it.

    One that was held back or paused waits for the next pass of the workers, as its launch has succeeded.
    """
    if active.released_from and ActiveTask.objects.all().hold_again(active):
        logger.warning(
            "Task %s, which had been paused, could not be queued now",
            active.task_name,
            exc_info=error,
            extra={"task_name": active.task_name},
        )
        return True
    text = error_text(_NOT_QUEUED(error=error_summary(error)), LONG)
    kind = type(error)
    recorded = policy.fail(
        manager,
        active,
        reason=FailureReason.NOT_QUEUED.value,
        error=text,
        result=text,
        exception_class=f"{kind.__module__}.{kind.__qualname__}",
        traceback="",
    )
    if recorded:
        logger.error(
            "Task %s could not be queued", active.task_name, exc_info=error, extra={"task_name": active.task_name}
        )
    return ActiveTask.objects.waiting().filter(pk=active.pk).exists()


def _run_here(manager: LaunchingManager, active: ActiveTask, run: Callable[[], str]) -> None:
    """Run a task in this process; its own errors are raised, as by any call."""
    try:
        run()
    except BaseException as error:
        if not connections[coordination_db()].needs_rollback:
            # Does nothing if the task was begun: its end is recorded already.
            record_failed_enqueue(manager, active, error)
        raise
