"""Tasks of plain django-q2 in a real cluster: all are seen, and none is touched."""

from __future__ import annotations

import os
import signal
from collections import Counter
from typing import Any

import pytest
from django.db import connection, transaction
from django.utils import timezone
from django_q.models import OrmQ, Schedule, Task
from django_q.scheduler import scheduler
from django_q.tasks import AsyncTask, async_chain, async_iter, async_task, result

from powercrud_dashboard.engine.spec import TaskSpec
from powercrud_dashboard.models import TaskEvent, TaskRecord, WorkerProcess
from powercrud_dashboard.q2 import observe
from tests.conftest import REDIS
from tests.services import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.django_db(transaction=True)]

ADD, FAIL, WAIT = (f"tests.testapp.tasks.{name}" for name in ("add", "fail", "wait_for_file"))


def settled(count: int, **which: Any) -> list[TaskRecord]:
    """Wait until so many records have ended, and return them in the order of their launch."""
    ended = TaskRecord.objects.finished().filter(**which)
    wait_until(lambda: ended.count() >= count, f"{count} tasks have ended", 60)
    return list(ended.order_by("created_at"))


def has_status(task_id: str, status: str) -> bool:
    return TaskRecord.objects.filter(task_name=task_id, status=status).exists()


def test_whatever_launches_a_task_it_is_recorded(cluster, manager, record_of):
    ids = [async_task(ADD, number, 1) for number in range(3)]
    failing = [async_task(FAIL, message=f"no {number}") for number in range(2)]
    chain = async_chain([(ADD, (1, 2)), (FAIL, ()), (ADD, (3, 4))])
    group = [AsyncTask(ADD, number, group="night") for number in range(3)]
    ids += [task.run() for task in group]
    iteration = async_iter(ADD, [(1, 1), (2, 2)])
    Schedule.objects.create(name="nightly", func=FAIL, schedule_type=Schedule.ONCE, next_run=timezone.now())
    scheduler()
    ours = manager.launch_async_task(ADD, 5, 5)
    records = settled(15)
    assert len(records) == 15
    assert Counter(record.source for record in records) == {"django_q": 14, "": 1}
    assert {record_of(task_id).status for task_id in ids} == {"success"}
    assert [record_of(task_id).error for task_id in failing] == ["no 0", "no 1"]
    assert [record_of(task_id).exception_class for task_id in failing] == ["builtins.ValueError"] * 2
    of_chain = TaskRecord.objects.filter(group=chain).order_by("created_at")
    assert list(of_chain.values_list("status", flat=True)) == ["success", "failed", "success"]
    assert set(TaskRecord.objects.filter(group="night").values_list("status", flat=True)) == {"success"}
    assert TaskRecord.objects.filter(group=iteration, status="success").count() == 2
    assert TaskRecord.objects.get(group="nightly").status == "failed"
    assert record_of(ours).source == ""
    # django-q2 has what it has without us.
    assert result(ids[2]) == 3
    wait_until(lambda: Task.objects.filter(id=iteration).exists(), "the iteration's results are collected")
    assert sorted(result(iteration)) == [2, 4]
    began = record_of(ids[0])
    assert began.worker_pid
    assert began.created_at <= began.started_at <= began.finished_at


def test_a_long_task_waits_and_runs_and_its_lost_worker_is_found(cluster, record_of, tmp_path, until_started):
    paths = [tmp_path / f"go {number}" for number in range(3)]
    ids = [async_task(WAIT, str(path), task_name=f"wait {number}") for number, path in enumerate(paths)]
    wait_until(lambda: all(has_status(task_id, "in_progress") for task_id in ids[:2]), "two tasks run", 60)
    wait_until(lambda: has_status(ids[2], "pending"), "the third waits", 60)
    running = record_of(ids[0])
    assert (running.label, running.worker_pid) == ("wait 0", until_started(paths[0]))
    os.kill(running.worker_pid, signal.SIGKILL)
    wait_until(lambda: has_status(ids[0], "failed"), "the worker is found to be lost", 90)
    lost = record_of(ids[0])
    assert (lost.failure_reason, lost.resolution) == ("worker_lost", "open")
    for path in paths[1:]:
        path.touch()
    wait_until(lambda: all(has_status(task_id, "success") for task_id in ids[1:]), "the others end", 60)
    assert [line.event for line in TaskEvent.objects.all().of_task(ids[2])] == ["create", "start", "complete"]
    assert record_of(ids[2]).run_time.total_seconds() < 60
    if REDIS:  # It delivers no message again.
        return
    __, message = observe.find(ids[0], "")
    assert message is not None
    # As if Q_CLUSTER["retry"] had passed.
    OrmQ.objects.filter(pk=message.receipt).update(lock=timezone.now())
    wait_until(lambda: has_status(ids[0], "in_progress"), "it runs again", 60)
    again = record_of(ids[0])
    assert (again.attempts, again.resolution) == (2, "")
    assert again.started_at > lost.started_at
    paths[0].touch()
    wait_until(lambda: has_status(ids[0], "success"), "it ends", 60)


def test_a_running_task_is_cancelled_and_the_cluster_goes_on(cluster, manager, record_of, tmp_path, until_started):
    task_id = async_task(WAIT, str(tmp_path / "never"), timeout=50)
    until_started(tmp_path / "never")
    wait_until(lambda: has_status(task_id, "in_progress"), "the task runs", 60)
    assert manager.cancel_task(task_id, user="Anna")
    wait_until(lambda: has_status(task_id, "cancelled"), "the task is cancelled", 60)
    record = record_of(task_id)
    assert record.resolution == ""
    assert TaskSpec.from_signed(record.payload).options == {"timeout": 50}
    again = manager.retry_task(task_id)
    wait_until(lambda: has_status(again, "in_progress"), "the retry runs", 60)
    (tmp_path / "never").touch()
    wait_until(lambda: has_status(again, "success"), "the retry ends", 60)
    # Its message is gone, so that no broker delivers it again.
    wait_until(lambda: not observe.waiting(10), "the queue is empty")


@pytest.mark.skipif(not REDIS, reason="others have the messages that are taken")
def test_a_taken_message_is_recorded_as_queued_though_the_database_was_busy(cluster, tmp_path):
    running = [async_task(WAIT, str(tmp_path / f"go {number}")) for number in range(2)]
    wait_until(lambda: all(has_status(task_id, "in_progress") for task_id in running), "two tasks run", 60)
    table = TaskRecord._meta.db_table
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"LOCK TABLE {table} IN SHARE MODE")

        def is_waited_for() -> bool:
            cursor.execute("SELECT 1 FROM pg_locks WHERE relation = %s::regclass AND NOT granted", [table])
            return cursor.fetchone() is not None

        waiting = async_task(WAIT, str(tmp_path / "go 2"))
        wait_until(is_waited_for, "the pusher wants to record it", 60)
        wait_until(lambda: not is_waited_for(), "the pusher has given up for now", 60)
    wait_until(lambda: has_status(waiting, "pending"), "the third waits", 60)
    for number in range(3):
        (tmp_path / f"go {number}").touch()
    settled(3)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_task_that_ignores_its_time_limit_is_ended_as_by_django_q2(cluster_later, tmp_path, until_started):
    # Its guard counts a time limit down to zero only in such steps.
    cluster = cluster_later(PCRUD_TEST_GUARD_CYCLE="0.5")
    async_task("tests.testapp.tasks.ignore_everything", str(tmp_path / "stubborn"), timeout=1)
    pid = until_started(tmp_path / "stubborn")
    wait_until(lambda: not is_running(pid), "its worker was ended", 60)
    assert result(async_task(ADD, 1, 2), wait=60_000) == 3
    assert cluster.stop() == 0


def test_a_task_that_ends_its_worker_is_recorded_as_failed(cluster, record_of):
    task_id = async_task("tests.testapp.tasks.leave")
    wait_until(lambda: has_status(task_id, "failed"), "its failure is recorded", 60)
    record = record_of(task_id)
    assert (record.error, record.exception_class) == ("the task wanted out", "builtins.SystemExit")
    assert "in leave" in record.traceback
    assert result(async_task(ADD, 1, 2), wait=60_000) == 3


def test_a_clean_stop_loses_nothing_and_a_killed_cluster_little(cluster_later, record_of):
    first = cluster_later()
    ids = [async_task(ADD, number) for number in range(40)]
    wait_until(lambda: Task.objects.count() >= 20, "half of the tasks have ended", 60)
    assert first.stop() == 0
    left = 40 - Task.objects.count()
    assert TaskRecord.objects.completed().count() == 40 - left
    second = cluster_later()
    settled(40)
    # Of a cluster that is killed before, django-q2 has no rows, and this package none of the workers.
    wait_until(lambda: Task.objects.count() == 40, "django-q2 has saved all results", 60)
    wait_until(WorkerProcess.objects.exists, "the workers are known", 60)
    newest = TaskRecord.objects.order_by("-finished_at").first()
    assert newest is not None
    # As if the monitor process had not come to write it.
    TaskEvent.objects.filter(record=newest).delete()
    TaskRecord.objects.filter(pk=newest.pk).delete()
    second.kill()
    cluster_later()
    wait_until(lambda: TaskRecord.objects.completed().count() == 40, "the missed end is recorded", 60)
    assert record_of(newest.task_name).status == "success"
    assert {record_of(task_id).status for task_id in ids} == {"success"}
