"""The log of a task on its pages."""

from __future__ import annotations

import re

import pytest

from powercrud_dashboard.models import TaskLogLine, TaskRecord
from tests.testapp import chatty, tasks
from tests.workers import claimed_elsewhere

pytestmark = [pytest.mark.django_db, pytest.mark.markup]

LIST = "/admin/powercrud_dashboard/taskrecord/"


@pytest.fixture
def ended(manager, record_of):
    return record_of(manager.launch_async_task(chatty.log_in_levels, sync=True))


@pytest.fixture
def running(manager, record_of):
    name = manager.launch_async_task(tasks.add, 1)
    claimed_elsewhere(name)
    TaskRecord.objects.filter(task_name=name).update(status="in_progress")
    return record_of(name)


def add_lines(record: TaskRecord, *texts: str, **fields: object) -> list[TaskLogLine]:
    return [TaskLogLine.objects.create(record=record, message=text, **{"level": 20, **fields}) for text in texts]


def shown(response: object) -> list[str]:
    return re.findall(r'<span class="pcrud-log-text">([^<]*)</span>', response.content.decode())


def log_of(record: TaskRecord) -> str:
    return f"{LIST}{record.pk}/log/"


def test_the_page_of_a_task_shows_the_newest_lines(boss, ended):
    page = boss.get(f"{LIST}{ended.pk}/change/")
    assert [text.splitlines()[0] for text in shown(page)] == [
        "invoice 12 sent",
        "a warning of its own",
        "Sent.",
        "invoice 13 failed",
    ]
    assert "data-pcrud-tail" not in page.content.decode()


def test_a_task_that_has_logged_nothing_has_no_section_for_it(boss, manager, record_of):
    record = record_of(manager.launch_async_task(tasks.add, 1, sync=True))
    assert "pcrud-log-title" not in boss.get(f"{LIST}{record.pk}/change/").content.decode()
    assert "has logged nothing" in boss.get(log_of(record)).content.decode()


@pytest.mark.parametrize(
    ("parameters", "found"),
    [
        ({"level": "warning"}, ["a warning of its own", "invoice 13 failed"]),
        ({"level": "error"}, ["invoice 13 failed"]),
        ({"q": "INVOICE"}, ["invoice 12 sent", "invoice 13 failed"]),
        ({"q": "chatty.own"}, ["a warning of its own"]),
        ({"q": "LookupError"}, ["invoice 13 failed"]),
        ({"level": "warning", "q": "own"}, ["a warning of its own"]),
        ({"q": "%"}, []),
        ({"level": "odd"}, ["invoice 12 sent", "a warning of its own", "Sent.", "invoice 13 failed"]),
    ],
)
def test_it_is_filtered_by_level_and_text(boss, ended, parameters, found):
    assert [text.splitlines()[0] for text in shown(boss.get(log_of(ended), parameters))] == found


def test_a_line_has_an_address_at_which_it_is_shown(boss, running):
    lines = add_lines(running, *(f"line {number}" for number in range(1_200)))
    newest = boss.get(log_of(running))
    assert shown(newest)[0] == "line 700"
    address = f"{log_of(running)}?line={lines[300].pk}"
    assert f'href="{log_of(running)}?line={lines[1_000].pk}#line-{lines[1_000].pk}"' in newest.content.decode()
    page = boss.get(address)
    assert f'id="line-{lines[300].pk}"' in page.content.decode()
    assert {"line 290", "line 300", "line 310"} <= set(shown(page))
    # It is no page to which lines are added.
    assert "data-pcrud-tail" not in page.content.decode()
    assert "Newest lines" in page.content.decode()


def test_earlier_lines_are_a_click_away(boss, running):
    add_lines(running, *(f"line {number}" for number in range(700)))
    page = boss.get(log_of(running)).content.decode()
    earlier = re.search(r'href="([^"]*before=[^"]*)"', page)[1]
    assert shown(boss.get(earlier.replace("&amp;", "&"))) == [f"line {number}" for number in range(200)]


def test_new_lines_are_added_while_the_task_runs(boss, running):
    add_lines(running, "one", "two")
    page = boss.get(f"{LIST}{running.pk}/change/").content.decode()
    tail = re.search(r'hx-get="([^"]*after=[^"]*)"', page)[1].replace("&amp;", "&")
    assert boss.get(tail, headers={"HX-Request": "true"}).status_code == 204
    add_lines(running, "three")
    answer = boss.get(tail, headers={"HX-Request": "true"})
    assert shown(answer) == ["three"]
    tail = re.search(r'hx-get="([^"]*after=[^"]*)"', answer.content.decode())[1].replace("&amp;", "&")
    add_lines(running, "the last")
    TaskRecord.objects.update(status="success")
    answer = boss.get(tail, headers={"HX-Request": "true"})
    assert shown(answer) == ["the last"]
    assert "data-pcrud-tail" not in answer.content.decode()


def test_the_tail_keeps_the_filters(boss, running):
    add_lines(running, "one")
    page = boss.get(log_of(running), {"level": "warning", "q": "x"}).content.decode()
    tail = re.search(r'hx-get="([^"]*after=[^"]*|[^"]*level=warning[^"]*)"', page)[1].replace("&amp;", "&")
    add_lines(running, "xx")
    assert boss.get(tail, headers={"HX-Request": "true"}).status_code == 204
    add_lines(running, "xxx", level=30)
    assert shown(boss.get(tail, headers={"HX-Request": "true"})) == ["xxx"]


def test_a_refresh_of_the_task_leaves_the_log_alone(boss, running):
    add_lines(running, "one")
    assert shown(boss.get(f"{LIST}{running.pk}/change/", headers={"HX-Request": "true"})) == []


def test_what_is_left_out_is_told(boss, ended):
    add_lines(ended, "", left_out=1_234, level=0)
    assert "1,234 lines are left out" in boss.get(log_of(ended)).content.decode().replace("1234", "1,234")


def test_messages_are_no_markup(boss, ended):
    add_lines(ended, "<script>alert(1)</script>", logger="<b>")
    page = boss.get(log_of(ended)).content.decode()
    assert "<script>alert" not in page
    assert "&lt;b&gt;" in page


def test_it_is_downloaded_as_text(boss, ended):
    add_lines(ended, "", left_out=7, level=0)
    answer = boss.get(log_of(ended), {"download": "1"})
    lines = answer.content.decode().splitlines()
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert answer.headers["Content-Disposition"] == f'attachment; filename="task-{ended.pk}.log"'
    assert re.match(r"\d{4}-\d\d-\d\dT[^ ]* INFO     tests.testapp.chatty invoice 12 sent", lines[0])
    assert lines[-1] == "... 7 lines are left out ..."


def test_only_those_see_it_who_see_the_task(client_of, make_user, ended):
    assert client_of(make_user("other")).get(log_of(ended)).status_code == 404
    assert client_of(make_user("reader", "view_taskrecord")).get(log_of(ended)).status_code == 200


@pytest.mark.parametrize("value", ["x", "9" * 5_000, "-1", "٣", ""])
@pytest.mark.parametrize("name", ["line", "before", "after"])
def test_odd_keys_in_an_address_are_none(boss, ended, name, value):
    assert boss.get(log_of(ended), {name: value}).status_code == 200


def test_it_takes_few_queries(boss, running, django_assert_max_num_queries):
    add_lines(running, *map(str, range(300)))
    with django_assert_max_num_queries(5):
        boss.get(log_of(running), {"after": "1"}, headers={"HX-Request": "true"})
