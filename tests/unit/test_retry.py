from __future__ import annotations

import pytest
from django.db import connection

from powercrud_dashboard.async_manager import AsyncManager
from powercrud_dashboard.exceptions import TaskConflict, TaskNotRetryable
from powercrud_dashboard.models import ActiveTask, ConflictLock, TaskRecord
from tests.clicks import TASKS
from tests.testapp import tasks

pytestmark = pytest.mark.django_db


@pytest.fixture
def failed(manager, record_of):
    """The record of a task that failed, launched with everything that a retry must bring back."""
    with pytest.raises(ValueError, match="on purpose"):
        manager.launch_async_task(
            tasks.fail,
            "on purpose",
            task_key="first",
            label="Fail",
            group="grouped",
            conflict_ids={"testapp.Project": {1, 2}},
            affected_objects=["one", "two"],
            sync=True,
        )
    return record_of("first")


def test_a_retry_is_the_same_task_again_linked_to_the_first(manager, record_of, failed, superuser):
    new = record_of(manager.retry_task("first", user=superuser))
    assert new.retry_of == failed
    assert (new.func, new.label, new.task_args, new.group) == (failed.func, "Fail", ["on purpose"], "grouped")
    assert (new.affected_objects, new.conflict_ids) == (["one", "two"], {"testapp.project": ["1", "2"]})
    assert (new.status, new.user) == ("pending", superuser)
    assert manager.check_conflict({"testapp.Project": {1, 2}}) == {1, 2}
    event = failed.events.get(event="retry")
    assert (event.actor, event.payload["new_task_name"]) == (superuser, new.task_name)


def test_retrying_while_the_objects_are_locked_is_a_conflict(manager, failed):
    manager.add_conflict_ids("somebody", {"testapp.Project": {2}})
    with pytest.raises(TaskConflict):
        AsyncManager().retry_task("first")
    assert TaskRecord.objects.count() == 1
    assert not failed.events.filter(event="retry").exists()


def test_a_retry_under_way_is_not_doubled(manager, failed):
    manager.retry_task("first")
    with pytest.raises(TaskNotRetryable, match="has not ended yet"):
        manager.retry_task("first")


def test_an_ended_retry_does_not_stand_in_the_way(manager, failed):
    manager.cancel_task(manager.retry_task("first"))
    assert manager.retry_task("first")


def test_a_task_that_has_not_ended_can_not_be_retried(manager):
    name = manager.launch_async_task(tasks.add, 1)
    with pytest.raises(TaskNotRetryable, match="has not ended yet"):
        manager.retry_task(name)


def test_an_unknown_task_can_not_be_retried(manager):
    with pytest.raises(TaskNotRetryable, match="no record"):
        manager.retry_task("nobody")


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ("", "were not kept"),
        ("tampered:with", "signature does not match"),
        (None, "signature does not match"),
    ],
    ids=["none", "garbage", "changed"],
)
def test_a_payload_that_can_not_be_restored_says_why(manager, failed, payload, reason):
    failed.payload = f"x{failed.payload}" if payload is None else payload
    failed.save()
    with pytest.raises(TaskNotRetryable, match=reason):
        manager.retry_task("first")
    assert not ActiveTask.objects.exists()
    assert not ConflictLock.objects.exists()


# In this process


def is_in_a_transaction() -> bool:
    return connection.in_atomic_block


@pytest.mark.django_db(transaction=True)
def test_a_synchronous_retry_runs_in_no_transaction_of_ours(manager, at_once, record_of):
    name = manager.launch_async_task(is_in_a_transaction)
    again = record_of(manager.retry_task(name))
    assert (again.status, again.result) == ("success", False)
    assert record_of(name).events.filter(event="retry").exists()


@pytest.mark.django_db(transaction=True)
def test_a_synchronous_retry_that_fails_is_recorded(manager, at_once, failed):
    with pytest.raises(ValueError, match="on purpose"):
        manager.retry_task("first")
    again = failed.retries.get()
    assert (again.status, again.error, again.failure_reason) == ("failed", "on purpose", "error")
    assert failed.events.get(event="retry").payload["new_task_name"] == again.task_name
    assert not ConflictLock.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_a_synchronous_retry_on_the_page_that_fails_is_recorded(manager, boss, at_once, record_of):
    with pytest.raises(LookupError):
        manager.launch_async_task(tasks.fail_until, 99, task_key="missing")
    answer = boss.post(f"{TASKS}{record_of('missing').pk}/retry/", follow=True)
    again = record_of("missing").retries.get()
    assert answer.redirect_chain[-1][0] == f"{TASKS}{again.pk}/change/"
    assert (again.status, again.exception_class) == ("failed", "builtins.LookupError")


def test_two_retries_at_the_same_moment_are_one(manager, failed):
    """The second one has read the record before the first one was written."""

    class Second(AsyncManager):
        def async_task_lifecycle(self, event, task_name, **payload):
            if event == "create" and not again:
                again.append(None)
                with pytest.raises(TaskNotRetryable, match="has not ended yet"):
                    AsyncManager().retry_task("first")

    again: list[None] = []
    Second().retry_task("first")
    assert again
    assert failed.retries.count() == 1


def test_a_manager_that_can_not_be_made_any_more_keeps_no_page_from_working(boss, failed):
    TaskRecord.objects.update(manager_class=f"{__name__}.DemandingManager")
    assert boss.get(f"{TASKS}{failed.pk}/change/").status_code == 200
    boss.post(f"{TASKS}{failed.pk}/retry/")
    assert failed.retries.get().status == "pending"


class DemandingManager(AsyncManager):
    def __init__(self, channel):
        super().__init__()
