"""Django's tasks framework on django-q2, or its backport on older versions of Django."""

from __future__ import annotations

import dataclasses
import pickle
from datetime import datetime, timedelta
from typing import Any

import django
import pytest
from django.conf import settings as django_settings
from django.db import transaction
from django.test import override_settings
from django.utils import timezone
from django_q.models import OrmQ

if not django_settings.TASKS_FRAMEWORK:
    pytest.skip("There is no tasks framework.", allow_module_level=True)

from powercrud_dashboard.async_manager import RetryPolicy
from powercrud_dashboard.contrib.django_tasks import DjangoQ2Backend
from powercrud_dashboard.contrib.django_tasks.framework import (
    InvalidTask,
    TaskResultDoesNotExist,
    TaskResultStatus,
    task_backends,
    task_enqueued,
    task_finished,
    task_started,
)
from powercrud_dashboard.dashboard_manager import DashboardAsyncManager
from powercrud_dashboard.engine.cleanup import give_up
from powercrud_dashboard.exceptions import EnqueueError
from powercrud_dashboard.models import ActiveTask, FailureReason, TaskRecord
from tests.testapp import framework_tasks as tasks
from tests.workers import run_queue

if django.VERSION >= (6, 0):
    from django.tasks import default_task_backend
    from django.tasks.exceptions import TaskResultMismatch
else:
    from django_tasks import default_task_backend
    from django_tasks.exceptions import TaskResultMismatch

pytestmark = pytest.mark.django_db(transaction=True)

LOGGER = django_settings.TASKS_FRAMEWORK
PATH = "powercrud_dashboard.contrib.django_tasks.DjangoQ2Backend"


def backends(**params: Any) -> override_settings:
    return override_settings(TASKS={"default": {"BACKEND": PATH, **params}})


def soon() -> datetime:
    return timezone.now() + timedelta(hours=2)


@pytest.fixture
def heard():
    """The signals that were sent: name, sender, id and status."""
    sent: list[tuple[str, type, str, str]] = []
    receivers = []
    for name, signal in {"enqueued": task_enqueued, "started": task_started, "finished": task_finished}.items():

        def receive(sender, task_result, name=name, **kwargs):
            sent.append((name, sender, task_result.id, task_result.status))

        signal.connect(receive)
        receivers.append((signal, receive))
    yield sent
    for signal, receive in receivers:
        signal.disconnect(receive)


# The backend


def test_it_is_the_backend_of_the_settings():
    assert default_task_backend == task_backends["default"]
    assert isinstance(task_backends["default"], DjangoQ2Backend)
    assert (default_task_backend.alias, default_task_backend.options) == ("default", {})
    assert default_task_backend.queues == {"default", "queue_1"}


def test_it_says_what_it_supports():
    backend = task_backends["default"]
    assert backend.supports_defer
    assert backend.supports_async_task
    assert backend.supports_get_result
    assert not backend.supports_priority


# Enqueueing


@pytest.mark.parametrize("task", [tasks.nothing, tasks.add_in_coroutine], ids=["function", "coroutine"])
def test_an_enqueued_task_is_ready(task, record_of):
    result = task.enqueue(1, right=3) if task is tasks.add_in_coroutine else task.enqueue(1, two=3)
    assert result.status == TaskResultStatus.READY
    assert not result.is_finished
    assert (result.task, result.backend) == (task, "default")
    assert result.args == [1]
    assert (result.started_at, result.last_attempted_at, result.finished_at) == (None, None, None)
    assert (result.errors, result.worker_ids, result.attempts) == ([], [], 0)
    with pytest.raises(ValueError, match="Task has not finished yet"):
        _ = result.return_value
    record = record_of(result.id)
    assert result.enqueued_at == record.created_at
    assert (record.label, record.func, record.status) == (task.name, task.module_path, "pending")
    assert OrmQ.objects.get().func() == task.module_path


@pytest.mark.django_db(transaction=True)
def test_a_task_is_enqueued_and_found_by_coroutines():
    from asgiref.sync import async_to_sync

    async def enqueue() -> Any:
        result = await tasks.multiply.aenqueue(2, right=3)
        assert await default_task_backend.aget_result(result.id) == result
        assert await tasks.multiply.aget_result(result.id) == result
        with pytest.raises(TaskResultDoesNotExist):
            await default_task_backend.aget_result("123")
        with pytest.raises(TaskResultMismatch, match="Task does not match"):
            await tasks.nothing.aget_result(result.id)
        await result.arefresh()
        return result

    result = async_to_sync(enqueue)()
    assert result.status == TaskResultStatus.READY
    run_queue()
    async_to_sync(result.arefresh)()
    assert result.return_value == 6


def test_arguments_are_json():
    with pytest.raises(TypeError, match="Unsupported type"):
        tasks.nothing.enqueue(datetime(2030, 1, 1))  # noqa: DTZ001 - it is to be refused
    result = tasks.echo.enqueue((1, 2), b"text", {"nested": (3,)}, user=None)
    assert (result.args, result.kwargs) == ([[1, 2], "text", {"nested": [3]}], {"user": None})
    run_queue()
    result.refresh()
    assert result.return_value == {"args": result.args, "kwargs": result.kwargs}
    assert not TaskRecord.objects.exclude(pk=TaskRecord.objects.get(task_name=result.id).pk).exists()


def test_arguments_that_do_not_fit_are_refused_at_once():
    with pytest.raises(TypeError, match="missing a required argument: 'left'"):
        tasks.multiply.enqueue()
    with pytest.raises(TypeError, match="too many positional arguments"):
        tasks.own_id.enqueue("an id")
    assert not TaskRecord.objects.exists()


def test_names_of_the_managers_own_options_are_arguments_as_well():
    given = {"task_key": 1, "manager_class": 2, "label": 3, "sync": False, "retry": 4, "args": 5}
    result = tasks.echo.enqueue(**given)
    run_queue()
    result.refresh()
    assert result.return_value == {"args": [], "kwargs": given}


def test_nothing_is_passed_that_was_not_enqueued():
    result = tasks.echo.enqueue()
    run_queue()
    result.refresh()
    assert result.return_value == {"args": [], "kwargs": {}}


def test_a_task_that_a_worker_would_not_find_is_invalid():
    assert tasks.under_another_name.enqueue(3).task.func is tasks._plain
    run_queue()
    assert TaskRecord.objects.get().result == 3

    hidden = dataclasses.replace(tasks.multiply, func=_not_importable())
    with pytest.raises(InvalidTask, match="A worker would not find the task"):
        hidden.enqueue(1)


def _not_importable() -> Any:
    def local(left: int) -> int:
        return left

    local.__qualname__ = "no_such_name"
    return local


def test_inside_a_transaction_the_task_is_part_of_it(heard):
    with transaction.atomic():
        lost = tasks.nothing.enqueue()
        assert default_task_backend.get_result(lost.id) == lost
        transaction.set_rollback(True)
    with pytest.raises(TaskResultDoesNotExist):
        default_task_backend.get_result(lost.id)
    assert not OrmQ.objects.exists()
    with transaction.atomic():
        kept = tasks.nothing.enqueue()
        assert kept.enqueued_at is not None
    run_queue()
    kept.refresh()
    assert kept.status == TaskResultStatus.SUCCESSFUL


def test_a_broker_that_is_away_is_told_to_the_caller(monkeypatch, record_of):
    def refuse(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no broker")

    monkeypatch.setattr(OrmQ.objects.__class__, "create", refuse, raising=False)
    monkeypatch.setattr("django_q.brokers.orm.ORM.enqueue", refuse)
    with pytest.raises(EnqueueError):
        tasks.nothing.enqueue()
    result = default_task_backend.get_result(TaskRecord.objects.get().task_name)
    assert result.status == TaskResultStatus.FAILED
    assert result.errors[0].exception_class is ConnectionError
    assert result.worker_ids == []


# Results


def test_a_task_that_has_succeeded(heard):
    result = tasks.multiply.enqueue(6, right=7)
    run_queue()
    found = tasks.multiply.get_result(result.id)
    assert found.status == TaskResultStatus.SUCCESSFUL
    assert found.is_finished
    assert found.return_value == 42
    assert found.enqueued_at <= found.started_at <= found.finished_at
    assert found.last_attempted_at == found.started_at
    assert (found.attempts, len(found.worker_ids), found.errors) == (1, 1, [])
    assert result.status == TaskResultStatus.READY
    result.refresh()
    assert result == found
    assert result.return_value == 42
    sender = type(default_task_backend._connections[default_task_backend._alias])
    assert heard == [
        ("enqueued", sender, result.id, "READY"),
        ("started", sender, result.id, "RUNNING"),
        ("finished", sender, result.id, "SUCCESSFUL"),
    ]


def test_a_coroutine_runs_to_its_end():
    result = tasks.add_in_coroutine.enqueue(1, right=2)
    run_queue()
    result.refresh()
    assert result.return_value == 3


@pytest.mark.parametrize(
    ("task", "kind", "message"),
    [
        (tasks.raise_value_error, ValueError, "ValueError: it broke\n"),
        (tasks.leave, SystemExit, "SystemExit: it leaves\n"),
        (tasks.interrupt, KeyboardInterrupt, "KeyboardInterrupt: it interrupts\n"),
        (tasks.raise_nested, ValueError, "ValueError: inside\n"),
        (tasks.raise_own_error, tasks.Unprintable, "tests.testapp.framework_tasks.Unprintable: an error of ours\n"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_task_that_has_failed(task, kind, message, heard, caplog):
    with caplog.at_level("DEBUG", logger=LOGGER):
        result = task.enqueue()
        run_queue()
    result.refresh()
    assert result.status == TaskResultStatus.FAILED
    assert result.is_finished
    with pytest.raises(ValueError, match="Task failed"):
        _ = result.return_value
    assert result._return_value is None
    assert result.enqueued_at <= result.started_at <= result.finished_at
    (error,) = result.errors
    assert error.exception_class is kind
    assert error.traceback.startswith("Traceback (most recent call last):")
    assert error.traceback.endswith(message)
    assert (result.task, result.args, result.kwargs) == (task, [], {})
    assert [(name, status) for name, _sender, _id, status in heard][-1] == ("finished", "FAILED")
    states = [record for record in caplog.records if record.name == LOGGER]
    assert [record.levelname for record in states] == ["DEBUG", "INFO", "ERROR"]
    assert all(result.id in record.getMessage() for record in states)
    assert message.strip() in caplog.text


def test_a_success_says_nothing_of_an_exception_in_the_log(caplog):
    with caplog.at_level("DEBUG", logger=LOGGER):
        tasks.nothing.enqueue()
        run_queue()
    assert "NoneType" not in caplog.text
    assert "state=SUCCESSFUL" in caplog.text


@pytest.mark.parametrize(
    ("task", "args", "kind", "words"),
    [
        (tasks.return_an_object, (), TypeError, "Unsupported type"),
        (tasks.return_text, (200_000,), ValueError, "can't be stored"),
        (tasks.return_text, (3, "\x00"), ValueError, "can't be stored"),
    ],
)
def test_a_value_that_can_not_be_kept_whole_is_a_failure(task, args, kind, words):
    result = task.enqueue(*args)
    run_queue()
    result.refresh()
    assert result.status == TaskResultStatus.FAILED
    assert result.errors[0].exception_class is kind
    assert words in result.errors[0].traceback


def test_a_return_value_is_json():
    result = tasks.return_json.enqueue()
    run_queue()
    result.refresh()
    assert result.return_value == {"tuple": [1, 2], "bytes": "text", "3": [None, True, 1.5]}


def test_results_that_do_not_exist():
    for unknown in ("123", 123, "nul \x00", "x" * 1_000):
        with pytest.raises(TaskResultDoesNotExist):
            default_task_backend.get_result(unknown)
    other = tasks.nothing.enqueue()
    with pytest.raises(TaskResultMismatch, match="Task does not match"):
        tasks.multiply.get_result(other.id)
    launched = DashboardAsyncManager().launch_async_task("tests.testapp.tasks.add", 1)
    with pytest.raises(TaskResultDoesNotExist):
        default_task_backend.get_result(launched)


def test_a_result_belongs_to_its_backend():
    result = tasks.nothing.enqueue()
    with override_settings(TASKS={"other": {"BACKEND": PATH}}), pytest.raises(TaskResultDoesNotExist):
        task_backends["other"].get_result(result.id)


def test_a_task_whose_function_is_gone_has_no_result():
    result = tasks.nothing.enqueue()
    TaskRecord.objects.update(func="tests.testapp.framework_tasks.removed")
    with pytest.raises(TaskResultDoesNotExist, match="is no task of the backend"):
        default_task_backend.get_result(result.id)


def test_a_refresh_of_what_has_not_changed_changes_nothing():
    result = tasks.nothing.enqueue(1, two=[3])
    before = dataclasses.asdict(result)
    result.refresh()
    assert dataclasses.asdict(result) == before


@pytest.mark.skipif(django.VERSION < (6, 1), reason="Tasks can be pickled from Django 6.1 on.")
def test_a_result_can_be_pickled():
    result = tasks.multiply.enqueue(1)
    assert pickle.loads(pickle.dumps(result)) == result


def test_a_running_task_has_its_worker_before_that_is_recorded():
    result = tasks.nothing.enqueue()
    active = ActiveTask.objects.claim(result.id, worker=None)
    assert active is not None
    result.refresh()
    assert result.status == TaskResultStatus.RUNNING
    assert (result.started_at, result.attempts) == (active.started_at, 1)


def test_a_cancelled_task_has_failed(heard):
    result = tasks.nothing.enqueue()
    assert DashboardAsyncManager().cancel_task(result.id)
    result.refresh()
    assert result.status == TaskResultStatus.FAILED
    assert result.errors[0].exception_class_path == "powercrud_dashboard.exceptions.TaskCancelled"
    assert [name for name, *_ in heard] == ["enqueued", "finished"]


def test_a_lost_task_has_failed(heard, manager):
    result = tasks.nothing.enqueue()
    active = ActiveTask.objects.claim(result.id, worker=None)
    from powercrud_dashboard.engine import registry

    assert give_up(registry.manager_of(active), active, FailureReason.WORKER_LOST)
    result.refresh()
    assert result.status == TaskResultStatus.FAILED
    assert result.errors[0].exception_class_path == "powercrud_dashboard.exceptions.WorkerLost"
    assert heard[-1][0] == "finished"


def test_after_a_change_of_the_secret_key_the_recorded_arguments_are_there(settings):
    result = tasks.multiply.enqueue(3, right=4)
    settings.SECRET_KEY = "another"
    found = default_task_backend.get_result(result.id)
    assert (found.args, found.kwargs) == ([3], {"right": 4})


# Context


def test_a_task_gets_its_context():
    result = tasks.own_id.enqueue()
    described = tasks.describe_context.enqueue("hidden")
    run_queue()
    result.refresh()
    described.refresh()
    assert result.return_value == result.id
    assert described.return_value == {
        "attempt": 1,
        "status": "RUNNING",
        "workers": 1,
        "errors": [],
        "started": True,
    }


def test_the_arguments_have_the_names_that_the_function_gives_them(record_of):
    result = tasks.describe_context.enqueue("hidden")
    assert (record_of(result.id).task_args, record_of(result.id).argument_names) == (["hidden"], ["secret"])


def test_retries_are_further_attempts_with_the_errors_before_them(heard):
    with backends(OPTIONS={"retry": RetryPolicy(max_retries=2, backoff=0)}):
        result = tasks.describe_context.enqueue(fail_before=3)
        for attempt in (1, 2):
            run_queue()
            result.refresh()
            assert (result.status, result.attempts, len(result.errors)) == (TaskResultStatus.READY, attempt, attempt)
            assert not result.is_finished
            DashboardAsyncManager.send_due_tasks()
        run_queue()
        result.refresh()
    assert result.return_value == {
        "attempt": 3,
        "status": "RUNNING",
        "workers": 3,
        "errors": ["builtins.ValueError", "builtins.ValueError"],
        "started": True,
    }
    assert result.started_at < result.last_attempted_at < result.finished_at
    assert [error.traceback.splitlines()[-1] for error in result.errors] == [
        "ValueError: attempt 1",
        "ValueError: attempt 2",
    ]
    assert [name for name, *_ in heard] == ["enqueued", "started", "started", "started", "finished"]


def test_progress_and_log_come_from_the_current_task(record_of):
    result = tasks.report.enqueue(5)
    run_queue()
    record = record_of(result.id)
    assert record.result == result.id
    assert (record.progress_current, record.progress_total, record.message) == (5, 5, "Stepping")
    assert record.events.filter(event="log", message="it has stepped").exists()
