from __future__ import annotations

import re
from datetime import timedelta

import pytest
from django.utils import timezone

from powercrud_dashboard.dashboard.views import failures as failures_page
from powercrud_dashboard.models import TaskEvent, TaskRecord, TaskStatus

pytestmark = pytest.mark.django_db

LIST = "/admin/powercrud_dashboard/taskrecord/"
FAILURES = f"{LIST}failures/"


def fail(manager, record_of, name: str, error: str, *, func: str = "tests.testapp.tasks.add", ago=timedelta(), **more):
    """Record a failure that has ended so long ago."""
    manager.launch_async_task("tests.testapp.tasks.add", 1, task_key=name, sync=True, **more)
    record = record_of(name)
    record.status = TaskStatus.PENDING
    record.func, record.label = func, func
    record.save()
    manager.async_task_lifecycle("fail", name, error=error, exception_class="builtins.ValueError")
    record.refresh_from_db()
    record.finished_at = timezone.now() - ago
    record.save()
    return record


@pytest.fixture
def failures(manager, record_of):
    return [
        *(fail(manager, record_of, f"price-{number}", f"row {number} has no price") for number in range(3)),
        fail(manager, record_of, "other", "row 7 has no price", func="billing.tasks.close_year"),
        fail(manager, record_of, "old", "row 8 has no price", ago=timedelta(days=3)),
    ]


def rows_of(page: str) -> list[list[str]]:
    """Return the text of each cell of the table."""
    body = page[page.index("<tbody>") : page.index("</tbody>")].replace("<wbr>", "")
    return [
        [re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", cell)).strip() for cell in re.findall(r"<td.*?</td>", row, re.S)]
        for row in re.findall(r"<tr.*?</tr>", body, re.S)
    ]


def form_of(page: str, number: int) -> dict[str, str]:
    """Return the fields of the form in that row."""
    forms = re.findall(r"<form method=\"post\" action=\"[^\"]*bulk/\".*?</form>", page, re.S)
    fields = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', forms[number])
    return {name: value.replace("&amp;", "&") for name, value in fields}


def test_all_causes_are_on_one_page(boss, manager, record_of):
    for number in range(30):
        fail(manager, record_of, f"task-{number}", "it broke", func=f"billing.tasks.step_{number}")
    page = boss.get(FAILURES).content.decode()
    assert len(rows_of(page)) == 30
    assert "pcrud-pages" not in page


def test_failures_of_one_cause_are_one_row(client_of, superuser, failures):
    page = client_of(superuser).get(FAILURES).content.decode()
    rows = rows_of(page)
    assert [(row[0].split(" builtins")[0], row[1], row[2]) for row in rows] == [
        ("ValueError: row … has no price", "tests.testapp.tasks.add What changed?", "3"),
        ("ValueError: row … has no price", "billing.tasks.close_year What changed?", "1"),
    ]
    assert f'href="{LIST}{failures[2].pk}/change/"' in page


@pytest.mark.parametrize(("within", "counts"), [("1h", ["3", "1"]), ("7d", ["4", "1"]), ("nonsense", ["3", "1"])])
def test_the_window_is_chosen(client_of, superuser, failures, within, counts):
    page = client_of(superuser).get(FAILURES, {"within": within}).content.decode()
    assert [row[2] for row in rows_of(page)] == counts


def test_one_function_alone(client_of, superuser, failures):
    page = client_of(superuser).get(FAILURES, {"function": "billing.tasks.close_year"}).content.decode()
    assert [row[1] for row in rows_of(page)] == ["billing.tasks.close_year What changed?"]
    assert f'href="{FAILURES}?"' in page or f'href="{FAILURES}"' in page


@pytest.mark.parametrize(("sort", "first"), [("func", "1"), ("-count", "3"), ("count", "1")])
def test_groups_are_sorted(client_of, superuser, failures, sort, first):
    page = client_of(superuser).get(FAILURES, {"sort": sort}).content.decode()
    assert rows_of(page)[0][2] == first


def test_a_group_leads_to_its_tasks(client_of, superuser, failures):
    client = client_of(superuser)
    page = client.get(FAILURES).content.decode()
    query = form_of(page, 0)["filter"]
    shown = client.get(f"{LIST}?{query}").content.decode()
    assert [f'id="pcrud-task-{record.pk}"' in shown for record in failures] == [True, True, True, False, False]


def test_a_whole_group_is_retried_after_a_question(client_of, superuser, failures):
    client = client_of(superuser)
    fields = form_of(client.get(FAILURES, {"within": "1h"}).content.decode(), 0)
    question = client.post(f"{LIST}bulk/", {**fields, "action": "retry"})
    assert "3 tasks" in question.content.decode()
    answered = client.post(f"{LIST}bulk/", {**form_of_question(question), "action": "retry"})
    assert answered["Location"] == f"{FAILURES}?within=1h"
    assert TaskRecord.objects.filter(retry_of__in=failures[:3]).count() == 3
    assert TaskRecord.objects.filter(retry_of__isnull=False).count() == 3


def test_a_whole_group_is_deleted_and_no_more(client_of, superuser, failures):
    client = client_of(superuser)
    fields = form_of(client.get(FAILURES).content.decode(), 1)
    question = client.post(f"{LIST}bulk/", {**fields, "action": "delete"})
    client.post(f"{LIST}bulk/", {**form_of_question(question), "action": "delete"})
    assert set(TaskRecord.objects.all()) == {*failures[:3], failures[4]}


def form_of_question(response) -> dict[str, str]:
    fields = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', response.content.decode())
    return {name: value.replace("&amp;", "&") for name, value in fields if name != "csrfmiddlewaretoken"}


def test_a_group_without_a_pattern_has_no_buttons_as_nothing_would_find_it(client_of, superuser, failures):
    TaskRecord.objects.filter(task_name="other").update(error_pattern="")
    page = client_of(superuser).get(FAILURES).content.decode()
    assert rows_of(page)[1][0].startswith("(no message)")
    assert rows_of(page)[1][5] == ""
    assert rows_of(page)[0][5] == "Retry all Dismiss all Delete all"


def test_failures_without_a_word_are_a_group_by_their_reason(manager, record_of):
    manager.launch_async_task("tests.testapp.tasks.add", 1, task_key="silent")
    manager.async_task_lifecycle("fail", "silent", reason="worker_lost")
    assert record_of("silent").error_pattern == "worker_lost"


def test_buttons_are_for_who_may_use_them(client_of, make_user, failures):
    viewer = make_user("viewer", "view_taskrecord")
    assert "Retry all" not in client_of(viewer).get(FAILURES).content.decode()
    retrier = make_user("retrier", "view_taskrecord", "retry_taskrecord")
    page = client_of(retrier).get(FAILURES).content.decode()
    assert "Retry all" in page
    assert "Delete all" not in page


def test_staff_see_the_failures_of_their_own_tasks(client_of, make_user, failures, manager, record_of):
    anna = make_user("anna")
    fail(manager, record_of, "annas", "row 9 has no price", user=anna)
    assert [row[2] for row in rows_of(client_of(anna).get(FAILURES).content.decode())] == ["1"]


def test_an_empty_page_says_so(client_of, superuser):
    client = client_of(superuser)
    assert "No failure is open in this period." in client.get(FAILURES).content.decode()
    assert "No such failure in this period." in client.get(FAILURES, {"resolution": "dismissed"}).content.decode()
    assert "No task failed in this period." in client.get(FAILURES, {"resolution": "all"}).content.decode()


def test_a_page_that_leaves_failures_out_says_so(client_of, superuser, failures, monkeypatch):
    client = client_of(superuser)
    assert "too many failures" not in client.get(FAILURES).content.decode()
    monkeypatch.setattr(failures_page, "MAX_FAILURES", 2)
    page = client.get(FAILURES).content.decode()
    assert "too many failures" in page
    assert sum(int(row[2]) for row in rows_of(page)) == 2


def test_an_unchanged_refresh_has_no_body(client_of, superuser, failures, django_assert_max_num_queries):
    client = client_of(superuser)
    shown = client.get(FAILURES)
    headers = {"hx-request": "true", "x-pcrud-state": shown.context["version"]}
    # Session and user, and one for the news.
    with django_assert_max_num_queries(3):
        assert client.get(FAILURES, headers=headers).status_code == 204
    TaskEvent.objects.create(record=failures[0], event="log")
    assert client.get(FAILURES, headers=headers).status_code == 200


def test_the_way_back_stays_on_this_site(client_of, superuser, failures):
    answer = client_of(superuser).post(f"{LIST}bulk/", {"action": "retry", "next": "https://elsewhere.example/"})
    assert answer["Location"] == LIST
