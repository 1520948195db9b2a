"""A task with many locks, or with large arguments, costs no page more than one with a few."""

from __future__ import annotations

import time

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from powercrud_dashboard.admin import selection
from powercrud_dashboard.dashboard.listing import WIDE_COLUMNS
from powercrud_dashboard.models import ActiveTask, ConflictLock, TaskRecord
from tests import work
from tests.clicks import CHANGELIST, TASKS, choose
from tests.testapp.models import Project
from tests.workers import claimed_elsewhere

pytestmark = pytest.mark.django_db

FEW, MANY = 30, 100_000
#: Rows, or as much work: the locks of a task are counted up to 1,000, and as many are read of a model.
BOUND = 2_500
TABLES = (ConflictLock._meta.db_table, ActiveTask._meta.db_table, TaskRecord._meta.db_table)
HTMX = {"HX-Request": "true"}
PROGRESS = "/powercrud/async/progress/"


@pytest.fixture
def running(manager, make_projects) -> TaskRecord:
    """A task that runs, with locks on a few projects."""
    keys = [project.pk for project in make_projects(FEW)]
    name = manager.launch_async_task(
        "tests.testapp.tasks.touch_projects",
        pks=keys,
        model="testapp.project",
        conflict_ids={"testapp.project": keys},
        group="nightly",
        retry=1,
    )
    claimed_elsewhere(name)
    manager.update_progress(name, "on it", current=1, total=FEW)
    return TaskRecord.objects.get(task_name=name)


@pytest.fixture
def _time_stands_still(monkeypatch):
    """Nothing is rendered again because of its age."""
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)


def _ask_again(boss):
    """Refresh rows that have not changed."""
    rows = boss.get(TASKS, headers=HTMX)
    answer = boss.get(TASKS, headers={**HTMX, "X-Pcrud-State": rows.context["version"]})
    assert answer.status_code == 204
    return answer


#: What many people look at, or what asks again every few seconds.
REFRESHED = {
    "list": lambda boss: boss.get(TASKS),
    "rows of the list": lambda boss: boss.get(TASKS, headers=HTMX),
    "rows that have not changed": _ask_again,
    "group": lambda boss: boss.get(f"{TASKS}groups/nightly/"),
    "failures": lambda boss: boss.get(f"{TASKS}failures/"),
    "locks": lambda boss: boss.get(f"{TASKS}locks/"),
    "cluster": lambda boss: boss.get(f"{TASKS}cluster/"),
    "changelist": lambda boss: boss.get(CHANGELIST),
    "strip": lambda boss: boss.get(f"{CHANGELIST}background-tasks/", {"key": [1, 2, 3]}),
    "form": lambda boss: boss.get(f"{CHANGELIST}{Project.objects.first().pk}/change/"),
    "index": lambda boss: boss.get("/admin/"),
    "endpoint": lambda boss: boss.get(f"{PROGRESS}?task_name={TaskRecord.objects.only('task_name').get().task_name}"),
}
PAGES = {
    **REFRESHED,
    "task": lambda boss: boss.get(f"{TASKS}{TaskRecord.objects.get().pk}/change/"),
    "newest locks": lambda boss: boss.get(f"{TASKS}locks/?sort=-locked_at"),
    "locks by object": lambda boss: boss.get(f"{TASKS}locks/?sort=object_id"),
    "locks by holder": lambda boss: boss.get(f"{TASKS}locks/?sort=holder"),
    "locks by expiry": lambda boss: boss.get(f"{TASKS}locks/?sort=expires_at"),
    "locks found": lambda boss: boss.get(f"{TASKS}locks/?q=project"),
    "confirmation": lambda boss: choose(boss, "archive_after_all", Project.objects.all()[:10]),
    "confirmation for all": lambda boss: choose(
        boss, "archive_after_all", Project.objects.all()[:10], select_across="1"
    ),
}


@pytest.mark.usefixtures("_time_stands_still")
def test_no_page_looks_at_all_locks_of_a_task(boss, manager, running):
    def measure(page: str) -> tuple[int, int, list[str]]:
        response, queries, heaviest, plan = work.of_request(lambda: PAGES[page](boss), *TABLES)
        assert response.status_code in (200, 204)
        return queries, heaviest, plan

    queries_before = {}
    for page in PAGES:
        measure(page)
        queries_before[page], __, __ = measure(page)
    manager.add_conflict_ids(running.task_name, {"testapp.project": range(1_000_000, 1_000_000 + MANY)})
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE")
    for page in PAGES:
        queries, heaviest, plan = measure(page)
        assert queries == queries_before[page], page
        assert heaviest <= BOUND, (page, plan)


@pytest.mark.usefixtures("_time_stands_still")
@pytest.mark.parametrize("page", REFRESHED)
def test_what_is_refreshed_reads_no_wide_columns(boss, running, page):
    with CaptureQueriesContext(connection) as queries:
        REFRESHED[page](boss)
    read = " ".join(query["sql"] for query in queries)
    assert not [column for column in WIDE_COLUMNS if f'"{column}"' in read]


def test_the_endpoint_reads_no_wide_columns_of_a_task_that_has_ended(boss, manager):
    name = manager.launch_async_task("tests.testapp.tasks.add", 1, sync=True)
    with CaptureQueriesContext(connection) as queries:
        assert boss.get(PROGRESS, {"task_name": name}).status_code == 286
    read = " ".join(query["sql"] for query in queries)
    assert not [column for column in WIDE_COLUMNS if f'"{column}"' in read]


def test_the_page_of_a_task_reads_neither_its_payload_nor_its_locks(boss, running):
    address = f"{TASKS}{running.pk}/change/"
    with CaptureQueriesContext(connection) as queries:
        boss.get(address)
    read = " ".join(query["sql"] for query in queries)
    assert "task_args" in read
    assert not [column for column in ("payload", "conflict_ids") if f'_taskrecord"."{column}"' in read]


def test_more_locks_than_are_counted_are_shown_as_such(boss, manager, running):
    assert f"({FEW} locked)" in boss.get(TASKS).content.decode()
    manager.add_conflict_ids(running.task_name, {"testapp.project": range(1_000_000, 1_001_000)})
    assert "(1,000+ locked)" in boss.get(TASKS).content.decode()
    assert "1,000+" in PAGES["task"](boss).content.decode()


def test_so_are_those_that_a_confirmation_does_not_look_at(boss, manager, running, monkeypatch):
    monkeypatch.setattr(selection, "MAX_KEYS", FEW - 1)
    page = PAGES["confirmation for all"](boss)
    assert f"{FEW} objects are locked" in page.content.decode()
    assert not page.context["locked_count"].is_capped
    manager.add_conflict_ids(running.task_name, {"testapp.project": range(1_000_000, 1_001_000)})
    assert PAGES["confirmation for all"](boss).context["locked_count"].is_capped
