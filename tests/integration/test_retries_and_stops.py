"""Retries that happen by themselves, and clusters that are stopped with work in hand, in real clusters."""

from __future__ import annotations

import os
import signal

import pytest
from django.utils import timezone

from powercrud_dashboard.models import ActiveTask, ConflictLock
from tests.services import wait_until
from tests.testapp import tasks

pytestmark = [pytest.mark.cluster, pytest.mark.django_db(transaction=True)]

IDS = {"testapp.Project": {1}}


@pytest.fixture
def status_of(record_of):
    return lambda name: record_of(name).status


def test_a_task_is_tried_until_it_goes_well(cluster, manager, record_of):
    name = manager.launch_async_task(tasks.fail_until, 3, max_retries=5, retry_backoff=0.01, conflict_ids=IDS)
    wait_until(lambda: record_of(name).is_finished, "it has ended")
    record = record_of(name)
    assert (record.status, record.attempts, record.result) == ("success", 3, 3)
    assert not ConflictLock.objects.exists()


def test_a_restart_of_everything_loses_no_waiting_task(cluster, cluster_later, manager, record_of):
    name = manager.launch_async_task(tasks.fail_until, 2, max_retries=1, retry_backoff=600, conflict_ids=IDS)
    wait_until(ActiveTask.objects.waiting().exists, "it waits")
    cluster.kill()
    assert ConflictLock.objects.exists()
    ActiveTask.objects.update(next_run_at=timezone.now())
    cluster_later()
    wait_until(lambda: record_of(name).is_finished, "it has ended")
    assert (record_of(name).status, record_of(name).attempts) == ("success", 2)


def test_a_time_limit_is_retried_as_well(cluster, manager, record_of, tmp_path):
    path = tmp_path / "never"
    name = manager.launch_async_task(tasks.wait_for_file, str(path), timeout=1, max_retries=1, retry_backoff=0.01)
    wait_until(lambda: record_of(name).is_finished, "it has ended")
    assert (record_of(name).attempts, record_of(name).failure_reason) == (2, "timeout")


def test_a_stopped_cluster_queues_its_task_again(cluster, cluster_later, manager, status_of, tmp_path, until_started):
    path = tmp_path / "go on"
    name = manager.launch_async_task(tasks.wait_for_file, str(path), requeue_on_stop=True, conflict_ids=IDS)
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


def test_a_signal_to_all_processes_of_a_cluster_does_not_cut_a_task_short(
    cluster, manager, status_of, tmp_path, until_started
):
    path = tmp_path / "told"
    name = manager.launch_async_task(tasks.run_until_told_to_stop, str(path), conflict_ids=IDS)
    pid = until_started(path)
    # As a service manager does.
    os.killpg(cluster.process.pid, signal.SIGTERM)
    wait_until(lambda: status_of(name) == "success", "it has come to its end")
    assert not ConflictLock.objects.exists()
    wait_until(lambda: not is_running(pid), "its worker has ended")
    cluster.kill()


def test_nor_does_it_lose_one_that_is_to_be_queued_again(cluster, manager, status_of, tmp_path, until_started):
    path = tmp_path / "never"
    name = manager.launch_async_task(tasks.wait_for_file, str(path), requeue_on_stop=True, conflict_ids=IDS)
    until_started(path)
    os.killpg(cluster.process.pid, signal.SIGTERM)
    wait_until(lambda: status_of(name) == "pending", "it is queued again")
    assert ActiveTask.objects.get().attempt == 1
    cluster.kill()


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
