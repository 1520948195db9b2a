"""Background actions from a project's own admin, in a real browser before a real cluster."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from powercrud_dashboard.models import TaskRecord
from tests.testapp.models import Project

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

CHANGELIST = "/admin/testapp/project/"
#: Milliseconds for something that takes a cluster a second or two.
SOON = 60_000


def choose(page, action: str, count: int = 0) -> None:
    for box in page.locator("input.action-select").all()[:count]:
        box.check()
    page.get_by_label("Action:").select_option(action)
    page.locator("button[name=index]").click()


def locked_rows(page):
    return page.locator("#result_list .pcrud-lock:visible")


def test_three_of_many_rows_are_run_and_watched(page, cluster_later, make_projects):
    make_projects(25)
    page.goto(CHANGELIST)
    expect(page.locator("#pcrud-strip section")).to_have_count(0)
    choose(page, "archive", 3)
    expect(page.get_by_text("runs in the background for 3 objects.")).to_be_visible()
    strip = page.locator("#pcrud-strip")
    expect(strip).to_contain_text("Archive selected projects")
    expect(strip).to_contain_text("Queued")
    expect(locked_rows(page)).to_have_count(3)
    page.evaluate("window.notReloaded = true")
    cluster_later()
    # The strip and the marks go when the task has ended, without a reload.
    expect(strip.locator("section")).to_have_count(0, timeout=SOON)
    expect(locked_rows(page)).to_have_count(0)
    assert page.evaluate("window.notReloaded === true")
    page.get_by_role("link", name="View progress").click()
    expect(page.get_by_role("status")).to_contain_text("Completed")
    assert Project.objects.filter(archived=True).count() == 3


def test_a_task_is_cancelled_from_the_strip(page, make_projects):
    make_projects(3)
    page.goto(f"{CHANGELIST}?archived__exact=0")
    choose(page, "archive", 2)
    page.get_by_role("button", name="Cancel Archive selected projects").click()
    expect(page.get_by_text("The task was cancelled.")).to_be_visible()
    assert page.url.endswith(f"{CHANGELIST}?archived__exact=0")
    expect(locked_rows(page)).to_have_count(0)


def test_all_rows_of_a_long_list(page, cluster, make_projects):
    make_projects(10_000)
    page.goto(f"{CHANGELIST}?q=project")
    page.locator("#action-toggle").check()
    page.locator(".actions .question :is(a, button)").click()
    choose(page, "archive_free_ones")
    expect(page.get_by_text("runs in the background for 10,000 objects.")).to_be_visible()
    page.get_by_role("link", name="View progress").click()
    expect(page.get_by_role("status")).to_contain_text("Completed", timeout=60_000)
    assert Project.objects.filter(archived=True).count() == 10_000


def test_a_partly_locked_selection_both_ways(page, make_projects, manager):
    projects = make_projects(4)
    manager.add_conflict_ids("nightly", {"testapp.Project": projects[:1]})
    page.goto(CHANGELIST)
    choose(page, "archive", 3)
    expect(page.get_by_text("was not launched: 1 selected object is locked by nightly")).to_be_visible()
    choose(page, "archive_free_ones", 3)
    expect(page.get_by_text("runs in the background for 2 objects.")).to_be_visible()
    expect(page.get_by_text("1 locked object was skipped.")).to_be_visible()


def test_a_form_is_filled_in_wrongly_then_well(page, cluster, make_projects):
    make_projects(2)
    page.goto(CHANGELIST)
    choose(page, "rename", 2)
    expect(page.get_by_text("2 objects are selected:")).to_be_visible()
    page.get_by_label("Prefix").fill("far too long")
    page.get_by_label("Count").fill("0")
    page.evaluate("document.querySelector('[maxlength]').removeAttribute('maxlength')")
    page.get_by_label("Prefix").fill("far too long a prefix")
    page.get_by_role("button", name="Run").click()
    expect(page.get_by_text("at most 10 characters")).to_be_visible()
    expect(page.get_by_label("Prefix")).to_have_value("far too long a prefix")
    assert not TaskRecord.objects.exists()
    page.get_by_label("Prefix").fill("new")
    page.get_by_label("Count").fill("5")
    page.get_by_label("Notes").set_input_files(
        files=[{"name": "notes.txt", "mimeType": "text/plain", "buffer": b"read me"}]
    )
    page.get_by_role("button", name="Run").click()
    page.get_by_role("link", name="View progress").click()
    expect(page.get_by_role("status")).to_contain_text("Completed", timeout=SOON)
    expect(page.get_by_label("Result", exact=True)).to_contain_text("read me")


def test_a_locked_object_is_not_edited(page, make_projects, manager):
    (project,) = make_projects(1)
    manager.add_conflict_ids("nightly", {"testapp.Project": {project.pk}})
    page.goto(f"/admin/testapp/specialproject/{project.pk}/change/")
    expect(page.get_by_role("alert")).to_contain_text("nightly")
    page.get_by_label("Name").fill("typed by hand")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text("is locked by nightly")).to_be_visible()
    expect(page.get_by_label("Name")).to_have_value("typed by hand")
    manager.remove_conflict_ids("nightly")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text("was changed successfully")).to_be_visible()


def test_a_double_click_launches_once(page, make_projects):
    make_projects(3)
    page.goto(CHANGELIST)
    for box in page.locator("input.action-select").all():
        box.check()
    page.get_by_label("Action:").select_option("peek")
    # The first of two clicks may be under way when the second comes.
    page.locator("button[name=index]").dblclick()
    expect(page.locator(".messagelist")).to_be_visible()
    choose(page, "peek", 3)
    expect(page.get_by_text("is already queued or running for this selection.").first).to_be_visible()
    assert TaskRecord.objects.count() == 1
