"""One thread in each process that runs tasks writes its heartbeat, and the progress and the log of its tasks.

It has its own database connection. So its writes are seen while a task's own transaction is open, and no task waits
for them.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import Any

from django.db import OperationalError, connections
from django.utils.translation import gettext_noop

from powercrud_dashboard.async_context import StopError, TaskContext
from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.engine import lifecycle, processes, progress
from powercrud_dashboard.engine.logs import Logged, lines_event
from powercrud_dashboard.engine.policy import RetryPolicy
from powercrud_dashboard.engine.progress import Progress
from powercrud_dashboard.exceptions import ClusterStopping, TaskCancelled, TaskGivenUp
from powercrud_dashboard.models import ActiveTask
from powercrud_dashboard.models.database import coordination_db, impatient_transaction
from powercrud_dashboard.worker import messages, observe
from powercrud_dashboard.worker.interrupt import Interruption, cluster_is_stopping

logger = logging.getLogger(__name__)

#: The seconds that have passed, those included for which the host was suspended.
clock: Callable[[], float] = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic
)
#: Kept as a line of the log: the pages translate it.
STOPPING = gettext_noop("The cluster is being stopped.")

#: Seconds between two rounds of the thread while a task runs, so the shortest time between two writes of progress.
ROUND_INTERVAL = 0.5
#: Seconds that the end of a task waits for a round that has begun, as this may hold lines of its log.
ROUND_AT_MOST = 5.0
#: Seconds that a cancelled task gets to clean up before it is interrupted again.
INTERRUPT_AGAIN_AFTER = 10.0
#: Seconds that a task which is to be requeued gets to end by itself when its cluster is stopped.
STOP_GRACE = 3.0
#: Seconds between two looks of the guard.
GUARD_INTERVAL = 0.25
#: Seconds within which a task that others may have taken must end. It is told to as soon as the heartbeat timeout has
#: passed, and has ended before those who watch this process for ``processes.OBSERVATION`` give it up.
STOPS_WITHIN = 1.5
#: Seconds in which a task of plain django-q2 may still end whose worker was terminated for its time limit.
ENDS_WITHIN = 3.0
#: Seconds between two looks of the guard that show that the whole process did not run meanwhile.
FROZEN_AFTER = 1.5
#: Seconds that a worker whose heartbeat is overdue waits before it leaves the next task to others.
BEGINS_WITHIN = 5.0
#: What others ask of a task.
_REQUESTS = ("attempt", "state", "cancel_requested_at", "pause_requested_at")
#: Milliseconds that the thread waits for a lock, so that what a task has locked never stops the heartbeat.
LOCK_TIMEOUT = 250


class TaskMonitor:
    """What the heartbeat thread does for one attempt of one task."""

    def __init__(
        self,
        manager: lifecycle.LifecycleManager,
        active: ActiveTask,
        context: TaskContext,
        interruption: Interruption | None,
        unrecorded_start: list[lifecycle.Event],
    ) -> None:
        """Monitor a task. A synchronous one has no ``interruption``, and writes its progress and log itself."""
        self._manager = manager
        self._active = active
        self._context = context
        self._interruption = interruption
        self._last_interrupt: float | None = None
        #: When the task was told to stop as others may work on its objects.
        self._given_up_at: float | None = None
        self._has_warned = False
        self._is_taken_away = False
        #: Held where this process is ended, so that it never is once the task has ended.
        self._end_lock = threading.Lock()
        self._has_ended = False
        policy = RetryPolicy.from_json(active.policy)
        self._requeues_on_stop = policy is not None and policy.requeues_on_stop
        self._stopping_since: float | None = None
        #: When the task was begun.
        self.began_at = clock()
        self._unrecorded_start = unrecorded_start
        #: The report that was written last.
        self.written: Progress | None = None
        #: Whether a transaction of this thread records the start.
        self._is_recording_start = False

    def begin(self, is_overdue: Callable[[], bool]) -> None:
        """Have the task ask, where it can be stopped, whether the heartbeat of this process is overdue."""
        self.began_at = clock()
        self._context.is_overdue = is_overdue

    def end(self) -> None:
        """Note that the task has ended: from now on this neither stops it nor ends the process.

        A round that waits for the database may go on much later, while the process runs another task or is idle.
        """
        with self._end_lock:
            self._has_ended = True

    def look(self) -> None:
        """Write what is new, and stop the task if its cluster is being stopped and its policy requeues it."""
        if self._interruption is not None and not (self._is_taken_away or self._has_ended):
            self._look_for_stop()
            self._write_news()

    def look_for_requests(self) -> None:
        """Stop the task if somebody has cancelled it, or it does not belong to this process any more."""
        if self._is_taken_away:
            return
        now = ActiveTask.objects.filter(pk=self._active.pk).only(*_REQUESTS).first()
        if self._has_ended:
            return
        if now is None or (now.attempt, now.state) != (self._active.attempt, self._active.state):
            self._is_taken_away = True
            logger.warning(
                "Task %s was given up while this worker runs it",
                self._active.task_name,
                extra={"task_name": self._active.task_name},
            )
            self.give_up()
        elif now.cancel_requested_at is not None:
            self._stop_with(TaskCancelled)
        elif self._interruption is not None:
            # Whoever has called a synchronous task waits for its result.
            self._context.pace.pausing = now.pause_requested_at is not None

    def give_up(self) -> None:
        """Stop the task, as others may work on its objects now or soon. If it goes on, end this worker process."""
        now = clock()
        if self._given_up_at is None:
            self._given_up_at = now
        if self._interruption is not None and now - self._given_up_at >= STOPS_WITHIN:
            # No logging from here on, as that may wait for what the task holds.
            with self._end_lock:
                if not self._has_ended:
                    os._exit(1)
        self._stop_with(TaskGivenUp)

    @property
    def is_given_up(self) -> bool:
        return self._given_up_at is not None

    def hold(self) -> None:
        """Have the task wait until it is known whether it may go on; it stops if that takes too long."""
        if self._interruption is not None:
            self._interruption.interrupt()

    def _look_for_stop(self) -> None:
        if not self._context.stopping and cluster_is_stopping():
            self._stopping_since = time.monotonic()
            # Logged first, as a task that sees the flag may end at once.
            self._context.log(STOPPING, "warning")
            self._context.stopping = True
        since = self._stopping_since
        if self._requeues_on_stop and since is not None and time.monotonic() - since >= STOP_GRACE:
            self._stop_with(ClusterStopping)

    def _write_news(self) -> None:
        news = self._latest_progress()
        if news == self.written:
            news = None
        if news is not None:
            # Before the database, as SQLite may not let this thread write while the task does.
            progress.write_to_cache(self._active.task_name, news)
        if news is None and not self._context.has_log_lines and not self._unrecorded_start:
            return
        start, logged = self._unrecorded_start, self._context.take_log()
        self._is_recording_start = bool(start)
        try:
            with _impatient_transaction():
                lifecycle.record(self._manager, self._active.task_name, start)
                self._write(news, logged)
            self._unrecorded_start = []
        except Exception:
            self._context.put_back_log(logged)
            raise
        finally:
            self._is_recording_start = False
        self.written = news or self.written

    def _latest_progress(self) -> Progress | None:
        report = self._context.latest_report()
        return None if report is None else Progress.parse(*report)

    def unrecorded_start(self) -> list[lifecycle.Event] | None:
        """Return the event of the start if it is not recorded yet.

        None while the heartbeat thread records it, which may take long and then fail: only the database can tell.
        """
        return None if self._is_recording_start else self._unrecorded_start

    def record_start(self) -> None:
        """Record the start now."""
        start, self._unrecorded_start = self._unrecorded_start, []
        lifecycle.record(self._manager, self._active.task_name, start)

    def _write(self, news: Progress | None, logged: Logged) -> None:
        reported_at = self._context.reported_at
        # If the task has been taken away, the next look finds it out.
        if news is not None and not ActiveTask.objects.all().write_progress(self._active, **news.as_columns()):
            news = None
        lifecycle.emit_all(self._manager, self._active.task_name, reported_events(logged, news, reported_at))

    def _stop_with(self, error: StopError) -> None:
        self._context.stop_with(error)
        now = time.monotonic()
        if self._last_interrupt is None or now - self._last_interrupt >= INTERRUPT_AGAIN_AFTER:
            self._last_interrupt = now
            if self._interruption is not None:
                self._interruption.interrupt()

    def warn(self, error: Exception, *, has_traceback: bool) -> None:
        """Log that a round failed; only the first time as a warning."""
        level = logging.DEBUG if self._has_warned else logging.WARNING
        self._has_warned = True
        text = "Progress of task %s can't be written now: %s"
        logger.log(level, text, self._active.task_name, error, exc_info=has_traceback)


def reported_events(logged: Logged, news: Progress | None, reported_at: datetime) -> list[lifecycle.Event]:
    """Return the events of what was logged and of progress, if there is any, in the order of their times."""
    events: list[lifecycle.Event] = [
        ("log", {"message": message, "level": level, "timestamp": time}) for message, level, time in logged.timeline
    ]
    if logged.lines:
        events.append(lines_event(logged))
    if news is not None:
        events.append(("progress", {**news.as_payload(), "timestamp": reported_at}))
    return sorted(events, key=lambda event: event[1]["timestamp"])


class HeartbeatThread:
    """The thread. A worker's runs for as long as the worker; that of another process, while it runs tasks."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._monitors: list[TaskMonitor] = []
        self._is_in_round = False
        self._is_worker = False
        #: Whether the worker waits for a heartbeat before it begins a task.
        self._is_awaited = False
        self._thread: threading.Thread | None = None
        self._last_beat = clock()
        #: When the newest heartbeat was begun that was written and found all tasks to be this process's.
        self._confirmed_at = clock()
        self._has_warned = False

    def start_in_worker(self) -> None:
        """Start it in a worker of a cluster, which has a heartbeat when it is idle too."""
        with self._condition:
            self._is_worker = True
            self._last_beat = float("-inf")
            self._start()

    def _start(self) -> None:
        if self._thread is None:
            self._confirmed_at = clock()
            self._thread = threading.Thread(target=self._run, name="powercrud-dashboard-heartbeat", daemon=True)
            self._thread.start()
            guard = threading.Thread(target=self._guard, name="powercrud-dashboard-guard", daemon=True)
            guard.start()

    @contextmanager
    def monitoring(self, monitor: TaskMonitor) -> Iterator[None]:
        """Monitor a task while the block runs."""
        # The thread is not woken: it finds the task in its next round, which a short task never sees.
        monitor.begin(self._is_overdue)
        with self._condition:
            self._monitors.append(monitor)
            self._start()
        try:
            yield
        finally:
            monitor.end()
            with self._condition:
                self._monitors.remove(monitor)
                # Not for ever: the round may wait for what the task's own transaction has locked.
                self._condition.wait_for(lambda: not self._is_in_round, ROUND_AT_MOST)

    def _run(self) -> None:
        while True:
            time.sleep(ROUND_INTERVAL)
            with self._condition:
                if not self._monitors and not self._is_worker:
                    self._thread = None
                    break
                monitors = list(self._monitors)
                self._is_in_round = bool(monitors)
            self._round(monitors)
            with self._condition:
                self._is_in_round = False
                self._condition.notify_all()
        connections.close_all()

    def _round(self, monitors: list[TaskMonitor]) -> None:
        began, is_idle = clock(), not monitors
        may_rest = is_idle and not self._is_awaited
        interval = processes.idle_heartbeat_interval() if may_rest else processes.HEARTBEAT_INTERVAL
        if began - self._last_beat >= interval:
            self._last_beat = began
            # Not with "and": the tasks are looked at in either case.
            if all([self._beat(), *(_look(monitor, monitor.look_for_requests) for monitor in monitors)]):
                self._confirmed_at = began
            if is_idle:
                connections.close_all()
        for monitor in monitors:
            _look(monitor, monitor.look)
        observe.look()

    def _beat(self) -> bool:
        """Write a heartbeat. Return whether nobody can have given this process up meanwhile."""
        try:
            process = processes.this_process()
            with process.lock, _impatient_transaction():
                process.beat()
            self._has_warned = False
        except Exception as error:
            level = logging.DEBUG if self._has_warned else logging.WARNING
            self._has_warned = True
            is_kept_out = _is_kept_out(error)
            logger.log(level, "The heartbeat can't be written now: %s", error, exc_info=not is_kept_out)
            return is_kept_out
        return True

    # The guard

    def confirm_for_ever(self) -> None:
        """Let no heartbeat be overdue any more."""
        self._confirmed_at = float("inf")

    def may_begin(self) -> bool:
        """Wait until no heartbeat of this worker is overdue. Return False if that takes too long."""
        if not self._is_worker:
            return True
        deadline = clock() + BEGINS_WITHIN
        self._is_awaited = True
        try:
            while self._is_overdue():
                if clock() >= deadline:
                    return False
                time.sleep(GUARD_INTERVAL)
        finally:
            self._is_awaited = False
        return True

    def _is_overdue(self) -> bool:
        return clock() - self._confirmed_at >= app_settings.DASHBOARD_HEARTBEAT_TIMEOUT

    def _guard(self) -> None:
        """Stop the tasks before others give this process up. For this no database is needed."""
        thread = self._thread
        last, thawed_at = clock(), float("-inf")
        held: set[TaskMonitor] = set()
        overrun_since: float | None = None
        while thread is self._thread:
            time.sleep(GUARD_INTERVAL)
            now = clock()
            overrun_since = (overrun_since or now) if messages.has_overrun() else None
            if overrun_since is not None and now - overrun_since >= ENDS_WITHIN:
                # The SIGTERM that came is kept until the end of the task, which ignores its time limit.
                os._exit(1)
            if now - last >= FROZEN_AFTER:
                thawed_at = now
                held.clear()
            last, monitors = now, list(self._monitors)
            held.intersection_update(monitors)
            for monitor in monitors:
                if monitor.is_given_up:
                    monitor.give_up()
                elif not self._is_overdue():
                    continue
                elif now - max(thawed_at, monitor.began_at) >= TaskContext.HELD_AT_MOST:
                    monitor.give_up()
                elif monitor not in held:
                    # This process was frozen, or could write no heartbeat while it was idle: the next one tells whether
                    # it was given up meanwhile.
                    held.add(monitor)
                    monitor.hold()


def _look(monitor: TaskMonitor, look: Callable[[], None]) -> bool:
    try:
        look()
    except Exception as error:
        # The database may be away or locked for a while; the next round tries again.
        is_kept_out = _is_kept_out(error)
        monitor.warn(error, has_traceback=not is_kept_out)
        return is_kept_out
    return True


def _is_kept_out(error: Exception) -> bool:
    """Return whether SQLite's one writer, often the task itself, keeps this thread out; else close the connection.

    Without WAL it may keep out those who read as well. Whoever can't write now can't give anybody up either: that takes
    a while in which this process, on the same host, can write too.
    """
    connection = connections[coordination_db()]
    if connection.vendor == "sqlite" and isinstance(error, OperationalError):
        return True
    connection.close()
    return False


@contextmanager
def _impatient_transaction() -> Iterator[None]:
    """Run the block in a transaction that waits for locks only for a short time."""
    connection = connections[coordination_db()]
    if connection.vendor == "sqlite":
        with connection.cursor() as cursor:
            cursor.execute(f"PRAGMA busy_timeout = {LOCK_TIMEOUT}")
    with impatient_transaction(LOCK_TIMEOUT):
        yield


_thread = HeartbeatThread()


def start_in_worker() -> None:
    """Start the heartbeat of a worker process."""
    _thread.start_in_worker()


def may_begin() -> bool:
    """Return whether this process can begin a task; not if it is a worker that can't write its heartbeat."""
    return _thread.may_begin()


def monitoring(monitor: TaskMonitor) -> Any:
    """Monitor a task while the block runs."""
    return _thread.monitoring(monitor)


def _forget_the_parents_thread() -> None:
    global _thread
    # Code of the parent's task that runs on in the child is not told by this thread.
    _thread.confirm_for_ever()
    _thread = HeartbeatThread()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_the_parents_thread)
