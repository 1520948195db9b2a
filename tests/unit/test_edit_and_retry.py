from __future__ import annotations

import html
import json
import re

import pytest
from django.test import override_settings

from powercrud_dashboard.dashboard.formatting import mask
from powercrud_dashboard.engine.retry import editable_arguments
from powercrud_dashboard.exceptions import ArgumentsNotEditable
from powercrud_dashboard.models import ActiveTask, TaskRecord
from powercrud_dashboard.text import MAX_DEPTH
from tests.clicks import choose, last, said
from tests.testapp import tasks
from tests.testapp.models import Project

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
    assert "Its object and locks do not change." in shown


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
    assert event.payload["changed_arguments"]["shop"] == {"before": "shop", "after": "other"}
    assert event.payload["changed_arguments"]["limit"] == {"before": 5}
    assert event.payload["changed_arguments"]["extra"] == {"after": 1}
    page = client_of(editor).get(f"{LIST}{ended.pk}/change/").content.decode()
    assert "Argument limit changed" in page


def test_a_changed_argument_may_have_the_name_of_a_method(client_of, superuser, manager, record_of):
    record = record_of(manager.launch_async_task("tests.testapp.tasks.count_items", items=[1], sync=True))
    manager.retry_task(record.task_name, task_kwargs={"items": [1, 2]})
    page = client_of(superuser).get(f"{LIST}{record.pk}/change/")
    assert "Argument items changed" in page.content.decode()


def test_a_plain_retry_records_no_change(manager, ended, editor):
    manager.retry_task(ended.task_name, user=editor)
    assert "changed_arguments" not in ended.events.get(event="retry").payload


def nested_json(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"task_args": "[1,"}, "Enter a valid JSON."),
        ({"task_args": '{"a": 1}'}, "Enter a JSON list"),
        ({"task_kwargs": "[1]"}, "Enter a JSON object"),
        ({"task_args": "[]", "task_kwargs": "{}"}, "missing a required argument"),
        ({"task_args": '["********************", 2]', "task_kwargs": "{}"}, "Enter the value itself"),
        ({"task_args": '["shop", [], 3, 4, 5]'}, "too many positional arguments"),
        ({"task_args": f"[{'1' * 5_000}]"}, "Enter a valid JSON."),
        ({"task_args": '["\\ud800"]'}, "Enter a valid JSON."),
        ({"task_args": "[NaN]"}, "Enter a valid JSON."),
        ({"task_args": nested_json(200_000)}, "Enter a valid JSON."),
        ({"task_args": nested_json(MAX_DEPTH + 1)}, "at most 50 levels deep"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_input_is_told_and_kept_and_nothing_is_launched(client_of, editor, ended, fields, complaint):
    page = client_of(editor).post(edit_url(ended), {"task_args": "[]", "task_kwargs": "{}", **fields})
    assert page.status_code == 200
    assert complaint in page.content.decode()
    assert page.context["form"]["task_args"].value() == fields.get("task_args", "[]")
    assert TaskRecord.objects.count() == 1


def test_nested_arguments_are_accepted(client_of, editor, ended):
    fields = {"task_args": f'["shop", {nested_json(MAX_DEPTH - 1)}]', "task_kwargs": "{}"}
    client_of(editor).post(edit_url(ended), fields)
    assert ended.retries.exists()


# django-q2 fails to copy some of them into its own row, which would spoil a transaction around the test.
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("depth", [100, 400, 900, 930, 960, 3_000])
def test_a_deeply_nested_result_is_shown_without_its_secrets(client_of, superuser, manager, record_of, depth):
    record = record_of(manager.launch_async_task("tests.testapp.tasks.nested", depth, {"password": "hush"}, sync=True))
    for page in ("change", "raw"):
        answer = client_of(superuser).get(f"{LIST}{record.pk}/{page}/")
        assert answer.status_code == 200
        assert b"hush" not in answer.content


def test_arguments_that_are_cut_off_for_display_are_not_saved(client_of, editor, manager, record_of):
    record = record_of(manager.launch_async_task(CONNECT, "shop", tasks.nested(300, 1), sync=True))
    form = client_of(editor).get(edit_url(record)).context["form"]
    shown = {name: form[name].field.prepare_value(form[name].value()) for name in ("task_args", "task_kwargs")}
    client_of(editor).post(edit_url(record), shown)
    assert not record.retries.exists()


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


ACCOUNTS = [{"name": "a", "token": "of a"}, {"name": "b", "token": "of b"}]
MASKED = [{"name": "a", "token": mask()}, {"name": "b", "token": mask()}]


@pytest.mark.parametrize(
    ("edited", "kept"),
    [
        (MASKED[1:], ACCOUNTS[1:]),
        (MASKED[::-1], ACCOUNTS[::-1]),
        (["new", *MASKED], ["new", *ACCOUNTS]),
        ([{**MASKED[0], "limit": 1}, MASKED[1]], [{**ACCOUNTS[0], "limit": 1}, ACCOUNTS[1]]),
        ([{**MASKED[1], "limit": 1}], None),
        ([{**MASKED[1], "limit": 1}, MASKED[0]], None),
        ([mask()], None),
    ],
)
def test_a_secret_gets_into_no_other_item_of_a_list(client_of, editor, manager, record_of, edited, kept):
    record = record_of(manager.launch_async_task(CONNECT, "shop", ACCOUNTS, sync=True))
    data = {"task_args": json.dumps(["shop", edited]), "task_kwargs": "{}"}
    answer = client_of(editor).post(edit_url(record), data)
    if kept is None:
        assert "was not masked before, or not in this place" in answer.content.decode()
        assert not record.retries.exists()
    else:
        assert editable_arguments(record.retries.get())[0] == ["shop", kept]


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
    with pytest.raises(ArgumentsNotEditable):
        editable_arguments(record)
    answer = client_of(editor).get(edit_url(record), follow=True)
    assert answer.redirect_chain == [(f"{LIST}{record.pk}/change/", 302)]
    assert said(answer) == [
        f"Task {record.task_name} can't be retried with other arguments, because its arguments are not plain JSON. "
        "Retry it without changes."
    ]


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


def test_raw_data_of_an_active_task_leaves_out_the_signed_arguments(client_of, superuser, manager, record_of):
    record = record_of(manager.launch_async_task(CONNECT, "shop", [1], password="secret", limit=5, retry=1))
    document = json.loads(client_of(superuser).get(f"{LIST}{record.pk}/raw/").content)
    assert document["active"]["state"] == "pending"
    assert ActiveTask.objects.get().payload
    assert "payload" not in document["active"]


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
        assert [record for record, *__ in page.context["retry_chain"]] == records
        assert "(this task)" in page.content.decode()


def test_a_chain_whose_first_try_is_gone_shows_the_neighbours(client_of, superuser, manager, ended):
    second = manager.retry_task(ended.task_name)
    manager.cancel_task(second)
    third = manager.retry_task(second)
    ended.delete()
    page = client_of(superuser).get(f"{LIST}{TaskRecord.objects.get(task_name=third).pk}/change/")
    assert [record.task_name for record, *__ in page.context["retry_chain"]] == [second, third]


def test_a_task_that_was_never_retried_shows_no_chain(client_of, superuser, ended):
    assert client_of(superuser).get(f"{LIST}{ended.pk}/change/").context["retry_chain"] == []


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


@pytest.fixture
def renamed(boss, make_projects, at_once) -> TaskRecord:
    """An admin action with parameters, which the superuser has launched."""
    fields = {"pcrud-confirmed": "1", "pcrud-prefix": "old "}
    choose(boss, "rename", make_projects(1), **fields)
    return last()


def test_of_an_action_only_the_parameters_are_editable(client_of, editor, renamed):
    __, kwargs = shown_arguments(client_of(editor).get(edit_url(renamed)))
    assert list(json.loads(kwargs)) == ["post"]


def test_an_edited_action_runs_as_who_has_edited_it(client_of, editor, make_user, renamed, settings):
    forged = {"post": {"pcrud-prefix": ["new "]}, "user_pk": str(renamed.user_id), "action_name": "archive"}
    values = {"task_args": "[]", "task_kwargs": json.dumps(forged)}
    client_of(editor).post(edit_url(renamed), values)
    # They may edit and retry tasks, but not change projects.
    assert "lost the permission" in renamed.retries.get().error
    assert Project.objects.get().name == "old project 0"
    permissions = ["view_taskrecord", "retry_taskrecord", "change_taskrecord", "change_project", "view_project"]
    client_of(make_user("second", *permissions)).post(edit_url(renamed), values)
    assert renamed.retries.latest("pk").status == "success"
    assert Project.objects.get().name == "new old project 0"
    assert not Project.objects.get().archived
