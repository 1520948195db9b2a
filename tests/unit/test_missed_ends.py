"""What becomes of tasks of plain django-q2 whose worker has told no end, and of those whose message is gone."""

from __future__ import annotations

import base64
import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone
from django_q.brokers import get_broker
from django_q.models import Task
from django_q.tasks import async_task

from powercrud_dashboard.engine import missed, plain
from powercrud_dashboard.engine.plain import Run
from powercrud_dashboard.exceptions import TaskNotRetryable
from powercrud_dashboard.models import TaskRecord, WorkerProcess
from powercrud_dashboard.q2 import observe, queue
from tests.conftest import REDIS
from tests.workers import silence

pytestmark = pytest.mark.django_db(transaction=True)

ADD = "tests.testapp.tasks.add"


@pytest.fixture(autouse=True)
def _empty_queue() -> None:
    get_broker().purge_queue()


def waiting_message() -> dict[str, Any]:
    task_id = async_task(ADD, 1, 2)
    return next(message for message in observe.waiting(10) if message["id"] == task_id)


def queued() -> TaskRecord:
    message = waiting_message()
    plain.record_queued([message])
    return TaskRecord.objects.get(task_name=message["id"])


def test_the_rows_of_queued_tasks_are_found_however_many_wait(record_of, monkeypatch):
    monkeypatch.setattr(missed, "LOOKED_FOR_AT_ONCE", 2)
    records = [queued() for _number in range(5)]
    long_ago = timezone.now() - timedelta(hours=1)
    TaskRecord.objects.update(created_at=long_ago)
    last = records[-1].task_name
    Task.objects.create(id=last, name="n", func=ADD, started=long_ago, stopped=long_ago, result=3, success=True)
    assert missed.settle_queued() == 1
    assert record_of(last).status == "success"


def test_a_queued_task_whose_message_is_gone_is_recorded_as_lost(record_of):
    kept, gone = queued(), queued()
    TaskRecord.objects.update(created_at=timezone.now() - timedelta(hours=1))
    get_broker().purge_queue()
    async_task(ADD, 1, 2)
    assert missed.settle_queued() == 2
    assert {record_of(name).failure_reason for name in (kept.task_name, gone.task_name)} == {"never_started"}


def test_a_queued_task_whose_message_is_there_waits_on(record_of):
    record = queued()
    TaskRecord.objects.update(created_at=timezone.now() - timedelta(hours=1))
    assert missed.settle_queued() == 0
    assert record_of(record.task_name).status == "pending"


def test_a_message_that_is_known_is_not_read_again():
    first = async_task(ADD, 1)
    known, messages = observe.look(10, ())
    assert [message["id"] for message in messages.values()] == [first]
    second = async_task(ADD, 2)
    keys, messages = observe.look(10, known)
    assert [message["id"] for message in messages.values()] == [second]
    assert keys == known | messages.keys()


@pytest.mark.skipif(REDIS, reason="there other queries tell it")
def test_where_a_message_can_not_be_read_or_there_are_too_many_nothing_is_known_to_be_gone(monkeypatch):
    async_task(ADD, 1)
    assert observe.gone_from("", ["1"]) == {"1"}
    monkeypatch.setattr(queue, "LISTED_AT_MOST", 1)
    async_task(ADD, 2)
    assert observe.gone_from("", ["1"]) == set()
    monkeypatch.undo()
    get_broker().enqueue("no message")
    assert observe.gone_from("", ["1"]) == set()


def test_a_busy_cluster_finds_what_a_killed_worker_has_not_written(record_of):
    now = timezone.now()
    WorkerProcess.objects.create(identity="1", host="web-1", pid=1, cluster="pcrud-tests")
    silence(50, pk="1")
    facts = {
        "name": "n",
        "func": ADD,
        "args": (1,),
        "kwargs": {},
        "cluster": "pcrud-tests",
        "result": 3,
        "success": True,
    }
    ends = [now - timedelta(seconds=50), *(now - timedelta(seconds=44 - number * 0.03) for number in range(1_200))]
    rows = [Task(id=uuid.uuid4().hex, started=at, stopped=at, attempt_count=1, **facts) for at in ends]
    Task.objects.bulk_create(rows)
    plain.record_ends([Run(message) for message in observe.ended([row.id for row in rows[1:]])])
    known = missed.catch_up(set())
    assert known == {"1"}
    assert record_of(rows[0].id).status == "success"


@pytest.mark.parametrize("ahead", [-3600, 0, 3600])
def test_what_a_killed_worker_has_not_written_is_found_by_the_clock_of_its_host(record_of, ahead):
    beat = timezone.now() - timedelta(seconds=50)
    by_its_clock = beat + timedelta(seconds=ahead)
    worker = {"identity": "1", "host": "web-1", "pid": 1, "cluster": "pcrud-tests"}
    WorkerProcess.objects.create(**worker, heartbeat_at=beat, clock_at=by_its_clock)
    facts = {"name": "n", "func": ADD, "args": (1,), "cluster": "pcrud-tests", "result": 3, "success": True}
    Task.objects.create(id="1", started=by_its_clock, stopped=by_its_clock, **facts)
    assert missed.catch_up(set()) == {"1"}
    assert record_of("1").status == "success"


def test_a_lost_task_whose_end_django_q_knows_gets_that_end(record_of):
    message = waiting_message()
    plain.record_running(message, timezone.now() - timedelta(minutes=1))
    now = timezone.now()
    Task.objects.create(
        id=message["id"], name="given", func=ADD, args=(), kwargs={}, started=now, stopped=now, result=3, success=True
    )
    assert missed.give_up(plain.seem_lost()) == 0
    assert record_of(message["id"]).status == "success"


def test_arguments_in_a_row_that_can_not_be_read_are_not_used_for_a_retry(record_of, manager):
    task_id = uuid.uuid4().hex
    WorkerProcess.objects.create(identity="1", host="web-1", pid=1, cluster="pcrud-tests")
    silence(30, pk="1")
    at = timezone.now() - timedelta(seconds=30)
    facts = {"name": "given", "func": ADD, "success": False, "result": "no : Traceback", "cluster": "pcrud-tests"}
    Task.objects.create(id=task_id, args=(1, 2), started=at, stopped=at, **facts)
    with connection.cursor() as cursor:
        pickled = base64.b64encode(b"cno_such_module\nGone\n.").decode()
        cursor.execute("UPDATE django_q_task SET args = %s", [pickled])
    missed.catch_up(set())
    record = record_of(task_id)
    assert record.task_args == ["<unreadable: ModuleNotFoundError: No module named 'no_such_module'>"]
    with pytest.raises(TaskNotRetryable):
        manager.retry_task(record.task_name)
