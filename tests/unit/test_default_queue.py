"""What names no cluster belongs to the default queue, whichever cluster's process deals with it."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone
from django_q.brokers import get_broker
from django_q.tasks import async_task

from powercrud_dashboard.engine import missed, plain, retry
from powercrud_dashboard.engine.plain import Run
from powercrud_dashboard.models import ActiveTask, TaskRecord
from powercrud_dashboard.q2 import observe, queue
from powercrud_dashboard.q2.messages import open_queue
from tests.conftest import REDIS
from tests.testapp import tasks

pytestmark = pytest.mark.django_db(transaction=True)

DEFAULT, OTHER = "pcrud-tests", "reports"
FAIL = "tests.testapp.tasks.fail"


@pytest.fixture(autouse=True)
def _empty_queues() -> None:
    for name in (DEFAULT, OTHER):
        get_broker(name).purge_queue()


@pytest.fixture
def in_another_cluster(monkeypatch) -> None:
    monkeypatch.setattr("django_q.conf.Conf.CLUSTER_NAME", OTHER)


def lengths() -> dict[str, int]:
    return {name: len(open_queue(name).slice(0, 10)) for name in (DEFAULT, OTHER)}


def test_a_worker_of_another_cluster_launches_into_the_default_queue(in_another_cluster, manager):
    manager.launch_async_task(tasks.add, 1, 2)
    assert lengths() == {DEFAULT: 1, OTHER: 0}
    manager.launch_async_task(tasks.add, 1, 2, cluster=OTHER)
    assert lengths() == {DEFAULT: 1, OTHER: 1}


def test_a_worker_of_another_cluster_queues_what_is_due_where_it_belongs(in_another_cluster, manager):
    manager.launch_async_task(tasks.add, 1, 2, run_after=timezone.now() + timedelta(hours=1))
    manager.launch_async_task(tasks.add, 1, 2, run_after=timezone.now() + timedelta(hours=1), cluster=OTHER)
    assert lengths() == {DEFAULT: 0, OTHER: 0}
    ActiveTask.objects.update(next_run_at=timezone.now() - timedelta(seconds=1))
    assert retry.send_due() == 2
    assert lengths() == {DEFAULT: 1, OTHER: 1}


def test_a_plain_task_is_retried_in_the_default_queue(in_another_cluster, manager, record_of):
    message = {"id": "a" * 32, "name": "given", "func": FAIL, "args": (), "kwargs": {}, "started": timezone.now()}
    ended = {"stopped": timezone.now(), "success": False, "result": "no : Traceback\nValueError: no"}
    plain.record_ends([Run({**message, **ended, "cluster": DEFAULT})])
    assert record_of(manager.retry_task("a" * 32)).cluster == ""
    assert lengths() == {DEFAULT: 1, OTHER: 0}


def test_what_waits_in_the_default_queue_is_not_lost_for_another_cluster(manager, monkeypatch, record_of):
    waiting = async_task("tests.testapp.tasks.add", 1, 2)
    plain.record_queued(observe.waiting(10))
    TaskRecord.objects.update(created_at=timezone.now() - timedelta(hours=1))
    name = manager.launch_async_task(tasks.add, 1, 2)
    monkeypatch.setattr("django_q.conf.Conf.CLUSTER_NAME", OTHER)
    assert missed.settle_queued() == 0
    assert record_of(waiting).status == "pending"
    if REDIS:
        assert queue.missing_from("", [name, waiting]) == set()


def test_the_default_queue_has_the_name_that_the_settings_give_to_it(settings):
    assert queue.main_cluster() == DEFAULT
    settings.Q_CLUSTER = {**settings.Q_CLUSTER, "cluster_name": "fast"}
    assert queue.main_cluster() == "fast"
    assert "fast" in queue.cluster_settings()
