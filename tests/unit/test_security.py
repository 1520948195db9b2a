"""What strangers, forged requests, hostile texts and sheer size can't do."""

from __future__ import annotations

import pickle

import pytest
from django.contrib.auth.models import User
from django.core import signing
from django.test import Client
from django.urls import reverse
from django_q.conf import Conf
from django_q.models import OrmQ
from django_q.signing import PickleSerializer

from powercrud_dashboard import queueing
from powercrud_dashboard.exceptions import TaskNotRetryable
from powercrud_dashboard.models import ActiveTask, TaskEvent, TaskRecord
from powercrud_dashboard.models.text import CUT_MARK, MESSAGE
from tests.testapp import tasks
from tests.testapp.models import Project
from tests.unit.test_access import ACCESS, PREFIX, address, things  # noqa: F401

pytestmark = pytest.mark.django_db

TASKS = "/admin/powercrud_dashboard/taskrecord/"
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"


# Requests


@pytest.mark.parametrize("name", [name for name, row in ACCESS.items() if "post" in row.methods])
def test_without_a_csrf_token_nothing_is_changed(superuser, things, name):  # noqa: F811
    client = Client(enforce_csrf_checks=True)
    client.force_login(superuser)
    before = list(TaskEvent.objects.values_list("pk", "event"))
    assert client.post(address(name, things), dict(ACCESS[name].data)).status_code == 403
    assert list(TaskEvent.objects.values_list("pk", "event")) == before


@pytest.mark.parametrize("name", ACCESS)
@pytest.mark.parametrize("method", ["put", "patch", "delete", "trace"])
def test_other_methods_are_not_known(boss, things, name, method):  # noqa: F811
    assert getattr(boss, method)(address(name, things)).status_code == 405


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
    ActiveTask.objects.claim_pending(running, host=HOSTILE[:50], pid=1)
    TaskRecord.objects.record_start(running, attempt=1)
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
    assert "was not started" in refused.content.decode()
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


# Payloads


class Exploit:
    """Unpickled, it leaves a mark."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("key", ["another key", None])
def test_a_payload_that_is_not_signed_by_this_project_is_not_even_opened(manager, record_of, tmp_path, key):
    mark = tmp_path / "unpickled"
    name = manager.launch_async_task(tasks.add, 1)
    manager.cancel_task(name)
    if key is None:
        good, __, signature = record_of(name).payload.rpartition(":")
        forged = f"{good[:-2]}xx:{signature}"
    else:
        forged = signing.dumps(Exploit(str(mark)), key=key, salt=Conf.PREFIX, serializer=PickleSerializer)
    TaskRecord.objects.update(payload=forged)
    with pytest.raises(TaskNotRetryable, match="signature"):
        manager.retry_task(name)
    assert not mark.exists()
    # It would have left its mark.
    pickle.loads(pickle.dumps(Exploit(str(mark)))).close()
    assert mark.exists()


def test_what_was_signed_with_a_fallback_key_is_opened(settings, monkeypatch):
    signed = queueing.sign({"kept": 1})
    monkeypatch.setattr(Conf, "SECRET_KEY", "a new key")
    with pytest.raises(ValueError, match="signature"):
        queueing.unsign(signed)
    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
    assert queueing.unsign(signed) == {"kept": 1}
    assert queueing.unsign(queueing.sign("new")) == "new"


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
    manager.async_task_lifecycle("complete", name, result=1, log_lines=[("a", "info")] * 1_000)
    assert record_of(name).events.count() == 22


@pytest.mark.django_db(transaction=True)
def test_a_result_of_many_megabytes_is_described(manager, record_of):
    name = manager.launch_async_task(tasks.return_much, 20_000_000)
    message = OrmQ.objects.get().task
    kept = message["func"](*message["args"], **message["kwargs"])
    assert len(kept) < 200_000
    assert CUT_MARK in kept
    assert record_of(name).events.filter(event="log", message__contains="its description is kept").exists()
