"""An action over many objects that is paused, moved to another cluster and killed: each object is done exactly once."""

from __future__ import annotations

import os
import signal

import pytest

from powercrud_dashboard.models import ActiveTask, TaskCursor, TaskObject, TaskRecord, WorkerProcess
from tests.services import wait_until
from tests.testapp.models import Project, Visit

pytestmark = [pytest.mark.cluster, pytest.mark.faults, pytest.mark.django_db(transaction=True)]

CHANGELIST = "/admin/testapp/project/"
TASKS = "/admin/powercrud_dashboard/taskrecord/"
OBJECTS = 10_000
#: Seconds, for a machine on which much else runs.
ENDS_WITHIN = 300


@pytest.fixture
def record(boss, make_projects) -> TaskRecord:
    """The task of an action over all projects, which has just been launched."""
    first = make_projects(OBJECTS)[0]
    chosen = {"action": "count_visits", "_selected_action": [first.pk], "select_across": "1"}
    boss.post(CHANGELIST, chosen)
    return TaskRecord.objects.get()


def wait_until_done(count: int) -> None:
    wait_until(lambda: TaskCursor.objects.filter(done__gte=count).exists(), f"{count} objects are done", ENDS_WITHIN)


def check(record: TaskRecord) -> None:
    """Wait for the end; then each object was done once, by the ledger and by the table of the action itself."""
    wait_until(lambda: (record.refresh_from_db(), record.is_finished)[1], "the task ends", ENDS_WITHIN)
    assert record.status == "success", record.error
    assert (record.done_count, record.failed_count, record.skipped_count) == (OBJECTS, 0, 0)
    done = TaskObject.objects.filter(record=record, outcome="done").values_list("object_id", flat=True)
    everything = sorted(Project.objects.values_list("pk", flat=True))
    assert sorted(map(int, done)) == everything
    assert sorted(Visit.objects.values_list("project", flat=True)) == everything
    assert not ActiveTask.objects.exists()
    assert not TaskCursor.objects.exists()


def test_a_pause(cluster, boss, record):
    wait_until_done(1_000)
    boss.post(f"{TASKS}{record.pk}/pause/")
    wait_until(lambda: ActiveTask.objects.paused().exists(), "it is paused", ENDS_WITHIN)
    paused = ActiveTask.objects.get()
    assert (paused.worker, paused.locks.count()) == (None, OBJECTS)
    assert 1_000 <= Visit.objects.count() < OBJECTS
    boss.post(f"{TASKS}{record.pk}/resume/")
    check(record)
    # A slow machine reaches the time limit, after which the task goes on as well.
    assert record.attempts >= 2


def test_a_deploy(cluster, cluster_later, record):
    wait_until_done(1_000)
    assert cluster.stop() == 0
    assert ActiveTask.objects.get().state == "pending"
    assert 1_000 <= Visit.objects.count() < OBJECTS
    cluster_later()
    check(record)
    # A slow machine reaches the time limit, after which the task goes on as well.
    assert record.attempts >= 2


def test_a_killed_worker(cluster, manager, record):
    wait_until_done(1_000)
    worker = WorkerProcess.objects.get(tasks__task_name=record.task_name)
    os.kill(worker.pid, signal.SIGKILL)

    def is_tried_again() -> bool:
        manager.cleanup_completed_tasks()
        return ActiveTask.objects.filter(attempt__gt=1).exists()

    wait_until(is_tried_again, "another worker goes on")
    check(record)
    # A slow machine reaches the time limit, after which the task goes on as well.
    assert record.attempts >= 2
