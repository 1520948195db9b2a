"""A large selection that a task splits into a group: each object has one task, however often the split is tried."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django import forms
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection
from django.utils import timezone

from powercrud_dashboard.admin import background_action
from powercrud_dashboard.admin import selection as selected_rows
from powercrud_dashboard.async_manager import AsyncManager, RetryPolicy
from powercrud_dashboard.models import ActiveTask, ConflictLock, TaskFile, TaskRecord
from tests.clicks import CHANGELIST, TASKS, choose, last, said
from tests.testapp.models import Project
from tests.workers import database_refuses, run_queue

pytestmark = pytest.mark.django_db(transaction=True)

INSERT_TASK = f"INSERT INTO {connection.ops.quote_name(ActiveTask._meta.db_table)}"


@pytest.fixture(autouse=True)
def _few_keys(monkeypatch):
    """Let selections of more than three rows count as large."""
    monkeypatch.setattr(selected_rows, "MAX_KEYS", 3)


@pytest.fixture
def projects(make_projects) -> list[Project]:
    return make_projects(7)


@pytest.fixture
def worked_on(with_actions) -> list[int]:
    """The keys that an action of chunks of two has worked on, which takes its rows out of the filter."""
    done: list[int] = []

    @background_action(permissions=["change"], chunk_size=2, retry=RetryPolicy(1, backoff=0))
    def mark(modeladmin, request, queryset):
        done.extend(queryset.values_list("pk", flat=True))
        queryset.update(archived=True)

    with_actions(mark)
    return done


def select_all(client, action: str, rows, query: str = ""):
    return choose(client, action, rows[:1], f"{CHANGELIST}{query}", select_across="1")


def splitter() -> TaskRecord:
    return TaskRecord.objects.earliest("pk")


def test_the_changelist_shows_the_splitter_before_it_has_launched_a_chunk(boss, projects, worked_on):
    strip = select_all(boss, "mark", projects).content.decode().partition('class="pcrud-strip"')[2]
    assert f"{TASKS}{splitter().pk}/change/" in strip
    assert splitter().affected_count == 0


@pytest.mark.parametrize("query", ["", "?archived__exact=0"], ids=["all", "those that are left by the filter"])
def test_a_splitter_that_is_tried_again_launches_only_what_is_left(boss, projects, worked_on, query):
    select_all(boss, "mark", projects, query)
    with database_refuses(INSERT_TASK, 1, after=2):
        run_queue()
    assert (splitter().status, len(worked_on)) == ("pending", 4)
    AsyncManager.send_due_tasks()
    run_queue()
    assert sorted(worked_on) == [project.pk for project in projects]
    assert splitter().result == {"launched": 2, "refused": 0}


def test_chunks_that_are_still_queued_are_not_launched_again(boss, projects, worked_on):
    select_all(boss, "mark", projects)
    with database_refuses(INSERT_TASK, 1, after=2):
        run_queue(at_most=1)
    assert (TaskRecord.objects.count(), worked_on) == (3, [])
    AsyncManager.send_due_tasks()
    run_queue()
    assert sorted(worked_on) == [project.pk for project in projects]


def test_a_person_who_tries_a_failed_splitter_again_gets_what_is_left(boss, projects, with_actions):
    done: list[int] = []

    @background_action(permissions=["change"], chunk_size=2, conflict=False)
    def mark(modeladmin, request, queryset):
        done.extend(queryset.values_list("pk", flat=True))

    with_actions(mark)
    select_all(boss, "mark", projects)
    with database_refuses(INSERT_TASK, 1, after=1):
        run_queue()
    assert (splitter().status, len(done)) == ("failed", 2)
    boss.post(f"{TASKS}{splitter().pk}/retry/")
    run_queue()
    assert sorted(done) == [project.pk for project in projects]
    page = boss.get(f"{TASKS}groups/{splitter().group}/").content.decode()
    assert "7 of 7 objects" in page
    # A completed one is run again for all.
    boss.post(f"{TASKS}{splitter().retries.get().pk}/retry/", {"confirmed": "yes"})
    run_queue()
    assert len(done) == 14


def test_chunks_that_were_not_queued_are_launched_by_the_next_try(boss, projects, with_actions):
    done: list[int] = []

    @background_action(permissions=["change"], chunk_size=4)
    def mark(modeladmin, request, queryset):
        done.extend(queryset.values_list("pk", flat=True))

    with_actions(mark)
    select_all(boss, "mark", projects)
    with database_refuses('INSERT INTO "django_q_ormq"', 2):
        run_queue()
    assert (splitter().status, done) == ("failed", [])
    boss.post(f"{TASKS}{splitter().pk}/retry/")
    run_queue()
    assert sorted(done) == [project.pk for project in projects]


def test_chunks_of_two_actions_of_one_function_are_not_the_same(boss, projects):
    for action in ("count_open", "count_closed"):
        more = {"select_across": "1", "reason": "none"}
        choose(boss, action, projects[:1], "/admin/testapp/ordinaryproject/", **more)
    splitters = set(TaskRecord.objects.values_list("pk", flat=True))
    # Both are split before the first chunk runs.
    run_queue()
    chunks = TaskRecord.objects.exclude(pk__in=splitters)
    assert sorted(chunks.values_list("result", flat=True)) == sorted(
        f"{size} for {name}" for name in ("open", "closed") for size in (2, 2, 2, 1)
    )


def test_a_running_splitter_is_no_progress_of_the_objects(boss, projects, worked_on):
    select_all(boss, "mark", projects)
    with database_refuses(INSERT_TASK, 1, after=2):
        run_queue()
    ActiveTask.objects.filter(task_name=splitter().task_name).update(
        state="in_progress", progress_current=2, progress_total=4
    )
    TaskRecord.objects.filter(pk=splitter().pk).update(status="in_progress")
    assert "4 of 4 objects" in boss.get(f"{TASKS}groups/{splitter().group}/").content.decode()


class UploadForm(forms.Form):
    notes = forms.FileField()


@pytest.mark.parametrize("how", ["by its keys", "by its query"])
def test_every_chunk_and_every_retry_has_the_uploaded_files(boss, projects, with_actions, manager, how):
    @background_action(permissions=["change"], form=UploadForm, chunk_size=3)
    def note(modeladmin, request, queryset, cleaned_data):
        return queryset.update(name=cleaned_data["notes"].read().decode())

    with_actions(note)
    files = {"pcrud-confirmed": "1", "pcrud-notes": SimpleUploadedFile("notes.txt", b"hello")}
    chosen = {"select_across": "1"} if how == "by its query" else {}
    choose(boss, "note", projects, **chosen, **files)
    TaskFile.objects.update(created_at=timezone.now() - timedelta(days=1))
    run_queue(at_most=2)
    manager.cleanup_completed_tasks()
    run_queue()
    assert set(TaskRecord.objects.values_list("status", flat=True)) == {"success"}
    assert set(Project.objects.values_list("name", flat=True)) == {"hello"}
    Project.objects.update(name="other")
    manager.cleanup_completed_tasks()
    boss.post(f"{TASKS}{last().pk}/retry/", {"confirmed": "yes"})
    run_queue()
    assert last().status == "success"
    assert Project.objects.filter(name="hello").exists()


# In the request


@pytest.mark.parametrize("how", ["by its keys", "by its query"])
def test_a_chunk_whose_objects_all_fail_stops_no_other(boss, projects, at_once, with_actions, how):
    def mark(modeladmin, request, project):
        if project.pk in (projects[0].pk, projects[1].pk):
            raise LookupError("not this one")
        project.archived = True
        project.save()

    with_actions(background_action(permissions=["change"], per_object=True, chunk_size=2)(mark))
    messages = said(select_all(boss, "mark", projects) if how == "by its query" else choose(boss, "mark", projects))
    assert Project.objects.filter(archived=True).count() == 5
    assert sorted(TaskRecord.objects.exclude(affected_count=0).values_list("status", flat=True)) == [
        "failed",
        *["success"] * 3,
    ]
    assert "“Mark” has finished for 5 objects." in messages[0]
    assert "“Mark” failed for 2 objects." in messages[1]
    assert f"{TASKS}groups/{last().group}/" in messages[1]
    assert not ConflictLock.objects.exists()


def test_a_group_in_the_request_is_launched_wholly_or_not(boss, projects, at_once, manager):
    manager.add_conflict_ids("nightly", {"testapp.Project": projects[4:]})
    answer = choose(boss, "visit_in_chunks", projects)
    assert "was not launched: 3 selected objects are locked by nightly" in said(answer)[0]
    assert not TaskRecord.objects.exists()
    assert ConflictLock.objects.count() == 3


def test_objects_that_failed_are_not_said_to_be_finished(boss, projects, at_once, with_actions):
    def mark(modeladmin, request, project):
        if project.pk == projects[0].pk:
            raise LookupError("not this one")

    with_actions(background_action(permissions=["change"], per_object=True)(mark))
    messages = said(choose(boss, "mark", projects))
    assert "“Mark” has finished for 6 objects." in messages[0]
    assert "“Mark” failed for 1 object." in messages[1]
