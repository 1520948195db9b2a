"""The Insights page and the pages of task functions."""

from __future__ import annotations

import re
from datetime import timedelta
from html import unescape

import pytest
from django.utils import timezone

from powercrud_dashboard.engine import statistics
from powercrud_dashboard.models import ActiveTask, TaskRecord, TaskStatistics, TaskStatus, WorkerProcess
from powercrud_dashboard.models.statuses import Resolution
from powercrud_dashboard.q2 import queue

pytestmark = pytest.mark.django_db

LIST = "/admin/powercrud_dashboard/taskrecord/"
INSIGHTS = f"{LIST}insights/"
FUNCTION = f"{LIST}function/"
PRICE, MAIL = "shop.tasks.price", "shop.tasks.mail"


@pytest.fixture
def ended(db):
    """Add records of ended tasks, which are not counted yet."""

    def add(count: int = 1, *, func: str = PRICE, failed: bool = False, ago: float = 5, run: float = 4.0, **more):
        """``ago`` is in minutes, ``run`` in seconds."""
        at = timezone.now() - timedelta(minutes=ago)
        already = TaskRecord.objects.count()
        failure = {"error": "ValueError: no price", "error_pattern": "no price", "resolution": Resolution.OPEN}
        facts = {
            "status": TaskStatus.FAILED if failed else TaskStatus.SUCCESS,
            "created_at": at - timedelta(seconds=run + 1),
            "started_at": at - timedelta(seconds=run),
            "finished_at": at,
            "run_time": timedelta(seconds=run),
            "attempts": 1,
            "worker_host": "worker-1",
            "worker_pid": 7,
            "manager_class": "powercrud_dashboard.dashboard_manager.DashboardAsyncManager",
            **(failure if failed else {}),
            **more,
        }
        return TaskRecord.objects.bulk_create(
            TaskRecord(task_name=f"ended-{already + number}", label=func, func=func, **facts) for number in range(count)
        )

    return add


def page_of(client, address: str = INSIGHTS) -> str:
    response = client.get(address)
    assert response.status_code == 200
    return response.content.decode()


def cells(page: str, func: str) -> list[str]:
    """Return the texts of the row of a function."""
    rows = re.findall(r"<tr>(.*?)</tr>", page[page.index('id="result_list"') :], re.DOTALL)
    row = next(row for row in rows if func.rpartition(".")[2] in row)
    found = re.findall(r"<td.*?>(.*?)</td>", row, re.DOTALL)
    return [" ".join(unescape(re.sub(r"<[^>]+>", "", cell)).split()) for cell in found]


@pytest.mark.parametrize("is_counted", [False, True])
def test_the_row_of_a_function(boss, ended, is_counted):
    ended(3)
    ended(1, failed=True, run=60)
    if is_counted:
        statistics.count_ended()
    row = cells(page_of(boss), PRICE)
    assert row[:3] == ["price shop.tasks", "4", "25%"]
    # Percentiles are at most 9 % off, the longest time is exact.
    assert row[7:10] == ["1 min", "5 min ago", "5 min ago"]


def test_figures_are_rounded(boss, ended):
    ended(1)
    ended(2, failed=True)
    # 27 minutes of work in 24 hours.
    ended(1, func=MAIL, run=27 * 60)
    page = page_of(boss)
    assert cells(page, PRICE)[2] == "67%"
    assert "<b>0.02</b> workers busy on average" in page


def test_counted_and_uncounted_tasks_are_added(boss, ended):
    ended(3)
    statistics.count_ended()
    ended(2)
    assert cells(page_of(boss), PRICE)[1] == "5"


@pytest.mark.parametrize(("period", "runs"), [("1h", "1"), ("24h", "2"), ("7d", "3"), ("30d", "4"), ("x", "2")])
def test_the_periods(boss, ended, period, runs):
    for days in (0, 0.5, 5, 20, 60):
        ended(ago=5 + days * 24 * 60)
    statistics.count_ended()
    assert cells(page_of(boss, f"{INSIGHTS}?period={period}"), PRICE)[1] == runs


def test_a_failure_before_the_period_is_the_last_one(boss, ended):
    ended(1)
    ended(1, failed=True, ago=3 * 24 * 60)
    ended(1, func=MAIL)
    statistics.count_ended()
    page = page_of(boss)
    assert cells(page, PRICE)[9] == "3 d ago"
    assert cells(page, MAIL)[9] == "never"


def test_each_figure_leads_to_the_tasks_behind_it(boss, ended):
    ended(3)
    ended(2, failed=True)
    ended(1, ago=2_000)
    ended(1, func=MAIL)
    statistics.count_ended()
    page = page_of(boss)
    row = next(row for row in page.split("<tr>") if "data-pcrud-row" in row and ">price<" in row)
    urls = [unescape(url) for url in re.findall(r'href="(.*?)"', row)]
    listed = [page_of(boss, url).count("data-pcrud-row") for url in urls[1:3]]
    assert listed == [5, 2]
    assert urls[0] == f"{FUNCTION}?func={PRICE}"
    assert all(boss.get(url).status_code == 200 for url in urls)


def test_queues_can_be_chosen(boss, ended):
    ended(3)
    ended(2, cluster="slow")
    statistics.count_ended()
    page = page_of(boss)
    assert '<option value="slow">slow</option>' in page
    assert cells(page, PRICE)[1] == "5"
    assert cells(page_of(boss, f"{INSIGHTS}?queue=slow"), PRICE)[1] == "2"
    assert cells(page_of(boss, f"{INSIGHTS}?queue="), PRICE)[1] == "3"
    assert "No task has ended in this period." in page_of(boss, f"{INSIGHTS}?queue=none")


def test_the_table_is_sorted(boss, ended):
    ended(3, run=1)
    ended(1, func=MAIL, run=90)
    by_runs = page_of(boss)
    assert by_runs.index(">price<") < by_runs.index(">mail<")
    by_time = page_of(boss, f"{INSIGHTS}?sort=-run_p95")
    assert by_time.index(">mail<") < by_time.index(">price<")
    for column in ("func", "failure_rate", "wait_p50", "run_max", "last_ended_at", "last_failed_at", "x"):
        page_of(boss, f"{INSIGHTS}?sort={column}")


@pytest.mark.markup
def test_charts_have_a_name_and_a_table_and_no_style(boss, ended):
    ended(3)
    ended(1, failed=True)
    page = page_of(boss)
    part = page[page.index('id="pcrud-insights"') :]
    assert part.count('role="img" aria-labelledby="pcrud-chart-') == 3
    assert "Ended, and failed: 4 ended tasks, 1 failed" in part
    assert part.count("<summary>As a table</summary>") == 3
    assert " style=" not in part
    assert "<script" not in part


@pytest.mark.markup
def test_numbers_of_charts_are_the_same_in_every_language(boss, ended, settings):
    ended(3, run=1.5)
    settings.LANGUAGE_CODE = "de"
    page = boss.get(INSIGHTS, headers={"accept-language": "de"}).content.decode()
    assert not [path for path in re.findall(r' d="(.*?)"', page) if "," in path]


def test_an_empty_database(boss):
    page = page_of(boss)
    assert "No task has ended in this period." in page


def test_who_may_not_view_all_tasks_sees_neither_page_nor_link(client_of, make_user):
    client = client_of(make_user("anna"))
    assert client.get(INSIGHTS).status_code == 403
    assert client.get(f"{FUNCTION}?func={PRICE}").status_code == 403
    assert "insights/" not in page_of(client, LIST)
    viewer = client_of(make_user("bert", "view_taskrecord"))
    assert f'href="{INSIGHTS}"' in page_of(viewer, LIST)
    assert page_of(viewer)


def test_the_pages_are_outside_of_the_admin_as_well(boss, ended):
    ended(1)
    page = page_of(boss, "/tasks/insights/")
    assert f"/tasks/function/?func={PRICE}" in page
    assert "/admin/powercrud_dashboard" not in page[page.index('id="pcrud-insights"') :]


@pytest.mark.parametrize("functions", [1, 20])
def test_the_number_of_queries_does_not_grow(boss, ended, functions, django_assert_max_num_queries):
    for number in range(functions):
        ended(3, func=f"shop.tasks.number_{number}")
        ended(1, func=f"shop.tasks.number_{number}", ago=400)
    statistics.count_ended()
    ended(3)
    # Session, user; rows of minutes added up in three ways, whether the others have changed, uncounted, the period
    # before, earlier failures, queues; two of the pulse. The rows of hours and days are added up once.
    with django_assert_max_num_queries(15):
        page_of(boss)
    with django_assert_max_num_queries(12):
        page_of(boss)


def test_rows_of_hours_that_are_corrected_are_added_up_again(boss, ended):
    (lost,) = ended(1, ago=400, failed=True, failure_reason="worker_lost")
    statistics.count_ended()
    assert cells(page_of(boss), PRICE)[1:3] == ["1", "100%"]
    assert cells(page_of(boss), PRICE)[1:3] == ["1", "100%"]
    TaskRecord.objects.filter(pk=lost.pk).update(status=TaskStatus.SUCCESS, failure_reason="", is_counted=False)
    statistics.count_ended()
    assert cells(page_of(boss), PRICE)[1:3] == ["1", "0%"]


def test_a_refresh_soon_after_costs_session_and_user(boss, ended, django_assert_max_num_queries):
    ended(1)
    state = re.search(r'data-pcrud-state="(.*?)"', page_of(boss))[1]
    with django_assert_max_num_queries(2):
        response = boss.get(INSIGHTS, headers={"hx-request": "true", "x-pcrud-state": state})
    # 200 if the time has come meanwhile.
    assert response.status_code in (200, 204)


def test_a_page_with_too_many_uncounted_tasks_says_so(boss, ended, monkeypatch):
    monkeypatch.setattr("powercrud_dashboard.dashboard.insights.MAX_UNCOUNTED", 2)
    ended(3)
    page = page_of(boss)
    assert "Not all of the newest tasks are included" in page
    assert cells(page, PRICE)[1] == "2"


# The page of a function


def differing(page: str) -> dict[str, list[str]]:
    """Return the facts that differ between the last good run and the first bad one."""
    rows = re.findall(r'<tr class="pcrud-differs">(.*?)</tr>', page, re.DOTALL)
    found = {}
    for row in rows:
        texts = [
            unescape(re.sub(r"<[^>]+>", "", cell)).strip()
            for cell in re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row, re.DOTALL)
        ]
        found[texts[0].removesuffix(" differs")] = texts[1:]
    return found


def test_the_last_good_run_is_beside_the_first_bad_one(boss, ended):
    ended(1, failed=True, ago=90)
    ended(1, ago=80, release="v1")
    (good,) = ended(1, ago=70, release="v1", task_kwargs={"mode": "text", "limit": 5})
    (bad,) = ended(1, failed=True, ago=60, release="v2", task_kwargs={"mode": "html", "limit": 5}, worker_host="other")
    ended(2, failed=True, ago=50, release="v2")
    page = page_of(boss, f"{FUNCTION}?func={PRICE}")
    assert ", 3 in a row." in page
    assert "The failures began with release v2; the last good run was of v1." in page
    assert f'href="{LIST}{good.pk}/change/">Last good run' in page
    assert f'href="{LIST}{bad.pk}/change/">First bad run' in page
    assert differing(page) == {
        "Release": ["v1", "v2"],
        "Worker": ["worker-1 7", "other 7"],
        "Argument mode": ['"text"', '"html"'],
    }


def test_failures_that_are_over_are_told_as_such(boss, ended):
    ended(1, ago=70)
    ended(2, failed=True, ago=60)
    (recovered,) = ended(1, ago=50)
    page = page_of(boss, f"{FUNCTION}?func={PRICE}")
    assert "The last failures: what changed" in page
    assert f'href="{LIST}{recovered.pk}/change/">It has completed since.' in page


def test_a_function_that_never_completed_or_never_failed_has_nothing_to_compare(boss, ended):
    ended(2, failed=True)
    ended(2, func=MAIL)
    assert "No completed run before these failures is kept." in page_of(boss, f"{FUNCTION}?func={PRICE}")
    assert "what changed" not in page_of(boss, f"{FUNCTION}?func={MAIL}")


def test_an_error_that_was_seen_before_is_told(boss, ended):
    (first,) = ended(1, failed=True, ago=900)
    ended(1, ago=70)
    ended(1, failed=True, ago=60)
    page = page_of(boss, f"{FUNCTION}?func={PRICE}&pattern=no+price")
    assert "First seen" in page
    assert f'href="{LIST}{first.pk}/change/">Show that task' in page


def test_secrets_among_the_arguments_are_masked(boss, ended):
    ended(1, ago=70, task_kwargs={"api_key": "s3cret"}, task_args=["p4ss"], argument_names=["password"])
    ended(1, failed=True, ago=60, task_kwargs={"api_key": "other"})
    page = page_of(boss, f"{FUNCTION}?func={PRICE}")
    assert "Argument api_key" in page
    assert "s3cret" not in page
    assert "p4ss" not in page


@pytest.mark.parametrize("query", ["", "?func=", "?func=%00"])
def test_a_function_must_be_named(boss, query):
    assert boss.get(f"{FUNCTION}{query}").status_code == 404


def test_an_unknown_function_has_no_runs(boss):
    assert "No run of this function is kept." in page_of(boss, f"{FUNCTION}?func=no.such.function")


def test_a_failed_task_leads_to_its_function(boss, ended, client_of, make_user):
    (bad,) = ended(1, failed=True, user=make_user("anna"))
    link = f'<a href="{FUNCTION}?func={PRICE}&amp;pattern=no+price">What changed since it last worked?</a>'
    assert link in page_of(boss, f"{LIST}{bad.pk}/change/")
    from django.contrib.auth.models import User

    own = client_of(User.objects.get(username="anna"))
    assert "What changed since" not in page_of(own, f"{LIST}{bad.pk}/change/")


def test_the_page_of_a_function_takes_few_queries(boss, ended, django_assert_max_num_queries):
    ended(30, ago=80)
    ended(30, failed=True)
    statistics.count_ended()
    with django_assert_max_num_queries(17):
        page_of(boss, f"{FUNCTION}?func={PRICE}&pattern=no+price")


# Estimates


@pytest.fixture
def queued(manager, monkeypatch):
    from tests.testapp import tasks

    return lambda: manager.launch_async_task(tasks.add, 1)


ADD = "tests.testapp.tasks.add"


def claim(name: str) -> None:
    worker = WorkerProcess.objects.create(identity=name[:32], host="one", pid=1, cluster=queue.current_cluster())
    assert ActiveTask.objects.claim(name, worker=worker.pk)
    TaskRecord.objects.filter(task_name=name).update(status=TaskStatus.IN_PROGRESS, started_at=timezone.now())


def test_a_running_task_without_progress_tells_how_long_it_usually_takes(boss, ended, queued, manager):
    ended(5, func=ADD, run=40)
    statistics.count_ended()
    name = queued()
    claim(name)
    assert "usually 4" in page_of(boss, LIST).replace("\xa0", " ")
    manager.update_progress(name, current=1, total=4)
    assert "usually" not in page_of(boss, LIST)


def test_too_few_runs_tell_nothing(boss, ended, queued):
    ended(2, func=ADD, run=40)
    statistics.count_ended()
    claim(queued())
    assert "usually" not in page_of(boss, LIST)


def test_a_queued_task_tells_when_it_starts(boss, ended, queued, record_of):
    ended(5, func=PRICE, run=60)
    first = queued()
    second = queued()
    assert "starts in about" not in page_of(boss, LIST)
    WorkerProcess.objects.create(identity="w", host="one", pid=1, cluster=queue.current_cluster())
    page = page_of(boss, LIST).replace("\xa0", " ")
    assert "starts in about 1 min" in page
    assert "starts in about 2 min" in page
    task = page_of(boss, f"{LIST}{record_of(second).pk}/change/").replace("\xa0", " ")
    assert "starts in about 2 min" in task
    assert record_of(first).status == TaskStatus.PENDING


def test_estimates_take_one_query_for_all_rows(boss, ended, queued, django_assert_num_queries):
    from powercrud_dashboard.dashboard.estimates import usual_run_times

    ended(5, func=ADD, run=40)
    ended(5, func=PRICE, run=3)
    statistics.count_ended()
    with django_assert_num_queries(1):
        found = usual_run_times({ADD, PRICE, MAIL})
    assert set(found) == {ADD, PRICE}
    with django_assert_num_queries(0):
        assert usual_run_times(set()) == {}


def test_only_the_newest_runs_are_usual(ended):
    from powercrud_dashboard.dashboard.estimates import usual_run_times

    ended(500, func=ADD, run=600, ago=20_000)
    for minutes in range(1, 30):
        ended(5, func=ADD, run=1, ago=minutes)
    statistics.count_ended()
    assert usual_run_times({ADD})[ADD] < timedelta(seconds=2)
    assert TaskStatistics.objects.count() > 24
