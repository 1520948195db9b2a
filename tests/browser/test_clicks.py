"""Everyday jobs, from the admin's index, and the number of clicks that they take."""

from __future__ import annotations

import pytest
from playwright.sync_api import Locator, Page, expect

from powercrud_dashboard.models import TaskRecord
from powercrud_dashboard.models.changes import RecordChange
from tests.testapp import tasks
from tests.testapp.models import Project
from tests.workers import claimed_elsewhere

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


class Clicks:
    """Counts the clicks of a person."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.number = 0

    def __call__(self, target: Locator, *, loads: bool = False) -> None:
        self.number += 1
        if loads:
            with self.page.expect_event("load"):
                target.click()
        else:
            target.click()


@pytest.fixture
def clicks(page: Page) -> Clicks:
    page.goto("/admin/")
    return Clicks(page)


@pytest.mark.parametrize("words", ["{pk}", "invoice 1234"], ids=["by number", "by name"])
def test_who_holds_an_invoice_and_how_long_it_will_be_takes_two_clicks(page, clicks, manager, make_user, words):
    projects = [Project.objects.create(name=f"Invoice {number}") for number in range(1230, 1240)]
    wanted = projects[4]
    name = manager.launch_async_task(
        tasks.add,
        1,
        label="Send invoices",
        user=make_user("anna"),
        conflict_ids={"testapp.Project": projects},
        affected_objects=projects,
    )
    other = manager.launch_async_task(tasks.add, 2, label="Another", conflict_ids={"testapp.Country": {"France"}})
    for task_name in (name, other):
        claimed_elsewhere(task_name)
        TaskRecord.objects.change(task_name, RecordChange.started(attempt=1))
    from django.utils import timezone

    from powercrud_dashboard.models import ActiveTask, TaskObject

    for project in projects:
        TaskObject.objects.filter(object_id=project.pk).update(text=project.name)
    ActiveTask.objects.update(started_at=timezone.now() - timezone.timedelta(hours=1))
    manager.update_progress(name, current=3, total=4)
    clicks(page.get_by_label("Who holds"))
    page.keyboard.type(words.format(pk=wanted.pk))
    clicks(page.get_by_role("button", name="Find"), loads=True)
    row = page.locator("#result_list tbody tr")
    expect(row).to_have_count(1)
    expect(row).to_contain_text("Send invoices")
    expect(row).to_contain_text("Invoice 1234")
    expect(row).to_contain_text("anna")
    expect(row).to_contain_text("left")
    assert clicks.number == 2


def test_all_queued_tasks_of_one_kind_are_cancelled_with_four_clicks(page, clicks, manager):
    wrong = [manager.launch_async_task(tasks.log_lines, label=f"Wrong {number}") for number in range(60)]
    right = [manager.launch_async_task(tasks.add, number, label=f"Right {number}") for number in range(5)]
    clicks(page.get_by_role("region", name="Background tasks").get_by_role("link", name="Queued"), loads=True)
    clicks(page.get_by_role("link", name="log_lines"), loads=True)
    clicks(page.get_by_role("button", name="Cancel all 60"), loads=True)
    expect(page.get_by_role("heading", name="Cancel 60 tasks?")).to_be_visible()
    clicks(page.get_by_role("button", name="Cancel 60 tasks"), loads=True)
    assert clicks.number == 4
    assert {TaskRecord.objects.get(task_name=name).status for name in wrong} == {"cancelled"}
    assert {TaskRecord.objects.get(task_name=name).status for name in right} == {"pending"}
