"""An open list asks for news: what it gets, and what that costs."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from powercrud_dashboard.dashboard.views import failures as failures_view
from powercrud_dashboard.dashboard.views import tasks as tasks_view
from powercrud_dashboard.models import ActiveTask, TaskRecord
from tests.testapp import tasks

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


@pytest.fixture(autouse=True)
def _time_stands_still(monkeypatch):
    monkeypatch.setattr(tasks_view.time, "time", lambda: 1_000_000.0)


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
    ActiveTask.objects.claim_pending(name, host="here", pid=1)
    TaskRecord.objects.record_start(name, attempt=1)
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


def test_what_happens_while_a_list_is_made_is_sent_next(boss, manager, monkeypatch):
    name = manager.launch_async_task(tasks.add, 1)
    made = tasks_view.live_tasks

    def cancelled_meanwhile(records):
        manager.cancel_task(name)
        return made(records)

    with monkeypatch.context() as patch:
        patch.setattr(tasks_view, "live_tasks", cancelled_meanwhile)
        open_list = OpenList(boss, status="cancelled")
    assert open_list.refresh().status_code == 200
    assert len(open_list.labels) == 1


def test_progress_while_a_list_is_made_is_sent_next(boss, manager, monkeypatch):
    name = manager.launch_async_task(tasks.add, 1)
    ActiveTask.objects.claim_pending(name, host="here", pid=1)
    TaskRecord.objects.record_start(name, attempt=1)
    made = tasks_view.live_tasks

    def before_progress(records):
        live = made(records)
        manager.update_progress(name, "Step 2/4")
        return live

    with monkeypatch.context() as patch:
        patch.setattr(tasks_view, "live_tasks", before_progress)
        open_list = OpenList(boss)
    assert open_list.refresh().status_code == 200
    assert 'value="50"' in open_list.part


def test_what_happens_while_failures_are_grouped_is_sent_next(boss, manager, monkeypatch):
    original = failures_view.actions_for

    def failed_meanwhile(user):
        with pytest.raises(ValueError, match="it broke"):
            manager.launch_async_task(tasks.fail, sync=True)
        return original(user)

    with monkeypatch.context() as patch:
        patch.setattr(failures_view, "actions_for", failed_meanwhile)
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
    monkeypatch.setattr(tasks_view.time, "time", lambda: 1_000_000.0 + seconds)
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
    open_list.refresh(**{"X-Pcrud-Hold": "1"})
    run(manager, "New")
    open_list.refresh(**{"X-Pcrud-Hold": "1"})
    assert open_list.labels == ["Old"]
    assert "1 new task<" in open_list.part
    run(manager, "Newer")
    open_list.refresh(**{"X-Pcrud-Hold": "1"})
    assert open_list.labels == ["Old"]
    assert "2 new tasks<" in open_list.part
    # The ticks are taken off: what was held back comes in.
    assert open_list.refresh().status_code == 200
    assert open_list.labels == ["Newer", "New", "Old"]


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


def test_many_new_tasks_are_not_counted_to_the_end(boss, manager, monkeypatch):
    monkeypatch.setattr("powercrud_dashboard.dashboard.listing.NEWER_AT_MOST", 1)
    monkeypatch.setattr(tasks_view, "NEWER_AT_MOST", 1)
    run(manager, "Old")
    open_list = OpenList(boss)
    for number in range(3):
        run(manager, f"New {number}")
    open_list.refresh(**{"X-Pcrud-Hold": "1"})
    assert "1+ new tasks<" in open_list.part


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
    ActiveTask.objects.claim_pending(name, host="worker-7", pid=4711)
    TaskRecord.objects.record_start(name, attempt=1)
    ActiveTask.objects.update(heartbeat_at=timezone.now() - timedelta(seconds=12))
    page = boss.get(LIST).content.decode()
    assert re.search(r"worker 4711 on worker-7, heard 1[2-9]\ss ago", page)


def test_unfinished_tasks_tell_how_many_objects_they_lock(boss, manager):
    manager.launch_async_task(tasks.add, 1, conflict_ids={"testapp.Project": {1, 2, 3, 4}})
    assert "(4 locked)" in boss.get(LIST).content.decode()
