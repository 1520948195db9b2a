"""What people do over several pages, from beginning to end."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from powercrud_dashboard.models import ConflictLock, TaskRecord
from tests.testapp import tasks

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

LIST = "/admin/powercrud_dashboard/taskrecord/"
#: Milliseconds for something that takes a cluster a second or two.
SOON = 60_000


@pytest.fixture
def fail_once(manager, tmp_path):
    """Launch a task here that fails as its file is not there; make the file and its retry completes."""
    path = tmp_path / "needed"

    def launch(label: str) -> None:
        with pytest.raises(FileNotFoundError):
            manager.launch_async_task(tasks.read_file, str(path), label=label, sync=True)

    launch.mend = lambda: path.write_text("here")
    return launch


def test_from_a_failure_to_a_retry_that_completes(page, cluster, fail_once):
    fail_once("Read the file")
    page.goto(f"{LIST}?status=failed")
    page.get_by_role("link", name="Read the file").click()
    expect(page.get_by_label("Traceback")).to_contain_text("FileNotFoundError")
    fail_once.mend()
    page.get_by_role("button", name="Retry", exact=True).click()
    expect(page.get_by_role("status")).to_contain_text("Completed", timeout=SOON)
    expect(page.get_by_role("region", name="Task and retries")).to_contain_text("(this task)")


def test_ticked_failures_are_retried_together(page, cluster, fail_once):
    for number in range(3):
        fail_once(f"Read file {number}")
    fail_once.mend()
    page.goto(f"{LIST}?status=failed")
    page.get_by_label("Select Read file 0").check()
    page.get_by_label("Select Read file 2").check()
    page.get_by_role("button", name="Retry", exact=True).click()
    page.locator(".delete-confirmation input[type=submit]").click()
    expect(page.get_by_text("Retry: 2 tasks.")).to_be_visible()
    page.get_by_role("navigation", name="Tasks by status").get_by_role("link", name="Completed").click()
    expect(page.locator("#result_list tbody tr[data-status=success]")).to_have_count(2, timeout=SOON)
    expect(page.get_by_role("link", name="Read file 1")).to_have_count(0)


def test_all_failures_of_one_cause_are_retried_from_their_group(page, cluster, fail_once):
    for number in range(3):
        fail_once(f"Read file {number}")
    fail_once.mend()
    page.goto(LIST)
    page.get_by_role("link", name="Failures", exact=True).click()
    row = page.get_by_role("row").filter(has_text="FileNotFoundError")
    expect(row).to_contain_text("3")
    row.get_by_role("button", name="Retry all").click()
    page.locator(".delete-confirmation input[type=submit]").click()
    expect(page.get_by_text("Retry: 3 tasks.")).to_be_visible()
    assert page.url.endswith("/failures/")
    page.goto(f"{LIST}?status=success")
    expect(page.locator("#result_list tbody tr[data-status=success]")).to_have_count(3, timeout=SOON)


def test_a_task_is_retried_with_other_arguments(page, cluster, manager):
    with pytest.raises(ValueError, match="no good"):
        manager.launch_async_task(tasks.fail_if, "no good", fails=True, label="Maybe", sync=True)
    page.goto(f"{LIST}{TaskRecord.objects.get().pk}/change/")
    page.get_by_role("link", name="Edit and retry").click()
    area = page.get_by_label("Keyword arguments")
    area.fill('{"fails": "tru')
    page.get_by_role("button", name="Retry with these arguments").click()
    expect(page.get_by_text("Enter a valid JSON.")).to_be_visible()
    expect(area).to_have_value('{"fails": "tru')
    area.fill('{"fails": false}')
    page.get_by_role("button", name="Retry with these arguments").click()
    expect(page.get_by_role("status")).to_contain_text("Completed", timeout=SOON)


def test_a_filtered_list_is_shared_and_the_way_back_is_the_browsers(page, page_of, make_user, manager):
    for label in ("Send invoices", "Close the year", "Send reminders"):
        manager.launch_async_task(tasks.add, 1, label=label)
    rows = page.locator("#result_list tbody tr")
    page.goto(LIST)
    page.get_by_label("Search").fill("send")
    page.get_by_role("button", name="Search").click()
    expect(rows).to_have_count(2)
    page.get_by_role("navigation", name="Tasks by status").get_by_role("link", name="Queued").click()
    expect(page).to_have_url(re.compile("status=pending"))
    expect(rows).to_have_count(2)
    shared = page.url
    page.get_by_role("link", name="Remove all").click()
    expect(rows).to_have_count(3)
    page.go_back()
    expect(page).to_have_url(shared)
    expect(rows).to_have_count(2)
    page.go_back()
    page.go_back()
    expect(rows).to_have_count(3)
    page.go_forward()
    page.go_forward()
    expect(page).to_have_url(shared)
    expect(rows).to_have_count(2)
    colleague = page_of(make_user("colleague", "view_taskrecord"))
    colleague.goto(shared)
    expect(colleague.locator("#result_list tbody tr")).to_have_count(2)
    expect(colleague.get_by_label("Search")).to_have_value("send")


def test_a_lock_is_released(page, manager):
    manager.add_conflict_ids("custom-task", {"testapp.Project": {1, 2}})
    page.goto(LIST)
    page.get_by_role("link", name="Locks").click()
    page.get_by_role("link", name="Release Project 1").click()
    expect(page.get_by_text("is locked by “custom-task”")).to_be_visible()
    page.get_by_role("button", name="Yes, release it").click()
    expect(page.get_by_text("The lock on Project 1 was released.")).to_be_visible()
    expect(page.get_by_role("row").filter(has_text="Project 1")).to_have_count(0)
    assert list(ConflictLock.objects.values_list("object_id", flat=True)) == ["2"]


def test_who_may_only_look_has_no_buttons_and_is_refused(page_of, make_user, manager, record_of):
    with pytest.raises(ValueError, match="it broke"):
        manager.launch_async_task(tasks.fail, task_key="failed", label="Broken", sync=True)
    failed = record_of("failed")
    viewer = page_of(make_user("viewer", "view_taskrecord"))
    for address in (LIST, f"{LIST}{failed.pk}/change/", f"{LIST}failures/"):
        viewer.goto(address)
        expect(viewer.get_by_text("Broken" if "failures" not in address else "it broke").first).to_be_visible()
        expect(viewer.get_by_role("button", name=re.compile("Retry|Cancel|Delete"))).to_have_count(0)
        expect(viewer.get_by_role("link", name=re.compile("Edit|Release"))).to_have_count(0)
    token = next(cookie["value"] for cookie in viewer.context.cookies() if cookie["name"] == "csrftoken")
    answer = viewer.request.post(f"{LIST}{failed.pk}/retry/", headers={"X-CSRFToken": token, "Referer": viewer.url})
    assert answer.status == 403
    assert TaskRecord.objects.count() == 1


def test_the_pages_can_be_used_with_the_keyboard_alone(page, cluster, fail_once):
    fail_once("Read the file")
    fail_once.mend()
    page.goto(LIST)
    expect(page.get_by_label("Refresh")).to_be_visible()
    page.keyboard.press("/")
    page.keyboard.type("read")
    with page.expect_event("load"):
        page.keyboard.press("Enter")
    expect(page.get_by_role("link", name=re.compile("Search: read"))).to_be_visible()
    page.keyboard.press("j")
    expect(page.get_by_role("link", name="Read the file")).to_be_focused()
    page.keyboard.press("Enter")
    retry = page.get_by_role("button", name="Retry", exact=True)
    expect(retry).to_be_visible()
    for _press in range(60):
        page.keyboard.press("Tab")
        if retry.evaluate("element => element === document.activeElement"):
            break
    expect(retry).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_contain_text("Completed", timeout=SOON)


def test_a_schedule_is_paused_and_run(page, cluster):
    from powercrud_dashboard.q2.schedules import ensure_schedule

    ensure_schedule("tests.testapp.tasks.debug_setting", name="nightly", seconds=86_400)
    page.goto(f"{LIST}schedules/")
    page.get_by_role("button", name="Pause nightly").click()
    expect(page.get_by_text("“nightly” is paused.")).to_be_visible()
    page.get_by_role("button", name="Run now").click()
    expect(page.get_by_text("Paused", exact=True)).to_be_visible()
    expect(page.get_by_role("link", name="Completed", exact=True)).to_be_visible(timeout=SOON)
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_role("button", name="Pause nightly")).to_be_visible()
