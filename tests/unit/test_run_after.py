"""Tasks that are to start at a certain time: until then they wait without a message in the queue."""

from __future__ import annotations

import functools
from datetime import datetime, timedelta

import pytest
from django.urls import reverse
from django.utils import timezone
from django_q.models import OrmQ

from powercrud_dashboard.async_context import get_current_task
from powercrud_dashboard.dashboard_manager import DashboardAsyncManager
from powercrud_dashboard.engine import statistics
from powercrud_dashboard.engine.statistics import End
from powercrud_dashboard.models import ActiveTask, ConflictLock
from tests.workers import run_queue

pytestmark = pytest.mark.django_db(transaction=True)

ADD = "tests.testapp.tasks.add"


def soon() -> datetime:
    return timezone.now() + timedelta(hours=2)


def make_due(name: str) -> None:
    """Let the time come that a task waits for."""
    assert ActiveTask.objects.filter(task_name=name).update(next_run_at=timezone.now() - timedelta(seconds=1))


def test_a_task_waits_for_its_time(manager, record_of):
    moment = soon()
    name = manager.launch_async_task(ADD, 1, right=2, run_after=moment)
    assert manager.send_due_tasks() == 0
    assert not OrmQ.objects.exists()
    assert record_of(name).run_after == moment
    make_due(name)
    assert manager.send_due_tasks() == 1
    run_queue()
    record = record_of(name)
    assert (record.status, record.result, record.attempts) == ("success", 3, 1)


def test_its_objects_are_locked_from_the_launch_on(manager):
    manager.launch_async_task(ADD, 1, right=2, run_after=soon(), conflict_ids={"testapp.Project": {1}})
    assert ConflictLock.objects.count() == 1


def test_a_time_that_is_over_makes_no_difference(manager):
    manager.launch_async_task(ADD, 1, right=2, run_after=timezone.now() - timedelta(seconds=5))
    assert OrmQ.objects.count() == 1


def test_in_the_callers_process_nobody_would_queue_it(manager, record_of):
    name = manager.launch_async_task(ADD, 1, right=2, run_after=soon(), sync=True)
    assert record_of(name).result == 3


def test_it_can_be_run_now_and_cancelled(manager):
    name = manager.launch_async_task(ADD, 1, right=2, run_after=soon())
    assert manager.run_task_now(name)
    assert OrmQ.objects.count() == 1
    other = manager.launch_async_task(ADD, 1, right=2, run_after=soon())
    assert manager.cancel_task(other)
    assert not manager.is_active_task(other)


def test_a_task_that_is_paused_meanwhile_still_waits_for_its_time(manager):
    name = manager.launch_async_task(ADD, 1, right=2, run_after=soon())
    assert manager.pause_task(name)
    assert manager.resume_task(name)
    assert not OrmQ.objects.exists()
    assert manager.send_due_tasks() == 0
    make_due(name)
    assert manager.send_due_tasks() == 1


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        ("tomorrow", TypeError, "use a datetime"),
        (datetime(2030, 1, 1), ValueError, "it needs a time zone"),  # noqa: DTZ001 - it is to be refused
    ],
)
def test_what_is_no_time_is_refused(manager, value, error, words):
    with pytest.raises(error, match=words):
        manager.launch_async_task(ADD, 1, right=2, run_after=value)
    assert not ActiveTask.objects.exists()


def test_the_time_before_it_is_no_time_in_the_queue(manager, record_of):
    name = manager.launch_async_task(ADD, 1, right=2, run_after=soon())
    record = record_of(name)
    assert record.waiting_time == timedelta()
    record.started_at = record.run_after + timedelta(seconds=2)
    record.finished_at = record.started_at + timedelta(seconds=1)
    record.attempts = 1
    record.save()
    row = type(record).objects.values_list(*statistics.end_columns()).get()
    assert End.of(row).wait == 2_000
    assert record.waiting_time == timedelta(seconds=2)


@pytest.mark.markup
def test_the_pages_say_when_it_starts(manager, boss, record_of):
    name = manager.launch_async_task(ADD, 1, right=2, run_after=soon())
    page = boss.get(reverse("admin:powercrud_dashboard_taskrecord_change", args=[record_of(name).pk]))
    for text in ("pcrud-status-scheduled", "Scheduled", "Starts in", "Run now"):
        assert text in page.text
    queued = boss.get(reverse("admin:powercrud_dashboard_taskrecord_changelist"), {"status": "pending"})
    assert f"pcrud-row-{record_of(name).pk}" in queued.text
    assert "Waiting for retry" not in queued.text


class Doubling(DashboardAsyncManager):
    """A manager with something around each of its functions."""

    def wrap_function(self, func):
        @functools.wraps(func)
        def wrapped(*args, **kwargs):
            get_current_task().log("doubled")
            return 2 * func(*args, **kwargs)

        return wrapped


def test_a_manager_can_wrap_the_functions_of_its_tasks(record_of):
    manager = Doubling()
    with pytest.raises(TypeError, match="missing a required argument"):
        manager.launch_async_task(ADD)
    name = manager.launch_async_task(ADD, 1, right=2)
    run_queue()
    record = record_of(name)
    assert (record.result, record.func) == (6, ADD)
    assert record.events.filter(event="log", message="doubled").exists()
