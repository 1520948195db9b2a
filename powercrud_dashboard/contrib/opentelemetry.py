"""Spans for OpenTelemetry, from launch to worker. Needs ``pip install "powercrud-dashboard[opentelemetry]"``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import propagate, trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from powercrud_dashboard.engine import tracing
from powercrud_dashboard.exceptions import ClusterStopping, SliceEnded, TaskCancelled, TaskPaused

__all__ = ["instrument"]

#: How an attempt ends that is cancelled, paused or handed back.
NOT_FAILED = (TaskCancelled, TaskPaused, SliceEnded, ClusterStopping)


def instrument() -> None:
    """Trace the launches and the attempts of tasks. Call it in each process, as in the ``ready()`` of an app."""
    tracing.use(_Spans())


class _Spans:
    """One span for each launch, and one for each attempt, whose parent is that of the launch."""

    def __init__(self) -> None:
        self._tracer = trace.get_tracer("powercrud_dashboard")

    @contextmanager
    def launching(self, func: str) -> Iterator[Mapping[str, str]]:
        carrier: dict[str, str] = {}
        with self._tracer.start_as_current_span(f"launch {func}", kind=SpanKind.PRODUCER, attributes=_of(func)):
            propagate.inject(carrier)
            yield carrier

    @contextmanager
    def running(self, func: str, task_name: str, attempt: int, trace: Mapping[str, str]) -> Iterator[None]:
        attributes = {**_of(func), "messaging.message.id": task_name, "pcrud.attempt": attempt}
        with self._tracer.start_as_current_span(
            f"run {func}",
            context=propagate.extract(trace),
            kind=SpanKind.CONSUMER,
            attributes=attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield
            except NOT_FAILED:
                raise
            except BaseException as error:
                # The time limit and ``sys.exit()`` are no Exception.
                span.set_status(Status(StatusCode.ERROR, type(error).__name__))
                # Last, as it raises if the error has no text.
                span.record_exception(error)
                raise


def _of(func: str) -> dict[str, str | int]:
    return {"messaging.system": "django-q2", "code.function.name": func}
