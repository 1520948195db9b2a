from __future__ import annotations

import pytest
from django.apps import apps
from django.contrib.admin.models import LogEntry

from powercrud_dashboard.dashboard import selection
from powercrud_dashboard.models import TaskRecord
from tests.testapp import tasks

pytestmark = pytest.mark.django_db

LIST = "/admin/powercrud_dashboard/taskrecord/"
BULK = f"{LIST}bulk/"


@pytest.fixture
def four(manager) -> dict[str, TaskRecord]:
    """Two failed tasks, a queued one and a completed one."""
    for label in ("Bad", "Worse"):
        with pytest.raises(ValueError, match="it broke"):
            manager.launch_async_task(tasks.fail, label=label, sync=True, conflict_ids={"testapp.Project": {1}})
    manager.launch_async_task(tasks.add, 1, label="Waiting")
    manager.launch_async_task(tasks.add, 1, label="Done", sync=True)
    return {record.label: record for record in TaskRecord.objects.all()}


def choose(client, action: str, *records: TaskRecord, **more: str):
    data = {"action": action, "selected": [record.pk for record in records], **more}
    return client.post(BULK, data, follow=True)


def test_the_first_click_only_asks(boss, four):
    page = choose(boss, "retry", four["Bad"], four["Waiting"]).content.decode()
    assert "Retry: 1 task." in " ".join(page.replace("</strong>", "").split())
    assert "Waiting: has not ended yet" in page
    assert TaskRecord.objects.count() == 4


def test_the_second_retries_what_can_be_and_says_what_was_not(boss, superuser, four):
    response = choose(boss, "retry", *four.values(), confirmed="yes", include_completed="1")
    page = response.content.decode()
    # The two failed tasks want the same object: the second is refused, the queued one left out.
    assert "Retry: 2 tasks." in page
    assert "2 tasks were not changed:" in page
    assert "Waiting (has not ended yet)" in page
    assert "Locked: Project 1" in page
    retried = TaskRecord.objects.filter(retry_of__isnull=False)
    assert retried.count() == 2
    assert {event.actor for record in retried for event in record.retry_of.events.filter(event="retry")} == {superuser}


def test_where_nothing_can_be_done_nothing_is_asked(boss, four):
    page = choose(boss, "cancel", four["Bad"], four["Done"]).content.decode()
    assert "Cancel: not possible for any of the selected tasks." in " ".join(page.split())
    assert "sure" not in page
    assert ">Back</a>" in page


def test_the_history_of_one_task_is_its_own(boss, four):
    assert "Its history is deleted as well." in choose(boss, "delete", four["Bad"]).content.decode()
    assert "Their history is deleted as well." in choose(boss, "delete", four["Bad"], four["Done"]).content.decode()


def test_who_does_not_delete_a_task_is_back_on_its_page(boss, four):
    record = four["Bad"]
    address = f"{LIST}{record.pk}/change/"
    assert f'name="asked_by" value="{record.pk}"' in boss.get(address).content.decode()
    page = boss.post(BULK, {"row": f"delete:{record.pk}", "asked_by": record.pk}).content.decode()
    assert f'<a href="{address}" class="button cancel-link">No, take me back' in page
    # Of the list, and of another task's page.
    for more in ({}, {"asked_by": record.pk + 1}):
        page = boss.post(BULK, {"row": f"delete:{record.pk}", **more}).content.decode()
        assert f'<a href="{LIST}" class="button cancel-link">No, take me back' in page


def test_a_reason_that_several_tasks_have_is_told_once(boss, four):
    page = choose(boss, "cancel", four["Waiting"], four["Bad"], four["Done"], confirmed="yes").content.decode()
    assert page.count("(has already ended)") == 1


def test_cancel_ends_what_has_not_ended(boss, four):
    page = choose(boss, "cancel", four["Waiting"], four["Done"], confirmed="yes").content.decode()
    assert "Cancel: 1 task." in page
    assert "Done (has already ended)" in page
    four["Waiting"].refresh_from_db()
    assert four["Waiting"].status == "cancelled"


def test_delete_removes_ended_tasks_and_is_logged(boss, superuser, four):
    page = choose(boss, "delete", four["Bad"], four["Waiting"], confirmed="yes").content.decode()
    assert "Delete: 1 task." in page
    assert set(TaskRecord.objects.values_list("label", flat=True)) == {"Worse", "Waiting", "Done"}
    entry = LogEntry.objects.get()
    assert (entry.user, entry.object_repr, entry.is_deletion()) == (superuser, "Bad", True)


def test_all_that_match_are_those_of_the_list(boss, four, manager):
    page = choose(boss, "delete", all="1", filter="status=failed&q=broke").content.decode()
    assert "Delete: 2 tasks." in " ".join(page.replace("</strong>", "").split())
    newest = max(four["Bad"].pk, four["Worse"].pk)
    with pytest.raises(ValueError, match="it broke"):
        manager.launch_async_task(tasks.fail, label="Came later", sync=True)
    response = choose(boss, "delete", all="1", filter="status=failed&q=broke", up_to=str(newest), confirmed="yes")
    assert response.redirect_chain[-1][0] == f"{LIST}?status=failed&q=broke"
    assert set(TaskRecord.objects.values_list("label", flat=True)) == {"Waiting", "Done", "Came later"}


def test_a_click_acts_on_a_limited_number_and_says_so(boss, four, monkeypatch):
    monkeypatch.setattr(selection, "MAX_SELECTED", 2)
    page = choose(boss, "delete", all="1").content.decode()
    assert "Too many tasks match." in page
    choose(boss, "delete", all="1", confirmed="yes")
    assert set(TaskRecord.objects.values_list("label", flat=True)) == {"Bad", "Waiting"}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"action": "explode", "selected": ["1"]}, "No action selected"),
        ({"action": "retry"}, "Tasks must be selected"),
        ({"action": "retry", "selected": ["x"]}, "Tasks must be selected"),
        ({"action": "retry", "selected": ["9" * 30]}, "Tasks must be selected"),
        ({"action": "retry", "all": "1", "filter": "longer_than=soon"}, "Tasks must be selected"),
    ],
)
def test_nothing_is_done_without_a_choice(boss, four, data, words):
    page = boss.post(BULK, {**data, "confirmed": "yes"}, follow=True).content.decode()
    assert words in page
    assert TaskRecord.objects.count() == 4


def test_one_acts_only_on_what_one_may_see(client_of, make_user, four, manager):
    user = make_user("me", "retry_taskrecord", "delete_taskrecord")
    with pytest.raises(ValueError, match="it broke"):
        manager.launch_async_task(tasks.fail, label="Mine", user=user, sync=True)
    choose(client_of(user), "delete", *TaskRecord.objects.all(), confirmed="yes")
    assert not TaskRecord.objects.filter(label="Mine").exists()
    assert TaskRecord.objects.count() == 4
    choose(client_of(user), "delete", all="1", confirmed="yes")
    assert TaskRecord.objects.count() == 4


@pytest.mark.parametrize("action", ["retry", "cancel", "delete"])
def test_each_action_needs_its_permission(client_of, make_user, four, action):
    viewer = client_of(make_user("viewer", "view_taskrecord"))
    page = viewer.get(LIST).content.decode()
    assert 'name="selected"' not in page
    assert choose(viewer, action, *four.values(), confirmed="yes").status_code == 403
    allowed = client_of(make_user("allowed", "view_taskrecord", f"{action}_taskrecord"))
    page = allowed.get(LIST).content.decode()
    assert page.count('name="selected"') == 4
    assert [name for name in ("retry", "cancel", "delete") if f'value="{name}"' in page] == [action]


def test_the_way_back_stays_on_this_site(boss, four):
    response = boss.post(BULK, {"action": "explode", "filter": "//evil.example/\r\nX: y"})
    assert response["Location"].startswith(f"{LIST}?")
    assert "\n" not in response["Location"]


def test_a_button_beside_a_row_is_about_that_task_whatever_is_ticked(boss, four):
    data = {"row": f"delete:{four['Bad'].pk}", "selected": [four["Worse"].pk], "all": "1"}
    page = boss.post(BULK, data).content.decode()
    assert "Delete: 1 task." in " ".join(page.replace("</strong>", "").split())
    assert f'name="selected" value="{four["Bad"].pk}"' in page
    assert f'name="selected" value="{four["Worse"].pk}"' not in page


def test_records_that_other_data_protects_are_kept(boss, four, other_app):
    apps.get_model("otherapp", "Invoice").objects.create(record=four["Bad"])
    page = choose(boss, "delete", four["Bad"], four["Done"], confirmed="yes").content.decode()
    assert "Delete: 1 task." in page
    assert "Bad (other data refers to it)" in page
    assert set(TaskRecord.objects.values_list("label", flat=True)) == {"Bad", "Worse", "Waiting"}
    assert LogEntry.objects.get().object_repr == "Done"


@pytest.mark.django_db(transaction=True)
def test_a_retry_that_fails_in_this_process_is_a_retry(boss, four, at_once):
    page = choose(boss, "retry", four["Bad"], four["Worse"], confirmed="yes").content.decode()
    assert "Retry: 2 tasks." in page
    assert TaskRecord.objects.failed().filter(retry_of__isnull=False).count() == 2
