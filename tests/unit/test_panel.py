"""The panel on the admin's index."""

from __future__ import annotations

import re

import pytest
from django.contrib import admin
from django.contrib.admin import AdminSite

from powercrud_dashboard.admin.registrations import TaskRecordAdmin
from powercrud_dashboard.models import TaskRecord
from tests.testapp import tasks

pytestmark = pytest.mark.django_db

INDEX = "/admin/"


def counts_of(page: str) -> list[str]:
    panel = page[page.index("pcrud-panel") :]
    return re.findall(r"</span>([\d,+]+)</span>", panel[: panel.index("</section>")])


@pytest.fixture
def some_tasks(manager, make_user):
    anna = make_user("anna")
    for user in (anna, None, None):
        manager.launch_async_task(tasks.add, 1, user=user)
    with pytest.raises(ValueError, match="broke"):
        manager.launch_async_task(tasks.fail, sync=True, user=anna)
    return anna


def test_the_index_counts_running_queued_and_failed_tasks(client_of, superuser, some_tasks):
    page = client_of(superuser).get(INDEX).content.decode()
    assert counts_of(page) == ["0", "3", "1"]
    assert 'href="/admin/powercrud_dashboard/taskrecord/?status=failed&amp;within=24h"' in page


def test_staff_see_the_counts_of_their_own_tasks(client_of, some_tasks):
    assert counts_of(client_of(some_tasks).get(INDEX).content.decode()) == ["0", "1", "1"]


def test_it_costs_four_queries(client_of, superuser, some_tasks, django_assert_max_num_queries, settings):
    client = client_of(superuser)
    # Session, user, the admin's recent actions, and the panel: the counts, and three for whether the queue keeps up.
    with django_assert_max_num_queries(7):
        client.get(INDEX)


def test_an_empty_database_counts_nothing(client_of, superuser):
    assert counts_of(client_of(superuser).get(INDEX).content.decode()) == ["0", "0", "0"]


def test_a_sites_own_index_template_stays():
    class OwnSite(AdminSite):
        index_template = "own/index.html"

    own = OwnSite("own")
    own.register(TaskRecord, TaskRecordAdmin)
    assert own.index_template == "own/index.html"
    assert admin.site.index_template == "powercrud_dashboard/admin/index.html"


def test_it_says_whether_the_queue_keeps_up_to_those_who_may_view_all_tasks(client_of, superuser, some_tasks):
    assert "No worker runs" in client_of(superuser).get(INDEX).content.decode()
    assert "No worker runs" not in client_of(some_tasks).get(INDEX).content.decode()
