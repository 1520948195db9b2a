"""Selections too large to be named: by their query, in groups of tasks, split in the worker."""

from __future__ import annotations

from contextvars import ContextVar
from datetime import UTC, datetime

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from django_q.models import OrmQ

from powercrud_dashboard.admin import selection as selected_rows
from powercrud_dashboard.models import ConflictLock, TaskObject, TaskRecord
from tests.clicks import CHANGELIST, TASKS, choose, last, said
from tests.testapp.admin import ODD, ProjectAdmin
from tests.testapp.models import Project
from tests.workers import database_refuses

pytestmark = pytest.mark.django_db


@pytest.fixture
def projects(make_projects) -> list[Project]:
    return make_projects(5)


@pytest.fixture
def few_keys(monkeypatch):
    """Let selections of more than three rows count as large."""
    monkeypatch.setattr(selected_rows, "MAX_KEYS", 3)
    monkeypatch.setattr(selected_rows, "READ_CHUNK_SIZE", 2)


def select_all(client, action: str, rows, query: str = "", **more):
    return choose(client, action, rows[:1], f"{CHANGELIST}{query}", select_across="1", **more)


def test_a_large_selection_travels_as_its_query(boss, projects, at_once, few_keys):
    Project.objects.filter(pk=projects[4].pk).update(name="other")
    answer = select_all(boss, "archive", projects, "?q=project")
    record = last()
    assert "has finished for 4 objects." in said(answer)[0]
    assert (record.affected_count, record.status) == (4, "success")
    assert "pks" not in record.task_kwargs
    assert set(Project.objects.filter(archived=True)) == set(projects[:4])


@pytest.mark.parametrize("action", ["archive", "archive_after_all"], ids=["launch", "confirmation"])
def test_a_click_reads_no_rows_but_those_that_it_shows(boss, make_projects, few_keys, action):
    projects = make_projects(30)
    with CaptureQueriesContext(connection) as queries:
        assert select_all(boss, action, projects).status_code == 200
    assert not [
        query["sql"]
        for query in queries
        if query["sql"].startswith('SELECT "testapp_project"."id", "testapp_project"."name"')
        and "LIMIT" not in query["sql"]
    ]


def test_its_rows_are_locked_in_the_worker(boss, projects, at_once, few_keys, manager):
    manager.add_conflict_ids("nightly", {"testapp.Project": projects[3:4]})
    answer = select_all(boss, "archive", projects)
    assert "locked by nightly" in said(answer)[0]
    assert last().status == "failed"
    assert ConflictLock.objects.count() == 1
    assert not Project.objects.filter(archived=True).exists()


def test_or_left_out_there(boss, projects, at_once, few_keys, manager):
    manager.add_conflict_ids("nightly", {"testapp.Project": projects[3:4]})
    select_all(boss, "visit", projects)
    record = last()
    assert (record.done_count, record.skipped_count) == (4, 1)
    assert not Project.objects.get(pk=projects[3].pk).archived


def test_rows_that_drop_out_of_the_query_on_the_way_are_all_worked_on(boss, projects, at_once, few_keys):
    select_all(boss, "visit", projects, "?archived__exact=0")
    assert last().result == {"done": 5, "failed": 0, "skipped": 0}
    assert Project.objects.filter(archived=True).count() == 5


def test_a_click_becomes_a_group_of_tasks(boss, projects):
    answer = choose(boss, "visit_in_chunks", projects)
    records = list(TaskRecord.objects.order_by("pk"))
    assert [record.affected_count for record in records] == [2, 2, 1]
    assert len({record.group for record in records}) == 1
    assert f"{TASKS}groups/{records[0].group}/" in said(answer)[0]


def test_all_of_the_group_or_none(boss, projects, manager):
    manager.add_conflict_ids("nightly", {"testapp.Project": projects[4:]})
    answer = choose(boss, "visit_in_chunks", projects)
    assert "was not launched: 1 selected object" in said(answer)[0]
    assert not TaskRecord.objects.exists()
    assert ConflictLock.objects.count() == 1


def test_a_large_selection_is_split_in_the_worker(boss, projects, at_once, few_keys):
    select_all(boss, "visit_in_chunks", projects)
    splitter, *chunks = TaskRecord.objects.order_by("pk")
    assert splitter.result == {"launched": 3, "refused": 0}
    assert [record.done_count for record in chunks] == [2, 2, 1]
    assert {record.group for record in chunks} == {splitter.group}
    assert Project.objects.filter(archived=True).count() == 5


def test_its_group_counts_each_object_once(boss, projects, at_once, few_keys):
    select_all(boss, "visit_in_chunks", projects)
    assert "5 of 5 objects" in boss.get(f"{TASKS}groups/{last().group}/").content.decode()


def test_locked_rows_are_left_out_of_the_chunks(boss, projects, at_once, few_keys, manager):
    manager.add_conflict_ids("nightly", {"testapp.Project": projects[:1]})
    select_all(boss, "visit_free_in_chunks", projects)
    splitter = TaskRecord.objects.earliest("pk")
    assert splitter.result == {"launched": 3, "refused": 0}
    assert splitter.skipped_count == 1
    entry = TaskObject.objects.get(record=splitter)
    assert (str(entry), entry.error) == (str(Project.objects.get(pk=entry.object_id)), "Locked by nightly")
    assert set(Project.objects.filter(archived=True)) == set(projects[1:])


def test_a_retry_launches_only_the_refused_objects(boss, projects, at_once, few_keys, manager):
    manager.add_conflict_ids("nightly", {"testapp.Project": projects[:1]})
    select_all(boss, "visit_in_chunks", projects)
    splitter = TaskRecord.objects.earliest("pk")
    assert (splitter.status, splitter.failed_count) == ("success", 2)
    assert set(Project.objects.filter(archived=True)) == set(projects[2:])
    manager.remove_conflict_ids("nightly")
    Project.objects.filter(pk=projects[4].pk).update(archived=False)
    boss.post(f"{TASKS}{splitter.pk}/retry-objects/")
    assert set(Project.objects.filter(archived=True)) == set(projects[:4])


def test_locked_chunks_are_told_and_the_others_launched(boss, projects, at_once, few_keys, manager):
    manager.add_conflict_ids("nightly", {"testapp.Project": projects[:1]})
    select_all(boss, "visit_in_chunks", projects)
    splitter = TaskRecord.objects.earliest("pk")
    assert splitter.result == {"launched": 2, "refused": 1}
    assert "nightly" in splitter.events.get(event="log").message


@pytest.mark.parametrize("action", ["archive", "visit_in_chunks"])
def test_filters_that_the_admin_adds_to_the_request_count(boss, projects, at_once, few_keys, monkeypatch, action):
    monkeypatch.setattr(ProjectAdmin, "default_search", "project")
    Project.objects.filter(pk=projects[4].pk).update(name="other")
    select_all(boss, action, projects)
    assert "pks" not in TaskRecord.objects.earliest("pk").task_kwargs
    assert set(Project.objects.filter(archived=True)) == set(projects[:4])


def test_a_selection_that_depends_on_the_session_is_kept_by_its_keys(boss, projects, at_once, few_keys, monkeypatch):
    all_rows = ProjectAdmin.get_queryset

    def get_queryset(self, request):
        rows = all_rows(self, request)
        return rows.filter(pk__in=request.session["mine"]) if "mine" in request.session else rows

    monkeypatch.setattr(ProjectAdmin, "get_queryset", get_queryset)
    session = boss.session
    session["mine"] = [project.pk for project in projects[:4]]
    session.save()
    select_all(boss, "archive", projects)
    assert last().task_kwargs["pks"] == [str(project.pk) for project in projects[:4]]
    assert set(Project.objects.filter(archived=True)) == set(projects[:4])


def test_a_selection_that_depends_on_the_time_zone_is_kept_by_its_keys(
    boss, projects, at_once, few_keys, monkeypatch, settings
):
    rows = ProjectAdmin.get_queryset

    def get_queryset(self, request):
        day = timezone.localtime(datetime(2024, 5, 4, 13, tzinfo=UTC)).day
        return rows(self, request).filter(archived=day == 5)

    monkeypatch.setattr(ProjectAdmin, "get_queryset", get_queryset)
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, f"{__name__}.in_auckland"]
    Project.objects.filter(pk__in=[project.pk for project in projects[:4]]).update(archived=True)
    select_all(boss, "names_as_csv", projects)
    assert last().task_kwargs["pks"] == [str(project.pk) for project in projects[:4]]


def in_auckland(get_response):
    def middleware(request):
        with timezone.override("Pacific/Auckland"):
            return get_response(request)

    return middleware


def test_a_row_that_matches_later_is_not_worked_on(boss, projects, at_once, few_keys):
    """It is not locked."""
    select_all(boss, "archive_after_adding", projects, "?q=project")
    assert last().status == "success"
    assert set(Project.objects.filter(archived=True)) == set(projects)


def test_more_rows_than_a_statement_takes_parameters(boss, projects, at_once, few_keys, monkeypatch):
    monkeypatch.setattr(type(connection.features), "max_query_params", 103)
    select_all(boss, "archive_after_adding", projects)
    assert last().status == "success"
    assert set(Project.objects.filter(archived=True)) == set(projects)


def test_the_confirmation_page_names_only_locks_of_selected_rows(boss, projects, few_keys, manager):
    manager.add_conflict_ids("nightly", {"testapp.Project": [projects[4].pk]})
    Project.objects.filter(pk=projects[4].pk).update(name="other")
    assert "nightly" not in select_all(boss, "archive_after_all", projects, "?q=project").content.decode()
    assert "nightly" in select_all(boss, "archive_after_all", projects).content.decode()


def test_a_retry_of_the_failed_objects_locks_them(boss, projects, at_once, few_keys, manager):
    Project.objects.filter(pk=projects[0].pk).update(name=ODD)
    select_all(boss, "visit", projects)
    record = last()
    assert record.failed_count == 1
    Project.objects.update(archived=False)
    manager.add_conflict_ids("nightly", {"testapp.Project": projects[:1]})
    boss.post(f"{TASKS}{record.pk}/retry-objects/")
    assert last().skipped_count == 1
    assert not Project.objects.filter(archived=True).exists()


def test_the_same_query_of_two_users_is_not_the_same_task(boss, client_of, make_user, projects, few_keys):
    select_all(boss, "archive", projects)
    other = client_of(make_user("other", "change_project", "view_project"))
    select_all(other, "archive", projects)
    assert TaskRecord.objects.count() == 2


def test_a_selection_that_depends_on_a_context_variable_is_kept_by_its_keys(
    boss, projects, at_once, few_keys, monkeypatch, settings
):
    rows = ProjectAdmin.get_queryset
    monkeypatch.setattr(
        ProjectAdmin, "get_queryset", lambda self, request: rows(self, request).exclude(name=hidden.get())
    )
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, f"{__name__}.hide_other"]
    Project.objects.filter(pk=projects[4].pk).update(name="other")
    select_all(boss, "archive", projects)
    assert last().task_kwargs["pks"] == [str(project.pk) for project in projects[:4]]


hidden: ContextVar[str] = ContextVar("hidden", default="")


def hide_other(get_response):
    def middleware(request):
        hidden.set("other")
        return get_response(request)

    return middleware


def test_a_changelist_that_needs_the_session_is_no_error(boss, projects, at_once, few_keys, monkeypatch):
    rows = ProjectAdmin.get_queryset
    monkeypatch.setattr(
        ProjectAdmin, "get_queryset", lambda self, request: rows(self, request).exclude(name=request.session["hidden"])
    )
    session = boss.session
    session["hidden"] = "other"
    session.save()
    Project.objects.filter(pk=projects[4].pk).update(name="other")
    select_all(boss, "archive", projects)
    assert last().task_kwargs["pks"] == [str(project.pk) for project in projects[:4]]


def test_all_tasks_of_a_group_get_the_uploaded_files(boss, projects, at_once, few_keys):
    upload = SimpleUploadedFile("notes.txt", b"hello")
    select_all(
        boss,
        "annotate_in_chunks",
        projects,
        **{"pcrud-confirmed": "1", "pcrud-prefix": "x", "pcrud-count": "1", "pcrud-notes": upload},
    )
    chunks = TaskRecord.objects.order_by("pk")[1:]
    assert [record.failed_count for record in chunks] == [0, 0, 0]
    assert set(Project.objects.values_list("name", flat=True)) == {"hello"}


@pytest.mark.django_db(transaction=True)
def test_chunks_that_the_broker_refuses_can_be_retried(boss, projects, few_keys):
    select_all(boss, "visit_in_chunks", projects)
    message = OrmQ.objects.get()
    message.delete()
    table = connection.ops.quote_name(OrmQ._meta.db_table)
    with database_refuses(f"INSERT INTO {table}", 1):
        message.task["func"](*message.task["args"], **message.task["kwargs"])
    splitter = TaskRecord.objects.earliest("pk")
    assert splitter.result == {"launched": 2, "refused": 1}
    assert splitter.failed_count == 2


def test_large_numbers_have_separators(boss, make_projects):
    answer = select_all(boss, "archive", make_projects(1_001))
    assert "runs in the background for 1,001 objects." in said(answer)[0]
