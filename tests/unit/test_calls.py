"""Functions, actions and hooks that are ``async`` run to their end; generators are refused."""

from __future__ import annotations

import asyncio
import functools
import os
import signal

import pytest
from django.db import transaction

from powercrud_dashboard.admin import BackgroundAction, background_action
from powercrud_dashboard.admin.clicks import launcher
from powercrud_dashboard.async_context import get_current_task
from powercrud_dashboard.dashboard_manager import DashboardAsyncManager
from powercrud_dashboard.engine.calls import call
from powercrud_dashboard.exceptions import TaskCancelled
from powercrud_dashboard.models import TaskRecord
from tests.clicks import choose, last, said
from tests.testapp.models import Project
from tests.workers import deliver

pytestmark = pytest.mark.django_db(transaction=True)


async def add_project(name: str, *, task_key: str = "") -> str:
    await Project.objects.acreate(name=name)
    assert get_current_task().task_name == task_key
    return name


async def fail_later() -> None:
    await asyncio.sleep(0)
    raise LookupError("raised by the coroutine")


class AsyncCallable:
    async def __call__(self, name: str) -> str:
        await Project.objects.acreate(name=name)
        return name


class GeneratorCallable:
    def __call__(self):
        yield Project.objects.create(name="never")


async_callable = AsyncCallable()
async_partial = functools.partial(AsyncCallable(), name="partial")
generator_callable = GeneratorCallable()


def return_coroutine(name: str) -> object:
    return async_callable(name)


def generate():
    yield Project.objects.create(name="never")


async def generate_async():
    yield await Project.objects.acreate(name="never")


generator_partial = functools.partial(generate)


def return_generator() -> object:
    return generate()


@pytest.mark.parametrize(
    ("function", "arguments"),
    [("add_project", ["one"]), ("async_callable", ["one"]), ("async_partial", []), ("return_coroutine", ["one"])],
)
def test_async_functions_run_to_their_end(manager, record_of, function, arguments):
    name = manager.launch_async_task(f"{__name__}.{function}", *arguments)
    deliver()
    assert record_of(name).result == Project.objects.get().name


def test_what_a_coroutine_raises_is_the_failure_of_its_task(manager, record_of):
    name = manager.launch_async_task(fail_later)
    with pytest.raises(LookupError):
        deliver()
    record = record_of(name)
    assert (record.status, record.error) == ("failed", "raised by the coroutine")
    assert "in fail_later" in record.traceback


@pytest.mark.parametrize("function", ["generate", "generate_async", "generator_callable", "generator_partial"])
def test_generator_functions_are_refused_at_launch(manager, function):
    with pytest.raises(TypeError, match="is a generator function: a call of it runs nothing"):
        manager.launch_async_task(f"{__name__}.{function}")
    assert not TaskRecord.objects.exists()


def test_a_generator_that_a_function_returns_is_a_failure(manager, record_of):
    name = manager.launch_async_task(return_generator)
    with pytest.raises(TypeError):
        deliver()
    assert record_of(name).status == "failed"
    assert not Project.objects.exists()


def test_an_async_action_runs(boss, make_projects, at_once, with_actions):
    @background_action(permissions=["change"])
    async def stamp(modeladmin, request, queryset):
        return await queryset.aupdate(archived=True)

    with_actions(stamp)
    choose(boss, "stamp", make_projects(2))
    assert (last().status, last().result) == ("success", 2)
    assert Project.objects.filter(archived=True).count() == 2


def test_an_async_action_is_in_the_transaction_of_its_object(boss, make_projects, at_once, with_actions):
    @background_action(permissions=["change"], per_object=True)
    async def stamp(modeladmin, request, project):
        project.archived = True
        await project.asave()
        if project.name == "project 0":
            raise LookupError("not this one")

    with_actions(stamp)
    first, second = make_projects(2)
    choose(boss, "stamp", [first, second])
    assert (last().done_count, last().failed_count) == (1, 1)
    assert list(Project.objects.filter(archived=True)) == [second]


@pytest.mark.parametrize("options", [{}, {"per_object": True}])
def test_an_action_that_is_a_generator_is_refused_where_it_is_declared(options):
    with pytest.raises(TypeError, match="is a generator function"):

        @background_action(**options)
        def stamp(modeladmin, request, queryset):
            yield queryset.update(archived=True)


class AsyncHooks(DashboardAsyncManager):
    heard: list[str] = []

    async def async_task_lifecycle(self, event, task_name, **payload):
        # A statement of the ORM, which must not be called in the thread of the event loop.
        await TaskRecord.objects.filter(task_name=task_name).aexists()
        self.heard.append(event)

    async def handle_task_completion(self, task, task_name):
        self.heard.append(f"completion of {task.name == task_name}")


def test_async_hooks_are_called():
    AsyncHooks.heard.clear()
    AsyncHooks().launch_async_task(add_project, "one")
    deliver()
    assert AsyncHooks.heard == ["create", "start", "complete", "cleanup", "completion of True"]


def test_an_async_hook_is_called_in_a_transaction():
    AsyncHooks.heard.clear()
    with transaction.atomic():
        AsyncHooks().launch_async_task(add_project, "one")
    assert AsyncHooks.heard == ["create"]


def test_an_interruption_ends_the_coroutine_before_it_is_raised():
    """A cancellation is raised in the main thread, which waits for the thread of the event loop."""
    ended = []

    def raise_cancelled(signum, frame):
        raise TaskCancelled("task-1")

    async def wait_for_ever():
        try:
            while True:
                # Again, as the worker does: one that comes just before the main thread waits is not seen.
                os.kill(os.getpid(), signal.SIGUSR1)
                await asyncio.sleep(1)
        finally:
            ended.append(True)

    before = signal.signal(signal.SIGUSR1, raise_cancelled)
    try:
        with pytest.raises(TaskCancelled):
            call(wait_for_ever)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert ended


def test_a_click_on_a_generator_says_so(boss, make_projects, with_actions):
    with_actions(launcher(BackgroundAction(name="odd", description="Odd", task=f"{__name__}.generate")))
    assert "generator function" in said(choose(boss, "odd", make_projects(1)))[0]
    assert not TaskRecord.objects.exists()
