"""Queues and functions of which nothing new starts for a while."""

from __future__ import annotations

import json
from io import StringIO

import pytest
from django.contrib.admin.models import LogEntry
from django.core.management import CommandError, call_command
from django_q.models import OrmQ

from powercrud_dashboard.engine import pauses
from powercrud_dashboard.models import ActiveTask, Pause
from powercrud_dashboard.q2 import queue
from tests.clicks import TASKS, last, said
from tests.testapp import tasks
from tests.workers import database_refuses, meanwhile, run_queue

pytestmark = pytest.mark.django_db(transaction=True)

ADD = "tests.testapp.tasks.add"


@pytest.fixture(params=["queue", "function"])
def paused(request) -> tuple[str, str]:
    """What keeps a call of ``tasks.add`` from starting."""
    what = (request.param, queue.current_cluster() if request.param == "queue" else ADD)
    assert pauses.pause(*what, "Ann", "the supplier is down")
    return what


def test_nothing_new_starts_and_no_message_is_lost(manager, record_of, paused):
    name = manager.launch_async_task(tasks.add, 1)
    run_queue()
    assert (record_of(name).status, record_of(name).attempts) == ("pending", 0)
    assert not OrmQ.objects.exists()
    assert manager.send_due_tasks() == 0
    assert manager.cleanup_completed_tasks()["skipped"] == {name: "its queue or function is paused"}
    assert pauses.resume(*paused)
    assert not pauses.resume(*paused)
    run_queue()
    assert record_of(name).status == "success"


def test_others_run(manager, record_of):
    pauses.pause("function", "tests.testapp.tasks.fail_until")
    pauses.pause("queue", "another")
    name = manager.launch_async_task(tasks.add, 1)
    run_queue()
    assert record_of(name).status == "success"


def test_what_runs_in_its_callers_process_runs(manager, record_of, paused):
    assert record_of(manager.launch_async_task(tasks.add, 1, sync=True)).status == "success"


def test_a_worker_sends_what_was_held_back_if_the_one_who_resumed_did_not(manager, record_of, paused):
    name = manager.launch_async_task(tasks.add, 1)
    run_queue()
    Pause.objects.all().delete()
    assert manager.send_due_tasks() == 1
    run_queue()
    assert record_of(name).status == "success"


def test_if_the_broker_does_not_take_them_they_are_sent_later(manager, record_of, paused):
    name = manager.launch_async_task(tasks.add, 1)
    run_queue()
    with database_refuses(f'INSERT INTO "{OrmQ._meta.db_table}"', 2):
        for send in (lambda: pauses.resume(*paused), manager.send_due_tasks):
            send()
            assert (record_of(name).status, OrmQ.objects.count()) == ("pending", 0)
    manager.send_due_tasks()
    run_queue()
    assert record_of(name).status == "success"


def test_a_resumption_in_the_moment_of_the_claim_loses_nothing(manager, record_of, paused):
    name = manager.launch_async_task(tasks.add, 1)
    message = OrmQ.objects.get().task
    with meanwhile(Pause.objects.all().delete, after="UPDATE"):
        message["func"](*message["args"])
    assert record_of(name).status == "success"


def test_two_pauses_both_count(manager, record_of):
    pauses.pause("queue", queue.current_cluster())
    pauses.pause("function", ADD)
    name = manager.launch_async_task(tasks.add, 1)
    for kind, what in (("queue", queue.current_cluster()), ("function", ADD)):
        run_queue()
        assert record_of(name).status == "pending"
        pauses.resume(kind, what)
    run_queue()
    assert record_of(name).status == "success"


def test_a_task_that_is_held_back_can_be_paused_and_cancelled(manager, record_of, paused):
    first, second = (manager.launch_async_task(tasks.add, 1) for _ in range(2))
    run_queue()
    assert manager.pause_task(first)
    assert manager.cancel_task(second)
    pauses.resume(*paused)
    assert ActiveTask.objects.get().state == "paused"
    assert record_of(second).status == "cancelled"


# The pages and the command


CLUSTER = "/admin/powercrud_dashboard/taskrecord/cluster/"


def test_the_cluster_page_pauses_and_resumes(boss, superuser, manager):
    name = queue.current_cluster()
    answer = boss.post(f"{CLUSTER}pause/", {"kind": "queue", "name": name, "note": "stocktaking"}, follow=True)
    assert said(answer) == [f"“{name}” is paused."]
    manager.launch_async_task(tasks.add, 1)
    run_queue()
    for page in (CLUSTER, TASKS, f"{TASKS}{last().pk}/change/"):
        text = boss.get(page).content.decode()
        assert f"The queue {name} is paused" in text, page
        assert "stocktaking" in text
        assert "by boss" in text
    pause = Pause.objects.get()
    assert (pause.user, pause.note) == (superuser, "stocktaking")
    assert said(boss.post(f"{CLUSTER}pause/", {"kind": "queue", "name": name}, follow=True)) == [
        f"“{name}” is paused already."
    ]
    answer = boss.post(f"{CLUSTER}resume/", {"kind": "queue", "name": name}, follow=True)
    assert said(answer) == [f"“{name}” is resumed."]
    assert "is paused" not in boss.get(TASKS).content.decode().partition("messagelist")[0]
    assert OrmQ.objects.count() == 1
    assert [entry.user for entry in LogEntry.objects.all()] == [superuser] * 2


def test_a_task_that_is_held_back_says_why(boss, manager, paused):
    manager.launch_async_task(tasks.add, 1)
    assert "Held back" not in boss.get(TASKS).content.decode()
    run_queue()
    assert "Held back: its queue or function is paused" in boss.get(TASKS).content.decode()
    assert "Held back: its queue or function is paused" in boss.get(f"{TASKS}{last().pk}/change/").content.decode()


def test_the_page_of_a_function_pauses_and_resumes_it(boss, client_of, make_user):
    page = f"{TASKS}function/?func={ADD}"
    form = {"kind": "function", "name": ADD, "next": page}
    assert "Pause this function" in boss.get(page).content.decode()
    answer = boss.post(f"{CLUSTER}pause/", {**form, "note": "until noon"}, follow=True)
    assert answer.request["PATH_INFO"] == f"{TASKS}function/"
    shown = answer.content.decode()
    assert f"The function {ADD} is paused on all queues." in shown
    assert "<q>until noon</q>" in shown
    assert "Pause this function" not in shown
    assert f'name="next" value="{page}"' in shown
    assert "Pause this function" not in client_of(make_user("ann", "view_taskrecord")).get(page).content.decode()


def test_that_needs_a_permission(make_user, client_of):
    pauses.pause("function", ADD)
    for permissions, allowed in ((["view_taskrecord"], False), (["view_taskrecord", "pause_queue"], True)):
        client = client_of(make_user("-".join(permissions), *permissions))
        page = client.get(CLUSTER).content.decode()
        assert ("cluster/resume/" in page) == allowed
        assert ("cluster/pause/" in page) == allowed
        status = client.post(f"{CLUSTER}resume/", {"kind": "function", "name": ADD}).status_code
        assert status == (302 if allowed else 403)
    assert not Pause.objects.exists()


@pytest.mark.parametrize("data", [{}, {"kind": "queue"}, {"kind": "x", "name": "y"}, {"kind": "queue", "name": " "}])
def test_odd_input_changes_nothing(boss, data):
    assert said(boss.post(f"{CLUSTER}pause/", data, follow=True)) == ["Name a queue, or the dotted path of a function."]
    assert not Pause.objects.exists()


def test_a_name_that_no_column_holds_is_cut_off(boss):
    long = {"kind": "function", "name": "app." + 100 * "step."}
    assert boss.post(f"{CLUSTER}pause/", long).status_code == 302
    assert len(Pause.objects.get().name) == 255
    assert boss.post(f"{CLUSTER}resume/", long).status_code == 302
    assert not Pause.objects.exists()


def test_what_is_paused_may_be_misspelt(boss, manager):
    name = manager.launch_async_task(tasks.add, 1, cluster="slow")
    known = {"queue": [queue.current_cluster(), "slow"], "function": [ADD]}
    unknown = {"queue": ["slwo"], "function": ["tests.testapp.tasks.ad"]}
    for kinds, warnings in ((known, 0), (unknown, 1)):
        for kind, of_kind in kinds.items():
            for one in of_kind:
                messages = said(boss.post(f"{CLUSTER}pause/", {"kind": kind, "name": one}, follow=True))
                assert messages[0] == f"“{one}” is paused."
                assert [message for message in messages if "Check the spelling" in message] == messages[1:]
                assert len(messages) == 1 + warnings
    manager.cancel_task(name)
    assert pauses.is_known("function", ADD)


def test_the_command_line_tells_of_a_name_that_may_be_misspelt(capsys):
    assert run_command("pause", "--queue", "slwo") == (0, "queue slwo: paused\n")
    assert "No task of “slwo” is known so far. Check the spelling." in capsys.readouterr().err


def run_command(*arguments: str) -> tuple[int, str]:
    out = StringIO()
    try:
        call_command("pcrud", *arguments, stdout=out)
    except CommandError as error:
        return error.returncode, out.getvalue()
    return 0, out.getvalue()


def test_the_command_line_does_the_same(manager, record_of):
    name = manager.launch_async_task(tasks.add, 1)
    assert run_command("pause", name) == (0, f"{name}: paused\n")
    assert record_of(name).events.get(event="pause").actor_label.endswith("command line)")
    assert run_command("pause", name)[0] == 1
    code, text = run_command("resume", name, "--json")
    assert (code, json.loads(text)["results"]) == (0, [{"task": name, "done": True, "result": "resumed"}])
    assert run_command("resume", "unknown") == (1, "")
    assert run_command("pause")[0] == 2
    assert run_command("pause", "--queue", "slow", "--func", ADD, "--note", "why")[0] == 0
    assert set(Pause.objects.values_list("kind", "name", "note")) == {
        ("queue", "slow", "why"),
        ("function", ADD, "why"),
    }
    assert run_command("resume", "--queue", "slow", "--func", ADD)[0] == 0
    assert not Pause.objects.exists()


def test_a_conflict_at_a_resumption_is_an_error_of_the_command(manager):
    ids = {"testapp.Project": {1}}
    name = manager.launch_async_task(tasks.add, 1, conflict_ids=ids)
    assert run_command("pause", name, "--release-locks")[0] == 0
    manager.launch_async_task(tasks.add, 1, conflict_ids=ids)
    code, text = run_command("resume", name)
    assert code == 1
    assert f"{name}: Locked: Project 1" in text
