from __future__ import annotations

import re
from datetime import timedelta

import pytest
from django.contrib import admin
from django.contrib.admin import AdminSite
from django.urls import path, reverse
from django.utils import timezone

from powercrud_dashboard.admin.registrations import TaskRecordAdmin
from powercrud_dashboard.models import ActiveTask, TaskRecord
from powercrud_dashboard.models.changes import RecordChange
from tests.testapp import tasks
from tests.workers import claimed_elsewhere, silence

pytestmark = pytest.mark.django_db

ADD = "tests.testapp.tasks.add"
LIST = "/admin/powercrud_dashboard/taskrecord/"
HTMX = {"hx-request": "true"}


def page_of(record: TaskRecord, page: str = "change") -> str:
    return f"{LIST}{record.pk}/{page}/"


def launch_failing(manager, **options) -> TaskRecord:
    with pytest.raises(ValueError, match="broke"):
        manager.launch_async_task(tasks.fail, "<b>broke</b>", sync=True, **options)
    return TaskRecord.objects.latest("pk")


@pytest.fixture
def one_of_each(manager, record_of) -> dict[str, TaskRecord]:
    """A record in every status."""
    failed = launch_failing(manager, label="Failing")
    names = {label: manager.launch_async_task(ADD, 1, label=label) for label in ("Waiting", "Working", "Stopped")}
    names["Done"] = manager.launch_async_task(ADD, 1, label="Done", sync=True)
    claimed_elsewhere(names["Working"], host="somewhere", pid=12345)
    TaskRecord.objects.change(names["Working"], RecordChange.started(attempt=1))
    manager.update_progress(names["Working"], "Step 3/4: working")
    manager.cancel_task(names["Stopped"])
    return {"Failing": failed, **{label: record_of(name) for label, name in names.items()}}


def test_the_admins_own_names_lead_to_the_pages():
    assert reverse("admin:powercrud_dashboard_taskrecord_changelist") == LIST
    assert reverse("admin:powercrud_dashboard_taskrecord_change", args=[5]) == f"{LIST}5/change/"
    assert reverse("powercrud_dashboard:powercrud_dashboard_taskrecord_changelist") == "/tasks/"


@pytest.mark.parametrize(
    ("status", "label"),
    [
        ("pending", "Waiting"),
        ("in_progress", "Working"),
        ("failed", "Failing"),
        ("success", "Done"),
        ("cancelled", "Stopped"),
    ],
)
def test_each_tab_shows_its_tasks(client_of, superuser, one_of_each, status, label):
    page = client_of(superuser).get(LIST, {"status": status}).content.decode()
    rows = page[page.index("<tbody>") : page.index("</tbody>")]
    assert [other for other in one_of_each if f">{other}</a>" in rows] == [label]
    current = re.search(r'aria-current="page">\s*(\w+) <span[^>]*>(\d+)', page)
    assert current is not None
    assert current[2] == "1"


def test_all_tasks_are_shown_with_their_progress(client_of, superuser, one_of_each):
    page = client_of(superuser).get(LIST).content.decode()
    assert all(f">{label}</a>" in page for label in one_of_each)
    assert '<progress max="100" value="75"' in page
    assert "Step 3/4: working" in page
    assert "&lt;b&gt;broke&lt;/b&gt;" in page
    assert "<b>broke" not in page


def test_unknown_tabs_show_everything(client_of, superuser, one_of_each):
    assert ">Done</a>" in client_of(superuser).get(LIST, {"status": "nonsense"}).content.decode()


def test_htmx_gets_the_moving_part_only(client_of, superuser, one_of_each):
    part = client_of(superuser).get(LIST, headers=HTMX).content.decode()
    assert part.lstrip().startswith('<div id="pcrud-tasks"')
    assert "<html" not in part
    assert f'hx-get="{LIST}"' in part


def test_the_list_takes_few_queries_however_many_rows(client_of, superuser, manager, django_assert_max_num_queries):
    names = [manager.launch_async_task(ADD, 1) for _number in range(30)]
    for name in names[:10]:
        claimed_elsewhere(name)
        TaskRecord.objects.change(name, RecordChange.started(attempt=1))
    client = client_of(superuser)
    client.get(LIST)
    # Session, user, last event, counts, running tasks, others, live state, places in the queue, two for whether the
    # queue keeps up.
    with django_assert_max_num_queries(10):
        client.get(LIST)


@pytest.mark.parametrize("sort", ["status", "-label", "affected_count", "user_label", "created_at", "-duration"])
def test_the_list_can_be_sorted(client_of, superuser, one_of_each, sort):
    response = client_of(superuser).get(LIST, {"sort": sort})
    assert response.status_code == 200
    assert b"aria-sort" in response.content


@pytest.mark.parametrize("label", ["Failing", "Waiting", "Working", "Stopped", "Done"])
def test_the_task_page_works_in_every_status(client_of, superuser, one_of_each, label):
    response = client_of(superuser).get(page_of(one_of_each[label]))
    assert response.status_code == 200
    assert f"<h1>{label}</h1>" in response.content.decode()


@pytest.mark.django_db(transaction=True)
def test_so_does_that_of_a_task_whose_worker_may_still_report_its_end(boss, manager, record_of):
    name = manager.launch_async_task("tests.testapp.tasks.add", 1)
    claimed_elsewhere(name)
    silence()
    manager.cleanup_completed_tasks()
    record = record_of(name)
    assert (record.status, record.failure_reason) == ("failed", "worker_lost")
    given_up = boss.get(page_of(record), headers=HTMX)
    assert given_up.status_code == 200
    assert b"hx-trigger" in given_up.content
    TaskRecord.objects.update(finished_at=timezone.now() - timedelta(hours=1))
    assert boss.get(page_of(record), headers=HTMX).status_code == 286


def test_the_task_page_refreshes_until_the_end(client_of, superuser, one_of_each):
    client = client_of(superuser)
    running = client.get(page_of(one_of_each["Working"]), headers=HTMX)
    ended = client.get(page_of(one_of_each["Done"]), headers=HTMX)
    assert (running.status_code, ended.status_code) == (200, 286)
    assert b"hx-trigger" in running.content
    assert b"hx-trigger" not in ended.content
    assert b"<html" not in running.content
    # Numbers of processes are no amounts: no thousands separator.
    assert b"12345" in running.content


def test_a_running_task_says_how_long_it_will_take_once_it_can_be_told(client_of, superuser, one_of_each):
    record, client = one_of_each["Working"], client_of(superuser)

    def page_after(elapsed: timedelta) -> str:
        ActiveTask.objects.filter(task_name=record.task_name).update(started_at=timezone.now() - elapsed)
        return client.get(page_of(record), headers=HTMX).content.decode()

    # It begins in an hour, however slow this test is.
    assert " left" not in page_after(timedelta(hours=-1))
    # Three of four steps took 30 hours; a few seconds more make no difference.
    assert re.search(r"about 10\sh (\d+\smin )?left", page_after(timedelta(hours=30)))
    # Earlier attempts have done two of the three.
    ActiveTask.objects.filter(task_name=record.task_name).update(goes_on=True, resume_at=2)
    assert re.search(r"about 1\sd (\d+\sh )?left", page_after(timedelta(hours=30)))


@pytest.mark.parametrize(("limit", "is_stopped"), [(6_000, True), (100_000, False), (-1, False), (None, False)])
def test_the_time_limit_is_shown_and_ends_the_estimate(client_of, superuser, one_of_each, settings, limit, is_stopped):
    settings.Q_CLUSTER = {**settings.Q_CLUSTER, "timeout": None}
    record = one_of_each["Working"]
    began = timezone.now() - timedelta(hours=1, minutes=30)
    ActiveTask.objects.filter(task_name=record.task_name).update(started_at=began, time_limit=limit)
    # Three of four steps are done.
    page = client_of(superuser).get(page_of(record), headers=HTMX).content.decode().replace("\xa0", " ")
    assert ("<dt>Time limit</dt><dd>1 h 40 min</dd>" in page) is is_stopped
    assert bool(re.search(r"The time limit of 1 h 40 min stops it in (9|10) min", page)) is is_stopped
    assert re.search(r"about (9|10) min (\d+ s )?left" if is_stopped else r"about 30 min (\d+ s )?left", page)


def test_a_task_in_slices_is_not_stopped_by_its_time_limit(client_of, superuser, one_of_each):
    record = one_of_each["Working"]
    began = timezone.now() - timedelta(hours=1, minutes=30)
    ActiveTask.objects.filter(task_name=record.task_name).update(
        started_at=began, time_limit=6_000, ran_before=timedelta(hours=1)
    )
    page = client_of(superuser).get(page_of(record), headers=HTMX).content.decode().replace("\xa0", " ")
    assert "stops it" not in page
    assert re.search(r"about 30 min (\d+ s )?left", page)


def test_a_running_task_says_when_its_worker_was_last_heard_of(client_of, superuser, one_of_each):
    silence(3600)
    page = client_of(superuser).get(page_of(one_of_each["Working"]), headers=HTMX).content.decode()
    assert re.search(r"<dd>1\sh (\d+\s(min|s) )?ago</dd>", page)


def test_a_failure_is_a_page_with_its_traceback(client_of, superuser, one_of_each):
    page = client_of(superuser).get(page_of(one_of_each["Failing"])).content.decode()
    assert "builtins.ValueError" in page
    assert "Traceback (most recent call last):" in page
    assert "raise ValueError(message)" in page
    assert "<b>broke" not in page


@pytest.mark.parametrize(("count", "are_there_more"), [(100, False), (101, True)])
def test_a_filtered_list_of_objects_says_whether_there_are_more(boss, manager, record_of, count, are_there_more):
    name = manager.launch_async_task(ADD, 1, conflict_ids={"testapp.Project": set(range(count))})
    manager.cancel_task(name)
    page = boss.get(f"{page_of(record_of(name))}?outcome=not_reached").content.decode()
    assert ("Only the first 100 objects are shown." in page) == are_there_more
    assert page.count('<span class="pcrud-outcome pcrud-outcome-not_reached">') == 100


def test_secrets_in_arguments_are_masked(client_of, superuser, manager, record_of):
    secrets = {"password": "hunter2", "nested": {"api_key": "hunter3", "plain": "shown"}}
    record = record_of(manager.launch_async_task(tasks.echo, task_kwargs={"data": secrets}))
    page = client_of(superuser).get(page_of(record)).content.decode()
    assert "hunter" not in page
    assert "shown" in page


def test_objects_that_are_not_shown_are_counted(client_of, superuser, manager, record_of):
    ids = {"testapp.Project": range(1, 201)}
    described = record_of(manager.launch_async_task(ADD, 1, conflict_ids=ids, affected_objects=["a", "b", "c"]))
    assert "and 197 more" in client_of(superuser).get(page_of(described)).content.decode()
    manager.cancel_task(described.task_name)
    locked = record_of(manager.launch_async_task(ADD, 1, conflict_ids=ids))
    assert "and 100 more" in client_of(superuser).get(page_of(locked)).content.decode()


@pytest.mark.parametrize(("keys", "shown"), [([10, 9, 100], "9 10 100"), (["b", "10", "9"], "10 9 b")])
def test_objects_are_in_the_order_of_their_keys(boss, manager, record_of, keys, shown):
    record = record_of(manager.launch_async_task(ADD, 1, object_ids={"no.model": keys}))
    assert " ".join(re.findall(r">\s*no\.model (\w+)", boss.get(page_of(record)).content.decode())) == shown


own_site = AdminSite(name="staff")
own_site.register(TaskRecord, TaskRecordAdmin)
urlpatterns = [path("admin/", admin.site.urls), path("staff/", own_site.urls)]


@pytest.mark.urls(__name__)
def test_in_an_admin_site_of_ones_own_every_link_stays_there(client_of, superuser, one_of_each):
    client = client_of(superuser)
    page = client.get("/staff/powercrud_dashboard/taskrecord/").content.decode()
    assert 'href="/staff/"' in page
    assert f'href="/staff/powercrud_dashboard/taskrecord/{one_of_each["Done"].pk}/change/"' in page
    assert 'href="/admin/' not in page
    retried = client.post(f"/staff/powercrud_dashboard/taskrecord/{one_of_each['Failing'].pk}/retry/")
    assert retried["Location"].startswith("/staff/")


def test_who_may_not_see_a_task_does_not_find_it(client_of, make_user, manager, record_of):
    mine, theirs = make_user("me"), make_user("they")
    own = record_of(manager.launch_async_task(ADD, 1, label="my own", user=mine))
    other = record_of(manager.launch_async_task(ADD, 1, label="not mine", user=theirs))
    client = client_of(mine)
    page = client.get(LIST).content.decode()
    assert "my own" in page
    assert "not mine" not in page
    assert client.get(page_of(own)).status_code == 200
    assert client.get(page_of(other)).status_code == 404
    assert client.get(page_of(other, "history")).status_code in (302, 403)


@pytest.mark.parametrize("page", [LIST, "/tasks/"])
def test_the_pages_are_for_staff(client, client_of, make_user, page):
    assert client.get(page).status_code == 302
    assert client_of(make_user("visitor", is_staff=False)).get(page).status_code in (302, 403)


def test_retry_launches_the_task_again_and_shows_the_new_one(client_of, superuser, manager):
    record = launch_failing(manager)
    response = client_of(superuser).post(page_of(record, "retry"), follow=True)
    new = TaskRecord.objects.latest("pk")
    assert new.retry_of == record
    assert response.redirect_chain[-1][0] == page_of(new)
    assert "The task was queued again." in response.content.decode()
    assert page_of(new) in client_of(superuser).get(page_of(record)).content.decode()


def test_a_retry_in_the_way_of_another_task_says_so(client_of, superuser, manager):
    record = launch_failing(manager, conflict_ids={"testapp.Project": {1}})
    manager.add_conflict_ids("somebody else", {"testapp.Project": {1}})
    response = client_of(superuser).post(page_of(record, "retry"), follow=True)
    assert "held by somebody else" in response.content.decode()
    assert TaskRecord.objects.count() == 1


def test_a_record_that_can_not_be_retried_says_why(client_of, superuser, manager):
    record = launch_failing(manager)
    TaskRecord.objects.update(payload="tampered with")
    response = client_of(superuser).post(page_of(record, "retry"), follow=True)
    assert "signature does not match" in response.content.decode()


def test_cancel_ends_a_queued_task(client_of, superuser, one_of_each):
    response = client_of(superuser).post(page_of(one_of_each["Waiting"], "cancel"), follow=True)
    assert "The task was cancelled." in response.content.decode()
    one_of_each["Waiting"].refresh_from_db()
    assert one_of_each["Waiting"].status == "cancelled"
    assert one_of_each["Waiting"].events.get(event="cancel").actor == superuser


def test_cancel_asks_a_running_task_to_stop(client_of, superuser, one_of_each):
    client = client_of(superuser)
    response = client.post(page_of(one_of_each["Working"], "cancel"), follow=True)
    assert "Cancellation was requested." in response.content.decode()
    assert "Being cancelled." in response.content.decode()
    assert "Cancel task" not in response.content.decode()


def test_one_whose_start_is_not_recorded_yet_runs_as_well(client_of, superuser, one_of_each):
    record = one_of_each["Waiting"]
    claimed_elsewhere(record.task_name)
    response = client_of(superuser).post(page_of(record, "cancel"), follow=True)
    assert "Cancellation was requested. The task stops within a few seconds." in response.content.decode()


@pytest.mark.parametrize(("action", "label"), [("retry", "Failing"), ("cancel", "Waiting")])
def test_actions_need_their_permission_and_a_post(client_of, make_user, one_of_each, action, label):
    record = one_of_each[label]
    viewer = client_of(make_user("viewer", "view_taskrecord"))
    assert f"/{action}/" not in viewer.get(page_of(record)).content.decode()
    assert viewer.post(page_of(record, action)).status_code == 403
    allowed = client_of(make_user("allowed", "view_taskrecord", f"{action}_taskrecord"))
    assert f"/{action}/" in allowed.get(page_of(record)).content.decode()
    assert allowed.get(page_of(record, action)).status_code == 405
    assert allowed.post(page_of(record, action)).status_code == 302


def test_actions_on_tasks_that_are_gone_lead_to_the_list(client_of, superuser):
    response = client_of(superuser).post(f"{LIST}999/retry/", follow=True)
    assert response.redirect_chain[-1][0] == LIST
    assert "The task no longer exists." in response.content.decode()


def test_actions_are_protected_against_forgery(superuser, one_of_each):
    from django.test import Client

    client = Client(enforce_csrf_checks=True)
    client.force_login(superuser)
    assert client.post(page_of(one_of_each["Failing"], "retry")).status_code == 403


def test_only_ended_tasks_can_be_deleted(client_of, superuser, one_of_each):
    client = client_of(superuser)
    assert client.post(page_of(one_of_each["Working"], "delete"), {"post": "yes"}).status_code == 403
    assert client.post(page_of(one_of_each["Done"], "delete"), {"post": "yes"}).status_code == 302
    assert not TaskRecord.objects.filter(pk=one_of_each["Done"].pk).exists()


def test_the_pages_outside_of_the_admin_link_among_themselves(client_of, superuser, one_of_each):
    client = client_of(superuser)
    page = client.get("/tasks/").content.decode()
    assert f'href="/tasks/{one_of_each["Done"].pk}/change/"' in page
    assert client.get(f"/tasks/{one_of_each['Done'].pk}/change/").status_code == 200
    response = client.post(f"/tasks/{one_of_each['Failing'].pk}/retry/")
    assert response["Location"].startswith("/tasks/")


def test_no_page_has_inline_code(client_of, superuser, one_of_each):
    for address in (LIST, page_of(one_of_each["Failing"]), page_of(one_of_each["Working"])):
        page = client_of(superuser).get(address).content.decode()
        main = page[page.index('id="content-main"') :]
        assert not re.search(r"<script|<style|\sstyle=|\son\w+=", main)
        assert '"allowEval": false' in page


def test_the_admin_index_lists_the_tasks_for_all_staff(client_of, make_user):
    assert LIST in client_of(make_user("me")).get("/admin/").content.decode()
