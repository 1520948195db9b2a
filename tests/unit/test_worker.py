"""The callable that travels through the queue, called here as django-q2's worker calls it."""

from __future__ import annotations

import signal
import threading
import time
import uuid
from contextlib import contextmanager, suppress

import pytest
from django.db import DEFAULT_DB_ALIAS, OperationalError, connection, connections, transaction
from django.db.backends.signals import connection_created
from django.utils import timezone
from django_q.brokers.orm import ORM
from django_q.conf import Conf
from django_q.models import OrmQ
from django_q.timeout import TimeoutException, TimeoutHandler

from powercrud_dashboard.async_context import TaskContext, get_current_task, track
from powercrud_dashboard.async_manager import RetryPolicy
from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.dashboard_manager import DashboardAsyncManager
from powercrud_dashboard.engine import processes
from powercrud_dashboard.exceptions import EnqueueError
from powercrud_dashboard.models import ActiveTask, ConflictLock, TaskRecord, WorkerProcess
from powercrud_dashboard.signals import task_finished
from powercrud_dashboard.worker import task as worker_task
from powercrud_dashboard.worker.report import NotRun, TaskStopped
from tests.services import wait_until
from tests.testapp import tasks
from tests.workers import claimed_elsewhere, database_refuses, deliver, queued_call, silence

ADD, FAIL = "tests.testapp.tasks.add", "tests.testapp.tasks.fail"
ONE = {"testapp.Project": {1}}


def is_reporter(thread: threading.Thread) -> bool:
    return thread.name == "powercrud-dashboard-heartbeat"


@pytest.fixture
def slow_reporter():
    """Let the thread that writes progress and log lines wait for a second before its first transaction."""

    @contextmanager
    def slow(until):
        wait_until(lambda: not any(map(is_reporter, threading.enumerate())), "that of the last task has ended")
        is_new = threading.Event()

        def wait(execute, sql, params, many, context):
            # Both databases are asked to wait only for a short time, at the beginning of the transaction.
            if "timeout" in sql and not is_new.is_set():
                is_new.set()
                with suppress(AssertionError):
                    wait_until(until, "an end that does not wait is the first", 1)
            return execute(sql, params, many, context)

        def slow_down(connection, **kwargs):
            if is_reporter(threading.current_thread()):
                connection.execute_wrappers.append(wait)

        connection_created.connect(slow_down)
        try:
            yield
        finally:
            connection_created.disconnect(slow_down)
        assert is_new.is_set()

    return slow


@pytest.mark.django_db(transaction=True)
def test_the_text_of_the_call_is_the_functions_path(manager):
    manager.launch_async_task(tasks.add, 1)
    assert str(OrmQ.objects.get().task["func"]) == ADD


@pytest.mark.django_db(transaction=True)
def test_what_a_task_has_logged_is_written_before_its_end(manager, record_of, slow_reporter):
    name = manager.launch_async_task(tasks.log_until_taken, "Look here")
    with slow_reporter(until=lambda: record_of(name).is_finished):
        deliver()
    wait_until(lambda: record_of(name).events.filter(event="log").exists(), "the log is written")
    events = list(record_of(name).events.order_by("pk").values_list("event", flat=True))
    assert events == ["create", "start", "log", "complete", "cleanup"]


@pytest.mark.django_db(transaction=True)
def test_a_task_takes_few_statements_and_one_transaction(manager, django_assert_max_num_queries):
    """One claims a task and seven end it, with three events and its message; one more is the look into the queue.

    The monitor has no message to delete then.
    """
    manager.launch_async_task(ADD, 1)
    processes.this_process().beat()
    with django_assert_max_num_queries(9) as captured:
        deliver()
    assert sum(query["sql"].startswith("SAVEPOINT") for query in captured) == 0
    assert not OrmQ.objects.exists()


def break_off() -> None:
    for _ in track([1, 2], description="Counting"):
        raise LookupError("odd")


@pytest.mark.django_db(transaction=True)
def test_the_last_report_precedes_the_end_in_the_timeline(manager, record_of):
    name = manager.launch_async_task(break_off)
    with pytest.raises(LookupError):
        deliver()
    events = [event.event for event in record_of(name).events.order_by("timestamp", "pk")]
    assert events == ["create", "start", "progress", "fail", "cleanup"]


@pytest.mark.django_db(transaction=True)
def test_a_late_worker_touches_nothing_of_its_successor(manager, record_of, monkeypatch):
    """The task was given up, delivered again and runs elsewhere when the first worker ends after all."""
    name = manager.launch_async_task(tasks.add, 1, conflict_ids=ONE)

    def taken_over_meanwhile(*args: object, **kwargs: object) -> int:
        ActiveTask.objects.update(attempt=2, worker=None)
        return 1

    monkeypatch.setattr(tasks, "add", taken_over_meanwhile)
    assert deliver() == 1
    assert not record_of(name).is_finished
    assert ActiveTask.objects.get().attempt == 2
    assert ConflictLock.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_a_second_delivery_does_not_run_what_was_cancelled_before_its_worker_was_lost(manager, record_of, superuser):
    name = manager.launch_async_task(ADD, 1, conflict_ids=ONE)
    claimed_elsewhere(name)
    assert manager.cancel_task(name, user=superuser)
    silence()
    assert deliver() == NotRun(acknowledged=True)
    record = record_of(name)
    assert (record.status, record.attempts) == ("cancelled", 1)
    assert record.events.get(event="cancel").actor == superuser
    assert not ConflictLock.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_a_task_that_ends_after_it_was_given_up_is_recorded_as_what_it_was(manager, record_of, monkeypatch, settings):
    # Its own worker does not look in the meantime whether it was given up.
    monkeypatch.setattr(processes, "HEARTBEAT_INTERVAL", 3600)
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_HEARTBEAT_TIMEOUT": 600}
    name = manager.launch_async_task(tasks.add, 1, conflict_ids=ONE)

    def given_up_meanwhile(*args: object, **kwargs: object) -> int:
        lost = WorkerProcess.objects.create(identity="lost", host="elsewhere", pid=1)
        ActiveTask.objects.update(worker=lost)
        silence(pk="lost")
        assert name in manager.cleanup_completed_tasks()["cleaned"]
        assert record_of(name).failure_reason == "worker_lost"
        return 1

    monkeypatch.setattr(tasks, "add", given_up_meanwhile)
    assert deliver() == 1
    assert (record_of(name).status, record_of(name).result, record_of(name).error) == ("success", 1, "")
    assert not ActiveTask.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_a_claim_that_the_database_refuses_is_left_to_the_next_delivery(manager, record_of, monkeypatch):
    name = manager.launch_async_task(ADD, 1)
    monkeypatch.setattr(worker_task, "DATABASE_RETRY_DELAYS", (0.0,))
    with database_refuses(f"UPDATE {connection.ops.quote_name(ActiveTask._meta.db_table)}", 2):
        assert deliver() == NotRun(acknowledged=False)
    assert record_of(name).status == "pending"


@pytest.mark.django_db(transaction=True)
def test_a_claim_whose_confirmation_was_lost_is_not_left_lying(manager, record_of, monkeypatch):
    """The connection broke after the commit: nobody else will run the task."""
    name = manager.launch_async_task(ADD, 1)
    processes.this_process().beat()
    commit, answers = connection._commit, iter([OperationalError("the connection broke")])

    def break_after_commit() -> None:
        commit()
        if (error := next(answers, None)) is not None:
            raise error

    monkeypatch.setattr(worker_task, "DATABASE_RETRY_DELAYS", (0.01, 1.0))
    monkeypatch.setattr(connections[DEFAULT_DB_ALIAS], "_commit", break_after_commit)
    assert deliver() == 1
    assert record_of(name).status == "success"
    assert record_of(name).attempts == 1


class ToldManager(DashboardAsyncManager):
    told: list[object] = []

    def async_task_lifecycle(self, event, task_name, **payload):
        super().async_task_lifecycle(event, task_name, **payload)
        self.told.append(event)

    def handle_task_completion(self, task, task_name):
        self.told.append(task.success)


@pytest.mark.django_db(transaction=True)
def test_a_postponement_whose_confirmation_was_lost_is_recorded_once_and_told(record_of, monkeypatch):
    ToldManager.told.clear()
    name = ToldManager().launch_async_task(FAIL, conflict_ids=ONE, retry=RetryPolicy(max_retries=1, backoff=0))
    commit, answers = connection._commit, iter([OperationalError("the connection broke")])
    postponed: list[str] = []

    def note_postponement(execute, sql, params, many, context):
        postponed.extend([sql] if sql.startswith("UPDATE") and '"next_run_at" = ' in sql else [])
        return execute(sql, params, many, context)

    def break_after_the_postponement() -> None:
        commit()
        if postponed and (error := next(answers, None)) is not None:
            raise error

    monkeypatch.setattr(worker_task, "DATABASE_RETRY_DELAYS", (0.01, 1.0))
    monkeypatch.setattr(connections[DEFAULT_DB_ALIAS], "_commit", break_after_the_postponement)
    with suppress(ValueError), connection.execute_wrapper(note_postponement):
        deliver()
    assert next(answers, None) is None
    assert list(record_of(name).events.values_list("event", flat=True)) == ["create", "start", "retry"]
    assert ToldManager.told == ["create", "start", "retry"]
    assert ActiveTask.objects.waiting().exists()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("func", ["add", "fail"])
def test_an_end_whose_confirmation_was_lost_is_recorded_once_and_told(record_of, monkeypatch, func):
    """The connection broke after the commit of the end."""
    ToldManager.told.clear()
    signals: list[str] = []

    def note(sender, event, **kwargs):
        signals.append(event)

    name = ToldManager().launch_async_task(f"tests.testapp.tasks.{func}", 1, conflict_ids=ONE)
    commit, answers = connection._commit, iter([OperationalError("the connection broke")])
    ends: list[str] = []

    def note_end(execute, sql, params, many, context):
        ends.extend([sql] if sql.startswith('DELETE FROM "powercrud_dashboard_activetask"') else [])
        return execute(sql, params, many, context)

    def break_after_the_end() -> None:
        commit()
        if ends and (error := next(answers, None)) is not None:
            raise error

    monkeypatch.setattr(worker_task, "DATABASE_RETRY_DELAYS", (0.01, 1.0))
    monkeypatch.setattr(connections[DEFAULT_DB_ALIAS], "_commit", break_after_the_end)
    task_finished.connect(note)
    try:
        with suppress(ValueError), connection.execute_wrapper(note_end):
            deliver()
    finally:
        task_finished.disconnect(note)
    ended = "complete" if func == "add" else "fail"
    assert next(answers, None) is None
    assert list(record_of(name).events.values_list("event", flat=True)) == ["create", "start", ended, "cleanup"]
    assert ToldManager.told == ["create", "start", ended, "cleanup", func == "add"]
    assert signals == [ended]


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even that")

    __repr__ = __str__


@pytest.mark.django_db(transaction=True)
def test_an_error_that_can_not_be_printed_is_recorded(manager, record_of, monkeypatch):
    def raise_it(*args: object, **kwargs: object) -> None:
        raise Unprintable

    name = manager.launch_async_task(tasks.add, 1, conflict_ids=ONE)
    monkeypatch.setattr(tasks, "add", raise_it)
    # django-q2's worker prints what it catches, and would die of this one.
    with pytest.raises(TaskStopped, match="was stopped by Unprintable"):
        deliver()
    record = record_of(name)
    assert (record.status, record.exception_class) == ("failed", f"{__name__}.Unprintable")
    assert "can't be printed" in record.error
    assert not ConflictLock.objects.exists()


@pytest.fixture
def queue_elsewhere(monkeypatch):
    """Let django-q2's broker use a table in the other database."""
    monkeypatch.setattr(Conf, "ORM", "archive")
    with connections["archive"].schema_editor() as editor:
        editor.create_model(OrmQ)
    yield OrmQ.objects.using("archive")
    with connections["archive"].schema_editor() as editor:
        editor.delete_model(OrmQ)


@pytest.mark.django_db(transaction=True, databases=["default", "archive"])
def test_a_queue_in_another_database_tells_its_receipts_too(manager, record_of, queue_elsewhere, settings):
    """Then the entry is sent after the commit, and cleanup still knows what the queue has lost."""
    settings.POWERCRUD_SETTINGS = {"CLEANUP_GRACE_PERIOD": 0}
    with transaction.atomic():
        name = manager.launch_async_task(ADD, 1)
        assert not queue_elsewhere.exists()
    assert ActiveTask.objects.get().queue_receipt == str(queue_elsewhere.get().pk)
    assert manager.cleanup_completed_tasks()["cleaned"] == {}
    queue_elsewhere.all().delete()
    assert manager.cleanup_completed_tasks()["cleaned"][name]["reason"] == "lost in the queue"


@pytest.mark.django_db(transaction=True, databases=["default", "archive"])
def test_a_queue_in_another_database_that_is_away_keeps_no_task_from_being_cancelled(
    manager, record_of, queue_elsewhere
):
    name = manager.launch_async_task(ADD, 1, conflict_ids=ONE)
    with database_refuses("DELETE", 1, using="archive"):
        assert manager.cancel_task(name)
    assert record_of(name).status == "cancelled"
    assert queue_elsewhere.exists()
    assert not ConflictLock.objects.exists()


@pytest.mark.django_db
def test_a_queue_entry_that_can_not_be_written_leaves_a_failed_record_and_an_error(manager, monkeypatch):
    def enqueue(self: ORM, message: str) -> None:
        raise OperationalError("disk full")

    monkeypatch.setattr(ORM, "enqueue", enqueue)
    with pytest.raises(EnqueueError, match="could not be queued: OperationalError: disk full"):
        manager.launch_async_task(ADD, 1, conflict_ids=ONE)
    record = TaskRecord.objects.get()
    assert (record.status, record.failure_reason) == ("failed", "not_queued")
    assert not ActiveTask.objects.exists()
    assert not ConflictLock.objects.exists()


def test_log_lines_that_can_not_be_written_yet_are_kept_in_their_order():
    context = TaskContext("task-1", DashboardAsyncManager(), writes_at_once=False)
    for text in ("one", "two"):
        context.log(text)
    logged = context.take_log()
    context.log("three")
    context.put_back_log(logged)
    logged = context.take_log()
    assert [text for text, _level, _time in logged.timeline] == ["one", "two", "three"]
    assert [line.message for line in logged.lines] == ["one", "two", "three"]


class NeedsArgument(DashboardAsyncManager):
    """A manager that can't be made any more."""

    def __init__(self, required):
        super().__init__()


@pytest.mark.django_db(transaction=True)
def test_a_manager_that_can_not_be_made_any_more_loses_no_task(manager, record_of):
    name = manager.launch_async_task(tasks.add, 1, 2, conflict_ids=ONE)
    ActiveTask.objects.update(manager_class=f"{__name__}.NeedsArgument")
    assert deliver() == 3
    assert record_of(name).status == "success"
    assert not ConflictLock.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_a_manager_that_can_not_be_made_any_more_stops_no_cleanup(manager, record_of):
    names = [manager.launch_async_task(tasks.add, 1), manager.launch_async_task(tasks.add, 1)]
    ActiveTask.objects.filter(task_name=names[0]).update(manager_class=f"{__name__}.NeedsArgument")
    for name in names:
        claimed_elsewhere(name)
    WorkerProcess.objects.update(lost_at=timezone.now())
    manager.cleanup_completed_tasks()
    assert [record_of(name).failure_reason for name in names] == ["worker_lost", "worker_lost"]


@pytest.mark.django_db(transaction=True)
def test_a_retry_policy_whose_exception_can_not_be_imported_any_more_loses_no_task(
    manager, record_of, tmp_path, monkeypatch
):
    (tmp_path / "gone_after_deploy.py").write_text("raise RuntimeError('no longer here')")
    monkeypatch.syspath_prepend(tmp_path)
    name = manager.launch_async_task(tasks.fail, "boom", conflict_ids=ONE, retry=RetryPolicy(retry_on=(LookupError,)))
    policy = {**ActiveTask.objects.get().policy, "retry_on": ["gone_after_deploy.Error"]}
    ActiveTask.objects.update(policy=policy)
    with pytest.raises(ValueError, match="boom"):
        deliver()
    assert record_of(name).status == "failed"
    assert not ConflictLock.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_a_process_that_can_not_register_leaves_the_message_in_the_queue(manager, record_of, monkeypatch):
    name = manager.launch_async_task(ADD, 1)
    monkeypatch.setattr(worker_task, "DATABASE_RETRY_DELAYS", (0.0,))
    processes.begin_anew()
    with database_refuses(f"INSERT INTO {connection.ops.quote_name(WorkerProcess._meta.db_table)}", 2):
        assert deliver() == NotRun(acknowledged=False)
    assert record_of(name).status == "pending"
    assert deliver() == 1


@pytest.mark.django_db(transaction=True)
def test_a_synchronous_task_that_can_not_be_claimed_is_an_error(manager):
    claim = f"UPDATE {connection.ops.quote_name(ActiveTask._meta.db_table)}"
    with database_refuses(claim, 1), pytest.raises(OperationalError):
        manager.launch_async_task(ADD, 1, conflict_ids=ONE, sync=True)
    assert TaskRecord.objects.get().status == "failed"
    assert not ConflictLock.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_the_time_limit_waits_until_the_task_was_claimed(manager, record_of, monkeypatch, tmp_path, own_connection):
    """It comes while the worker waits for the database."""
    name = manager.launch_async_task(tasks.wait_for_file, str(tmp_path / "none"), conflict_ids=ONE)
    processes.this_process().beat()
    monkeypatch.setattr(worker_task, "DATABASE_RETRY_DELAYS", (2.5,))
    claim = f"UPDATE {connection.ops.quote_name(ActiveTask._meta.db_table)}"
    run = queued_call()
    with database_refuses(claim, 1), pytest.raises(TimeoutException), TimeoutHandler(2):
        run()
    assert (record_of(name).status, record_of(name).failure_reason) == ("failed", "timeout")
    assert not ConflictLock.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_the_time_limit_does_not_interrupt_a_commit(manager, monkeypatch):
    def work(*args: object) -> list[float]:
        before = signal.getitimer(signal.ITIMER_REAL)[0]
        get_current_task().commit_now()
        return [before, signal.getitimer(signal.ITIMER_REAL)[0]]

    monkeypatch.setattr(tasks, "add", work)
    manager.launch_async_task(ADD, 1)
    with TimeoutHandler(600):
        before, after = deliver()
    assert before > after == 0


@pytest.mark.django_db(transaction=True)
def test_a_task_may_be_named_by_its_uuid(manager, monkeypatch):
    key = uuid.uuid4()

    def work(*args: object) -> tuple[bool, str | None]:
        manager.update_progress(key, "half way")
        progress = manager.get_progress(key)
        # Others have taken the task over meanwhile.
        ActiveTask.objects.update(attempt=2)
        return manager.add_conflict_ids(key, ONE), progress

    monkeypatch.setattr(tasks, "add", work)
    manager.launch_async_task(ADD, 1, task_key=key)
    # Its worker only notes progress, and locks nothing for a task that has passed on.
    assert deliver() == (False, None)


@pytest.fixture
def reporter_kept_out():
    """Let SQLite's one writer keep the thread that writes the heartbeat out, readers too, as without WAL."""

    def execute(execute, sql, params, many, context):
        if not sql.startswith("PRAGMA"):
            raise OperationalError("database is locked")
        return execute(sql, params, many, context)

    def keep_out(connection, **kwargs):
        if is_reporter(threading.current_thread()):
            connection.execute_wrappers.append(execute)

    wait_until(lambda: not any(map(is_reporter, threading.enumerate())), "that of the last task has ended")
    connection_created.connect(keep_out)
    yield
    connection_created.disconnect(keep_out)


@pytest.mark.skipif(connection.vendor != "sqlite", reason="PostgreSQL has more than one writer")
@pytest.mark.django_db(transaction=True)
def test_no_heartbeat_is_overdue_while_sqlite_keeps_readers_out(manager, record_of, monkeypatch, reporter_kept_out):
    def work(*args: object) -> bool:
        is_overdue = get_current_task().is_overdue
        return any(is_overdue() or time.sleep(0.1) for _ in range(10 * app_settings.DASHBOARD_HEARTBEAT_TIMEOUT + 20))

    monkeypatch.setattr(tasks, "add", work)
    name = manager.launch_async_task(ADD, 1)
    assert deliver() is False
    assert record_of(name).status == "success"
