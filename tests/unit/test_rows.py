"""Rows are rendered once, and look in every way as if they were rendered each time."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from django.conf import settings as django_settings
from django.test.signals import template_rendered
from django.utils import timezone, translation

from powercrud_dashboard.dashboard import rows
from powercrud_dashboard.models import ActiveTask, TaskRecord, TaskStatus, WorkerProcess

pytestmark = pytest.mark.django_db

LIST = "/admin/powercrud_dashboard/taskrecord/"
ROW = rows.TEMPLATE


@pytest.fixture
def ended() -> TaskRecord:
    now = timezone.now()
    return TaskRecord.objects.create(
        task_name="ended",
        label="rebuild",
        func="f",
        manager_class="m",
        status=TaskStatus.SUCCESS,
        message="all of it",
        started_at=now,
        finished_at=now,
    )


@pytest.fixture
def rendered():
    """The names of the templates that are rendered, in their order."""
    names: list[str] = []

    def note(template, **kwargs):
        names.append(template.name)

    template_rendered.connect(note)
    yield names
    template_rendered.disconnect(note)


def test_a_row_is_rendered_once_for_all_views_of_it(boss, ended, rendered):
    first = boss.get(LIST).content.decode()
    assert rendered.count(ROW) == 1
    second = boss.get(LIST).content.decode()
    assert rendered.count(ROW) == 1
    assert "all of it" in first
    assert first.count("data-pcrud-row") == second.count("data-pcrud-row") == 1


def test_the_ages_of_a_row_that_is_not_rendered_again_grow(ended, rendered):
    def ages(later: timedelta) -> list[str]:
        row = rows.TaskRow(ended, None, "/", "", [], [], ended.finished_at + later)
        (html,) = rows.render_rows([row], labels={"created_at": "Created"}, is_actionable=False)
        return re.findall(r"<time [^>]*>([^<]*)</time>", html.replace("\xa0", " "))

    assert ages(timedelta(minutes=4, seconds=20)) == ["4 min ago", "4 min ago"]
    assert ages(timedelta(hours=3)) == ["3 h ago", "3 h ago"]
    assert rendered.count(ROW) == 1


def test_the_row_of_an_unfinished_task_is_rendered_again_only_if_it_shows_something_else(boss, manager, rendered):
    name = manager.launch_async_task("tests.testapp.tasks.add", 1)
    for _ in range(2):
        assert "Next in the queue" in boss.get(LIST).content.decode()
    assert rendered.count(ROW) == 1
    worker = WorkerProcess.objects.create(identity="w", host="host-a", pid=4711, cluster="pcrud-tests")
    ActiveTask.objects.claim(name, worker=worker.pk)
    TaskRecord.objects.update(status=TaskStatus.IN_PROGRESS, started_at=timezone.now())
    # Long enough ago for an estimate in each of the rows.
    ActiveTask.objects.update(started_at=timezone.now() - timedelta(minutes=7))
    for done in (3, 3, 4):
        manager.update_progress(name, "half way", current=done, total=10)
        page = boss.get(LIST).content.decode()
        assert f"{done}/10" in page
        assert "worker 4711 on host-a" in page
    assert rendered.count(ROW) == 3


def test_the_times_of_an_unfinished_task_pass_without_a_row_being_rendered_again(boss, manager, rendered):
    def shown() -> str:
        return boss.get(LIST).content.decode().replace("\xa0", " ")

    now = timezone.now()
    name = manager.launch_async_task("tests.testapp.tasks.add", 1)
    manager.launch_async_task("tests.testapp.tasks.add", 2)
    third = manager.launch_async_task("tests.testapp.tasks.add", 3)
    worker = WorkerProcess.objects.create(identity="w", host="host-a", pid=4711, cluster="pcrud-tests")
    ActiveTask.objects.claim(name, worker=worker.pk)
    TaskRecord.objects.filter(task_name=name).update(status=TaskStatus.IN_PROGRESS)
    page = shown()
    assert "Number 2 in the queue" in page
    assert rendered.count(ROW) == 3
    ActiveTask.objects.filter(task_name=name).update(started_at=now - timedelta(minutes=7, seconds=10))
    WorkerProcess.objects.update(heartbeat_at=now - timedelta(minutes=3, seconds=10))
    ActiveTask.objects.filter(task_name=third).update(queued_at=now - timedelta(minutes=1))
    page = shown()
    assert re.search(r"for 7 min \d+ s", page)
    assert re.search(r"heartbeat 3 min \d+ s ago", page)
    assert "\ue000" not in page
    assert rendered.count(ROW) == 5, "the places in the queue have changed"


def test_the_row_of_a_running_task_says_how_long_it_will_take_without_seconds(boss, manager, rendered):
    name = manager.launch_async_task("tests.testapp.tasks.add", 1)
    worker = WorkerProcess.objects.create(identity="w", host="host-a", pid=4711, cluster="pcrud-tests")
    ActiveTask.objects.claim(name, worker=worker.pk)
    TaskRecord.objects.update(status=TaskStatus.IN_PROGRESS, started_at=timezone.now())
    manager.update_progress(name, "nearly done", current=9, total=10)
    for minutes, left in ((9, 1), (27, 3)):
        ActiveTask.objects.update(started_at=timezone.now() - timedelta(minutes=minutes))
        page = boss.get(LIST).content.decode().replace("\xa0", " ")
        assert f"about {left} min left<" in page
    assert rendered.count(ROW) == 1


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"message": "half of it"}, "half of it"),
        ({"status": TaskStatus.FAILED, "error": "it broke"}, "it broke"),
        ({"label": "renamed"}, "renamed"),
        ({"affected_count": 1, "first_objects": [{"model": "", "id": "", "text": "The Thing"}]}, "The Thing"),
        ({"failed_count": 3}, "3 failed"),
        ({"user_label": "anna"}, ">anna<"),
    ],
)
def test_a_change_of_the_record_is_shown(boss, ended, change, word):
    assert word not in boss.get(LIST).content.decode()
    TaskRecord.objects.update(**change)
    assert word in boss.get(LIST).content.decode()


def test_each_person_gets_their_own_buttons_and_language(boss, ended, client_of, make_user):
    def row_of(client) -> str:
        page = client.get(LIST).content.decode()
        row = page[page.index("<tbody>") : page.index("</tbody>")]
        return re.sub(r"(<time [^>]*>)[^<]*", r"\1", row)

    full = row_of(boss)
    assert "pcrud-row-delete" in full
    onlooker = client_of(make_user("onlooker", "view_taskrecord"))
    assert "<button" not in row_of(onlooker)
    with translation.override("de"):
        assert "Abgeschlossen" in row_of(onlooker)
    assert "Completed" in row_of(onlooker)
    assert row_of(boss) == full


@pytest.mark.skipif(not django_settings.USE_TZ, reason="there are only local times")
def test_each_person_gets_their_own_time_zone(boss, ended):
    def row() -> str:
        page = boss.get(LIST).content.decode()
        row = page[page.index("<tbody>") : page.index("</tbody>")]
        return re.sub(r"(<time [^>]*>)[^<]*", r"\1", row)

    usual = row()
    with timezone.override("Asia/Tokyo"):
        assert row() != usual
    assert row() == usual


@pytest.mark.parametrize(("length", "is_kept"), [(1, True), (rows.MAX_CACHED_BYTES, False)])
def test_not_more_than_so_many_bytes_of_rows_are_kept(boss, ended, rendered, length, is_kept):
    def look(message: str) -> None:
        TaskRecord.objects.update(message=message)
        assert message in boss.get(LIST).content.decode()

    look("first")
    # A row links to the pages of its objects, whose addresses contain their keys.
    objects = [{"model": "testapp.project", "id": "9" * length, "text": ""}]
    TaskRecord.objects.update(first_objects=objects, affected_count=1)
    look("second")
    TaskRecord.objects.update(first_objects=[], affected_count=0)
    look("first")
    assert rendered.count(ROW) == (2 if is_kept else 3)


def test_somebody_who_works_on_the_templates_sees_each_change(boss, ended, rendered, settings):
    settings.DEBUG = True
    for _ in range(2):
        boss.get(LIST)
    assert rendered.count(ROW) == 2
