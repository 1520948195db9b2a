"""Signals in the processes of a cluster: interrupt a task, stop the cluster, end a worker that overruns its limit."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.synchronize import Event
from types import FrameType

from powercrud_dashboard.async_context import TaskContext

#: Seconds by which a task may overrun its time limit; django-q2's guard allows three.
OVERRUN = 6.0


class Interruption:
    """Lets another thread raise the context's stop error in the thread that has entered this context manager.

    It works as django-q2's time limit does: by a signal whose handler raises. It uses SIGURG, which by default is
    ignored, so that projects have SIGUSR1 and SIGUSR2 for themselves. Where there are no such signals, and outside of
    the main thread, the task stops at its next progress call.

    SIGCONT does the same, so that the first thing after a freeze is the look whether the task may go on.
    """

    SIGNALS = ("SIGURG", "SIGCONT")

    def __init__(self, context: TaskContext) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._armed = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Interruption:
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread and hasattr(signal, "SIGURG") and hasattr(signal, "pthread_kill"):
            for name in self.SIGNALS:
                signum = getattr(signal, name)
                self._previous[signum] = signal.signal(signum, self._raise)
            self._armed = True
        return self

    def __exit__(self, *exc_info: object) -> None:
        if not self._armed:
            return
        # A signal that was sent already finds the handler disarmed. After the lock was held once, none is sent.
        self._armed = False
        with self._lock:
            pass
        for signum, previous in self._previous.items():
            signal.signal(signum, previous or signal.SIG_DFL)  # type: ignore[arg-type]

    def interrupt(self) -> None:
        """Stop the task where it is; called by the heartbeat thread."""
        with self._lock:
            if self._armed:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGURG)

    def _raise(self, signum: int, frame: FrameType | None) -> None:
        if self._armed:
            self._context.check_cancelled()


_stop_event: Event | None = None
_sigterm_came = False
#: Seconds within which the cluster begins to stop if a SIGTERM was sent to all of its processes.
STOP_FOLLOWS_WITHIN = 3.0


def use_stop_event(event: Event | None) -> None:
    """Set the event that tells the cluster's sentinel to stop; its workers inherit it by their fork.

    Without it, only a signal to the worker itself is noticed.
    """
    global _stop_event
    _stop_event = event


def cluster_is_stopping() -> bool:
    """Return whether the cluster, or at least this worker, is being stopped."""
    return _sigterm_came or _stop_has_begun()


def _stop_has_begun() -> bool:
    return _stop_event is not None and _is_set(_stop_event)


def _is_set(event: Event) -> bool:
    # is_set() without the lock around it: a sentinel that was killed while it held the lock never releases it, and
    # is_set() would wait for ever.
    flag = event._flag  # type: ignore[attr-defined]
    try:
        return bool(flag.get_value())
    except NotImplementedError:
        # As on macOS. Others who look at the same moment see it unset.
        if not flag.acquire(False):
            return False
        flag.release()
        return True


def _note_sigterm(signum: int, frame: FrameType | None) -> None:
    global _sigterm_came
    _sigterm_came = True


def note_sigterm() -> None:
    """From now on let a SIGTERM stop this worker between two tasks only.

    It is a handler and not a mask, as a mask is inherited by the programs that a task starts, and is not there in
    threads that began before.
    """
    signal.signal(signal.SIGTERM, _note_sigterm)


def sigterm_was_for_this_process() -> bool:
    """Return whether a SIGTERM has come and the cluster is not stopped with it; waits for this up to a limit."""
    deadline = time.monotonic() + STOP_FOLLOWS_WITHIN
    while _sigterm_came and not _stop_has_begun():
        if _stop_event is None or time.monotonic() > deadline:
            return True
        time.sleep(0.05)
    return False


def stop_cluster_on_sigterm(event: Event) -> None:
    """From now on let a SIGTERM to this process, the sentinel, stop its cluster in good order."""

    def stop(signum: int, frame: FrameType | None) -> None:
        # By a thread: set() waits until those who wait for the event are awake, and this is one of them.
        threading.Thread(target=event.set, daemon=True).start()

    signal.signal(signal.SIGTERM, stop)
    _unblock_sigterm()


def ignore_sigterm_unless_orphaned() -> None:
    """From now on let a SIGTERM to this process do nothing while its parent runs, which tells it when to end."""
    parent = os.getppid()

    def end_if_orphaned(signum: int, frame: FrameType | None) -> None:
        if os.getppid() != parent:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)

    signal.signal(signal.SIGTERM, end_if_orphaned)


@contextmanager
def defer_sigterm() -> Iterator[None]:
    """Let the block run to its end before a SIGTERM reaches its handler, as of a project that has set its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    if handler is None or handler is _note_sigterm:
        # Not set by Python, or that of a worker, which does nothing more.
        yield
        return
    global _sigterm_came
    signal.signal(signal.SIGTERM, _note_sigterm)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is _note_sigterm:
            signal.signal(signal.SIGTERM, handler)
        if _sigterm_came:
            _sigterm_came = False
            signal.raise_signal(signal.SIGTERM)


def block_sigterm() -> None:
    """Let a SIGTERM to this thread wait."""
    if hasattr(signal, "pthread_sigmask"):
        _mask.before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _unblock_sigterm() -> None:
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_SETMASK, _mask.before)


_mask = threading.local()


def _before_fork() -> None:
    if signal.getsignal(signal.SIGTERM) is _note_sigterm:
        # Python forgets signals that come to the child before its handlers are reset.
        block_sigterm()


def _in_parent() -> None:
    if signal.getsignal(signal.SIGTERM) is _note_sigterm:
        _unblock_sigterm()


def _in_child() -> None:
    """Give a process that a task forks a normal SIGTERM."""
    global _sigterm_came
    if signal.getsignal(signal.SIGTERM) is _note_sigterm:
        _sigterm_came = False
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _unblock_sigterm()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)


@contextmanager
def hard_time_limit() -> Iterator[None]:
    """End this process if the block runs on long after django-q2's time limit.

    django-q2's guard terminates such a worker, but a SIGTERM waits for the end of the task.
    """
    limit = signal.getitimer(signal.ITIMER_REAL)[0] if hasattr(signal, "getitimer") else 0.0
    if not limit:
        yield
        return
    with _error_stream() as descriptor:
        # A thread written in C, which no Python code can keep from running by holding the interpreter's lock.
        faulthandler.dump_traceback_later(limit + OVERRUN, exit=True, file=descriptor)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()


@contextmanager
def _error_stream() -> Iterator[int]:
    """Yield the descriptor of the standard error stream, or another one to write to if that is closed."""
    with ExitStack() as stack:
        try:
            descriptor = sys.__stderr__.fileno()  # type: ignore[union-attr]
        except (AttributeError, ValueError, OSError):
            descriptor = stack.enter_context(open(os.devnull, "wb")).fileno()
        yield descriptor
