"""The messages in the queue and the test of the cluster in a browser."""

from __future__ import annotations

import pytest
from django.conf import settings
from django_q.brokers import get_broker
from django_q.tasks import async_task
from playwright.sync_api import expect

from powercrud_dashboard.models import TaskRecord
from tests.browser.test_accessibility import looked_at, serious_violations
from tests.testapp import tasks

__all__ = ["looked_at"]

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

CLUSTER = "/admin/powercrud_dashboard/taskrecord/cluster/"
QUEUE = f"{CLUSTER}queue/"
SOON = 60_000


@pytest.fixture
def waiting(_empty_queue, manager, make_user) -> None:
    """Messages of each kind."""
    async_task("tests.testapp.tasks.add", 2, task_name="nightly sum", group="nightly")
    manager.launch_async_task(tasks.add, 1, label="Re-price the spring catalogue", user=make_user("anna"))
    get_broker().enqueue("not signed")
    async_task("tests.testapp.tasks.add", 3, task_name="urgent sum")


@pytest.mark.markup
def test_what_can_be_seen_of_the_queue_is_accessible(looked_at, waiting):
    page = looked_at
    page.goto(QUEUE)
    assert serious_violations(page) == []
    page.get_by_role("link", name="Delete Re-price the spring catalogue").click()
    expect(page.get_by_role("button", name="Yes, cancel it")).to_be_visible()
    assert serious_violations(page) == []
    page.goto(CLUSTER)
    page.get_by_role("button", name="Test the cluster").click()
    expect(page.get_by_role("heading", name="Steps")).to_be_visible()
    assert serious_violations(page) == []


def test_messages_are_moved_and_deleted(page, waiting):
    page.goto(CLUSTER)
    page.get_by_role("link", name=f"Messages of {settings.Q_CLUSTER['name']}").click()
    rows = page.locator("#result_list tbody tr")
    expect(rows).to_have_count(4)
    rows.nth(3).get_by_role("button", name="Run next").click()
    expect(page.get_by_text("is the next that a cluster takes")).to_be_visible()
    page.get_by_role("link", name="Delete Re-price the spring catalogue").click()
    page.get_by_role("button", name="Yes, cancel it").click()
    expect(page.get_by_text("“Re-price the spring catalogue” was cancelled.")).to_be_visible()
    expect(rows).to_have_count(3)
    assert TaskRecord.objects.get().status == "cancelled"


def test_the_queue_empties_before_ones_eyes_and_the_cluster_is_tested(page, waiting, cluster_later):
    page.goto(CLUSTER)
    page.get_by_role("button", name="Test the cluster").click()
    expect(page.get_by_text("No cluster is running. Start one: python manage.py qcluster")).to_be_visible()
    queue = page.context.new_page()
    queue.goto(QUEUE)
    expect(queue.locator("#result_list tbody tr")).to_have_count(5)
    cluster_later()
    expect(page.get_by_text("The cluster works.")).to_be_visible(timeout=SOON)
    expect(queue.get_by_text("No message is in this queue.")).to_be_visible(timeout=SOON)


def test_the_queue_works_without_javascript(browser, page, live_server, waiting):
    context = browser.new_context(
        base_url=live_server.url, java_script_enabled=False, storage_state=page.context.storage_state()
    )
    plain = context.new_page()
    plain.goto(QUEUE)
    plain.get_by_role("link", name="Delete tests.testapp.tasks.add").first.click()
    plain.get_by_role("button", name="Yes, delete it").click()
    expect(plain.get_by_text("The message was deleted")).to_be_visible()
    context.close()
