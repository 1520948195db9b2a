"""How the person who clicked hears of the end, and what the log shows while a task runs."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from django.conf import settings as django_settings
from playwright.sync_api import expect
from pytest_django.live_server_helper import LiveServer

from powercrud_dashboard.models import TaskLogLine, TaskNotice, TaskRecord
from tests.browser.test_accessibility import serious_violations
from tests.services import wait_until
from tests.testapp import chatty, tasks
from tests.testapp.admin import ODD
from tests.testapp.models import Project
from tests.workers import claimed_elsewhere, run_queue

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

LIST = "/admin/powercrud_dashboard/taskrecord/"
HEADER = Path(django_settings.ROOT) / "tests" / "demo" / "templates"


@pytest.fixture
def live_server(settings, transactional_db):
    """A server that is started with the middleware and the header."""
    templates = settings.TEMPLATES[0]
    settings.TEMPLATES = [{**templates, "DIRS": [HEADER, *templates["DIRS"]]}]
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "powercrud_dashboard.middleware.TaskNoticesMiddleware"]
    server = LiveServer("localhost")
    yield server
    server.stop()


@pytest.fixture
def clicks(page):
    """Count the clicks of a person on the page, also over several pages."""
    counted: list[str] = []
    page.expose_function("countClick", lambda: counted.append("click"))
    page.add_init_script("addEventListener('click', (event) => event.isTrusted && countClick(), true)")
    return counted


@pytest.fixture
def repriced(live_server, make_projects, client_of, superuser):
    """An action per object that has gone past two bad objects, launched by a click and run as a worker does."""
    projects = make_projects(5)
    Project.objects.filter(pk__in=[projects[1].pk, projects[3].pk]).update(name=ODD)
    client_of(superuser).post(
        "/admin/testapp/project/",
        {"action": "visit", "_selected_action": [project.pk for project in projects]},
    )
    run_queue()
    record = TaskRecord.objects.get()
    assert record.failed_count == 2
    return record


def test_is_my_action_done_and_which_objects_failed_by_the_notice(page, clicks, repriced):
    page.goto("/admin/")
    # Whether it is done is said without a click.
    notice = page.locator(".messagelist")
    expect(notice).to_contain_text("completed, 2 failed")
    notice.get_by_role("link", name="Show the failed objects").click()
    expect(page.get_by_role("heading", name="Objects (5)")).to_be_in_viewport()
    expect(page.locator(".pcrud-objects > li")).to_have_count(2)
    assert len(clicks) == 1


def test_is_my_action_done_and_which_objects_failed_by_the_tray(page, clicks, repriced):
    page.goto("/admin/")
    page.reload()
    expect(page.locator(".messagelist")).to_have_count(0)
    page.locator(".pcrud-tray summary").click()
    expect(page.locator(".pcrud-tray-panel")).to_contain_text("completed, 2 failed")
    assert len(clicks) == 1
    page.get_by_role("link", name="Show 2 failed objects").click()
    expect(page.locator(".pcrud-objects > li")).to_have_count(2)
    assert len(clicks) == 2


@pytest.mark.markup
def test_the_tray_follows_a_task_to_its_end_on_a_page_without_htmx(page, manager, superuser):
    name = manager.launch_async_task(tasks.add, 1, user=superuser, label="Long one")
    claimed_elsewhere(name)
    TaskRecord.objects.update(status="in_progress")
    page.goto("/admin/auth/user/")
    page.locator(".pcrud-tray summary").click()
    panel = page.locator(".pcrud-tray-panel")
    expect(panel).to_contain_text("Running")
    manager.update_progress(name, "cutting", current=1, total=2)
    expect(panel).to_contain_text("50%")
    expect(panel).to_be_visible()
    manager.cancel_task(name, user=superuser)
    TaskRecord.objects.update(status="success")
    TaskNotice.objects.create(record=TaskRecord.objects.get(), user=superuser)
    expect(panel).to_contain_text("completed")
    expect(page.get_by_role("status").filter(has_text="One of your tasks has ended.")).to_have_count(1)
    page.get_by_role("button", name="Mark as seen").click()
    wait_until(lambda: not TaskNotice.objects.exists(), "it is seen")
    assert page.url.endswith("/admin/auth/user/")


@pytest.mark.markup
def test_the_tray_works_by_keyboard(page, repriced):
    page.goto("/admin/")
    page.locator(".pcrud-tray summary").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".pcrud-tray-panel")).to_be_visible()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('.pcrud-tray-panel') !== null")
    page.keyboard.press("Escape")
    expect(page.locator(".pcrud-tray-panel")).to_be_hidden()
    assert page.evaluate("document.activeElement.matches('.pcrud-tray summary')")


@pytest.mark.markup
def test_the_tray_works_without_javascript(page, browser, live_server, repriced):
    context = browser.new_context(base_url=live_server.url, java_script_enabled=False)
    context.add_cookies(page.context.cookies())
    plain = context.new_page()
    plain.goto("/admin/auth/user/")
    plain.locator(".pcrud-tray summary").click()
    expect(plain.locator(".pcrud-tray-panel")).to_be_visible()
    plain.get_by_role("button", name="Mark as seen").click()
    wait_until(lambda: not TaskNotice.objects.exists(), "it is seen")
    expect(plain).to_have_url(f"{live_server.url}/admin/auth/user/")
    context.close()


@pytest.fixture
def running(manager, record_of, superuser):
    name = manager.launch_async_task(tasks.add, 1, user=superuser, label="Long one")
    claimed_elsewhere(name)
    TaskRecord.objects.update(status="in_progress")
    return record_of(name)


def add_lines(record: TaskRecord, *texts: str) -> list[TaskLogLine]:
    return [TaskLogLine.objects.create(record=record, level=20, logger="shop", message=text) for text in texts]


@pytest.mark.markup
def test_the_log_grows_and_stays_where_it_was_scrolled_to(page, running):
    add_lines(running, *(f"line {number}" for number in range(90)))
    page.goto(f"{LIST}{running.pk}/change/")
    box = page.locator("[data-pcrud-log]")
    # At its end it follows.
    add_lines(running, "the newest")
    expect(page.get_by_text("the newest")).to_have_count(1)
    at_end = "(box) => box.scrollTop + box.clientHeight >= box.scrollHeight - 2"
    page.wait_for_function(f"({at_end})(document.querySelector('[data-pcrud-log]'))")
    # Elsewhere it stays.
    box.evaluate("(box) => { box.scrollTop = 100; }")
    add_lines(running, "one more")
    expect(page.get_by_text("one more")).to_have_count(1)
    assert box.evaluate("(box) => box.scrollTop") == 100
    TaskRecord.objects.update(status="success")
    expect(page.locator("[data-pcrud-tail]")).to_have_count(0)
    assert box.evaluate("(box) => box.scrollTop") == 100


@pytest.mark.markup
def test_a_line_can_be_linked_to(page, running):
    lines = add_lines(running, *(f"line {number}" for number in range(1_200)))
    page.goto(f"{LIST}{running.pk}/log/?line={lines[300].pk}#line-{lines[300].pk}")
    line = page.locator(f"#line-{lines[300].pk}")
    expect(line).to_be_in_viewport()
    # Its time is its address.
    line.get_by_role("link").click()
    assert page.url.endswith(f"{LIST}{running.pk}/log/?line={lines[300].pk}#line-{lines[300].pk}")


def test_the_log_of_a_real_task_is_followed_live(page, cluster, manager, superuser, tmp_path):
    name = manager.launch_async_task(chatty.log_until, str(tmp_path / "end"), user=superuser)
    page.goto(f"{LIST}{TaskRecord.objects.get(task_name=name).pk}/change/")
    expect(page.locator(".pcrud-log-line").first).to_be_visible()
    (tmp_path / "end").touch()
    expect(page.get_by_text("the last line")).to_have_count(1)
    expect(page.locator("[data-pcrud-tail]")).to_have_count(0)
    expect(page.locator(".pcrud-log-warning")).to_contain_text("Warning")


@pytest.mark.markup
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_they_are_accessible(page, scheme, repriced, running, settings):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_MAIL_AFTER": 600}
    add_lines(running, "one")
    TaskLogLine.objects.create(record=running, level=0, left_out=12)
    for level in (10, 25, 30, 40, 50):
        TaskLogLine.objects.create(
            record=running, level=level, logger="shop.orders", message=logging.getLevelName(level)
        )
    page.emulate_media(color_scheme=scheme)
    for address in ("/admin/", f"{LIST}{running.pk}/change/", f"{LIST}{running.pk}/log/", f"{LIST}notifications/"):
        page.goto(address)
        page.locator(".pcrud-tray summary").click()
        assert serious_violations(page) == [], address
