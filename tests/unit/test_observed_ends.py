"""What is kept of tasks that plain django-q2 has run: one record for each, however often it is told."""

from __future__ import annotations

import traceback
import uuid
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from django_q.exceptions import TimeoutException

from powercrud_dashboard.engine import observed, plain, statistics
from powercrud_dashboard.engine.observed_rows import EndedTask, PlainTask
from powercrud_dashboard.engine.spec import TaskSpec
from powercrud_dashboard.models import TaskEvent, TaskRecord, TaskStatistics, search
from powercrud_dashboard.models.database import impatient_transaction
from tests.conftest import POSTGRESQL
from tests.testapp import tasks
from tests.workers import meanwhile

pytestmark = pytest.mark.django_db(transaction=True)

ADD = "tests.testapp.tasks.add"


def text_of(error: BaseException) -> str:
    """Return django-q2's text of a failure."""
    try:
        raise error
    except type(error) as raised:
        return f"{raised} : {traceback.format_exc()}"


def ended(func: str = ADD, **facts: Any) -> EndedTask:
    stopped = timezone.now()
    return EndedTask(
        **{
            "id": uuid.uuid4().hex,
            "name": "four-words-of-django",
            "func": func,
            "args": (6, 3),
            "created_at": stopped - timedelta(seconds=5),
            "started_at": stopped - timedelta(seconds=2),
            "stopped_at": stopped,
            "success": True,
            "result": 2,
            "worker_host": "web-1",
            "worker_pid": 4711,
            **facts,
        }
    )


def failed(error: BaseException, **facts: Any) -> EndedTask:
    return ended(success=False, result=text_of(error), **facts)


def lines_of(task: EndedTask) -> list[str]:
    return [line.event for line in TaskEvent.objects.all().of_task(task.id)]


def test_an_ended_task_is_recorded_once(record_of):
    task = ended(kwargs={"a": 1}, group="night", cluster="slow", options={"timeout": 60})
    assert observed.record_ended([task, ended()]) == 2
    assert observed.record_ended([task]) == 0
    record = record_of(task.id)
    assert (record.source, record.status, record.func, record.label) == ("django_q", "success", ADD, ADD)
    assert (record.task_args, record.task_kwargs, record.result) == ([6, 3], {"a": 1}, 2)
    assert (record.group, record.cluster, record.worker_host, record.worker_pid) == ("night", "slow", "web-1", 4711)
    assert (record.created_at, record.started_at, record.finished_at) == (
        task.created_at,
        task.started_at,
        task.stopped_at,
    )
    assert (record.run_time, record.attempts, record.resolution) == (timedelta(seconds=2), 1, "")
    spec = TaskSpec.from_signed(record.payload)
    assert (spec.func, spec.args, spec.kwargs, spec.options) == (ADD, (6, 3), {"a": 1}, {"timeout": 60})
    assert lines_of(task) == ["create", "start", "complete"]


def test_a_failure_tells_its_class_its_text_and_its_pattern(record_of):
    several_lines = failed(ValueError("first\nsecond 4711"))
    outside = failed(TimeoutException("Task exceeded maximum timeout value (5 seconds)"))
    empty = failed(KeyError())
    noted = ZeroDivisionError("no")
    noted.add_note("seen on Monday")
    with_note = failed(noted)
    assert observed.record_ended([several_lines, outside, empty, with_note]) == 4
    record = record_of(several_lines.id)
    assert (record.status, record.failure_reason, record.resolution) == ("failed", "error", "open")
    assert (record.exception_class, record.error) == ("builtins.ValueError", "first\nsecond 4711")
    assert record.error_pattern == "ValueError: second …"
    assert record.traceback.startswith("Traceback (most recent call last)")
    assert lines_of(several_lines) == ["create", "start", "fail"]
    assert record_of(outside.id).failure_reason == "timeout"
    assert record_of(empty.id).exception_class == "builtins.KeyError"
    assert record_of(with_note.id).exception_class == "builtins.ZeroDivisionError"


def test_a_task_of_powercrud_that_returns_false_has_failed(record_of):
    theirs, other = ended("powercrud.tasks.bulk_delete_task", result=False), ended(result=False)
    observed.record_ended([theirs, other])
    assert (record_of(theirs.id).status, record_of(theirs.id).resolution) == ("failed", "open")
    assert record_of(other.id).status == "success"


def test_the_row_of_a_managers_task_is_left_alone(manager, record_of):
    name = manager.launch_async_task(tasks.add, 1, 2)
    assert observed.record_ended([ended(name=name, args=())], by_rows=True) == 0
    assert TaskRecord.objects.get().task_name == name
    # One of plain django-q2 may have been given the same name.
    assert observed.record_ended([ended(name=name)], by_rows=True) == 1


def test_where_no_history_is_kept_nothing_is_written(settings):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_RECORDER": None}
    assert observed.record_ended([ended()]) == 0
    assert not TaskRecord.objects.exists()


def test_a_failed_task_that_django_q_runs_again_gets_its_newer_end(record_of):
    task = failed(ValueError("no"))
    later = task.stopped_at + timedelta(seconds=1)
    again = ended(id=task.id, started_at=later, stopped_at=later)
    assert observed.record_ended([task]) == 1
    assert observed.record_ended([again]) == 1
    assert observed.record_ended([task]) == 0
    record = record_of(task.id)
    assert (record.status, record.attempts, record.error, record.resolution) == ("success", 2, "", "")
    assert lines_of(task) == ["create", "start", "fail", "start", "complete"]
    statistics.count_ended()
    assert sum(row.failed for row in TaskStatistics.objects.all()) == 1
    assert sum(row.completed for row in TaskStatistics.objects.all()) == 1


@pytest.mark.skipif(not POSTGRESQL, reason="SQLite has one writer")
def test_a_newer_end_is_locked_in_the_turn_of_the_statistics():
    """Whoever counts ended tasks has the turn, and then locks them."""
    task = failed(ValueError("no"))
    observed.record_ended([task])
    later = task.stopped_at + timedelta(seconds=1)
    with CaptureQueriesContext(connection) as queries:
        observed.record_ended([replace(task, started_at=later, stopped_at=later)])
    statements = [query["sql"] for query in queries]
    first = next(sql for sql in statements if "pg_advisory_xact_lock" in sql or " FOR " in sql)
    assert "pg_advisory_xact_lock" in first


def test_what_a_worker_knows_of_an_end_is_added_to_what_the_row_has_told(record_of):
    task = ended()
    of_row = replace(task, started_at=None, worker_host="", worker_pid=None)
    assert observed.record_ended([of_row], by_rows=True) == 1
    assert record_of(task.id).run_time == timedelta()
    for _time in range(2):
        assert observed.record_ended([task]) == 0
    record = record_of(task.id)
    assert (record.started_at, record.run_time, record.worker_pid) == (task.started_at, timedelta(seconds=2), 4711)
    assert (record.status, record.attempts, record.finished_at) == ("success", 1, task.stopped_at)
    assert sorted(lines_of(task)) == ["complete", "create", "start"]


@pytest.mark.parametrize("success", [True, False])
def test_a_further_run_of_a_task_that_has_succeeded_is_in_its_timeline(record_of, success):
    task = ended()
    again = (ended if success else partial(failed, ValueError("late")))(id=task.id, started_at=task.stopped_at)
    assert observed.record_ended([task, again]) == 2
    # Both can be told again.
    assert observed.record_ended([again, task]) == 0
    record = record_of(task.id)
    assert (record.status, record.attempts, record.finished_at) == ("success", 2, task.stopped_at)
    assert lines_of(task) == ["create", "start", "complete", "start", "complete" if success else "fail"]


def two_runs(*, first: bool, second: bool, apart: float = 90) -> tuple[EndedTask, EndedTask]:
    """Return two runs of 100 seconds of which the second begins so long after the first; both are recorded as begun."""
    began = timezone.now() - timedelta(hours=1)
    runs = []
    for number, success in enumerate((first, second)):
        at = began + timedelta(seconds=number * apart)
        facts = {} if success else {"success": False, "result": text_of(ValueError(f"no {number}"))}
        place = {"worker_host": "web-1", "worker_pid": number + 1}
        run = ended(created_at=began, started_at=at, stopped_at=at + timedelta(seconds=100), **place, **facts)
        runs.append(replace(run, id=runs[0].id) if runs else run)
    for run in runs:
        queued = PlainTask(run.id, run.name, run.func, run.args, created_at=run.created_at)
        with impatient_transaction():
            observed.record_started(queued, run.started_at, worker_host=run.worker_host, worker_pid=run.worker_pid)
    return runs[0], runs[1]


def tell_twice(*tasks: EndedTask, **how: Any) -> list[int]:
    return [observed.record_ended([task], **how) for task in tasks for _time in range(2)]


@pytest.mark.parametrize("second", [True, False])
def test_a_task_that_takes_longer_than_its_redelivery_keeps_its_success(record_of, second):
    one, other = two_runs(first=True, second=second)
    assert tell_twice(one, other) == [1, 0, 1, 0]
    record = record_of(one.id)
    assert (record.status, record.finished_at, record.attempts) == ("success", one.stopped_at, 2)
    assert lines_of(one) == ["create", "start", "start", "complete", "complete" if second else "fail"]


@pytest.mark.parametrize("second", [True, False])
def test_the_failure_of_a_run_that_was_overtaken_is_in_the_timeline_of_the_newer_one(record_of, second):
    one, other = two_runs(first=False, second=second)
    assert tell_twice(one) == [1, 0]
    record = record_of(one.id)
    assert (record.status, record.attempts, record.worker_pid) == ("in_progress", 2, 2)
    assert tell_twice(other) == [1, 0]
    record = record_of(one.id)
    assert (record.status, record.attempts) == ("success" if second else "failed", 2)
    assert (record.started_at, record.finished_at) == (other.started_at, other.stopped_at)
    assert lines_of(one) == ["create", "start", "start", "fail", "complete" if second else "fail"]


def test_a_success_that_is_told_after_a_later_failure_counts(record_of):
    one, other = two_runs(first=True, second=False)
    assert tell_twice(other, one) == [1, 0, 1, 0]
    record = record_of(one.id)
    assert (record.status, record.attempts, record.resolution) == ("success", 2, "")


def test_what_a_row_tells_of_an_earlier_run_is_not_the_end_of_a_lost_one(record_of):
    one, _other = two_runs(first=False, second=True, apart=200)
    plain.give_up([one.id])
    assert tell_twice(replace(one, started_at=None, worker_host="", worker_pid=None), by_rows=True) == [1, 0]
    assert tell_twice(one) == [0, 0]
    record = record_of(one.id)
    assert (record.status, record.failure_reason, record.attempts) == ("failed", "worker_lost", 2)


def test_a_row_may_tell_of_an_earlier_run_before_its_worker_does(record_of):
    one, other = failed(ValueError("one")), failed(ValueError("two"))
    later = {"started_at": one.stopped_at + timedelta(seconds=1), "stopped_at": one.stopped_at + timedelta(seconds=2)}
    assert tell_twice(replace(other, id=one.id, **later)) == [1, 0]
    assert tell_twice(replace(one, started_at=None), by_rows=True) == [1, 0]
    assert tell_twice(one) == [0, 0]
    assert (record_of(one.id).attempts, record_of(one.id).error) == (2, "two")
    assert lines_of(one) == ["create", "start", "fail", "start", "fail"]


def test_a_queued_task_that_ends_by_its_row_has_run(record_of):
    task = ended()
    observed.record_queued([PlainTask(task.id, task.name, task.func, task.args, created_at=task.created_at)])
    assert tell_twice(replace(task, started_at=None), by_rows=True) == [1, 0]
    assert record_of(task.id).attempts == 1
    assert tell_twice(task) == [0, 0]
    assert (record_of(task.id).attempts, record_of(task.id).started_at) == (1, task.started_at)


def row_of(task: EndedTask) -> EndedTask:
    """What django-q2's row tells of a run."""
    return replace(task, started_at=None, worker_host="", worker_pid=None)


def test_the_row_of_an_overtaken_failure_that_is_known_does_not_end_the_newer_run(record_of):
    one, _other = two_runs(first=False, second=True, apart=90)
    assert tell_twice(one) == [1, 0]
    assert tell_twice(row_of(one), by_rows=True) == [0, 0]
    assert record_of(one.id).status == "in_progress"


@pytest.mark.parametrize("apart", [90, 200])
def test_the_success_of_an_overtaken_run_has_its_own_start_and_worker(record_of, apart):
    one, other = two_runs(first=True, second=True, apart=apart)
    observed.record_ended([one])
    observed.record_ended([other])
    record = record_of(one.id)
    assert (record.started_at, record.finished_at, record.worker_pid) == (one.started_at, one.stopped_at, 1)


def test_an_overtaken_run_whose_start_was_not_recorded_counts(record_of):
    at = timezone.now() - timedelta(hours=1)
    one = ended(created_at=at, started_at=at, stopped_at=at + timedelta(seconds=100))
    began = at + timedelta(seconds=90)
    two = replace(one, started_at=began, stopped_at=at + timedelta(seconds=190))
    with impatient_transaction():
        observed.record_started(PlainTask(one.id, one.name, one.func, one.args, created_at=at), began)
    observed.record_ended([one])
    observed.record_ended([two])
    assert record_of(one.id).attempts == 2


@pytest.mark.parametrize("success", [True, False])
def test_a_run_that_its_row_tells_before_its_worker_counts_once(record_of, success):
    one, other = two_runs(first=success, second=False, apart=90)
    observed.record_ended([replace(other, stopped_at=one.stopped_at - timedelta(seconds=2))])
    observed.record_ended([row_of(one)], by_rows=True)
    observed.record_ended([one])
    assert record_of(one.id).attempts == 2


def test_queued_tasks_are_recorded_though_somebody_else_records_one_at_the_same_moment():
    now = timezone.now()
    queued = [PlainTask(uuid.uuid4().hex, "n", ADD, created_at=now) for _number in range(2)]

    def insert() -> None:
        TaskRecord.objects.create(task_name=queued[0].id, source="django_q", created_at=now)

    with meanwhile(insert, before='INSERT INTO "powercrud_dashboard_taskrecord"'):
        observed.record_queued(queued)
    assert TaskRecord.objects.filter(task_name__in=[task.id for task in queued]).count() == 2


def test_an_end_is_recorded_though_somebody_else_records_the_launch_at_the_same_moment(record_of):
    now = timezone.now()
    creation = {"source": "django_tasks", "func": ADD, "timestamp": now}

    def insert() -> None:
        TaskRecord.objects.create(task_name="1", source="django_tasks", created_at=now)

    with meanwhile(insert, before='INSERT INTO "powercrud_dashboard_taskrecord"'):
        observed.record("1", creation, [("start", {"attempt": 1, "timestamp": now}), ("complete", {"timestamp": now})])
    assert record_of("1").status == "success"


def test_names_of_secret_arguments_are_known(record_of):
    task = ended()
    observed.record_ended([task])
    assert record_of(task.id).argument_names == ["left", "right"]


def test_arguments_that_cannot_be_kept_are_shown_but_not_signed(record_of):
    task = ended(args=(lambda: None,))
    observed.record_ended([task])
    record = record_of(task.id)
    assert record.payload == ""
    assert "lambda" in record.task_args[0]


def test_recorded_tasks_are_found_and_counted(record_of):
    observed.record_ended([ended(), failed(ValueError("unheard"))])
    wanted = [search.Words.of("unheard", "text")]
    assert search.matching(TaskRecord.objects.all(), wanted).get().status == "failed"
    assert statistics.count_ended() == 2
    assert {(row.completed, row.failed) for row in TaskStatistics.objects.all()} == {(1, 1)}


def test_many_are_recorded_in_parts():
    many = [ended() for _ in range(observed.WRITTEN_AT_ONCE + 5)]
    assert observed.record_ended(many) == len(many)
    assert TaskRecord.objects.count() == len(many)
    assert TaskEvent.objects.count() == 3 * len(many)
