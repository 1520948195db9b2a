"""Whether this worker's cluster is being stopped, by a signal to the cluster or to this very process."""

from __future__ import annotations

import faulthandler
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event

#: Seconds by which a task may overrun its time limit; django-q2's guard allows three.
OVERRUN = 6.0

_stop_event: Event | None = None


def heed(event: Event | None) -> None:
    """Take note of the event that tells the sentinel to stop, as django-q2 does not tell the workers.

    Without it only a signal to the worker itself is noticed.
    """
    global _stop_event
    _stop_event = event


def cluster_stops() -> bool:
    """Return whether the cluster is being stopped; called by the reporter thread while a task runs."""
    return _was_terminated() or (_stop_event is not None and _is_set(_stop_event))


def _was_terminated() -> bool:
    return hasattr(signal, "sigpending") and signal.SIGTERM in signal.sigpending()


def _is_set(event: Event) -> bool:
    # What is_set() does, but for the lock around it: a sentinel that was killed while it waited has left the lock
    # to nobody, and who asks for it then waits for ever.
    flag = event._flag  # type: ignore[attr-defined]
    if not flag.acquire(False):
        return False
    flag.release()
    return True


@contextmanager
def not_far_beyond_its_time_limit() -> Iterator[None]:
    """End this process if the block goes on long after django-q2's time limit, whatever it does.

    django-q2's guard terminates such a worker, which :func:`outlasting_termination` puts off.
    """
    limit = signal.getitimer(signal.ITIMER_REAL)[0] if hasattr(signal, "getitimer") else 0.0
    if not limit or sys.__stderr__ is None:
        yield
        return
    # A thread of C that needs no lock of Python's, so that no code which keeps that can prevent it.
    faulthandler.dump_traceback_later(limit + OVERRUN, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@contextmanager
def outlasting_termination() -> Iterator[None]:
    """Let a task come to an end first when this process is terminated, as service managers do with all of a cluster."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        # A signal that came meanwhile ends the process here, with the task's end recorded.
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
