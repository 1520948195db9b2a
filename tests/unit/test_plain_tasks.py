"""Tasks of plain django-q2: which are observed, what people may do to them, and how long they are kept."""

from __future__ import annotations

import logging
import os
import socket
import sqlite3
import unittest
import uuid
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection, transaction
from django.test import SimpleTestCase
from django.urls import reverse
from django.utils import timezone
from django_q.brokers import get_broker
from django_q.models import OrmQ, Task
from django_q.signing import SignedPackage
from django_q.tasks import async_task

from powercrud_dashboard.dashboard.pulse import Pulse
from powercrud_dashboard.engine import alerts, missed, plain, processes, statistics
from powercrud_dashboard.engine.health import Health
from powercrud_dashboard.engine.plain import Run
from powercrud_dashboard.engine.vitals import waiting_by_queue
from powercrud_dashboard.exceptions import TaskNotRetryable
from powercrud_dashboard.models import Alert, TaskEvent, TaskRecord, TaskStatistics, WorkerProcess
from powercrud_dashboard.q2 import observe, queue
from tests.conftest import REDIS
from tests.testapp import tasks
from tests.workers import silence

pytestmark = pytest.mark.django_db(transaction=True)

ADD, FAIL = "tests.testapp.tasks.add", "tests.testapp.tasks.fail"


@pytest.fixture(autouse=True)
def _empty_queue() -> None:
    get_broker().purge_queue()


def told(func: Any = ADD, *args: Any, **facts: Any) -> dict[str, Any]:
    """Return a message as django-q2 has it."""
    launched = timezone.now() - timedelta(seconds=10)
    message = {"id": uuid.uuid4().hex, "name": "given", "func": func, "args": args, "kwargs": {}, "started": launched}
    return {**message, "cluster": "pcrud-tests", **facts}


def ended(func: Any = ADD, *args: Any, success: bool = True, **facts: Any) -> Run:
    result = {"success": success, "result": 3 if success else "no : Traceback\nValueError: no"}
    message = told(func, *args, **{"stopped": timezone.now(), **result, **facts})
    return Run(message, message["stopped"] - timedelta(seconds=2), "web-1", 7)


@pytest.fixture
def failure(record_of) -> TaskRecord:
    run = ended(FAIL, success=False, group="night")
    plain.record_ends([run])
    return record_of(run.message["id"])


def waiting_task() -> TaskRecord:
    task_id = async_task(ADD, 1, 2)
    assert plain.record_queued(observe.waiting(10)) == 1
    return TaskRecord.objects.get(task_name=task_id)


# Which are observed


def test_patterns_decide_what_is_observed(settings):
    settings.POWERCRUD_SETTINGS = {
        "DASHBOARD_TRACK_INCLUDE": ["shop.*", "tests.*"],
        "DASHBOARD_TRACK_EXCLUDE": ["shop.tasks.ping*"],
    }
    observed = [path for path in ("shop.tasks.price", "shop.tasks.ping_all", "blog.publish") if is_observed(path)]
    assert observed == ["shop.tasks.price"]
    assert is_observed(tasks.add)
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_TRACK": "own"}
    assert not is_observed("shop.tasks.price")


def is_observed(func: Any) -> bool:
    return plain.is_observed(told(func))


def test_tasks_of_this_package_are_not_observed(manager):
    manager.launch_async_task(tasks.add, 1, 2)
    assert not any(map(plain.is_observed, observe.waiting(10)))
    assert not is_observed("powercrud_dashboard.schedules.cleanup_async_artifacts")
    assert not plain.is_observed(told("math.floor", name="pcrud-probe-1"))


def test_of_a_sampled_function_a_part_is_recorded_and_all_are_counted(settings, record_of):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_TRACK_SAMPLE": {"tests.testapp.tasks.a*": 0.2}}
    runs = [ended() for _ in range(400)]
    counted = [run for run in runs if plain.is_only_counted(run)]
    assert 250 < len(counted) < 390
    plain.count_ends(counted)
    plain.record_ends(run for run in runs if run not in counted)
    statistics.count_ended()
    assert sum(row.completed for row in TaskStatistics.objects.all()) == 400
    assert sum(row.run_ms for row in TaskStatistics.objects.all()) == 400 * 2_000
    assert not plain.is_only_counted(ended(success=False))


def test_a_synchronous_task_is_recorded(record_of):
    task_id = async_task(ADD, 1, 2, sync=True)
    record = record_of(task_id)
    assert (record.status, record.result, record.label) == ("success", 3, ADD)
    assert record.started_at >= record.created_at
    with pytest.raises(ValueError, match="it broke"):
        async_task(FAIL, sync=True, task_name="by hand")
    failed = TaskRecord.objects.get(label="by hand")
    assert (failed.status, failed.exception_class, failed.error) == ("failed", "builtins.ValueError", "it broke")


def test_an_error_of_the_observation_never_touches_the_task(settings, caplog):
    @contextmanager
    def refusing():
        def execute(execute, sql, params, many, context):
            if "taskrecord" in sql:
                raise RuntimeError("no history today")
            return execute(sql, params, many, context)

        with connection.execute_wrapper(execute):
            yield

    with refusing():
        task_id = async_task(ADD, 1, 2, sync=True)
    assert Task.objects.get(id=task_id).result == 3
    assert "could not be observed" in caplog.text
    assert not TaskRecord.objects.exists()


@pytest.mark.skipif(connection.vendor != "sqlite", reason="PostgreSQL has no single writer.")
def test_a_writer_that_does_not_end_holds_up_no_synchronous_task_for_long(settings, caplog):
    connection.ensure_connection()
    with closing(sqlite3.connect(connection.settings_dict["NAME"], isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        # It fails, so that django-q2 itself writes nothing.
        with pytest.raises(ValueError, match="it broke"):
            async_task(FAIL, sync=True)
        other.execute("ROLLBACK")
    assert "could not be observed" in caplog.text
    assert not TaskRecord.objects.exists()


def test_the_end_of_a_synchronous_task_is_counted_after_its_transaction(settings):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_TRACK_SAMPLE": {ADD: 0.0}}
    with transaction.atomic():
        async_task(ADD, 1, 2, sync=True)
        assert not TaskStatistics.objects.exists()
    assert [row.completed for row in TaskStatistics.objects.all()] == [1]


def test_a_task_of_powercrud_that_returns_false_is_recorded_though_its_function_is_sampled(settings, record_of):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_TRACK_SAMPLE": {"powercrud.*": 0.0}}
    run = ended("powercrud.tasks.bulk_update_task", result=False)
    assert not plain.is_only_counted(run)
    assert plain.is_only_counted(ended("powercrud.tasks.bulk_update_task", result=True))
    plain.record_ends([run])
    assert record_of(run.message["id"]).status == "failed"


class WithoutDatabase(SimpleTestCase):
    __test__ = False

    def runTest(self) -> None:
        assert plain.record_ends([ended()]) == 0


def test_where_a_test_forbids_the_database_nothing_is_recorded(caplog):
    result = unittest.TestResult()
    unittest.TestSuite([WithoutDatabase()]).run(result)
    assert result.wasSuccessful(), [*result.errors, *result.failures]
    own = [record for record in caplog.records if record.name.startswith("powercrud_dashboard")]
    assert [record.levelname for record in own if record.levelno > logging.DEBUG] == []


# What people do to them


def test_a_queued_task_is_cancelled_by_taking_its_message_out(manager, record_of):
    record = waiting_task()
    assert record.status == "pending"
    assert plain.record_queued(observe.waiting(10)) == 0
    assert manager.cancel_task(record.task_name, user="Anna")
    assert record_of(record.task_name).status == "cancelled"
    assert get_broker().queue_size() == 0
    assert not manager.cancel_task(record.task_name)


def test_a_task_that_a_cluster_has_taken_is_stopped_when_it_begins(boss, record_of):
    record = waiting_task()
    (message,) = observe.waiting(10)
    if REDIS:
        get_broker().dequeue()
    else:
        OrmQ.objects.update(lock=timezone.now() + timedelta(minutes=1))
    boss.post(reverse("admin:powercrud_dashboard_taskrecord_cancel", args=[record.pk]))
    assert record_of(record.task_name).status == "pending"
    assert OrmQ.objects.count() == (0 if REDIS else 1)
    plain.record_running(message, timezone.now())
    assert plain.is_to_stop(record.task_name)


def test_a_running_task_is_asked_to_stop_once(manager, record_of):
    message = told()
    plain.record_running(message, timezone.now())
    assert not plain.is_to_stop(message["id"])
    assert manager.cancel_task(message["id"], user="Anna")
    assert not manager.cancel_task(message["id"])
    assert plain.is_to_stop(message["id"])
    assert record_of(message["id"]).status == "in_progress"
    stopped = ended(success=False, id=message["id"])
    text = "The task was cancelled. : Traceback\npowercrud_dashboard.worker.observe.PlainTaskCancelled: The task was"
    stopped.message["result"] = f"{text} cancelled.\n"
    plain.record_ends([stopped])
    assert record_of(message["id"]).status == "cancelled"


def test_a_retry_is_a_new_plain_task_that_settles_the_failure(manager, failure, record_of, superuser):
    name = manager.retry_task(failure.task_name, user=superuser)
    (message,) = observe.waiting(10)
    assert (message["id"], message["func"], message["group"]) == (name, FAIL, "night")
    new = record_of(name)
    assert (new.status, new.source, new.user, new.retry_of) == ("pending", "django_q", superuser, failure)
    with pytest.raises(TaskNotRetryable, match="its retry"):
        manager.retry_task(failure.task_name)
    plain.record_ends([Run({**ended().message, **message, "started": new.created_at}, new.created_at)])
    assert record_of(name).status == "success"
    assert record_of(failure.task_name).resolution == "resolved"
    assert [line.event for line in TaskEvent.objects.all().of_task(name)] == ["create", "start", "complete"]


def test_a_retry_that_succeeds_when_it_is_delivered_again_settles_the_failure(manager, failure, record_of):
    name = manager.retry_task(failure.task_name, user="Anna")
    plain.record_ends([ended(FAIL, id=name, success=False)])
    assert record_of(failure.task_name).superseded
    plain.record_ends([replace(ended(FAIL, id=name), started_at=timezone.now())])
    assert record_of(name).status == "success"
    settled = record_of(failure.task_name)
    assert settled.resolution == "resolved"
    line = settled.events.get(event="resolve")
    assert (line.actor_label, line.payload) == ("Anna", {"new_task_name": name})


def test_a_task_whose_function_is_gone_is_not_retried(manager, record_of):
    run = ended("shop.tasks.gone", success=False)
    plain.record_ends([run])
    with pytest.raises(ValueError, match="shop"):
        manager.retry_task(run.message["id"])
    assert observe.waiting(10) == []
    assert TaskRecord.objects.count() == 1


def test_a_task_of_a_schedule_under_a_lock_is_not_retried_without_it(manager, failure, settings):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_SCHEDULE_LOCKS": {"night": True}}
    with pytest.raises(TaskNotRetryable, match="Run the schedule"):
        manager.retry_task(failure.task_name)
    assert not OrmQ.objects.exists()
    assert TaskRecord.objects.get().resolution == "open"


def test_a_plain_task_is_not_paused(manager):
    record = waiting_task()
    assert not manager.pause_task(record.task_name)
    assert TaskRecord.objects.get().status == "pending"


def test_the_task_page_offers_what_can_be_done(boss, failure):
    page = boss.get(reverse("admin:powercrud_dashboard_taskrecord_change", args=[failure.pk])).content.decode()
    assert "django-q2" in page
    assert reverse("admin:powercrud_dashboard_taskrecord_retry", args=[failure.pk]) in page
    waiting = boss.get(
        reverse("admin:powercrud_dashboard_taskrecord_change", args=[waiting_task().pk])
    ).content.decode()
    assert "/cancel/" in waiting
    assert "/pause/" not in waiting


def retried_by(boss, **chosen: Any) -> int:
    """Retry these on the pages; return how many were."""
    before = TaskRecord.objects.count()
    bulk = reverse("admin:powercrud_dashboard_taskrecord_bulk")
    boss.post(bulk, {"action": "retry", "confirmed": "yes", **chosen})
    return TaskRecord.objects.count() - before


def test_many_are_retried_as_one_is(boss):
    runs = [ended(FAIL, success=False) for _number in range(3)]
    plain.record_ends(runs)
    failures = boss.get(reverse("admin:powercrud_dashboard_taskrecord_failures")).content.decode()
    assert 'value="retry"' in failures
    first = TaskRecord.objects.get(task_name=runs[0].message["id"])
    assert retried_by(boss, selected=[first.pk]) == 1
    assert retried_by(boss, all="1", filter="status=failed&function=tests.testapp.tasks.fail") == 2
    assert len(observe.waiting(10)) == 3


def test_the_command_line_retries_them(failure):
    out = StringIO()
    call_command("pcrud", "retry", "--status", "failed", "--function", FAIL, "--yes", stdout=out)
    assert "1 task retried, 0 refused" in out.getvalue()
    assert len(observe.waiting(10)) == 1


def test_what_can_not_be_launched_again_is_refused_with_the_reason(boss):
    plain.record_ends([ended(FAIL, lambda: None, success=False)])
    bulk = reverse("admin:powercrud_dashboard_taskrecord_bulk")
    answer = boss.post(
        bulk, {"action": "retry", "all": "1", "filter": "status=failed", "confirmed": "yes"}, follow=True
    )
    assert "1 task was not changed" in answer.text
    assert TaskRecord.objects.count() == 1


# What the broker delivers again


def delivered(message: dict[str, Any], *, ago: timedelta) -> None:
    """Let a cluster have taken the message so long ago: the broker delivers it again a minute after that."""
    row = OrmQ.objects.get()
    OrmQ.objects.update(lock=timezone.now() - ago + timedelta(seconds=queue.redelivery_interval("")))
    message.update(ack_id=row.pk)


@pytest.fixture
def taken() -> dict[str, Any]:
    """The message of a task that a cluster has taken ten seconds ago."""
    async_task(FAIL, task_name="given")
    (message,) = observe.waiting(10)
    delivered(message, ago=timedelta(seconds=10))
    return message


def begun(message: dict[str, Any], *, ago: float) -> datetime:
    moment = timezone.now() - timedelta(seconds=ago)
    plain.record_running(message, moment)
    return moment


def failed(message: dict[str, Any], began: datetime) -> Run:
    end = {"success": False, "result": "no : Traceback\nValueError: no", "stopped": timezone.now()}
    return Run({**message, **end}, began, "web-1", 7)


def test_a_lost_task_that_is_delivered_again_runs_again(record_of):
    message = told(FAIL)
    first = begun(message, ago=50)
    TaskRecord.objects.update(worker_pid=1)
    assert missed.give_up(plain.seem_lost()) == 1
    assert record_of(message["id"]).resolution == "open"
    second = begun(message, ago=5)
    # Its worker tries again if it does not know whether that was written.
    plain.record_running(message, second)
    record = record_of(message["id"])
    assert (record.status, record.attempts, record.started_at) == ("in_progress", 2, second)
    assert (record.resolution, record.failure_reason, record.finished_at) == ("", "", None)
    assert record.worker_pid == os.getpid()
    plain.record_ends([failed(message, second)])
    record = record_of(message["id"])
    assert (record.status, record.attempts, record.resolution) == ("failed", 2, "open")
    lines = ["create", "start", "fail", "start", "fail"]
    assert [line.event for line in TaskEvent.objects.all().of_task(message["id"]).order_by("pk")] == lines
    statistics.count_ended()
    assert sum(row.failed for row in TaskStatistics.objects.all()) == 2
    assert first < second


def test_a_task_that_is_delivered_again_before_its_loss_is_noticed_has_a_new_worker(record_of):
    message = told(FAIL)
    begun(message, ago=50)
    TaskRecord.objects.update(worker_pid=1)
    second = begun(message, ago=5)
    record = record_of(message["id"])
    assert (record.attempts, record.started_at, record.worker_pid) == (2, second, os.getpid())


def test_a_short_second_attempt_is_no_correction_of_the_lost_one(record_of):
    message = told(FAIL)
    begun(message, ago=50)
    assert missed.give_up(plain.seem_lost()) == 1
    second = timezone.now()
    plain.record_ends([failed(message, second)])
    record = record_of(message["id"])
    assert (record.attempts, record.started_at, record.worker_host) == (2, second, "web-1")
    assert record.failure_reason == "error"


def test_what_a_row_tells_of_a_known_end_is_no_other_attempt(record_of):
    run = ended(FAIL, success=False)
    plain.record_ends([run])
    before = record_of(run.message["id"])
    # django-q2's rows do not tell when the task began.
    assert plain.record_ends([Run(run.message)], by_rows=True) == 0
    record = record_of(run.message["id"])
    assert (record.attempts, record.worker_pid, record.started_at) == (1, 7, before.started_at)


@pytest.mark.skipif(REDIS, reason="it delivers no message again")
def test_a_retry_takes_the_old_message_out_of_the_queue(manager, taken, record_of):
    plain.record_ends([failed(taken, timezone.now() - timedelta(seconds=5))])
    again = manager.retry_task(taken["id"])
    assert [message["id"] for message in observe.waiting(10)] == [again]
    # Also if no cluster has taken it since.
    plain.record_ends([failed({**taken, "id": again, "ack_id": OrmQ.objects.get().pk}, timezone.now())])
    manager.retry_task(again)
    assert len(observe.waiting(10)) == 1


@pytest.mark.skipif(REDIS or connection.vendor != "sqlite", reason="there a message keeps its key")
def test_a_retry_takes_also_a_message_that_was_moved_to_the_front(manager, taken, record_of):
    plain.record_ends([failed(taken, timezone.now() - timedelta(seconds=5))])
    OrmQ.objects.update(lock=timezone.now() - timedelta(seconds=1))
    found, message = observe.find(taken["id"], "")
    assert found.move_to_front(message) != message.receipt
    again = manager.retry_task(taken["id"])
    assert [message["id"] for message in observe.waiting(10)] == [again]


def test_a_message_without_a_time_keeps_no_other_from_being_recorded():
    task = {"id": "1", "name": "n", "func": ADD, "args": (), "kwargs": {}, "started": None}
    get_broker().enqueue(SignedPackage.dumps(task))
    other = async_task(ADD, 1, 2)
    assert [message["id"] for message in observe.waiting(10)] == [other]


@pytest.mark.skipif(REDIS, reason="it delivers no message again")
def test_a_task_that_was_delivered_again_is_not_retried(manager, taken, record_of):
    plain.record_ends([failed(taken, timezone.now() - timedelta(seconds=5))])
    # A cluster has just taken it.
    delivered(taken, ago=timedelta())
    with pytest.raises(TaskNotRetryable, match="delivered it again"):
        manager.retry_task(taken["id"])
    assert [message["id"] for message in observe.waiting(10)] == [taken["id"]]
    assert TaskRecord.objects.count() == 1


# What the figures say of them


def test_what_waits_and_runs_is_counted(manager, boss, django_assert_num_queries):
    worker = WorkerProcess.objects.create(identity="1", host=socket.gethostname(), pid=os.getpid(), cluster="other")
    plain.record_running(told(cluster="other"), timezone.now())
    waiting_task()
    manager.launch_async_task(tasks.add, 1)
    for _number in range(3):
        async_task(ADD, 1, 2)
    # With Redis, what nobody has recorded is not counted.
    expected = 2 if REDIS else 5
    with django_assert_num_queries(2):
        pulse = Pulse.now()
    assert (pulse.waiting.number, pulse.busy, pulse.workers) == (expected, 1, 1)
    assert pulse.unserved_queue == queue.current_cluster()
    assert pulse.oldest_wait is not None
    with django_assert_num_queries(1):
        (waiting,) = waiting_by_queue().values()
    assert waiting.tasks == expected
    page = boss.get(reverse("admin:powercrud_dashboard_taskrecord_cluster")).content.decode()
    assert ">given</a>" in page[page.index(f"Process {worker.pid}") :]


def test_messages_that_nobody_takes_are_waited_for(settings):
    async_task(ADD, 1, 2)
    if REDIS:
        plain.record_queued(observe.waiting(10))
        TaskRecord.objects.update(created_at=timezone.now() - timedelta(hours=1))
    OrmQ.objects.update(lock=timezone.now() - timedelta(hours=1))
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_ALERTS": {"queue_depth": {"tasks": 1}}}
    assert Health.now().waiting == 1
    assert Health.now().oldest_wait >= timedelta(hours=1)
    alerts.evaluate()
    assert {"oldest_wait", "queue_depth"} <= set(Alert.objects.values_list("kind", flat=True))


# What is lost, and what is deleted


def test_a_running_task_is_lost_with_its_process(record_of, manager):
    message = told()
    plain.record_running(message, timezone.now())
    running = record_of(message["id"])
    own = WorkerProcess.objects.create(identity="1", host=running.worker_host, pid=running.worker_pid)
    WorkerProcess.objects.filter(pk="1").update(started_at=timezone.now() - timedelta(hours=1))
    assert plain.seem_lost() == set()
    silence(pk=own.pk)
    manager.cleanup_completed_tasks()
    lost = record_of(message["id"])
    assert (lost.status, lost.failure_reason) == ("failed", "worker_lost")
    # The truth wins.
    plain.record_ends([ended(id=message["id"])])
    assert record_of(message["id"]).status == "success"


@pytest.fixture
def this_worker(monkeypatch):
    """This process as a worker, for an hour."""
    monkeypatch.setattr(processes, "_this_process", worker := processes.ThisProcess())
    worker.become_worker("pcrud-tests")
    worker.register()
    WorkerProcess.objects.update(started_at=timezone.now() - timedelta(hours=1))
    return worker


def test_a_worker_that_runs_another_task_has_ended_the_one_before(this_worker):
    before, now = told(), told()
    plain.record_running(before, timezone.now() - timedelta(minutes=5))
    assert plain.seem_lost() == set()
    plain.record_running(now, timezone.now())
    assert plain.seem_lost() == {before["id"]}
    # Another process of the same number, as in a container with the same host name.
    one = WorkerProcess.objects.get()
    other = WorkerProcess.objects.create(identity="1", host=one.host, pid=one.pid)
    WorkerProcess.objects.filter(pk=other.pk).update(started_at=one.started_at)
    assert plain.seem_lost() == set()


def test_a_worker_that_was_declared_lost_and_lives_still_runs_its_task(this_worker):
    plain.record_running(told(), timezone.now() - timedelta(minutes=5))
    WorkerProcess.objects.update(lost_at=timezone.now())
    assert len(plain.seem_lost()) == 1
    this_worker.beat()
    assert plain.seem_lost() == set()


def test_a_task_that_was_given_up_while_its_worker_was_silent_runs_again(this_worker, record_of):
    message, began = told(), timezone.now() - timedelta(minutes=5)
    plain.record_running(message, began)
    WorkerProcess.objects.update(lost_at=timezone.now())
    assert missed.give_up(plain.seem_lost()) == 1
    statistics.count_ended()
    assert [row.failed for row in TaskStatistics.objects.all()] == [1]
    this_worker.beat()
    plain.record_running(message, began)
    record = record_of(message["id"])
    assert (record.status, record.attempts, record.resolution) == ("in_progress", 1, "")
    assert plain.seem_lost() == set()
    plain.record_ends([Run({**message, "success": True, "result": 3, "stopped": timezone.now()}, began, "web-1", 7)])
    assert (record_of(message["id"]).status, record_of(message["id"]).attempts) == ("success", 1)
    statistics.count_ended()
    assert [(row.completed, row.failed) for row in TaskStatistics.objects.all()] == [(1, 0)]


def test_a_process_that_began_later_with_the_same_number_is_another_one(record_of):
    message = told()
    plain.record_running(message, timezone.now() - timedelta(minutes=5))
    running = record_of(message["id"])
    WorkerProcess.objects.create(
        identity="1", host=running.worker_host, pid=running.worker_pid, clock_at=timezone.now()
    )
    assert plain.seem_lost() == {message["id"]}


def test_a_queued_task_whose_end_was_missed_gets_it_from_django_q(record_of):
    record = waiting_task()
    TaskRecord.objects.filter(pk=record.pk).update(created_at=timezone.now() - timedelta(hours=1))
    now = timezone.now()
    Task.objects.create(
        id=record.task_name, name="given", func=ADD, args=(1, 2), kwargs={}, started=now, stopped=now, result=3
    )
    assert missed.settle_queued() == 1
    assert (record_of(record.task_name).status, record_of(record.task_name).result) == ("success", 3)


def test_observed_tasks_are_kept_for_days_of_their_own(settings, manager):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_TRACK_RETENTION_DAYS": 3, "DASHBOARD_TRACK_MAX_RECORDS": 5}
    now = timezone.now()
    TaskRecord.objects.create(task_name="ours", func=ADD, status="success", finished_at=now - timedelta(days=30))
    plain.record_ends([ended() for _ in range(8)])
    old = TaskRecord.objects.exclude(source="").order_by("pk").first()
    assert old is not None
    TaskRecord.objects.filter(pk=old.pk).update(finished_at=now - timedelta(days=4))
    manager.cleanup_completed_tasks()
    assert not TaskRecord.objects.filter(pk=old.pk).exists()
    assert TaskRecord.objects.exclude(source="").count() == 5
    assert TaskRecord.objects.filter(task_name="ours").exists()


def test_of_those_that_ended_at_the_same_moment_no_more_are_deleted_than_must_be(settings, manager):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_TRACK_MAX_RECORDS": 10}
    plain.record_ends([ended() for _ in range(12)])
    TaskRecord.objects.update(finished_at=timezone.now() - timedelta(minutes=1))
    manager.cleanup_completed_tasks()
    assert TaskRecord.objects.count() == 10
