from __future__ import annotations

import json
from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import call_command
from django.db import connection
from django.db.models import F
from django.utils import timezone
from django_q.models import OrmQ, Schedule, Task

from powercrud_dashboard.async_manager import AsyncManager
from powercrud_dashboard.models import ActiveTask, ConflictLock, TaskEvent, TaskObject, TaskRecord
from powercrud_dashboard.schedules import cleanup_async_artifacts

pytestmark = pytest.mark.django_db

ADD = "tests.testapp.tasks.add"
ONE = {"testapp.Project": {1}}


@pytest.fixture
def launch(manager):
    return lambda **options: manager.launch_async_task(ADD, 1, conflict_ids=ONE, **options)


def age(task_name: str, **delta: float) -> None:
    """Make a task look as if it was launched, and last heard of, earlier."""
    then = timezone.now() - timedelta(**delta)
    ActiveTask.objects.filter(task_name=task_name).update(queued_at=then)
    ActiveTask.objects.filter(task_name=task_name).exclude(heartbeat_at=None).update(heartbeat_at=then)
    TaskRecord.objects.filter(task_name=task_name).update(created_at=then)


def test_queued_and_living_tasks_are_left_alone(manager, launch):
    queued = launch()
    age(queued, days=30)
    running = manager.launch_async_task(ADD, 2)
    ActiveTask.objects.claim_pending(running, host="elsewhere", pid=1)
    summary = manager.cleanup_completed_tasks()
    assert summary["active_tasks"] == 2
    assert summary["cleaned"] == {}
    assert summary["skipped"] == {queued: "task is queued", running: "task is running"}
    assert ConflictLock.objects.count() == 1


def test_a_silent_worker_elsewhere_is_lost(manager, launch, record_of):
    name = launch()
    ActiveTask.objects.claim_pending(name, host="elsewhere", pid=1)
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


def test_a_worker_elsewhere_has_some_patience(manager, launch):
    name = launch()
    ActiveTask.objects.claim_pending(name, host="elsewhere", pid=1)
    age(name, seconds=20)
    assert manager.cleanup_completed_tasks()["cleaned"] == {}


def test_a_silent_process_of_this_host_lives_as_long_as_it_exists(manager, launch, worker_here, dead_process):
    name = launch()
    worker_here(name)
    age(name, minutes=5)
    assert manager.cleanup_completed_tasks()["cleaned"] == {}
    ActiveTask.objects.update(worker_pid=dead_process)
    assert name in manager.cleanup_completed_tasks()["cleaned"]


def test_even_a_living_process_is_given_up_after_the_longest_time(manager, launch, worker_here):
    name = launch()
    worker_here(name)
    age(name, hours=2)
    assert name in manager.cleanup_completed_tasks()["cleaned"]


@pytest.fixture
def worker_here():
    from powercrud_dashboard.liveness import this_worker

    def claim(name: str) -> None:
        host, pid = this_worker()
        assert ActiveTask.objects.claim_pending(name, host=host, pid=pid)

    return claim


@pytest.fixture
def dead_process() -> int:
    import subprocess
    import sys

    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_worker_that_shows_life_at_the_last_moment_is_not_given_up(manager, launch, monkeypatch):
    name = launch()
    ActiveTask.objects.claim_pending(name, host="elsewhere", pid=1)
    age(name, minutes=5)

    def looks_lost_but_beats(active: ActiveTask) -> bool:
        assert ActiveTask.objects.all().beat(active)
        return True

    monkeypatch.setattr("powercrud_dashboard.cleanup.is_lost", looks_lost_but_beats)
    assert manager.cleanup_completed_tasks()["cleaned"] == {}
    assert ConflictLock.objects.exists()


def test_locks_of_a_lost_worker_give_way_to_the_next_launch(manager, launch, record_of):
    lost = launch()
    ActiveTask.objects.claim_pending(lost, host="elsewhere", pid=1)
    age(lost, minutes=5)
    assert launch()
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
    ActiveTask.objects.claim_pending(name, host="elsewhere", pid=1)
    age(name, minutes=5)
    found = AsyncManager().cleanup_completed_tasks()["cleaned"][name]
    assert (found["progress_entries"], found["dashboard_records"], found["conflict_lock_keys"]) == (1, 0, 0)


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
    ActiveTask.objects.end(ActiveTask.objects.get())
    age(name, minutes=2)
    if success is not None:
        now = timezone.now()
        Task.objects.create(id="0" * 32, name=name, func=ADD, started=now, stopped=now, success=success, result=result)
    assert name in manager.cleanup_completed_tasks()["cleaned"]
    record = record_of(name)
    assert (record.status, record.error) == (status, error)
    assert record.result == (5 if success else None)


def test_a_dry_run_changes_nothing(manager, launch, record_of):
    name = launch()
    ActiveTask.objects.claim_pending(name, host="elsewhere", pid=1)
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
    assert set(summary) == {"active_tasks", "cleaned", "skipped", "orphaned_locks", "pruned_records"}
    assert summary["active_tasks"] == 1


def test_the_scheduled_function_cleans_up(launch):
    name = launch()
    ActiveTask.objects.claim_pending(name, host="elsewhere", pid=1)
    age(name, minutes=5)
    assert name in cleanup_async_artifacts()["cleaned"]


def test_the_schedule_is_made_once(settings):
    out = StringIO()
    call_command("pcrud_schedule_cleanup", stdout=out)
    settings.POWERCRUD_SETTINGS = {"CLEANUP_SCHEDULE_INTERVAL": 600}
    call_command("pcrud_schedule_cleanup", stdout=out)
    schedule = Schedule.objects.get()
    assert (schedule.func, schedule.minutes) == ("powercrud_dashboard.schedules.cleanup_async_artifacts", 10)
    assert "created: every 5 minute(s)" in out.getvalue()
    assert "updated: every 10 minute(s)" in out.getvalue()


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
    ActiveTask.objects.claim_pending(name, host="elsewhere", pid=1)
    age(name, **delta)

    def beat_meanwhile(seconds: float) -> None:
        ActiveTask.objects.update(heartbeat_at=timezone.now(), beats=F("beats") + 1)

    monkeypatch.setattr("powercrud_dashboard.liveness.time.sleep", beat_meanwhile)
    assert manager.cleanup_completed_tasks()["cleaned"] == {}


def test_nor_does_it_keep_a_lost_worker(manager, launch, worker_here, dead_process):
    name = launch()
    worker_here(name)
    ActiveTask.objects.update(worker_pid=dead_process)
    age(name, hours=-1)
    assert name in manager.cleanup_completed_tasks()["cleaned"]
