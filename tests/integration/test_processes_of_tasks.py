"""What tasks and projects do with processes, threads and signals, in real clusters."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import defaultdict

import pytest
from django_q.models import Task

from powercrud_dashboard.models import ActiveTask, TaskRecord, WorkerProcess
from tests.conftest import POSTGRESQL, REDIS, SETTINGS_MODULE, STOPS_WITHIN
from tests.services import wait_until
from tests.testapp import processes, tasks

pytestmark = [pytest.mark.cluster, pytest.mark.django_db(transaction=True)]

SOON = 60_000


@pytest.fixture
def run(manager, record_of):
    """Runs a task to its end and returns its record."""

    def run_it(function, *args):
        name = manager.launch_async_task(function, *args)
        manager.get_task_status(name, wait=SOON)
        return record_of(name)

    return run_it


def test_programs_and_children_that_a_task_starts_have_a_normal_sigterm(cluster, run):
    assert run(processes.stop_programs, 3).result == [-signal.SIGTERM] * 3
    assert run(processes.stop_forked_children, 20).result == [-signal.SIGTERM] * 20


@pytest.mark.parametrize(("way", "code"), [("exit", 3), ("raise", 1), ("return", 0)])
def test_a_forked_child_that_leaves_the_function_is_no_second_worker(
    cluster, manager, record_of, tmp_path, until_started, way, code
):
    path = tmp_path / "go on"
    name = manager.launch_async_task(processes.fork_and_leave, way, str(path))
    worker = until_started(path)
    assert manager.get_task_status(name) == "in_progress"
    assert ActiveTask.objects.get().worker.pid == worker
    path.touch()
    assert manager.get_task_status(name, wait=SOON) == "success"
    record = record_of(name)
    assert (record.result, record.attempts) == (code, 1)
    assert WorkerProcess.objects.filter(pid=worker).exists()
    wait_until(lambda: Task.objects.filter(name=name).exists(), "django-q2 has saved it")
    assert Task.objects.get(name=name).attempt_count == 1
    assert cluster.stop() == 0


def test_threads_of_a_task_have_its_context_if_they_are_given_it(cluster, run):
    record = run(processes.count_in_threads, 4)
    assert record.result == [record.task_name] * 4
    assert (record.message, record.progress_total) == ("counted", 4)


def test_a_task_that_closes_the_standard_streams_costs_its_worker_nothing(cluster, run):
    closed = set()

    def has_closed_all() -> bool:
        closed.add(run(processes.close_standard_streams).result)
        return closed >= set(cluster.worker_pids)

    wait_until(has_closed_all, "each worker has run one")
    for _ in range(4):
        record = run(processes.own_pid)
        assert (record.status, record.error) == ("success", "")
        assert record.result in closed
    assert run(tasks.fail, "as ever").error == "as ever"


def test_handlers_of_a_project_are_as_before_after_each_task(cluster_later, run, tmp_path):
    cluster = cluster_later(PCRUD_TEST_HANDLERS=str(tmp_path / "own"))
    pids = set()
    for _ in range(6):
        result = run(processes.own_handlers).result
        assert (result["sigterm"], result["sigalrm"]) == (True, True)
        pids.add(result["pid"])
    # Nobody died of a SIGUSR1, for which faulthandler is registered in C.
    assert pids <= set(cluster.worker_pids)
    assert all((tmp_path / f"own.sigusr1-{pid}").read_text() for pid in pids)


def test_a_projects_own_handler_of_sigterm_is_called_after_the_task(
    cluster_later, manager, record_of, tmp_path, until_started
):
    cluster = cluster_later(PCRUD_TEST_HANDLERS=str(tmp_path / "own"))
    path = tmp_path / "told"
    name = manager.launch_async_task(tasks.run_until_told_to_stop, str(path), 1)
    worker = until_started(path)
    os.killpg(cluster.process.pid, signal.SIGTERM)
    assert cluster.process.wait(STOPS_WITHIN) == 0
    assert record_of(name).result == "told"
    assert (tmp_path / f"own.sigterm-{worker}").exists()


@pytest.mark.skipif(not POSTGRESQL or REDIS, reason="PostgreSQL has connection pools, whatever the broker")
def test_no_process_of_a_cluster_uses_the_connection_pool_of_another(
    cluster_later, manager, run, tmp_path, until_started
):
    cluster = cluster_later(DJANGO_SETTINGS_MODULE=f"{SETTINGS_MODULE}_pool", PCRUD_TEST_EARLY_QUERY="1")
    names = [manager.launch_async_task(tasks.database_sessions, 20) for _ in range(20)]
    wait_until(lambda: TaskRecord.objects.completed().count() == 20, "all end well")
    # A busy one, which uses connections.
    manager.launch_async_task(tasks.wait_for_file, str(tmp_path / "never"))
    killed = until_started(tmp_path / "never")
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: len(set(cluster.worker_pids) - {killed}) == 2, "another has taken its place")
    users = defaultdict(set)
    for pid, sessions in (
        run(tasks.database_sessions, 20).result,
        *TaskRecord.objects.filter(task_name__in=names).values_list("result", flat=True),
    ):
        for session in sessions:
            users[session].add(pid)
    assert {len(pids) for pids in users.values()} == {1}
    assert TaskRecord.objects.filter(task_name__in=names, attempts=1).count() == 20


@pytest.mark.parametrize(
    "methods", ["spawn:spawn", "forkserver:forkserver", "forkserver:fork"], ids=["Windows", "forkserver", "Python 3.14"]
)
def test_a_cluster_runs_where_processes_are_not_simply_forked(cluster_later, manager, run, methods):
    cluster = cluster_later(PCRUD_TEST_START_METHOD=methods)
    assert [run(tasks.add, number).result for number in range(3)] == [0, 1, 2]
    assert run(tasks.fail, "as ever").error == "as ever"
    wait_until(lambda: sorted(WorkerProcess.objects.values_list("pid", flat=True)) == sorted(cluster.worker_pids), "")
    assert cluster.stop() == 0
    assert not WorkerProcess.objects.exists()
    assert TaskRecord.objects.completed().count() == 3


def test_the_app_imports_nothing_of_django_q2s_cluster():
    """Where a child process imports one of these modules first, django-q2 starts Django in the middle of it."""
    code = (
        "import django, sys; django.setup(); "
        "print([name for name in ('cluster', 'worker', 'pusher', 'monitor', 'scheduler')"
        " if f'django_q.{name}' in sys.modules])"
    )
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": SETTINGS_MODULE}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
