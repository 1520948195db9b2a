"""The panel on the admin's index."""

from __future__ import annotations

import re

import pytest
from django.contrib import admin
from django.contrib.admin import AdminSite
from django.db import connection

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


# In a transaction it has a savepoint of its own.
@pytest.mark.django_db(transaction=True)
def test_it_costs_four_queries(client_of, superuser, some_tasks, django_assert_max_num_queries, settings):
    client = client_of(superuser)
    # Session, user, the admin's recent actions, and the panel: the counts, and three for whether the queue keeps up.
    with django_assert_max_num_queries(7):
        client.get(INDEX)


@pytest.mark.parametrize("page", [INDEX, "/admin/testapp/project/"])
def test_an_error_of_the_database_breaks_no_page_whose_view_is_a_transaction(boss, make_projects, page):
    make_projects(1)

    def without_our_tables(execute, sql, params, many, context):
        return execute(sql.replace('"powercrud_dashboard_', '"not_there_'), params, many, context)

    # So is each test.
    with connection.execute_wrapper(without_our_tables):
        answer = boss.get(page)
    assert answer.status_code == 200
    assert "pcrud-panel" not in answer.content.decode()


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
