"""Keyset paging of the task list."""

from __future__ import annotations

import html
import re
from datetime import timedelta

import pytest
from django.utils import timezone

from powercrud_dashboard.dashboard import listing
from powercrud_dashboard.models import TaskRecord, TaskStatus, search

pytestmark = pytest.mark.django_db

LIST = "/admin/powercrud_dashboard/taskrecord/"
NOW = timezone.now()


@pytest.fixture(autouse=True)
def _short_pages(settings):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_PAGE_SIZE": 3}


def make(number: int, **fields) -> TaskRecord:
    defaults = {"task_name": f"name-{number}", "label": f"task {number:03d}", "status": TaskStatus.SUCCESS}
    return TaskRecord.objects.create(**{**defaults, "func": "f", "created_at": NOW, **fields})


def shown(page: str) -> list[int]:
    return [int(number) for number in re.findall(r">task (\d+)</a>", page)]


def link(page: str, text: str) -> str | None:
    found = re.search(rf'href="([^"]*)"[^>]*>{text}<', page)
    return html.unescape(found[1]) if found else None


def walk(client, address: str, text: str) -> list[list[int]]:
    """Follow a link from page to page; return what each page shows."""
    seen = []
    following: str | None = address
    while following is not None:
        page = client.get(following).content.decode()
        seen.append(shown(page))
        following = link(page, text)
    return seen


def test_rows_of_the_same_microsecond_are_each_shown_once(boss):
    for number in range(8):
        make(number)
    assert walk(boss, LIST, "Next") == [[7, 6, 5], [4, 3, 2], [1, 0]]


@pytest.mark.parametrize("looked_through", [0, 5, 7, 1_000])
@pytest.mark.parametrize("status", ["", "&status=success"])
def test_many_matches_of_a_search_are_paged_alike_wherever_they_are_looked_for_first(
    boss, monkeypatch, status, looked_through
):
    """Two or three of the matches are among the newest five or seven records; a page and one more are to be found."""
    monkeypatch.setattr(listing, "CAP", 2)
    monkeypatch.setattr(search, "LOOKED_THROUGH", looked_through)
    for number in range(12):
        make(number, message="even" if number % 2 == 0 else "odd")
    assert walk(boss, f"{LIST}?q=even{status}", "Next") == [[10, 8, 6], [4, 2, 0]]
    assert walk(boss, f"{LIST}?q=even+odd{status}", "Next") == [[]]


def test_a_page_shows_as_many_rows_as_it_is_set_to(boss, settings):
    settings.POWERCRUD_SETTINGS = {}
    for number in range(60):
        make(number)
    first, second = walk(boss, LIST, "Next")
    assert (first, second) == (list(range(59, 9, -1)), list(range(9, -1, -1)))
    assert boss.get(LIST).content.decode().count('class="pcrud-pages"') <= 1


@pytest.mark.parametrize(
    "sort",
    [
        "created_at",
        "-created_at",
        "finished_at",
        "-finished_at",
        "duration",
        "-duration",
        "label",
        "-user_label",
        "status",
    ],
)
def test_pages_cover_every_row_once_in_each_order(boss, sort):
    for number in range(8):
        make(
            number,
            created_at=NOW - timedelta(seconds=number // 2),
            finished_at=NOW - timedelta(seconds=number // 3),
            run_time=timedelta(microseconds=number // 3),
            user_label="ab"[number % 2],
        )
    pages = walk(boss, f"{LIST}?sort={sort}", "Next")
    assert sorted(number for page in pages for number in page) == list(range(8))
    assert [len(page) for page in pages] == [3, 3, 2]


def test_running_tasks_come_first_and_no_row_is_left_out_or_shown_twice(boss):
    for number in range(10):
        make(number, status=TaskStatus.IN_PROGRESS if number in (0, 2, 4, 5) else TaskStatus.SUCCESS)
    pages = walk(boss, LIST, "Next")
    assert pages == [[5, 4, 2], [0, 9, 8], [7, 6, 3], [1]]
    last = boss.get(LIST).content.decode()
    for __ in pages[1:]:
        last = boss.get(link(last, "Next")).content.decode()
    assert walk(boss, link(last, "Previous"), "Previous") == [[7, 6, 3], [0, 9, 8], [5, 4, 2]]
    # Elsewhere they are where their time puts them.
    assert walk(boss, f"{LIST}?sort=created_at", "Next")[0] == [0, 1, 2]
    assert walk(boss, f"{LIST}?status=in_progress", "Next") == [[5, 4, 2], [0]]


def test_running_matches_of_a_search_come_first_too(boss):
    for number in range(6):
        status = TaskStatus.IN_PROGRESS if number == 1 else TaskStatus.SUCCESS
        make(number, status=status, message="even" if number % 2 == 0 else "odd")
    assert walk(boss, f"{LIST}?q=odd", "Next") == [[1, 5, 3]]


@pytest.mark.parametrize("query", ["", "&q=task"])
def test_tasks_without_an_end_are_behind_those_that_ended(boss, query):
    for number in range(7):
        ended = NOW + timedelta(minutes=-number) if number % 2 else None
        make(number, finished_at=ended, status=TaskStatus.SUCCESS if ended else TaskStatus.PENDING)
    pages = walk(boss, f"{LIST}?sort=-finished_at{query}", "Next")
    assert pages == [[1, 3, 5], [6, 4, 2], [0]]
    assert walk(boss, f"{LIST}?sort=finished_at{query}", "Next") == [[6, 4, 2], [0, 5, 3], [1]]


def test_one_can_go_back_the_way_one_came(boss):
    for number in range(7):
        make(number)
    last = walk(boss, LIST, "Next")[-1]
    assert last == [0]
    first = boss.get(LIST).content.decode()
    second = boss.get(link(first, "Next")).content.decode()
    third = boss.get(link(second, "Next")).content.decode()
    assert walk(boss, link(third, "Previous"), "Previous") == [[3, 2, 1], [6, 5, 4]]
    assert link(first, "Previous") is None
    assert shown(boss.get(link(third, "First")).content.decode()) == [6, 5, 4]


def test_a_short_page_before_a_cursor_is_the_first_page(boss):
    records = [make(number) for number in range(5)]
    page = boss.get(f"{LIST}?before={records[3].pk}.{NOW.isoformat()}".replace("+", "%2B")).content.decode()
    assert shown(page) == [4, 3, 2]


def test_new_tasks_and_deleted_ones_do_not_shift_a_page(boss):
    for number in range(7):
        make(number)
    second = link(boss.get(LIST).content.decode(), "Next")
    make(7, created_at=NOW + timedelta(seconds=1))
    assert shown(boss.get(second).content.decode()) == [3, 2, 1]
    # The row that the cursor was created from.
    TaskRecord.objects.get(label="task 003").delete()
    assert shown(boss.get(second).content.decode()) == [2, 1, 0]


def test_a_page_whose_rows_are_all_gone_shows_the_beginning(boss):
    for number in range(5):
        make(number)
    second = link(boss.get(LIST).content.decode(), "Next")
    TaskRecord.objects.filter(label__in=["task 000", "task 001"]).delete()
    assert shown(boss.get(second).content.decode()) == [4, 3, 2]


@pytest.mark.parametrize(
    "cursor",
    ["x", "1", "1.", "1.yesterday", "99999999999999999999.2026-01-01", "-1.2026-01-01", "1.\x00", "٣.2026-01-01"],
)
@pytest.mark.parametrize("parameter", ["from", "before"])
def test_an_invalid_cursor_shows_the_first_page(boss, parameter, cursor):
    make(1)
    assert shown(boss.get(LIST, {parameter: cursor}).content.decode()) == [1]


@pytest.mark.parametrize(
    ("sort", "cursor"),
    [
        ("-created_at", "1.0001-01-01T00:00:00+05:00"),
        ("-created_at", "1.9999-12-31T23:59:59-05:00"),
        ("-duration", "1.999999999 00:00:00"),
        ("duration", "1.-999999999 00:00:00"),
        ("-affected_count", "1.99999999999999999999999"),
    ],
)
@pytest.mark.parametrize("parameter", ["from", "before"])
def test_a_cursor_that_no_row_can_have_is_no_error(boss, parameter, sort, cursor):
    make(1)
    assert boss.get(LIST, {"sort": sort, parameter: cursor}).status_code == 200


def test_the_filter_is_kept_from_page_to_page(boss):
    for number in range(8):
        make(number, group="odd" if number % 2 else "even")
    assert walk(boss, f"{LIST}?group=odd", "Next") == [[7, 5, 3], [1]]


def test_tabs_and_sorting_begin_at_the_first_page(boss):
    for number in range(5):
        make(number)
    second = boss.get(link(boss.get(LIST).content.decode(), "Next")).content.decode()
    assert link(second, "Task") == f"{LIST}?sort=label"
    assert f'href="{LIST}?status=success"' in second


def test_a_count_stops_at_its_cap(boss, monkeypatch):
    monkeypatch.setattr(listing, "CAP", 4)
    for number in range(6):
        make(number)
    make(7, status=TaskStatus.FAILED)
    page = boss.get(LIST).content.decode()
    counts = dict(re.findall(r'>(\w+) <span class="pcrud-tab-count">([\d+]+)<', page))
    assert counts == {"Queued": "0", "Running": "0", "Failed": "1", "Completed": "4+", "Cancelled": "0", "All": "4+"}


def test_counts_have_thousands_separators():
    assert str(listing.Count(1_234)) == "1,234"
    assert str(listing.Count(6_000) + listing.Count(4_000)) == "10,000"
    assert str(listing.Count(6_000) + listing.Count(6_000)) == "10,000+"


def test_counts_of_a_filter_are_of_its_first_matches(boss, monkeypatch):
    monkeypatch.setattr(listing, "CAP", 4)
    for number in range(6):
        make(number, group="nightly", status=TaskStatus.FAILED if number > 3 else TaskStatus.SUCCESS)
    page = boss.get(LIST, {"group": "nightly"}).content.decode()
    counts = dict(re.findall(r'>(\w+) <span class="pcrud-tab-count">([\d+]+)<', page))
    assert counts["Failed"] == "2+"
    assert counts["All"] == "4+"


def test_an_order_without_index_looks_at_the_newest_and_says_so(boss, monkeypatch):
    monkeypatch.setattr(listing, "CAP", 4)
    for number in range(8):
        make(number, created_at=NOW + timedelta(seconds=number))
    page = boss.get(LIST, {"sort": "label"}).content.decode()
    assert shown(page) == [3, 4, 5]
    assert "matches are considered" in page
    assert "matches are considered" not in boss.get(LIST, {"sort": "-duration"}).content.decode()
