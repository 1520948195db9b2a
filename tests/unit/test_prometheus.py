"""The metrics for Prometheus."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from django.db import connection
from django.test import Client
from django.urls import path
from django.utils import timezone
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from powercrud_dashboard.contrib import prometheus
from powercrud_dashboard.contrib.prometheus import MetricsView, TaskCollector
from powercrud_dashboard.engine import statistics
from powercrud_dashboard.models import Alert, FailureReason, TaskRecord, TaskStatistics, TaskStatus
from powercrud_dashboard.models.changes import RecordChange
from powercrud_dashboard.q2 import queue
from tests.alerting import ended, worker
from tests.testapp import tasks
from tests.workers import database_refuses

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.urls(__name__)]

urlpatterns = [path("metrics/", MetricsView.as_view())]
QUEUE = queue.current_cluster()
LABELS = ("function", "queue", "outcome", "le")
TOKEN = {"Authorization": "Bearer t0ken"}


@pytest.fixture(autouse=True)
def with_token(settings):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_HEALTH_TOKEN": "t0ken", "DASHBOARD_HEARTBEAT_TIMEOUT": 5}


def metrics() -> dict[tuple, float]:
    """Return each value by the name of its metric and the values of its labels."""
    answer = Client().get("/metrics/", headers=TOKEN)
    assert answer.status_code == 200
    assert answer["Content-Type"].startswith("text/plain")
    found: dict[tuple, float] = {}
    for family in text_string_to_metric_families(answer.content.decode()):
        for sample in family.samples:
            key = (sample.name, *(sample.labels[label] for label in LABELS if label in sample.labels))
            assert key not in found, f"twice: {key}"
            found[key] = sample.value
    return found


def finished(outcome: str, func: str = "app.work", name: str = QUEUE) -> float | None:
    return metrics().get(("pcrud_tasks_finished_total", func, name, outcome))


def took(count: int, seconds: float, **fields: object) -> None:
    run_time = timedelta(seconds=seconds)
    at = timezone.now() - run_time
    ended(count, "success", minutes=0, started_at=at, created_at=at - timedelta(seconds=1), run_time=run_time, **fields)


def test_they_take_the_token():
    assert Client().get("/metrics/").status_code == 401
    assert Client().get("/metrics/", headers={"Authorization": "Bearer other"}).status_code == 401


def test_they_take_it_where_all_pages_require_a_login(settings):
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "django.contrib.auth.middleware.LoginRequiredMiddleware"]
    assert metrics()


def test_without_the_database_the_address_says_so(caplog):
    with database_refuses("SELECT", 1):
        answer = Client().get("/metrics/", headers=TOKEN)
    assert answer.status_code == 503
    # An error of django.request is mailed to the admins.
    assert [record.name for record in caplog.records] == ["powercrud_dashboard.contrib.prometheus"]


def test_people_with_the_permission_may_read_them(client_of, make_user):
    assert client_of(make_user("eve", "view_taskrecord")).get("/metrics/").status_code == 200
    assert client_of(make_user("ann")).get("/metrics/").status_code == 403


def test_openmetrics_is_spoken_too():
    answer = Client().get("/metrics/", headers={**TOKEN, "Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer["Content-Type"].startswith("application/openmetrics-text")
    assert answer.content.endswith(b"# EOF\n")


def test_the_queue_its_workers_the_locks_and_the_alerts(manager):
    worker(1)
    worker(2)
    worker(3, silent=60)
    worker(4, cluster="reports")
    for _number in range(2):
        manager.launch_async_task(tasks.add, 1)
    manager.launch_async_task(tasks.add, 1, conflict_ids={"testapp.Project": {1, 2}})
    Alert.objects.create(kind="oldest_wait", subject="a")
    Alert.objects.create(kind="oldest_wait", subject="a", resolved_at=timezone.now())
    found = metrics()
    assert found["pcrud_queue_tasks", QUEUE] == 3
    assert found["pcrud_queue_tasks", "reports"] == 0
    assert 0 < found["pcrud_queue_oldest_wait_seconds", QUEUE] < 600
    assert (found["pcrud_workers", QUEUE], found["pcrud_workers", "reports"]) == (2, 1)
    assert found["pcrud_running_tasks", QUEUE] == 0
    assert (found["pcrud_locks",], found["pcrud_alerts",]) == (2, 1)


def test_ended_tasks_by_function_queue_and_outcome():
    ended(3, "success")
    ended(2, "failed")
    ended(1, "cancelled", cluster="reports")
    # The queue of a task may be named or left to the default.
    ended(1, "success", cluster=QUEUE)
    statistics.count_ended()
    assert finished("completed") == 4
    assert finished("failed") == 2
    assert finished("cancelled", name="reports") == 1


def test_buckets_are_exact():
    took(2, 0.020)  # more than 16 milliseconds, less than 64
    took(1, 2)
    took(1, 100_000)
    statistics.count_ended()
    found = metrics()

    def bucket(limit: str) -> float:
        return found["pcrud_task_run_seconds_bucket", "app.work", QUEUE, limit]

    assert [bucket(limit) for limit in ("0.016", "0.064", "1.024", "4.096", "16777.216", "+Inf")] == [0, 2, 2, 3, 3, 4]
    assert found["pcrud_task_run_seconds_count", "app.work", QUEUE] == 4
    assert found["pcrud_task_run_seconds_sum", "app.work", QUEUE] == pytest.approx(100_002.04)
    assert found["pcrud_task_wait_seconds_sum", "app.work", QUEUE] == pytest.approx(4, abs=0.1)


def test_no_number_gets_less():
    took(5, 2)
    ended(
        1,
        "failed",
        func="app.work",
        failure_reason=FailureReason.WORKER_LOST,
        started_at=timezone.now() - timedelta(minutes=2),
        run_time=timedelta(minutes=1),
    )
    statistics.count_ended()
    before = metrics()
    # The failure was inferred, and its worker tells later that it has completed.
    lost = TaskRecord.objects.get(status=TaskStatus.FAILED)
    assert TaskRecord.objects.change(lost.task_name, RecordChange.succeeded(started_at=lost.started_at))
    statistics.count_ended()
    assert finished("completed") == 6
    # Its time is counted once.
    assert metrics()["pcrud_task_run_seconds_count", "app.work", QUEUE] == 6
    # The rows of the figures are deleted after a year, and the records long before.
    TaskStatistics.objects.all().delete()
    TaskRecord.objects.all().delete()
    after = metrics()
    counters = [key for key in before if key[0].startswith("pcrud_task")]
    assert counters
    assert [key for key in counters if after[key] < before[key]] == []


def test_series_are_limited():
    for number in range(prometheus.MAX_SERIES + 5):
        ended(1, "success", func=f"app.f{number:04}")
        statistics.count_ended()
    found = {key: value for key, value in metrics().items() if key[0] == "pcrud_tasks_finished_total"}
    assert len(found) == 3 * (prometheus.MAX_SERIES + 1)
    assert found["pcrud_tasks_finished_total", "other", "other", "completed"] == 5
    assert found["pcrud_tasks_finished_total", "app.f0000", QUEUE, "completed"] == 1


def test_they_take_five_queries(django_assert_num_queries, manager):
    for count in (1, 20):
        for number in range(count):
            ended(2, "success", func=f"app.f{number}")
            manager.launch_async_task(tasks.add, 1)
        statistics.count_ended()
        with django_assert_num_queries(5):
            metrics()


def test_a_registry_of_the_project_takes_the_collector(django_assert_num_queries):
    registry = CollectorRegistry()
    with django_assert_num_queries(0):
        registry.register(TaskCollector())
    assert b"pcrud_workers" in generate_latest(registry)


def test_without_the_database_the_metrics_of_other_collectors_are_there(caplog):
    registry = CollectorRegistry()
    registry.register(TaskCollector())
    Counter("of_the_project", "Counted in memory.", registry=registry).inc()
    with database_refuses("SELECT", 1):
        text = generate_latest(registry)
    assert b"of_the_project_total 1.0" in text
    assert b"pcrud" not in text
    assert "can't be read" in caplog.text


def test_a_thread_that_serves_metrics_leaves_no_connection_open():
    registry = CollectorRegistry()
    registry.register(TaskCollector())
    left: list[object] = []

    def scrape() -> None:
        assert b"pcrud_workers" in generate_latest(registry)
        left.append(connection.connection)

    connection.ensure_connection()
    before = connection.connection
    thread = threading.Thread(target=scrape)
    thread.start()
    thread.join()
    scrape()
    # That of a request goes on.
    assert left == [None, before]


@pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite has no server that ends connections")
def test_a_thread_that_serves_metrics_finds_the_database_again():
    registry = CollectorRegistry()
    registry.register(TaskCollector())
    assert b"pcrud_workers" in generate_latest(registry)
    connection.ensure_connection()
    psycopg = connection.connection
    other = connection.copy()
    try:
        with other.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s, 10000)", [psycopg.info.backend_pid])
    finally:
        other.close()
    assert b"pcrud" not in generate_latest(registry)
    assert b"pcrud_workers" in generate_latest(registry)
