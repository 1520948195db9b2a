"""One thread in each worker process writes progress and heartbeats, and sees cancel requests.

It has its own database connection, so that what it writes is seen while the task's own
transaction is still open, and the task never waits for it.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connections

from powercrud_dashboard import lifecycle, progress
from powercrud_dashboard.async_context import Report, TaskContext
from powercrud_dashboard.exceptions import ClusterStopping, TaskCancelled
from powercrud_dashboard.models import ActiveTask
from powercrud_dashboard.models.coordination import coordination_db, write_transaction
from powercrud_dashboard.progress import Progress
from powercrud_dashboard.retry_policy import RetryPolicy
from powercrud_dashboard.worker.cancellation import Interruption
from powercrud_dashboard.worker.stopping import cluster_stops

logger = logging.getLogger(__name__)

#: Seconds between two looks for news, so the most often that progress is written.
WRITE_INTERVAL = 0.5
#: Seconds between two heartbeats of a task that reports nothing.
HEARTBEAT_INTERVAL = 1.0
#: Seconds that the end of a task waits for a round which has begun, as that has lines of the log in hand.
ROUND_AT_MOST = 5.0
#: Seconds that a cancelled task gets to clean up before it is interrupted once more.
INTERRUPT_AGAIN_AFTER = 10.0
#: Seconds that a task which is to be queued again gets to come to an end by itself when its cluster stops.
STOP_GRACE = 3.0
#: Seconds without a task after which the thread gives its connection back.
IDLE_BEFORE_CLOSE = 10.0
#: Milliseconds that the thread waits for SQLite's write lock, so that it stays responsive.
SQLITE_BUSY_TIMEOUT = 250


class Attendance:
    """What the reporter does for one attempt of one task."""

    def __init__(
        self,
        manager: lifecycle.LifecycleManager,
        active: ActiveTask,
        context: TaskContext,
        interruption: Interruption,
    ) -> None:
        self._manager = manager
        self._active = active
        self._context = context
        self._interruption = interruption
        self._written: Report | None = None
        self._last_beat = time.monotonic()
        self._last_interrupt: float | None = None
        self._had_trouble = False
        self._taken_away = False
        policy = RetryPolicy.from_json(active.policy)
        self._requeue_on_stop = policy is not None and policy.requeue_on_stop
        self._stops_since: float | None = None

    def attend(self) -> None:
        """Write what is new, and a heartbeat if one is due."""
        if self._taken_away:
            return
        if not self._context.stopping and cluster_stops():
            self._stops_since = time.monotonic()
            # The log first: a task that sees it stopping may be through at once.
            self._context.log("The cluster is being stopped.", "warning")
            self._context.stopping = True
        if self._requeue_on_stop and self._stops_since and time.monotonic() - self._stops_since >= STOP_GRACE:
            self._stop_with(ClusterStopping)
        report = self._context.latest_report()
        is_new = report is not None and report != self._written
        news = Progress.parse(*report) if report is not None and is_new else None
        if news is not None:
            # Ahead of the database, which SQLite may not let this thread write while the task does.
            progress.write_fast_lane(self._active.task_name, news)
        is_due = time.monotonic() - self._last_beat >= HEARTBEAT_INTERVAL
        if news is None and not is_due and not self._context.has_log_lines:
            return
        lines = list(self._context.drain_log())
        try:
            # The first statement takes the write lock or fails, so that no hook is called in vain.
            with write_transaction():
                self._beat(news)
                log = [("log", {"message": message, "level": level}) for message, level in lines]
                lifecycle.emit_all(self._manager, self._active.task_name, log)
        except Exception:
            self._context.take_back_log(lines)
            raise
        self._last_beat = time.monotonic()
        self._written = report

    def note_trouble(self) -> None:
        """Log that a round failed: the first time for all to see."""
        level = logging.DEBUG if self._had_trouble else logging.WARNING
        self._had_trouble = True
        logger.log(
            level,
            "The heartbeat of task %s can't be written for now; trying on",
            self._active.task_name,
            exc_info=True,
        )

    def _beat(self, news: Progress | None) -> None:
        columns = news.as_columns() if news is not None else {}
        if not ActiveTask.objects.all().beat(self._active, **columns):
            self._look_what_happened(columns)
        elif news is not None:
            lifecycle.emit(
                self._manager,
                "progress",
                self._active.task_name,
                message=news.message,
                current=news.current,
                total=news.total,
            )

    def _look_what_happened(self, columns: dict[str, Any]) -> None:
        if not ActiveTask.objects.all().of_attempt(self._active).keep_alive(**columns):
            self._taken_away = True
            logger.warning("Task %s was given up while this worker runs it", self._active.task_name)
            if ActiveTask.objects.tasks().filter(pk=self._active.pk).exists():
                # Another try of it is queued or runs already: two must not work on the same objects.
                self._stop_with(TaskCancelled)
            return
        self._stop_with(TaskCancelled)

    def _stop_with(self, error: type[TaskCancelled] | type[ClusterStopping]) -> None:
        self._context.stop_with(error)
        now = time.monotonic()
        if self._last_interrupt is None or now - self._last_interrupt >= INTERRUPT_AGAIN_AFTER:
            self._last_interrupt = now
            self._interruption.interrupt()


class Reporter:
    """The thread, started with the first task of the process."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._attendance: Attendance | None = None
        self._is_in_round = False
        self._thread: threading.Thread | None = None

    @contextmanager
    def reporting(self, attendance: Attendance) -> Iterator[None]:
        """Attend to a task while the block runs."""
        with self._condition:
            self._attendance = attendance
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="powercrud-dashboard-reporter", daemon=True)
                self._thread.start()
            self._condition.notify()
        try:
            yield
        finally:
            with self._condition:
                self._attendance = None
                self._condition.notify()
                # Not for ever: the round may wait for what the task's own transaction has locked.
                self._condition.wait_for(lambda: not self._is_in_round, ROUND_AT_MOST)

    def _run(self) -> None:
        if hasattr(signal, "pthread_sigmask"):
            # Signals are for the thread that runs the task.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        while True:
            with self._condition:
                if self._attendance is None and not self._condition.wait(IDLE_BEFORE_CLOSE):
                    connections.close_all()
                    self._condition.wait()
                attendance = self._attendance
                if attendance is None:
                    continue
                # Woken early by the end of the task: then there is nothing to attend to.
                if self._condition.wait(WRITE_INTERVAL):
                    continue
                self._is_in_round = True
            self._attend(attendance)
            with self._condition:
                self._is_in_round = False
                self._condition.notify()

    @staticmethod
    def _attend(attendance: Attendance) -> None:
        connection = connections[coordination_db()]
        try:
            if connection.vendor == "sqlite":
                with connection.cursor() as cursor:
                    cursor.execute(f"PRAGMA busy_timeout = {SQLITE_BUSY_TIMEOUT}")
            attendance.attend()
        except Exception:
            # The database may be away or locked for a while; the next round tries again.
            attendance.note_trouble()
            connection.close()


_reporter = Reporter()


def reporting(attendance: Attendance) -> Any:
    """Attend to a task with this process's reporter while the block runs."""
    return _reporter.reporting(attendance)


def _forget_the_parents_thread() -> None:
    global _reporter
    _reporter = Reporter()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_the_parents_thread)
