"""Two people, or a person and a worker, at the failures of one task at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from django.db import connection

from powercrud_dashboard.engine import lifecycle
from powercrud_dashboard.engine.pruning import delete_records
from powercrud_dashboard.exceptions import TaskNotRetryable
from powercrud_dashboard.models import ActiveTask, TaskRecord
from tests.services import wait_until
from tests.testapp import tasks
from tests.workers import meanwhile

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(connection.vendor == "sqlite", reason="SQLite has one writer at a time"),
]


@pytest.fixture
def tries(manager) -> list[str]:
    """A task that failed twice."""
    first = manager.launch_async_task(tasks.add, 1)
    fail(manager, first)
    second = manager.retry_task(first)
    fail(manager, second)
    return [first, second]


def fail(manager, name: str) -> None:
    assert lifecycle.end(manager, ActiveTask.objects.get(task_name=name), "fail", error="it broke")


def while_deleted(name: str, act: Callable[[], object]) -> list[Exception]:
    """Delete a record, and have another session act before that is committed. Return what that has raised."""
    raised: list[Exception] = []

    def work() -> None:
        try:
            act()
        except Exception as error:
            raised.append(error)
        finally:
            connection.close()

    other = threading.Thread(target=work)

    def start() -> None:
        other.start()
        wait_until(lambda: is_waiting() or not other.is_alive(), "the other session waits or is ready")

    with meanwhile(start, after='DELETE FROM "powercrud_dashboard_taskrecord"'):
        assert delete_records([TaskRecord.objects.get(task_name=name).pk]) == []
    other.join()
    return raised


def is_waiting() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT EXISTS (SELECT 1 FROM pg_locks WHERE NOT granted)")
        return cursor.fetchone()[0]


def test_what_is_deleted_meanwhile_is_not_retried(manager, tries):
    raised = while_deleted(tries[1], lambda: manager.retry_task(tries[1]))
    assert [type(error) for error in raised] == [TaskNotRetryable]
    assert list(TaskRecord.objects.values_list("task_name", flat=True)) == [tries[0]]
    assert not ActiveTask.objects.exists()


@pytest.mark.parametrize("retried", [0, 1])
def test_a_try_that_fails_while_the_one_before_is_deleted_counts_alone(manager, tries, retried):
    third = manager.retry_task(tries[retried])
    assert while_deleted(tries[1], lambda: fail(manager, third)) == []
    assert list(TaskRecord.objects.open_failures().values_list("task_name", flat=True)) == [third]
