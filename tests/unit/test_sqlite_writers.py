"""SQLite has one writer at a time, such as a task with a long transaction: what others are told who have to wait."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from django.db import connection, connections

from powercrud_dashboard.async_context import get_current_task
from powercrud_dashboard.exceptions import TaskBusy
from powercrud_dashboard.models import ConflictLock, TaskRecord
from tests.clicks import TASKS, choose, said
from tests.conftest import POSTGRESQL
from tests.testapp.models import Project

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(POSTGRESQL, reason="about SQLite"),
]

ADD = "tests.testapp.tasks.add"


@pytest.fixture
def queued(manager, make_projects) -> TaskRecord:
    name = manager.launch_async_task(ADD, 1, conflict_ids={"testapp.Project": make_projects(1)})
    return TaskRecord.objects.get(task_name=name)


@pytest.fixture
def ended(manager) -> TaskRecord:
    return TaskRecord.objects.get(task_name=manager.launch_async_task(ADD, 1, sync=True))


@contextmanager
def somebody_writes() -> Iterator[None]:
    """Somebody else has the write lock, and those who want it are not patient."""
    with connection.cursor() as cursor, closing(connections.create_connection("default")) as other:
        (usual,) = cursor.execute("PRAGMA busy_timeout").fetchone()
        cursor.execute("PRAGMA busy_timeout = 10")
        with other.cursor() as of_other:
            of_other.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            cursor.execute(f"PRAGMA busy_timeout = {usual}")


@pytest.fixture
def writer(queued, ended, boss) -> Iterator[None]:
    with somebody_writes():
        yield


def test_clicks_say_to_try_again(writer, boss, queued, ended):
    lock = ConflictLock.objects.get()
    chosen = {"confirmed": "yes", "selected": [queued.pk]}
    clicks = {
        "cancel": lambda: boss.post(f"{TASKS}{queued.pk}/cancel/", follow=True),
        "pause": lambda: boss.post(f"{TASKS}{queued.pk}/pause/", follow=True),
        "cancel several": lambda: boss.post(f"{TASKS}bulk/", {"action": "cancel", **chosen}, follow=True),
        "retry": lambda: boss.post(f"{TASKS}{ended.pk}/retry/", {"confirmed": "yes"}, follow=True),
        "release": lambda: boss.post(f"{TASKS}locks/{lock.pk}/release/", {"confirmed": "yes"}, follow=True),
        "launch": lambda: choose(boss, "archive", list(Project.objects.all())),
    }
    answers = {what: " ".join(said(click())) for what, click in clicks.items()}
    assert {what for what, text in answers.items() if "Try again in a moment" not in text} == set(), answers
    assert TaskRecord.objects.count() == 2


def test_the_manager_raises_an_error_that_says_so(writer, manager, queued):
    for act in (
        lambda: manager.launch_async_task(ADD, 2),
        lambda: manager.cancel_task(queued.task_name),
        lambda: manager.pause_task(queued.task_name),
        lambda: manager.add_conflict_ids("mine", {"testapp.Project": [99]}),
    ):
        with pytest.raises(TaskBusy):
            act()
    assert manager.get_task_status(queued.task_name) == "pending"


def log_while_somebody_writes() -> int:
    with somebody_writes():
        get_current_task().log("a line")
    return 5


def test_what_a_synchronous_task_tells_meanwhile_harms_it_not(manager, record_of):
    name = manager.launch_async_task(f"{__name__}.log_while_somebody_writes", sync=True)
    assert (record_of(name).status, record_of(name).result) == ("success", 5)
