"""axe-core finds nothing serious on any page, whatever its state."""

from __future__ import annotations

from pathlib import Path

import pytest
from django.utils import timezone
from django_q.models import Schedule
from playwright.sync_api import Page, expect

from powercrud_dashboard.models import ActiveTask, ConflictLock, TaskRecord
from tests.testapp import tasks
from tests.testapp.models import Project

pytestmark = [pytest.mark.browser, pytest.mark.markup, pytest.mark.django_db(transaction=True)]

PROJECTS = "/admin/testapp/project/"
LIST = "/admin/powercrud_dashboard/taskrecord/"
#: Django's own parts of the admin's pages.
DJANGOS = (".breadcrumbs",)
AXE = Path(__file__).with_name("vendor") / "axe.min.js"


def serious_violations(page: Page, *, but_for: tuple[str, ...] = ()) -> list[str]:
    """Return what axe-core finds of serious or critical impact, and where; ``but_for`` are selectors to leave out."""
    # As the browser's debugger does it, which the page's Content-Security-Policy does not apply to.
    page.evaluate(AXE.read_text())
    # Without its preloading: that copies stylesheets into the page, which the policy does not let it.
    found = page.evaluate(
        "(but_for) => axe.run({exclude: but_for}, {preload: false, resultTypes: ['violations']})", list(but_for)
    )
    return [
        f"{violation['id']}: {violation['help']}: {node['html'][:200]} {node.get('failureSummary', '')}"
        for violation in found["violations"]
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]


@pytest.fixture
def busy(manager, record_of, make_projects, superuser) -> dict[str, int]:
    """Tasks in each status, with objects, locks, progress, a retry and a schedule."""
    projects = make_projects(3)
    names = {}
    with pytest.raises(ValueError, match="it broke"):
        manager.launch_async_task(tasks.fail, task_key="failed", user=superuser, sync=True)
    names["retried"] = manager.retry_task("failed", user=superuser)
    names["queued"] = manager.launch_async_task(tasks.add, 1, affected_objects=projects[:1], user=superuser)
    names["running"] = manager.launch_async_task(
        tasks.add, 2, affected_objects=projects, conflict_ids={"testapp.Project": projects}, user=superuser
    )
    ActiveTask.objects.claim_pending(names["running"], host="worker-1", pid=4711)
    TaskRecord.objects.record_start(names["running"], attempt=1)
    manager.update_progress(names["running"], "Step 2/5: cutting")
    names["completed"] = manager.launch_async_task(tasks.add, 3, sync=True)
    names["cancelled"] = manager.launch_async_task(tasks.add, 4)
    manager.cancel_task(names["cancelled"], user=superuser)
    manager.launch_async_task(tasks.add, 5, group="trio", affected_objects=projects, user=superuser)
    Schedule.objects.create(func="tests.testapp.tasks.add", args="1", name="nightly", next_run=timezone.now())
    return {label: record_of(name).pk for label, name in {**names, "failed": "failed"}.items()}


@pytest.fixture(params=["light", "dark"])
def looked_at(request, page):
    page.emulate_media(color_scheme=request.param)
    return page


@pytest.mark.parametrize(
    "address", ["", "?status=failed", "?q=nothing&task=other", "failures/", "locks/", "cluster/", "groups/trio/"]
)
def test_the_lists(looked_at, busy, address):
    looked_at.goto(LIST + address)
    assert serious_violations(looked_at) == []


@pytest.mark.parametrize("status", ["failed", "retried", "queued", "running", "completed", "cancelled"])
def test_the_task_page(looked_at, busy, status):
    looked_at.goto(f"{LIST}{busy[status]}/change/")
    assert serious_violations(looked_at) == []


def test_the_forms_and_questions(looked_at, busy):
    page = looked_at
    page.goto(f"{LIST}locks/{ConflictLock.objects.first().pk}/release/")
    assert serious_violations(page) == []
    page.goto(f"{LIST}{busy['completed']}/edit/")
    assert serious_violations(page) == []
    page.get_by_label("Arguments:", exact=True).fill("{")
    with page.expect_event("load"):
        page.get_by_role("button", name="Retry with these arguments").click()
    expect(page.get_by_text("Enter a valid JSON.")).to_be_visible()
    assert serious_violations(page) == []
    page.goto(LIST)
    page.get_by_label("All 7 that match").check()
    with page.expect_event("load"):
        page.locator("#pcrud-bulk-delete").click()
    expect(page.get_by_role("button", name="Yes, I'm sure")).to_be_visible()
    assert serious_violations(page) == []
    with page.expect_event("load"):
        page.get_by_role("button", name="Yes, I'm sure").click()
    expect(page.locator(".messagelist")).to_be_visible()
    assert serious_violations(page) == []


def test_the_list_with_the_keyboard_help_open(looked_at, busy):
    looked_at.goto(LIST)
    looked_at.keyboard.press("?")
    looked_at.get_by_role("dialog").wait_for()
    assert serious_violations(looked_at) == []


def test_the_projects_own_admin_pages(looked_at, busy):
    page = looked_at
    page.goto(PROJECTS)
    page.locator("#pcrud-strip section").wait_for()
    assert serious_violations(page, but_for=DJANGOS) == []
    page.locator("input.action-select").first.check()
    page.get_by_label("Action:").select_option("rename")
    with page.expect_event("load"):
        page.locator("button[name=index]").click()
    expect(page.get_by_role("button", name="Run")).to_be_visible()
    assert serious_violations(page, but_for=DJANGOS) == []
    page.goto(f"{PROJECTS}{Project.objects.first().pk}/change/")
    page.get_by_role("heading", name="Background tasks").wait_for()
    assert serious_violations(page, but_for=DJANGOS) == []
    page.goto(f"{PROJECTS}{Project.objects.first().pk}/history/")
    assert serious_violations(page, but_for=DJANGOS) == []


def test_the_empty_list_and_the_admins_index(looked_at):
    looked_at.goto(LIST)
    assert serious_violations(looked_at) == []
    looked_at.goto("/admin/")
    assert serious_violations(looked_at) == []


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize(
    "address", ["", "failures/", "locks/", "cluster/", "groups/trio/", "{failed}/change/", "{running}/change/"]
)
def test_nothing_is_cut_off(page, busy, width, address):
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(LIST + address.format_map(busy))
    wider_than_their_place = page.evaluate("""
        [...document.querySelectorAll("#content, #content *:not(pre, progress, .pcrud-code)")]
          .filter((element) => element.clientWidth > 1 && element.scrollWidth > element.clientWidth + 1)
          .map((element) => `${element.tagName}.${element.className}: ${element.scrollWidth} > ${element.clientWidth}`)
    """)
    assert wider_than_their_place == []


def test_the_check_can_fail(page):
    page.goto(LIST)
    page.evaluate("document.querySelector('#content').insertAdjacentHTML('beforeend', '<input>')")
    assert any(violation.startswith("label:") for violation in serious_violations(page))
