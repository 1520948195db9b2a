from __future__ import annotations

import re
from datetime import timedelta
from urllib.parse import parse_qsl

import pytest
from django.conf import settings as django_settings
from django.utils import timezone

from powercrud_dashboard.models import TaskRecord
from tests.testapp import tasks

pytestmark = pytest.mark.django_db

LIST = "/admin/powercrud_dashboard/taskrecord/"


@pytest.fixture
def three(manager, make_user, record_of) -> None:
    """Three tasks that differ in everything that one can filter by."""
    with pytest.raises(ValueError, match="needle"):
        manager.launch_async_task(
            tasks.fail, "a needle in the hay", label="First", user=make_user("anna"), sync=True, task_key="1"
        )
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


NOW = timezone.localtime() if django_settings.USE_TZ else timezone.now()
TODAY = NOW.date()


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
        # A proxy model of the same rows.
        ({"model": "testapp.SpecialProject"}, {"Second"}),
        ({"model": "testapp.SpecialProject", "object_id": "17"}, {"Second"}),
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
        ({"error_class": "ValueError"}, {"First"}),
        ({"error_class": "builtins.ValueError"}, {"First"}),
        ({"error_class": "builtins.ValueError", "q": "needle"}, {"First"}),
        ({"error_class": "KeyError"}, set()),
        ({"error_class": "elsewhere.ValueError"}, set()),
        ({"reason": "error"}, {"First"}),
        ({"reason": "timeout"}, set()),
        ({"with_errors": "on"}, set()),
        ({"mine": "on"}, set()),
        ({"created_after": (NOW - timedelta(minutes=30)).strftime("%Y-%m-%dT%H:%M")}, {"First", "Second"}),
        ({"created_after": (NOW + timedelta(minutes=30)).strftime("%Y-%m-%dT%H:%M")}, set()),
        ({"created_before": str(NOW.date())}, {"First", "Second", "Third"}),
    ],
    # Test processes side by side must agree on the names, and sets have no order to agree on.
    ids=lambda value: "-".join(sorted(value)) if isinstance(value, set) else str(value),
)
def test_each_filter_narrows_the_list(boss, three, parameters, labels):
    assert found(boss, **parameters) == labels


def test_a_task_that_completed_with_errors_and_own_tasks_are_found(boss, three, superuser):
    TaskRecord.objects.filter(label="Third").update(failed_count=2)
    TaskRecord.objects.filter(label="Second").update(user=superuser)
    assert found(boss, with_errors="on") == {"Third"}
    assert found(boss, mine="on") == {"Second"}
    page = boss.get(LIST, {"mine": "on", "reason": "timeout"}).content.decode()
    assert "Launched by me <span" in page
    assert "Failure reason: The task ran out of time <span" in page


def test_filters_suggest_what_there_is(boss, three):
    assert f'hx-get="{LIST}suggestions/"' in boss.get(LIST).content.decode()
    suggestions = boss.get(f"{LIST}suggestions/", headers={"HX-Request": "true"}).content.decode()
    for suggestion in ("tests.testapp.tasks.fail", "builtins.ValueError", "testapp.project"):
        assert f'<option value="{suggestion}"></option>' in suggestions


def test_filters_suggest_to_nobody_what_they_may_not_see(client_of, make_user, three):
    suggestions = client_of(make_user("nobody")).get(f"{LIST}suggestions/").content.decode()
    assert "<datalist" in suggestions
    assert "<option" not in suggestions


def test_empty_fields_do_not_stay_in_the_address(boss, three):
    empty = "q=&task=&created_after=&user=anna&status=failed&within="
    assert boss.get(f"{LIST}?{empty}").url == f"{LIST}?user=anna&status=failed"
    assert boss.get(f"{LIST}?q=&task=").url == LIST
    # A refresh is not sent elsewhere.
    assert boss.get(f"{LIST}?q=", headers={"HX-Request": "true"}).status_code == 200


def test_the_tab_of_queued_tasks_offers_their_functions_as_filters(boss, manager):
    for function, count in ((tasks.add, 3), (tasks.log_lines, 2)):
        for number in range(count):
            manager.launch_async_task(function, *([number] if function is tasks.add else []))
    page = boss.get(LIST, {"status": "pending"}).content.decode()
    kinds = re.findall(r'href="([^"]*)" title="([\w.]+)">\w+ <span class="pcrud-tab-count">(\d+)<', page)
    assert [kind[1:] for kind in kinds] == [("tests.testapp.tasks.add", "3"), ("tests.testapp.tasks.log_lines", "2")]
    one = boss.get(LIST + kinds[1][0].replace("&amp;", "&")).content.decode()
    assert one.count("data-pcrud-row") == 2
    assert "pcrud-kinds" not in one


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
    # They tell which filters are active: the tasks are not below a page of fields.
    assert '<details id="pcrud-more-filters">' in page


def test_the_form_stays_unfolded_for_the_next_change(boss, three):
    page = boss.get(LIST, {"user": "anna", "unfolded": "1"}).content.decode()
    assert '<details id="pcrud-more-filters" open>' in page
    assert 'href="?">Remove all' in page


def test_an_empty_list_says_whether_filters_have_emptied_it(boss, three):
    assert "No task matches the filters." in boss.get(LIST, {"q": "nothing"}).content.decode()
    assert "No task was cancelled." in boss.get(LIST, {"status": "cancelled"}).content.decode()


def test_without_filters_there_are_no_chips_and_the_form_is_folded(boss):
    page = boss.get(LIST).content.decode()
    assert "pcrud-chips" not in page
    assert '<details id="pcrud-more-filters">' in page


def test_wrong_input_is_said_and_shows_nothing_by_mistake(boss, three):
    page = boss.get(LIST, {"longer_than": "soon"}).content.decode()
    assert "Enter a number." in page
    assert '<details id="pcrud-more-filters" open>' in page
    assert found(boss, longer_than="soon") == set()


def test_filter_values_are_escaped(boss):
    page = boss.get(LIST, {"q": '"><script>alert(1)</script>'}).content.decode()
    assert "<script>alert" not in page


def test_the_refresh_keeps_the_filter(boss):
    assert 'hx-get="/admin/powercrud_dashboard/taskrecord/?q=x"' in boss.get(LIST, {"q": "x"}).content.decode()


def test_filters_show_no_tasks_of_others(client_of, three):
    from django.contrib.auth.models import User

    assert found(client_of(User.objects.get(username="bert")), q="needle") == set()


@pytest.mark.parametrize("text", ["anv", "ANVIL", "anvil no", "17"])
def test_a_search_finds_objects_by_name_and_key_and_leads_to_their_tasks(boss, three, text):
    entry = TaskRecord.objects.get(label="Second").objects_worked_on.get(object_id="17")
    entry.text = "Anvil no. 3"
    entry.save()
    page = boss.get(LIST, {"q": text}).content.decode()
    (address,) = re.findall(r'<a href="([^"]*)">Anvil no. 3</a>', page)
    assert found(boss, **dict(parse_qsl(address.removeprefix("?").replace("&amp;", "&")))) == {"Second"}
    assert "Anvil no. 3" not in boss.get(LIST, {"q": "vil"}).content.decode().split("<tbody>")[0]


def test_a_search_names_no_objects_of_others(client_of, three):
    from django.contrib.auth.models import User

    client = client_of(User.objects.get(username="anna"))
    assert "Tasks of the object" not in client.get(LIST, {"q": "17"}).content.decode()
    owner = client_of(User.objects.get(username="bert"))
    assert "Tasks of the object" in owner.get(LIST, {"q": "17"}).content.decode()
