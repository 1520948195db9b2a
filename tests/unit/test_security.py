"""What strangers, forged requests, hostile texts and sheer size can't do."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass, field
from datetime import date
from typing import NamedTuple

import pytest
from django.contrib.auth.models import User
from django.urls import reverse
from django_q.models import OrmQ

from powercrud_dashboard.dashboard.formatting import mask
from powercrud_dashboard.engine.spec import TaskSpec
from powercrud_dashboard.exceptions import TaskNotRetryable, UnreadableSpec
from powercrud_dashboard.models import ActiveTask, TaskRecord
from powercrud_dashboard.models.changes import RecordChange
from powercrud_dashboard.text import CUT_MARK, MESSAGE
from tests.testapp import tasks
from tests.testapp.models import Project
from tests.unit.test_access import ACCESS, PREFIX, address, things  # noqa: F401
from tests.workers import claimed_elsewhere

pytestmark = pytest.mark.django_db

TASKS = "/admin/powercrud_dashboard/taskrecord/"
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"


# Requests


@pytest.mark.parametrize("elsewhere", ["https://evil.example/", "//evil.example/", "javascript:alert(1)", "\\\\evil"])
@pytest.mark.parametrize("name", ["cancel", "retry", "refresh", "run_now"])
def test_no_redirect_leads_elsewhere(boss, things, name, elsewhere):  # noqa: F811
    answer = boss.post(address(name, things), {"next": elsewhere, "interval": "2"})
    assert answer.status_code == 302
    assert answer.url.startswith("/admin/")


# Texts


@pytest.fixture
def hostile(manager, record_of, make_user) -> TaskRecord:
    """A task of which everything that can be a text is a hostile one, and others that run and wait."""
    user = make_user("user")
    User.objects.filter(pk=user.pk).update(username=HOSTILE)
    user.refresh_from_db()
    project = Project.objects.create(name=HOSTILE)
    options = {"user": user, "label": HOSTILE, "group": HOSTILE[:90], "affected_objects": [HOSTILE]}
    locked = {"conflict_ids": {HOSTILE: {HOSTILE}, "testapp.Project": {project.pk}}}
    name = manager.launch_async_task(tasks.echo, task_kwargs={HOSTILE: HOSTILE}, **options)
    manager.update_progress(name, HOSTILE)
    manager.async_task_lifecycle("log", name, message=HOSTILE, level=HOSTILE)
    manager.async_task_lifecycle("complete", name, result={HOSTILE: [HOSTILE]})
    failed = manager.launch_async_task(tasks.add, HOSTILE, **options)
    manager.async_task_lifecycle("fail", failed, error=HOSTILE, traceback=HOSTILE, exception_class=HOSTILE)
    running = manager.launch_async_task(tasks.add, 1, **options, **locked)
    claimed_elsewhere(running, host=HOSTILE[:50], pid=1)
    TaskRecord.objects.change(running, RecordChange.started(attempt=1))
    manager.update_progress(running, f"{HOSTILE} 1/2")
    return record_of(name)


def pages(record: TaskRecord) -> list[str]:
    project = Project.objects.get()
    return [
        "/admin/",
        TASKS,
        f"{TASKS}?q=%3Cscript%3Ealert(1)%3C/script%3E&task=%22%3E%3Cscript%3Ealert(1)&user=%3Cscript%3E",
        f"{TASKS}failures/",
        f"{TASKS}locks/",
        f"{TASKS}cluster/",
        *(f"{TASKS}{pk}/change/" for pk in TaskRecord.objects.values_list("pk", flat=True)),
        f"{TASKS}{record.pk}/edit/",
        reverse(f"admin:{PREFIX}group", args=[HOSTILE[:90]]),
        "/admin/testapp/project/",
        f"/admin/testapp/project/{project.pk}/change/",
        f"/admin/testapp/project/{project.pk}/history/",
    ]


def test_no_text_of_a_task_becomes_markup(boss, hostile):
    for page in pages(hostile):
        answer = boss.get(page)
        assert answer.status_code == 200, page
        content = answer.content.decode()
        assert "<script>alert" not in content, page
        assert "<img src=x" not in content, page
    # The texts are there, as texts.
    assert "&lt;script&gt;alert(1)" in boss.get(TASKS).content.decode()


def test_questions_and_messages_quote_it_as_well(boss, hostile):
    failed = TaskRecord.objects.failed().get()
    asked = boss.post(f"{TASKS}bulk/", {"action": "retry", "selected": [failed.pk]})
    refused = boss.post(
        "/admin/testapp/project/",
        {"action": "archive", "_selected_action": [Project.objects.get().pk]},
        follow=True,
    )
    assert "was not launched" in refused.content.decode()
    for answer in (asked, refused):
        assert "<script>alert" not in answer.content.decode()


def test_raw_data_is_no_page(boss, hostile):
    answer = boss.get(f"{TASKS}{hostile.pk}/raw/")
    assert answer["Content-Type"].startswith("application/json")
    assert answer["X-Content-Type-Options"] == "nosniff"


# Secrets


@pytest.mark.django_db(transaction=True)
def test_secrets_are_on_no_page(boss, manager, record_of):
    secret = "correct horse battery staple"
    name = manager.launch_async_task(tasks.echo, task_kwargs={"password": secret, "nested": {"api_key": secret}})
    manager.async_task_lifecycle("complete", name, result={"token": secret, "list": [{"secret": secret}]})
    failed = manager.launch_async_task(tasks.fail_with_a_secret, secret, sync=False)
    message = OrmQ.objects.order_by("pk").last().task
    with pytest.raises(ValueError, match="no details"):
        message["func"](*message["args"], **message["kwargs"])
    for record in (record_of(name), record_of(failed)):
        for page in (f"{TASKS}{record.pk}/change/", f"{TASKS}export/json/", f"{TASKS}export/csv/"):
            answer = boss.get(page)
            content = b"".join(answer) if answer.streaming else answer.content
            if record.task_name == name:
                assert secret.encode() not in content, page
    assert secret not in boss.get(f"{TASKS}{record_of(name).pk}/raw/").content.decode()
    # Tracebacks show no local variables.
    assert secret not in record_of(failed).traceback


SECRET = "correct horse battery staple"


@dataclass
class Login:
    user: str
    password: str
    #: Left out of its description.
    session: str = field(default=SECRET, repr=False)


class Point(NamedTuple):
    token: str
    height: int


class Connection:
    def __init__(self, secret: str) -> None:
        self.secret = secret

    def __repr__(self) -> str:
        return f"Connection(host='here', api_key={self.secret!r})"


def log_in(password: str, count: int, /, token: str = "", *secrets: str, **more: object) -> None:
    """Take secrets by position and by name."""


PASSED = {
    "by position": ((SECRET, 5), {}),
    "by position, as one of many": (("x", 5, "y", SECRET, SECRET), {}),
    "by name": (("x", 5), {"token": SECRET}),
    "by a name of its own": (("x", 5), {"api_key": SECRET}),
    "a list by position": (([SECRET, {"a": SECRET}], 5), {}),
    "nested": (("x", 5), {"options": {"inner": [{"password": SECRET, "user": "ann"}]}}),
    "beside what JSON has not": (("x", 5), {"options": {"when": date(2026, 11, 27), "set": {1}, "secret": SECRET}}),
    "in a dataclass": (("x", 5), {"options": [Login("ann", SECRET)]}),
    "in a named tuple": (("x", 5), {"options": Point(SECRET, 3)}),
    "in a description": (("x", 5), {"options": [Connection(SECRET)]}),
    "in a description that is cut": (("x", 5), {"options": [Connection(SECRET + "x" * MESSAGE)]}),
    "in a description, as bytes": (("x", 5), {"options": f"Client(token=b'{SECRET}', port=5)"}),
    "in a description, as an object": (("x", 5), {"options": f"Client(token=Token(value='{SECRET}'), port=5)"}),
    "in a description, in a list": (("x", 5), {"options": f"Client(tokens=['a', '{SECRET}'], port=5)"}),
    "in a description, deep inside": (("x", 5), {"options": f"Client(a=A(b=B(auth=('ann', '{SECRET}'))), port=5)"}),
    "in the description of a dict": (("x", 5), {"options": str({"password": SECRET, "user": "ann"})}),
}


def shown_to(client, *addresses: str) -> str:
    answers = [client.get(address) for address in addresses]
    return "".join((b"".join(answer) if answer.streaming else answer.content).decode() for answer in answers)


def all_pages(record: TaskRecord) -> list[str]:
    task = f"{TASKS}{record.pk}/"
    lists = [TASKS, *(f"{TASKS}{page}/" for page in ("failures", "locks", "cluster", "groups/secrets"))]
    return [*lists, f"{task}change/", f"{task}raw/", f"{task}edit/", f"{TASKS}export/csv/", f"{TASKS}export/json/"]


@pytest.mark.parametrize("passed", PASSED)
def test_a_secret_is_on_no_page_however_it_was_passed(boss, manager, record_of, passed):
    args, kwargs = PASSED[passed]
    name = manager.launch_async_task(log_in, *args, task_kwargs=kwargs, group="secrets", retry=1)
    record = record_of(name)
    assert SECRET not in shown_to(boss, *all_pages(record))
    assert "*****" in shown_to(boss, f"{TASKS}{record.pk}/raw/")
    manager.async_task_lifecycle("fail", name, error="no details", result=kwargs)
    assert SECRET not in shown_to(boss, *all_pages(record))
    # What is no secret is shown.
    assert json.loads(shown_to(boss, f"{TASKS}{record.pk}/raw/"))["record"]["task_args"][1] == 5
    # The retry has the arguments as they were.
    assert TaskSpec.from_signed(record.payload).kwargs.keys() == kwargs.keys()


def test_an_edited_retry_keeps_the_secrets_that_were_not_edited(boss, manager, record_of):
    name = manager.launch_async_task(log_in, SECRET, 5, options=f"host=here password={SECRET}")
    manager.cancel_task(name)
    address = f"{TASKS}{record_of(name).pk}/edit/"
    page = boss.get(address)
    assert SECRET not in page.content.decode()
    form = page.context["form"]
    shown = {name: form[name].value() for name in ("task_args", "task_kwargs")}
    assert json.loads(shown["task_args"]) == [mask(), 5]
    boss.post(address, {**shown, "task_args": shown["task_args"].replace("5", "6")})
    new = TaskSpec.from_signed(TaskRecord.objects.latest("pk").payload)
    assert (new.args, new.kwargs) == ((SECRET, 6), {"options": f"host=here password={SECRET}"})
    changed = record_of(name).events.get(event="retry").payload["changed_arguments"]
    assert changed == {"count": {"before": 5, "after": 6}}


def test_a_secret_that_was_edited_is_on_no_page(boss, manager, record_of):
    name = manager.launch_async_task(log_in, "old " + SECRET, 5)
    manager.cancel_task(name)
    manager.retry_task(name, task_args=["new " + SECRET, 5])
    assert record_of(name).events.get(event="retry").payload["changed_arguments"].keys() == {"password"}
    assert SECRET not in shown_to(boss, *all_pages(record_of(name)))


def test_a_mask_is_no_value(boss, manager, record_of):
    name = manager.launch_async_task(log_in, SECRET, 5, options="password=abc")
    manager.cancel_task(name)
    data = {"task_args": json.dumps([mask(), 5]), "task_kwargs": json.dumps({"options": f"other password={mask()}"})}
    answer = boss.post(f"{TASKS}{record_of(name).pk}/edit/", data)
    assert "was not masked before" in answer.content.decode()


def test_neither_a_message_nor_a_spec_shows_arguments_in_a_log(manager):
    manager.launch_async_task(log_in, SECRET, 5, token=SECRET)
    message = OrmQ.objects.get().task
    assert SECRET not in repr(message)
    assert SECRET not in repr(TaskSpec.from_text(message["func"].spec))


# Payloads


class Exploit:
    """Unpickled, it leaves a mark."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("key", ["another key", None])
def test_a_payload_that_is_not_signed_by_this_project_is_not_even_opened(manager, record_of, tmp_path, settings, key):
    mark = tmp_path / "unpickled"
    name = manager.launch_async_task(tasks.add, 1)
    manager.cancel_task(name)
    if key is None:
        good, __, signature = record_of(name).payload.rpartition(":")
        forged = f"{good[:-2]}xx:{signature}"
    else:
        secret, settings.SECRET_KEY = settings.SECRET_KEY, key
        forged = TaskSpec("math.floor", (Exploit(str(mark)),)).to_signed()
        settings.SECRET_KEY = secret
    TaskRecord.objects.update(payload=forged)
    with pytest.raises(TaskNotRetryable, match="signature"):
        manager.retry_task(name)
    assert not mark.exists()
    # It would have left its mark.
    pickle.loads(pickle.dumps(Exploit(str(mark)))).close()
    assert mark.exists()


def test_what_was_signed_with_a_fallback_key_is_opened(settings):
    signed = TaskSpec("math.floor", (1,)).to_signed()
    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
    settings.SECRET_KEY = "a new key"
    assert TaskSpec.from_signed(signed).args == (1,)
    settings.SECRET_KEY_FALLBACKS = []
    with pytest.raises(UnreadableSpec, match="signature"):
        TaskSpec.from_signed(signed)


# Sizes


def test_a_progress_message_of_10_mb_is_cut(manager, record_of):
    name = manager.launch_async_task(tasks.add, 1)
    manager.update_progress(name, "x" * 10_000_000)
    message = ActiveTask.objects.get().progress_message
    assert len(message) <= MESSAGE
    assert message.endswith(CUT_MARK)
    manager.async_task_lifecycle("log", name, message="y" * 10_000_000)
    assert len(record_of(name).events.get(event="log").message) <= MESSAGE


def test_a_timeline_has_an_end_and_says_so(manager, record_of, settings):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_EVENT_LIMIT": 20}
    name = manager.launch_async_task(tasks.add, 1)
    for number in range(100):
        manager.async_task_lifecycle("log", name, message=f"line {number}")
        manager.async_task_lifecycle("progress", name, message=f"step {number}")
    events = list(record_of(name).events.order_by("pk"))
    assert len(events) == 21
    assert events[-1].message == "There are 20 events: further progress and log lines are not kept."
    # What becomes of the task is told in any case.
    manager.async_task_lifecycle("complete", name, result=1)
    assert record_of(name).events.count() == 22


@pytest.mark.django_db(transaction=True)
def test_a_result_of_many_megabytes_is_described(manager, record_of):
    name = manager.launch_async_task(tasks.return_much, 20_000_000)
    message = OrmQ.objects.get().task
    kept = message["func"](*message["args"], **message["kwargs"])
    assert len(kept) < 200_000
    assert CUT_MARK in kept
    assert record_of(name).events.filter(event="log", message__contains="its description is kept").exists()
