"""What somebody reads or uses stays as it is when the page refreshes itself."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from powercrud_dashboard.models import TaskRecord
from powercrud_dashboard.models.changes import RecordChange
from tests.testapp import tasks
from tests.workers import claimed_elsewhere

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

LIST = "/admin/powercrud_dashboard/taskrecord/"


@pytest.fixture
def quick(page, live_server) -> Page:
    """A page that refreshes itself each second."""
    page.context.add_cookies([{"name": "pcrud_refresh", "value": "1", "url": live_server.url}])
    return page


@pytest.fixture
def running(manager, record_of) -> TaskRecord:
    """A running task with arguments that do not fit into their block."""
    name = manager.launch_async_task(tasks.add, {str(number): "x" * 40 for number in range(200)}, label="Work")
    claimed_elsewhere(name)
    TaskRecord.objects.change(name, RecordChange.started(attempt=1))
    manager.update_progress(name, "first part", current=1, total=4)
    return record_of(name)


def test_a_refresh_of_a_task_keeps_scroll_selection_focus_and_sections(quick, manager, running):
    quick.goto(f"{LIST}{running.pk}/change/")
    block = quick.get_by_label("Arguments", exact=True)
    block.evaluate("""(block) => {
      block.scrollTop = 50;
      block.focus();
      const range = document.createRange();
      range.setStart(block.firstChild, 5);
      range.setEnd(block.firstChild, 25);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
    }""")
    selected = quick.evaluate("getSelection().toString()")
    assert selected
    quick.evaluate("window.notReloaded = true")
    manager.update_progress(running.task_name, "second part", current=2, total=4)
    expect(quick.locator(".pcrud-now-progress")).to_contain_text("second part")
    assert quick.evaluate("getSelection().toString()") == selected
    assert block.evaluate("(block) => block.scrollTop") == 50
    expect(block).to_be_focused()
    assert quick.evaluate("window.notReloaded === true")


def test_a_refresh_keeps_the_open_menu_of_a_row_and_the_focus(quick, manager, busy):
    quick.goto(LIST)
    row = quick.locator("#result_list tbody tr[data-status=failed]")
    row.locator("summary").press("Enter")
    button = row.get_by_role("button", name="Delete")
    expect(button).to_be_visible()
    button.focus()
    manager.launch_async_task(tasks.add, 1, label="Newcomer")
    expect(quick.get_by_role("link", name="Newcomer")).to_be_visible()
    expect(button).to_be_visible()
    expect(button).to_be_focused()
    quick.keyboard.press("Escape")
    expect(button).to_be_hidden()


def test_only_a_change_of_the_status_is_announced(quick, manager, running):
    quick.goto(f"{LIST}{running.pk}/change/")
    quick.evaluate("""() => {
      window.announced = [];
      const note = () => window.announced.push(document.querySelector(".pcrud-now").innerText.trim());
      const observer = new MutationObserver(note);
      document.querySelectorAll("[aria-live], [role=status], [role=alert]").forEach((region) => {
        observer.observe(region, {childList: true, characterData: true, attributes: false, subtree: true});
      });
    }""")
    for current in (2, 3):
        manager.update_progress(running.task_name, "part", current=current, total=4)
        expect(quick.locator(".pcrud-now-progress")).to_contain_text(f"{current}/4")
    assert quick.evaluate("window.announced") == []
    manager.cancel_task(running.task_name)
    TaskRecord.objects.change(running.task_name, RecordChange.cancelled(started_at=running.started_at))
    expect(quick.locator(".pcrud-now")).to_contain_text("Cancelled")
    assert set(quick.evaluate("window.announced")) == {"Cancelled"}
    # What has ended asks for no more news.
    expect(quick.locator("#pcrud-task[hx-get]")).to_have_count(0)


def test_the_number_of_ticked_rows_is_told(quick, manager):
    for number in range(3):
        manager.launch_async_task(tasks.add, number, label=f"Task {number}")
    quick.goto(LIST)
    quick.get_by_label("Select Task 1").check()
    expect(quick.get_by_text("1 ticked", exact=True)).to_be_visible()
    quick.get_by_label("All on this page").check()
    expect(quick.get_by_text("3 ticked", exact=True)).to_be_visible()
    manager.launch_async_task(tasks.add, 1, label="Newcomer")
    expect(quick.get_by_role("link", name="1 new task")).to_be_visible()
    expect(quick.get_by_text("3 ticked", exact=True)).to_be_visible()
    expect(quick.locator("input[name=selected]:checked")).to_have_count(3)
