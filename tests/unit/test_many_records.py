"""With many records each view of the list is as little work for the database as with few."""

from __future__ import annotations

from contextlib import closing

import pytest
from django.db import connection, connections
from django.test.utils import CaptureQueriesContext

from powercrud_dashboard.dashboard import listing
from powercrud_dashboard.dashboard.views import failures as failures_page
from powercrud_dashboard.engine import pruning, statistics
from powercrud_dashboard.models import TaskObject, TaskRecord, search
from tests import work
from tests.benchmarks import seed
from tests.benchmarks.pages import ADDRESSES, LIST

RECORDS = 10_000
#: In the place of 10,000, so that looking at all records is much more than looking at those.
CAP = 100
#: Rows, or as much work: a count for each of five tabs and all, and as much again to be found in order.
BOUND = 2_500


@pytest.fixture(scope="module")
def many_records(django_db_setup, django_db_blocker):
    with django_db_blocker.unblock():
        seed.fill(RECORDS)
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute("VACUUM ANALYZE")
        yield
        TaskObject.objects.all().delete()
        TaskRecord.objects.all().delete()


@pytest.fixture(autouse=True)
def _without_dead_rows(many_records, django_db_blocker):
    """What the test before has changed, and its rollback has left, makes work and changes plans."""
    if connection.vendor == "postgresql":
        create = connections.create_connection
        with django_db_blocker.unblock(), closing(create("default")) as other, other.cursor() as cursor:
            cursor.execute(f"VACUUM ANALYZE {TaskRecord._meta.db_table}")


@pytest.mark.django_db
@pytest.mark.usefixtures("many_records")
@pytest.mark.parametrize("address", ADDRESSES)
def test_no_view_looks_at_all_records(client_of, superuser, monkeypatch, address):
    monkeypatch.setattr(listing, "CAP", CAP)
    monkeypatch.setattr(search, "CONSIDERED", CAP)
    monkeypatch.setattr(search, "LOOKED_UP_AT_ONCE", 2 * CAP)
    monkeypatch.setattr(search, "LOOKED_THROUGH", CAP)
    monkeypatch.setattr(failures_page, "MAX_FAILURES", CAP)
    client = client_of(superuser)
    response, queries, heaviest, plan = work.of_request(lambda: client.get(LIST + address))
    assert response.status_code == 200
    # With words: those of the list, what the planner expects, whether a task waits, and objects of this name.
    has_words = any(f"{name}=" in address for name in ("q", "task", "user", "model", "function"))
    assert queries <= (14 if has_words else 10)
    assert heaviest <= BOUND, plan


@pytest.mark.django_db
@pytest.mark.usefixtures("many_records")
@pytest.mark.parametrize("is_counted", [False, True])
@pytest.mark.parametrize(
    "address",
    [
        *("insights/?period=1h", "insights/?period=24h", "insights/?period=30d&queue=slow"),
        *("function/?func=billing.tasks.send_invoices", "function/?func=billing.tasks.close_year&pattern=x"),
    ],
)
def test_no_page_of_figures_looks_at_all_records(client_of, superuser, monkeypatch, address, is_counted):
    monkeypatch.setattr("powercrud_dashboard.dashboard.insights.MAX_UNCOUNTED", CAP)
    monkeypatch.setattr("powercrud_dashboard.dashboard.runs.SHOWN_RUNS", CAP)
    if is_counted:
        statistics.count_ended()
    client = client_of(superuser)
    response, queries, heaviest, plan = work.of_request(lambda: client.get(LIST + address))
    assert response.status_code == 200
    assert queries <= 17
    assert heaviest <= BOUND, plan


@pytest.mark.django_db
@pytest.mark.usefixtures("many_records")
def test_ended_tasks_are_counted_from_an_index_alone(client_of, superuser, monkeypatch):
    monkeypatch.setattr(listing, "CAP", CAP)
    client = client_of(superuser)
    with work.counted((work.RECORDS,)) as done:
        client.get(f"{LIST}?finished_after=2001-01-01")
    # What is sorted are rows, and no count.
    counts = [plan for __, plan in done if "Sort" not in plan]
    steps = [step for plan in counts for step in plan if "pcrud_record_retention" in step]
    assert steps
    assert all("COVERING INDEX" in step or "Index Only Scan" in step for step in steps), steps


@pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite's index hands out the newest first")
@pytest.mark.django_db
@pytest.mark.usefixtures("many_records")
@pytest.mark.parametrize(("looked_through", "visits_all"), [(RECORDS, False), (10, True)])
def test_all_of_many_matches_are_visited_only_if_the_newest_records_have_too_few(
    client_of, superuser, monkeypatch, looked_through, visits_all
):
    monkeypatch.setattr(listing, "CAP", CAP)
    monkeypatch.setattr(search, "LOOKED_THROUGH", looked_through)
    client = client_of(superuser)
    with CaptureQueriesContext(connection) as queries:
        page = client.get(f"{LIST}?q=price&status=failed&resolution=all").content.decode()
    assert page.count("data-pcrud-row") == 50
    assert any("ARRAY(SELECT id" in query["sql"] for query in queries) is visits_all


@pytest.mark.django_db
@pytest.mark.usefixtures("many_records")
def test_pruning_looks_at_what_it_deletes_and_not_at_all_that_is_left_each_time(settings, monkeypatch, manager):
    # They lie two minutes apart: half of them have expired.
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_RETENTION_DAYS": {"success": RECORDS / 720 / 2}}
    monkeypatch.setattr(pruning, "DELETED_AT_ONCE", 500)
    summary, __, heaviest, plan = work.of_request(manager.cleanup_completed_tasks)
    assert summary["pruned_records"] > RECORDS * 0.4
    assert heaviest <= BOUND, plan
