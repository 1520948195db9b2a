"""Where a tracer is told of launches and attempts; without one, nothing is done."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


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
    return nullcontext({}) if _tracer is None else _tracer.launching(func)


def running(func: str, task_name: str, attempt: int, trace: Mapping[str, str]) -> AbstractContextManager[object]:
    return nullcontext() if _tracer is None else _tracer.running(func, task_name, attempt, trace)
