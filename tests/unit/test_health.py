"""The health address."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from django.contrib.auth.models import AnonymousUser
from django.test import Client, RequestFactory
from django.utils import timezone

from powercrud_dashboard.dashboard.views.health import HealthView
from powercrud_dashboard.models import ActiveTask, AlertEvaluation, TaskRecord, TaskTotal, WorkerProcess
from powercrud_dashboard.q2 import queue
from tests import alerting
from tests.alerting import ended, is_quiet, open_alerts, worker
from tests.services import wait_until
from tests.testapp import tasks
from tests.workers import database_refuses

pytestmark = pytest.mark.django_db(transaction=True)

URLS = ["/tasks/health/", "/admin/powercrud_dashboard/taskrecord/health/"]
TOKEN = {"Authorization": "Bearer t0ken"}
QUEUE = queue.current_cluster()


@pytest.fixture(autouse=True)
def with_token(settings):
    def change(**others: object) -> None:
        settings.POWERCRUD_SETTINGS = {
            "DASHBOARD_HEARTBEAT_TIMEOUT": 5,
            "DASHBOARD_HEALTH_TOKEN": "t0ken",
            **others,
        }

    change()
    yield change
    wait_until(is_quiet, "the alerts are evaluated")


@pytest.fixture(autouse=True)
def already_evaluated(db):
    AlertEvaluation.objects.create(pk=1, due_at=timezone.now() + timedelta(seconds=20))


def health(status: int, url: str = URLS[0], headers: dict = TOKEN, client: Client | None = None) -> dict:
    answer = (client or Client()).get(url, headers=headers)
    assert answer.status_code == status, answer.content
    return answer.json()


def reasons(status: int = 503) -> list[str]:
    return [reason["code"] for reason in health(status)["reasons"]]


@pytest.mark.parametrize("url", URLS)
def test_it_is_well_with_a_worker(url):
    worker(1)
    assert health(200, url) == {"status": "ok", "reasons": [], "workers": 1, "waiting": 0, "oldest_wait": 0}


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("authorization", [None, "Bearer other", "Bearer", "Basic t0ken", "t0ken", "Bearer tök"])
def test_who_has_no_token_gets_401(url, authorization):
    answer = Client().get(url, headers={"Authorization": authorization} if authorization else {})
    assert (answer.status_code, answer["WWW-Authenticate"]) == (401, "Bearer")
    assert "workers" not in answer.json()


def test_without_a_token_in_the_settings_none_is_right(with_token):
    with_token(DASHBOARD_HEALTH_TOKEN=None)
    health(401, headers={"Authorization": "Bearer "})
    with_token(DASHBOARD_HEALTH_TOKEN="")
    health(401, headers={"Authorization": "Bearer "})


def test_people_need_the_permission_to_view_tasks(client_of, make_user):
    worker(1)
    health(200, headers={}, client=client_of(make_user("eve", "view_taskrecord")))
    for stranger in (make_user("ann"), make_user("bob", "view_taskrecord", is_staff=False)):
        assert client_of(stranger).get(URLS[0]).status_code == 403


def test_it_needs_no_middleware(settings):
    request = RequestFactory().get(URLS[0])
    assert HealthView.as_view()(request).status_code == 401
    request.user = AnonymousUser()
    assert HealthView.as_view()(request).status_code == 401


@pytest.mark.parametrize("url", URLS)
def test_it_takes_the_token_where_all_pages_require_a_login(url, settings):
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "django.contrib.auth.middleware.LoginRequiredMiddleware"]
    worker(1)
    health(200, url)
    assert Client().get(url).status_code == 401


def test_django_does_not_log_an_error_for_each_answer(caplog):
    """An error of django.request is mailed to the admins."""
    health(503)
    assert caplog.records == []


def test_it_is_not_cached():
    assert "no-store" in Client().get(URLS[0], headers=TOKEN)["Cache-Control"]


@pytest.mark.parametrize("method", ["post", "put", "delete"])
def test_it_is_only_read(method):
    assert getattr(Client(), method)(URLS[0], headers=TOKEN).status_code == 405


def test_it_is_not_well_without_a_worker_also_if_nothing_waits():
    assert reasons() == ["no_workers"]
    worker(1, silent=60)
    assert reasons() == ["no_workers"]
    worker(2)
    assert reasons(200) == []


def test_a_heartbeat_from_before_the_clock_was_set_back_is_no_sign_of_life():
    worker(1, silent=-3_600)
    assert reasons() == ["no_workers"]
    assert not WorkerProcess.objects.alive_workers(60).exists()
    WorkerProcess.objects.update(heartbeat_at=timezone.now(), clock_at=timezone.now())
    assert WorkerProcess.objects.alive_workers(60).exists()
    health(200)


def test_it_is_not_well_if_a_queue_has_no_worker(manager):
    worker(1)
    manager.launch_async_task(tasks.add, 1, cluster="reports")
    (reason,) = health(503)["reasons"]
    assert reason == {"code": "no_workers", "text": "No worker runs for the queue reports"}


def test_tasks_in_the_callers_process_need_no_worker(with_token):
    with_token(ASYNC_ENABLED=False)
    assert reasons(200) == []


def test_it_is_not_well_if_a_task_waits_for_long(manager, with_token):
    worker(1)
    manager.launch_async_task(tasks.add, 1)
    assert reasons(200) == []
    ActiveTask.objects.update(queued_at=timezone.now() - timedelta(minutes=20))
    found = health(503)
    assert [reason["code"] for reason in found["reasons"]] == ["oldest_wait"]
    assert found["waiting"] == 1
    assert found["oldest_wait"] >= 1_200
    with_token(DASHBOARD_ALERTS={"oldest_wait": {"queues": {QUEUE: {"seconds": 3_600}}}})
    assert reasons(200) == []


def test_it_is_not_well_if_a_clock_is_wrong():
    worker(1)
    WorkerProcess.objects.update(clock_at=timezone.now() + timedelta(seconds=20))
    (reason,) = health(503)["reasons"]
    assert reason["code"] == "clock"
    assert "web1" in reason["text"]


def test_it_is_not_well_if_the_database_is_away():
    with database_refuses("SELECT", 1):
        assert reasons() == ["database"]


def test_it_takes_three_queries_whatever_the_size_of_the_history(django_assert_num_queries, manager):
    worker(1)
    for count in (1, 300):
        ended(count, "success")
        ended(count, "failed")
        manager.launch_async_task(tasks.add, 1)
        with django_assert_num_queries(3):
            health(200)
    assert TaskRecord.objects.count() == 604


def test_it_evaluates_the_alerts_if_nobody_else_does(with_token):
    alerting.told.clear()
    with_token(DASHBOARD_ALERTS={"call": "tests.alerting.tell"})
    worker(1, silent=60)
    health(503)
    assert open_alerts() == []
    AlertEvaluation.objects.update(due_at=timezone.now() - timedelta(seconds=1))
    health(503)
    wait_until(lambda: alerting.told, "somebody is told")
    assert open_alerts() == [("no_workers", "")]


def test_it_answers_if_no_thread_can_be_started_and_evaluates_later(monkeypatch):
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    worker(1, silent=60)
    AlertEvaluation.objects.update(due_at=timezone.now() - timedelta(seconds=1))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        health(503)
    health(503)
    wait_until(lambda: open_alerts() == [("no_workers", "")], "they are evaluated")


def test_it_counts_ended_tasks_if_it_has_the_turn_of_the_workers():
    ended(3, "failed")
    AlertEvaluation.objects.update(due_at=timezone.now() - timedelta(seconds=1))
    health(503)
    wait_until(lambda: TaskTotal.objects.filter(failed=3).exists(), "they are counted")
    wait_until(is_quiet, "nothing more is sent")


@pytest.mark.django_db(transaction=False)
def test_in_a_transaction_of_a_test_it_evaluates_nothing():
    AlertEvaluation.objects.update(due_at=timezone.now() - timedelta(seconds=1))
    health(503)
    assert is_quiet()
