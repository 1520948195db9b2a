"""Workers that freeze, or that can't write their heartbeat: never do two of them work on one task."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from django.db import connection, connections, transaction

from powercrud_dashboard.async_manager import RetryPolicy
from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.exceptions import WorkerLost
from powercrud_dashboard.models import ActiveTask, ConflictLock, WorkerProcess
from powercrud_dashboard.worker.heartbeat import BEGINS_WITHIN
from tests.conftest import POSTGRESQL, Cluster
from tests.services import wait_until
from tests.testapp import tasks

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(not POSTGRESQL, reason="a frozen process may hold SQLite's only write lock"),
]

ONE = {"testapp.Project": {1}}
AGAIN = RetryPolicy(1, backoff=0, retry_on=[WorkerLost])


@pytest.fixture
def steps(tmp_path: Path) -> Callable[[], Counter[int]]:
    """The steps of ``work_in_small_steps`` so far, by the process that made them."""
    ledger = tmp_path / "go on.ledger"
    return lambda: Counter(map(int, ledger.read_text().split()))


@contextmanager
def frozen(cluster: Cluster) -> Iterator[None]:
    """Stop all processes of a cluster for the length of the block, as with a host.

    They are stopped between two transactions: one that is open holds its row locks until they go on, and the
    cleanup then can't but try again later.
    """
    wait_until(lambda: _stopped_between_transactions(cluster), "the processes are frozen")
    try:
        yield
    finally:
        os.killpg(cluster.process.pid, signal.SIGCONT)


def _stopped_between_transactions(cluster: Cluster) -> bool:
    os.killpg(cluster.process.pid, signal.SIGSTOP)
    states: set[str] = set()

    def settled() -> bool:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT DISTINCT state FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )
            states.clear()
            states.update(state for (state,) in cursor)
        return "active" not in states

    wait_until(settled, "no statement runs any more")
    if states <= {"idle"}:
        return True
    os.killpg(cluster.process.pid, signal.SIGCONT)
    return False


def silent(pid: int) -> Callable[[], bool]:
    rows = WorkerProcess.objects.silent_for(app_settings.DASHBOARD_HEARTBEAT_TIMEOUT)
    return rows.filter(pid=pid).exists


def test_a_task_that_was_taken_over_during_a_freeze_does_not_go_on(
    cluster, cluster_later, manager, record_of, tmp_path, until_started, steps
):
    path = tmp_path / "go on"
    name = manager.launch_async_task(tasks.work_in_small_steps, str(path), retry=AGAIN, conflict_ids=ONE)
    first = until_started(path)
    with frozen(cluster):
        wait_until(silent(first), "it is silent")
        manager.cleanup_completed_tasks()
        assert record_of(name).status == "pending"
        cluster_later()
        wait_until(lambda: len(steps()) == 2, "another worker runs the task")
        before = steps()
    wait_until(lambda: steps().total() > before.total() + 500, "the other worker goes on")
    # The step in the middle of which it was frozen.
    assert steps()[first] <= before[first] + 1
    path.touch()
    wait_until(lambda: record_of(name).is_finished, "the task has ended")
    assert (record_of(name).status, record_of(name).attempts) == ("success", 2)
    assert not ConflictLock.objects.exists()


def test_a_task_that_was_given_up_during_a_freeze_does_not_go_on(
    cluster, manager, record_of, tmp_path, until_started, steps
):
    path = tmp_path / "go on"
    name = manager.launch_async_task(tasks.work_in_small_steps, str(path), conflict_ids=ONE)
    worker = until_started(path)
    with frozen(cluster):
        wait_until(silent(worker), "it is silent")
        assert name in manager.cleanup_completed_tasks()["cleaned"]
        before = steps()
    again = manager.launch_async_task(tasks.add, 1, conflict_ids=ONE)
    wait_until(lambda: record_of(again).is_finished, "the cluster works again")
    assert steps()[worker] <= before[worker] + 1
    record = record_of(name)
    assert (record.status, record.failure_reason) == ("failed", "worker_lost")


def test_a_task_that_nobody_gave_up_during_a_freeze_goes_on(
    cluster, manager, record_of, tmp_path, until_started, steps
):
    path = tmp_path / "go on"
    name = manager.launch_async_task(tasks.work_in_small_steps, str(path), conflict_ids=ONE)
    worker = until_started(path)
    with frozen(cluster):
        wait_until(silent(worker), "it is silent")
        before = steps()
    wait_until(lambda: steps()[worker] > before[worker] + 10, "it goes on")
    path.touch()
    wait_until(lambda: record_of(name).is_finished, "the task has ended")
    assert (record_of(name).status, record_of(name).attempts) == ("success", 1)


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_worker_that_can_not_write_its_heartbeat_stops_its_task(
    cluster, manager, record_of, tmp_path, until_started, steps, stubborn
):
    path = tmp_path / "go on"
    name = manager.launch_async_task(
        tasks.work_in_small_steps, str(path), conflict_ids=ONE, task_kwargs={"stubborn": stubborn}
    )
    worker = until_started(path)
    row = WorkerProcess.objects.filter(pid=worker)
    wait_until(lambda: row.filter(beats__gt=0, tasks__task_name=name).exists(), "it beats")
    with transaction.atomic():
        judged = row.select_for_update().get()
        if stubborn:
            wait_until(lambda: worker not in cluster.worker_pids, "it has ended its process")
        else:
            wait_until(lambda: record_of(name).is_finished, "it has ended its task")
        stopped = steps()
        # Before that nobody else can have given it up.
        judging = WorkerProcess.objects.filter(pk=judged.pk)
        assert judging.get().lost_at is None
    if stubborn:
        wait_until(lambda: name in manager.cleanup_completed_tasks()["cleaned"], "the cleanup finds it")
    record = record_of(name)
    assert (record.status, record.failure_reason) == ("failed", "worker_lost")
    assert steps() == stopped
    assert not ActiveTask.objects.exists()
    assert not ConflictLock.objects.exists()


def test_a_task_begins_once_a_worker_that_could_not_write_its_heartbeat_has_written_one(
    cluster, manager, record_of, tmp_path
):
    """The database was away while it was idle, and is so for longer than the worker waits with the task."""
    path = tmp_path / "go on"
    seconds = app_settings.DASHBOARD_HEARTBEAT_TIMEOUT
    workers, for_long = (WorkerProcess.objects.silent_for(it) for it in (seconds, seconds + 2 * BEGINS_WITHIN))
    with closing(connections.create_connection("default")) as other:
        other.set_autocommit(False)
        with other.cursor() as cursor:
            wait_until(lambda: WorkerProcess.objects.count() == len(cluster.worker_pids), "all have a row")
            cursor.execute(f"SELECT FROM {WorkerProcess._meta.db_table} FOR NO KEY UPDATE")
            wait_until(lambda: workers.count() == len(cluster.worker_pids), "they are silent")
            name = manager.launch_async_task(tasks.wait_for_file, str(path))
            wait_until(lambda: for_long.count() == len(cluster.worker_pids), "they are silent for long")
            assert not list(tmp_path.iterdir())
            assert record_of(name).status == "pending"
        other.rollback()
    path.touch()
    wait_until(lambda: record_of(name).is_finished, "the task has ended")
    assert (record_of(name).status, record_of(name).attempts) == ("success", 1)
