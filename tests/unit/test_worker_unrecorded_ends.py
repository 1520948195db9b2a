"""Ends of tasks that their worker could not record: the monitor process and django-q2's hook make up for it."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from functools import partial
from multiprocessing import Value
from queue import SimpleQueue

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.utils import timezone
from django_q.brokers import get_broker
from django_q.models import OrmQ, Task
from django_q.monitor import monitor
from django_q.signals import post_execute_in_worker
from django_q.timeout import TimeoutException
from django_q.worker import worker

from powercrud_dashboard.async_context import get_current_task
from powercrud_dashboard.async_manager import RetryPolicy
from powercrud_dashboard.exceptions import TaskCancelled
from powercrud_dashboard.models import ActiveTask, ConflictLock, TaskRecord
from powercrud_dashboard.q2 import queue
from powercrud_dashboard.worker import task as worker_task
from tests.workers import claimed_elsewhere, database_refuses, deliver, meanwhile

ADD, FAIL = "tests.testapp.tasks.add", "tests.testapp.tasks.fail"
ONE = {"testapp.Project": {1}}


@pytest.fixture
def database_away(monkeypatch):
    """Make ending a task fail so many times."""
    monkeypatch.setattr(worker_task, "DATABASE_RETRY_DELAYS", (0.0, 0.0))
    return partial(database_refuses, f"DELETE FROM {connection.ops.quote_name(ActiveTask._meta.db_table)}")


@pytest.mark.django_db(transaction=True)
def test_a_database_that_is_away_for_a_moment_loses_no_end(manager, record_of, database_away):
    name = manager.launch_async_task(ADD, 1, conflict_ids=ONE)
    with database_away(2):
        assert deliver() == 1
    assert record_of(name).status == "success"
    assert not ConflictLock.objects.exists()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("func", "status", "reason"), [(ADD, "success", ""), (FAIL, "failed", "error")])
def test_a_database_that_is_away_for_a_moment_loses_no_end_of_a_synchronous_task(
    manager, database_away, func, status, reason
):
    with database_away(2), suppress(ValueError):
        manager.launch_async_task(func, conflict_ids=ONE, sync=True, task_args=[1] if func == ADD else [])
    record = TaskRecord.objects.get()
    assert (record.status, record.failure_reason) == (status, reason)
    assert not ConflictLock.objects.exists()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("success", "result", "expected"),
    [
        (True, 1, ("success", 1, "")),
        (False, "it broke : Traceback (most recent call last): ...", ("failed", None, "it broke")),
    ],
)
def test_an_end_that_could_not_be_recorded_is_made_up_for_by_django_qs_hook(
    manager, record_of, database_away, monkeypatch, success, result, expected
):
    name = manager.launch_async_task(ADD, 1, conflict_ids=ONE)
    finished = {"name": name, "hook": queue.COMPLETION_HOOK, "result": result, "kwargs": {}}
    with database_away(3):
        assert deliver() == 1
    post_execute_in_worker.send(sender="django_q", func=None, task=finished)
    assert not record_of(name).is_finished
    now = timezone.now()
    row = Task(id="0" * 32, name=name, func=ADD, hook=queue.COMPLETION_HOOK, started=now, stopped=now)
    row.success, row.result = success, result
    # A row that does not tell the attempt may be of one before.
    for kwargs in ({}, {queue.ATTEMPT: 0}):
        row.kwargs = kwargs
        row.save()
        assert not record_of(name).is_finished
    row.kwargs = finished["kwargs"]
    row.save()
    record = record_of(name)
    assert (record.status, record.result, record.error) == expected
    # The start was to be recorded with the end.
    assert list(record.events.values_list("event", flat=True))[:2] == ["create", "start"]
    assert record.attempts == 1
    assert not ConflictLock.objects.exists()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("failures", [0, 3])
def test_the_monitor_acknowledges_only_messages_that_are_still_there(manager, database_away, failures):
    name = manager.launch_async_task(ADD, 1)
    task = {"name": name, "result": 1, "kwargs": {}, "ack_id": OrmQ.objects.get().pk, "hook": queue.COMPLETION_HOOK}
    twin = {**task, "ack_id": 4711}
    with database_away(failures):
        deliver()
    post_execute_in_worker.send(sender="django_q", func=None, task=task)
    post_execute_in_worker.send(sender="django_q", func=None, task=twin)
    assert OrmQ.objects.exists() == bool(failures)
    assert (task["ack_id"] is None) == (not failures)
    # Another delivery of the same task.
    assert twin["ack_id"] == 4711


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("failures", [0, 3])
def test_the_monitor_looks_after_a_task_only_if_its_end_could_not_be_recorded(manager, database_away, failures):
    name = manager.launch_async_task(ADD, 1)
    hook = OrmQ.objects.get().task["hook"]
    with database_away(failures):
        deliver()
    finished = {"name": name, "hook": hook, "result": 1, "kwargs": {}}
    post_execute_in_worker.send(sender="django_q", func=None, task=finished)
    assert finished["hook"] == (hook if failures else None)


called_with: list[str] = []


def own_hook(task):
    called_with.append(task.name)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("failures", [0, 3])
@pytest.mark.parametrize("options", [{}, {"hook": f"{__name__}.own_hook"}, {"save": False}, {"cached": 60}])
def test_an_end_that_could_not_be_recorded_is_recorded_by_the_monitor(
    manager, database_away, record_of, failures, options
):
    """A hook of the project's own is called in any case."""
    called_with.clear()
    name = manager.launch_async_task(ADD, 1, conflict_ids=ONE, q_options=options)
    task = {**OrmQ.objects.get().task, "result": 1, "success": True, "stopped": timezone.now()}
    with database_away(failures):
        deliver()
    post_execute_in_worker.send(sender="django_q", func=None, task=task)
    monitor_one(task)
    assert called_with == ([name] if "hook" in options else [])
    assert record_of(name).status == "success"
    assert not ConflictLock.objects.exists()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("how", "status", "reason", "exception_class"),
    [
        ("connection", "pending", "error", "builtins.ConnectionError"),
        ("value", "failed", "error", "builtins.ValueError"),
        ("time", "failed", "timeout", "django_q.exceptions.TimeoutException"),
        ("cancel", "cancelled", "", ""),
    ],
)
def test_the_monitor_records_an_end_as_what_it_was(
    manager, superuser, database_away, record_of, own_connection, how, status, reason, exception_class
):
    """Also whether its policy retries it, and who has cancelled it."""
    policy = RetryPolicy(max_retries=1, retry_on=[ConnectionError])
    name = manager.launch_async_task(f"{__name__}.end_by", how, superuser.pk, conflict_ids=ONE, retry=policy)
    task = {**OrmQ.objects.get().task, "success": False, "stopped": timezone.now()}
    try:
        with suppress(BaseException):
            deliver()
    finally:
        away_at_the_end.close()
    post_execute_in_worker.send(sender="django_q", func=None, task=task)
    monitor_one({**task, "result": "it ended : Traceback ..."})
    record = record_of(name)
    assert (record.status, record.failure_reason, record.exception_class) == (status, reason, exception_class)
    if how == "cancel":
        assert record.events.get(event="cancel").actor == superuser


away_at_the_end = ExitStack()


def end_by(how: str, user: int) -> None:
    task = get_current_task()
    if how == "cancel":
        assert task.manager.cancel_task(task.task_name, user=User.objects.get(pk=user))
    away_at_the_end.enter_context(database_refuses("", 99))
    if how == "cancel":
        raise TaskCancelled(task.task_name)
    raise {"connection": ConnectionError, "value": ValueError, "time": TimeoutException}[how]


def monitor_one(task) -> None:
    """Have django-q2's monitor save the task and call its hook."""
    results: SimpleQueue = SimpleQueue()
    results.put(task)
    results.put("STOP")
    monitor(results, get_broker())


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("has_run_before", [False, True])
def test_a_delivery_that_is_interrupted_before_its_claim_loses_no_message(manager, record_of, has_run_before):
    """As a process that is frozen there for longer than the time limit, which then has passed."""
    name = manager.launch_async_task(f"{__name__}.fail_once", retry=RetryPolicy(max_retries=1, backoff=0))
    if has_run_before:
        failures.append(ValueError("at first"))
        work_and_monitor()
        assert manager.run_task_now(name)
    with meanwhile(time_is_over, before=f"UPDATE {connection.ops.quote_name(ActiveTask._meta.db_table)}"):
        work_and_monitor()
    assert record_of(name).status == "pending"
    assert Task.objects.filter(name=name).count() == int(has_run_before)
    work_and_monitor()
    assert record_of(name).status == "success"
    assert not OrmQ.objects.exists()


def time_is_over() -> None:
    raise TimeoutException


def work_and_monitor() -> None:
    """Have django-q2's own worker and monitor take the message in the queue."""
    message, taken, results = OrmQ.objects.get(), SimpleQueue(), SimpleQueue()
    taken.put({**message.task, "ack_id": message.pk})
    taken.put("STOP")
    worker(taken, results, Value("i", -1), 8)
    monitor_one(results.get())


@pytest.mark.django_db(transaction=True)
def test_a_second_delivery_of_a_message_has_a_hook_of_its_own(manager, record_of, database_away):
    """The row that django-q2 has saved of the first one has none."""
    name = manager.launch_async_task(
        f"{__name__}.fail_once", conflict_ids=ONE, retry=RetryPolicy(max_retries=1, backoff=0)
    )
    failures.append(ValueError("at first"))
    options = {"stopped": timezone.now()}
    first = {**OrmQ.objects.get().task, "result": "at first", "success": False, **options}
    second = {**OrmQ.objects.get().task, "result": 1, "success": True, **options}
    with suppress(ValueError):
        deliver()
    post_execute_in_worker.send(sender="django_q", func=None, task=first)
    # Its acknowledgement is lost.
    monitor_one({**first, "ack_id": None})
    assert manager.run_task_now(name)
    OrmQ.objects.latest("pk").delete()
    with database_away(3):
        assert deliver() == 1
    post_execute_in_worker.send(sender="django_q", func=None, task=second)
    monitor_one(second)
    assert record_of(name).status == "success"
    assert not ConflictLock.objects.exists()


failures: list[Exception] = []


def fail_once() -> int:
    if failures:
        raise failures.pop()
    return 1


@pytest.mark.django_db(transaction=True)
def test_a_hook_of_the_projects_own_is_called_even_if_the_end_can_not_be_recorded(manager, database_away):
    called_with.clear()
    name = manager.launch_async_task(ADD, 1)
    claimed_elsewhere(name)
    now = timezone.now()
    kwargs = {queue.ATTEMPT: 1, queue.OWN_HOOK: f"{__name__}.own_hook"}
    row = Task(id="0" * 32, name=name, func=ADD, hook=queue.COMPLETION_HOOK, kwargs=kwargs, started=now, stopped=now)
    row.success = True
    with database_away(1):
        row.save()
    assert called_with == [name]
