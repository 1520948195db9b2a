"""Messages that a broker without receipts has lost."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone
from django_q.conf import Conf
from django_q.signing import SignedPackage

from powercrud_dashboard.models import ActiveTask, ConflictLock, WorkerProcess
from tests.brokers import MemoryBroker
from tests.clicks import TASKS, said
from tests.testapp import tasks

pytestmark = pytest.mark.django_db(transaction=True)

ONE = {"testapp.Project": {1}}
HOUR = 3600


@pytest.fixture(autouse=True)
def broker(monkeypatch, settings) -> type[MemoryBroker]:
    settings.POWERCRUD_SETTINGS = {}
    monkeypatch.setattr(Conf, "BROKER_CLASS", "tests.brokers.MemoryBroker")
    MemoryBroker.flush()
    return MemoryBroker


@pytest.fixture
def lost(manager, broker) -> str:
    """A task, queued for five minutes, whose message the broker has lost."""
    name = manager.launch_async_task(tasks.add, 1, conflict_ids=ONE, group="nightly", timeout=7)
    ActiveTask.objects.update(queued_at=timezone.now() - timedelta(minutes=5))
    broker.messages.clear()
    return name


def is_missing() -> bool:
    return ActiveTask.objects.missing().exists()


@pytest.mark.parametrize("clusters", [[], [(0, 0)], [(-HOUR, 0), (HOUR, 0)]])
def test_the_second_cleanup_ends_a_lost_task(manager, broker, lost, record_of, clusters):
    broker.clusters[:] = clusters
    assert manager.cleanup_completed_tasks()["cleaned"] == {}
    assert is_missing()
    assert manager.cleanup_completed_tasks()["cleaned"][lost]["reason"] == "lost in the queue"
    assert record_of(lost).failure_reason == "never_started"
    assert [event.event for event in record_of(lost).events.all()] == ["create", "missing", "fail", "cleanup"]
    assert not ConflictLock.objects.exists()


def test_the_summary_says_what_is_missing(manager, broker, lost):
    assert manager.cleanup_completed_tasks()["skipped"] == {lost: "task is missing from the queue"}


def test_lost_tasks_are_found_while_other_messages_wait(manager, broker, lost):
    waiting = manager.launch_async_task(tasks.add, 2)
    manager.cleanup_completed_tasks()
    assert [active.task_name for active in ActiveTask.objects.missing()] == [lost]
    assert waiting in broker.names()


def test_what_can_not_be_listed_is_not_lost(manager, broker, lost, monkeypatch, caplog):
    manager.launch_async_task(tasks.add, 2)
    monkeypatch.setattr(Conf, "BROKER_CLASS", "tests.brokers.UnlistedBroker")
    manager.cleanup_completed_tasks()
    assert not is_missing()
    assert "A step of the cleanup failed" not in caplog.text


def test_what_a_living_cluster_may_hold_is_not_lost(manager, broker, lost, monkeypatch):
    monkeypatch.setattr("powercrud_dashboard.q2.queue.SEEN_WITHIN", 0.3)
    broker.clusters[:] = [(0, 0), (-HOUR, 1)]
    manager.cleanup_completed_tasks()
    assert not is_missing()


def test_what_the_cluster_of_another_queue_holds_does_not_matter(manager, broker, lost):
    WorkerProcess.objects.create(identity="other", host="elsewhere", pid=0, cluster="another queue")
    broker.clusters[:] = [(0, 3)]
    manager.cleanup_completed_tasks()
    assert is_missing()


def test_a_message_that_turns_up_again_is_not_lost(manager, broker):
    name = manager.launch_async_task(tasks.add, 1)
    message = broker.messages.pop()
    manager.cleanup_completed_tasks()
    assert is_missing()
    broker.messages.append(message)
    assert name in manager.cleanup_completed_tasks()["skipped"]
    assert not is_missing()


def test_a_task_that_was_just_queued_is_noted_but_not_ended(manager, broker):
    manager.launch_async_task(tasks.add, 1)
    broker.messages.clear()
    for _cleanup in range(3):
        assert manager.cleanup_completed_tasks()["cleaned"] == {}
    assert is_missing()


def test_a_lost_task_is_sent_again_in_one_click(boss, manager, broker, lost, record_of, superuser):
    record = record_of(lost)
    before = boss.get(f"{TASKS}{record.pk}/change/").content.decode()
    manager.cleanup_completed_tasks()
    page = boss.get(f"{TASKS}{record.pk}/change/").content.decode()
    assert ("Not in the queue any more" in before, "Not in the queue any more" in page) == (False, True)
    assert "Not in the queue any more" in boss.get(TASKS).content.decode()
    assert ("Send again" in before, "Send again" in page) == (False, True)
    assert said(boss.post(f"{TASKS}{record.pk}/run-now/", follow=True)) == ["The task was queued."]
    assert broker.names() == [lost]
    assert not is_missing()
    assert record.events.get(event="send_again").actor == superuser
    message = SignedPackage.loads(broker.messages[0])
    assert (message["group"], message["timeout"]) == ("nightly", 7)
    assert message["func"](*message["args"], **message["kwargs"]) == 1
    assert record_of(lost).status == "success"


def test_only_who_may_retry_sends_again(make_user, client_of, manager, broker, lost, record_of):
    manager.cleanup_completed_tasks()
    client = client_of(make_user("viewer", "view_taskrecord"))
    address = f"{TASKS}{record_of(lost).pk}/"
    assert "Send again" not in client.get(f"{address}change/").content.decode()
    assert client.post(f"{address}run-now/").status_code == 403
    assert broker.messages == []


def test_a_task_that_is_not_lost_is_not_sent_again(manager, broker):
    name = manager.launch_async_task(tasks.add, 1)
    assert not manager.run_task_now(name)
    assert broker.names() == [name]
