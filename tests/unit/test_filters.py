from __future__ import annotations

import re
from datetime import timedelta

import pytest
from django.utils import timezone

from powercrud_dashboard.models import TaskRecord
from tests.testapp import tasks

pytestmark = pytest.mark.django_db

LIST = "/admin/powercrud_dashboard/taskrecord/"


@pytest.fixture
def three(manager, make_user, record_of) -> None:
    """Three tasks that differ in everything that one can filter by."""
    with pytest.raises(ValueError, match="needle"):
        manager.launch_async_task(tasks.fail, "a needle in the hay", label="First", user=make_user("anna"), sync=True)
    manager.launch_async_task(
        tasks.add,
        1,
        label="Second",
        user=make_user("bert"),
        group="nightly",
        cluster="slow-lane",
        conflict_ids={"testapp.Project": {17}, "testapp.SpecialThing": {18}},
    )
    third = record_of(manager.launch_async_task(tasks.add, 1, label="Third", sync=True))
    then = timezone.now() - timedelta(days=10)
    TaskRecord.objects.filter(pk=third.pk).update(
        created_at=then,
        started_at=then,
        finished_at=then + timedelta(seconds=90),
        run_time=timedelta(seconds=90),
        message="done with the job",
    )


def found(client, **parameters: str) -> set[str]:
    page = client.get(LIST, parameters).content.decode()
    return {label for label in ("First", "Second", "Third") if f">{label}</a>" in page}


TODAY = timezone.now().date()


@pytest.mark.parametrize(
    ("parameters", "labels"),
    [
        ({}, {"First", "Second", "Third"}),
        ({"q": "NEEDLE"}, {"First"}),
        ({"q": "job"}, {"Third"}),
        ({"q": "tasks.add"}, {"Second", "Third"}),
        ({"task": "second"}, {"Second"}),
        ({"task": "tasks.fail"}, {"First"}),
        ({"user": "ANN"}, {"First"}),
        ({"model": "testapp.Project"}, {"Second"}),
        ({"model": "testapp.Project", "object_id": "17"}, {"Second"}),
        ({"model": "testapp.Project", "object_id": "18"}, set()),
        ({"object_id": "18"}, {"Second"}),
        ({"group": "nightly"}, {"Second"}),
        ({"cluster": "slow-lane"}, {"Second"}),
        ({"longer_than": "60"}, {"Third"}),
        ({"longer_than": "100"}, set()),
        ({"created_before": str(TODAY - timedelta(days=5))}, {"Third"}),
        ({"created_after": str(TODAY - timedelta(days=5))}, {"First", "Second"}),
        ({"finished_before": str(TODAY - timedelta(days=5))}, {"Third"}),
        ({"q": "tasks", "status": "success"}, {"Third"}),
        ({"q": "hay needle"}, {"First"}),
        ({"q": "needle", "status": "success"}, set()),
        ({"q": "eedle"}, set()),
        ({"q": "--"}, set()),
        ({"q": "needle", "user": "bert"}, set()),
        ({"model": "testapp"}, {"Second"}),
        ({"model": "project"}, {"Second"}),
        ({"model": "Project.other"}, set()),
        ({"within": "24h"}, {"First"}),
        ({"within": "24h", "longer_than": "60"}, set()),
        ({"function": "tests.testapp.tasks.fail"}, {"First"}),
        ({"function": "tests.testapp.tasks.f"}, set()),
        ({"pattern": "ValueError: a needle in the hay"}, {"First"}),
    ],
    # Test processes side by side must agree on the names, and sets have no order to agree on.
    ids=lambda value: "-".join(sorted(value)) if isinstance(value, set) else str(value),
)
def test_each_filter_narrows_the_list(boss, three, parameters, labels):
    assert found(boss, **parameters) == labels


def test_the_tabs_count_what_the_filter_leaves_and_keep_it(boss, three):
    page = boss.get(LIST, {"q": "tasks.add"}).content.decode()
    counts = dict(re.findall(r'>(\w+) <span class="pcrud-tab-count">(\d+)<', page))
    assert counts == {"Queued": "1", "Running": "0", "Failed": "0", "Completed": "1", "Cancelled": "0", "All": "2"}
    assert f'href="{LIST}?q=tasks.add&amp;status=success"' in page


def test_active_filters_are_chips_that_can_be_taken_off(boss, three):
    page = boss.get(LIST, {"q": "tasks", "user": "anna", "status": "failed", "from": "1.x"}).content.decode()
    assert 'href="?user=anna&amp;status=failed"' in page
    assert 'href="?q=tasks&amp;status=failed"' in page
    assert 'href="?status=failed">Remove all' in page
    assert "<details open>" in page


def test_without_filters_there_are_no_chips_and_the_form_is_folded(boss):
    page = boss.get(LIST).content.decode()
    assert "pcrud-chips" not in page
    assert "<details>" in page


def test_wrong_input_is_said_and_shows_nothing_by_mistake(boss, three):
    page = boss.get(LIST, {"longer_than": "soon"}).content.decode()
    assert "Enter a number." in page
    assert "<details open>" in page
    assert found(boss, longer_than="soon") == set()


def test_filter_values_are_escaped(boss):
    page = boss.get(LIST, {"q": '"><script>alert(1)</script>'}).content.decode()
    assert "<script>alert" not in page


def test_the_refresh_keeps_the_filter(boss):
    assert 'hx-get="/admin/powercrud_dashboard/taskrecord/?q=x"' in boss.get(LIST, {"q": "x"}).content.decode()


def test_filters_show_no_tasks_of_others(client_of, three):
    from django.contrib.auth.models import User

    assert found(client_of(User.objects.get(username="bert")), q="needle") == set()
