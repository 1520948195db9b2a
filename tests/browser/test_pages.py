"""The pages in a real browser, before a real cluster, under a strict Content-Security-Policy."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from tests.testapp import tasks

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

LIST = "/admin/powercrud_dashboard/taskrecord/"
#: Milliseconds for something that takes a cluster a second or two.
SOON = 60_000


def mark(page: Page) -> None:
    """Leave a mark in the page that a reload would wipe out."""
    page.evaluate("window.notReloaded = true")


def was_not_reloaded(page: Page) -> bool:
    return bool(page.evaluate("window.notReloaded === true"))


def test_a_task_goes_from_queued_to_completed_before_ones_eyes(page, manager, cluster_later):
    manager.launch_async_task(tasks.add, 1, label="Add up")
    page.goto(LIST)
    row = page.get_by_role("row").filter(has_text="Add up")
    expect(row).to_contain_text("Queued")
    mark(page)
    cluster_later()
    expect(row).to_contain_text("Completed", timeout=SOON)
    assert was_not_reloaded(page)


def test_a_running_task_is_watched_and_cancelled_on_its_page(page, manager, cluster, tmp_path, record_of):
    name = manager.launch_async_task(tasks.wait_for_file, str(tmp_path / "never"), label="Wait for ever")
    page.goto(f"{LIST}{record_of(name).pk}/change/")
    expect(page.get_by_role("status")).to_contain_text("Running", timeout=SOON)
    page.get_by_role("button", name="Cancel task").click()
    expect(page.get_by_text("Cancellation was requested")).to_be_visible()
    mark(page)
    expect(page.get_by_role("status")).to_contain_text("Cancelled", timeout=SOON)
    assert was_not_reloaded(page)
    expect(page.get_by_role("button", name="Retry")).to_be_visible()
    expect(page.locator("[data-pcrud-refresh]")).to_have_count(0)


def test_from_the_changelist_to_a_failure_and_its_retry(page, manager, cluster, make_projects):
    make_projects(3)
    page.goto("/admin/testapp/project/")
    for box in page.locator("input.action-select").all()[:2]:
        box.check()
    page.get_by_label("Action:").select_option("archive")
    page.locator("button[name=index]").click()
    expect(page.get_by_text("runs in the background for 2 objects")).to_be_visible()
    page.get_by_role("link", name="View progress").click()
    expect(page.get_by_role("status")).to_contain_text("Completed", timeout=SOON)
    expect(page.get_by_role("region", name="Timeline").get_by_text("Archived by boss.")).to_be_visible()
    with pytest.raises(ValueError, match="out of order"):
        manager.launch_async_task(tasks.fail, "out of order", label="Broken", sync=True)
    page.goto(f"{LIST}?status=failed")
    page.get_by_role("link", name="Broken").click()
    expect(page.get_by_label("Traceback")).to_contain_text("ValueError: out of order")
    page.get_by_role("button", name="Retry").click()
    expect(page.get_by_text("The task was queued again.")).to_be_visible()
    expect(page.get_by_role("status")).to_contain_text("Failed", timeout=SOON)
    expect(page.get_by_role("region", name="Task and retries (2)")).to_be_visible()


def test_the_pages_work_without_javascript(browser, page, live_server, manager):
    manager.launch_async_task(tasks.add, 1, label="Add up")
    context = browser.new_context(
        base_url=live_server.url, java_script_enabled=False, storage_state=page.context.storage_state()
    )
    plain = context.new_page()
    plain.goto(LIST)
    plain.get_by_role("link", name="Add up").click()
    plain.get_by_role("button", name="Cancel task").click()
    expect(plain.get_by_text("The task was cancelled.")).to_be_visible()
    expect(plain.get_by_role("status")).to_contain_text("Cancelled")
    context.close()


def test_a_session_that_ends_leads_to_the_login_page(page, superuser, manager):
    page.goto(LIST)
    expect(page.locator("#pcrud-tasks")).to_be_visible()
    page.context.clear_cookies()
    expect(page.get_by_label("Password")).to_be_visible(timeout=SOON)
    expect(page.locator("#pcrud-tasks")).to_have_count(0)


def test_ticked_rows_survive_refreshes_and_are_acted_on(page, manager, record_of):
    names = [manager.launch_async_task(tasks.add, 1, label=f"Task number {number}") for number in range(3)]
    page.goto(LIST)
    page.get_by_label("Select Task number 0").check()
    page.get_by_label("Select Task number 2").check()
    mark(page)
    # A refresh announces the new row; the ticks, and the focus, are where they were.
    manager.launch_async_task(tasks.add, 1, label="Newcomer")
    expect(page.get_by_role("link", name="1 new task")).to_be_visible(timeout=SOON)
    expect(page.get_by_role("link", name="Newcomer")).to_have_count(0)
    assert was_not_reloaded(page)
    expect(page.get_by_label("Select Task number 0")).to_be_checked()
    expect(page.get_by_label("Select Task number 1")).not_to_be_checked()
    expect(page.get_by_label("Select Task number 2")).to_be_checked()
    expect(page.get_by_label("Select Task number 2")).to_be_focused()
    page.get_by_role("button", name="Cancel", exact=True).click()
    expect(page.get_by_text("Cancel: 2 tasks")).to_be_visible()
    page.locator(".delete-confirmation input[type=submit]").click()
    expect(page.get_by_text("Cancel: 2 tasks.")).to_be_visible()
    assert [record_of(name).status for name in names] == ["cancelled", "pending", "cancelled"]


def test_a_whole_page_is_ticked_at_once(page, manager):
    for number in range(3):
        manager.launch_async_task(tasks.add, number)
    page.goto(LIST)
    page.get_by_label("All on this page").check()
    expect(page.locator("input[name=selected]:checked")).to_have_count(3)


def test_the_list_is_worked_through_with_the_keyboard(page, manager):
    for number in range(3):
        manager.launch_async_task(tasks.add, number, label=f"Task number {number}")
    page.goto(LIST)
    expect(page.get_by_label("Refresh")).to_be_visible()
    page.keyboard.press("j")
    expect(page.get_by_role("link", name="Task number 2")).to_be_focused()
    page.keyboard.press("j")
    page.keyboard.press("x")
    expect(page.get_by_label("Select Task number 1")).to_be_checked()
    page.keyboard.press("k")
    expect(page.get_by_role("link", name="Task number 2")).to_be_focused()
    page.keyboard.press("/")
    expect(page.get_by_label("Search")).to_be_focused()
    # Inside of a field keys are letters.
    page.keyboard.type("jx?")
    expect(page.get_by_label("Search")).to_have_value("jx?")
    page.get_by_role("button", name="Keyboard shortcuts").click()
    expect(page.get_by_role("dialog", name="Keyboard shortcuts")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_r_refreshes_at_once_even_where_nothing_refreshes_itself(page, manager):
    page.goto(LIST)
    with page.expect_event("load"):
        page.get_by_label("Refresh").select_option("0")
    expect(page.locator("[hx-trigger^=every]")).to_have_count(0)
    manager.launch_async_task(tasks.add, 1, label="Newcomer")
    page.keyboard.press("r")
    expect(page.get_by_role("link", name="Newcomer")).to_be_visible()
    # Not between rows of which some are ticked.
    page.get_by_label("Select Newcomer").check()
    manager.launch_async_task(tasks.add, 1, label="Latecomer")
    page.locator("h1").click()
    page.keyboard.press("r")
    expect(page.get_by_role("link", name="1 new task")).to_be_visible()
    expect(page.get_by_role("link", name="Latecomer")).to_have_count(0)
    expect(page.get_by_label("Select Newcomer")).to_be_checked()


def test_filters_suggest_once_somebody_uses_them(page, manager):
    manager.launch_async_task(tasks.add, 1)
    page.goto(LIST)
    suggestion = page.locator('#pcrud-functions option[value="tests.testapp.tasks.add"]')
    expect(suggestion).to_have_count(0)
    page.get_by_text("More filters").click()
    expect(suggestion).to_have_count(1)
    # The next change needs no click.
    page.get_by_label("Launched by me").check()
    expect(page).to_have_url(re.compile("mine=on"))
    expect(page.get_by_label("Completed with errors")).to_be_visible()
    page.goto(f"{LIST}?mine=on")
    expect(page.get_by_label("Completed with errors")).to_be_hidden()


def test_a_task_is_cancelled_from_its_row(page, manager, record_of):
    name = manager.launch_async_task(tasks.add, 1, label="Wrong one")
    page.goto(f"{LIST}?status=pending")
    page.get_by_role("button", name="Cancel Wrong one").click()
    expect(page.get_by_text("The task was cancelled.")).to_be_visible()
    assert page.url.endswith("?status=pending")
    assert record_of(name).status == "cancelled"


def test_a_traceback_is_copied(page, manager, record_of):
    with pytest.raises(ValueError, match="it broke"):
        manager.launch_async_task(tasks.fail, task_key="broken", sync=True)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(f"{LIST}{record_of('broken').pk}/change/")
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert "ValueError: it broke" in page.evaluate("navigator.clipboard.readText()")
