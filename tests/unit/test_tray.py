"""The tray in the admin's header."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest
from django.conf import settings as django_settings
from django.contrib.sessions.models import Session
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from powercrud_dashboard.models import TaskNotice, TaskRecord
from tests.testapp import tasks
from tests.workers import claimed_elsewhere, run_queue

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.markup]

INDEX = "/admin/"
LIST = "/admin/powercrud_dashboard/taskrecord/"
TRAY = f"{LIST}tray/"
GOOD = "tests.testapp.tasks.log_lines"
HEADER = Path(django_settings.ROOT) / "tests" / "demo" / "templates"


@pytest.fixture(autouse=True)
def _in_the_header(settings):
    templates = settings.TEMPLATES[0]
    settings.TEMPLATES = [{**templates, "DIRS": [HEADER, *templates["DIRS"]]}]
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_NOTICES": True}


@pytest.fixture
def running(manager, superuser):
    def launch(label: str, **options: object) -> str:
        name = manager.launch_async_task(tasks.add, 1, label=label, user=superuser, **options)
        claimed_elsewhere(name)
        manager.update_progress(name, "cutting", current=3, total=4)
        return name

    return launch


@pytest.fixture
def ended(manager, superuser, record_of):
    def launch(label: str, function: object = GOOD) -> TaskRecord:
        name = manager.launch_async_task(function, label=label, user=superuser)
        run_queue()
        return record_of(name)

    return launch


def tray_of(response: object) -> str:
    """The tray of a page, with runs of white space as one."""
    found = re.search(r'<div class="pcrud-tray" .*?</details>\s*</div>', response.content.decode(), re.DOTALL)
    return re.sub(r"\s+", " ", found[0]) if found else ""


def texts(tray: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", tray)).strip()


def test_it_is_on_every_page_of_the_admin(boss, ended):
    ended("Re-price")
    for address in (INDEX, "/admin/auth/user/", LIST, "/admin/testapp/project/"):
        assert "Re-price" in tray_of(boss.get(address)), address


def test_it_shows_what_runs_and_what_has_ended(boss, running, ended, manager, superuser):
    ended("Good one")
    ended("Bad one", tasks.fail)
    running("Long one")
    manager.launch_async_task(tasks.add, 1, label="Next one", user=superuser)
    page = boss.get(INDEX)
    text = texts(tray_of(page))
    assert re.search(r"Your tasks ▸ 2 running or waiting ✓ 2 ended and not seen", text)
    assert re.search(r"Long one 75% 75% cutting Next one Queued", text)
    assert re.search(r"Bad one failed, .* ago Good one completed, ", text)
    assert 'value="75"' in tray_of(page)


def test_failed_objects_are_a_click_away(boss, ended):
    record = ended("Re-price")
    TaskRecord.objects.update(failed_count=3, affected_count=5)
    tray = tray_of(boss.get(INDEX))
    assert f'href="{LIST}{record.pk}/change/?outcome=failed#pcrud-objects-title"' in tray
    assert "Show 3 failed objects" in tray


def test_it_takes_two_queries_however_many_tasks(boss, running, ended):
    def queries() -> list[str]:
        boss.get("/admin/auth/user/")
        with CaptureQueriesContext(connection) as captured:
            boss.get("/admin/auth/user/")
        tables = ("powercrud_dashboard_activetask", "powercrud_dashboard_tasknotice")
        return [sql for sql in (query["sql"] for query in captured) if any(map(sql.__contains__, tables))]

    assert len(queries()) == 2
    for number in range(8):
        running(f"runs {number}")
        ended(f"ended {number}")
    assert len(queries()) == 2


def test_many_are_counted_up_to_a_limit(boss, ended):
    record = ended("Re-price")
    TaskNotice.objects.bulk_create(TaskNotice(record=record, user=record.user) for _ in range(60))
    assert "✓ 50+ ended and not seen" in texts(tray_of(boss.get(INDEX)))


def test_marked_as_seen_they_are_gone(boss, ended, client_of, make_user):
    record = ended("Re-price")
    newest = re.search(r'name="newest" value="(\d+)"', tray_of(boss.get(INDEX)))[1]
    later = ended("Later")
    client_of(make_user("other")).post(f"{TRAY}seen/", {"newest": newest})
    assert TaskNotice.objects.count() == 2
    answer = boss.post(f"{TRAY}seen/", {"newest": newest, "next": "/admin/auth/user/?q=x"})
    assert answer.url == "/admin/auth/user/?q=x"
    assert [notice.record for notice in TaskNotice.objects.all()] == [later]
    assert "Re-price" not in tray_of(boss.get(INDEX))
    assert TaskRecord.objects.filter(pk=record.pk).exists()


@pytest.mark.parametrize("newest", ["", "x", "9" * 50, "-1"])
def test_odd_keys_mark_nothing(boss, ended, newest):
    ended("Re-price")
    assert boss.post(f"{TRAY}seen/", {"newest": newest, "next": "https://evil.example.com/"}).url == LIST
    assert TaskNotice.objects.exists()


def test_it_can_not_be_marked_by_a_link(boss, ended):
    ended("Re-price")
    assert boss.get(f"{TRAY}seen/").status_code == 405


def test_it_refreshes_itself_while_something_is_expected(boss, running):
    assert "hx-get" not in tray_of(boss.get(INDEX))
    running("Long one")
    tray = tray_of(boss.get(INDEX))
    assert f'hx-get="{TRAY}"' in tray
    assert 'hx-trigger="every 5s"' in tray
    boss.cookies["pcrud_refresh"] = "0"
    assert "hx-get" not in tray_of(boss.get(INDEX))


def test_a_refresh_that_brings_nothing_new_has_no_body(boss, running, manager):
    name = running("Long one")
    version = re.search(r'data-pcrud-tray="([^"]*)"', tray_of(boss.get(INDEX)))[1]
    asked = {"HX-Request": "true", "X-Pcrud-State": version}
    assert boss.get(TRAY, headers=asked).status_code == 204
    manager.update_progress(name, "cutting", current=4, total=4)
    answer = boss.get(TRAY, headers=asked)
    assert "100%" in tray_of(answer)
    assert "<html" not in answer.content.decode()


def test_a_refresh_does_not_renew_the_session(boss, running, settings):
    settings.SESSION_SAVE_EVERY_REQUEST = True
    running("Long one")
    Session.objects.update(expire_date=timezone.now() + timedelta(minutes=5))
    boss.get(TRAY, headers={"HX-Request": "true"})
    assert Session.objects.get().expire_date < timezone.now() + timedelta(minutes=6)
    boss.get(INDEX)
    assert Session.objects.get().expire_date > timezone.now() + timedelta(minutes=6)


def test_its_address_is_no_page(boss):
    assert boss.get(TRAY).url == f"{LIST}?mine=on"


def test_nobody_sees_the_tasks_of_others(client_of, make_user, running, ended):
    ended("Re-price")
    running("Long one")
    text = texts(tray_of(client_of(make_user("other")).get(INDEX)))
    assert "Re-price" not in text
    assert "Long one" not in text
    assert "No task of yours runs" in text


def test_whoever_the_site_does_not_let_in_has_none(client, client_of, make_user):
    assert tray_of(client.get("/admin/login/")) == ""
    assert tray_of(client_of(make_user("customer", is_staff=False)).get("/admin/login/")) == ""


def test_labels_are_no_markup(boss, running, ended):
    running("<img src=1>")
    ended("<img src=2>")
    assert "<img" not in tray_of(boss.get(INDEX))
