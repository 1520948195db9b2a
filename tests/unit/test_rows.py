"""Rows of tasks that have ended are rendered once, and look in every way as if they were rendered each time."""

from __future__ import annotations

import pytest
from django.test.signals import template_rendered
from django.utils import timezone, translation

from powercrud_dashboard.dashboard import rows
from powercrud_dashboard.models import TaskRecord, TaskStatus

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


def test_rows_of_unfinished_tasks_are_rendered_each_time(boss, manager, rendered):
    manager.launch_async_task("tests.testapp.tasks.add", 1)
    for _ in range(2):
        boss.get(LIST)
    assert rendered.count(ROW) == 2


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


def test_each_person_gets_their_own_buttons_language_and_time_zone(boss, ended, client_of, make_user, settings):
    def row_of(client) -> str:
        page = client.get(LIST).content.decode()
        return page[page.index("<tbody>") : page.index("</tbody>")]

    full = row_of(boss)
    assert "pcrud-row-delete" in full
    onlooker = client_of(make_user("onlooker", "view_taskrecord"))
    assert "<button" not in row_of(onlooker)
    with translation.override("de"):
        assert "Abgeschlossen" in row_of(onlooker)
    assert "Completed" in row_of(onlooker)
    with timezone.override("Asia/Tokyo"):
        assert row_of(boss) != full
    assert row_of(boss) == full


def test_not_more_than_so_many_rows_are_kept(boss, ended, rendered, monkeypatch):
    monkeypatch.setattr(rows, "KEPT_AT_MOST", 2)
    for number in (0, 1, 2, 3, 0):
        TaskRecord.objects.update(message=f"step {number}")
        assert f"step {number}" in boss.get(LIST).content.decode()
    # The first was not kept for so long.
    assert rendered.count(ROW) == 5


def test_somebody_who_works_on_the_templates_sees_each_change(boss, ended, rendered, settings):
    settings.DEBUG = True
    for _ in range(2):
        boss.get(LIST)
    assert rendered.count(ROW) == 2
