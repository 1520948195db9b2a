"""Run one task: claim it, call its function, record how it ended."""

from __future__ import annotations

import logging
import os
import pickle
import pkgutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from datetime import datetime, timedelta
from itertools import count
from typing import Any, TypeVar

from django.db import Error as DjangoDatabaseError
from django.db import InterfaceError, OperationalError, connections
from django.utils import timezone
from django_q.exceptions import TimeoutException

from powercrud_dashboard.async_context import TaskContext, running_task
from powercrud_dashboard.engine import calls, lifecycle, policy, processes, registry, requests, tracing
from powercrud_dashboard.engine.boundary import contained
from powercrud_dashboard.engine.progress import Progress
from powercrud_dashboard.engine.spec import INJECTED, TaskCall, TaskSpec, accepted_arguments
from powercrud_dashboard.exceptions import (
    AllObjectsFailed,
    ClusterStopping,
    SliceEnded,
    TaskCancelled,
    TaskGivenUp,
    TaskPaused,
    UnreadableSpec,
)
from powercrud_dashboard.log_records import RunningTask
from powercrud_dashboard.models import ActiveTask, FailureReason, WorkerProcess
from powercrud_dashboard.models.database import (
    coordination_db,
    impatient_transaction,
    in_callers_transaction,
    savepoints_in_open_transactions,
)
from powercrud_dashboard.q2 import queue
from powercrud_dashboard.text import LONG, describe, error_summary, error_text, traceback_text
from powercrud_dashboard.worker import heartbeat, hooks
from powercrud_dashboard.worker.connection import worker_connection
from powercrud_dashboard.worker.heartbeat import TaskMonitor, clock, reported_events
from powercrud_dashboard.worker.interrupt import Interruption, defer_sigterm, hard_time_limit
from powercrud_dashboard.worker.report import Ending, NotRun, for_django_q, kind_of, note_last_run

logger = logging.getLogger(__name__)

#: Seconds between the tries to reach a database that is away or locked.
DATABASE_RETRY_DELAYS = (0.1, 0.5, 1.0, 2.0, 4.0, 8.0)

#: Bytes of a result that is passed on, through a pipe to django-q2's monitor and into a row.
MAX_RESULT_SIZE = 10 * 1024 * 1024

#: The folder of this package.
PACKAGE = os.path.join(os.path.dirname(os.path.dirname(__file__)), "")

#: Two clocks that differ by less than this count as one.
SAME_CLOCK = timedelta(seconds=1)

#: How often a queued task is claimed whose queue or function is paused and resumed meanwhile.
CLAIM_TRIES = 5

Answer = TypeVar("Answer")


def run_task(call: TaskCall) -> Any:
    """Run a task if it is still to be run, and return its result.

    A delivery of a task that runs elsewhere, has ended or was cancelled runs nothing. The function's own errors are
    recorded, then raised for django-q2.
    """
    try:
        spec, unreadable = TaskSpec.from_text(call.spec), None
    except UnreadableSpec as error:
        if error.is_newer:
            logger.error(
                "Task %s is left in the queue: %s", call.task_name, error.reason, extra={"task_name": call.task_name}
            )
            return NotRun(acknowledged=False)
        spec, unreadable = TaskSpec(call.name), error
    if not call.sync:
        if not heartbeat.may_begin():
            # Others would soon take this process for lost.
            logger.warning(
                "Task %s is left to others: this worker can't write its heartbeat",
                call.task_name,
                extra={"task_name": call.task_name},
            )
            return NotRun(acknowledged=False, is_for_others=True)
        return _Run(call, spec).go(unreadable)
    with _registered() as worker:
        return _Run(call, spec, worker).go(unreadable)


@contextmanager
def _registered() -> Iterator[str | None]:
    """Yield the identity under which this process claims a synchronous task."""
    if in_callers_transaction():
        # No other process sees the task's row before it has ended.
        yield None
        return
    with processes.this_process().registered() as identity:
        yield identity


class _Run:
    """One attempt of one task."""

    def __init__(self, call: TaskCall, spec: TaskSpec, worker: str | None = None) -> None:
        self._spec = spec
        self._worker = worker
        self._task_name = call.task_name
        self._name = call.name
        self._is_sync = call.sync
        #: When the task was claimed, by the database's clock.
        self._started_at: datetime | None = None
        #: Returns the time by the same clock.
        self._now: Callable[[], datetime] = timezone.now
        self._manager: Any = None
        self._unrecorded_start: list[lifecycle.Event] = []

    def go(self, unreadable: UnreadableSpec | None) -> Any:
        tries = count(1)
        try:
            with self._connection(), _paused_time_limit():
                active = self._persist(lambda: self._claim(is_repeated=next(tries) > 1))
        except DjangoDatabaseError:
            if self._is_sync:
                raise
            logger.exception("Task %s could not be claimed", self._task_name, extra={"task_name": self._task_name})
            # It may have been claimed, without an answer.
            processes.this_process().abandon()
            return NotRun(acknowledged=False)
        if active is None:
            logger.info(
                "Task %s runs elsewhere or has ended; this delivery runs nothing",
                self._task_name,
                extra={"task_name": self._task_name},
            )
            return NotRun(acknowledged=True)
        context = TaskContext(self._task_name, self._manager, writes_at_once=self._is_sync, attempt=active.attempt)
        context.in_records = RunningTask(
            self._task_name, self._name, active.label, self._spec.launched_by, active.attempt
        )
        context.now = self._now
        context.end_time_limit = self._disarm_time_limit
        context.resume_at = active.resume_at
        context.pace.yields_to_stop = active.goes_on and policy.is_requeued_on_stop(active)
        with ExitStack() as stack:
            if not self._is_sync:
                stack.enter_context(defer_sigterm())
            monitor, ending = self._run(active, context, unreadable)
            self._settle_connections(ending)
            with self._connection():
                is_recorded = self._record(active, context, monitor, ending)
            is_withdrawn = is_recorded and ending.event == "complete" and queue.broker_database() == coordination_db()
            withdrawn = active.queue_receipt if is_withdrawn else ""
            note_last_run(self._task_name, active.attempt, is_recorded, withdrawn, ending)
        hooks.drain()
        if ending.event in requests.GIVES_BACK and is_recorded:
            # It is no end, of which django-q2 would keep a row.
            return NotRun(acknowledged=True)
        if ending.error is not None:
            raise for_django_q(ending.error, self._name)
        return ending.result

    def _connection(self) -> AbstractContextManager[None]:
        return nullcontext() if self._is_sync else worker_connection()

    # The claim

    def _claim(self, *, is_repeated: bool) -> ActiveTask | None:
        """Make the task this process's, if it is queued or its process was lost; else return None.

        ``is_repeated`` says that the database was asked before and did not answer: it may have granted the claim.
        """
        if not self._is_sync:
            self._worker = processes.this_process().register()
        for _attempt in range(CLAIM_TRIES):
            if (active := self._claimed()) is not None:
                return self._start(active)
            if self._is_sync or not ActiveTask.objects.all().ready().filter(task_name=self._task_name).exists():
                break
            if ActiveTask.objects.all().hold(self._task_name, **self._place):
                logger.info(
                    "Task %s waits: its queue or function is paused",
                    self._task_name,
                    extra={"task_name": self._task_name},
                )
                return None
            # What kept it from starting was resumed in this moment.
        worker = self._worker
        mine = ActiveTask.objects.running().filter(task_name=self._task_name, worker=worker)
        if is_repeated and worker and (active := mine.first()) is not None:
            return self._start(active)
        for lost in processes.find_lost(task_name=self._task_name):
            if not self._is_sync:
                # Finding them has taken a while, in which the heartbeat may have replaced the identity.
                worker = self._worker = processes.this_process().register()
            if lost.cancel_requested_at is not None:
                # Whoever has cancelled it must not see it run again.
                facts = {"actor": lost.cancel_requested_by, "attempt": lost.attempt}
                lifecycle.end_from_outside(registry.manager_of(lost), lost, "cancel", **facts)
                continue
            with impatient_transaction():
                active = ActiveTask.objects.take_over(lost, worker=worker)
                if active is not None:
                    # Of the lost attempt, if its worker did not come to record it.
                    lifecycle.record(registry.manager_of(lost), self._task_name, lifecycle.missing_start(lost))
            if active is not None:
                return self._start(active)
        return None

    def _claimed(self) -> ActiveTask | None:
        active = ActiveTask.objects.claim(self._task_name, worker=self._worker, **self._place)
        if active is None and self._worker is not None and WorkerProcess.objects.is_lost(self._worker):
            # This process was frozen, for instance.
            self._worker = processes.this_process().replace(self._worker)
            active = ActiveTask.objects.claim(self._task_name, worker=self._worker, **self._place)
        return active

    @property
    def _place(self) -> dict[str, str]:
        """The queue and the function by which the task may be paused; it is not in the process of its caller."""
        return {} if self._is_sync else {"queue": queue.current_cluster(), "func": self._name}

    def _start(self, active: ActiveTask) -> ActiveTask:
        """Call the hooks for the start. It is recorded with the first report or with the end of a short task."""
        note_last_run(active.task_name, active.attempt, False)
        self._started_at = _by_database(active.started_at)
        self._now = _clock_from(self._started_at)
        manager = self._manager = registry.manager_of(active)
        payload = {
            "attempt": active.attempt,
            "timestamp": self._started_at,
            "worker_host": socket.gethostname(),
            "worker_pid": os.getpid(),
        }
        self._unrecorded_start = [("start", payload)]
        lifecycle.call_hooks(manager, active.task_name, self._unrecorded_start)
        return active

    # The function

    def _run(
        self, active: ActiveTask, context: TaskContext, unreadable: UnreadableSpec | None
    ) -> tuple[TaskMonitor, Ending]:
        interruption = None if self._is_sync else Interruption(context)
        monitor = TaskMonitor(self._manager, active, context, interruption, self._unrecorded_start)
        if self._is_sync:
            monitor.record_start()
        try:
            with ExitStack() as surroundings:
                surroundings.enter_context(running_task(context))
                if self._worker is not None:
                    surroundings.enter_context(heartbeat.monitoring(monitor))
                try:
                    with ExitStack() as limits:
                        if interruption is not None:
                            limits.enter_context(hard_time_limit())
                            limits.enter_context(interruption)
                        context.check_cancelled()  # It waits if the heartbeat is overdue.
                        with contained():
                            result = self._call(unreadable, active.attempt, active.resume_at)
                finally:
                    # From here on neither a cancel request nor the time limit may interrupt the recording of the end.
                    self._disarm_time_limit()
        except TaskCancelled as error:
            return monitor, Ending("cancel", {}, error=error)
        except TaskGivenUp as error:
            return monitor, Ending("fail", _failure(error, FailureReason.WORKER_LOST), error=error)
        except TaskPaused as error:
            return monitor, Ending("pause", {}, error=error)
        except SliceEnded as error:
            return monitor, Ending("slice", {}, error=error)
        except ClusterStopping as error:
            return monitor, Ending("fail", _failure(error, FailureReason.CLUSTER_STOPPED), error=error)
        except TimeoutException as error:
            return monitor, Ending("fail", _failure(error, FailureReason.TIMEOUT), error=error)
        except BaseException as error:
            # SystemExit and KeyboardInterrupt of the function too, which would end the worker unrecorded.
            return monitor, Ending("fail", _failure(error, FailureReason.ERROR), error=error)
        result = result if self._is_sync else _picklable(result, context)
        return monitor, Ending("complete", {"result": result}, result=result)

    def _call(self, unreadable: UnreadableSpec | None, attempt: int, resume_at: int) -> Any:
        if unreadable is not None:
            raise unreadable
        spec = self._spec
        func = self._manager.wrap_function(pkgutil.resolve_name(spec.func))
        available = {
            **INJECTED,
            "task_key": self._task_name,
            "manager_class": self._manager.manager_class_path,
            "resume_at": resume_at,
        }
        with tracing.running(self._name, self._task_name, attempt, spec.trace):
            with savepoints_in_open_transactions():
                try:
                    return calls.call(func, *spec.args, **{**accepted_arguments(func, available), **spec.kwargs})
                except AllObjectsFailed as error:
                    # Nothing is to be undone, and the outcomes of the objects are to stay.
                    failure = error
            raise failure

    def _disarm_time_limit(self) -> None:
        is_main_thread = threading.current_thread() is threading.main_thread()
        if not self._is_sync and hasattr(signal, "alarm") and is_main_thread:
            signal.alarm(0)

    def _settle_connections(self, ending: Ending) -> None:
        """Close connections that an interruption or the function may have left in the middle of something."""
        if self._is_sync:
            return
        interrupted = ending.error is not None and not isinstance(ending.error, Exception)
        for connection in connections.all(initialized_only=True):
            if interrupted or connection.in_atomic_block or not connection.autocommit:
                # Django keeps a connection that was closed in a transaction unusable: it is replaced.
                connection.close()
                del connections[connection.alias]

    # The end

    def _record(self, active: ActiveTask, context: TaskContext, monitor: TaskMonitor, ending: Ending) -> bool:
        """Record the end. Return whether there is nothing left to do."""
        # Before the end, also where the loop of the last report was not left in order.
        reported_at = context.reported_at
        payload = {**ending.payload, "attempt": active.attempt, "started_at": self._started_at}
        payload.update(ran_before=active.ran_before, timestamp=context.now(), in_caller=self._is_sync)
        if ending.event in (*requests.GIVES_BACK, "fail"):
            payload["resume_at"] = context.items_done
        if context.outcomes:
            payload["outcome_counts"] = dict(context.outcomes)
        news: Progress | None = None
        if (report := context.latest_report()) is not None:
            news = Progress.parse(*report)
            payload.update(news.as_payload())
        is_new = not self._is_sync and news != monitor.written
        earlier = reported_events(context.take_log(), news if is_new else None, reported_at)
        try:
            if ending.event == "cancel":
                payload["actor"] = self._persist(lambda: _canceller(active))
            start = monitor.unrecorded_start()
            tries = count(1)
            full = {**payload, "earlier": earlier, "unrecorded": start}
            if self._persist(lambda: self._end(active, ending, full, is_repeated=next(tries) > 1)):
                return True
            if ActiveTask.objects.tasks().filter(task_name=self._task_name).exists():
                logger.warning(
                    "Task %s has passed to another worker; this end is not recorded",
                    self._task_name,
                    extra={"task_name": self._task_name},
                )
                return True
            # It was given up meanwhile, and its locks were released. How it really ended is still recorded.
            late = [*earlier, (ending.event, {**payload, "late": True})]
            self._persist(lambda: lifecycle.emit_all(self._manager, self._task_name, late))
        except Exception:
            # django-q2's monitor ends the task from what django-q2 saves of it.
            logger.exception(
                "The end of task %s could not be recorded", self._task_name, extra={"task_name": self._task_name}
            )
            if not self._is_sync:
                # If the monitor can't either, the task is lost with this identity.
                processes.this_process().abandon()
            return False
        return True

    def _end(self, active: ActiveTask, ending: Ending, payload: dict[str, Any], *, is_repeated: bool) -> bool:
        """End the task. ``is_repeated`` says that the database was asked before and did not answer."""
        if ending.event in requests.GIVES_BACK:
            return requests.give_worker_back(self._manager, active, **payload)
        if is_repeated and lifecycle.has_ended_so(active, ending.event):
            # It did so nevertheless, but nobody was told.
            events: dict[str, Any] = {name: value for name, value in payload.items() if name != "unrecorded"}
            lifecycle.tell_of_end(self._manager, active, ending.event, **events)
            return True
        if ending.error is not None and ending.event == "fail":
            return policy.fail(self._manager, active, kind_of(ending.error), is_repeated=is_repeated, **payload)
        return lifecycle.end(self._manager, active, ending.event, **payload)

    def _persist(self, operation: Callable[[], Answer]) -> Answer:
        """Do what needs the database, repeatedly if need be: it may be away or locked for a while."""
        for delay in DATABASE_RETRY_DELAYS:
            try:
                return operation()
            except (OperationalError, InterfaceError):
                connection = connections[coordination_db()]
                is_callers = connection.in_atomic_block or (self._is_sync and not connection.autocommit)
                # Whoever launches a synchronous task that could not be claimed can do so again.
                if is_callers or (self._is_sync and self._started_at is None):
                    raise
                logger.warning("The database did not answer; trying again in %s s", delay, exc_info=True)
                connection.close()
                time.sleep(delay)
        return operation()


@contextmanager
def _paused_time_limit() -> Iterator[None]:
    """Let django-q2's time limit not interrupt the block, whose time counts nevertheless."""
    is_main_thread = threading.current_thread() is threading.main_thread()
    if not (hasattr(signal, "alarm") and is_main_thread) or not (remaining := signal.alarm(0)):
        yield
        return
    began = time.monotonic()
    try:
        yield
    finally:
        signal.alarm(max(1, remaining - int(time.monotonic() - began)))


def _by_database(at: datetime | None) -> datetime:
    """Return a time of just now that the database has told, more exactly if the clock of this host agrees with it."""
    now = timezone.now()
    return now if at is None or abs(now - at) < SAME_CLOCK else at


def _clock_from(at: datetime) -> Callable[[], datetime]:
    """Return a clock that shows this time now. The clock of this host may be wrong, and be set while the task runs."""
    began = clock()
    return lambda: at + timedelta(seconds=clock() - began)


def _canceller(active: ActiveTask) -> Any:
    current = ActiveTask.objects.filter(pk=active.pk).prefetch_related("cancel_requested_by").first()
    return current.cancel_requested_by if current else None


def _failure(error: BaseException, reason: FailureReason) -> dict[str, Any]:
    kind = type(error)
    # The first entries are this package's own calls, unless it is to blame itself.
    where = error.__traceback__
    while where is not None and where.tb_frame.f_code.co_filename.startswith(PACKAGE):
        where = where.tb_next
    where = where or error.__traceback__
    text = error_text(error, LONG)
    return {
        "reason": reason.value,
        "error": text,
        "result": text,
        "exception_class": f"{kind.__module__}.{kind.__qualname__}",
        "traceback": traceback_text(error, where),
    }


def _picklable(result: Any, context: TaskContext) -> Any:
    """Return the result, or its description if it can't be sent to django-q2's monitor."""
    try:
        size = len(pickle.dumps(result))
    except Exception as error:
        context.log(f"The result can't be pickled ({error_summary(error)}); its description is kept.", "warning")
        return describe(result, LONG)
    if size > MAX_RESULT_SIZE:
        context.log(f"The result takes {size} bytes; its description is kept.", "warning")
        return describe(result, LONG)
    return result
