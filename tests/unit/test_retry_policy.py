"""A task that fails runs again by itself, as often, as soon and after such errors as its policy says."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone
from django_q.brokers.orm import ORM
from django_q.exceptions import TimeoutException
from django_q.models import OrmQ, Task

from powercrud_dashboard.admin import background_action
from powercrud_dashboard.async_manager import AsyncManager, RetryPolicy
from powercrud_dashboard.engine import cleanup, policy
from powercrud_dashboard.engine.policy import MAX_WAIT
from powercrud_dashboard.engine.spec import VERSION, sign
from powercrud_dashboard.exceptions import ClusterStopping, EnqueueError, WorkerLost
from powercrud_dashboard.models import ActiveTask, ConflictLock, TaskRecord
from powercrud_dashboard.models.changes import RecordChange
from powercrud_dashboard.q2 import queue
from powercrud_dashboard.worker.report import TaskStopped
from tests.testapp import tasks
from tests.workers import claimed_elsewhere, deliver, silence

pytestmark = pytest.mark.django_db(transaction=True)

PAGES = "/admin/powercrud_dashboard/taskrecord/"
IDS = {"testapp.Project": {1}}


def work_off() -> None:
    """Run what is queued in this process, as a worker does, and acknowledge it."""
    for queued in OrmQ.objects.all():
        message = queued.task
        with suppress(LookupError):
            message["func"](*message["args"], **message["kwargs"])
        queued.delete()


def waits(task_name: str) -> bool:
    return ActiveTask.objects.waiting().filter(task_name=task_name).exists()


def make_due(task_name: str) -> None:
    assert (
        ActiveTask.objects.waiting()
        .filter(task_name=task_name)
        .update(next_run_at=timezone.now() - timedelta(seconds=1))
        == 1
    )


# The policy by itself


def test_each_wait_is_about_twice_as_long_as_the_last():
    policy = RetryPolicy(max_retries=9, backoff=10)
    for retries in range(9):
        waits = [policy.wait(retries, ValueError).total_seconds() for _ in range(50)]
        assert 5 * 2**retries <= min(waits) < max(waits) <= 10 * 2**retries


def test_no_wait_is_longer_than_a_day():
    policy = RetryPolicy(max_retries=5_000, backoff=60)
    assert policy.wait(4_000, ValueError) <= timedelta(seconds=MAX_WAIT)


@pytest.mark.parametrize(
    ("options", "error", "allowed"),
    [
        ({}, ValueError, True),
        ({}, KeyboardInterrupt, True),
        ({}, WorkerLost, False),
        ({}, EnqueueError, False),
        ({}, ClusterStopping, True),
        ({"requeue_on_stop": False}, ClusterStopping, False),
        ({"retry_on": [OSError]}, ConnectionError, True),
        ({"retry_on": [OSError]}, ValueError, False),
        ({"retry_on": ["builtins.OSError", "gone.since.Error"]}, OSError, True),
        ({"retry_on": [WorkerLost]}, WorkerLost, True),
        ({"retry_on": [Exception]}, EnqueueError, True),
        ({"give_up_on": [ValueError]}, UnicodeError, False),
        ({"give_up_on": [ValueError]}, TypeError, True),
        ({"retry_on": [Exception], "give_up_on": [KeyError]}, KeyError, False),
    ],
)
def test_which_errors_are_retried(options, error, allowed):
    policy = RetryPolicy(max_retries=2, **options)
    assert policy.allows_retry(1, error) is allowed
    assert RetryPolicy.from_json(policy.to_json()) == policy


def test_not_more_often_than_it_says():
    policy = RetryPolicy(max_retries=2)
    assert [policy.allows_retry(retries, ValueError) for retries in range(4)] == [True, True, False, False]
    # A cluster that stops is no failure of the task.
    assert policy.allows_retry(7, ClusterStopping)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"max_retries": -1}, "max_retries is -1"),
        ({"max_retries": 1, "backoff": -5}, "backoff is -5"),
        ({"max_retries": 1, "retry_on": [ValueError("an instance")]}, "not an exception class"),
        ({"max_retries": "3"}, "use a whole number"),
        ({"max_retries": True}, "use a whole number"),
    ],
)
def test_what_makes_no_sense_is_refused(options, complaint):
    with pytest.raises((ValueError, TypeError), match=complaint):
        RetryPolicy(**options)


def test_without_retries_there_is_no_policy():
    for nothing in (None, 0, RetryPolicy(), RetryPolicy(retry_on=[OSError])):
        assert RetryPolicy.of(nothing) is None
    assert RetryPolicy.from_json({}) is None
    assert RetryPolicy.of(3) == RetryPolicy(max_retries=3)
    assert RetryPolicy.of(RetryPolicy(requeue_on_stop=True)).requeues_on_stop


def test_one_class_needs_no_list():
    assert RetryPolicy(1, retry_on=OSError) == RetryPolicy(1, retry_on=["builtins.OSError"])


def test_keys_of_a_later_release_are_ignored():
    policy = RetryPolicy(2, backoff=5)
    assert RetryPolicy.from_json({**policy.to_json(), "jitter": "none"}) == policy


def test_what_became_of_no_class_since_is_ignored():
    policy = RetryPolicy(2, retry_on=["math.floor", "tests.testapp.tasks.gone", "builtins.OSError"])
    assert policy.allows_retry(0, OSError)
    assert not policy.allows_retry(0, ValueError)


@pytest.mark.parametrize("path", ["tests.testapp.tasks.Gone", "math.floor", "no dotted path"])
def test_paths_are_checked_at_launch(manager, path):
    with pytest.raises(TypeError, match=f"{path!r} is not the dotted path of an exception class"):
        manager.launch_async_task(tasks.add, 1, retry=RetryPolicy(1, give_up_on=[path]))
    assert not ActiveTask.objects.exists()


# Tasks


def test_a_task_waits_with_its_locks_and_runs_again(manager, record_of):
    name = manager.launch_async_task(
        tasks.fail_until, 2, conflict_ids=IDS, retry=RetryPolicy(max_retries=3, backoff=6_000)
    )
    work_off()
    record = record_of(name)
    assert (record.status, record.attempts, record.failure_reason) == ("pending", 1, "error")
    assert record.error.startswith("not yet")
    assert ConflictLock.objects.get().active_task.task_name == name
    [event] = record.events.filter(event="retry")
    assert "tests/testapp/tasks.py" in event.payload["traceback"]
    wait = ActiveTask.objects.get().next_run_at - timezone.now()
    assert timedelta(seconds=2_500) < wait <= timedelta(seconds=6_000)
    # It is not due, and the message of the first try is gone.
    assert AsyncManager.send_due_tasks() == 0
    assert not OrmQ.objects.exists()
    make_due(name)
    assert AsyncManager.send_due_tasks() == 1
    assert AsyncManager.send_due_tasks() == 0
    work_off()
    record.refresh_from_db()
    assert (record.status, record.attempts, record.error) == ("success", 2, "")
    assert not ConflictLock.objects.exists()
    assert not ActiveTask.objects.exists()


def test_after_the_last_retry_it_has_failed(manager, record_of):
    name = manager.launch_async_task(tasks.fail_until, 9, conflict_ids=IDS, retry=2)
    for _ in range(2):
        work_off()
        make_due(name)
        AsyncManager.send_due_tasks()
    work_off()
    record = record_of(name)
    assert (record.status, record.attempts) == ("failed", 3)
    assert [event.event for event in record.events.all()] == [
        *("create", "start", "retry", "start", "retry", "start", "fail", "cleanup"),
    ]
    assert not ConflictLock.objects.exists()


def test_an_error_to_give_up_on_ends_it_at_once(manager, record_of):
    name = manager.launch_async_task(tasks.fail_until, 9, retry=RetryPolicy(max_retries=2, give_up_on=[LookupError]))
    work_off()
    assert record_of(name).status == "failed"


def test_a_second_delivery_while_it_waits_runs_nothing(manager, record_of):
    name = manager.launch_async_task(tasks.fail_until, 2, retry=1)
    message = OrmQ.objects.get()
    work_off()
    message.save(force_insert=True)
    work_off()
    assert waits(name)
    assert record_of(name).attempts == 1


def test_while_it_waits_cleanup_lets_it_be(manager):
    name = manager.launch_async_task(tasks.fail_until, 2, conflict_ids=IDS, retry=1)
    work_off()
    ActiveTask.objects.update(queued_at=timezone.now() - timedelta(days=9))
    TaskRecord.objects.update(created_at=timezone.now() - timedelta(days=9))
    assert manager.cleanup_completed_tasks()["cleaned"] == {}
    assert waits(name)
    assert ConflictLock.objects.exists()


def test_cleanup_sends_what_is_due(manager):
    name = manager.launch_async_task(tasks.fail_until, 2, retry=1)
    work_off()
    make_due(name)
    manager.cleanup_completed_tasks(dry_run=True)
    assert waits(name)
    manager.cleanup_completed_tasks()
    assert not waits(name)
    assert OrmQ.objects.exists()


def test_it_can_be_cancelled_while_it_waits(manager, record_of, superuser):
    name = manager.launch_async_task(tasks.fail_until, 2, conflict_ids=IDS, retry=1)
    work_off()
    assert manager.cancel_task(name, user=superuser)
    assert record_of(name).status == "cancelled"
    assert not ConflictLock.objects.exists()
    assert AsyncManager.send_due_tasks() == 0


def test_it_can_be_run_now(manager, record_of, superuser):
    name = manager.launch_async_task(tasks.fail_until, 2, retry=1)
    work_off()
    assert manager.run_task_now(name, user=superuser)
    assert not manager.run_task_now(name, user=superuser)
    work_off()
    record = record_of(name)
    assert record.status == "success"
    assert record.events.get(event="run_now").actor == superuser


def test_a_lost_worker_is_covered_if_the_policy_says_so(manager, record_of):
    covered = manager.launch_async_task(
        tasks.add, 1, conflict_ids=IDS, retry=RetryPolicy(max_retries=1, retry_on=[WorkerLost])
    )
    not_covered = manager.launch_async_task(tasks.add, 1, retry=1)
    for name in (covered, not_covered):
        claimed_elsewhere(name)
        TaskRecord.objects.change(name, RecordChange.started(attempt=1))
    silence()
    assert set(manager.cleanup_completed_tasks()["cleaned"]) == {covered, not_covered}
    assert (record_of(covered).status, record_of(not_covered).status) == ("pending", "failed")
    assert ConflictLock.objects.get().active_task.task_name == covered


def test_a_broker_that_does_not_take_it_is_covered_as_well(manager, record_of, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(ORM, "enqueue", lambda broker, message: (_ for _ in ()).throw(ConnectionError("refused")))
        name = manager.launch_async_task(
            tasks.add, 1, conflict_ids=IDS, retry=RetryPolicy(max_retries=2, retry_on=[EnqueueError])
        )
        assert waits(name)
        make_due(name)
        AsyncManager.send_due_tasks()
        assert waits(name)
        with pytest.raises(EnqueueError):
            manager.launch_async_task(tasks.add, 1, retry=2)
    assert ConflictLock.objects.get().active_task.task_name == name
    make_due(name)
    AsyncManager.send_due_tasks()
    work_off()
    assert record_of(name).status == "success"
    assert record_of(name).events.filter(event="retry").count() == 2


def test_django_q2s_row_of_the_try_before_does_not_end_it(manager):
    name = manager.launch_async_task(tasks.fail_until, 2, retry=1)
    work_off()
    # As its monitor says it, which comes later.
    for kwargs in ({}, {queue.ATTEMPT: 1}):
        finished = Task(name=name, success=False, result="not yet", kwargs=kwargs)
        assert not cleanup.finish_from(finished)
    assert waits(name)


def test_what_can_not_be_restored_fails_and_says_so(manager, record_of):
    name = manager.launch_async_task(tasks.fail_until, 2, conflict_ids=IDS, retry=1)
    work_off()
    make_due(name)
    ActiveTask.objects.update(payload="forged")
    assert AsyncManager.send_due_tasks() == 0
    assert record_of(name).status == "failed"
    assert "could not be retried" in record_of(name).error
    assert not ConflictLock.objects.exists()


def test_a_retry_by_hand_has_the_same_policy(manager, record_of):
    name = manager.launch_async_task(tasks.fail_until, 9, retry=RetryPolicy(max_retries=1, give_up_on=[LookupError]))
    work_off()
    again = manager.retry_task(name)
    assert ActiveTask.objects.get(task_name=again).policy["max_retries"] == 1


def test_in_the_callers_process_there_is_nobody_to_try_again(manager, record_of):
    name = "sync"
    with pytest.raises(LookupError):
        manager.launch_async_task(tasks.fail_until, 9, task_key=name, sync=True, retry=3)
    assert record_of(name).status == "failed"


# On the pages


@pytest.fixture
def waiting(manager, record_of, superuser) -> TaskRecord:
    name = manager.launch_async_task(tasks.fail_until, 9, user=superuser, retry=RetryPolicy(max_retries=3, backoff=600))
    work_off()
    return record_of(name)


def test_its_page_shows_when_it_runs_next_and_why(client_of, superuser, waiting):
    page = client_of(superuser).get(f"{PAGES}{waiting.pk}/change/").content.decode()
    assert re.search(r"Runs again in \d+\smin.*\(retry 1 of 3\)", page)
    assert "Attempt 1 failed" in page
    assert "LookupError" in page
    assert "Run now" in page
    assert "Cancel task" in page
    assert "(retry 1 of 3)" in client_of(superuser).get(PAGES).content.decode()


def test_an_attempt_that_a_stop_of_the_cluster_has_interrupted_is_not_shown_as_failed(boss, manager, record_of):
    name = manager.launch_async_task(f"{__name__}.stop_in_the_middle", retry=1)
    with pytest.raises(TaskStopped):
        work_off()
    page = boss.get(f"{PAGES}{record_of(name).pk}/change/").content.decode()
    assert "Interrupted, and queued again" in page
    assert "Attempt 1 failed" not in page


def stop_in_the_middle() -> None:
    raise ClusterStopping("this")


def test_a_person_runs_it_now(client_of, superuser, make_user, waiting):
    viewer = client_of(make_user("viewer", "view_taskrecord"))
    assert "Run now" not in viewer.get(f"{PAGES}{waiting.pk}/change/").content.decode()
    assert viewer.post(f"{PAGES}{waiting.pk}/run-now/").status_code == 403
    assert waits(waiting.task_name)
    boss = client_of(superuser)
    assert "The task was queued." in boss.post(f"{PAGES}{waiting.pk}/run-now/", follow=True).content.decode()
    assert not waits(waiting.task_name)
    assert (
        "not waiting for its next attempt" in boss.post(f"{PAGES}{waiting.pk}/run-now/", follow=True).content.decode()
    )


def test_an_action_has_a_policy_as_well():
    def action(modeladmin, request, queryset) -> None: ...

    policy = RetryPolicy(2, retry_on=[OSError])
    assert background_action(retry=policy)(action).background_action.retry == policy
    with pytest.raises(ValueError, match="max_retries is -2"):
        background_action(retry=-2)(action)
    with pytest.raises(TypeError, match="max_retries is '3'"):
        background_action(retry="3")(action)


@pytest.mark.parametrize(
    ("options", "is_retried"),
    [
        ({}, True),
        ({"retry_on": [Exception]}, True),
        ({"retry_on": [TimeoutException]}, True),
        ({"retry_on": [ValueError]}, False),
        ({"give_up_on": [Exception]}, False),
        ({"give_up_on": [TimeoutException]}, False),
    ],
)
def test_a_time_limit_is_an_exception_like_others(manager, options, is_retried):
    name = manager.launch_async_task(f"{__name__}.run_out_of_time", retry=RetryPolicy(max_retries=1, **options))
    with pytest.raises(TimeoutException):
        deliver()
    assert waits(name) == is_retried


def run_out_of_time() -> None:
    raise TimeoutException


# One bad row stops nothing


def test_a_cancel_between_a_failure_and_its_retry_is_not_lost(manager, record_of):
    """The task fails after the one who cancels it has read it as running."""

    def fail_meanwhile(execute, sql, params, many, context):
        if sql.startswith("UPDATE") and "cancel_requested_at" in sql and not failed:
            failed.append(True)
            policy.fail(manager, active, ValueError, reason="error", error="broke", result="", traceback="")
        return execute(sql, params, many, context)

    failed: list[bool] = []
    name = manager.launch_async_task(tasks.add, 1, conflict_ids=IDS, retry=3)
    claimed_elsewhere(name)
    active = ActiveTask.objects.get(task_name=name)
    with connection.execute_wrapper(fail_meanwhile):
        assert manager.cancel_task(name)
    assert failed
    assert record_of(name).status == "cancelled"
    assert not ConflictLock.objects.exists()


def test_a_cancel_at_the_moment_of_the_claim_is_not_lost(manager):
    def claim_meanwhile(execute, sql, params, many, context):
        if sql.startswith("DELETE") and "activetask" in sql and not claimed:
            claimed.append(True)
            claimed_elsewhere(name)
        return execute(sql, params, many, context)

    claimed: list[bool] = []
    name = manager.launch_async_task(tasks.add, 1)
    with connection.execute_wrapper(claim_meanwhile):
        assert manager.cancel_task(name)
    assert ActiveTask.objects.get().cancel_requested_at


def test_tasks_that_can_not_be_queued_keep_no_other_waiting(manager):
    """Those of a newer release stay where they are, however many they are."""
    names = [manager.launch_async_task(tasks.fail_until, 9, retry=1) for _ in range(2)]
    work_off()
    ActiveTask.objects.waiting().update(next_run_at=timezone.now() - timedelta(minutes=1))
    newer = sign(json.dumps({"version": VERSION + 1, "func": "no.matter"}))
    ActiveTask.objects.bulk_create(
        ActiveTask(
            task_name=f"newer-{number}",
            state="pending",
            payload=newer,
            next_run_at=timezone.now() - timedelta(minutes=2),
        )
        for number in range(250)
    )
    assert manager.send_due_tasks() == 2
    assert set(ActiveTask.objects.ready().values_list("task_name", flat=True)) == set(names)


@pytest.mark.parametrize("payload", ['{"version": 1}', "[]", "{", '{"version": 1, "func": "f", "arguments": 5}'])
def test_a_payload_in_an_unknown_form_ends_its_task_and_no_other(manager, record_of, payload):
    names = [manager.launch_async_task(tasks.fail_until, 9, retry=1) for _ in range(2)]
    work_off()
    ActiveTask.objects.waiting().update(next_run_at=timezone.now() - timedelta(minutes=1))
    ActiveTask.objects.filter(task_name=names[0]).update(payload=sign(payload))
    manager.send_due_tasks()
    assert [record_of(name).status for name in names] == ["failed", "pending"]
    assert not waits(names[1])


def test_a_backoff_is_a_number():
    for backoff in (float("nan"), -1):
        with pytest.raises(ValueError, match="backoff"):
            RetryPolicy(max_retries=1, backoff=backoff)
