"""Observes the tasks of plain django-q2 in the processes of a cluster. What fails here never touches a task.

A worker notes in memory when it begins a task, and tells that with the result. The monitor process gets the result of
each task of its cluster; there a thread writes them, many at once. So a short task costs little, and a launch nothing.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from datetime import datetime
from typing import Any

from django.db import connections
from django.utils import timezone
from django_q.signals import post_execute_in_worker, pre_execute

from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.engine import plain
from powercrud_dashboard.engine.plain import Run
from powercrud_dashboard.q2 import observe
from powercrud_dashboard.worker import messages

logger = logging.getLogger(__name__)

#: Seconds that a task runs before it is recorded as running.
RUNS_LONG = 1.0
#: Seconds between two writes of what has ended.
WRITE_INTERVAL = 0.5
#: Ends that are kept while they can't be written. More are dropped; the failed ones last.
KEPT_AT_MOST = 20_000
#: Seconds between two looks into the queue, and how long a message waits before it is recorded.
LOOK_INTERVAL = 2.0
WAITS_LONG = 2.0
#: Messages of one look. There is none while more tasks than ``FLOWING`` have ended since the last one: what waits then
#: runs soon, and to record it twice would take longer than to run it.
LOOKED_AT = 200
FLOWING = 50
#: Seconds between two looks for lost workers, and between two updates of the statistics of what is only counted.
LOST_INTERVAL = 10.0
COUNT_INTERVAL = 5.0
#: Seconds that the end of the monitor process waits until all is written.
ENDS_WITHIN = 10.0


# In a worker


class _Told(dict[str, Any]):
    """The result of a task on its way to the monitor, with what django-q2 does not tell."""

    started_at: datetime
    pid: int
    timeout: Any


class _Running:
    """The task that this worker runs, if it is one of plain django-q2."""

    def __init__(self, message: dict[str, Any]) -> None:
        self.message = message
        self.timeout = messages.time_limit_of(message["id"])
        self.started_at = timezone.now()
        self.began = time.monotonic()
        self.is_written = False


class _WorkerSide:
    def __init__(self, results: Any) -> None:
        self._put = results.put
        self._running: _Running | None = None

    def begin(self, message: dict[str, Any]) -> None:
        self._running = _Running(message) if plain.is_observed(message) else None

    def put(self, result: Any) -> None:
        """Take the place of ``put`` of django-q2's queue of results."""
        running, self._running = self._running, None
        if running is not None and running.message is result:
            told = _Told(result)
            told.started_at, told.pid, told.timeout = running.started_at, os.getpid(), running.timeout
            result = told
        self._put(result)

    def look(self) -> None:
        """Record the task if it runs for long; called by the heartbeat thread."""
        running = self._running
        if running is None or running.is_written or time.monotonic() - running.began < RUNS_LONG:
            return
        if plain.is_recorded(running.message):
            plain.record_running({**running.message, "timeout": running.timeout}, running.started_at)
        running.is_written = True


_worker_side: _WorkerSide | None = None


def watch_worker(results: Any) -> None:
    """Tell the monitor through django-q2's queue of results when this worker has begun its tasks."""
    global _worker_side
    if app_settings.DASHBOARD_TRACK == "all":
        _worker_side = _WorkerSide(results)
        results.put = _worker_side.put


def look() -> None:
    """Record the task that this worker runs, if it runs for long."""
    if _worker_side is None:
        return
    try:
        _worker_side.look()
    except Exception:
        # The next look tries again.
        logger.debug("A running task can't be recorded now", exc_info=True)


def _forget_the_parents_task() -> None:
    global _worker_side
    _worker_side = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_the_parents_task)


# In a process that runs tasks synchronously

_sync_starts: dict[str, datetime] = {}


def _note_start(sender: Any, task: dict[str, Any], **kwargs: Any) -> None:
    try:
        if not task.get("sync"):
            if _worker_side is not None:
                _worker_side.begin(task)
        elif app_settings.DASHBOARD_TRACK == "all":
            _sync_starts[task["id"]] = timezone.now()
    except Exception:
        logger.warning("The start of a task could not be observed", exc_info=True)


def _note_synchronous_end(sender: Any, task: dict[str, Any], **kwargs: Any) -> None:
    if not task.get("sync") or (started_at := _sync_starts.pop(task["id"], None)) is None:
        return
    try:
        run = Run({**_failure(), **task}, started_at, socket.gethostname(), os.getpid())
        if not plain.is_observed(task):
            return
        if plain.is_only_counted(run):
            plain.count_ends([run])
        else:
            plain.record_ends([run])
    except Exception:
        logger.warning("The end of a task could not be observed", exc_info=True)


def _failure() -> dict[str, Any]:
    """Return what django-q2 adds to the message of a failed task that is not synchronous."""
    text = f"{sys.exc_info()[1]} : {traceback.format_exc()}"
    return {"success": False, "result": text, "stopped": timezone.now()}


def connect() -> None:
    """Have the tasks of this process observed from now on."""
    pre_execute.connect(_note_start, dispatch_uid="powercrud_dashboard.observe")
    post_execute_in_worker.connect(_note_synchronous_end, dispatch_uid="powercrud_dashboard.observe")


# In the monitor process of a cluster


class _MonitorSide:
    """Takes each result that django-q2's monitor gets, and writes them by a thread."""

    def __init__(self, results: Any) -> None:
        self._get = results.get
        self._host = socket.gethostname()
        self._ends: deque[Run] = deque()
        self._only_counted: list[Run] = []
        self._ended = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._has_warned = False
        self._seem_lost: set[str] = set()

    def get(self) -> Any:
        """Take the place of ``get`` of django-q2's queue of results."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="powercrud-dashboard-observe", daemon=True)
            self._thread.start()
        result = self._get()
        if isinstance(result, str):
            self._finish()
            return result
        told = dict(result) if isinstance(result, _Told) else result
        try:
            self._note(result)
        except Exception:
            logger.warning("The end of a task could not be observed", exc_info=True)
        return told

    def _note(self, result: dict[str, Any]) -> None:
        if not plain.is_observed(result):
            return
        self._ended += 1
        # A copy, as django-q2 changes its own when it collects the results of an iteration.
        run = Run(dict(result))
        if isinstance(result, _Told):
            message = {**result, "timeout": result.timeout}
            run = Run(message, result.started_at, self._host, result.pid)
        if plain.is_only_counted(run):
            self._only_counted.append(run)
        elif len(self._ends) < KEPT_AT_MOST or not result["success"]:
            self._ends.append(run)

    def _finish(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(ENDS_WITHIN)

    # The thread

    def _run(self) -> None:
        duties: list[tuple[float, Callable[[], None]]] = [
            (WRITE_INTERVAL, self._write),
            (COUNT_INTERVAL, self._count),
            (LOOK_INTERVAL, self._look),
            (LOST_INTERVAL, self._find_lost),
        ]
        due = [time.monotonic() + interval for interval, _do in duties]
        self._do(plain.catch_up)
        while not self._stop.wait(max(0.0, min(due) - time.monotonic())):
            for number, (interval, do) in enumerate(duties):
                if time.monotonic() >= due[number]:
                    self._do(do)
                    due[number] = time.monotonic() + interval
        self._do(self._write)
        self._do(self._count)
        connections.close_all()

    def _do(self, do: Callable[[], object]) -> None:
        try:
            do()
        except Exception:
            # The database may be away or locked; the next round tries again.
            level = logging.DEBUG if self._has_warned else logging.WARNING
            self._has_warned = True
            logger.log(level, "The tasks of plain django-q2 can't be recorded now", exc_info=True)
            connections.close_all()
        else:
            self._has_warned = False

    def _write(self) -> None:
        if not self._ends:
            connections.close_all()
        while self._ends:
            part = [self._ends[number] for number in range(min(len(self._ends), plain.WRITTEN_AT_ONCE))]
            plain.record_ends(part)
            for _run in part:
                self._ends.popleft()

    def _count(self) -> None:
        if self._only_counted:
            runs, self._only_counted = self._only_counted, []
            try:
                plain.count_ends(runs)
            except Exception:
                self._only_counted = [*runs, *self._only_counted]
                raise

    def _look(self) -> None:
        ended, self._ended = self._ended, 0
        if ended <= FLOWING:
            now = timezone.now()
            waiting = [
                message
                for message in observe.waiting(LOOKED_AT)
                if plain.is_recorded(message) and (now - message["started"]).total_seconds() >= WAITS_LONG
            ]
            if waiting:
                plain.record_queued(waiting)

    def _find_lost(self) -> None:
        before, self._seem_lost = self._seem_lost, plain.seem_lost()
        plain.give_up(before & self._seem_lost)


def watch_monitor(results: Any) -> None:
    """Record the tasks whose results this process, a cluster's monitor, gets."""
    if app_settings.DASHBOARD_TRACK == "all":
        results.get = _MonitorSide(results).get
