from __future__ import annotations

import json
import os
import socket
import threading
import time
from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import call_command
from django.db import connection, transaction
from django.db.models import F
from django.utils import timezone, translation
from django_q.models import OrmQ, Schedule, Task

from powercrud_dashboard.async_manager import AsyncManager, RetryPolicy
from powercrud_dashboard.engine import cleanup, processes
from powercrud_dashboard.exceptions import TaskAlreadyActive, WorkerLost
from powercrud_dashboard.models import (
    ActiveTask,
    ConflictLock,
    FailureReason,
    TaskEvent,
    TaskObject,
    TaskRecord,
    WorkerProcess,
)
from powercrud_dashboard.schedules import cleanup_async_artifacts
from tests.workers import claimed_elsewhere, silence

# Processes are not judged inside of a transaction of the caller's.
pytestmark = pytest.mark.django_db(transaction=True)

ADD = "tests.testapp.tasks.add"
ONE = {"testapp.Project": {1}}


@pytest.fixture(autouse=True)
def _defaults(settings) -> None:
    settings.POWERCRUD_SETTINGS = {}


@pytest.fixture
def launch(manager):
    return lambda **options: manager.launch_async_task(ADD, 1, conflict_ids=ONE, **options)


def age(task_name: str, **delta: float) -> None:
    """Make a task look as if it was launched, and last heard of, earlier."""
    then = timezone.now() - timedelta(**delta)
    ActiveTask.objects.filter(task_name=task_name).update(queued_at=then)
    # Of a task that is not sent, this is when it should have been.
    ActiveTask.objects.filter(task_name=task_name, expires_at__isnull=False).update(expires_at=then)
    WorkerProcess.objects.filter(tasks__task_name=task_name).update(heartbeat_at=then)
    TaskRecord.objects.filter(task_name=task_name).update(created_at=then)


def test_queued_and_living_tasks_are_left_alone(manager, launch):
    queued = launch()
    age(queued, days=30)
    running = manager.launch_async_task(ADD, 2)
    claimed_elsewhere(running)
    summary = manager.cleanup_completed_tasks()
    assert summary["active_tasks"] == 2
    assert summary["cleaned"] == {}
    assert summary["skipped"] == {queued: "task is queued", running: "task is running"}
    assert ConflictLock.objects.count() == 1


def test_a_silent_worker_elsewhere_is_lost(manager, launch, record_of):
    name = launch()
    claimed_elsewhere(name)
    age(name, seconds=31)
    summary = manager.cleanup_completed_tasks()
    assert summary["cleaned"][name]["reason"] == "worker lost"
    assert summary["cleaned"][name] == {
        "reason": "worker lost",
        "conflict_lock_keys": 1,
        "progress_entries": 0,
        "dashboard_records": 1,
    }
    record = record_of(name)
    assert (record.status, record.failure_reason, record.error) == ("failed", "worker_lost", "Worker lost")
    assert not ActiveTask.objects.exists()
    assert not ConflictLock.objects.exists()
    assert not OrmQ.objects.exists()


@pytest.mark.parametrize("dry_run", [True, False])
def test_the_summary_says_what_waits_for_its_retry(manager, dry_run):
    policy = RetryPolicy(1, retry_on=WorkerLost)
    waits, ends = (
        manager.launch_async_task(ADD, 1, conflict_ids={"testapp.Project": {number}}, retry=policy)
        for number in range(2)
    )
    for name in (waits, ends):
        claimed_elsewhere(name)
    ActiveTask.objects.filter(task_name=ends).update(cancel_requested_at=timezone.now())
    silence()
    cleaned = manager.cleanup_completed_tasks(dry_run=dry_run)["cleaned"]
    found = {name: (cleaned[name]["reason"], cleaned[name]["conflict_lock_keys"]) for name in (waits, ends)}
    assert found == {waits: ("worker lost, waits for its retry", 0), ends: ("worker lost", 1)}
    assert ConflictLock.objects.count() == (2 if dry_run else 1)
    if not dry_run:
        assert manager.cleanup_completed_tasks()["skipped"] == {waits: "task waits for its retry"}


@pytest.mark.parametrize("minutes", [30, 61])
@pytest.mark.parametrize("process", [("elsewhere", 1), (socket.gethostname(), os.getpid())], ids=["elsewhere", "here"])
def test_a_worker_is_lost_after_the_timeout_whatever_its_process_id(settings, manager, launch, process, minutes):
    """Containers use the same host names and process ids again."""
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_HEARTBEAT_TIMEOUT": 3_600}
    name = launch()
    host, pid = process
    claimed_elsewhere(name, host=host, pid=pid)
    age(name, minutes=minutes)
    assert bool(manager.cleanup_completed_tasks()["cleaned"]) == (minutes > 60)


def test_a_process_that_beats_after_it_was_judged_is_not_declared_lost(manager, launch):
    name = launch()
    worker = claimed_elsewhere(name)
    silence()
    judged = WorkerProcess.objects.get()
    assert WorkerProcess.objects.beat(worker.pk)
    assert not WorkerProcess.objects.declare_lost(judged)
    assert manager.cleanup_completed_tasks()["cleaned"] == {}
    assert ConflictLock.objects.exists()


def test_a_task_that_has_passed_on_since_it_was_judged_is_not_given_up(manager, launch):
    name = launch()
    claimed_elsewhere(name)
    silence()
    [lost] = processes.find_lost()
    second = WorkerProcess.objects.create(identity="second", host="elsewhere", pid=2)
    assert ActiveTask.objects.take_over(lost, worker=second.pk)
    assert not cleanup.give_up(manager, lost, FailureReason.WORKER_LOST)
    assert ActiveTask.objects.get().worker == second
    assert ConflictLock.objects.exists()


def test_a_lost_process_has_no_heartbeat_any_more(launch):
    name = launch()
    worker = claimed_elsewhere(name)
    silence()
    assert [active.task_name for active in processes.find_lost()] == [name]
    assert not WorkerProcess.objects.beat(worker.pk)


def test_rows_of_processes_are_deleted_when_nobody_needs_them(manager, launch):
    name = launch()
    claimed_elsewhere(name, host="lost")
    WorkerProcess.objects.create(identity="idle", host="idle", pid=1)
    silence()
    manager.cleanup_completed_tasks()
    # A lost process is shown for a day.
    assert [process.host for process in WorkerProcess.objects.all()] == ["lost"]
    WorkerProcess.objects.update(lost_at=timezone.now() - timedelta(days=2))
    manager.cleanup_completed_tasks()
    assert not WorkerProcess.objects.exists()


def test_locks_of_a_lost_worker_give_way_to_the_next_launch(manager, launch, record_of):
    lost = launch()
    claimed_elsewhere(lost)
    age(lost, minutes=5)
    assert launch()
    assert record_of(lost).failure_reason == "worker_lost"


def test_the_unique_key_of_a_lost_worker_gives_way_to_the_next_launch(manager, record_of):
    lost = manager.launch_async_task(ADD, 1, unique_key="nightly")
    claimed_elsewhere(lost)
    with pytest.raises(TaskAlreadyActive):
        manager.launch_async_task(ADD, 1, unique_key="nightly")
    age(lost, minutes=5)
    assert manager.launch_async_task(ADD, 1, unique_key="nightly")
    assert record_of(lost).failure_reason == "worker_lost"


def test_a_task_that_the_broker_does_not_know_any_more_never_started(manager, launch, record_of):
    name = launch()
    age(name, days=2)
    OrmQ.objects.all().delete()
    assert manager.cleanup_completed_tasks()["cleaned"][name]["reason"] == "lost in the queue"
    assert record_of(name).failure_reason == "never_started"


def test_a_task_that_was_never_sent_is_found(manager, launch, record_of):
    name = launch()
    ActiveTask.objects.update(sent_at=None)
    assert manager.cleanup_completed_tasks()["cleaned"] == {}
    age(name, minutes=2)
    assert manager.cleanup_completed_tasks()["cleaned"][name]["reason"] == "could not be queued"
    assert record_of(name).failure_reason == "not_queued"


def test_what_a_plain_manager_left_is_counted_as_it_is():
    name = AsyncManager().launch_async_task(ADD, 1)
    AsyncManager().update_progress(name, "under way")
    claimed_elsewhere(name)
    age(name, minutes=5)
    found = AsyncManager().cleanup_completed_tasks()["cleaned"][name]
    assert (found["progress_entries"], found["dashboard_records"], found["conflict_lock_keys"]) == (1, 1, 0)


def test_expired_reservations_go(settings, manager):
    settings.POWERCRUD_SETTINGS = {"CONFLICT_TTL": 0}
    manager.add_conflict_ids("forgotten", ONE)
    assert manager.cleanup_completed_tasks()["cleaned"]["forgotten"]["reason"] == "reservation expired"
    assert not ConflictLock.objects.exists()


def test_reservations_live_until_they_expire(manager):
    manager.add_conflict_ids("in use", ONE)
    assert manager.cleanup_completed_tasks()["cleaned"] == {}


@pytest.mark.parametrize(
    ("success", "result", "status", "error"),
    [
        (True, 5, "success", ""),
        (False, "it broke : Traceback (most recent call last): ...", "failed", "it broke"),
        (None, None, "failed", "Worker lost"),
    ],
)
def test_records_without_a_task_are_closed_from_what_django_q_knows(
    manager, launch, record_of, success, result, status, error
):
    name = launch()
    with transaction.atomic():
        ActiveTask.objects.end(ActiveTask.objects.get())
    age(name, minutes=2)
    if success is not None:
        now = timezone.now()
        Task.objects.create(id="0" * 32, name=name, func=ADD, started=now, stopped=now, success=success, result=result)
    assert name in manager.cleanup_completed_tasks()["cleaned"]
    record = record_of(name)
    assert (record.status, record.error) == (status, error)
    assert record.result == (5 if success else None)


def test_a_dry_run_declares_no_process_lost(manager, launch):
    worker = claimed_elsewhere(launch())
    silence()
    summary = manager.cleanup_completed_tasks(dry_run=True)
    assert [found["reason"] for found in summary["cleaned"].values()] == ["worker lost"]
    worker.refresh_from_db()
    assert worker.lost_at is None


def test_a_dry_run_changes_nothing(manager, launch, record_of):
    name = launch()
    claimed_elsewhere(name)
    age(name, minutes=5)
    out = StringIO()
    call_command("pcrud_cleanup_async", dry_run=True, stdout=out)
    assert f"Would clean up: 1\n  {name}: worker lost, 1 lock(s)" in out.getvalue()
    assert record_of(name).status == "pending"
    assert ConflictLock.objects.exists()


def test_the_command_prints_json(manager, launch):
    launch()
    out = StringIO()
    call_command("pcrud_cleanup_async", json=True, stdout=out)
    summary = json.loads(out.getvalue())
    assert set(summary) == {
        *("active_tasks", "cleaned", "cleaned_count", "skipped", "skipped_count"),
        *("orphaned_locks", "pruned_records"),
    }
    assert summary["active_tasks"] == 1


def test_the_command_speaks_one_language(launch):
    name = launch()
    out = StringIO()
    with translation.override("de"):
        call_command("pcrud_cleanup_async", stdout=out)
    assert f"{name}: task is queued" in out.getvalue()


def test_the_scheduled_function_cleans_up(launch):
    name = launch()
    claimed_elsewhere(name)
    age(name, minutes=5)
    assert name in cleanup_async_artifacts()["cleaned"]


def test_the_scheduled_function_needs_no_manager_of_the_projects_own(settings, launch):
    name = launch()
    claimed_elsewhere(name)
    age(name, minutes=5)
    settings.POWERCRUD_SETTINGS = {"ASYNC_MANAGER_DEFAULT": {"manager_class": f"{__name__}.DemandingManager"}}
    assert name in cleanup_async_artifacts()["cleaned"]


def test_a_summary_names_the_first_tasks_and_counts_all(manager, settings):
    tasks = [manager.launch_async_task(ADD, number) for number in range(110)]
    settings.POWERCRUD_SETTINGS = {"CONFLICT_TTL": 0}
    for number in range(120):
        assert manager.add_conflict_ids(f"reservation {number}", {"testapp.Project": {number}})
    out = StringIO()
    call_command("pcrud_cleanup_async", dry_run=True, stdout=out)
    assert "Would clean up: 120\n" in out.getvalue()
    assert "  and 20 more\nSkipped: 110\n" in out.getvalue()
    assert "  and 10 more\nOrphaned locks: 0\n" in out.getvalue()
    summary = cleanup_async_artifacts()
    assert (summary["cleaned_count"], len(summary["cleaned"])) == (120, 100)
    assert (summary["skipped_count"], len(summary["skipped"])) == (110, 100)
    assert summary["skipped"].keys() <= {*tasks}


def test_the_schedule_is_made_once(settings):
    out = StringIO()
    call_command("pcrud_schedule_cleanup", stdout=out)
    settings.POWERCRUD_SETTINGS = {"CLEANUP_SCHEDULE_INTERVAL": 600}
    call_command("pcrud_schedule_cleanup", stdout=out)
    schedule = Schedule.objects.get()
    assert (schedule.func, schedule.minutes) == ("powercrud_dashboard.schedules.cleanup_async_artifacts", 10)
    assert "created: every 5 minutes." in out.getvalue()
    assert "updated: every 10 minutes." in out.getvalue()


def test_history_is_pruned_by_status(settings, manager, record_of):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_RETENTION_DAYS": {"success": 7, "failed": None}}
    old, fresh = (manager.launch_async_task(ADD, 1, conflict_ids=ONE, sync=True) for _number in range(2))
    TaskRecord.objects.filter(task_name=old).update(finished_at=timezone.now() - timedelta(days=8))
    TaskRecord.objects.filter(task_name=fresh).update(retry_of=record_of(old))
    assert manager.cleanup_completed_tasks()["pruned_records"] == 1
    assert TaskRecord.objects.get().task_name == fresh
    assert record_of(fresh).retry_of is None
    assert set(TaskEvent.objects.values_list("record__task_name", flat=True)) == {fresh}
    assert TaskObject.objects.count() == 1


@pytest.mark.parametrize("days", [1_000_000, 1e300, float("nan"), -5, "7"])
def test_a_retention_that_is_no_number_of_days_keeps_all(settings, manager, days):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_RETENTION_DAYS": {"success": days}}
    manager.launch_async_task(ADD, 1, sync=True)
    assert manager.cleanup_completed_tasks()["pruned_records"] == 0


def test_the_first_tries_of_a_chain_are_pruned_before_its_last(settings, manager, record_of):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_RETENTION_DAYS": {"success": 7}}
    names = [manager.launch_async_task(ADD, 1, sync=True)]
    for _try in range(2):
        names.append(manager.retry_task(names[-1]))
        manager.cancel_task(names[-1])
    assert record_of(names[2]).first_try == record_of(names[0])
    TaskRecord.objects.filter(task_name=names[0]).update(finished_at=timezone.now() - timedelta(days=8))
    assert manager.cleanup_completed_tasks()["pruned_records"] == 1
    connection.check_constraints()
    assert record_of(names[2]).first_try is None
    assert record_of(names[2]).retry_of == record_of(names[1])


@pytest.mark.parametrize("delta", [{"hours": 1}, {"hours": -1}])
def test_a_clock_that_was_set_gives_nobody_up(manager, launch, monkeypatch, delta):
    name = launch()
    claimed_elsewhere(name)
    age(name, **delta)

    sleep, this_thread = time.sleep, threading.get_ident()

    def beat_meanwhile(seconds: float) -> None:
        if threading.get_ident() == this_thread:
            WorkerProcess.objects.update(heartbeat_at=timezone.now(), beats=F("beats") + 1)
        else:
            # Threads of other tests would open connections that nobody closes.
            sleep(seconds)

    monkeypatch.setattr(time, "sleep", beat_meanwhile)
    assert manager.cleanup_completed_tasks()["cleaned"] == {}


def test_nor_does_it_keep_a_lost_worker(manager, launch):
    name = launch()
    claimed_elsewhere(name)
    age(name, hours=-1)
    assert name in manager.cleanup_completed_tasks()["cleaned"]
