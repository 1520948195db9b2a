"""Tasks that other backends of the tasks framework run: seen on the pages, and never touched."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import sqlite3
import subprocess
import sys
import traceback
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.db import connection, transaction
from django.urls import reverse
from django.utils import timezone

if not django_settings.TASKS_FRAMEWORK:
    pytest.skip("There is no tasks framework.", allow_module_level=True)

from powercrud_dashboard.contrib.django_tasks import observe
from powercrud_dashboard.contrib.django_tasks.framework import (
    TaskError,
    TaskResult,
    TaskResultStatus,
    task_backends,
    task_enqueued,
    task_finished,
    task_started,
)
from powercrud_dashboard.engine.cleanup import SILENT_AFTER
from powercrud_dashboard.exceptions import TaskNotRetryable
from powercrud_dashboard.models import ActiveTask, TaskRecord
from tests.services import wait_until
from tests.testapp import framework_tasks as tasks
from tests.workers import database_refuses, run_queue

pytestmark = pytest.mark.django_db(transaction=True)


class Elsewhere:
    """A backend of which only the signals are heard."""


def told(task: Any = tasks.multiply, **facts: Any) -> Any:
    """Return a result as a backend elsewhere tells of it."""
    return TaskResult(
        task=task.using(backend="dummy"),
        **{
            "id": "elsewhere-1",
            "status": TaskResultStatus.READY,
            "enqueued_at": timezone.now(),
            "started_at": None,
            "finished_at": None,
            "last_attempted_at": None,
            "args": [2],
            "kwargs": {"right": 3},
            "backend": "dummy",
            "errors": [],
            "worker_ids": [],
            **facts,
        },
    )


def started(result: Any, *, attempt: int = 1) -> Any:
    now = timezone.now()
    workers = [f"worker-{number}" for number in range(1, attempt + 1)]
    return dataclasses.replace(
        result, status=TaskResultStatus.RUNNING, started_at=now, last_attempted_at=now, worker_ids=workers
    )


def failed(result: Any, error: Any = None) -> Any:
    errors = [TaskError(exception_class_path="builtins.ValueError", traceback="Traceback\nValueError: no\n")]
    now = timezone.now()
    return dataclasses.replace(result, status=TaskResultStatus.FAILED, finished_at=now, errors=errors)


def tell(signal: Any, result: Any) -> None:
    signal.send(Elsewhere, task_result=result)


@pytest.fixture
def observed_failure(record_of) -> TaskRecord:
    result = told()
    tell(task_enqueued, result)
    tell(task_started, started(result))
    tell(task_finished, failed(started(result)))
    return record_of(result.id)


# What is recorded


def test_a_task_of_the_immediate_backend_is_recorded(record_of):
    result = tasks.multiply.using(backend="immediate").enqueue(6, right=7)
    assert result.return_value == 42
    record = record_of(result.id)
    assert (record.source, record.is_observed, record.status, record.result) == ("django_tasks", True, "success", 42)
    assert (record.label, record.func) == ("multiply", "tests.testapp.framework_tasks.multiply")
    assert (record.task_args, record.task_kwargs, record.argument_names) == ([6], {"right": 7}, ["left"])
    assert (record.created_at, record.started_at, record.finished_at) == (
        result.enqueued_at,
        result.started_at,
        result.finished_at,
    )
    assert (record.attempts, record.worker_host) == (1, result.worker_ids[0])
    assert list(record.events.values_list("event", flat=True)) == ["create", "start", "complete"]
    assert "immediate.ImmediateBackend" in record.events.first().message
    assert not ActiveTask.objects.exists()


def test_a_failure_is_an_open_failure(record_of):
    result = tasks.raise_own_error.using(backend="immediate").enqueue()
    record = record_of(result.id)
    assert (record.status, record.resolution, record.failure_reason) == ("failed", "open", "error")
    assert record.exception_class == "tests.testapp.framework_tasks.Unprintable"
    assert record.error == "an error of ours"
    assert record.traceback == result.errors[0].traceback
    assert TaskRecord.objects.open_failures().get() == record


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError(), "ValueError"),
        (ValueError("after ValueError: no"), "after ValueError: no"),
        (ValueError("two\nlines"), "two\nlines"),
        (json.JSONDecodeError("no", "x", 0), "no: line 1 column 1 (char 0)"),
        (AssertionError(), "AssertionError"),
    ],
)
def test_the_text_of_an_error_is_in_its_traceback(error, text, record_of):
    path = f"{type(error).__module__}.{type(error).__qualname__}"
    try:
        try:
            raise type(error)("earlier", "x", 0)
        except type(error) as earlier:
            raise error from earlier
    except type(error):
        told_error = TaskError(exception_class_path=path, traceback=traceback.format_exc())
    tell(task_finished, dataclasses.replace(failed(started(told())), errors=[told_error]))
    assert record_of("elsewhere-1").error == text


def test_a_task_that_nobody_runs_is_queued(record_of):
    run_after = timezone.now() + timedelta(days=1)
    result = tasks.nothing.using(backend="dummy", run_after=run_after).enqueue()
    assert (record_of(result.id).status, record_of(result.id).run_after) == ("pending", run_after)


def test_the_arguments_have_names_without_the_context(record_of):
    result = tasks.describe_context.using(backend="immediate").enqueue("hidden")
    assert record_of(result.id).argument_names == ["secret"]


def test_tasks_of_our_own_backend_are_recorded_once(record_of):
    result = tasks.multiply.enqueue(2, 3)
    assert record_of(result.id).source == ""


def test_each_attempt_is_told(record_of):
    result = told()
    tell(task_enqueued, result)
    tell(task_started, started(result))
    tell(task_started, started(result, attempt=2))
    record = record_of(result.id)
    assert (record.status, record.attempts, record.worker_host) == ("in_progress", 2, "worker-2")


def test_a_task_of_which_the_start_was_not_heard_is_recorded_at_its_end(record_of):
    tell(task_finished, failed(started(told())))
    record = record_of("elsewhere-1")
    assert (record.status, record.error, record.exception_class) == ("failed", "no", "builtins.ValueError")
    assert record.started_at is not None


def test_a_rollback_takes_the_record_with_it_and_the_end_brings_it_back(record_of):
    result = told()
    with transaction.atomic():
        tell(task_enqueued, result)
        transaction.set_rollback(True)
    assert not TaskRecord.objects.exists()
    tell(task_finished, failed(started(result)))
    assert record_of(result.id).status == "failed"


def test_a_name_that_is_too_long_is_shortened():
    tell(task_enqueued, told(id="x" * 5_000))
    assert len(TaskRecord.objects.get().task_name) == 64


def test_a_task_of_a_manager_with_the_same_name_is_left_alone(manager, record_of):
    manager.launch_async_task("tests.testapp.tasks.add", 1, task_key="elsewhere-1")
    tell(task_enqueued, told())
    tell(task_finished, failed(started(told())))
    assert (record_of("elsewhere-1").status, record_of("elsewhere-1").source) == ("pending", "")


# What is not touched


def test_it_can_be_turned_off(settings):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_TRACK": "own"}
    assert tasks.multiply.using(backend="immediate").enqueue(2, 3).return_value == 6
    assert not TaskRecord.objects.exists()


def test_without_a_history_nothing_is_written(settings):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_RECORDER": None}
    assert tasks.multiply.using(backend="immediate").enqueue(2, 3).return_value == 6
    assert not TaskRecord.objects.exists()


@pytest.mark.parametrize("statement", ["SELECT", "INSERT", "UPDATE"])
def test_a_failure_of_ours_does_not_touch_the_task(statement, caplog):
    with database_refuses(statement, 50):
        assert tasks.multiply.using(backend="immediate").enqueue(2, 3).return_value == 6
    assert "could not be observed" in caplog.text


@pytest.mark.skipif(connection.vendor != "sqlite", reason="PostgreSQL has no single writer.")
def test_a_writer_that_does_not_end_delays_no_task_for_long(caplog):
    connection.ensure_connection()
    with closing(sqlite3.connect(connection.settings_dict["NAME"], isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert tasks.multiply.using(backend="immediate").enqueue(2, 3).return_value == 6
        other.execute("ROLLBACK")
    assert "could not be observed" in caplog.text
    with connection.cursor() as cursor:
        assert cursor.execute("PRAGMA busy_timeout").fetchone() == (30_000,)


def test_a_failure_of_ours_does_not_touch_the_transaction(make_projects, caplog):
    with transaction.atomic():
        (project,) = make_projects(1)
        with database_refuses("INSERT INTO", 50):
            tell(task_enqueued, told())
        project.name = "changed"
        project.save()
    assert "could not be observed" in caplog.text
    project.refresh_from_db()
    assert project.name == "changed"


def test_a_transaction_that_is_lost_already_stays_lost(caplog):
    with transaction.atomic():
        connection.set_rollback(True)
        tell(task_enqueued, told())
    assert not TaskRecord.objects.exists()


def test_signals_that_are_sent_in_an_event_loop_are_heard(record_of):
    async def backend() -> None:
        tell(task_enqueued, told())
        tell(task_started, started(told()))
        tell(task_finished, failed(started(told())))

    asyncio.run(backend())
    wait_until(lambda: TaskRecord.objects.failed().exists(), "the end is recorded")
    assert list(record_of("elsewhere-1").events.values_list("event", flat=True)) == ["create", "start", "fail"]
    observe._executor().shutdown()
    observe._executor.cache_clear()


IN_A_CHILD = """
import os, django
django.setup()
from powercrud_dashboard.contrib.django_tasks import observe
observe._executor().submit(print, "parent", flush=True).result()
if child := os.fork():
    raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
observe._executor().submit(print, "child", flush=True).result(timeout=30)
os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="There is no fork.")
def test_a_child_process_has_a_thread_of_its_own_for_them():
    # Another process, as this one has threads.
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", IN_A_CHILD], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout.split()) == (0, ["parent", "child"]), ran.stderr


# Cleanup


def test_cleanup_does_not_call_them_abandoned(manager, record_of):
    tell(task_started, started(told()))
    TaskRecord.objects.update(created_at=timezone.now() - timedelta(hours=5))
    summary = manager.cleanup_completed_tasks()
    assert summary["cleaned"] == {}
    assert record_of("elsewhere-1").status == "in_progress"


def test_cleanup_forgets_those_of_which_nothing_is_heard(manager):
    long_ago = timezone.now() - timedelta(seconds=SILENT_AFTER + 60)
    tell(task_enqueued, told(id="silent", enqueued_at=long_ago))
    tell(task_enqueued, told(id="young"))
    tell(task_enqueued, told(tasks.multiply.using(backend="dummy", run_after=timezone.now()), id="later"))
    tell(task_enqueued, told(id="started", enqueued_at=long_ago))
    tell(task_started, started(told(id="started")))
    TaskRecord.objects.filter(task_name="later").update(created_at=long_ago)
    tell(task_finished, failed(started(told(id="ended", enqueued_at=long_ago))))
    assert manager.cleanup_completed_tasks(dry_run=True)["pruned_records"] == 1
    assert manager.cleanup_completed_tasks()["pruned_records"] == 1
    assert set(TaskRecord.objects.values_list("task_name", flat=True)) == {"young", "later", "started", "ended"}


# Pages


@pytest.mark.markup
def test_the_pages_mark_them_and_offer_nothing_that_can_not_be_done(boss, observed_failure):
    page = boss.get(reverse("admin:powercrud_dashboard_taskrecord_change", args=[observed_failure.pk])).text
    assert "Observed through" in page
    assert "Django’s tasks framework" in page or "Django&#x27;s tasks framework" in page
    for address in ("retry", "edit", "cancel", "pause", "run_now"):
        name = f"admin:powercrud_dashboard_taskrecord_{address}"
        assert reverse(name, args=[observed_failure.pk]) not in page
    assert reverse("admin:powercrud_dashboard_taskrecord_dismiss", args=[observed_failure.pk]) in page
    rows = boss.get(reverse("admin:powercrud_dashboard_taskrecord_changelist"), {"status": "failed"}).text
    assert ">observed<" in rows
    assert f"pcrud-retry-{observed_failure.pk}" not in rows
    assert f"pcrud-delete-{observed_failure.pk}" in rows


@pytest.mark.parametrize("action", ["retry", "cancel", "pause", "resume", "run_now"])
def test_what_can_not_be_done_is_refused(boss, observed_failure, action):
    address = reverse(f"admin:powercrud_dashboard_taskrecord_{action}", args=[observed_failure.pk])
    assert boss.post(address).status_code == 403
    assert TaskRecord.objects.get().status == "failed"


def test_a_manager_does_not_retry_them(manager, observed_failure):
    with pytest.raises(TaskNotRetryable, match="only observed"):
        manager.retry_task(observed_failure.task_name)
    assert not manager.cancel_task(observed_failure.task_name)


def test_a_bulk_action_leaves_them_out(boss, observed_failure, manager):
    address = reverse("admin:powercrud_dashboard_taskrecord_bulk")
    answer = boss.post(address, {"action": "retry", "selected": [observed_failure.pk]})
    assert "is only observed" in answer.text
    own = manager.launch_async_task("tests.testapp.tasks.fail", "again")
    run_queue()
    all_failed = {"action": "retry", "all": "1", "filter": "status=failed"}
    question = boss.post(address, all_failed).text
    assert "again" in question
    assert "multiply" not in question
    boss.post(address, {**all_failed, "confirmed": "yes"})
    assert [record.retry_of.task_name for record in TaskRecord.objects.exclude(retry_of=None)] == [own]


def test_one_that_nobody_ends_can_be_deleted(boss):
    tasks.nothing.using(backend="dummy").enqueue()
    record = TaskRecord.objects.get()
    page = boss.get(reverse("admin:powercrud_dashboard_taskrecord_change", args=[record.pk])).text
    assert f"delete:{record.pk}" in page
    address = reverse("admin:powercrud_dashboard_taskrecord_bulk")
    boss.post(address, {"row": f"delete:{record.pk}", "confirmed": "yes"})
    assert not TaskRecord.objects.exists()


def test_a_failure_can_be_dismissed(boss, observed_failure):
    boss.post(reverse("admin:powercrud_dashboard_taskrecord_dismiss", args=[observed_failure.pk]), {"note": "known"})
    assert TaskRecord.objects.get().resolution == "dismissed"


def test_the_other_backends_are_there():
    assert set(task_backends.settings) == {"default", "immediate", "dummy"}
