"""The row and the heartbeat of a process that runs tasks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.db import OperationalError, connection, transaction
from django.utils import timezone

from powercrud_dashboard.engine import processes
from powercrud_dashboard.exceptions import TaskConflict
from powercrud_dashboard.models import ActiveTask, ConflictLock, WorkerProcess
from powercrud_dashboard.worker import task as worker_task
from tests.testapp import tasks
from tests.workers import claimed_elsewhere, database_refuses, deliver, silence

ADD = "tests.testapp.tasks.add"
ONE = {"testapp.Project": {1}}


@pytest.fixture
def process() -> Iterator[processes.ThisProcess]:
    """This process, as if it had just begun."""
    processes.begin_anew()
    yield processes.this_process()
    processes.begin_anew()


@pytest.mark.django_db(transaction=True)
def test_a_process_stays_registered_while_it_runs_synchronous_tasks(process):
    with process.registered() as first:
        with process.registered() as second:
            assert first == second
        assert WorkerProcess.objects.get().pk == first
    assert not WorkerProcess.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_a_worker_stays_registered_after_a_synchronous_task_in_its_task(process, manager, monkeypatch):
    process.become_worker("some cluster")

    def launch_another(*args: object) -> bool:
        manager.launch_async_task("tests.testapp.tasks.echo", sync=True)
        silence()
        process.beat()
        return processes.find_lost() == []

    monkeypatch.setattr(tasks, "add", launch_another)
    manager.launch_async_task(ADD, 1, conflict_ids=ONE)
    assert deliver() is True
    assert WorkerProcess.objects.get().cluster == "some cluster"


@pytest.mark.django_db(transaction=True)
def test_a_worker_that_was_declared_lost_claims_its_next_task_under_a_new_identity(process, manager, monkeypatch):
    process.become_worker("some cluster")
    lost = process.register()
    WorkerProcess.objects.update(lost_at=timezone.now())
    monkeypatch.setattr(tasks, "add", lambda *args: (ActiveTask.objects.get().worker_id, processes.find_lost()))
    manager.launch_async_task(ADD, 1)
    identity, found_lost = deliver()
    assert identity != lost
    assert found_lost == []


@pytest.mark.django_db(transaction=True)
def test_a_worker_that_has_no_row_any_more_gets_a_new_one(process, manager):
    process.register()
    WorkerProcess.objects.all().delete()
    manager.launch_async_task(ADD, 1)
    assert deliver() == 1


@pytest.mark.django_db(transaction=True)
def test_tasks_go_with_a_process_that_was_declared_lost_and_lives(process, manager, monkeypatch):
    """It was declared lost in the same moment in which it claimed the task."""

    def declare_lost(*args: object) -> list[ActiveTask]:
        WorkerProcess.objects.update(lost_at=timezone.now())
        assert len(processes.find_lost()) == 1
        process.beat()
        return processes.find_lost()

    monkeypatch.setattr(tasks, "add", declare_lost)
    manager.launch_async_task(ADD, 1)
    assert deliver() == []


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("in_transaction", [True, False])
def test_a_synchronous_task_in_a_transaction_is_not_lost(manager, record_of, monkeypatch, in_transaction):
    def launch_another(*args: object) -> str:
        manager.cleanup_completed_tasks()
        try:
            manager.launch_async_task("tests.testapp.tasks.echo", conflict_ids=ONE)
        except TaskConflict:
            return "refused"
        return "granted"

    monkeypatch.setattr(tasks, "add", launch_another)

    def launch() -> str:
        return manager.launch_async_task(ADD, 1, conflict_ids=ONE, sync=True)

    if in_transaction:
        with transaction.atomic():
            name = launch()
    else:
        name = launch()
    record = record_of(name)
    assert (record.status, record.result) == ("success", "refused")


@pytest.mark.django_db(transaction=True)
def test_an_identity_whose_row_was_rolled_back_is_not_used(process, manager, monkeypatch):
    """The task and its process find each other again with the next heartbeat."""

    def fail_to_move(*args: object) -> list[ActiveTask]:
        WorkerProcess.objects.update(lost_at=timezone.now())
        table = connection.ops.quote_name(ActiveTask._meta.db_table)
        with database_refuses(f"UPDATE {table}", 1), pytest.raises(OperationalError):
            process.beat()
        process.beat()
        return processes.find_lost()

    monkeypatch.setattr(tasks, "add", fail_to_move)
    manager.launch_async_task(ADD, 1)
    assert deliver() == []


@pytest.mark.django_db(transaction=True)
def test_a_lost_task_is_not_taken_over_under_a_lost_identity(process, manager):
    name = manager.launch_async_task(ADD, 1)
    claimed_elsewhere(name)
    me = process.register()
    WorkerProcess.objects.update(lost_at=timezone.now())
    (lost,) = processes.find_lost()
    assert ActiveTask.objects.take_over(lost, worker=me) is None
    assert ActiveTask.objects.take_over(lost, worker=process.replace(me)) is not None


@pytest.mark.django_db(transaction=True)
def test_a_claim_without_an_answer_is_found_as_lost(process, manager, record_of, monkeypatch):
    """It was granted, and then the database was away for long."""
    monkeypatch.setattr(worker_task, "DATABASE_RETRY_DELAYS", ())
    process.become_worker("some cluster")
    process.register()
    name = manager.launch_async_task(ADD, 1, conflict_ids=ONE)

    def break_after_claim(execute, sql, *args):
        execute(sql, *args)
        if sql.startswith(f"UPDATE {connection.ops.quote_name(ActiveTask._meta.db_table)}"):
            raise OperationalError("the connection broke")

    with connection.execute_wrapper(break_after_claim):
        assert deliver() == worker_task.NotRun(acknowledged=False)
    assert ActiveTask.objects.get().state == "in_progress"
    silence(pk=ActiveTask.objects.get().worker_id)
    process.beat()
    manager.cleanup_completed_tasks()
    assert record_of(name).failure_reason == "worker_lost"
    assert not ConflictLock.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_an_end_that_nobody_could_record_is_found_as_lost(process, manager, record_of, monkeypatch):
    monkeypatch.setattr(worker_task, "DATABASE_RETRY_DELAYS", ())
    process.become_worker("some cluster")
    name = manager.launch_async_task(ADD, 1, conflict_ids=ONE)
    with database_refuses(f"DELETE FROM {connection.ops.quote_name(ActiveTask._meta.db_table)}", 1):
        deliver()
    silence(pk=ActiveTask.objects.get().worker_id)
    process.beat()
    manager.cleanup_completed_tasks()
    assert record_of(name).failure_reason == "worker_lost"
    assert not ConflictLock.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_a_synchronous_task_is_completed_even_if_the_row_of_its_process_can_not_be_deleted(process, manager, record_of):
    with database_refuses(f"DELETE FROM {connection.ops.quote_name(WorkerProcess._meta.db_table)}", 1):
        name = manager.launch_async_task(ADD, 1, conflict_ids=ONE, sync=True)
    assert record_of(name).status == "success"
