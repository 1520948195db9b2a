"""What the processes of a cluster get beside django-q2's own loops: a worker's threads, and one way to be stopped."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import util
from multiprocessing.process import BaseProcess, current_process
from queue import Empty
from typing import Any

from powercrud_dashboard.engine import boundary, processes
from powercrud_dashboard.models.database import forget_inherited_pools
from powercrud_dashboard.q2 import queue
from powercrud_dashboard.worker import connection, due, heartbeat, hooks, interrupt, messages, observe

logger = logging.getLogger(__name__)

#: Seconds after which a worker is killed that django-q2 has terminated, as its task has overrun its time limit. Within
#: these a worker ends itself, or has written all that it has still to write.
KILLED_AFTER = hooks.PATIENCE + 60.0


def _set_up_worker(process: BaseProcess) -> None:
    interrupt.note_sigterm()
    boundary.replace_closed_streams()
    taken, results, timer, *_others = _arguments(process)
    messages.read_from(taken, timer)
    observe.watch_worker(results)
    hooks.install()
    connection.install()
    processes.this_process().become_worker(queue.current_cluster())
    heartbeat.start_in_worker()
    due.start()
    # Called at the normal end of a child process, at which atexit's functions are not.
    util.Finalize(None, _leave, exitpriority=10)
    process._target = partial(_run_worker, process._target)  # type: ignore[attr-defined]


def _run_worker(worker: Callable[..., Any], *args: Any) -> None:
    try:
        worker(*args)
    except BaseException:
        observe.fail()
        raise
    finally:
        messages.stop_reading()


def _leave() -> None:
    if not observe.finish():
        # Its cluster takes it for a killed one, and looks for these ends among django-q2's rows.
        logger.warning("The ends of some tasks of plain django-q2 could not be written at the end of this worker")
        return
    try:
        processes.this_process().unregister()
    except Exception:
        # Cleanup deletes the row later.
        logger.debug("The row of this process could not be deleted", exc_info=True)


def _set_up_sentinel(process: BaseProcess) -> None:
    if "--run-once" in sys.argv:
        # It is stopped at once, to run what it has taken until then.
        return
    interrupt.use_stop_event(_arguments(process)[0])
    # Until django-q2 has set it to its default, and _run_sentinel to what it is to do.
    interrupt.block_sigterm()
    process._target = partial(_run_sentinel, process._target)  # type: ignore[attr-defined]


def _run_sentinel(sentinel_class: Callable[..., Any], stop_event: Any, *args: Any) -> None:
    sentinel = sentinel_class(stop_event, *args, start=False)
    interrupt.stop_cluster_on_sigterm(stop_event)
    stop = sentinel.stop

    def hand_back_and_stop() -> None:
        _hand_back_what_was_taken(sentinel)
        stop()

    sentinel.stop = hand_back_and_stop
    overruns = _Overruns(sentinel)
    try:
        sentinel.start()
    finally:
        overruns.end()
        # multiprocessing sends them a SIGTERM, which they ignore, and waits for their end.
        for helper in (sentinel.pusher, sentinel.monitor):
            if helper is not None:
                helper.kill()


class _Overruns:
    """Kills the workers that django-q2's guard has terminated and that do not end.

    A worker lets a SIGTERM wait for the end of its task, and can't end itself while the task holds the interpreter's
    lock. It would run for ever, and its cluster would never stop.
    """

    def __init__(self, sentinel: Any) -> None:
        self._reincarnate, self._status = sentinel.reincarnate, sentinel.status
        self._until: dict[Any, float] = {}
        sentinel.reincarnate = self.reincarnate
        # Asked for in each round of the guard, and while the cluster stops.
        sentinel.status = self.status

    def reincarnate(self, process: Any) -> None:
        """Take the place of the sentinel's method."""
        has_overrun = getattr(process, "timer", None) is not None and process.timer.value == 0
        self._reincarnate(process)
        if has_overrun:
            self._until[process] = time.monotonic() + KILLED_AFTER

    def status(self) -> Any:
        """Take the place of the sentinel's method."""
        self._kill_some()
        return self._status()

    def end(self) -> None:
        """Wait until all of them have ended."""
        for process, until in list(self._until.items()):
            process.join(max(0.0, until - time.monotonic()))
        self._kill_some()

    def _kill_some(self) -> None:
        for process, until in list(self._until.items()):
            if process.is_alive() and time.monotonic() < until:
                continue
            del self._until[process]
            if process.is_alive():
                logger.error("The worker %s is killed, as its task ignores its time limit", process.pid)
                process.kill()
                process.join(1.0)


def _hand_back_what_was_taken(sentinel: Any) -> None:
    """Let other clusters run what this one has taken and its workers have not begun.

    A worker that is idle or becomes so meanwhile does the same.
    """
    sentinel.event_out.set()
    is_pushing = True
    while is_pushing:
        is_pushing = sentinel.pusher.is_alive()
        try:
            while queue.hand_back(message := sentinel.task_queue.get(timeout=0.1)):
                pass
        except Empty:
            continue
        # The broker is away: better run it here than lose it.
        sentinel.task_queue.put(message)
        return


def _set_up_helper(process: BaseProcess) -> None:
    interrupt.ignore_sigterm_unless_orphaned()


def _set_up_pusher(process: BaseProcess) -> None:
    _set_up_helper(process)
    observe.watch_pusher(_arguments(process)[0])


#: By the dotted path of what django-q2 has the process run.
_SET_UP = {
    "django_q.cluster.Sentinel": _set_up_sentinel,
    "django_q.worker.worker": _set_up_worker,
    "django_q.pusher.pusher": _set_up_pusher,
    "django_q.monitor.monitor": _set_up_helper,
}


def _set_up(_: object) -> None:
    """Set up this process if it is one of a cluster; called when a child process of multiprocessing begins."""
    process = current_process()
    target = getattr(process, "_target", None)
    set_up = _SET_UP.get(f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', '')}")
    if set_up is None:
        return
    try:
        forget_inherited_pools()
        set_up(process)
    except Exception:
        # multiprocessing says nothing of it.
        logger.exception("The process %s could not be set up", process.name)


def _arguments(process: BaseProcess) -> tuple[Any, ...]:
    arguments: tuple[Any, ...] = process._args  # type: ignore[attr-defined]
    return arguments


# With every start method, also where the process imports this module only now. django-q2's signal for this tells of
# workers only, and of synchronous tasks in the process of their caller as well.
util.register_after_fork(_set_up, _set_up)
