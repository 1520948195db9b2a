from __future__ import annotations

import html
import json
import re

import pytest
from django.test import override_settings

from powercrud_dashboard.exceptions import TaskNotRetryable
from powercrud_dashboard.models import TaskRecord
from powercrud_dashboard.retrying import editable_arguments
from tests.testapp import tasks

pytestmark = pytest.mark.django_db

LIST = "/admin/powercrud_dashboard/taskrecord/"
CONNECT = "tests.testapp.tasks.connect"


@pytest.fixture
def ended(manager, record_of) -> TaskRecord:
    name = manager.launch_async_task(
        CONNECT,
        "shop",
        [1, {"token": "deep secret", "name": "eu"}],
        password="very secret",
        limit=5,
        sync=True,
        conflict_ids={"testapp.Project": {1}},
    )
    return record_of(name)


@pytest.fixture
def editor(make_user):
    return make_user("editor", "view_taskrecord", "retry_taskrecord", "change_taskrecord")


def edit_url(record: TaskRecord) -> str:
    return f"{LIST}{record.pk}/edit/"


def shown_arguments(page) -> list[str]:
    """Return what the two text areas hold."""
    areas = re.findall(r"<textarea[^>]*>(.*?)</textarea>", page.content.decode(), re.DOTALL)
    return [html.unescape(area) for area in areas]


def test_the_form_shows_the_arguments_but_no_secrets(client_of, editor, ended):
    page = client_of(editor).get(edit_url(ended))
    shown = page.content.decode()
    assert "very secret" not in shown
    assert "deep secret" not in shown
    assert "&quot;limit&quot;: 5" in shown
    assert "The object that it is for and locks stays the same." in shown


def test_the_task_runs_again_with_other_arguments_and_the_same_secrets(client_of, editor, ended, manager):
    client = client_of(editor)
    args, kwargs = shown_arguments(client.get(edit_url(ended)))
    kwargs = json.dumps({**json.loads(kwargs), "limit": 6})
    answer = client.post(edit_url(ended), {"task_args": args, "task_kwargs": kwargs})
    retry = ended.retries.get()
    assert answer["Location"] == f"{LIST}{retry.pk}/change/"
    assert editable_arguments(retry) == (
        ["shop", [1, {"token": "deep secret", "name": "eu"}]],
        {"password": "very secret", "limit": 6},
    )
    assert retry.conflict_ids == ended.conflict_ids


def test_the_change_is_recorded_with_who_made_it(client_of, editor, ended):
    client_of(editor).post(
        edit_url(ended),
        {"task_args": '["other", [1, {"token": "new", "name": "eu"}]]', "task_kwargs": '{"password": "p", "extra": 1}'},
    )
    event = ended.events.get(event="retry")
    assert event.actor == editor
    assert event.payload["changed_arguments"]["1"] == {"before": "shop", "after": "other"}
    assert event.payload["changed_arguments"]["limit"] == {"before": 5}
    assert event.payload["changed_arguments"]["extra"] == {"after": 1}
    page = client_of(editor).get(f"{LIST}{ended.pk}/change/").content.decode()
    assert "Argument limit changed" in page


def test_a_plain_retry_records_no_change(manager, ended, editor):
    manager.retry_task(ended.task_name, user=editor)
    assert "changed_arguments" not in ended.events.get(event="retry").payload


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"task_args": "[1,"}, "Enter a valid JSON."),
        ({"task_args": '{"a": 1}'}, "Give a JSON list"),
        ({"task_kwargs": "[1]"}, "Give a JSON object"),
        ({"task_args": "[]", "task_kwargs": "{}"}, "missing a required argument"),
        ({"task_args": '["********************", 2]', "task_kwargs": "{}"}, "give the value itself"),
        ({"task_args": '["shop", [], 3, 4, 5]'}, "too many positional arguments"),
    ],
)
def test_bad_input_is_told_and_kept_and_nothing_is_launched(client_of, editor, ended, fields, complaint):
    page = client_of(editor).post(edit_url(ended), {"task_args": "[]", "task_kwargs": "{}", **fields})
    assert page.status_code == 200
    assert complaint in page.content.decode()
    assert page.context["form"].data["task_args"] == fields.get("task_args", "[]")
    assert TaskRecord.objects.count() == 1


def test_a_conflict_is_told_in_the_form(client_of, editor, ended, manager):
    manager.add_conflict_ids("somebody", {"testapp.Project": {1}})
    page = client_of(editor).post(edit_url(ended), {"task_args": '["a", []]', "task_kwargs": "{}"})
    assert "somebody" in page.content.decode()
    assert TaskRecord.objects.count() == 1


def test_fewer_and_more_items_than_before_keep_their_own_secrets(client_of, editor, ended):
    client_of(editor).post(
        edit_url(ended),
        {"task_args": '["a", [1, {"token": "********************"}, {"token": "another"}]]', "task_kwargs": "{}"},
    )
    args, kwargs = editable_arguments(ended.retries.get())
    assert args == ["a", [1, {"token": "deep secret"}, {"token": "another"}]]
    assert kwargs == {}


@pytest.mark.parametrize("permissions", [["retry_taskrecord"], ["change_taskrecord"]])
def test_it_takes_both_permissions(client_of, make_user, ended, permissions):
    client = client_of(make_user("half", "view_taskrecord", *permissions))
    assert client.get(edit_url(ended)).status_code == 403
    assert client.post(edit_url(ended), {"task_args": '["a", []]', "task_kwargs": "{}"}).status_code == 403
    assert edit_url(ended) not in client.get(f"{LIST}{ended.pk}/change/").content.decode()


def test_the_task_page_leads_there(client_of, editor, ended):
    assert edit_url(ended) in client_of(editor).get(f"{LIST}{ended.pk}/change/").content.decode()


def test_a_task_that_has_not_ended_is_not_edited(client_of, editor, manager, record_of):
    record = record_of(manager.launch_async_task(tasks.add, 1))
    answer = client_of(editor).post(edit_url(record), {"task_args": "[2]"}, follow=True)
    assert "has not ended yet" in answer.content.decode()
    assert TaskRecord.objects.count() == 1


def test_other_peoples_tasks_are_not_there(client_of, make_user, ended):
    stranger = make_user("stranger", "retry_taskrecord", "change_taskrecord")
    assert client_of(stranger).get(edit_url(ended)).status_code == 404
    assert client_of(stranger).get(f"{LIST}{ended.pk}/raw/").status_code == 404


@pytest.mark.parametrize("argument", [(1, 2), {1: "a"}, {1, 2}, float("nan"), b"bytes"])
def test_arguments_beyond_json_are_retried_as_they_are_or_not_at_all(client_of, editor, manager, record_of, argument):
    record = record_of(manager.launch_async_task(CONNECT, "shop", argument, sync=True))
    with pytest.raises(TaskNotRetryable, match="more than plain JSON"):
        editable_arguments(record)
    answer = client_of(editor).get(edit_url(record), follow=True)
    assert answer.redirect_chain == [(f"{LIST}{record.pk}/change/", 302)]
    assert "more than plain JSON" in answer.content.decode()


def test_raw_data_is_all_there_is_with_secrets_masked(client_of, superuser, ended):
    page = client_of(superuser).get(f"{LIST}{ended.pk}/raw/")
    document = json.loads(page.content)
    assert page["Content-Type"].startswith("application/json")
    assert document["record"]["task_kwargs"] == {"password": "********************", "limit": 5}
    assert [event["event"] for event in document["events"]] == ["create", "start", "complete", "cleanup"]
    assert document["objects"] == [
        {"model_label": "testapp.project", "object_id": "1", "text": "", "outcome": "done", "error": ""}
    ]
    assert document["active"] is None
    assert b"secret" not in page.content


@override_settings(DEFAULT_EXCEPTION_REPORTER_FILTER="tests.testapp.reporter_filter.HidesLimits")
def test_a_projects_own_filter_is_asked(client_of, superuser, ended):
    from django.views.debug import get_default_exception_reporter_filter

    get_default_exception_reporter_filter.cache_clear()
    try:
        document = json.loads(client_of(superuser).get(f"{LIST}{ended.pk}/raw/").content)
    finally:
        get_default_exception_reporter_filter.cache_clear()
    assert document["record"]["task_kwargs"]["limit"] == "hidden"


def test_the_whole_chain_of_retries_is_shown_on_each_of_its_pages(client_of, superuser, manager, ended, record_of):
    names = [ended.task_name]
    for _try in range(3):
        name = manager.retry_task(names[-1])
        manager.cancel_task(name)
        names.append(name)
    records = [record_of(name) for name in names]
    for shown in (records[0], records[2]):
        page = client_of(superuser).get(f"{LIST}{shown.pk}/change/")
        assert [record for record, __ in page.context["tries"]] == records
        assert "(this task)" in page.content.decode()


def test_a_chain_whose_first_try_is_gone_shows_the_neighbours(client_of, superuser, manager, ended):
    second = manager.retry_task(ended.task_name)
    manager.cancel_task(second)
    third = manager.retry_task(second)
    ended.delete()
    page = client_of(superuser).get(f"{LIST}{TaskRecord.objects.get(task_name=third).pk}/change/")
    assert [record.task_name for record, __ in page.context["tries"]] == [second, third]


def test_a_task_that_was_never_retried_shows_no_chain(client_of, superuser, ended):
    assert client_of(superuser).get(f"{LIST}{ended.pk}/change/").context["tries"] == []


def test_a_task_is_deleted_from_its_page_after_a_question(client_of, make_user, ended):
    deleter = make_user("deleter", "view_taskrecord", "delete_taskrecord")
    client = client_of(deleter)
    assert f'value="delete:{ended.pk}"' in client.get(f"{LIST}{ended.pk}/change/").content.decode()
    question = client.post(f"{LIST}bulk/", {"row": f"delete:{ended.pk}"})
    assert "1 task" in question.content.decode()
    client.post(f"{LIST}bulk/", {"action": "delete", "selected": ended.pk, "confirmed": "yes"})
    assert not TaskRecord.objects.exists()


def test_no_delete_button_for_a_task_that_has_not_ended(client_of, superuser, manager, record_of):
    record = record_of(manager.launch_async_task(tasks.add, 1))
    assert "delete:" not in client_of(superuser).get(f"{LIST}{record.pk}/change/").content.decode()
