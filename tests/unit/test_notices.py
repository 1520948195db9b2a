"""The person who has launched a task is told of its end on their next page."""

from __future__ import annotations

import asyncio
import re
from datetime import timedelta

import pytest
from asgiref.sync import sync_to_async
from django.contrib.messages import get_messages
from django.db import OperationalError, connection, connections
from django.test import AsyncClient
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from powercrud_dashboard.engine.cleanup import Cleanup
from powercrud_dashboard.models import TaskNotice, TaskRecord
from tests.testapp import tasks
from tests.workers import meanwhile, run_queue

pytestmark = pytest.mark.django_db(transaction=True)

INDEX = "/admin/"
LIST = "/admin/powercrud_dashboard/taskrecord/"
MIDDLEWARE = "powercrud_dashboard.middleware.TaskNoticesMiddleware"


@pytest.fixture(autouse=True)
def _middleware(settings):
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, MIDDLEWARE]


@pytest.fixture
def end(manager, superuser, record_of):
    """Launch tasks as a person, and run them as a worker does."""

    def end(*functions: object, user: object = superuser, **options: object) -> list[TaskRecord]:
        names = [manager.launch_async_task(function, user=user, **options) for function in functions]
        run_queue()
        return [record_of(name) for name in names]

    return end


def told(response: object) -> list[str]:
    """The texts of the messages that a page shows."""
    lists = re.findall(r'<ul class="messagelist">(.*?)</ul>', response.content.decode(), re.DOTALL)
    return [
        re.sub(r"<[^>]*>", "", text).strip()
        for part in lists
        for text in re.findall(r"<li[^>]*>(.*?)</li>", part, re.DOTALL)
    ]


@pytest.fixture
def add():
    return "tests.testapp.tasks.log_lines"


def test_the_next_page_tells_it_once(boss, end, add):
    (record,) = end(add, label="Re-price")
    page = boss.get(INDEX)
    assert told(page) == ["Re-price: completed."]
    assert f'<a href="{LIST}{record.pk}/change/">Re-price</a>' in page.content.decode()
    assert told(boss.get(INDEX)) == []


def test_a_page_does_not_need_the_notices(boss, end, add, caplog):
    """The database of the tasks may be another one than the page's, and be away."""
    end(add, label="Re-price")

    def away(execute, sql, params, many, context):
        if "powercrud_dashboard_" in sql:
            raise OperationalError("away")
        return execute(sql, params, many, context)

    with connection.execute_wrapper(away):
        page = boss.get(INDEX)
    assert (page.status_code, told(page)) == (200, [])
    assert "A part of a page can't be shown" in caplog.text
    assert told(boss.get(INDEX)) == ["Re-price: completed."]


def test_it_tells_of_failures_and_cancellations_too(boss, end, manager, superuser):
    end(tasks.fail, label="Broken")
    name = manager.launch_async_task(tasks.add, 1, user=superuser, label="Unwanted")
    manager.cancel_task(name, user=superuser)
    assert told(boss.get(INDEX)) == ["Unwanted: cancelled.", "Broken: failed."]


def test_it_says_how_many_objects_there_were_and_links_to_the_failed_ones(boss, end, make_projects, add):
    (record,) = end(add, label="Re-price", affected_objects=make_projects(3))
    TaskRecord.objects.filter(pk=record.pk).update(failed_count=2, done_count=1, model_labels="testapp.project")
    page = boss.get(INDEX)
    assert told(page) == ["Re-price (3 projects): completed, 2 failed. Show the failed objects"]
    assert f'href="{LIST}{record.pk}/change/?outcome=failed#pcrud-objects-title"' in page.content.decode()


def test_many_are_told_in_one_message(boss, end, superuser, add):
    end(*[add] * 4, tasks.fail)
    page = boss.get(INDEX)
    assert told(page) == ["Background tasks: 5 tasks ended, 1 failed."]
    link = re.search(r'class="messagelist">.*?href="([^"]*)"', page.content.decode(), re.DOTALL)[1]
    assert boss.get(link.replace("&amp;", "&")).content.decode().count("data-pcrud-row") == 5
    assert told(boss.get(INDEX)) == []


def test_very_many_are_told_with_their_number(boss, end, add):
    (record,) = end(add)
    TaskNotice.objects.bulk_create(TaskNotice(record=record, user=record.user) for _ in range(1_000))
    assert told(boss.get(INDEX)) == ["Background tasks: 1001 tasks ended."]
    assert told(boss.get(INDEX)) == []


def test_the_tasks_of_a_group_are_one_message(boss, end, add):
    end(add, add, tasks.fail, add, add, group="chunks", label="Re-price")
    page = boss.get(INDEX)
    assert told(page) == ["Re-price: 5 tasks ended, 1 failed."]
    assert f'href="{LIST}groups/chunks/"' in page.content.decode()


def test_nobody_is_told_of_the_tasks_of_others(client_of, make_user, end, add):
    end(add)
    assert told(client_of(make_user("other")).get(INDEX)) == []


def test_a_task_of_nobody_leaves_no_notice(end, add):
    end(add, user=None)
    end(add, user="by name")
    assert not TaskNotice.objects.exists()


def test_a_task_that_ran_in_the_request_of_its_click_needs_no_notice(manager, superuser, add):
    manager.launch_async_task(add, user=superuser, sync=True)
    assert not TaskNotice.objects.exists()


@pytest.mark.parametrize(("setting", "written"), [(None, False), (False, False), (True, True)])
def test_without_the_middleware_nothing_is_written_unless_the_settings_say_so(settings, end, setting, written, add):
    settings.MIDDLEWARE = [path for path in settings.MIDDLEWARE if path != MIDDLEWARE]
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_NOTICES": setting}
    end(add)
    assert TaskNotice.objects.exists() == written


def test_the_end_of_a_persons_task_costs_one_statement_more(manager, superuser, add):
    def statements(**options: object) -> int:
        manager.launch_async_task(add, **options)
        with CaptureQueriesContext(connection) as captured:
            run_queue()
        return len([query for query in captured if not query["sql"].startswith(("SAVEPOINT", "RELEASE"))])

    statements()
    statements(user=superuser)
    assert statements(user=superuser) == statements() + 1


NOT_PAGES = [
    pytest.param(f"{LIST}", {"HX-Request": "true"}, id="htmx"),
    pytest.param(f"{LIST}export/json/", {}, id="file"),
    pytest.param("/powercrud/async/progress/?task_name=x", {}, id="json"),
    pytest.param("/admin/jsi18n/", {}, id="script"),
    pytest.param("/admin/nowhere/", {}, id="redirect or 404"),
    pytest.param(INDEX, {"Sec-Purpose": "prefetch;prerender"}, id="prefetch"),
]


@pytest.mark.parametrize(("address", "headers"), NOT_PAGES)
def test_what_is_no_page_tells_nothing_and_asks_nothing(boss, end, address, headers, add):
    end(add)
    with CaptureQueriesContext(connection) as captured:
        boss.get(address, headers=headers)
    assert not [query for query in captured if "tasknotice" in query["sql"]]
    assert told(boss.get(INDEX)) == ["tests.testapp.tasks.log_lines: completed."]


def test_a_page_with_nothing_to_tell_costs_one_query_by_its_index(boss):
    boss.get(INDEX)
    with CaptureQueriesContext(connection) as captured:
        boss.get(INDEX)
    asked = [query["sql"] for query in captured if "tasknotice" in query["sql"]]
    assert len(asked) == 1


def test_nobody_is_asked_for_without_a_login(client, end, add):
    end(add)
    with CaptureQueriesContext(connection) as captured:
        client.get("/admin/login/")
    assert not [query for query in captured if "tasknotice" in query["sql"]]


@pytest.mark.parametrize("storage", ["fallback.FallbackStorage", "session.SessionStorage", "cookie.CookieStorage"])
def test_a_page_that_can_not_be_rendered_loses_nothing(boss, end, settings, storage, add):
    settings.MESSAGE_STORAGE = f"django.contrib.messages.storage.{storage}"
    end(add, label="Re-price")
    boss.raise_request_exception = False
    templates = settings.TEMPLATES
    broken = {**templates[0], "OPTIONS": {**templates[0]["OPTIONS"]}}
    broken["OPTIONS"]["context_processors"] = [*broken["OPTIONS"]["context_processors"], f"{__name__}.break_page"]
    settings.TEMPLATES = [broken]
    assert boss.get(INDEX).status_code == 500
    settings.TEMPLATES = templates
    assert told(boss.get(INDEX)) == ["Re-price: completed."]
    assert told(boss.get(INDEX)) == []


def break_page(request: object) -> dict[str, object]:
    raise ValueError("a broken page")


def test_two_tabs_tell_it_once(boss, client_of, superuser, end, add):
    end(add, add, label="Re-price")
    other = client_of(superuser)
    texts = []
    with meanwhile(lambda: texts.extend(told(other.get(INDEX))), before='UPDATE "powercrud_dashboard_tasknotice"'):
        texts += told(boss.get(INDEX))
    assert texts == ["Re-price: completed."] * 2
    assert told(boss.get(INDEX)) == []


def test_two_tabs_share_what_came_meanwhile(boss, client_of, superuser, end, manager, add):
    end(add, label="first")
    other = client_of(superuser)
    texts = []

    def act() -> None:
        texts.extend(told(other.get(INDEX)))
        end(add, label="second")

    with meanwhile(act, before='UPDATE "powercrud_dashboard_tasknotice"'):
        texts += told(boss.get(INDEX))
    texts += told(boss.get(INDEX))
    assert texts == ["first: completed.", "second: completed."]


def test_labels_are_no_markup(boss, end, add):
    end(add, label="<img src=x onerror=alert(1)>")
    page = boss.get(INDEX).content.decode()
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;: " in page.replace("</a>", "")


def test_whoever_sees_the_page_of_the_task_needs_no_message(boss, client_of, make_user, end, add):
    (record,) = end(add)
    client_of(make_user("reader", "view_taskrecord")).get(f"{LIST}{record.pk}/change/")
    assert TaskNotice.objects.exists()
    assert told(boss.get(f"{LIST}{record.pk}/change/")) == []
    assert not TaskNotice.objects.exists()


def test_a_task_whose_worker_came_back_is_told_as_it_was(boss, end, add):
    (record,) = end(add, label="Re-price")
    TaskNotice.objects.create(record=record, user=record.user)
    assert told(boss.get(INDEX)) == ["Re-price: completed."]


def test_it_is_a_message_of_django(boss, end, add):
    end(add, label="Re-price")
    response = boss.get(INDEX)
    assert [message.level_tag for message in get_messages(response.wsgi_request)] == ["success"]


def test_it_works_in_an_asynchronous_server(superuser, end, add):
    end(add, label="Re-price")

    async def visit() -> list[str]:
        client = AsyncClient()
        await client.aforce_login(superuser)
        try:
            return told(await client.get(INDEX)) + told(await client.get(INDEX))
        finally:
            # The thread of the synchronous parts outlives the test.
            await sync_to_async(connections.close_all)()

    assert asyncio.run(visit()) == ["Re-price: completed."]


def test_old_notices_are_forgotten_and_deleted_ones_are_no_obstacle(boss, end, superuser, add):
    first, second = end(add, add)
    TaskNotice.objects.filter(record=first).update(created_at=timezone.now() - timedelta(days=8))
    Cleanup(dry_run=True).run()
    assert TaskNotice.objects.count() == 2
    Cleanup().run()
    assert [notice.record for notice in TaskNotice.objects.all()] == [second]
    boss.post(f"{LIST}{second.pk}/delete/", {"post": "yes"})
    assert not TaskNotice.objects.exists()


def test_a_deleted_user_takes_the_notices_along(end, make_user, add):
    user = make_user("gone")
    end(add, user=user)
    user.delete()
    assert not TaskNotice.objects.exists()
    assert TaskRecord.objects.exists()
