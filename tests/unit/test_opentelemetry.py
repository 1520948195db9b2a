"""Spans from the launch to the worker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from django.contrib import admin
from django.utils import timezone
from django_q.exceptions import TimeoutException
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from powercrud_dashboard.admin import background_action
from powercrud_dashboard.async_context import get_current_task
from powercrud_dashboard.async_manager import AsyncManager
from powercrud_dashboard.contrib.opentelemetry import instrument
from powercrud_dashboard.engine import tracing
from powercrud_dashboard.exceptions import TaskCancelled
from powercrud_dashboard.models import ActiveTask, TaskRecord
from tests.testapp import tasks
from tests.testapp.models import Project
from tests.workers import run_queue

pytestmark = pytest.mark.django_db(transaction=True)

SEEN = f"{__name__}.seen_trace"
FAILING = f"{__name__}.fail_without_a_text"
ADD = "tests.testapp.tasks.add"
exporter = InMemorySpanExporter()


@pytest.fixture(scope="module", autouse=True)
def provider():
    # It can be set once in a process.
    made = TracerProvider()
    made.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(made)


@pytest.fixture(autouse=True)
def instrumented():
    instrument()
    exporter.clear()
    yield
    tracing.use(None)


def spans() -> dict:
    return {span.name: span for span in exporter.get_finished_spans()}


def seen_trace() -> int:
    return trace.get_current_span().get_span_context().trace_id % 10**9


class WithoutText(Exception):
    def __str__(self) -> str:
        raise TypeError("no text")


def fail_without_a_text() -> None:
    raise WithoutText


def reach_the_time_limit() -> None:
    # As the signal of django-q2 does.
    raise TimeoutException("the time is over")


def be_cancelled() -> None:
    task = get_current_task()
    AsyncManager().cancel_task(task.task_name)
    raise TaskCancelled(task.task_name)


class BrokenTracer:
    """A tracer whose server is away; each of its parts may be the broken one."""

    def __init__(self, broken: str) -> None:
        self._broken = broken

    def _do(self, what: str) -> None:
        if what == self._broken:
            raise RuntimeError("away")

    @contextmanager
    def _context(self, value: object) -> Iterator[object]:
        self._do("enter")
        try:
            yield value
        finally:
            self._do("exit")

    def launching(self, func: str):
        self._do("make")
        return self._context({})

    def running(self, *facts: object):
        return self.launching("")


@pytest.mark.parametrize("broken", ["make", "enter", "exit"])
def test_a_tracer_that_fails_stops_no_launch_and_changes_no_end(manager, record_of, broken, caplog):
    tracing.use(BrokenTracer(broken))
    names = [manager.launch_async_task(function) for function in (seen_trace, tasks.fail)]
    run_queue()
    good, bad = map(record_of, names)
    assert (good.status, bad.status, bad.exception_class) == ("success", "failed", "builtins.ValueError")
    assert "The tracer failed" in caplog.text


def test_an_error_without_a_text_is_recorded_as_without_a_tracer(manager, record_of):
    names = [manager.launch_async_task(fail_without_a_text)]
    run_queue()
    tracing.use(None)
    names.append(manager.launch_async_task(fail_without_a_text))
    run_queue()
    traced, untraced = map(record_of, names)
    assert traced.exception_class == untraced.exception_class == f"{__name__}.WithoutText"
    assert spans()[f"run {FAILING}"].status.status_code == StatusCode.ERROR


def test_a_trace_goes_on_in_the_worker(manager, record_of):
    with trace.get_tracer("project").start_as_current_span("click"):
        name = manager.launch_async_task(seen_trace)
    run_queue()
    click, launch, run = (spans()[key] for key in ("click", f"launch {SEEN}", f"run {SEEN}"))
    assert launch.parent.span_id == click.context.span_id
    assert run.parent.span_id == launch.context.span_id
    assert run.context.trace_id == click.context.trace_id
    assert (launch.kind, run.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert run.attributes["messaging.message.id"] == name
    assert run.attributes["pcrud.attempt"] == 1
    # The function's own spans are in it.
    assert record_of(name).result == click.context.trace_id % 10**9


def test_a_failure_is_one_of_the_span(manager):
    manager.launch_async_task(tasks.fail)
    run_queue()
    run = spans()["run tests.testapp.tasks.fail"]
    assert run.status.status_code == StatusCode.ERROR
    assert [event.name for event in run.events] == ["exception"]


@pytest.mark.parametrize("func", [tasks.leave, reach_the_time_limit])
def test_the_time_limit_and_an_exit_are_failures_of_the_span(manager, func):
    manager.launch_async_task(func)
    # The time limit goes on to django-q2.
    with suppress(TimeoutException):
        run_queue()
    (run,) = (span for name, span in spans().items() if name.startswith("run "))
    assert (run.status.status_code, TaskRecord.objects.get().status) == (StatusCode.ERROR, "failed")


def test_a_task_is_one_all_of_whose_objects_failed(boss, make_projects, monkeypatch):
    def refuse(modeladmin, request, project):
        raise ValueError("refused")

    projects = admin.site.get_model_admin(Project)
    action = background_action(permissions=["change"], per_object=True)(refuse)
    monkeypatch.setattr(projects, "actions", [*projects.actions, action])
    chosen = {"action": "refuse", "_selected_action": [project.pk for project in make_projects(2)]}
    boss.post("/admin/testapp/project/", chosen)
    run_queue()
    (run,) = (span for name, span in spans().items() if name.startswith("run "))
    assert (run.status.status_code, TaskRecord.objects.get().status) == (StatusCode.ERROR, "failed")


def test_a_cancelled_attempt_is_no_failure_of_the_span(manager, record_of):
    name = manager.launch_async_task(be_cancelled)
    run_queue()
    (run,) = (span for name, span in spans().items() if name.startswith("run "))
    assert (run.status.status_code, record_of(name).status) == (StatusCode.UNSET, "cancelled")


def test_each_attempt_is_a_span_of_the_same_trace(manager):
    manager.launch_async_task(tasks.fail_until, 2, retry=1)
    run_queue()
    ActiveTask.objects.update(next_run_at=timezone.now())
    manager.send_due_tasks()
    run_queue()
    runs = [span for span in exporter.get_finished_spans() if span.name.startswith("run ")]
    assert [run.attributes["pcrud.attempt"] for run in runs] == [1, 2]
    assert len({run.context.trace_id for run in runs}) == 1


def test_without_it_nothing_is_done(manager):
    tracing.use(None)
    manager.launch_async_task(tasks.add, 1)
    run_queue()
    assert spans() == {}


def test_a_task_of_a_process_that_does_not_trace_begins_a_trace(manager):
    tracing.use(None)
    manager.launch_async_task(tasks.add, 1)
    instrument()
    run_queue()
    assert spans()[f"run {ADD}"].parent is None
