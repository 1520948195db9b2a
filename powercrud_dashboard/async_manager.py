"""The manager: the package's public API. Each method hands on to the room that does the work."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from powercrud_dashboard.async_context import get_current_task
from powercrud_dashboard.engine import (
    cleanup,
    failures,
    health,
    launch,
    lifecycle,
    locks,
    progress,
    registry,
    requests,
    retry,
    status,
)
from powercrud_dashboard.engine.arguments import QueueOptions, as_count, as_moment, as_name, as_person
from powercrud_dashboard.engine.endpoint import ProgressEndpoint
from powercrud_dashboard.engine.locks import ALL_OBJECTS
from powercrud_dashboard.engine.policy import RetryPolicy
from powercrud_dashboard.engine.spec import TaskFunction, TaskSpec, describe_objects, resolve_function
from powercrud_dashboard.models import ActiveTask, ConflictLock, TaskStatus
from powercrud_dashboard.models.coordination import ActiveTaskState
from powercrud_dashboard.models.statuses import FINISHED
from powercrud_dashboard.text import SHORT, clean_text

__all__ = ["ALL_OBJECTS", "AsyncManager", "RetryPolicy"]

logger = logging.getLogger(__name__)


class AsyncManager(ProgressEndpoint):
    """Launches tasks, holds conflict locks, takes progress, emits lifecycle events, cleans up.

    Subclass it and override :meth:`async_task_lifecycle` to follow what happens to tasks. The
    subclass that launched a task is also used in the worker.
    """

    class STATUSES:
        PENDING = TaskStatus.PENDING.value
        IN_PROGRESS = TaskStatus.IN_PROGRESS.value
        SUCCESS = TaskStatus.SUCCESS.value
        FAILED = TaskStatus.FAILED.value
        CANCELLED = TaskStatus.CANCELLED.value
        PAUSED = TaskStatus.PAUSED.value
        UNKNOWN = None

    #: The dotted path of the manager where none is named and none is configured.
    DEFAULT_MANAGER = registry.DEFAULT_MANAGER

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        """Make a manager.

        ``config`` holds plain JSON values for subclasses, as :attr:`config`. It is kept with each task, and every
        manager that is made for that task later, in a worker for instance, gets it by keyword.
        """
        self.config: dict[str, Any] = dict(config or {})
        #: The unique keys of the reservations that this instance has made and no launch has used.
        self.reservations: set[str] = set()

    @property
    def manager_class_path(self) -> str:
        """The dotted path by which a worker finds this class."""
        return f"{type(self).__module__}.{type(self).__qualname__}"

    # Launch, cancel, retry

    def launch_async_task(
        self,
        func: str | TaskFunction,
        *args: Any,
        conflict_ids: locks.ConflictIds | None = None,
        user: Any = None,
        affected_objects: Iterable[Any] | None = None,
        task_key: str | uuid.UUID | None = None,
        label: str | None = None,
        group: str | int | None = None,
        timeout: float | timedelta | None = None,
        cluster: str | None = None,
        run_after: datetime | None = None,
        sync: bool = False,
        cached: bool | int | None = None,
        save: bool | None = None,
        broker: Any = None,
        q_options: Mapping[str, Any] | None = None,
        task_args: Iterable[Any] | None = None,
        task_kwargs: Mapping[str, Any] | None = None,
        retry: RetryPolicy | int | None = None,
        unique_key: str = "",
        object_ids: locks.ConflictIds | None = None,
        object_count: int | None = None,
        by_object: bool = False,
        shown_func: str = "",
        **kwargs: Any,
    ) -> str:
        """Run a function in the background and return the task's name.

        Args:
            func: a dotted path, or a function that a worker can import by its own name.
            *args: positional arguments for the function.
            conflict_ids: objects to lock until the task ends, ``{"app_label.Model": {pk, ...}}``; a
                value may also be a queryset. Those that this instance has reserved are taken over.
            user: who launches it: a user, a user's key, or a text. Users may see their tasks.
            affected_objects: objects, or descriptions of them, for people to read.
            task_key: the name to use instead of a new UUID.
            label: the name that people read; by default the function's path.
            group: django-q2 group.
            timeout: seconds after which the worker stops the task, rounded up; -1 for no limit.
            cluster: name of the django-q2 cluster (queue) that is to run it.
            run_after: when it is to start at the earliest. Its objects are locked from now on.
            sync: run it at once in this process, whatever ``run_after`` says; its error is raised here.
            cached: django-q2's option: keep its result in the cache, for so many seconds.
            save: django-q2's option: whether django-q2 saves a row of its own.
            broker: the django-q2 broker to use.
            q_options: more options for django-q2. Those that are given by themselves as well are ignored here.
            task_args: more positional arguments, after ``*args``.
            task_kwargs: more keyword arguments, of any name.
            retry: a :class:`RetryPolicy`, or a number of retries.
            unique_key: if a task with the same key is queued or running, none is launched.
            object_ids: objects that it works on without locking them, in the form of ``conflict_ids``; a model without
                keys is only named.
            object_count: how many objects it works on, where they are not all named.
            by_object: the function reports the outcome of each object with ``note_outcome``. A retry of the
                objects that were not done passes their keys, as text, in its argument ``only``.
            shown_func: what is shown as the function, where ``func`` is one that runs others.
            **kwargs: keyword arguments for the function.

        Returns:
            The task's name, which the function gets as ``task_key`` if it accepts that. Likewise it gets
            ``manager_class``, the dotted path of this manager's class.

        Raises:
            UnimportableCallable: if a worker could not import the function.
            TypeError: if the arguments don't fit its signature or can't be pickled, an option is of a wrong type, or
                ``retry`` names something that is not an exception class.
            ValueError: if a key in ``conflict_ids`` can't be a key of its model, or an option has an impossible
                value, such as a name that is too long.
            TaskNameTaken: if ``task_key`` was used before.
            TaskAlreadyActive: if there is a task with the same ``unique_key``; it has its name.
            TaskConflict: if somebody else holds one of the objects. Nothing is left behind.
            TaskBusy: if another process changes their locks in a transaction that does not end.
            EnqueueError: if the broker does not take the task. It is recorded as failed.
        """
        func_path, _function = resolve_function(func)
        options = QueueOptions.of(
            q_options,
            task_name=task_key,
            group=group,
            cluster=cluster,
            timeout=timeout,
            sync=sync or None,
            broker=broker,
            cached=cached,
            save=save,
        )
        lines, texts = describe_objects(affected_objects)
        spec = TaskSpec(
            func=func_path,
            args=(*args, *(task_args or ())),
            kwargs={**kwargs, **(task_kwargs or {})},
            group=options.group,
            cluster=options.cluster,
            timeout=options.timeout,
            label=clean_text(label or func_path, SHORT),
            shown_func=clean_text(shown_func, SHORT),
            manager_class=self.manager_class_path,
            manager_config=self.config,
            conflict_ids=(keys := locks.normalise(conflict_ids)),
            parent_ids=locks.parent_rows(conflict_ids, keys),
            object_ids=locks.normalise(object_ids, keeps_empty=True),
            object_count=as_count("object_count", object_count),
            object_texts=texts,
            affected_objects=lines,
            by_object=bool(by_object),
            unique_key=as_name("unique_key", unique_key),
            retry=RetryPolicy.of(retry),
            options=options.others,
        )
        how = {"task_name": options.task_name or None, "user": as_person(user), "run_after": as_moment(run_after)}
        return cleanup.without_stale_holders(
            lambda: launch.launch(self, spec, sync=options.sync, broker=options.broker, **how)
        )

    def cancel_task(self, task_name: str, user: Any = None) -> bool:
        """Cancel a task: a queued one ends now, a running one as soon as its worker stops it.

        Returns True if the task was ended or asked to stop, False if there is none of this name
        or somebody has asked before.

        Raises:
            TaskNotCancellable: if it is a queued task of plain django-q2, whose message can't be taken back.
            TaskBusy: if another process keeps the task locked in the database, and does not finish.
        """
        return requests.cancel(task_name, as_person(user), self._owner_of)

    def pause_task(self, task_name: str, user: Any = None, keep_locks: bool = True) -> bool:
        """Pause a task: a queued one now, a running one at the next item of its tracked loop.

        A paused task has no worker, and waits until :meth:`resume_task` queues it again. It can be cancelled.

        Args:
            task_name: the task.
            user: who pauses it.
            keep_locks: whether its objects stay locked; else it has to lock them again to be resumed.

        Returns:
            True if it is paused or was asked to; False if there is none of this name or somebody has asked before.

        Raises:
            TaskNotPausable: if it could not be resumed.
            TaskBusy: as :meth:`cancel_task`.
        """
        return requests.pause(task_name, as_person(user), self._owner_of, keep_locks=keep_locks)

    def resume_task(self, task_name: str, user: Any = None) -> bool:
        """Queue a paused task again; one that has not stopped yet goes on. Return whether there was one.

        An action that runs per object goes on with the objects that have no outcome, and a function that takes
        ``resume_at`` gets the number of items that were done. Others run again from the start.

        Raises:
            TaskConflict: if others hold objects that it has given back; it stays paused.
            TaskBusy: as :meth:`cancel_task`.
        """
        return cleanup.without_stale_holders(lambda: requests.resume(task_name, as_person(user), self._owner_of))

    def retry_task(
        self,
        task_name: str,
        user: Any = None,
        *,
        task_args: Sequence[Any] | None = None,
        task_kwargs: Mapping[str, Any] | None = None,
        only: Mapping[str, Collection[str]] | None = None,
    ) -> str:
        """Launch an ended task again, with the same function, arguments, objects and locks.

        Args:
            task_name: the ended task.
            user: who retries it.
            task_args: positional arguments to use instead of its own. What differs is recorded.
            task_kwargs: keyword arguments to use instead of its own.
            only: restricts its objects and locks to these: ``{"app_label.model": {key as text, ...}}``.

        Returns:
            The name of the new task, whose record is linked to the first.

        Raises:
            TaskNotRetryable: if there is no record of it, it has not ended, a retry of it has not ended,
                or what it was launched with can't be restored.
            TaskConflict: if somebody else holds one of its objects.
            TaskAlreadyActive: if a task with its unique key is queued or running.
            EnqueueError: if the broker does not take the new task.
            TypeError: if the arguments don't fit the function.
        """
        return cleanup.without_stale_holders(
            lambda: retry.retry(self, task_name, user, task_args=task_args, task_kwargs=task_kwargs, only=only)
        )

    def dismiss_failure(self, task_name: str, user: Any = None, note: str = "") -> bool:
        """Settle an open failure without a retry. Return whether it was open.

        ``user`` and ``note`` are kept with it. Earlier tries of the same task are dismissed with it.

        Raises:
            TaskBusy: if another session keeps the records locked in the database, and does not finish.
        """
        return failures.dismiss(self, task_name, user, note)

    def reopen_failure(self, task_name: str, user: Any = None) -> bool:
        """Open a dismissed failure again, and raise as :meth:`dismiss_failure`. Return whether it was dismissed."""
        return failures.reopen(self, task_name, user)

    def run_task_now(self, task_name: str, user: Any = None) -> bool:
        """Queue a task at once that waits for its retry or that the broker has lost. Return whether there was one."""
        active = (ActiveTask.objects.waiting() | ActiveTask.objects.missing()).filter(task_name=task_name).first()
        return active is not None and retry.run_now(self._owner_of(active), active, as_person(user))

    @classmethod
    def send_due_tasks(cls) -> int:
        """Queue the tasks whose retry is due; return how many. Workers do this every few seconds."""
        return retry.send_due()

    # Conflict locks

    def add_conflict_ids(self, task_name: str, conflict_ids: locks.ConflictIds) -> bool:
        """Lock all of the objects under a name, or none; return whether they are locked.

        ``task_name`` is a queued or running task, or any name for a reservation. A reservation is taken over
        by this instance's next launch of a task that locks the same objects, and expires after ``CONFLICT_TTL``
        seconds. In the worker of a task that was given up meanwhile, that task gets no locks.
        """
        task, task_name = get_current_task(), as_name("task_name", task_name)
        if task is not None and task.task_name == task_name:
            return task.take_conflict_ids(conflict_ids)
        keys = locks.lock_keys(conflict_ids)
        holder = locks.reserve(task_name, keys, manager_class=self.manager_class_path)
        if holder is None and cleanup.release_stale_holders(set(keys)):
            holder = locks.reserve(task_name, keys, manager_class=self.manager_class_path)
        if holder is None:
            return False
        if holder.state == ActiveTaskState.RESERVED:
            self.reservations.add(holder.unique_key)
        return True

    def remove_conflict_ids(self, task_name: str, conflict_ids: locks.ConflictIds | None = None) -> int:
        """Release what ``task_name`` itself holds, all of it or only these objects. Return how many locks went.

        If this instance has reserved something under the name, only that is released: what others have reserved under
        it, or a task of that name holds, stays locked. It raises ``TaskBusy`` if another session keeps them locked.
        """
        keys = None if conflict_ids is None else locks.lock_keys(conflict_ids)
        return locks.release(task_name, keys, own=self.reservations)

    def release_conflict_lock(self, lock: ConflictLock, user: Any = None, note: str = "") -> bool:
        """Release one lock by hand, whoever holds it; the holder's record says who did it, and why if there is a note.

        A running task goes on, without the lock. Returns False if the holder has released it meanwhile.
        """
        return requests.release_lock(lock, as_person(user), self._owner_of, note)

    def check_conflict(self, object_data: locks.ConflictIds) -> set[Hashable]:
        """Return those of the given ids that anyone holds, in the form in which they were given."""
        return locks.held_ids(object_data)

    # Progress and status

    def update_progress(
        self, task_name: str, progress_data: object = None, *, current: int | None = None, total: int | None = None
    ) -> None:
        """Report how far a task is.

        In the task's own worker this only notes the newest value: a thread writes it some times a
        second. Elsewhere it is written at once. "Step 3/10: label" also yields current and total.

        Args:
            task_name: the task.
            progress_data: the message.
            current: how much is done.
            total: how much there is to do.

        Raises:
            TaskCancelled: in the worker, if somebody has cancelled the task.
        """
        task = get_current_task()
        # It may be given as a UUID.
        if task is not None and task.task_name == str(task_name):
            task.update_progress(progress_data, current=current, total=total)
            return
        news = progress.Progress.parse(progress_data, current, total)
        if (active := progress.write(task_name, news)) is not None:
            lifecycle.emit(self._owner_of(active), "progress", task_name, **news.as_payload())

    def get_progress(self, task_name: str) -> str | None:
        """Return the newest message of a task, ended ones included; None if it has none."""
        return status.progress_of(task_name).message or None

    def get_task_status(self, task_name: str, wait: int = 0) -> str | None:
        """Return the task's status, one of :class:`STATUSES`.

        Args:
            task_name: the task.
            wait: milliseconds to wait for its end; less than 0 waits without limit.
        """
        return status.status_after(task_name, wait)

    def get_task_status_nowait(self, task_name: str) -> str | None:
        """Return the task's status without waiting."""
        return status.status_of(task_name)

    def is_task_complete(self, task_name: str) -> bool:
        """Return whether the task has ended, in whichever way."""
        return status.status_of(task_name) in FINISHED

    def describe_progress(self, task_name: str) -> dict[str, Any]:
        """Return what the progress endpoint answers, with ``finished`` telling whether the task has ended."""
        return status.described(task_name)

    # Active tasks

    def get_active_tasks(self) -> set[str]:
        """Return the names of all tasks that are queued, running or paused."""
        return set(ActiveTask.objects.tasks().values_list("task_name", flat=True))

    def is_active_task(self, task_name: str) -> bool:
        """Return whether the task is queued, running or paused."""
        return ActiveTask.objects.tasks().filter(task_name=task_name).exists()

    def remove_active_task(self, task_name: str) -> bool:
        """End a task by hand: its locks are released, and it is recorded as cancelled.

        Returns whether there was such a task. A worker that runs it stops it within about a second.
        """
        return requests.remove(task_name, self._owner_of)

    def cleanup_completed_tasks(self, *, dry_run: bool = False) -> dict[str, Any]:
        """Find lost workers, tasks lost in the queue, expired reservations and orphaned locks; prune history.

        Returns a summary: ``active_tasks`` (how many there were), ``cleaned`` (name -> what was
        found) and ``skipped`` (name -> why it was left alone), each for the first 100 tasks, with
        ``cleaned_count`` and ``skipped_count`` for all, ``orphaned_locks`` and ``pruned_records``.
        With ``dry_run`` nothing is changed.
        """
        if not dry_run:
            self.send_due_tasks()
        return cleanup.Cleanup(dry_run=dry_run).run().as_dict()

    def _owner_of(self, active: ActiveTask) -> AsyncManager:
        """Return the manager that a task was launched by, whose hooks are called for its end."""
        if active.manager_class in ("", self.manager_class_path) and active.manager_config == self.config:
            return self
        owner: AsyncManager = registry.manager_of(active)
        return owner

    # Health

    def validate_async_cache(self) -> bool:
        """Return whether the progress cache, if one is set, works and is shared between processes."""
        return health.cache_works()

    def validate_async_qcluster(self, timeout_ms: int | None = None) -> bool:
        """Return whether a cluster runs a probe task within ``timeout_ms`` milliseconds."""
        return health.cluster_answers(timeout_ms)

    def validate_async_system(self) -> bool:
        """Return whether tables, cache and cluster all work."""
        return health.database_works() and self.validate_async_cache() and self.validate_async_qcluster()

    # For subclasses

    def wrap_function(self, func: TaskFunction) -> TaskFunction:
        """Return what workers call instead of a task's function: that itself, unless a subclass overrides this.

        What is returned has the same signature, as after ``functools.wraps``. It is also asked for at the launch, to
        check the arguments.
        """
        return func

    def async_task_lifecycle(self, event: str, task_name: str, **payload: Any) -> None:
        """Called with each lifecycle event; override it, and call ``super()``.

        ``event`` is ``create``, ``start``, ``progress``, ``complete``, ``fail``, ``cancel``, ``retry`` or
        ``cleanup``; there may be others (``cancel_requested``, ``log``).

        The payload of every event has ``status``, ``message``, ``progress_payload``, ``user``, ``affected_objects``,
        ``task_args``, ``task_kwargs``, ``result``, ``timestamp`` and ``extra``, each None where there is nothing.

        It is called after the transaction that makes the change, in a worker by a thread of its own. If the caller of
        the manager has a transaction open, it is called inside that: use ``transaction.on_commit`` for what can't be
        undone. What it raises is logged and does not disturb the task, and no other task waits for it.
        """

    @property
    def has_lifecycle_hook(self) -> bool:
        """Whether a subclass overrides :meth:`async_task_lifecycle`."""
        return type(self).async_task_lifecycle is not AsyncManager.async_task_lifecycle

    def handle_task_completion(self, task: Any, task_name: str) -> None:
        """Called for each of this manager's tasks that ends, in success and failure; override it.

        ``task`` is an unsaved row of django-q2's ``Task`` with ``name``, ``success``, ``result`` (the error's text
        after a failure), ``started`` and ``stopped``. It is called as :meth:`async_task_lifecycle` is.
        """

    @property
    def has_completion_hook(self) -> bool:
        """Whether a subclass overrides :meth:`handle_task_completion`."""
        return type(self).handle_task_completion is not AsyncManager.handle_task_completion

    @classmethod
    def resolve_manager(
        cls, manager_class_path: str | None = None, config: Mapping[str, Any] | None = None
    ) -> AsyncManager:
        """Return a manager of the named class, else of the configured one, else of the dashboard's.

        Called on a subclass without a path, it returns a manager of that subclass. A path that can't be imported is
        logged and the next class is used, so that a typing error never loses a task.
        """
        if manager_class_path is None and cls is not AsyncManager:
            subclass: AsyncManager = registry.make_manager(cls, config)
            return subclass
        manager: AsyncManager = registry.resolve_manager(manager_class_path, config)
        return manager
