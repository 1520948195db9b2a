"""Observes the tasks of plain django-q2 in the processes of a cluster. What fails here never touches a task.

A worker notes in memory when it begins and ends a task; a thread of it writes the ends, many at once. The pusher gets
each message of its cluster; there a thread looks for those that wait, and for lost workers. So a short task costs
little, and a launch nothing. The monitor process is left alone, as on most clusters it has the most to do.
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
from multiprocessing.reduction import ForkingPickler
from types import FrameType
from typing import Any

from django.db import connections
from django.utils import timezone
from django.utils.translation import gettext_lazy as _
from django_q.exceptions import TimeoutException
from django_q.signals import post_execute_in_worker, pre_execute

from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.engine import missed, plain, processes
from powercrud_dashboard.engine.arguments import kept_arguments, with_kept_arguments
from powercrud_dashboard.engine.plain import Run
from powercrud_dashboard.q2 import observe
from powercrud_dashboard.text import LONG, SHORT, KeptText, error_summary, error_text
from powercrud_dashboard.worker import messages
from powercrud_dashboard.worker.unwritten import Unwritten

logger = logging.getLogger(__name__)

#: Seconds that a task runs before it is recorded as running.
RUNS_LONG = 1.0
#: Seconds between two writes of what has ended, and without any after which the connection is closed.
WRITE_INTERVAL = 1.0
IDLE_BEFORE_CLOSE = 10.0
#: Ends that are counted in one transaction.
COUNTED_AT_ONCE = 1_000
#: Seconds between two looks into the queue, and how long a message waits before it is recorded.
LOOK_INTERVAL = 2.0
WAITS_LONG = 2.0
#: Messages of one look. There is none while the cluster has taken more than ``FLOWING`` since the last one: most of
#: those that wait then run soon, and to record them twice would take longer than to run them.
LOOKED_AT = 200
FLOWING = 50
#: Seconds between two looks for lost workers.
LOST_INTERVAL = 10.0
#: Seconds that the end of a worker process waits until all is written, and between two tries.
ENDS_WITHIN = 10.0
TRIES_AGAIN_AFTER = 0.5


#: Seconds between two looks whether somebody has cancelled the task, and between two tries to stop it.
CANCEL_INTERVAL = 1.0
STOP_AGAIN_AFTER = 10.0


class _Writer:
    """A thread that does what is due, one after the other."""

    def __init__(self, *duties: tuple[float, Callable[[], object]]) -> None:
        """Begin. Each duty is called after so many seconds again and again, and at the end until it succeeds."""
        self._duties = duties
        self._is_done = False
        self._stop = threading.Event()
        self._has_warned = False
        self._thread = threading.Thread(target=self._run, name="powercrud-dashboard-observe", daemon=True)
        self._thread.start()

    def finish(self) -> bool:
        """Do all once more and end. Return whether that has succeeded; it is given up if it takes too long."""
        self._stop.set()
        self._thread.join(ENDS_WITHIN)
        return self._is_done

    def _run(self) -> None:
        due = [time.monotonic() + interval for interval, _do in self._duties]
        while not self._stop.wait(max(0.0, min(due) - time.monotonic())):
            for number, (interval, do) in enumerate(self._duties):
                if time.monotonic() >= due[number]:
                    self._do(do)
                    due[number] = time.monotonic() + interval
        self._is_done = self._do_the_rest()
        connections.close_all()

    def _do_the_rest(self) -> bool:
        until = time.monotonic() + ENDS_WITHIN
        left = [do for _interval, do in self._duties]
        while left := [do for do in left if not self._do(do)]:
            if time.monotonic() >= until:
                return False
            time.sleep(TRIES_AGAIN_AFTER)
        return True

    def _do(self, do: Callable[[], object]) -> bool:
        """Do it, and return whether that has succeeded."""
        try:
            do()
        except Exception:
            # The database may be away or locked; the next round tries again.
            level = logging.DEBUG if self._has_warned else logging.WARNING
            self._has_warned = True
            logger.log(level, "The tasks of plain django-q2 can't be recorded now", exc_info=True)
            connections.close_all()
            return False
        self._has_warned = False
        return True


# In a worker


class PlainTaskCancelled(TimeoutException):  # type: ignore[misc]  # django-q2 has no types
    """Ends a cancelled task in the way of django-q2's time limit, which no ``except Exception`` of it catches.

    Its worker process ends after it and is replaced, as after a time limit.
    """


_NOT_PASSED_ON = KeptText(
    _(
        "The function has returned, but its result can't be sent to django-q2's monitor process (%(error)s). django-q2 "
        "has no result of the task, and a broker with receipts delivers it again. Return plain values."
    )
)


class ResultNotPassedOn(Exception):
    """Stands for the failure of a task whose result django-q2 loses."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(_NOT_PASSED_ON(error=error_summary(error, SHORT)))


#: Results of these types can be sent for certain.
_PLAIN = (type(None), bool, int, float, str, bytes)


def _as_passed_on(message: dict[str, Any]) -> dict[str, Any]:
    """Return the message as django-q2's monitor gets it: as that of a failed task if its result can't be pickled."""
    if not message["success"] or type(message["result"]) in _PLAIN:
        return message
    try:
        ForkingPickler.dumps(message["result"])
    except (Exception, SystemExit) as error:
        text = error_text(failure := ResultNotPassedOn(error), LONG)
        where = f"{type(failure).__module__}.{type(failure).__qualname__}"
        return {**message, "success": False, "result": f"{text} : {traceback.format_exc()}\n{where}: {text}\n"}
    return message


class _Running:
    """The task that this worker runs, if it is one of plain django-q2."""

    def __init__(self, message: dict[str, Any]) -> None:
        self.message = message
        #: The arguments before it runs, also of a task that gets a record only if it fails.
        self.arguments = kept_arguments(message)
        self.timeout = messages.time_limit_of(message["id"])
        self.started_at = timezone.now()
        self.began = time.monotonic()
        self.is_written = False
        #: Under which identity of this process that was done.
        self.identity: str | None = None
        #: When to look next whether it is to stop, and whether that was so.
        self.next_look = 0.0
        self.is_to_stop = False


class _WorkerSide:
    def __init__(self, results: Any) -> None:
        self._put = results.put
        self._host = socket.gethostname()
        self._running: _Running | None = None
        self._ends = Unwritten()
        self._only_counted = Unwritten()
        self._last_written = time.monotonic()
        self._writer: _Writer | None = None
        if hasattr(signal, "SIGURG"):
            signal.signal(signal.SIGURG, self._stop)

    def begin(self, message: dict[str, Any]) -> None:
        self._running = _Running(message) if plain.is_observed(message) else None

    def put(self, result: Any) -> None:
        """Take the place of ``put`` of django-q2's queue of results."""
        running, self._running = self._running, None
        if running is not None and running.message is result:
            self._note(running)
        self._put(result)

    def _note(self, running: _Running) -> None:
        try:
            self._keep_end_of(running)
        except (Exception, SystemExit):
            logger.warning("The end of a task could not be observed", exc_info=True)

    def _keep_end_of(self, running: _Running) -> None:
        # A copy, as the message no longer has its time limit.
        message = {**_as_passed_on(running.message), "timeout": running.timeout}
        run = Run(message, running.started_at, self._host, os.getpid(), arguments=running.arguments)
        if plain.is_only_counted(run):
            self._only_counted.add(plain.without_values(run))
        else:
            # Now, as the next task may change what this one has returned.
            self._ends.add(plain.with_plain_result(run))
        if self._writer is None:
            self._writer = _Writer((WRITE_INTERVAL, self._write), (WRITE_INTERVAL, self._count))

    def fail(self) -> None:
        """Note that the error which is being handled ends this process in the middle of its task, if it runs one."""
        running, self._running = self._running, None
        if running is not None:
            running.message.update(_failure())
            self._note(running)

    def finish(self) -> bool:
        """Write what is left. Return whether all is written."""
        return self._writer is None or self._writer.finish()

    def _write(self) -> None:
        if self._ends:
            self._last_written = time.monotonic()
        elif time.monotonic() - self._last_written > IDLE_BEFORE_CLOSE:
            connections.close_all()
        self._ends.write(plain.WRITTEN_AT_ONCE, plain.record_ends)

    def _count(self) -> None:
        self._only_counted.write(COUNTED_AT_ONCE, plain.count_ends)

    def look(self) -> None:
        """Record the task if it runs for long, and stop it if it was cancelled; called by the heartbeat thread."""
        running, now = self._running, time.monotonic()
        if running is None or now - running.began < RUNS_LONG:
            return
        identity = processes.this_process().identity
        # Under a new identity, as this process was declared lost and its task may have been given up.
        if not running.is_written or running.identity != identity:
            if plain.is_recorded(running.message):
                message = with_kept_arguments(running.message, running.arguments)
                plain.record_running({**message, "timeout": running.timeout}, running.started_at)
            running.is_written, running.identity = True, identity
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
    # Only here, where it is loaded already: it starts Django in the middle of a child process that loads it first.
    from django_q.worker import worker

    while frame is not None and frame.f_code is not worker.__code__:
        called, frame = frame, frame.f_back
    if frame is None or called is None:
        return False
    return called.f_code is getattr(frame.f_locals.get("f"), "__code__", None)


_worker_side: _WorkerSide | None = None


def watch_worker(results: Any) -> None:
    """Record the tasks that this worker runs, whose results it puts into django-q2's queue."""
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


def fail() -> None:
    """Note that an error ends this worker which django-q2 does not catch, such as SystemExit or that of a receiver."""
    if _worker_side is not None:
        _worker_side.fail()


def finish() -> bool:
    """Write what this worker has still to write; called at its end. Return whether all is written."""
    return _worker_side is None or _worker_side.finish()


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
        if plain.is_observed(task):
            plain.record_end_here(run)
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


# In the pusher of a cluster


class _PusherSide:
    """Sees each message that the cluster takes, and looks at those that still wait in the queue."""

    def __init__(self, taken: Any) -> None:
        self._put = taken.put
        #: Messages that were taken since the last look, with the time.
        self._taken: deque[tuple[float, dict[str, Any]]] = deque(maxlen=LOOKED_AT)
        self._count = 0
        #: Those of the messages in the queue that are recorded as far as they are to be, or can't be read.
        self._looked_at: set[str] = set()
        self._seem_lost: set[str] = set()
        self._caught_up: set[str] = set()
        self._writer = _Writer((LOOK_INTERVAL, self._look), (LOST_INTERVAL, self._find_lost))

    def finish(self) -> None:
        """Look once more, and no more."""
        self._writer.finish()

    def put(self, message: dict[str, Any]) -> None:
        """Take the place of ``put`` of django-q2's queue of messages."""
        self._count += 1
        self._taken.append((time.monotonic(), dict(message)))
        self._put(message)

    def _find_lost(self) -> None:
        before, self._seem_lost = self._seem_lost, plain.seem_lost()
        missed.give_up(before & self._seem_lost)
        self._caught_up = missed.catch_up(self._caught_up)
        connections.close_all()

    def _look(self) -> None:
        count, self._count = self._count, 0
        if count > FLOWING:
            # The taken ones are looked at later: workers may be busy, and some brokers do not have them any more.
            return
        keys, waiting = observe.look(LOOKED_AT, self._looked_at)
        before = time.monotonic() - WAITS_LONG
        taken = [message for at, message in self._taken.copy() if at <= before]
        now = timezone.now()
        old = {key: it for key, it in waiting.items() if (now - it["started"]).total_seconds() >= WAITS_LONG}
        if recorded := [message for message in (*old.values(), *taken) if plain.is_recorded(message)]:
            plain.record_queued(recorded)
        # Only now, as what could not be written is written by the next look.
        self._looked_at = (keys - waiting.keys()) | old.keys()
        while self._taken and self._taken[0][0] <= before:
            self._taken.popleft()
        connections.close_all()


def watch_pusher(taken: Any) -> None:
    """Record the tasks that wait for this cluster. This process is its pusher, which takes them from the broker."""
    if app_settings.DASHBOARD_TRACK == "all":
        taken.put = _PusherSide(taken).put
