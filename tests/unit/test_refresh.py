"""An open list asks for news: what it gets, and what that costs."""

from __future__ import annotations

import re
import time
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

import pytest
from django.contrib.sessions.models import Session
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from powercrud_dashboard.models import ActiveTask, TaskEvent, TaskRecord
from powercrud_dashboard.models.changes import RecordChange
from tests.testapp import tasks
from tests.workers import claimed_elsewhere, meanwhile, silence

pytestmark = pytest.mark.django_db

LIST = "/admin/powercrud_dashboard/taskrecord/"


class OpenList:
    """The list in somebody's browser: it sends what it shows when it asks for news."""

    def __init__(self, client: Any, page: str = "", **parameters: str) -> None:
        self.client, self.address, self.parameters = client, f"{LIST}{page}", parameters
        self.part = client.get(self.address, parameters).content.decode()

    def shown(self, name: str) -> str:
        found = re.search(rf'data-pcrud-{name}="([^"]*)"', self.part)
        assert found is not None
        return found[1]

    def refresh(self, **headers: str) -> Any:
        response = self.client.get(
            self.address,
            self.parameters,
            headers={
                "HX-Request": "true",
                "X-Pcrud-State": self.shown("state"),
                "X-Pcrud-Newest": self.shown("newest"),
                **headers,
            },
        )
        if response.content:
            self.part = response.content.decode()
        return response

    @property
    def labels(self) -> list[str]:
        return re.findall(r"data-pcrud-row>([^<]*)</a>", self.part)


READS_RECORDS = 'SELECT "powercrud_dashboard_taskrecord"."id"'
READS_ACTIVE_TASKS = 'SELECT "powercrud_dashboard_activetask"."id"'
GROUPS_FAILURES = 'SELECT "powercrud_dashboard_taskrecord"."func"'


@pytest.fixture(autouse=True)
def _time_stands_still(monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1_000_000.0)


def run(manager, label: str) -> str:
    return manager.launch_async_task(tasks.add, 1, label=label, sync=True)


@pytest.mark.parametrize("sync", [True, False], ids=["ended", "queued"])
def test_an_unchanged_list_costs_two_queries_and_no_body(boss, manager, django_assert_num_queries, sync):
    manager.launch_async_task(tasks.add, 1, sync=sync)
    open_list = OpenList(boss)
    # Django's own look-ups of session and user, and one of ours; nothing runs.
    with django_assert_num_queries(3):
        response = open_list.refresh()
    assert (response.status_code, response.content) == (204, b"")


def test_a_list_with_a_running_task_costs_two_queries(boss, manager, django_assert_num_queries):
    name = manager.launch_async_task(tasks.add, 1, label="Working")
    claimed_elsewhere(name, host="here", pid=1)
    TaskRecord.objects.change(name, RecordChange.started(attempt=1))
    open_list = OpenList(boss)
    with django_assert_num_queries(4):
        assert open_list.refresh().status_code == 204
    manager.update_progress(name, "Step 2/4")
    assert open_list.refresh().status_code == 200
    assert 'value="50"' in open_list.part


@pytest.mark.parametrize("change", ["launch", "cancel", "delete"])
def test_a_changed_list_is_sent(boss, manager, record_of, change):
    name = manager.launch_async_task(tasks.add, 1, label="First")
    open_list = OpenList(boss)
    if change == "launch":
        run(manager, "Second")
    elif change == "cancel":
        manager.cancel_task(name)
    else:
        record_of(name).delete()
    assert open_list.refresh().status_code == 200
    assert len(open_list.labels) == {"launch": 2, "cancel": 1, "delete": 0}[change]


def test_what_happens_while_a_list_is_made_is_sent_next(boss, manager):
    name = manager.launch_async_task(tasks.add, 1)
    with meanwhile(lambda: manager.cancel_task(name), after=READS_RECORDS):
        open_list = OpenList(boss, status="cancelled")
    assert open_list.refresh().status_code == 200
    assert len(open_list.labels) == 1


def test_progress_while_a_list_is_made_is_sent_next(boss, manager):
    name = manager.launch_async_task(tasks.add, 1)
    claimed_elsewhere(name, host="here", pid=1)
    TaskRecord.objects.change(name, RecordChange.started(attempt=1))
    with meanwhile(lambda: manager.update_progress(name, "Step 2/4"), after=READS_ACTIVE_TASKS):
        open_list = OpenList(boss)
    assert open_list.refresh().status_code == 200
    assert 'value="50"' in open_list.part


def test_what_happens_while_failures_are_grouped_is_sent_next(boss, manager):
    def fail():
        with pytest.raises(ValueError, match="it broke"):
            manager.launch_async_task(tasks.fail, sync=True)

    with meanwhile(fail, after=GROUPS_FAILURES):
        open_page = OpenList(boss, "failures/")
    assert open_page.refresh().status_code == 200
    assert "ValueError" in open_page.part


def test_an_event_that_is_committed_after_later_ones_is_sent(boss, manager, record_of):
    record = record_of(run(manager, "First"))
    last = record.events.latest("pk")
    late = last.pk
    last.pk += 1
    last.save(force_insert=True)
    record.events.filter(pk=late).delete()
    open_list = OpenList(boss)
    assert open_list.refresh().status_code == 204
    record.events.create(pk=late, event="log")
    assert open_list.refresh().status_code == 200


@pytest.mark.parametrize(("sync", "seconds"), [(False, 10), (True, 60)])
def test_an_open_list_is_made_anew_from_time_to_time(boss, manager, monkeypatch, sync, seconds):
    manager.launch_async_task(tasks.add, 1, sync=sync)
    open_list = OpenList(boss)
    monkeypatch.setattr(time, "time", lambda: 1_000_000.0 + seconds)
    assert open_list.refresh().status_code == 200


def test_new_tasks_come_in_on_the_first_page(boss, manager):
    run(manager, "Old")
    open_list = OpenList(boss)
    run(manager, "New")
    open_list.refresh()
    assert open_list.labels == ["New", "Old"]
    assert "pcrud-newer" not in open_list.part


def test_as_long_as_rows_are_ticked_new_tasks_are_announced(boss, manager):
    run(manager, "Old")
    open_list = OpenList(boss)
    held = {"X-Pcrud-Hold": str(TaskRecord.objects.get().pk)}
    open_list.refresh(**held)
    run(manager, "New")
    open_list.refresh(**held)
    assert open_list.labels == ["Old"]
    assert "1 new task<" in open_list.part
    run(manager, "Newer")
    open_list.refresh(**held)
    assert open_list.labels == ["Old"]
    assert "2 new tasks<" in open_list.part
    # The ticks are taken off: what was held back comes in.
    assert open_list.refresh().status_code == 200
    assert open_list.labels == ["Newer", "New", "Old"]


def test_as_long_as_rows_are_ticked_none_of_them_moves(boss, manager):
    names = [manager.launch_async_task(tasks.add, 1, label=f"Task {number}") for number in range(3)]
    open_list = OpenList(boss)
    keys = [str(TaskRecord.objects.get(task_name=name).pk) for name in reversed(names)]
    claimed_elsewhere(names[0])
    TaskRecord.objects.change(names[0], RecordChange.started(attempt=1))
    TaskEvent.objects.create(record=TaskRecord.objects.get(task_name=names[0]), event="start")
    open_list.refresh(**{"X-Pcrud-Hold": ",".join([*keys, "x", ""])})
    assert open_list.labels == ["Task 2", "Task 1", "Task 0"]
    assert "Running" in open_list.part[open_list.part.index("Task 1") :]
    open_list.refresh()
    assert open_list.labels == ["Task 0", "Task 2", "Task 1"]


def test_people_who_refresh_the_same_list_share_what_is_read(
    boss, client_of, make_user, manager, django_assert_num_queries
):
    run(manager, "First")
    colleague = OpenList(client_of(make_user("colleague", "view_taskrecord")))
    run(manager, "Second")
    OpenList(boss)
    # Session, user, two for permissions, newest event.
    with django_assert_num_queries(5):
        assert colleague.refresh().status_code == 200
    assert colleague.labels == ["Second", "First"]
    assert "pcrud-row-delete" not in colleague.part, "the buttons are each person's own"
    assert colleague.refresh().status_code == 204
    run(manager, "Third")
    assert colleague.refresh().status_code == 200
    assert colleague.labels == ["Third", "Second", "First"]


def test_nothing_is_shared_between_hosts(boss, client_of, make_user, manager):
    """By the host projects with tenants choose their database or schema."""
    run(manager, "First")
    client = client_of(make_user("colleague", "view_taskrecord"))
    client.defaults["SERVER_NAME"] = "other.example.com"
    colleague = OpenList(client)
    run(manager, "Second")
    OpenList(boss)
    with CaptureQueriesContext(connection) as queries:
        assert colleague.refresh().status_code == 200
    assert len(queries) > 5


def test_nobody_is_shown_what_was_read_for_somebody_who_may_see_more(boss, client_of, make_user, manager):
    run(manager, "Theirs")
    anna = make_user("anna")
    own = OpenList(client_of(anna))
    manager.launch_async_task(tasks.add, 1, label="Own", sync=True, user=anna)
    assert OpenList(boss).labels == ["Own", "Theirs"]
    assert own.refresh().status_code == 200
    assert own.labels == ["Own"]
    assert OpenList(boss, mine="on").labels == []
    of_anna = OpenList(client_of(make_user("bert", "view_taskrecord")), mine="on")
    of_anna.refresh(**{"X-Pcrud-State": ""})
    assert of_anna.labels == []


def test_other_pages_announce_new_tasks(boss, manager, settings):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_PAGE_SIZE": 1}
    run(manager, "Old")
    run(manager, "Middle")
    record = TaskRecord.objects.get(label="Old")
    open_list = OpenList(boss, **{"from": f"{record.pk}.{record.created_at.isoformat()}"})
    assert open_list.labels == ["Old"]
    assert "pcrud-newer" not in open_list.part
    run(manager, "New")
    open_list.refresh()
    assert open_list.labels == ["Old"]
    assert "1 new task<" in open_list.part
    assert re.search(rf'href="{LIST}\??" id="pcrud-newer"', open_list.part)


def test_many_new_tasks_are_not_counted_to_the_end(boss, manager):
    run(manager, "Old")
    open_list = OpenList(boss)
    held = {"X-Pcrud-Hold": str(TaskRecord.objects.get().pk)}
    TaskRecord.objects.bulk_create(
        TaskRecord(task_name=str(number), label=f"New {number}", func="f", manager_class="m") for number in range(100)
    )
    open_list.refresh(**held)
    assert "99+ new tasks<" in open_list.part


def test_the_chosen_interval_is_remembered(boss):
    assert 'hx-trigger="every 2s"' in boss.get(LIST).content.decode()
    response = boss.post(f"{LIST}refresh/", {"seconds": "15", "next": f"{LIST}?status=failed"})
    assert response.url == f"{LIST}?status=failed"
    page = boss.get(LIST).content.decode()
    assert 'hx-trigger="every 15s"' in page
    assert '<option value="15" selected>15 s</option>' in page
    boss.post(f"{LIST}refresh/", {"seconds": "0", "next": LIST})
    assert "every" not in re.findall(r'hx-trigger="([^"]*)"', boss.get(LIST).content.decode())[0]


@pytest.mark.parametrize("seconds", ["3", "-1", "soon", ""])
def test_an_interval_that_is_not_offered_is_not_taken(boss, seconds):
    assert "pcrud_refresh" not in boss.post(f"{LIST}refresh/", {"seconds": seconds, "next": LIST}).cookies
    boss.cookies["pcrud_refresh"] = seconds
    assert 'hx-trigger="every 2s"' in boss.get(LIST).content.decode()


@pytest.mark.parametrize("address", ["https://elsewhere.example/", "//elsewhere.example", "javascript:alert(1)", ""])
def test_the_way_back_stays_on_this_site(boss, address):
    assert boss.post(f"{LIST}refresh/", {"seconds": "5", "next": address}).url == LIST


def test_queued_tasks_tell_their_place_in_the_queue(boss, manager):
    for number in range(3):
        manager.launch_async_task(tasks.add, number, label=f"Task {number}")
    manager.launch_async_task(tasks.add, 1, label="Elsewhere", cluster="other")
    page = boss.get(LIST, {"status": "pending"}).content.decode()
    assert page.count("Next in the queue") == 2
    assert "Number 3 in the queue" in page
    assert "Number 4" not in page


def test_running_tasks_tell_their_worker_and_when_it_was_heard_of(boss, manager):
    name = manager.launch_async_task(tasks.add, 1)
    claimed_elsewhere(name, host="worker-7", pid=4711)
    TaskRecord.objects.change(name, RecordChange.started(attempt=1))
    silence(3600)
    page = boss.get(LIST).content.decode()
    assert re.search(r"worker 4711 on worker-7, heartbeat 1\sh ", page)


@pytest.mark.parametrize("hours", [5, -5])
@pytest.mark.parametrize("page", ["", "{pk}/change/"], ids=["list", "task"])
def test_the_times_of_unfinished_tasks_are_of_the_databases_clock(boss, manager, record_of, monkeypatch, hours, page):
    """The clock of the web host is wrong."""
    running = manager.launch_async_task(tasks.add, 1)
    claimed_elsewhere(running)
    TaskRecord.objects.change(running, RecordChange.started(attempt=1))
    manager.update_progress(running, current=1, total=2)
    silence(3 * 3600)
    ActiveTask.objects.update(started_at=timezone.now() - timedelta(hours=30))
    queued = manager.launch_async_task(tasks.add, 1)
    ActiveTask.objects.filter(task_name=queued).update(created_at=timezone.now() - timedelta(hours=40))
    now = timezone.now
    monkeypatch.setattr(timezone, "now", lambda: now() + timedelta(hours=hours))
    shown = " ".join(
        boss.get(f"{LIST}{page.format(pk=record_of(name).pk)}", headers={"HX-Request": "true"}).content.decode()
        for name in (running, queued)
    ).replace("\N{NO-BREAK SPACE}", " ")
    assert re.search(r"3 h (\d+ \w+ )?ago", shown)
    assert re.search(r">\s*(for )?1 d 6 h\s*<", shown)
    assert "in " not in "".join(re.findall(r"<time [^>]*>([^<]*)</time>", shown))
    assert not page or "queued for 1 d 16 h" in shown
    assert not page or "about 1 d 6 h left" in shown


def test_unfinished_tasks_tell_how_many_objects_they_lock(boss, manager):
    manager.launch_async_task(tasks.add, 1, conflict_ids={"testapp.Project": {1, 2, 3, 4}})
    assert "(4 locked)" in boss.get(LIST).content.decode()


REFRESHES = {
    "list": (LIST, {"HX-Request": "true"}),
    "mounted list": ("/tasks/", {"HX-Request": "true"}),
    "strip": ("/admin/testapp/project/background-tasks/", {"HX-Request": "true"}),
    "endpoint": ("/powercrud/async/progress/?task_name=known", {}),
}


@pytest.fixture
def session_ends(boss):
    """The time at which a session ends that was last used an hour ago."""
    ends = timezone.now() + timedelta(hours=1)
    Session.objects.update(expire_date=ends)
    return ends


@pytest.mark.parametrize(("address", "headers"), REFRESHES.values(), ids=REFRESHES)
def test_a_refresh_does_not_keep_a_session_alive(boss, manager, settings, session_ends, address, headers):
    settings.SESSION_SAVE_EVERY_REQUEST = True
    manager.launch_async_task(tasks.add, 1, task_key="known")
    assert boss.get(address, headers=headers).status_code == 200
    assert Session.objects.get().expire_date == session_ends
    # A person does.
    boss.get(LIST)
    assert Session.objects.get().expire_date > session_ends


@pytest.mark.parametrize(("address", "headers"), REFRESHES.values(), ids=REFRESHES)
def test_what_other_middleware_keeps_in_the_session_is_saved(boss, manager, settings, address, headers):
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "tests.middleware.count_visits"]
    manager.launch_async_task(tasks.add, 1, task_key="known")
    boss.get(address, headers=headers)
    assert boss.session["visits"] == 1


@pytest.mark.parametrize("address", [f"{LIST}?status=failed", "/tasks/?status=failed"])
def test_a_refresh_without_a_session_sends_the_browser_to_the_login(client, address):
    response = client.get(address, headers={"HX-Request": "true"})
    assert response.headers["HX-Redirect"] == f"/admin/login/?{urlencode({'next': address}, safe='/')}"
    assert "Location" not in response.headers
    assert client.get(address).status_code == 302


def test_a_long_interval_is_written_without_separators(boss, settings):
    settings.USE_THOUSAND_SEPARATOR = True
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_REFRESH_INTERVAL": 1800}
    page = boss.get(LIST).content.decode()
    assert 'hx-trigger="every 1800s"' in page
    assert '<option value="1800" selected>' in page
