"""The callable that travels through the queue, called here as django-q2's worker calls it."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta

import pytest
from django.db import OperationalError
from django.utils import timezone
from django_q.brokers.orm import ORM
from django_q.models import OrmQ, Task
from django_q.signals import post_execute_in_worker

from powercrud_dashboard import lifecycle, queueing
from powercrud_dashboard.async_context import TaskContext
from powercrud_dashboard.exceptions import EnqueueError
from powercrud_dashboard.models import ActiveTask, ConflictLock, TaskRecord
from powercrud_dashboard.worker import reporter
from powercrud_dashboard.worker import task as worker_task
from powercrud_dashboard.worker.task import NotRun, TaskStopped
from tests.services import wait_until
from tests.testapp import tasks

ADD = "tests.testapp.tasks.add"
ONE = {"testapp.Project": {1}}


def deliver() -> object:
    """Run the queued task in this process."""
    message = OrmQ.objects.get().task
    return message["func"](*message["args"], **message["kwargs"])


@pytest.fixture
def database_away(monkeypatch):
    """Make ending a task fail so many times."""
    monkeypatch.setattr(worker_task, "DATABASE_RETRY_DELAYS", (0.0, 0.0))
    original = lifecycle.end

    def be_away(times: int) -> None:
        failures = iter(range(times))

        def end(*args: object, **kwargs: object) -> bool:
            if next(failures, None) is not None:
                raise OperationalError("the server closed the connection")
            return original(*args, **kwargs)

        monkeypatch.setattr(lifecycle, "end", end)

    return be_away


@pytest.mark.django_db(transaction=True)
def test_the_text_of_the_call_is_the_functions_path(manager):
    manager.launch_async_task(tasks.add, 1)
    assert str(OrmQ.objects.get().task["func"]) == ADD


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("cancels", [False, True], ids=["", "cancelled too late"])
def test_what_a_task_has_logged_is_written_before_its_end(manager, record_of, monkeypatch, cancels):
    name = manager.launch_async_task(tasks.log_until_taken, "Look here")
    original = reporter.write_transaction

    def slowly():
        # Gives an end that does not wait the time to be first.
        with suppress(AssertionError):
            wait_until(lambda: record_of(name).is_finished, "the end is recorded", 1)
        if cancels:
            ActiveTask.objects.all().request_cancel(name, None)
        return original()

    monkeypatch.setattr(reporter, "write_transaction", slowly)
    deliver()
    wait_until(lambda: record_of(name).events.filter(event="log").exists(), "the log is written")
    events = list(record_of(name).events.order_by("pk").values_list("event", flat=True))
    assert events == ["create", "start", "log", "complete", "cleanup"]


@pytest.mark.django_db(transaction=True)
def test_a_database_that_is_away_for_a_moment_loses_no_end(manager, record_of, database_away):
    name = manager.launch_async_task(ADD, 1, conflict_ids=ONE)
    database_away(2)
    assert deliver() == 1
    assert record_of(name).status == "success"
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
    database_away(3)
    assert deliver() == 1
    assert record_of(name).status == "in_progress"
    now = timezone.now()
    row = Task(id="0" * 32, name=name, func=ADD, hook=queueing.COMPLETION_HOOK, started=now, stopped=now)
    row.success, row.result = success, result
    # A heartbeat this fresh may be that of a worker which has taken the task over.
    row.save()
    assert record_of(name).status == "in_progress"
    ActiveTask.objects.update(heartbeat_at=now - timedelta(seconds=6))
    row.save()
    record = record_of(name)
    assert (record.status, record.result, record.error) == expected
    assert not ConflictLock.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_a_task_takes_few_statements_and_two_transactions(manager, django_assert_max_num_queries):
    """Nine begin a task and ten end it, with three events; one more is the look into the queue."""
    manager.launch_async_task(ADD, 1)
    with django_assert_max_num_queries(20) as captured:
        deliver()
    assert sum(query["sql"].startswith("SAVEPOINT") for query in captured) == 2


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("failures", [0, 3])
def test_the_monitor_looks_after_a_task_only_if_its_end_could_not_be_recorded(manager, database_away, failures):
    name = manager.launch_async_task(ADD, 1)
    hook = OrmQ.objects.get().task["hook"]
    database_away(failures)
    deliver()
    finished = {"name": name, "hook": hook, "result": 1}
    post_execute_in_worker.send(sender="django_q", func=None, task=finished)
    assert finished["hook"] == (hook if failures else None)
    # A hook of the project's own is called in any case.
    own = {"name": name, "hook": "project.hook", "result": 1}
    post_execute_in_worker.send(sender="django_q", func=None, task=own)
    assert own["hook"] == "project.hook"


@pytest.mark.django_db(transaction=True)
def test_a_late_worker_touches_nothing_of_its_successor(manager, record_of, monkeypatch):
    """The task was given up, delivered again and runs elsewhere when the first worker ends after all."""
    name = manager.launch_async_task(tasks.add, 1, conflict_ids=ONE)

    def taken_over_meanwhile(*args: object, **kwargs: object) -> int:
        ActiveTask.objects.update(attempt=2, worker_host="elsewhere")
        return 1

    monkeypatch.setattr(tasks, "add", taken_over_meanwhile)
    assert deliver() == 1
    assert record_of(name).status == "in_progress"
    assert ActiveTask.objects.get().attempt == 2
    assert ConflictLock.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_a_task_that_ends_after_it_was_given_up_is_recorded_as_what_it_was(manager, record_of, monkeypatch):
    name = manager.launch_async_task(tasks.add, 1, conflict_ids=ONE)

    def given_up_meanwhile(*args: object, **kwargs: object) -> int:
        ActiveTask.objects.update(worker_host="elsewhere", heartbeat_at=timezone.now() - timedelta(minutes=5))
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

    def claim(*args: object, **kwargs: object) -> None:
        raise OperationalError("the server closed the connection")

    monkeypatch.setattr(worker_task, "DATABASE_RETRY_DELAYS", (0.0,))
    monkeypatch.setattr(worker_task, "claim", claim)
    assert deliver() == NotRun(acknowledged=False)
    assert record_of(name).status == "pending"


@pytest.mark.django_db(transaction=True)
def test_a_claim_whose_confirmation_was_lost_is_not_left_lying(manager, record_of, monkeypatch):
    """The connection broke after the commit: nobody else will run the task."""
    name = manager.launch_async_task(ADD, 1)
    original, answers = worker_task.claim, iter([OperationalError("the connection broke")])

    def claim(*args: object, **kwargs: object) -> object:
        granted = original(*args, **kwargs)
        if (error := next(answers, None)) is not None:
            raise error
        return granted

    monkeypatch.setattr(worker_task, "DATABASE_RETRY_DELAYS", (0.01, 1.0))
    monkeypatch.setattr(worker_task, "claim", claim)
    assert deliver() == 1
    assert record_of(name).status == "success"
    assert record_of(name).attempts == 1


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


@pytest.mark.django_db(transaction=True)
def test_a_queue_in_another_database_tells_its_receipts_too(manager, record_of, monkeypatch, settings):
    """Then the entry is sent after the commit, and cleanup still knows what the queue has lost."""
    settings.POWERCRUD_SETTINGS = {"CLEANUP_GRACE_PERIOD": 0}
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(queueing, "broker_database", lambda: "another")
        name = manager.launch_async_task(ADD, 1)
    assert ActiveTask.objects.get().queue_receipt == str(OrmQ.objects.get().pk)
    assert manager.cleanup_completed_tasks()["cleaned"] == {}
    OrmQ.objects.all().delete()
    assert manager.cleanup_completed_tasks()["cleaned"][name]["reason"] == "lost in the queue"


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
    context = TaskContext(
        "task-1", "some.Manager", take_locks=lambda label, ids: True, write_outcome=lambda outcome: None
    )
    for text in ("one", "two"):
        context.log(text)
    lines = list(context.drain_log())
    context.log("three")
    context.take_back_log(lines)
    assert [text for text, _level in context.drain_log()] == ["one", "two", "three"]
