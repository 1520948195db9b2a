"""Where a tracer is told of launches and attempts; without one, nothing is done."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Generic, Protocol, TypeVar

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


class Tracer(Protocol):
    """What is told. Its methods return contexts in which the launch, or the function of the task, runs."""

    def launching(self, func: str) -> AbstractContextManager[Mapping[str, str]]:
        """Return a context that yields what a worker needs to go on with the trace; it travels with the task."""

    def running(
        self, func: str, task_name: str, attempt: int, trace: Mapping[str, str]
    ) -> AbstractContextManager[object]:
        """Return a context for an attempt of a task whose launch has yielded this."""


_tracer: Tracer | None = None


def use(tracer: Tracer | None) -> None:
    """Tell this tracer from now on; None for none."""
    global _tracer
    _tracer = tracer


def launching(func: str) -> AbstractContextManager[Mapping[str, str]]:
    tracer = _tracer
    return nullcontext({}) if tracer is None else _Contained(lambda: tracer.launching(func), {})


def running(func: str, task_name: str, attempt: int, trace: Mapping[str, str]) -> AbstractContextManager[object]:
    tracer = _tracer
    if tracer is None:
        return nullcontext()
    return _Contained(lambda: tracer.running(func, task_name, attempt, trace), None)


class _Contained(AbstractContextManager[_T], Generic[_T]):
    """A context of a tracer, whose errors are logged: they stop no launch, and change no end of a task."""

    def __init__(self, make: Callable[[], AbstractContextManager[_T]], instead: _T) -> None:
        self._make = make
        self._instead = instead
        self._context: AbstractContextManager[_T] | None = None

    def __enter__(self) -> _T:
        try:
            context = self._make()
            value = context.__enter__()
        except Exception:
            logger.exception("The tracer failed at a beginning")
            return self._instead
        self._context = context
        return value

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._context is None:
            return
        try:
            self._context.__exit__(error_type, error, where)
        except Exception:
            logger.exception("The tracer failed at an end")
