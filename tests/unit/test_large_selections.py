"""Selections too large to be named: by their query, in groups of tasks, split in the worker."""

from __future__ import annotations

import pytest

from powercrud_dashboard.admin import selected as selected_rows
from powercrud_dashboard.models import ConflictLock, TaskRecord
from tests.clicks import CHANGELIST, TASKS, choose, last, said
from tests.testapp.models import Project

pytestmark = pytest.mark.django_db


@pytest.fixture
def projects(make_projects) -> list[Project]:
    return make_projects(5)


@pytest.fixture
def few_keys(monkeypatch):
    """Let selections of more than three rows count as large."""
    monkeypatch.setattr(selected_rows, "KEYS_AT_MOST", 3)
    monkeypatch.setattr(selected_rows, "READ_AT_ONCE", 2)


def select_all(client, action: str, rows, query: str = "", **more):
    return choose(client, action, rows[:1], f"{CHANGELIST}{query}", select_across="1", **more)


def test_a_large_selection_travels_as_its_query(boss, projects, at_once, few_keys):
    Project.objects.filter(pk=projects[4].pk).update(name="other")
    answer = select_all(boss, "archive", projects, "?q=project")
    record = last()
    assert "is done for 4 objects." in said(answer)[0]
    assert (record.affected_count, record.status) == (4, "success")
    assert "pks" not in record.task_kwargs
    assert set(Project.objects.filter(archived=True)) == set(projects[:4])


def test_its_rows_are_locked_in_the_worker(boss, projects, at_once, few_keys, manager):
    manager.add_conflict_ids("nightly", {"testapp.Project": projects[3:4]})
    answer = select_all(boss, "archive", projects)
    assert "in use by nightly" in said(answer)[0]
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
    assert "was not started: 1 of the selected objects" in said(answer)[0]
    assert not TaskRecord.objects.exists()
    assert ConflictLock.objects.count() == 1


def test_a_large_selection_is_split_in_the_worker(boss, projects, at_once, few_keys):
    select_all(boss, "visit_in_chunks", projects)
    splitter, *chunks = TaskRecord.objects.order_by("pk")
    assert splitter.result == {"launched": 3, "refused": 0}
    assert [record.done_count for record in chunks] == [2, 2, 1]
    assert {record.group for record in chunks} == {splitter.group}
    assert Project.objects.filter(archived=True).count() == 5


def test_locked_chunks_are_told_and_the_others_launched(boss, projects, at_once, few_keys, manager):
    manager.add_conflict_ids("nightly", {"testapp.Project": projects[:1]})
    select_all(boss, "visit_in_chunks", projects)
    splitter = TaskRecord.objects.earliest("pk")
    assert splitter.result == {"launched": 2, "refused": 1}
    assert "nightly" in splitter.events.get(event="log").message
