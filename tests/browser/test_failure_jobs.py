"""The job that people do in the morning: last night's failures, with its clicks counted."""

from __future__ import annotations

import pytest
from playwright.sync_api import Locator, expect

from powercrud_dashboard.models import TaskRecord
from tests.testapp import tasks

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

LIST = "/admin/powercrud_dashboard/taskrecord/"
#: Milliseconds for something that takes a cluster a second or two.
SOON = 60_000

NETWORK = (
    "HTTPSConnectionPool(host='shop-{}.example', port=443): Read timed out. (read timeout=30)",
    "HTTPSConnectionPool(host='shop-{}.example', port=443): Max retries exceeded with url: / (Caused by "
    "NewConnectionError('<urllib3.connection.HTTPSConnection object at 0x7f{}>: Failed to establish a new connection: "
    "[Errno 111] Connection refused'))",
)


@pytest.fixture
def last_night(manager):
    """Failures of the network, of two kinds, and others. What failed for the network would complete now."""
    for number in range(3):
        for kind, text in zip(("ReadTimeout", "ConnectionError"), NETWORK, strict=True):
            name = manager.launch_async_task(tasks.add, number, label=f"Sync shop {number} ({kind})")
            end(manager, name, text.format(number, number), f"requests.exceptions.{kind}")
        name = manager.launch_async_task(tasks.add, number, label=f"Re-price {number}")
        end(manager, name, f"article {number} has no price", "builtins.ValueError")


def end(manager, name: str, error: str, exception_class: str) -> None:
    manager.async_task_lifecycle("fail", name, error=error, exception_class=exception_class)
    manager.remove_active_task(name)


class Clicks:
    """Clicks, and how many there were."""

    def __init__(self) -> None:
        self.number = 0

    def on(self, element: Locator) -> None:
        self.number += 1
        element.click()


def test_last_nights_failures_of_the_network_are_retried_and_the_others_left(page, cluster_later, last_night):
    clicks = Clicks()
    page.goto("/admin/")
    clicks.on(page.get_by_role("link", name="by cause"))
    rows = page.locator("#pcrud-failures tbody tr")
    expect(rows).to_have_count(3)
    for kind in ("ReadTimeout", "ConnectionError"):
        clicks.on(rows.filter(has_text=kind).get_by_role("checkbox"))
    clicks.on(page.locator("#pcrud-groups").get_by_role("button", name="Retry"))
    expect(page.get_by_text("Retry: 6 tasks.")).to_be_visible()
    clicks.on(page.locator("#content-main input[type=submit]"))
    expect(page.get_by_text("Retry: 6 tasks.")).to_be_visible()
    expect(page.get_by_text("3 being retried")).to_have_count(2)
    assert clicks.number <= 6
    cluster_later()
    # Groups that are done leave the list.
    expect(rows).to_have_count(1, timeout=SOON)
    expect(rows).to_contain_text("has no price")
    assert TaskRecord.objects.open_failures().count() == 3
    assert TaskRecord.objects.filter(retry_of__isnull=False).count() == 6
    # And the index agrees.
    page.goto("/admin/")
    expect(page.locator(".pcrud-panel .pcrud-status-failed")).to_have_text("3")


def test_ticks_stay_while_the_list_refreshes(page, last_night, manager):
    page.goto(f"{LIST}failures/")
    row = page.locator("#pcrud-failures tbody tr").filter(has_text="ReadTimeout")
    row.get_by_role("checkbox").check()
    end(manager, manager.launch_async_task(tasks.add, 9), "nothing left", "builtins.ValueError")
    expect(page.locator("#pcrud-failures tbody tr")).to_have_count(4)
    expect(row.get_by_role("checkbox")).to_be_checked()


def test_a_failure_is_dismissed_with_a_note_from_its_row_and_reopened(page, last_night):
    page.goto(f"{LIST}?status=failed")
    row = page.get_by_role("row").filter(has_text="Re-price 1")
    row.get_by_label("More actions").click()
    row.get_by_role("button", name="Dismiss").click()
    page.get_by_label("Note").fill("article is gone")
    page.locator("#content-main input[type=submit]").click()
    expect(page.get_by_text("Dismiss: 1 task.")).to_be_visible()
    expect(page.get_by_role("link", name="Re-price 1")).to_have_count(0)
    page.get_by_role("navigation", name="Failures by resolution").get_by_role("link", name="Dismissed").click()
    expect(page.get_by_text("dismissed by boss: article is gone")).to_be_visible()
    page.get_by_role("link", name="Re-price 1").click()
    page.get_by_role("button", name="Reopen").click()
    expect(page.get_by_text("The failure is open again.")).to_be_visible()
    page.get_by_label("Note on the dismissal").fill("after all")
    page.get_by_role("button", name="Dismiss", exact=True).click()
    expect(page.get_by_text("dismissed by boss: after all")).to_be_visible()


def test_a_completed_task_runs_again_after_a_question(page, manager, cluster_later, record_of):
    name = manager.launch_async_task(tasks.add, 1, label="Close the year", sync=True)
    page.goto(f"{LIST}?status=success")
    page.get_by_role("row").filter(has_text="Close the year").get_by_role("button", name="Run again").click()
    expect(page.get_by_text("its work is done a second time")).to_be_visible()
    page.get_by_role("link", name="No, take me back").click()
    assert TaskRecord.objects.count() == 1
    page.goto(f"{LIST}{record_of(name).pk}/change/")
    page.get_by_role("button", name="Run again").click()
    page.get_by_role("button", name="Run again").click()
    expect(page.get_by_text("The task was queued again.")).to_be_visible()
    assert TaskRecord.objects.count() == 2
