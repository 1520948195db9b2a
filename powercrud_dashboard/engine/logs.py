"""What the code of a running task logs or prints, kept in memory until it is written. No log call waits for that."""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from typing import Any

from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.models.logs import FIRST_PART, LogLine
from powercrud_dashboard.text import SHORT, clean_text

#: Characters of one line, its traceback included.
LINE = 10_000

#: The levels that ``TaskContext.log`` takes by name; "success" is that of Django's messages.
LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "success": 25,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}

#: Colours and movements of a terminal.
_TERMINAL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
#: Characters that are no text, but for tabs and line breaks.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")

#: A line that a task has put into its timeline: message, level, time.
TimelineLine = tuple[str, str, datetime]

_current_log: ContextVar[TaskLog | None] = ContextVar("powercrud_dashboard_log", default=None)


class TaskLog:
    """The lines of one attempt that are not written yet. Of too many, the first and the newest are kept.

    Any thread may add lines. There is no lock, as a task may be interrupted anywhere.
    """

    def __init__(self, now: Callable[[], datetime]) -> None:
        """Make an empty one. ``now`` returns the time for lines that do not tell their own."""
        limit = app_settings.DASHBOARD_LOG_LINES
        self.is_on = limit > 0
        self._level = logging.getLevelNamesMapping().get(app_settings.DASHBOARD_LOG_LEVEL, logging.INFO)
        self._now = now
        self._numbers = count()
        self._first_limit = max(1, limit // FIRST_PART)
        self._first: deque[tuple[int, LogLine]] = deque()
        self._newest: deque[tuple[int, LogLine]] = deque(maxlen=max(1, limit - self._first_limit))
        #: The highest number of a line that was taken, how many were taken, and how many reported as left out.
        self._highest = -1
        self._taken = self._reported = 0
        #: Printed texts without their line breaks yet, by the name of their stream.
        self._printed: dict[str, str] = {}

    def add(self, message: str, level: int, logger: str = "", time: datetime | None = None) -> None:
        """Add a line."""
        if not self.is_on:
            return
        line = LogLine(_readable(message), min(max(level, 0), 32_767), clean_text(logger, SHORT), time or self._now())
        number = next(self._numbers)
        (self._first if number < self._first_limit else self._newest).append((number, line))

    def add_record(self, record: logging.LogRecord) -> None:
        """Add a record of the module logging, with its traceback, if its level is high enough."""
        if record.levelno < self._level:
            return
        try:
            message = record.getMessage()
        except Exception as error:
            # The arguments do not fit the message, or one of them can't be printed.
            message = f"{record.msg!s} ({type(error).__name__}: the arguments can't be printed)"
        if record.exc_info and record.exc_info[1] is not None:
            message = f"{message}\n{''.join(traceback.format_exception(*record.exc_info)).rstrip()}"
        elif record.exc_text:
            message = f"{message}\n{record.exc_text}"
        if record.stack_info:
            message = f"{message}\n{record.stack_info}"
        self.add(message, record.levelno, record.name)

    def add_printed(self, stream: str, level: int, text: str) -> None:
        """Add the complete lines of what was printed; the rest is kept until its line is complete."""
        *lines, rest = f"{self._printed.get(stream, '')}{text}".replace("\r", "\n").split("\n")
        self._printed[stream] = rest[-LINE:]
        for line in lines:
            if line.strip():
                self.add(line, level, stream)

    def complete_printed(self) -> None:
        """Add what was printed without a line break at its end."""
        for stream in list(self._printed):
            self.add_printed(stream, logging.INFO, "\n")

    @property
    def has_lines(self) -> bool:
        """Whether there are lines that are not written yet."""
        return bool(self._first or self._newest)

    def take(self) -> list[LogLine]:
        """Return the lines that are not written yet, with a mark where lines were left out."""
        first, newest = _drained(self._first), _drained(self._newest)
        if not (first or newest):
            return []
        self._taken += len(first) + len(newest)
        self._highest = max(self._highest, *(number for number, _line in (*first, *newest)))
        left_out = max(0, self._highest + 1 - self._taken - self._reported)
        self._reported += left_out
        lines = [line for _number, line in (*first, *newest)]
        if left_out:
            lines.insert(len(first), LogLine("", 0, "", newest[0][1].time if newest else lines[-1].time, left_out))
        return lines

    def put_back(self, lines: Sequence[LogLine]) -> None:
        """Put back lines that could not be written."""
        self._reported -= sum(line.left_out for line in lines)
        kept = [line for line in lines if not line.left_out]
        self._taken -= len(kept)
        # The highest number is known already.
        room = (self._newest.maxlen or 0) + self._first_limit - len(self._newest)
        self._first.extendleft((0, line) for line in reversed(kept[: max(0, room)]))


def _drained(lines: deque[tuple[int, LogLine]]) -> list[tuple[int, LogLine]]:
    drained = []
    with suppress(IndexError):
        while True:
            drained.append(lines.popleft())
    return drained


def _readable(message: str) -> str:
    """Return a message without colours, and with a mark in the place of control characters."""
    text = message[: 2 * LINE]
    if not text.isprintable():
        text = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", _TERMINAL.sub("", text).replace("\r\n", "\n"))
    return clean_text(text, LINE)


@dataclass(frozen=True)
class Logged:
    """What a task has logged since this was asked for the last time."""

    #: Lines of the timeline.
    timeline: Sequence[TimelineLine] = ()
    #: Lines of the log, those of the timeline among them.
    lines: Sequence[LogLine] = ()
    #: Whether the log was empty before.
    is_first: bool = False


def lines_event(logged: Logged) -> tuple[str, dict[str, Any]]:
    """Return the event with which lines of the log are written."""
    last = logged.lines[-1].time
    return "lines", {"lines": logged.lines, "is_first": logged.is_first, "timestamp": last}


class _Handler(logging.Handler):
    """Adds the records of code that runs in a task to the log of this task.

    The context tells the task. So the records of a thread that the task has started are those of the task only if the
    thread runs in a copy of its context.
    """

    def handle(self, record: logging.LogRecord) -> bool:
        # Without the lock of a handler: a task may be interrupted while it has it, and others would wait for ever.
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        log = _current_log.get()
        if log is not None and not hasattr(record, "pcrud_kept"):
            record.pcrud_kept = True
            with not_logging():
                try:
                    log.add_record(record)
                except Exception:
                    self.handleError(record)
        if not _has_other_handler(record.name):
            # Python prints a warning that nobody handles.
            with not_logging():
                if logging.lastResort and record.levelno >= logging.lastResort.level:
                    logging.lastResort.handle(record)


def _has_other_handler(name: str) -> bool:
    logger: logging.Logger | None = logging.getLogger(name)
    while logger is not None:
        if any(handler is not _handler for handler in logger.handlers):
            return True
        logger = logger.parent if logger.propagate else None
    return False


class _Stream:
    """A standard stream whose text also goes into the log of the task that prints it."""

    def __init__(self, stream: Any, name: str) -> None:
        self._stream = stream
        self._name = name

    def write(self, text: str) -> Any:
        written = self._stream.write(text)
        log = _current_log.get()
        if log is not None and isinstance(text, str):
            with not_logging():
                log.add_printed(self._name, logging.INFO, text)
        return written

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


_handler = _Handler()
_lock = threading.Lock()
_users = 0
_attached: list[logging.Logger] = []


@contextmanager
def captured(log: TaskLog) -> Iterator[None]:
    """Add what the block logs to ``log``, and what it prints if the settings say so."""
    if not log.is_on:
        yield
        return
    _attach()
    token = _current_log.set(log)
    try:
        yield
    finally:
        _current_log.reset(token)
        log.complete_printed()
        _detach()


@contextmanager
def not_logging() -> Iterator[None]:
    """Let nothing that the block logs be added to the log of a task, such as what writing the log causes."""
    token = _current_log.set(None)
    try:
        yield
    finally:
        _current_log.reset(token)


def _attach() -> None:
    """Attach the handler to the root logger, and to those whose records do not come there; once for all tasks."""
    global _users
    with _lock:
        _users += 1
        if _users > 1:
            return
        known = list(logging.root.manager.loggerDict.values())
        others = [logger for logger in known if isinstance(logger, logging.Logger) and not logger.propagate]
        _attached[:] = [logging.root, *others]
        for logger in _attached:
            logger.addHandler(_handler)
        if app_settings.DASHBOARD_LOG_PRINT:
            for name in ("stdout", "stderr"):
                if (stream := getattr(sys, name)) is not None:
                    setattr(sys, name, _Stream(stream, name))


def _detach() -> None:
    global _users
    with _lock:
        _users -= 1
        if _users:
            return
        for logger in _attached:
            logger.removeHandler(_handler)
        _attached.clear()
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            # Unless the task has replaced it.
            if isinstance(stream, _Stream):
                setattr(sys, name, stream._stream)


def _forget_the_parents_lock() -> None:
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_the_parents_lock)
