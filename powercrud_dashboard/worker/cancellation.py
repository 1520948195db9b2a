"""Stop a running task wherever it is: raise an exception in the worker's main thread."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from powercrud_dashboard.async_context import TaskContext


class Interruption:
    """Lets another thread raise what the context was stopped with in the thread that entered this context.

    It works as django-q2's time limit does, by a signal whose handler raises. SIGUSR1 is used, so
    that neither disturbs the other. Where there are no such signals, or outside of the main
    thread, the task stops at its next progress call.
    """

    def __init__(self, context: TaskContext) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._armed = False
        self._previous: object = None

    def __enter__(self) -> Interruption:
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread and hasattr(signal, "SIGUSR1") and hasattr(signal, "pthread_kill"):
            self._previous = signal.signal(signal.SIGUSR1, self._raise)
            self._armed = True
        return self

    def __exit__(self, *exc_info: object) -> None:
        if not self._armed:
            return
        # A signal that is already on its way finds the handler disarmed and does nothing;
        # once the lock was had, none can follow.
        self._armed = False
        with self._lock:
            pass
        signal.signal(signal.SIGUSR1, self._previous or signal.SIG_DFL)  # type: ignore[arg-type]

    def interrupt(self) -> None:
        """Stop the task where it is; called by the reporter thread."""
        with self._lock:
            if self._armed:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    def _raise(self, signum: int, frame: FrameType | None) -> None:
        if self._armed:
            self._context.check_cancelled()
