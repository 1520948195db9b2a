"""The callable that django-q2 runs: claims the task, runs its function, records how it ended."""

from __future__ import annotations

import logging
import pickle
import pkgutil
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeVar

from django.db import Error as DjangoDatabaseError
from django.db import InterfaceError, OperationalError, connections, transaction
from django.utils.module_loading import import_string
from django_q.exceptions import TimeoutException
from django_q.signals import post_execute_in_worker

from powercrud_dashboard import failing, lifecycle, locks, progress, queueing
from powercrud_dashboard.async_context import Report, TaskContext, running_task
from powercrud_dashboard.callables import injected_arguments
from powercrud_dashboard.exceptions import ClusterStopping, TaskCancelled
from powercrud_dashboard.liveness import is_lost, stay_silent, this_worker
from powercrud_dashboard.models import ActiveTask, FailureReason
from powercrud_dashboard.models.coordination import coordination_db, write_transaction
from powercrud_dashboard.models.history import ObjectOutcome
from powercrud_dashboard.models.text import LONG, SHORT, clean_text, describe, is_printable
from powercrud_dashboard.progress import Progress
from powercrud_dashboard.signals import task_started
from powercrud_dashboard.worker import hooks
from powercrud_dashboard.worker.cancellation import Interruption
from powercrud_dashboard.worker.kept_connection import kept_connection
from powercrud_dashboard.worker.reporter import Attendance, reporting
from powercrud_dashboard.worker.stopping import not_far_beyond_its_time_limit, outlasting_termination

logger = logging.getLogger(__name__)

#: Managers are found by path: the layers below them never import one.
MANAGER = "powercrud_dashboard.async_manager.AsyncManager"

#: Seconds between the tries to reach a database that is away or locked.
DATABASE_RETRY_DELAYS = (0.1, 0.5, 1.0, 2.0, 4.0, 8.0)

#: Bytes of a result that is handed on: all of it goes through a pipe to django-q2's monitor, and into a row.
RESULT_AT_MOST = 10 * 1024 * 1024

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class NotRun:
    """Returned to django-q2 for a delivery that ran nothing.

    Unless it is ``acknowledged``, a broker with receipts will deliver the message again.
    """

    acknowledged: bool


def _leave_no_result(sender: object, task: dict[str, Any], **kwargs: Any) -> None:
    """Keep a delivery that ran nothing from overwriting the result of the one that does."""
    result = task.get("result")
    if not isinstance(result, NotRun):
        return
    # django-q2 saves nothing of a successful task with "save" off that is not cached either.
    task.update(result=None, save=False, cached=False)
    if not result.acknowledged:
        task["ack_id"] = None


post_execute_in_worker.connect(_leave_no_result, dispatch_uid="powercrud_dashboard.leave_no_result")


#: The task whose end this process has recorded last.
_recorded_last = ""


def _spare_the_hook(sender: object, task: dict[str, Any], **kwargs: Any) -> None:
    """Keep django-q2's monitor, which saves one task after the other, from looking after one that is through."""
    if task["name"] == _recorded_last and task.get("hook") == queueing.COMPLETION_HOOK:
        task["hook"] = None


post_execute_in_worker.connect(_spare_the_hook, dispatch_uid="powercrud_dashboard.spare_the_hook")


class TaskStopped(RuntimeError):
    """Tells django-q2 that a task ended in a way that would have ended its worker process as well."""


@dataclass(frozen=True)
class Ending:
    """How a run ended: the lifecycle event with its payload, and what django-q2 is to see of it."""

    event: str
    payload: dict[str, Any]
    result: Any = None
    error: BaseException | None = None


@dataclass(frozen=True)
class TaskCall:
    """What travels through the queue in place of the function; its text is the function's path."""

    path: str
    task_name: str
    manager_class: str
    manager_config: Mapping[str, Any] | None = None
    #: Worker arguments whose names django-q2 would take for its own options.
    shielded_kwargs: dict[str, Any] = field(default_factory=dict)
    sync: bool = False
    #: What people read in the place of the path.
    name: str = ""

    def __str__(self) -> str:
        return clean_text(self.name or self.path, SHORT)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task if it is still to be run, and return its result.

        A delivery of a task that runs elsewhere, has ended or was cancelled runs nothing.
        The function's own errors are recorded, then raised for django-q2 to see.
        """
        manager = import_string(MANAGER).resolve_manager(self.manager_class, self.manager_config)
        tries = count(1)
        try:
            with nullcontext() if self.sync else kept_connection():
                active = self._persist(lambda: claim(manager, self.task_name, is_repeated=next(tries) > 1))
        except DjangoDatabaseError:
            logger.exception("Task %s could not be claimed", self.task_name)
            return NotRun(acknowledged=False)
        if active is None:
            logger.info("Task %s runs elsewhere or has ended; this delivery runs nothing", self.task_name)
            return NotRun(acknowledged=True)
        context = self._context(manager, active)
        with nullcontext() if self.sync else outlasting_termination():
            ending = self._run(manager, active, context, args, {**kwargs, **self.shielded_kwargs})
            self._settle_connections(ending)
            with nullcontext() if self.sync else kept_connection():
                if self._record(manager, active, context, ending):
                    _note_recorded(self.task_name)
        hooks.drain()
        if ending.error is not None:
            raise _for_django_q(ending.error, self.path)
        return ending.result

    def _context(self, manager: lifecycle.LifecycleManager, active: ActiveTask) -> TaskContext:
        def take_locks(label: str, ids: Iterable[Any]) -> bool:
            return locks.reserve(self.task_name, locks.normalise({label: ids})) is not None

        def write_outcome(outcome: ObjectOutcome) -> None:
            lifecycle.emit(manager, "objects", self.task_name, outcomes=[outcome])

        if not self.sync:
            return TaskContext(self.task_name, self.manager_class, take_locks=take_locks, write_outcome=write_outcome)

        def write_report(report: Report) -> None:
            news = Progress.parse(*report)
            progress.write(self.task_name, news)
            lifecycle.emit(
                manager, "progress", self.task_name, message=news.message, current=news.current, total=news.total
            )

        def write_log(message: str, level: str) -> None:
            lifecycle.emit(manager, "log", self.task_name, message=message, level=level)

        return TaskContext(
            self.task_name,
            self.manager_class,
            take_locks=take_locks,
            write_outcome=write_outcome,
            write_report=write_report,
            write_log=write_log,
        )

    def _run(
        self,
        manager: lifecycle.LifecycleManager,
        active: ActiveTask,
        context: TaskContext,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Ending:
        try:
            interruption = Interruption(context)
            with ExitStack() as surroundings:
                surroundings.enter_context(running_task(context))
                if not self.sync:
                    surroundings.enter_context(reporting(Attendance(manager, active, context, interruption)))
                try:
                    with ExitStack() as limits:
                        if not self.sync:
                            limits.enter_context(not_far_beyond_its_time_limit())
                            limits.enter_context(interruption)
                        func = pkgutil.resolve_name(self.path)
                        available = {"task_key": self.task_name, "manager_class": self.manager_class}
                        result = func(*args, **{**injected_arguments(func, available), **kwargs})
                finally:
                    # From here on neither a cancel request nor the time limit must interrupt what records the end.
                    self._disarm_time_limit()
        except TaskCancelled as error:
            return Ending("cancel", {}, error=error)
        except ClusterStopping as error:
            return Ending("fail", _failure(error, FailureReason.CLUSTER_STOPPED), error=error)
        except TimeoutException as error:
            return Ending("fail", _failure(error, FailureReason.TIMEOUT), error=error)
        except BaseException as error:
            # Also SystemExit and KeyboardInterrupt of the function, which would end the worker unrecorded.
            return Ending("fail", _failure(error, FailureReason.ERROR), error=error)
        result = result if self.sync else _picklable(result, context)
        return Ending("complete", {"result": result}, result=result)

    def _disarm_time_limit(self) -> None:
        if not self.sync and hasattr(signal, "alarm") and threading.current_thread() is threading.main_thread():
            signal.alarm(0)

    def _settle_connections(self, ending: Ending) -> None:
        """Leave no connection in the state that an interruption or the function left it in."""
        if self.sync:
            return
        interrupted = ending.error is not None and not isinstance(ending.error, Exception)
        for connection in connections.all(initialized_only=True):
            if interrupted or connection.in_atomic_block or not connection.autocommit:
                # Django keeps a connection that was closed in a transaction unusable; a new one takes its place.
                connection.close()
                del connections[connection.alias]

    def _record(
        self, manager: lifecycle.LifecycleManager, active: ActiveTask, context: TaskContext, ending: Ending
    ) -> bool:
        """Record the end. Return whether there is nothing left to do."""
        payload = {**ending.payload, "attempt": active.attempt, "log_lines": list(context.drain_log())}
        if context.outcomes:
            payload["outcome_counts"] = dict(context.outcomes)
        if (report := context.latest_report()) is not None:
            last = Progress.parse(*report)
            payload.update(message=last.message, current=last.current, total=last.total)
        try:
            if ending.event == "cancel":
                payload["actor"] = self._persist(lambda: _canceller(active))
            if self._persist(lambda: self._end(manager, active, ending, payload)):
                return True
            if ActiveTask.objects.tasks().filter(task_name=self.task_name).exists():
                logger.warning("Task %s has passed to another worker; this end is not recorded", self.task_name)
                return True
            # It was given up meanwhile, its locks are gone. What really happened is still worth knowing.
            self._persist(lambda: lifecycle.emit(manager, ending.event, self.task_name, late=True, **payload))
        except DjangoDatabaseError:
            # django-q2's monitor, or cleanup, will end the task from what django-q2 saved.
            logger.exception("The end of task %s could not be recorded", self.task_name)
            return False
        return True

    @staticmethod
    def _end(manager: lifecycle.LifecycleManager, active: ActiveTask, ending: Ending, payload: dict[str, Any]) -> bool:
        if ending.error is not None and ending.event == "fail":
            return failing.fail(manager, active, type(ending.error), **payload)
        return lifecycle.end(manager, active, ending.event, may_have_reported="message" in payload, **payload)

    def _persist(self, operation: Callable[[], Answer]) -> Answer:
        """Do what needs the database, again if need be: it may be away or locked for a while."""
        for delay in DATABASE_RETRY_DELAYS:
            try:
                return operation()
            except (OperationalError, InterfaceError):
                connection = connections[coordination_db()]
                if self.sync or connection.in_atomic_block:
                    raise
                logger.warning("The database did not answer; trying again in %s s", delay, exc_info=True)
                connection.close()
                time.sleep(delay)
        return operation()


def claim(manager: lifecycle.LifecycleManager, task_name: str, *, is_repeated: bool = False) -> ActiveTask | None:
    """Make the task this process's, if it is queued or its worker was lost; else return None.

    ``is_repeated`` says that the database was asked just now and did not answer: it may have
    granted the claim all the same.
    """
    host, pid = this_worker()
    with write_transaction():
        if (active := ActiveTask.objects.claim_pending(task_name, host=host, pid=pid)) is not None:
            return _begin(manager, active)
        if is_repeated and (mine := _claimed_just_now(task_name, host, pid)):
            return mine
    if (lost := _lost_run_of(task_name)) is None:
        return None
    with write_transaction():
        if (active := ActiveTask.objects.take_over(lost, host=host, pid=pid)) is not None:
            return _begin(manager, active)
    return None


def _begin(manager: lifecycle.LifecycleManager, active: ActiveTask) -> ActiveTask:
    lifecycle.emit(
        manager,
        "start",
        active.task_name,
        attempt=active.attempt,
        worker_host=active.worker_host,
        worker_pid=active.worker_pid,
    )
    transaction.on_commit(
        lambda: task_started.send_robust(sender=type(manager), task_name=active.task_name, attempt=active.attempt),
        using=coordination_db(),
    )
    return active


def _note_recorded(task_name: str) -> None:
    global _recorded_last
    _recorded_last = task_name


def _claimed_just_now(task_name: str, host: str, pid: int) -> ActiveTask | None:
    claimed = ActiveTask.objects.all().claimed_by(host=host, pid=pid, within=2 * sum(DATABASE_RETRY_DELAYS))
    return claimed.filter(task_name=task_name).first()


def _lost_run_of(task_name: str) -> ActiveTask | None:
    """Return the task if another worker has begun it and is lost."""
    running = ActiveTask.objects.running().filter(task_name=task_name).first()
    if running is None or not is_lost(running):
        return None
    # Outside of a transaction: on SQLite nobody could show life in the meantime.
    return next(iter(stay_silent([running])), None)


def _canceller(active: ActiveTask) -> Any:
    current = ActiveTask.objects.filter(pk=active.pk).select_related("cancel_requested_by").first()
    return current.cancel_requested_by if current else None


def _failure(error: BaseException, reason: FailureReason) -> dict[str, Any]:
    kind = type(error)
    # The first entry is this module's own call of the function.
    where = error.__traceback__.tb_next if error.__traceback__ else None
    text = clean_text(error, LONG)
    return {
        "reason": reason.value,
        "error": text,
        "result": text,
        "exception_class": f"{kind.__module__}.{kind.__qualname__}",
        "traceback": clean_text("".join(traceback.format_exception(kind, error, where)), LONG),
    }


def _for_django_q(error: BaseException, path: str) -> BaseException:
    """Return what to raise in django-q2's worker.

    It survives only an Exception that can be printed, and its own time limit.
    """
    if isinstance(error, Exception | TimeoutException) and is_printable(error):
        return error
    stopped = TaskStopped(f"{path} was stopped by {type(error).__name__}: {clean_text(error, LONG)}")
    stopped.__cause__ = error
    return stopped


def _picklable(result: Any, context: TaskContext) -> Any:
    """Return the result, or its description if it can't travel to django-q2's monitor."""
    try:
        size = len(pickle.dumps(result))
    except Exception as error:
        context.log(f"The result can't be pickled ({error}); its description is kept instead.", "warning")
        return describe(result, LONG)
    if size > RESULT_AT_MOST:
        context.log(f"The result takes {size} bytes; its description is kept instead.", "warning")
        return describe(result, LONG)
    return result
