"""Retries that happen by themselves, and clusters that are stopped with work in hand, in real clusters."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from django.utils import timezone
from django_q.models import Task
from django_q.tasks import async_task

from powercrud_dashboard.async_manager import RetryPolicy
from powercrud_dashboard.models import ActiveTask, ConflictLock, TaskRecord, WorkerProcess
from powercrud_dashboard.q2 import queue
from tests.conftest import SETTINGS_MODULE, STOPS_WITHIN
from tests.services import children_of, wait_until
from tests.testapp import tasks

pytestmark = [pytest.mark.cluster, pytest.mark.django_db(transaction=True)]

IDS = {"testapp.Project": {1}}


@pytest.fixture
def status_of(record_of):
    return lambda name: record_of(name).status


def test_a_task_is_tried_until_it_goes_well(cluster, manager, record_of):
    name = manager.launch_async_task(tasks.fail_until, 3, retry=RetryPolicy(5, backoff=0.01), conflict_ids=IDS)
    wait_until(lambda: record_of(name).is_finished, "it has ended")
    record = record_of(name)
    assert (record.status, record.attempts, record.result) == ("success", 3, 3)
    assert not ConflictLock.objects.exists()


def test_a_restart_of_everything_loses_no_waiting_task(cluster, cluster_later, manager, record_of):
    name = manager.launch_async_task(tasks.fail_until, 2, retry=RetryPolicy(1, backoff=600), conflict_ids=IDS)
    wait_until(ActiveTask.objects.waiting().exists, "it waits")
    cluster.kill()
    assert ConflictLock.objects.exists()
    ActiveTask.objects.update(next_run_at=timezone.now())
    cluster_later()
    wait_until(lambda: record_of(name).is_finished, "it has ended")
    assert (record_of(name).status, record_of(name).attempts) == ("success", 2)


def test_a_time_limit_is_retried_as_well(cluster, manager, record_of, tmp_path):
    path = tmp_path / "never"
    name = manager.launch_async_task(tasks.wait_for_file, str(path), timeout=1, retry=RetryPolicy(1, backoff=0.01))
    wait_until(lambda: record_of(name).is_finished, "it has ended")
    assert (record_of(name).attempts, record_of(name).failure_reason) == (2, "timeout")


def test_a_stopped_cluster_queues_its_task_again(cluster, cluster_later, manager, status_of, tmp_path, until_started):
    path = tmp_path / "go on"
    name = manager.launch_async_task(
        tasks.wait_for_file, str(path), retry=RetryPolicy(requeue_on_stop=True), conflict_ids=IDS
    )
    until_started(path)
    assert cluster.stop() == 0
    assert status_of(name) == "pending"
    assert ConflictLock.objects.exists()
    path.touch()
    cluster_later()
    wait_until(lambda: status_of(name) == "success", "it has been run again")
    assert not ConflictLock.objects.exists()


def test_or_waits_for_its_end(cluster, manager, record_of, tmp_path, until_started):
    path = tmp_path / "told"
    name = manager.launch_async_task(tasks.run_until_told_to_stop, str(path))
    until_started(path)
    assert cluster.stop() == 0
    assert record_of(name).result == "told"
    assert record_of(name).events.get(event="log").message == "The cluster is being stopped."


@pytest.mark.parametrize("earlier", [0, 6])
def test_a_signal_to_all_processes_stops_a_cluster_as_one_to_its_main_process_does(
    cluster, manager, record_of, tmp_path, earlier
):
    """As a service manager sends it; to workers that have run tasks before, and so have threads of django-q2's."""
    for _ in range(earlier):
        manager.launch_async_task(tasks.add, 1)
    wait_until(lambda: TaskRecord.objects.completed().count() == earlier, "the earlier ones end")
    names = [manager.launch_async_task(tasks.run_until_told_to_stop, str(tmp_path / "told"), 1) for _ in range(2)]
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2, "both workers are busy")
    os.killpg(cluster.process.pid, signal.SIGTERM)
    assert cluster.process.wait(STOPS_WITHIN) == 0
    assert [(record_of(name).status, record_of(name).result) for name in names] == [("success", "told")] * 2
    assert not ActiveTask.objects.exists()
    assert not WorkerProcess.objects.exists()


def test_or_one_to_its_sentinel(cluster, manager, record_of, tmp_path, until_started):
    path = tmp_path / "told"
    name = manager.launch_async_task(tasks.run_until_told_to_stop, str(path), 1)
    (sentinel,) = children_of(cluster.process.pid)
    until_started(path)
    os.kill(sentinel, signal.SIGTERM)
    assert cluster.process.wait(STOPS_WITHIN) == 0
    assert record_of(name).result == "told"


def test_a_signal_to_one_worker_stops_it_after_its_task(cluster, manager, record_of, tmp_path, until_started):
    path = tmp_path / "told"
    name = manager.launch_async_task(tasks.run_until_told_to_stop, str(path), 1)
    pid = until_started(path)
    (idle,) = set(cluster.worker_pids) - {pid}
    for worker in (pid, idle):
        os.kill(worker, signal.SIGTERM)
    wait_until(lambda: not is_running(pid) and not is_running(idle), "both have ended")
    assert record_of(name).result == "told"
    # The cluster goes on, with others.
    assert manager.get_task_status(manager.launch_async_task(tasks.add, 1), wait=60_000) == "success"


def test_what_a_stopping_cluster_has_taken_and_not_begun_runs_on_another_at_once(
    cluster, cluster_later, manager, record_of, tmp_path
):
    path = tmp_path / "go on"
    running = [manager.launch_async_task(tasks.wait_for_file, str(path)) for _ in range(2)]
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2, "both workers are busy")
    taken = [manager.launch_async_task(tasks.add, number) for number in range(3)]
    wait_until(lambda: queue.get_broker().queue_size() == 0, "they are in the hands of the cluster")
    cluster.process.send_signal(signal.SIGTERM)
    other = cluster_later()
    wait_until(lambda: all(record_of(name).is_finished for name in taken), "the other cluster has run them")
    assert cluster.process.poll() is None
    for name in taken:
        assert record_of(name).attempts == 1
        assert record_of(name).events.get(event="start").payload["worker_pid"] in other.worker_pids
    path.touch()
    assert cluster.process.wait(STOPS_WITHIN) == 0
    assert [record_of(name).status for name in running] == ["success"] * 2


def test_django_q2s_own_tasks_are_handed_back_as_well(cluster, cluster_later, manager, tmp_path):
    path = tmp_path / "go on"
    for _ in range(2):
        manager.launch_async_task(tasks.wait_for_file, str(path))
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2, "both workers are busy")
    async_task("math.floor", 1.5, task_name="plain")
    wait_until(lambda: queue.get_broker().queue_size() == 0, "it is in the hands of the cluster")
    cluster.process.send_signal(signal.SIGTERM)
    cluster_later()
    wait_until(lambda: Task.objects.filter(name="plain", success=True).exists(), "the other cluster has run it")
    path.touch()
    assert cluster.process.wait(STOPS_WITHIN) == 0


@pytest.mark.usefixtures("_empty_queue")
def test_a_cluster_that_runs_once_runs_what_it_has_taken(manager, record_of):
    name = manager.launch_async_task(tasks.add, 1)
    command = [sys.executable, "-m", "django", "qcluster", "--run-once"]
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": SETTINGS_MODULE, "PYTHONWARNINGS": "ignore"}
    subprocess.run(command, env=environment, stderr=subprocess.DEVNULL, check=True, timeout=STOPS_WITHIN)
    assert record_of(name).status == "success"


def test_a_signal_to_all_loses_no_task_that_is_to_be_queued_again(cluster, manager, status_of, tmp_path, until_started):
    path = tmp_path / "never"
    name = manager.launch_async_task(
        tasks.wait_for_file, str(path), retry=RetryPolicy(requeue_on_stop=True), conflict_ids=IDS
    )
    until_started(path)
    os.killpg(cluster.process.pid, signal.SIGTERM)
    assert cluster.process.wait(STOPS_WITHIN) == 0
    assert status_of(name) == "pending"
    assert ActiveTask.objects.get().attempt == 1


def test_a_task_that_ignores_its_time_limit_is_ended_all_the_same(cluster, manager, tmp_path, until_started):
    path = tmp_path / "stubborn"
    manager.launch_async_task(tasks.ignore_everything, str(path), timeout=1)
    pid = until_started(path)
    wait_until(lambda: not is_running(pid), "its worker was ended")


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
