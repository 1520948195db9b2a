"""The callable that travels through the queue, called here as django-q2's worker calls it."""

from __future__ import annotations

import threading
import time
import uuid
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from multiprocessing import Value
from queue import SimpleQueue

import pytest
from django.contrib.auth.models import User
from django.db import DEFAULT_DB_ALIAS, OperationalError, connection, connections, transaction
from django.db.backends.signals import connection_created
from django.utils import timezone
from django_q.brokers import get_broker
from django_q.brokers.orm import ORM
from django_q.conf import Conf
from django_q.models import OrmQ, Task
from django_q.monitor import monitor
from django_q.signals import post_execute_in_worker
from django_q.timeout import TimeoutException, TimeoutHandler
from django_q.worker import worker

from powercrud_dashboard.async_context import TaskContext, get_current_task, track
from powercrud_dashboard.async_manager import RetryPolicy
from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.dashboard_manager import DashboardAsyncManager
from powercrud_dashboard.engine import processes
from powercrud_dashboard.exceptions import EnqueueError, TaskCancelled
from powercrud_dashboard.models import ActiveTask, ConflictLock, TaskRecord, WorkerProcess
from powercrud_dashboard.q2 import queue
from powercrud_dashboard.signals import task_finished
from powercrud_dashboard.worker import task as worker_task
from powercrud_dashboard.worker.report import NotRun, TaskStopped
from tests.services import wait_until
from tests.testapp import tasks
from tests.testapp.models import Project
from tests.workers import claimed_elsewhere, database_refuses, deliver, meanwhile, queued_call, silence

ADD, FAIL = "tests.testapp.tasks.add", "tests.testapp.tasks.fail"
ONE = {"testapp.Project": {1}}


@pytest.fixture
def database_away(monkeypatch):
    """Make ending a task fail so many times."""
    monkeypatch.setattr(worker_task, "DATABASE_RETRY_DELAYS", (0.0, 0.0))
    return partial(database_refuses, f"DELETE FROM {connection.ops.quote_name(ActiveTask._meta.db_table)}")


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
def test_a_database_that_is_away_for_a_moment_loses_no_end(manager, record_of, database_away):
    name = manager.launch_async_task(ADD, 1, conflict_ids=ONE)
    with database_away(2):
        assert deliver() == 1
    assert record_of(name).status == "success"
    assert not ConflictLock.objects.exists()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("func", "status", "reason"), [(ADD, "success", ""), (FAIL, "failed", "error")])
def test_a_database_that_is_away_for_a_moment_loses_no_end_of_a_synchronous_task(
    manager, database_away, func, status, reason
):
    with database_away(2), suppress(ValueError):
        manager.launch_async_task(func, conflict_ids=ONE, sync=True, task_args=[1] if func == ADD else [])
    record = TaskRecord.objects.get()
    assert (record.status, record.failure_reason) == (status, reason)
    assert not ConflictLock.objects.exists()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("success", "result", "expected"),
    [
        (True, 1, ("success", 1, "")),
        (False, "it broke : Traceback (most recent call last): ...", ("failed", None, "it broke")),
    ],
)
def test_an_end_that_could_not_be_recorded_is_made_up_for_by_django_qs_hook(
    manager, record_of, database_away, monkeypatch, success, result, expected
):
    name = manager.launch_async_task(ADD, 1, conflict_ids=ONE)
    finished = {"name": name, "hook": queue.COMPLETION_HOOK, "result": result, "kwargs": {}}
    with database_away(3):
        assert deliver() == 1
    post_execute_in_worker.send(sender="django_q", func=None, task=finished)
    assert not record_of(name).is_finished
    now = timezone.now()
    row = Task(id="0" * 32, name=name, func=ADD, hook=queue.COMPLETION_HOOK, started=now, stopped=now)
    row.success, row.result = success, result
    # A row that does not tell the attempt may be of one before.
    for kwargs in ({}, {queue.ATTEMPT: 0}):
        row.kwargs = kwargs
        row.save()
        assert not record_of(name).is_finished
    row.kwargs = finished["kwargs"]
    row.save()
    record = record_of(name)
    assert (record.status, record.result, record.error) == expected
    # The start was to be recorded with the end.
    assert list(record.events.values_list("event", flat=True))[:2] == ["create", "start"]
    assert record.attempts == 1
    assert not ConflictLock.objects.exists()


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


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("failures", [0, 3])
def test_the_monitor_acknowledges_only_messages_that_are_still_there(manager, database_away, failures):
    name = manager.launch_async_task(ADD, 1)
    task = {"name": name, "result": 1, "kwargs": {}, "ack_id": OrmQ.objects.get().pk, "hook": queue.COMPLETION_HOOK}
    twin = {**task, "ack_id": 4711}
    with database_away(failures):
        deliver()
    post_execute_in_worker.send(sender="django_q", func=None, task=task)
    post_execute_in_worker.send(sender="django_q", func=None, task=twin)
    assert OrmQ.objects.exists() == bool(failures)
    assert (task["ack_id"] is None) == (not failures)
    # Another delivery of the same task.
    assert twin["ack_id"] == 4711


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("failures", [0, 3])
def test_the_monitor_looks_after_a_task_only_if_its_end_could_not_be_recorded(manager, database_away, failures):
    name = manager.launch_async_task(ADD, 1)
    hook = OrmQ.objects.get().task["hook"]
    with database_away(failures):
        deliver()
    finished = {"name": name, "hook": hook, "result": 1, "kwargs": {}}
    post_execute_in_worker.send(sender="django_q", func=None, task=finished)
    assert finished["hook"] == (hook if failures else None)


called_with: list[str] = []


def own_hook(task):
    called_with.append(task.name)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("failures", [0, 3])
@pytest.mark.parametrize("options", [{}, {"hook": f"{__name__}.own_hook"}, {"save": False}, {"cached": 60}])
def test_an_end_that_could_not_be_recorded_is_recorded_by_the_monitor(
    manager, database_away, record_of, failures, options
):
    """A hook of the project's own is called in any case."""
    called_with.clear()
    name = manager.launch_async_task(ADD, 1, conflict_ids=ONE, q_options=options)
    task = {**OrmQ.objects.get().task, "result": 1, "success": True, "stopped": timezone.now()}
    with database_away(failures):
        deliver()
    post_execute_in_worker.send(sender="django_q", func=None, task=task)
    monitor_one(task)
    assert called_with == ([name] if "hook" in options else [])
    assert record_of(name).status == "success"
    assert not ConflictLock.objects.exists()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("how", "status", "reason", "exception_class"),
    [
        ("connection", "pending", "error", "builtins.ConnectionError"),
        ("value", "failed", "error", "builtins.ValueError"),
        ("time", "failed", "timeout", "django_q.exceptions.TimeoutException"),
        ("cancel", "cancelled", "", ""),
    ],
)
def test_the_monitor_records_an_end_as_what_it_was(
    manager, superuser, database_away, record_of, own_connection, how, status, reason, exception_class
):
    """Also whether its policy retries it, and who has cancelled it."""
    policy = RetryPolicy(max_retries=1, retry_on=[ConnectionError])
    name = manager.launch_async_task(f"{__name__}.end_by", how, superuser.pk, conflict_ids=ONE, retry=policy)
    task = {**OrmQ.objects.get().task, "success": False, "stopped": timezone.now()}
    try:
        with suppress(BaseException):
            deliver()
    finally:
        away_at_the_end.close()
    post_execute_in_worker.send(sender="django_q", func=None, task=task)
    monitor_one({**task, "result": "it ended : Traceback ..."})
    record = record_of(name)
    assert (record.status, record.failure_reason, record.exception_class) == (status, reason, exception_class)
    if how == "cancel":
        assert record.events.get(event="cancel").actor == superuser


away_at_the_end = ExitStack()


def end_by(how: str, user: int) -> None:
    task = get_current_task()
    if how == "cancel":
        assert task.manager.cancel_task(task.task_name, user=User.objects.get(pk=user))
    away_at_the_end.enter_context(database_refuses("", 99))
    if how == "cancel":
        raise TaskCancelled(task.task_name)
    raise {"connection": ConnectionError, "value": ValueError, "time": TimeoutException}[how]


def monitor_one(task) -> None:
    """Have django-q2's monitor save the task and call its hook."""
    results: SimpleQueue = SimpleQueue()
    results.put(task)
    results.put("STOP")
    monitor(results, get_broker())


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("has_run_before", [False, True])
def test_a_delivery_that_is_interrupted_before_its_claim_loses_no_message(manager, record_of, has_run_before):
    """As a process that is frozen there for longer than the time limit, which then has passed."""
    name = manager.launch_async_task(f"{__name__}.fail_once", retry=RetryPolicy(max_retries=1, backoff=0))
    if has_run_before:
        failures.append(ValueError("at first"))
        work_and_monitor()
        assert manager.run_task_now(name)
    with meanwhile(time_is_over, before=f"UPDATE {connection.ops.quote_name(ActiveTask._meta.db_table)}"):
        work_and_monitor()
    assert record_of(name).status == "pending"
    assert Task.objects.filter(name=name).count() == int(has_run_before)
    work_and_monitor()
    assert record_of(name).status == "success"
    assert not OrmQ.objects.exists()


def time_is_over() -> None:
    raise TimeoutException


def work_and_monitor() -> None:
    """Have django-q2's own worker and monitor take the message in the queue."""
    message, taken, results = OrmQ.objects.get(), SimpleQueue(), SimpleQueue()
    taken.put({**message.task, "ack_id": message.pk})
    taken.put("STOP")
    worker(taken, results, Value("i", -1), 8)
    monitor_one(results.get())


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


@pytest.mark.django_db(transaction=True)
def test_a_second_delivery_of_a_message_has_a_hook_of_its_own(manager, record_of, database_away):
    """The row that django-q2 has saved of the first one has none."""
    name = manager.launch_async_task(
        f"{__name__}.fail_once", conflict_ids=ONE, retry=RetryPolicy(max_retries=1, backoff=0)
    )
    failures.append(ValueError("at first"))
    options = {"stopped": timezone.now()}
    first = {**OrmQ.objects.get().task, "result": "at first", "success": False, **options}
    second = {**OrmQ.objects.get().task, "result": 1, "success": True, **options}
    with suppress(ValueError):
        deliver()
    post_execute_in_worker.send(sender="django_q", func=None, task=first)
    # Its acknowledgement is lost.
    monitor_one({**first, "ack_id": None})
    assert manager.run_task_now(name)
    OrmQ.objects.latest("pk").delete()
    with database_away(3):
        assert deliver() == 1
    post_execute_in_worker.send(sender="django_q", func=None, task=second)
    monitor_one(second)
    assert record_of(name).status == "success"
    assert not ConflictLock.objects.exists()


failures: list[Exception] = []


def fail_once() -> int:
    if failures:
        raise failures.pop()
    return 1


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


@pytest.fixture
def own_connection():
    """Restore the connection, which an interruption replaces, as the database is deleted with it."""
    original = connections[DEFAULT_DB_ALIAS]
    yield
    connections.close_all()
    connections[DEFAULT_DB_ALIAS] = original


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
def test_a_hook_of_the_projects_own_is_called_even_if_the_end_can_not_be_recorded(manager, database_away):
    called_with.clear()
    name = manager.launch_async_task(ADD, 1)
    claimed_elsewhere(name)
    now = timezone.now()
    kwargs = {queue.ATTEMPT: 1, queue.OWN_HOOK: f"{__name__}.own_hook"}
    row = Task(id="0" * 32, name=name, func=ADD, hook=queue.COMPLETION_HOOK, kwargs=kwargs, started=now, stopped=now)
    row.success = True
    with database_away(1):
        row.save()
    assert called_with == [name]


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


def leave_block_open() -> None:
    transaction.atomic().__enter__()
    Project.objects.create(name="in a block")


def leave_block_open_and_fail() -> None:
    leave_block_open()
    raise ValueError("it broke")


def leave_transaction_open() -> None:
    transaction.set_autocommit(False)
    Project.objects.create(name="by hand")


def break_connection_and_fail() -> None:
    leave_transaction_open()
    connection.connection.close()
    raise ValueError("it broke")


def commit_by_hand() -> None:
    leave_transaction_open()
    transaction.commit()
    assert Project.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_a_connection_that_is_broken_in_a_transaction_does_not_hide_the_error(manager, record_of, own_connection):
    name = manager.launch_async_task(break_connection_and_fail)
    with pytest.raises(ValueError, match="it broke"):
        deliver()
    assert (record_of(name).status, record_of(name).error) == ("failed", "it broke")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("in_transaction", [False, True])
@pytest.mark.parametrize(
    ("func", "error"),
    [
        (leave_block_open, "a transaction was left open on 'default'"),
        (leave_block_open_and_fail, "it broke"),
        (leave_transaction_open, "a transaction was left open on 'default'"),
        (commit_by_hand, ""),
    ],
)
def test_a_task_that_leaves_a_transaction_open_is_not_completed(
    manager, record_of, own_connection, func, error, sync, in_transaction
):
    """What it has written is rolled back, as nobody would commit it."""
    if in_transaction and (not sync or "block" not in func.__name__):
        pytest.skip("a worker has no transaction of its own, and in one nobody can change autocommit")
    with transaction.atomic() if in_transaction else nullcontext(), suppress(ValueError, OperationalError):
        manager.launch_async_task(func, task_key="one", sync=sync)
        if not sync:
            deliver()
    connections.close_all()
    record = record_of("one")
    assert error in record.error
    assert (record.status, Project.objects.exists()) == (("failed", False) if error else ("success", True))
    assert not ActiveTask.objects.exists()


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
