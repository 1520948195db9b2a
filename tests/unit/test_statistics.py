"""The statistics of ended tasks: each is counted once, whatever happens, and they shrink as they age."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from powercrud_dashboard.engine import statistics
from powercrud_dashboard.engine.pruning import delete_records
from powercrud_dashboard.models import FailureReason, TaskEvent, TaskRecord, TaskStatistics, TaskStatus
from powercrud_dashboard.models.changes import RecordChange
from powercrud_dashboard.models.statistics import Histogram, Span
from tests.conftest import POSTGRESQL
from tests.testapp import tasks
from tests.workers import database_refuses

pytestmark = pytest.mark.django_db

OURS = "powercrud_dashboard.dashboard_manager.DashboardAsyncManager"


@pytest.fixture
def make_ended(db):
    """Add records of ended tasks."""

    def make(
        count: int = 1,
        *,
        func: str = "shop.tasks.price",
        status: str = TaskStatus.SUCCESS,
        ago: timedelta = timedelta(minutes=5),
        wait: float = 1.0,
        run: float = 4.0,
        **more,
    ) -> list[TaskRecord]:
        ended = timezone.now() - ago
        started = ended - timedelta(seconds=run)
        already = TaskRecord.objects.count()
        records = [
            TaskRecord(
                task_name=f"ended-{already + number}",
                label=func,
                func=func,
                status=status,
                created_at=started - timedelta(seconds=wait),
                finished_at=ended,
                run_time=timedelta(seconds=run),
                manager_class=OURS,
                **{"started_at": started, "attempts": 1, "worker_host": "worker-1", **more},
            )
            for number in range(count)
        ]
        return TaskRecord.objects.bulk_create(records)

    return make


def counted(**which) -> dict[str, int]:
    """Return how many tasks all rows count, by outcome."""
    rows = TaskStatistics.objects.filter(**which)
    return {name: sum(rows.values_list(name, flat=True)) for name in ("completed", "failed", "cancelled")}


def test_cleanup_counts_what_has_ended(manager, make_ended):
    make_ended(3)
    make_ended(func="shop.tasks.mail", status=TaskStatus.FAILED, run=60, wait=0.5)
    manager.cleanup_completed_tasks()
    prices = TaskStatistics.objects.get(func="shop.tasks.price")
    assert (prices.span, prices.completed, prices.failed) == (Span.MINUTE, 3, 0)
    assert (prices.wait_ms, prices.max_wait_ms, prices.run_ms, prices.max_run_ms) == (3_000, 1_000, 12_000, 4_000)
    assert prices.hosts == {"worker-1": [3, 0, 12_000]}
    mails = TaskStatistics.objects.get(func="shop.tasks.mail")
    assert (mails.failed, mails.hosts) == (1, {"worker-1": [1, 1, 60_000]})
    assert mails.last_failed_at == mails.last_ended_at


def test_a_second_cleanup_counts_nothing_again(manager, make_ended):
    make_ended(3)
    for _ in range(3):
        manager.cleanup_completed_tasks()
    assert counted() == {"completed": 3, "failed": 0, "cancelled": 0}


def test_a_dry_run_counts_nothing(make_ended):
    from django.core.management import call_command

    make_ended()
    call_command("pcrud_cleanup_async", "--dry-run", verbosity=0)
    assert not TaskStatistics.objects.exists()


def test_later_tasks_of_the_same_minute_are_added_to_its_row(make_ended):
    make_ended(2, run=1)
    statistics.count_ended()
    make_ended(1, run=9)
    statistics.count_ended()
    row = TaskStatistics.objects.get()
    assert (row.completed, row.run_ms, row.max_run_ms) == (3, 11_000, 9_000)


def test_queues_and_functions_are_counted_apart(make_ended):
    make_ended(2, cluster="slow")
    make_ended(1)
    make_ended(1, func="shop.tasks.mail")
    statistics.count_ended()
    rows = TaskStatistics.objects.values_list("func", "cluster", "completed")
    assert sorted(rows) == [("shop.tasks.mail", "", 1), ("shop.tasks.price", "", 1), ("shop.tasks.price", "slow", 2)]


def test_cancelled_and_repeated_tasks_do_not_distort_the_times(make_ended):
    make_ended(status=TaskStatus.CANCELLED, run=500, wait=1)
    # A task that was retried has waited for its retry most of the time.
    make_ended(wait=900, attempts=3)
    make_ended(status=TaskStatus.FAILED, started_at=None, run=0, failure_reason=FailureReason.NEVER_STARTED)
    statistics.count_ended()
    row = TaskStatistics.objects.get()
    assert counted() == {"completed": 1, "failed": 1, "cancelled": 1}
    assert (row.max_wait_ms, row.max_run_ms) == (1_000, 4_000)


@pytest.mark.parametrize("is_counted", [True, False])
def test_a_task_in_slices_has_waited_until_its_first_one(make_ended, is_counted):
    (record,) = make_ended(wait=900, attempts=3)
    for seconds in (2, 400, 900):
        TaskEvent.objects.create(record=record, event="start", timestamp=record.created_at + timedelta(seconds=seconds))
    if is_counted:
        statistics.count_ended()
        assert TaskStatistics.objects.get().max_wait_ms == 2_000
    else:
        ((end,), _are_more) = statistics.uncounted(1)
        assert end.wait == 2_000


def test_a_pass_that_dies_in_the_middle_is_made_up_for(make_ended):
    make_ended(3)
    with pytest.raises(Exception, match="closed the connection"), database_refuses("INSERT", 1):
        statistics.count_ended()
    assert not TaskStatistics.objects.exists()
    assert statistics.count_ended() == 3
    assert counted()["completed"] == 3


def at_the_same_time(*works: Callable[[], object]) -> None:
    """Do each of these in a thread with a connection of its own, at the same time."""
    start = threading.Barrier(len(works))

    def run(work: Callable[[], object]) -> None:
        try:
            start.wait()
            work()
        finally:
            connection.close()

    with ThreadPoolExecutor(len(works)) as pool:
        for done in [pool.submit(run, work) for work in works]:
            done.result()


def test_a_pass_leaves_the_rest_to_the_next_one(make_ended, monkeypatch):
    monkeypatch.setattr(statistics, "AT_ONCE", 2)
    make_ended(5)
    with monkeypatch.context() as patched:
        patched.setattr(statistics, "COUNTS_FOR", 0.0)
        assert statistics.count_ended() == 2
        assert statistics.count_ended() == 2
    assert statistics.count_ended() == 1
    assert counted()["completed"] == 5


@pytest.mark.skipif(not POSTGRESQL, reason="SQLite has one writer")
@pytest.mark.django_db(transaction=True)
def test_who_deletes_records_locks_them_in_the_turn(make_ended):
    pks = [record.pk for record in make_ended(2)]
    with CaptureQueriesContext(connection) as queries:
        delete_records(pks)
    statements = [query["sql"] for query in queries]
    first = next(sql for sql in statements if "pg_advisory_xact_lock" in sql or " FOR " in sql)
    assert "pg_advisory_xact_lock" in first


@pytest.mark.django_db(transaction=True)
def test_passes_at_the_same_time_count_each_record_once(make_ended, monkeypatch):
    monkeypatch.setattr(statistics, "AT_ONCE", 7)
    for minutes in range(5):
        make_ended(40, ago=timedelta(minutes=minutes))
    pks = list(TaskRecord.objects.values_list("pk", flat=True)[:50])
    at_the_same_time(statistics.count_ended, statistics.count_ended, lambda: delete_records(pks))
    assert counted()["completed"] == 200
    assert TaskRecord.objects.count() == 150


@pytest.mark.django_db(transaction=True)
def test_merges_at_the_same_time_lose_and_double_nothing(make_ended, monkeypatch):
    monkeypatch.setattr(statistics, "AT_ONCE", 3)
    for minutes in range(20):
        make_ended(2, ago=timedelta(minutes=minutes))
    statistics.count_ended()
    for row in TaskStatistics.objects.all():
        TaskStatistics.objects.filter(pk=row.pk).update(start=row.start - timedelta(days=30))
    at_the_same_time(statistics.merge_old, statistics.merge_old, statistics.count_ended)
    assert counted()["completed"] == 40
    assert TaskStatistics.objects.count() <= 2


def test_a_record_that_is_deleted_before_a_cleanup_is_counted(make_ended):
    records = make_ended(2)
    assert delete_records([record.pk for record in records]) == []
    assert counted()["completed"] == 2


def test_pruned_records_stay_counted(manager, make_ended, settings):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_RETENTION_DAYS": {"success": 1}}
    make_ended(3, ago=timedelta(days=2))
    assert manager.cleanup_completed_tasks()["pruned_records"] == 3
    assert counted()["completed"] == 3


def lose(record: TaskRecord) -> None:
    TaskRecord.objects.filter(pk=record.pk).update(
        status=TaskStatus.FAILED, failure_reason=FailureReason.WORKER_LOST, error="lost"
    )


@pytest.mark.parametrize("age", [timedelta(minutes=5), timedelta(hours=7), timedelta(days=20)])
def test_a_corrected_end_counts_as_what_it_was(make_ended, age):
    lost, _other = make_ended(2, ago=age)
    lose(lost)
    statistics.count_ended()
    assert counted() == {"completed": 1, "failed": 1, "cancelled": 0}
    assert TaskRecord.objects.change(lost.task_name, RecordChange.succeeded(started_at=lost.started_at))
    statistics.count_ended()
    statistics.count_ended()
    assert counted() == {"completed": 2, "failed": 0, "cancelled": 0}


def test_a_corrected_end_is_taken_back_from_the_row_that_includes_it_by_now(make_ended):
    (lost,) = make_ended(1, ago=timedelta(minutes=5))
    lose(lost)
    statistics.count_ended()
    TaskStatistics.objects.update(start=timezone.now() - timedelta(days=1))
    statistics.merge_old()
    # As if a day had passed since.
    TaskRecord.objects.update(
        counted_as=["failed", TaskStatistics.objects.get().start.isoformat(), 1_000, 4_000, "worker-1"]
    )
    assert TaskStatistics.objects.get().span == Span.HOUR
    TaskRecord.objects.change(lost.task_name, RecordChange.succeeded(started_at=lost.started_at))
    statistics.count_ended()
    assert counted() == {"completed": 1, "failed": 0, "cancelled": 0}


def test_rows_become_hours_and_days_and_go_after_a_year(make_ended):
    for minutes in range(3):
        make_ended(2, ago=timedelta(minutes=5 + minutes))
    statistics.count_ended()
    assert TaskStatistics.objects.filter(span=Span.MINUTE).count() == 3
    now = timezone.now()
    noon = now.replace(hour=12, minute=0, second=0, microsecond=0)
    for days, span, rows in ((1, Span.HOUR, 1), (20, Span.DAY, 1), (400, None, 0)):
        for number, row in enumerate(TaskStatistics.objects.order_by("start")):
            TaskStatistics.objects.filter(pk=row.pk).update(
                start=noon - timedelta(days=days) + timedelta(minutes=number)
            )
        statistics.merge_old()
        assert list(TaskStatistics.objects.values_list("span", flat=True)) == [span] * rows
        if rows:
            row = TaskStatistics.objects.get()
            assert (row.completed, row.run_ms, row.max_wait_ms) == (6, 24_000, 1_000)
            assert row.hosts == {"worker-1": [6, 0, 24_000]}


def test_records_that_ended_long_ago_are_counted_in_rows_of_their_age(make_ended):
    for days in (0.5, 20, 400):
        make_ended(ago=timedelta(days=days))
    assert statistics.count_ended() == 3
    assert sorted(TaskStatistics.objects.values_list("span", flat=True)) == [Span.HOUR, Span.DAY]


def test_a_task_of_a_worker_tells_its_host_and_release(manager, record_of, settings):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_RELEASE": "2026.11"}
    record = record_of(manager.launch_async_task(tasks.add, 1, sync=True))
    assert record.release == "2026.11"
    assert record.worker_host
    assert record.worker_pid


@pytest.mark.parametrize("seconds", [0, 0.0005, 0.02, 1, 59, 3_600, 1_000_000])
def test_a_percentile_is_at_most_9_percent_off(seconds):
    histogram = Histogram()
    milliseconds = int(seconds * 1_000)
    histogram.add(milliseconds)
    read = Histogram()
    read.add_packed(histogram.pack())
    found = read.percentile(0.5, milliseconds)
    assert abs(found.total_seconds() * 1_000 - milliseconds) <= max(0.09 * milliseconds, 0.5)


def test_percentiles_are_of_the_times_counted():
    histogram = Histogram()
    for seconds in range(1, 101):
        histogram.add(seconds * 1_000)
    assert 45 <= histogram.percentile(0.5, 100_000).total_seconds() <= 55
    assert 86 <= histogram.percentile(0.95, 100_000).total_seconds() <= 100
    assert Histogram().percentile(0.5, 0) is None


def test_a_histogram_of_very_many_times_can_be_packed():
    histogram = Histogram()
    histogram.add(10, 200_000)
    read = Histogram()
    read.add_packed(histogram.pack())
    assert read.total() == 200_000


def test_the_search_for_uncounted_records_uses_their_index(make_ended):
    make_ended(50)
    statistics.count_ended()
    make_ended(1)
    plan = TaskRecord.objects.uncounted().order_by("-finished_at").explain()
    assert "pcrud_record_uncounted" in plan or connection.vendor == "postgresql"
