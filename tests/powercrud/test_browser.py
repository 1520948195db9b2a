"""PowerCRUD's list page in a real browser before a real cluster."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.powercrud.models import Book

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def tolerated() -> list[str]:
    # The icon; and what inline editing answers for a locked row.
    return ["404", "423"]


def choose(page, count):
    page.goto("/library/book/")
    page.wait_for_load_state("networkidle")
    for number in range(count):
        box = page.locator("input.row-select-checkbox").nth(number)
        box.check()
        # Each choice renews the table, and a box that is checked in the old one is lost with it.
        expect(box).to_have_attribute("data-powercrud-initial-checked", "true")
        expect(page.locator(".htmx-request, .htmx-swapping, .htmx-settling, .htmx-added")).to_have_count(0)
        expect(page.locator("#selected-items-counter")).to_have_text(str(number + 1))


def open_bulk_form(page):
    page.get_by_role("link", name="Bulk Edit").click()
    return page.locator("#powercrudModalContent")


def set_pages(page, pages):
    form = open_bulk_form(page)
    form.locator("input[name=fields_to_update][value=pages]").check()
    form.locator("input[name=pages]").fill(str(pages))
    form.get_by_role("button", name="Apply Changes").click()


def rows(page, status):
    return page.locator(f"tr[data-inline-status={status}]")


@pytest.fixture
def polls(page):
    """The status codes of the endpoint's answers."""
    codes = []
    page.on("response", lambda answer: codes.append(answer.status) if "/async/progress/" in answer.url else None)
    return codes


def test_a_bulk_update_is_watched_to_its_end(
    page, page_of, make_user, polls, cluster_later, make_books, tmp_path, until_started
):
    gate = tmp_path / "gate"
    make_books(2)
    make_books(2, gate=str(gate))
    colleague = page_of(make_user("colleague"))
    choose(colleague, 1)
    choose(page, 3)
    set_pages(page, 7)
    heading, progress = page.locator("#async-status-heading"), page.locator("#progress-display")
    expect(heading).to_have_text("Bulk Operation Starting")
    cluster_later()
    until_started(gate)
    expect(progress).to_contain_text("updating: 2/3")
    # Meanwhile the colleague can't change the same books.
    expect(open_bulk_form(colleague)).to_contain_text("Bulk Operation Conflict")
    colleague.goto("/library/book/")
    expect(rows(colleague, "locked")).to_have_count(3)
    gate.touch()
    expect(heading).to_have_text("Bulk Operation Completed")
    expect(progress).to_contain_text("completed update: 3 processed")
    assert sorted(Book.objects.values_list("pages", flat=True)) == [7, 7, 7, 100]
    assert polls[-1] == 286
    assert set(polls[:-1]) == {200}
    colleague.goto("/library/book/")
    expect(rows(colleague, "locked")).to_have_count(0)


def test_a_bulk_update_that_fails_says_why(page, polls, cluster, make_books):
    make_books(2)
    make_books(1, title="bad")
    choose(page, 3)
    set_pages(page, 300)
    expect(page.locator("#async-status-heading")).to_have_text("Bulk Operation Failed")
    expect(page.locator("#progress-display")).to_have_text("title: It is a bad book.")
    assert polls[-1] == 286


def test_a_bulk_deletion(page, cluster, make_books):
    [*_deleted, kept] = make_books(4)
    choose(page, 3)
    form = open_bulk_form(page)
    form.get_by_role("button", name="Delete All Selected Items").click()
    form.get_by_label("I understand this will permanently delete these items").check()
    form.get_by_role("button", name="Delete Items").click()
    expect(page.locator("#async-status-heading")).to_have_text("Bulk Operation Completed")
    assert [*Book.objects.all()] == [kept]
