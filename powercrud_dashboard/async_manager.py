"""The manager: the package's public API. Each method hands on to the module that knows how."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from django.urls import URLPattern, URLResolver, include, path
from django.utils.module_loading import import_string

from powercrud_dashboard import cleanup, health, launching, lifecycle, locks, progress, queueing, resending, retrying
from powercrud_dashboard.async_context import get_current_task
from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.endpoint import ProgressView
from powercrud_dashboard.exceptions import TaskConflict
from powercrud_dashboard.models import ActiveTask, ConflictLock, TaskRecord, TaskStatus
from powercrud_dashboard.models.coordination import ActiveTaskState, write_transaction
from powercrud_dashboard.retry_policy import DEFAULT_BACKOFF, ExceptionClass, RetryPolicy

if TYPE_CHECKING:
    from django.contrib.auth.models import AbstractUser

__all__ = ["AsyncManager"]

logger = logging.getLogger(__name__)

#: Seconds between two looks while waiting for a task's end.
STATUS_POLL_INTERVAL = 0.05


class AsyncManager:
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
        UNKNOWN = None

    #: Used where no manager is named and none is configured.
    DEFAULT_MANAGER = "powercrud_dashboard.dashboard_manager.DashboardAsyncManager"

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        """Make a manager; ``config`` is kept as :attr:`config` for subclasses, and travels to the worker."""
        self.config: dict[str, Any] = dict(config or {})
        self.reservations: set[int] = set()

    @property
    def manager_class_path(self) -> str:
        """The dotted path under which a worker finds this class."""
        return f"{type(self).__module__}.{type(self).__qualname__}"

    # Launch, cancel, retry

    def launch_async_task(
        self,
        func: str | Callable[..., Any],
        *args: Any,
        conflict_ids: locks.ConflictIds | None = None,
        user: Any = None,
        affected_objects: Iterable[Any] | None = None,
        task_key: str | None = None,
        label: str | None = None,
        group: str | None = None,
        timeout: int | None = None,
        cluster: str | None = None,
        sync: bool = False,
        q_options: Mapping[str, Any] | None = None,
        task_args: Iterable[Any] | None = None,
        task_kwargs: Mapping[str, Any] | None = None,
        unique_key: str = "",
        object_ids: locks.ConflictIds | None = None,
        object_count: int | None = None,
        by_object: bool = False,
        func_name: str = "",
        max_retries: int = 0,
        retry_backoff: float = DEFAULT_BACKOFF,
        retry_on: Iterable[ExceptionClass] = (),
        give_up_on: Iterable[ExceptionClass] = (),
        requeue_on_stop: bool | None = None,
        **kwargs: Any,
    ) -> str:
        """Run a function in the background and return the task's name.

        Args:
            func: dotted path, or a function that a worker can import by its own name.
            *args: positional arguments for the function.
            conflict_ids: objects to lock until the task ends, ``{"app_label.Model": {pk, ...}}``; a
                value may also be a queryset. What this instance reserved is taken over.
            user: who launches it; may see the task, and is named in the record.
            affected_objects: descriptions (or objects) for people to read.
            task_key: the name to use instead of a new UUID.
            label: what people read; by default the function's path.
            group: django-q2 group.
            timeout: seconds after which the worker stops the task.
            cluster: name of the django-q2 cluster (queue) that is to run it.
            sync: run it at once in this process; its error is raised here.
            q_options: more options for django-q2.
            task_args: more positional arguments, after ``*args``.
            task_kwargs: more keyword arguments, also those whose names this method uses itself.
            unique_key: if a task with the same key is queued or running, none is launched.
            object_ids: objects that the task is for without locking them, in the form of ``conflict_ids``.
            object_count: how many objects it is for, where they are not all named.
            by_object: the function says of each object what became of it, with ``note_outcome``; for a retry of
                those that were not done it takes their keys, as text, in its argument ``only``.
            func_name: what is shown as the function, where that is one which runs others.
            max_retries: how often it is run again by itself after an error; its locks are kept meanwhile.
            retry_backoff: seconds to the first of these, give or take; each further wait is twice as long.
            retry_on: exception classes, or their dotted paths, that it is run again after; by default after all
                errors of its function and after its time limit. ``WorkerLost`` and ``EnqueueError``, in
                ``powercrud_dashboard.exceptions``, stand for a lost worker and for a broker that does not take it.
            give_up_on: exception classes that end it at once.
            requeue_on_stop: whether a cluster that stops interrupts it, to be queued again, and does not wait for its
                end; by default only if there are retries.
            **kwargs: keyword arguments for the function.

        Returns:
            The task's name, which the function gets as ``task_key`` if it takes it. Likewise
            ``manager_class``, the dotted path of this manager's class.

        Raises:
            UnimportableCallable: if a worker could not import the function.
            TypeError: if the arguments don't fit its signature, or can't be pickled.
            ValueError: if a key in ``conflict_ids`` is none of its model, or a number of the retries is negative.
            TaskNameTaken: if ``task_key`` was used before.
            TaskAlreadyActive: if there is a task with the same ``unique_key``; it has its name.
            TaskConflict: if somebody else holds one of the objects. Nothing is left behind.
            EnqueueError: if the broker does not take the task. It is recorded as failed.
        """
        request = launching.Launch(
            func=func,
            args=(*args, *(task_args or ())),
            kwargs={**kwargs, **(task_kwargs or {})},
            conflict_ids=conflict_ids,
            affected_objects=affected_objects,
            user=user,
            task_name=task_key,
            label=label,
            group=group,
            timeout=timeout,
            cluster=cluster,
            sync=sync,
            q_options=q_options or {},
            unique_key=unique_key,
            object_ids=object_ids,
            object_count=object_count,
            by_object=by_object,
            func_name=func_name,
            policy=RetryPolicy.make(
                max_retries=max_retries,
                backoff=retry_backoff,
                retry_on=retry_on,
                give_up_on=give_up_on,
                requeue_on_stop=requeue_on_stop,
            ),
        )
        try:
            return launching.launch(self, request)
        except TaskConflict as conflict:
            if not cleanup.release_stale_holders(self.resolve_manager, conflict.holders):
                raise
            return launching.launch(self, request)

    def cancel_task(self, task_name: str, user: AbstractUser | None = None) -> bool:
        """Cancel a task: a queued one ends now, a running one as soon as its worker stops it.

        Returns True if the task was ended or asked to stop, False if there is none of this name
        or somebody has asked before.
        """
        active = ActiveTask.objects.tasks().filter(task_name=task_name).first()
        if active is None:
            return False
        owner = self._owner_of(active)
        if active.state == ActiveTaskState.PENDING and lifecycle.end(owner, active, "cancel", actor=user):
            queueing.withdraw(active.queue_receipt)
            return True
        with write_transaction():
            requested = ActiveTask.objects.all().request_cancel(task_name, user)
            if requested:
                lifecycle.emit(owner, "cancel_requested", task_name, actor=user)
        return requested

    def retry_task(
        self,
        task_name: str,
        user: AbstractUser | None = None,
        *,
        task_args: Sequence[Any] | None = None,
        task_kwargs: Mapping[str, Any] | None = None,
        only: Mapping[str, Collection[str]] | None = None,
    ) -> str:
        """Launch an ended task again, with the same function, arguments, objects and locks.

        ``task_args`` and ``task_kwargs``, if given, take the place of its positional and keyword
        arguments. What differs is recorded. The objects and locks stay those of the first launch, or, with
        ``only``, those of them that it names: ``{"app_label.model": {key as text, ...}}``.

        Returns the name of the new task, whose record is linked to the first.

        Raises:
            TaskNotRetryable: if there is no record of it, it has not ended, it is being retried
                already, or what it was launched with can't be restored.
            TaskConflict: if somebody else holds one of its objects.
            EnqueueError: if the broker does not take the new task.
            TypeError: if the arguments don't fit the function.
        """
        changes: dict[str, Any] = {"task_args": task_args, "task_kwargs": task_kwargs, "only": only}
        try:
            return retrying.retry(self, task_name, user, **changes)
        except TaskConflict as conflict:
            if not cleanup.release_stale_holders(self.resolve_manager, conflict.holders):
                raise
            return retrying.retry(self, task_name, user, **changes)

    def run_task_now(self, task_name: str, user: AbstractUser | None = None) -> bool:
        """Let a task that waits for its next try run as soon as a worker is free. Return whether it waited."""
        active = ActiveTask.objects.waiting().filter(task_name=task_name).first()
        return active is not None and resending.run_now(self._owner_of(active), active, user)

    @classmethod
    def send_due_tasks(cls) -> int:
        """Queue the tasks whose next try is due; return how many. Workers do this every few seconds."""
        return resending.send_due(cls.resolve_manager)

    # Conflict locks

    def add_conflict_ids(self, name: str, conflict_ids: locks.ConflictIds) -> bool:
        """Lock all of the objects under ``name``, or none; return whether they are locked.

        ``name`` is a running task, or any name for a reservation. A reservation is taken over
        by this instance's next launch, and expires after ``CONFLICT_TTL`` seconds.
        """
        keys = locks.normalise(conflict_ids)
        holder = locks.reserve(name, keys, manager_class=self.manager_class_path)
        if holder is None and cleanup.release_stale_holders(self.resolve_manager, locks.holders(keys)):
            holder = locks.reserve(name, keys, manager_class=self.manager_class_path)
        if holder is None:
            return False
        if holder.state == ActiveTaskState.RESERVED:
            self.reservations.add(holder.pk)
        return True

    def remove_conflict_ids(self, name: str, conflict_ids: locks.ConflictIds | None = None) -> int:
        """Release what ``name`` itself holds, all of it or only these objects. Return how many locks went."""
        return locks.release(name, None if conflict_ids is None else locks.normalise(conflict_ids))

    def release_conflict_lock(self, lock: ConflictLock, user: AbstractUser | None = None) -> bool:
        """Release one lock by hand, whoever holds it; the holder's record says who did it.

        A task that runs goes on, without the right to the object. Returns False if the holder has
        released the lock meanwhile.
        """
        with write_transaction():
            if not locks.release_one(lock):
                return False
            holder = lock.active_task
            if holder.state != ActiveTaskState.RESERVED:
                lifecycle.emit(self._owner_of(holder), "release", holder.task_name, actor=user, message=str(lock))
        logger.info("The lock on %s held by %s was released by %s", lock, holder.task_name, user)
        return True

    def check_conflict(self, object_ids: locks.ConflictIds) -> set[Hashable]:
        """Return those of the given ids that anyone holds, as they were given."""
        return locks.held_ids(object_ids)

    # Progress and status

    def update_progress(
        self, task_name: str, message: object = None, *, current: int | None = None, total: int | None = None
    ) -> None:
        """Report how far a task is.

        In the task's own worker this only notes the newest value: a thread writes it some times a
        second. Elsewhere it is written at once. "Step 3/10: label" also yields current and total.

        Raises:
            TaskCancelled: in the worker, if somebody has cancelled the task.
        """
        task = get_current_task()
        if task is not None and task.task_name == task_name:
            task.update_progress(message, current=current, total=total)
            return
        news = progress.Progress.parse(message, current, total)
        if progress.write(task_name, news):
            lifecycle.emit(self, "progress", task_name, message=news.message, current=news.current, total=news.total)

    def get_progress(self, task_name: str) -> str | None:
        """Return the newest message of a task, ended ones included; None if it has none."""
        found = progress.read(task_name)
        if found is not None:
            return found.message or None
        return TaskRecord.objects.filter(task_name=task_name).values_list("message", flat=True).first() or None

    def get_task_status(self, task_name: str, wait: int = 0) -> str | None:
        """Return the task's status, one of :class:`STATUSES`.

        Args:
            task_name: the task.
            wait: milliseconds to wait for its end; less than 0 waits without limit.
        """
        deadline = time.monotonic() + wait / 1000
        while True:
            status = self._status(task_name)
            if status not in (self.STATUSES.PENDING, self.STATUSES.IN_PROGRESS):
                return status
            if wait >= 0 and time.monotonic() >= deadline:
                return status
            time.sleep(STATUS_POLL_INTERVAL)

    def get_task_status_nowait(self, task_name: str) -> str | None:
        """Return the task's status without waiting."""
        return self._status(task_name)

    def is_task_complete(self, task_name: str) -> bool:
        """Return whether the task has ended, in whichever way."""
        return self._status(task_name) in (self.STATUSES.SUCCESS, self.STATUSES.FAILED, self.STATUSES.CANCELLED)

    def describe_progress(self, task_name: str) -> dict[str, Any]:
        """Return what the progress endpoint answers, with ``finished`` telling whether the task has ended."""
        status = self._status(task_name)
        found = progress.read(task_name)
        if found is None:
            record = TaskRecord.objects.filter(task_name=task_name).first()
            if record is not None:
                found = progress.Progress(record.message, record.progress_current, record.progress_total)
        found = found or progress.Progress()
        return {
            "task_name": task_name,
            "status": status or "unknown",
            "progress": found.message or None,
            "current": found.current,
            "total": found.total,
            "percent": found.percent,
            "finished": status not in (self.STATUSES.PENDING, self.STATUSES.IN_PROGRESS),
        }

    def _status(self, task_name: str) -> str | None:
        active = ActiveTask.objects.tasks().filter(task_name=task_name).values_list("state", flat=True).first()
        if active is not None:
            return str(active)
        recorded = TaskRecord.objects.filter(task_name=task_name).values_list("status", flat=True).first()
        if recorded is not None:
            return str(recorded)
        finished = queueing.finished_task(task_name)
        if finished is None:
            return self.STATUSES.UNKNOWN
        return self.STATUSES.SUCCESS if finished.success else self.STATUSES.FAILED

    # Active tasks

    def get_active_tasks(self) -> set[str]:
        """Return the names of all queued and running tasks."""
        return set(ActiveTask.objects.tasks().values_list("task_name", flat=True))

    def is_active_task(self, task_name: str) -> bool:
        """Return whether the task is queued or running."""
        return ActiveTask.objects.tasks().filter(task_name=task_name).exists()

    def remove_active_task(self, task_name: str) -> bool:
        """End a task's coordination by hand: its locks are released, it counts as cancelled.

        Returns whether there was such a task. If a worker is at it, it goes on until its end.
        """
        active = ActiveTask.objects.tasks().filter(task_name=task_name).first()
        if active is None or not lifecycle.end(self._owner_of(active), active, "cancel", message="Removed by hand."):
            return False
        queueing.withdraw(active.queue_receipt)
        return True

    def cleanup_completed_tasks(self, *, dry_run: bool = False) -> dict[str, Any]:
        """Find lost workers, tasks lost in the queue, expired reservations and orphaned locks; prune history.

        Returns a summary: ``active_tasks`` (how many there were), ``cleaned`` (name -> what was
        found), ``skipped`` (name -> why it was left alone), ``orphaned_locks`` and
        ``pruned_records``. With ``dry_run`` nothing is changed.
        """
        if not dry_run:
            self.send_due_tasks()
        return cleanup.Cleanup(self.resolve_manager, dry_run=dry_run).run().as_dict()

    def _owner_of(self, active: ActiveTask) -> AsyncManager:
        """Return the manager that a task was launched by, which is to hear of its end."""
        if active.manager_class in ("", self.manager_class_path):
            return self
        return self.resolve_manager(active.manager_class)

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

    def async_task_lifecycle(self, event: str, task_name: str, **payload: Any) -> None:
        """Called with each lifecycle event; override it, and call ``super()``.

        ``event`` is ``create``, ``start``, ``progress``, ``complete``, ``fail``, ``cancel``, ``retry`` or
        ``cleanup``; there may be others (``cancel_requested``, ``log``). It is called after the transaction that
        makes the change, in a worker by a thread of its own, or, if the caller of the manager has a transaction open,
        inside that: use ``transaction.on_commit`` for what can't be undone. What it raises is logged and does not
        disturb the task; however long it takes, no other task waits for it.
        """

    @property
    def has_lifecycle_hook(self) -> bool:
        """Whether a subclass wants to hear of events."""
        return type(self).async_task_lifecycle is not AsyncManager.async_task_lifecycle

    def record_lifecycle_events(self, task_name: str, events: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """Keep events, in the transaction that makes the change; this manager keeps no history."""

    def lifecycle_hook_failed(self, event: str, task_name: str, payload: dict[str, Any], error: Exception) -> None:
        """Called after :meth:`async_task_lifecycle` raised, and what it had written was undone."""

    def handle_task_completion(self, task: Any, task_name: str) -> None:
        """Called with django-q2's row of a finished task if the worker could not record its end itself.

        Subclasses that extend it call ``super()``.
        """
        cleanup.finish_from(self, task, task_name)

    @classmethod
    def resolve_manager(cls, path: str | None = None, config: Mapping[str, Any] | None = None) -> AsyncManager:
        """Return a manager of the named class, else of the configured one, else of the dashboard's.

        A path that does not import is logged, and the next in line is used: a typo never loses a task.
        """
        configured = app_settings.ASYNC_MANAGER_DEFAULT
        for candidate in (path, configured.get("manager_class"), cls.DEFAULT_MANAGER):
            manager_class = _import_manager(candidate) if candidate else None
            if manager_class is not None:
                settled = config or (None if path else configured.get("config"))
                return manager_class(settled) if settled else manager_class()
        return AsyncManager(config)

    @classmethod
    def as_view(cls) -> Callable[..., Any]:
        """Return the progress endpoint as a view."""
        return ProgressView.as_view(manager_class=cls)

    @classmethod
    def get_url(cls, pattern: str = "powercrud/async/progress/", name: str = "powercrud_async_progress") -> URLPattern:
        """Return a URL pattern for the progress endpoint, without a namespace."""
        return path(pattern, cls.as_view(), name=name)

    @classmethod
    def get_urlpatterns(cls, prefix: str = "powercrud/") -> URLResolver:
        """Return the URLs to put into ``urlpatterns``: ``async_progress`` in the namespace ``powercrud``."""
        patterns = [path("async/progress/", cls.as_view(), name="async_progress")]
        return path(prefix, include((patterns, "powercrud"), namespace="powercrud"))


def _import_manager(dotted_path: str) -> type[AsyncManager] | None:
    try:
        found = import_string(dotted_path)
    except ImportError:
        logger.exception("The manager class %s can't be imported; the default is used instead", dotted_path)
        return None
    if not (isinstance(found, type) and issubclass(found, AsyncManager)):
        logger.error("%s is no subclass of AsyncManager; the default is used instead", dotted_path)
        return None
    return found
