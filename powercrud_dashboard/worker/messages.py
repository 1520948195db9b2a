"""The messages that a worker gets from its cluster: when it begins none, and which go back to the broker."""

from __future__ import annotations

import os
import signal
import time
from queue import Empty
from typing import Any

from powercrud_dashboard.q2 import observe, queue
from powercrud_dashboard.worker import interrupt

#: What ends a worker's loop, in django-q2's queue of the messages that the cluster has taken.
STOP = "STOP"
#: Seconds after which an idle worker looks for a SIGTERM.
LOOK_INTERVAL = 1.0
#: Seconds that a worker lets another one take the message that both have seen.
YIELD = 0.001
#: Seconds that this worker rests after it has left a message in the queue, which it may get again at once.
PAUSE = 1.0


class Messages:
    """Takes the place of ``get`` of django-q2's queue, which a worker calls between two tasks."""

    def __init__(self, taken: Any, timer: Any) -> None:
        self._get = taken.get
        self._wait = taken._reader.poll
        self._timer = timer
        self._pid = os.getpid()
        self._alarm_handler: Any = None
        self._last: dict[str, Any] = {}
        self._runs_plain_task = False
        self._has_left_one = False

    def get(self) -> Any:
        """Return the next message, or what ends the worker's loop."""
        if os.getpid() != self._pid:
            # Forked by a task.
            os._exit(0)
        self._runs_plain_task = False
        self._restore_alarm_handler()
        if self._has_left_one:
            self._has_left_one = False
            time.sleep(PAUSE)
        while not interrupt.sigterm_was_for_this_process():
            # Not with the lock of the queue, as get() does: if this process were killed, nobody would release it.
            if not self._wait(LOOK_INTERVAL):
                continue
            try:
                message = self._get(block=False)
            except Empty:
                time.sleep(YIELD)
                continue
            if message == STOP:
                break
            if not interrupt.cluster_is_stopping() or not queue.hand_back(message):
                self._last = dict(message)
                self._runs_plain_task = not observe.is_own(message)
                return message
        return STOP

    def _restore_alarm_handler(self) -> None:
        # django-q2 sets SIGALRM to its default after each task with a time limit.
        if not hasattr(signal, "SIGALRM"):
            return
        if signal.getsignal(signal.SIGALRM) != signal.SIG_DFL:
            self._alarm_handler = signal.getsignal(signal.SIGALRM)
        elif self._alarm_handler is not None:
            signal.signal(signal.SIGALRM, self._alarm_handler)

    def stop(self) -> None:
        """Note that the loop of the worker has ended."""
        self._runs_plain_task = False

    def has_overrun(self) -> bool:
        """Return whether django-q2's guard has terminated this worker, and a task of plain django-q2 runs in it still.

        A task of a manager has a limit of its own, and time to record its end.
        """
        # Without the lock, which others may hold.
        return self._runs_plain_task and self._timer.get_obj().value == 0

    def time_limit_of(self, task_id: str) -> Any:
        """Return the time limit that the last message gives to its task, which django-q2 takes out of it."""
        return self._last.get("timeout") if self._last.get("id") == task_id else None

    def leave_in_queue(self, task_id: str, *, is_for_others: bool) -> None:
        """Have the message delivered again that this worker can't run, if it is the last.

        One with a receipt is delivered again later, and at once only if it is for others.
        """
        if self._last.get("id") == task_id and (is_for_others or not self._last["ack_id"]):
            queue.hand_back(self._last)
            self._has_left_one = True


_messages: Messages | None = None


def read_from(taken: Any, timer: Any) -> None:
    """Have the loop of this worker, which has this timer, read from django-q2's queue in this way."""
    global _messages
    _messages = Messages(taken, timer)
    taken.get = _messages.get


def stop_reading() -> None:
    """Note that the loop of this worker has ended."""
    if _messages is not None:
        _messages.stop()


def has_overrun() -> bool:
    """Return whether a task of plain django-q2 runs in this worker that has overrun its time limit."""
    return _messages is not None and _messages.has_overrun()


def leave_in_queue(task_id: str, *, is_for_others: bool) -> None:
    """Have a message delivered again that this worker can't run; brokers with receipts do so later by themselves."""
    if _messages is not None:
        _messages.leave_in_queue(task_id, is_for_others=is_for_others)


def time_limit_of(task_id: str) -> Any:
    """Return the time limit that the message of the task which this worker runs has given to it; None for none."""
    return None if _messages is None else _messages.time_limit_of(task_id)
