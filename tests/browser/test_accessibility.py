"""axe-core finds nothing serious on any page, whatever its state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from powercrud_dashboard.models import ConflictLock
from tests.testapp.models import Project

pytestmark = [pytest.mark.browser, pytest.mark.markup, pytest.mark.django_db(transaction=True)]

PROJECTS = "/admin/testapp/project/"
LIST = "/admin/powercrud_dashboard/taskrecord/"
#: Django's own parts of the admin's pages.
DJANGOS = (".breadcrumbs",)
#: Lists whose layout is looked at in several ways.
LISTS = ("", "failures/", "locks/", "schedules/", "cluster/", "cluster/queue/", "groups/trio/")
AXE = Path(__file__).with_name("vendor") / "axe.min.js"


def serious_violations(page: Page, *, within: tuple[str, ...] = (), but_for: tuple[str, ...] = ()) -> list[str]:
    """Return what axe-core finds of serious or critical impact, and where.

    ``within`` are selectors of what to look at, the whole page if empty; ``but_for`` are those to leave out.
    """
    # As the browser's debugger does it, which the page's Content-Security-Policy does not apply to.
    page.evaluate(AXE.read_text())
    # Without its preloading: that copies stylesheets into the page, which the policy does not let it.
    there = [selector for selector in within if page.locator(selector).count()]
    context = {"exclude": list(but_for), **({"include": there} if within else {})}
    found = page.evaluate("(context) => axe.run(context, {preload: false, resultTypes: ['violations']})", context)
    return [
        f"{violation['id']}: {violation['help']}: {node['html'][:200]} {node.get('failureSummary', '')}"
        for violation in found["violations"]
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]


def faulty(found: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Return the pages with anything wrong, of what was found by the address of each page."""
    return {address: faults for address, faults in found.items() if faults}


@pytest.fixture(params=["light", "dark"])
def looked_at(request, page):
    page.emulate_media(color_scheme=request.param)
    return page


def test_the_lists_and_the_pages_of_tasks(looked_at, busy):
    lists = (*LISTS, "?status=failed", "?q=nothing&task=other", "insights/", "alerts/")
    statuses = ("failed", "retried", "queued", "running", "completed", "cancelled")
    found = {}
    for address in (*lists, *(f"{busy[status]}/change/" for status in statuses)):
        looked_at.goto(LIST + address)
        found[address] = serious_violations(looked_at)
    assert faulty(found) == {}


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
    page.get_by_label("All 7 matching tasks").check()
    with page.expect_event("load"):
        page.locator("#pcrud-bulk-delete").click()
    expect(page.locator(".delete-confirmation input[type=submit]")).to_be_visible()
    assert serious_violations(page) == []
    with page.expect_event("load"):
        page.locator(".delete-confirmation input[type=submit]").click()
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


@pytest.mark.parametrize("language", ["en", "de"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_cut_off(page, busy, width, settings, language):
    settings.LANGUAGE_CODE = language
    page.set_viewport_size({"width": width, "height": 800})
    wider_than_their_place = {}
    for address in (*LISTS, f"{busy['failed']}/change/", f"{busy['running']}/change/"):
        page.goto(LIST + address)
        wider_than_their_place[address] = page.evaluate("""
            [...document.querySelectorAll("#content, #content *:not(pre, progress, .pcrud-code)")]
              .filter((element) => element.clientWidth > 1 && element.scrollWidth > element.clientWidth + 1)
              .filter((element) => element.checkVisibility() && getComputedStyle(element).textOverflow !== "ellipsis")
              .map((element) =>
                `${element.tagName}.${element.className}: ${element.scrollWidth} > ${element.clientWidth}`)
        """)
    assert faulty(wider_than_their_place) == {}


def test_no_page_scrolls_sideways_with_text_of_twice_the_size(page, busy):
    page.set_viewport_size({"width": 1280, "height": 800})
    widths = {}
    for address in (*LISTS, f"{busy['running']}/change/"):
        page.goto(LIST + address)
        page.evaluate("document.documentElement.style.fontSize = '200%'")
        whole, main = "document.documentElement.scrollWidth", "document.querySelector('#main').scrollWidth"
        widths[address] = [width for width in map(page.evaluate, (whole, main)) if width > 1280]
    assert faulty(widths) == {}


def test_the_check_can_fail(page):
    page.goto(LIST)
    page.evaluate("document.querySelector('#content').insertAdjacentHTML('beforeend', '<input>')")
    assert any(violation.startswith("label:") for violation in serious_violations(page))
