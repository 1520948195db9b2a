"""The Insights page and the pages of task functions in a browser."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone
from playwright.sync_api import Page, expect

from powercrud_dashboard.models import TaskRecord, TaskStatus
from powercrud_dashboard.models.history import Resolution
from tests.browser.test_accessibility import looked_at, serious_violations

__all__ = ["looked_at"]

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

LIST = "/admin/powercrud_dashboard/taskrecord/"
FUNCTION = f"{LIST}function/?func=shop.tasks.mail"


@pytest.fixture
def broken_since_tuesday() -> None:
    """A function that completed with one release, and has failed since the next one."""
    now = timezone.now()
    for number, (hours, release, failed) in enumerate(
        [(80, "v1", False), (70, "v1", False), (60, "v2", True), (9, "v2", True), (1, "v2", True)]
    ):
        at = now - timedelta(hours=hours)
        TaskRecord.objects.create(
            task_name=f"mail-{number}",
            label=f"Mail {number}",
            func="shop.tasks.mail",
            status=TaskStatus.FAILED if failed else TaskStatus.SUCCESS,
            resolution=Resolution.OPEN if failed else "",
            error="KeyError: 'recipients'" if failed else "",
            exception_class="builtins.KeyError" if failed else "",
            error_pattern="KeyError: …" if failed else "",
            release=release,
            worker_host="worker-1",
            worker_pid=7,
            attempts=1,
            task_kwargs={"format": "html" if failed else "text"},
            created_at=at - timedelta(seconds=5),
            started_at=at - timedelta(seconds=4),
            finished_at=at,
            run_time=timedelta(seconds=4),
        )


class Clicks:
    """Clicks links of a page, and counts them."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.number = 0

    def __call__(self, name: str, *, exact: bool = False) -> None:
        self.page.get_by_role("main").get_by_role("link", name=name, exact=exact).first.click()
        self.number += 1


def expect_comparison(page: Page) -> None:
    table = page.get_by_role("region", name="what changed")
    expect(table.get_by_role("link", name="Last good run")).to_be_visible()
    expect(table.get_by_role("link", name="First bad run")).to_be_visible()
    differing = table.locator("tr.pcrud-differs")
    expect(differing).to_have_count(2)
    expect(differing.nth(0)).to_contain_text("v1")
    expect(differing.nth(0)).to_contain_text("v2")
    expect(page.get_by_text("The failures began with release v2")).to_be_visible()


def test_it_fails_since_tuesday_what_changed_takes_three_clicks(page, broken_since_tuesday):
    page.goto("/admin/")
    click = Clicks(page)
    click("open failures")
    click("Mail 4")
    click("What changed")
    expect_comparison(page)
    assert click.number == 3


def test_from_the_failures_page_it_takes_one(page, broken_since_tuesday):
    page.goto(f"{LIST}failures/")
    click = Clicks(page)
    click("What changed")
    expect_comparison(page)
    assert click.number == 1


def test_whether_the_queue_keeps_up_takes_none(page, broken_since_tuesday):
    for address in ("/admin/", LIST, f"{LIST}insights/"):
        page.goto(address)
        expect(page.get_by_role("region", name="Is the queue keeping up?")).to_contain_text("No worker runs")


def test_without_scripts_everything_is_there(
    browser, live_server, client_of, superuser, broken_since_tuesday, settings
):
    context = browser.new_context(base_url=live_server.url, java_script_enabled=False)
    session = client_of(superuser).cookies[settings.SESSION_COOKIE_NAME].value
    context.add_cookies([{"name": settings.SESSION_COOKIE_NAME, "value": session, "url": live_server.url}])
    page = context.new_page()
    page.goto(f"{LIST}insights/?period=7d")
    expect(page.get_by_role("img", name="Ended, and failed: 5 ended tasks, 3 failed")).to_be_visible()
    page.get_by_text("As a table").first.click()
    expect(page.get_by_role("region", name="Ended, and failed").get_by_role("table")).to_be_visible()
    page.get_by_role("link", name="24 h").click()
    expect(page.get_by_role("link", name="24 h")).to_have_attribute("aria-current", "page")
    page.get_by_role("link", name="mail", exact=True).click()
    expect_comparison(page)
    context.close()


@pytest.mark.markup
@pytest.mark.parametrize("address", [f"{LIST}insights/?period=7d", FUNCTION])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing_and_nothing_is_wider_than_the_screen(looked_at, broken_since_tuesday, address, width):
    looked_at.set_viewport_size({"width": width, "height": 800})
    looked_at.goto(address)
    for summary in looked_at.get_by_text("As a table").all():
        summary.click()
    assert serious_violations(looked_at) == []
    assert looked_at.evaluate("document.documentElement.scrollWidth") <= width
