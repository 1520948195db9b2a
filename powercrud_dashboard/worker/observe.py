"""Observes the tasks of plain django-q2 in the processes of a cluster. What fails here never touches a task.

A worker notes in memory when it begins a task, and tells that with the result. The monitor process gets the result of
each task of its cluster; there a thread writes them, many at once. The pusher gets each message; there a thread looks
for those that wait. So a short task costs little, and a launch nothing.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from datetime import datetime
from itertools import islice
from types import FrameType
from typing import Any

from django.db import connections
from django.utils import timezone
from django_q.exceptions import TimeoutException
from django_q.signals import post_execute_in_worker, pre_execute
from django_q.worker import worker

from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.engine import plain
from powercrud_dashboard.engine.plain import Run
from powercrud_dashboard.q2 import observe
from powercrud_dashboard.worker import messages
from powercrud_dashboard.worker.messages import STOP

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
#: Messages of one look. There is none while the cluster has taken more than ``FLOWING`` since the last one: what waits
#: then runs soon, and to record it twice would take longer than to run it.
LOOKED_AT = 200
FLOWING = 50
#: Seconds between two looks for lost workers, and between two updates of the statistics of what is only counted.
LOST_INTERVAL = 10.0
COUNT_INTERVAL = 5.0
#: Seconds that the end of the monitor process waits until all is written.
ENDS_WITHIN = 10.0


#: Seconds between two looks whether somebody has cancelled the task, and between two tries to stop it.
CANCEL_INTERVAL = 1.0
STOP_AGAIN_AFTER = 10.0


# In a worker


class PlainTaskCancelled(TimeoutException):  # type: ignore[misc]  # django-q2 has no types
    """Ends a cancelled task in the way of django-q2's time limit, which no ``except Exception`` of it catches.

    Its worker process ends after it and is replaced, as after a time limit.
    """


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
        #: When to look next whether it is to stop, and whether that was so.
        self.next_look = 0.0
        self.is_to_stop = False


class _WorkerSide:
    def __init__(self, results: Any) -> None:
        self._put = results.put
        self._running: _Running | None = None
        if hasattr(signal, "SIGURG"):
            signal.signal(signal.SIGURG, self._stop)

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
        """Record the task if it runs for long, and stop it if it was cancelled; called by the heartbeat thread."""
        running, now = self._running, time.monotonic()
        if running is None or now - running.began < RUNS_LONG:
            return
        if not running.is_written:
            if plain.is_recorded(running.message):
                plain.record_running({**running.message, "timeout": running.timeout}, running.started_at)
            running.is_written = True
        elif now >= running.next_look:
            running.next_look = now + CANCEL_INTERVAL
            if running.is_to_stop or plain.is_to_stop(running.message["id"]):
                self._interrupt(running)

    def _interrupt(self, running: _Running) -> None:
        # First, as a broker with receipts would deliver it again.
        observe.acknowledge(running.message)
        running.is_to_stop = True
        running.next_look = time.monotonic() + STOP_AGAIN_AFTER
        if hasattr(signal, "pthread_kill"):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGURG)

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        running = self._running
        if running is not None and running.is_to_stop and _is_in_function(frame):
            raise PlainTaskCancelled("The task was cancelled.")


def _is_in_function(frame: FrameType | None) -> bool:
    """Return whether django-q2's worker is in the function of its task, and not before or after it."""
    called: FrameType | None = None
    while frame is not None and frame.f_code is not worker.__code__:
        called, frame = frame, frame.f_back
    if frame is None or called is None:
        return False
    return called.f_code is getattr(frame.f_locals.get("f"), "__code__", None)


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


# In the pusher and the monitor of a cluster


class _Writer:
    """A thread that does what is due, one after the other."""

    def __init__(self, *duties: tuple[float, Callable[[], object]]) -> None:
        """Begin. Each duty is called after so many seconds again and again, and once more at the end."""
        self._duties = duties
        self._stop = threading.Event()
        self._has_warned = False
        self._thread = threading.Thread(target=self._run, name="powercrud-dashboard-observe", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Do all once more and end; return when that is done, or has taken too long."""
        self._stop.set()
        self._thread.join(ENDS_WITHIN)

    def _run(self) -> None:
        due = [time.monotonic() + interval for interval, _do in self._duties]
        while not self._stop.wait(max(0.0, min(due) - time.monotonic())):
            for number, (interval, do) in enumerate(self._duties):
                if time.monotonic() >= due[number]:
                    self._do(do)
                    due[number] = time.monotonic() + interval
        for _interval, do in self._duties:
            self._do(do)
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


class _PusherSide:
    """Sees each message that the cluster takes, and looks at those that still wait in the queue."""

    def __init__(self, taken: Any) -> None:
        self._put = taken.put
        #: Messages that were taken since the last look, with the time.
        self._taken: deque[tuple[float, dict[str, Any]]] = deque(maxlen=LOOKED_AT)
        self._count = 0
        self._writer: _Writer | None = None

    def put(self, message: dict[str, Any]) -> None:
        """Take the place of ``put`` of django-q2's queue of messages."""
        if self._writer is None:
            self._writer = _Writer((LOOK_INTERVAL, self._look))
        self._count += 1
        self._taken.append((time.monotonic(), dict(message)))
        self._put(message)

    def _look(self) -> None:
        count, self._count = self._count, 0
        if count > FLOWING:
            self._taken.clear()
            return
        waiting = observe.waiting(LOOKED_AT)
        while self._taken and time.monotonic() - self._taken[0][0] >= WAITS_LONG:
            waiting.append(self._taken.popleft()[1])
        now = timezone.now()
        old = [message for message in waiting if (now - message["started"]).total_seconds() >= WAITS_LONG]
        if recorded := [message for message in old if plain.is_recorded(message)]:
            plain.record_queued(recorded)
        connections.close_all()


class _MonitorSide:
    """Takes each result that django-q2's monitor gets, and has them written."""

    def __init__(self, results: Any) -> None:
        self._get = results.get
        self._host = socket.gethostname()
        self._ends: deque[Run] = deque()
        self._only_counted: list[Run] = []
        self._writer: _Writer | None = None
        self._has_caught_up = False
        self._seem_lost: set[str] = set()

    def get(self) -> Any:
        """Take the place of ``get`` of django-q2's queue of results."""
        if self._writer is None:
            duties = ((WRITE_INTERVAL, self._write), (COUNT_INTERVAL, self._count), (LOST_INTERVAL, self._find_lost))
            self._writer = _Writer(*duties)
        result = self._get()
        if result == STOP:
            self._writer.finish()
            return result
        try:
            self._note(result)
        except Exception:
            logger.warning("The end of a task could not be observed", exc_info=True)
        return dict(result) if isinstance(result, _Told) else result

    def _note(self, result: dict[str, Any]) -> None:
        if not plain.is_observed(result):
            return
        # A copy, as django-q2 changes its own when it collects the results of an iteration.
        run = Run(dict(result))
        if isinstance(result, _Told):
            message = {**result, "timeout": result.timeout}
            run = Run(message, result.started_at, self._host, result.pid)
        if plain.is_only_counted(run):
            self._only_counted.append(run)
        elif len(self._ends) < KEPT_AT_MOST or not result["success"]:
            self._ends.append(run)

    def _write(self) -> None:
        if not self._has_caught_up:
            plain.catch_up()
            self._has_caught_up = True
        if not self._ends:
            connections.close_all()
        while self._ends:
            part = list(islice(self._ends, plain.WRITTEN_AT_ONCE))
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

    def _find_lost(self) -> None:
        before, self._seem_lost = self._seem_lost, plain.seem_lost()
        plain.give_up(before & self._seem_lost)


def watch_pusher(taken: Any) -> None:
    """Record the tasks that wait for this cluster. This process is its pusher, which takes them from the broker."""
    if app_settings.DASHBOARD_TRACK == "all":
        taken.put = _PusherSide(taken).put


def watch_monitor(results: Any) -> None:
    """Record the tasks whose results this process, a cluster's monitor, gets."""
    if app_settings.DASHBOARD_TRACK == "all":
        results.get = _MonitorSide(results).get
