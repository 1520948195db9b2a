from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from contextlib import ExitStack, suppress
from io import BytesIO, StringIO, TextIOWrapper
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.core.management import CommandError, call_command

from powercrud_dashboard.dashboard_manager import DashboardAsyncManager
from powercrud_dashboard.management.commands.pcrud import SUBCOMMANDS, Command
from powercrud_dashboard.management.pcrud.console import Column, Console, cells_of
from powercrud_dashboard.models import ActiveTask, ConflictLock, Pause, TaskRecord, TaskStatus
from powercrud_dashboard.signals import task_cancelled
from tests.testapp import tasks
from tests.workers import database_refuses, run_queue

pytestmark = pytest.mark.django_db


def run(*arguments: str) -> tuple[int, str, str]:
    """Run a subcommand; return its exit code, what it printed, and its error."""
    out, err = StringIO(), StringIO()
    try:
        call_command("pcrud", *arguments, stdout=out, stderr=err, no_color=True)
    except CommandError as error:
        return error.returncode, out.getvalue(), f"{err.getvalue()}{error}"
    return 0, out.getvalue(), err.getvalue()


def run_json(*arguments: str) -> Any:
    code, out, err = run(*arguments, "--json")
    assert code == 0, err
    return json.loads(out)


@pytest.fixture
def failed(manager) -> list[str]:
    """Three failed tasks."""
    for _number in range(3):
        with suppress(ValueError):
            manager.launch_async_task(tasks.fail, sync=True)
    return list(TaskRecord.objects.failed().order_by("pk").values_list("task_name", flat=True))


# Lists


def test_tasks_are_listed_by_the_filters_of_the_pages(manager, failed):
    queued = manager.launch_async_task(tasks.add, 1, label="Add them", user="anna")
    assert {task["task_name"] for task in run_json("tasks")["tasks"]} == {*failed, queued}
    assert [task["task_name"] for task in run_json("tasks", "--status", "queued")["tasks"]] == [queued]
    assert [task["task_name"] for task in run_json("tasks", "--launched-by", "anna")["tasks"]] == [queued]
    assert run_json("tasks", "--function", "tests.testapp.tasks.fail", "--status", "failed")["total"] == 3
    assert run_json("tasks", "--error-class", "ValueError", "--created-after", "2020-01-31")["total"] == 3
    assert run_json("tasks", "--search", "nothing of this")["tasks"] == []
    assert len(run_json("tasks", "--limit", "2")["tasks"]) == 2
    assert run_json("tasks", "--sort=created_at")["tasks"][0]["task_name"] == failed[0]


def test_the_list_fits_80_columns(manager, failed, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    manager.launch_async_task(tasks.add, 1, label="数える " * 30, user="somebody-with-a-long-name")
    code, out, err = run("tasks", "--limit", "3")
    assert code == 0
    assert "Queued" in out
    assert "The first 3 of 4 tasks" in err
    assert max(map(cells_of, out.splitlines())) == 80


def test_a_terminal_that_is_wide_shows_messages(failed, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    assert "it broke" in run("tasks")[1]


def test_labels_do_not_control_the_terminal(manager):
    name = manager.launch_async_task(tasks.add, 1, label="\x1b[2Jgone\x07 \x9b31m")
    for arguments in (["tasks"], ["show", name]):
        out = run(*arguments)[1]
        assert "gone" in out
        assert not {"\x1b", "\x07", "\x9b"} & set(out)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--created-after", "soon"], "--created-after"),
        (["--longer-than", "-1"], "--longer-than"),
        (["--error-class", "x\0"], "--error-class"),
    ],
)
def test_filters_without_sense_are_wrong_arguments(arguments, said):
    code, _out, err = run("tasks", *arguments)
    assert code == 2
    assert said in err


def test_nothing_to_list_is_no_error():
    assert run("tasks") == (0, "No tasks match.\n", "")
    assert run("locks") == (0, "Nothing is locked.\n", "")
    assert run("stats")[0] == 0


# One task


def test_a_task_is_shown_with_all_that_its_page_has(manager, make_projects):
    (project,) = make_projects(1)
    with suppress(ValueError):
        manager.launch_async_task(tasks.fail, "no paper", conflict_ids={"testapp.Project": [project.pk]}, sync=True)
    record = TaskRecord.objects.get()
    code, out, _err = run("show", record.task_name[:8])
    assert code == 0
    for part in ("Failed", "message = ", "no paper", "Traceback", "raise ValueError(message)", "Timeline", "create"):
        assert part in out
    new = manager.retry_task(record.task_name)
    out = run("show", new)[1]
    assert "Holds 1 lock" in out
    assert "Tries" in out
    assert record.task_name in out
    document = run_json("show", new)
    assert document["record"]["task_name"] == new
    assert [item["task_name"] for item in document["tries"]] == [record.task_name, new]
    assert [lock["object_id"] for lock in document["locks"]] == [str(project.pk)]


def test_secrets_are_masked(manager):
    name = manager.launch_async_task(tasks.echo, password="open-sesame", depth=3)
    for arguments in (["show", name], ["show", name, "--json"]):
        out = run(*arguments)[1]
        assert "open-sesame" not in out
        assert "*****" in out


def test_a_name_must_be_clear(manager):
    for number in (1, 2):
        manager.launch_async_task(tasks.add, 1, task_key=f"nightly-{number}")
    assert run("show", "nightly-1")[0] == 0
    code, _out, err = run("show", "nightly")
    assert (code, "several tasks" in err) == (1, True)
    assert run("show", "nig")[0] == 1
    assert run("show", "nowhere")[2] == "There is no task nowhere."


@pytest.mark.parametrize("subcommand", ["show", "retry", "cancel", "pause", "locks --holder"])
def test_what_is_no_text_in_any_encoding_is_the_name_of_nothing(manager, subcommand):
    # As Python reads the bytes of another encoding.
    code, out, err = run(*subcommand.split(), "nightly\udcff")
    assert (code, out + err) in [(1, "There is no task nightly\udcff."), (0, "No locks match.\n")]


# Actions


def test_tasks_are_retried_by_name(manager, failed, record_of):
    code, out, _err = run("retry", failed[0][:12], failed[1], "--user", "deploy")
    assert code == 0
    new = record_of(failed[0]).retries.get()
    assert f"{failed[0]}: retried as {new.task_name}\n" in out
    assert new.user_label == "deploy (command line)"
    assert record_of(failed[2]).retries.count() == 0
    # Its retry has not ended.
    code, out, err = run("retry", failed[0])
    assert (code, "1 task not retried" in err) == (1, True)


def test_a_user_of_the_name_is_recorded(manager, failed, make_user, record_of):
    anna = make_user("anna")
    run_json("retry", failed[0], "--user", "anna")
    assert record_of(failed[0]).retries.get().user == anna


def test_so_is_a_name_in_another_encoding_as_well_as_it_can_be(failed, record_of):
    run_json("retry", failed[0], "--user", "andr\udce9")
    assert record_of(failed[0]).retries.get().user_label == "andr? (command line)"


def test_the_user_of_the_system_is_recorded_by_default(failed, record_of):
    run_json("retry", failed[0])
    assert record_of(failed[0]).retries.get().user_label.endswith("(command line)")


def test_all_that_match_are_changed_once_somebody_agrees(manager, failed):
    arguments = ("retry", "--status", "failed", "--error-class", "ValueError")
    code, _out, err = run(*arguments)
    assert (code, "Confirm with --yes" in err) == (2, True)
    assert "3  tests.testapp.tasks.fail" in err
    assert TaskRecord.objects.count() == 3
    dry = run_json(*arguments, "--dry-run")
    assert [entry["result"] for entry in dry["results"]] == ["would be retried"] * 3
    assert TaskRecord.objects.count() == 3
    done = run_json(*arguments, "--yes")
    assert (done["done"], done["refused"]) == (3, 0)
    assert {entry["task"] for entry in done["results"]} == set(failed)
    assert TaskRecord.objects.queued().count() == 3
    # Each of them is being retried.
    assert run(*arguments, "--no-input") == (0, "No tasks match.\n", "")


def test_what_is_refused_is_named_and_the_rest_is_done(manager, failed, make_projects):
    ids = {"testapp.Project": [make_projects(1)[0].pk]}
    with suppress(ValueError):
        manager.launch_async_task(tasks.fail, conflict_ids=ids, sync=True)
    manager.launch_async_task(tasks.add, 1, conflict_ids=ids)
    code, out, err = run("retry", "--status", "failed", "--yes")
    assert code == 1
    assert "Locked: " in out
    assert "3 tasks retried, 1 refused" in out
    assert "1 task not retried." in err


@pytest.mark.django_db(transaction=True)
def test_what_ends_meanwhile_is_skipped(manager):
    _first, second = (manager.launch_async_task(tasks.add, number) for number in range(2))

    def cancel_the_other(task_name: str, **kwargs: Any) -> None:
        manager.cancel_task(second)

    task_cancelled.connect(cancel_the_other)
    try:
        code, out, err = run("cancel", "--status", "queued", "--yes")
    finally:
        task_cancelled.disconnect(cancel_the_other)
    assert (code, err) == (0, "")
    assert out == f"{second}: has already ended\n1 task cancelled, 0 refused, 1 skipped\n"


class InterruptedManager(DashboardAsyncManager):
    """Ctrl-C is pressed while the second of its tasks is cancelled."""

    def cancel_task(self, task_name: str, user: Any = None) -> bool:
        if TaskRecord.objects.cancelled().exists():
            raise KeyboardInterrupt
        return super().cancel_task(task_name, user)


def press_ctrl_c(task_name: str, **kwargs: Any) -> None:
    if TaskRecord.objects.cancelled().count() == 2:
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.django_db(transaction=True)
def test_ctrl_c_ends_it_after_the_task_at_hand(manager):
    names = [manager.launch_async_task(tasks.add, number) for number in range(3)]
    before = signal.getsignal(signal.SIGINT)
    task_cancelled.connect(press_ctrl_c)
    try:
        code, out, err = run("cancel", *names, "--json")
    finally:
        task_cancelled.disconnect(press_ctrl_c)
    assert (code, err) == (1, "Interrupted: the other tasks were not changed.")
    document = json.loads(out)
    assert (document["done"], document["error"]) == (2, err)
    assert [entry["task"] for entry in document["results"]] == names[:2]
    assert set(TaskRecord.objects.cancelled().values_list("task_name", flat=True)) == set(names[:2])
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupted_task_ends_it_with_what_was_done():
    names = [InterruptedManager().launch_async_task(tasks.add, number) for number in range(3)]
    code, out, err = run("cancel", "--all", "--yes", "--json")
    assert (code, err) == (1, "Interrupted: the other tasks were not changed.")
    assert [entry["task"] for entry in json.loads(out)["results"]] == names[:1]


@pytest.mark.django_db(transaction=True)
def test_work_that_a_later_try_has_done_is_not_done_again(manager):
    name = manager.launch_async_task(tasks.add, 1)
    manager.cancel_task(name)
    manager.retry_task(name)
    run_queue()
    code, out, _err = run("retry", name)
    assert (code, "a later try has completed" in out) == (1, True)
    assert run("retry", "--status", "cancelled", "--yes")[1] == "No tasks match.\n"
    assert run_json("retry", name, "--include-completed")["done"] == 1


def test_completed_tasks_run_again_only_if_that_is_said(manager):
    name = manager.launch_async_task(tasks.add, 1, sync=True)
    assert run("retry", name)[0] == 1
    assert run("retry", "--all", "--yes") == (0, "No tasks match.\n", "")
    assert run_json("retry", name, "--include-completed")["done"] == 1
    assert TaskRecord.objects.count() == 2


def test_queued_tasks_are_cancelled_paused_and_resumed(manager):
    names = [manager.launch_async_task(tasks.add, number) for number in range(3)]
    assert run_json("pause", "--status", "queued", "--yes")["done"] == 3
    assert ActiveTask.objects.paused().count() == 3
    assert run("resume", names[0]) == (0, f"{names[0]}: resumed\n", "")
    assert run_json("cancel", "--all", "--yes")["done"] == 3
    assert TaskRecord.objects.cancelled().count() == 3
    assert run("cancel", names[0])[:2] == (1, f"{names[0]}: has already ended\n")


def test_a_running_task_is_asked_to_stop(manager):
    name = manager.launch_async_task(tasks.add, 1)
    ActiveTask.objects.claim(name, worker=None)
    TaskRecord.objects.update(status=TaskStatus.IN_PROGRESS)
    assert run("pause", name) == (0, f"{name}: asked to pause\n", "")
    assert run("cancel", name) == (0, f"{name}: asked to stop\n", "")
    assert ActiveTask.objects.get().cancel_requested_at is not None


@pytest.mark.parametrize(("option", "kind"), [("--queue", "queue"), ("--func", "function")])
def test_a_dry_run_pauses_and_resumes_nothing(option, kind):
    assert run("pause", option, "reports", "--dry-run") == (0, f"{kind} reports: would be paused\n", "")
    assert not Pause.objects.exists()
    assert run_json("pause", option, "reports")["results"] == [{kind: "reports", "done": True, "result": "paused"}]
    assert run("pause", option, "reports", "--dry-run")[0] == 1
    entry = {kind: "reports", "done": False, "result": "would be resumed"}
    assert run_json("resume", option, "reports", "--dry-run")["results"] == [entry]
    assert Pause.objects.count() == 1


def test_options_that_would_do_nothing_are_wrong_arguments():
    assert run("pause", "--all", "--note", "why")[0] == 2
    assert run("pause", "--queue", "reports", "--release-locks")[0] == 2
    assert not Pause.objects.exists()


@pytest.mark.parametrize("subcommand", ["retry", "cancel", "pause", "resume"])
def test_nothing_is_chosen_by_accident(subcommand):
    assert run(subcommand)[0] == 2
    assert run(subcommand, "a-task", "--all")[0] == 2


def test_unfinished_tasks_are_known_by_their_names_also_without_a_history(manager, settings):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_RECORDER": None}
    name = manager.launch_async_task(tasks.add, 1)
    assert not TaskRecord.objects.exists()
    assert run("pause", name[:8]) == (0, f"{name}: paused\n", "")
    assert run("resume", name) == (0, f"{name}: resumed\n", "")
    no_history = "No history is kept: DASHBOARD_RECORDER is None."
    assert run("show", name) == (1, "", f"There is no task {name}. {no_history}")
    ActiveTask.objects.claim(name, worker=None)
    assert run("pause", name) == (0, f"{name}: asked to pause\n", "")
    assert run("cancel", name) == (0, f"{name}: asked to stop\n", "")
    other = manager.launch_async_task(tasks.add, 1)
    assert run("cancel", other) == (0, f"{other}: cancelled\n", "")
    assert run("cancel", other)[::2] == (1, f"There is no task {other}. {no_history}")


# Locks


def test_locks_are_shown_by_holder_and_released_with_a_note(manager, make_projects, record_of):
    first, second, third = (project.pk for project in make_projects(3))
    name = manager.launch_async_task(tasks.add, 1, label="Add", conflict_ids={"testapp.Project": [first, second]})
    assert manager.add_conflict_ids("nightly", {"testapp.Project": [third]})
    by_task, reserved = run_json("locks")
    assert (by_task["holder"], by_task["count"], by_task["state"]) == (name, 2, "pending")
    assert (reserved["holder"], [item["id"] for item in reserved["objects"]]) == ("nightly", [str(third)])
    assert [entry["holder"] for entry in run_json("locks", "--object", f"testapp.Project:{third}")] == ["nightly"]
    assert [entry["holder"] for entry in run_json("locks", "--holder", name[:8])] == [name]
    assert [entry["holder"] for entry in run_json("locks", "--search", "Add")] == [name]
    assert name[:8] in run("locks")[1]
    assert run("locks", "--holder", "x")[1] == "No locks match.\n"

    released = f"testapp.project:{first}"
    code, _out, err = run("release", "--object", released)
    assert (code, "Release 1 lock" in err or "Confirm with --yes" in err) == (2, True)
    assert run("release", "--object", released, "--note", "the host is gone", "--yes") == (0, "1 lock released\n", "")
    event = record_of(name).events.get(event="release")
    assert event.message == f"Project {first}: the host is gone"
    assert event.actor_label.endswith("(command line)")
    assert run_json("release", "--holder", "nightly", "--yes")["done"] == 1
    assert [str(lock.object_id) for lock in ConflictLock.objects.all()] == [str(second)]


def test_a_holder_must_be_clear(manager, make_projects):
    for name, project in zip(("4b1daaaa", "4b1dbbbb", "4xx"), make_projects(3), strict=True):
        manager.launch_async_task(tasks.add, 1, task_key=name, conflict_ids={"testapp.Project": [project.pk]})
    code, _out, err = run("release", "--holder", "4b1d", "--yes")
    assert (code, "several tasks" in err) == (1, True)
    assert run("release", "--holder", "4", "--yes")[2] == "There is no such lock."
    assert ConflictLock.objects.count() == 3
    assert run("release", "--holder", "4b1da", "--yes")[0] == 0
    assert ConflictLock.objects.count() == 2


def test_what_to_release_must_be_named(manager):
    assert run("release")[0] == 2
    assert run("release", "--object", "project:1")[0] == 2
    assert run("release", "--object", "testapp.project:1", "--yes")[2] == "There is no such lock."


# Figures


def test_the_figures_are_those_of_the_insights(manager, failed):
    manager.launch_async_task(tasks.add, 1, sync=True)
    figures = run_json("stats", "--period", "1h")
    by_function = {entry["function"].rpartition(".")[2]: entry for entry in figures["functions"]}
    assert (by_function["fail"]["ended"], by_function["fail"]["failed"]) == (3, 3)
    assert by_function["add"]["failure_rate"] == 0
    assert figures["total"]["ended"] == 4
    out = run("stats")[1]
    assert "4 tasks ended, 3 failed (75%)" in out
    assert run_json("stats", "--function", "tests.testapp.tasks.add")["total"]["ended"] == 1
    assert run_json("stats", "--queue", "nowhere")["total"]["ended"] == 0


def test_the_figures_fit_80_columns(failed, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(cells_of, run("stats")[1].splitlines())) <= 80


# The docs

DOCS = django_settings.ROOT / "docs"
SHOWN_COMMANDS = [
    shlex.split(line.partition(" pcrud ")[2], comments=True)
    for page in ("command-line.md", "pausing.md")
    for line in (DOCS / page).read_text().splitlines()
    if " pcrud " in line and line.startswith(("python manage.py ", "manage.py "))
]


@pytest.mark.parametrize("arguments", SHOWN_COMMANDS, ids=" ".join)
def test_the_commands_of_the_docs_have_known_arguments(arguments):
    parser = Command().create_parser("manage.py", "pcrud")
    assert parser.parse_args(arguments).subcommand == arguments[0]


def test_the_docs_know_each_subcommand():
    page = (DOCS / "command-line.md").read_text()
    assert all(f"`{name}`" in page for name in SUBCOMMANDS)


def test_the_code_of_the_docs_lists_failures(failed):
    [block] = re.findall(r"```python\n(.*?)```", (DOCS / "command-line.md").read_text(), re.DOTALL)
    found: dict[str, Any] = {}
    exec(block, found)
    assert set(found["open_failures"]("tests.testapp.tasks.fail")) == set(failed)


# The terminal


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_is_asked_and_shows_a_bar(failed, monkeypatch):
    err = Terminal()
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    call_command("pcrud", "retry", "--all", stdout=StringIO(), stderr=err, no_color=True)
    assert "Retry 3 tasks? [y/N]" in err.getvalue()
    assert "] 2/3" in err.getvalue()
    assert TaskRecord.objects.queued().count() == 3
    monkeypatch.setattr(sys, "stdin", Terminal("no\n"))
    with pytest.raises(CommandError, match="Nothing was changed"):
        call_command("pcrud", "cancel", "--all", stdout=StringIO(), stderr=err)
    assert TaskRecord.objects.queued().count() == 3


def test_a_table_keeps_what_does_not_give_way(monkeypatch):
    from django.core.management.base import OutputWrapper
    from django.core.management.color import no_style

    monkeypatch.setenv("COLUMNS", "30")
    out = StringIO()
    console = Console(OutputWrapper(out), OutputWrapper(StringIO()), no_style(), is_json=False)
    console.table(
        [Column("Name"), Column("What", gives_way=True), Column("Number", is_number=True)],
        [("a-name-of-15-ch", "much longer than it may be", 7), ("b", "short", 12_345_678)],
    )
    lines = out.getvalue().splitlines()
    assert lines[1] == "a-name-of-15-ch  much lo…         7"
    assert lines[2] == "b                short     12345678"


def process(*arguments: str, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(django_settings.ROOT), "COLUMNS": "80"}
    return subprocess.run(
        [sys.executable, "-m", "django", "pcrud", *arguments, "--settings", os.environ["DJANGO_SETTINGS_MODULE"]],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=django_settings.ROOT,
        check=False,
    )


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_what_the_terminal_has_no_character_for_is_no_error(manager, encoding):
    manager.launch_async_task(tasks.add, 1, label="数える")
    printed = TextIOWrapper(BytesIO(), encoding=encoding)
    call_command("pcrud", "tasks", "--json", stdout=printed)
    printed.seek(0)
    assert json.load(printed)["tasks"][0]["label"] == "数える"
    printed = TextIOWrapper(BytesIO(), encoding=encoding)
    call_command("pcrud", "tasks", stdout=printed)
    printed.seek(0)
    assert "???" in printed.read()


@pytest.mark.parametrize(
    "arguments", [("tasks", "--status", "bogus"), ("bogus",), ("tasks", "--bogus"), ("tasks", "--limit", "0")]
)
def test_the_exit_code_of_wrong_arguments_is_2_also_in_python(arguments):
    assert run(*arguments)[0] == 2


def test_a_wrong_status_is_refused_with_those_that_there_are():
    assert (
        "choose from queued, running, waiting, paused, failed, completed, cancelled"
        in run("tasks", "--status", "bogus")[2]
    )


def test_an_error_is_in_the_document(manager):
    code, out, err = run("show", "nowhere", "--json")
    assert (code, json.loads(out)) == (1, {"error": err})
    manager.launch_async_task(tasks.add, 1)
    code, out, err = run("cancel", "--all", "--json")
    assert (code, json.loads(out)["error"]) == (2, "There is no terminal to ask at. Confirm with --yes.")
    answer = process("tasks", "--json", "--limit", "0")
    assert answer.returncode == 2
    assert "--limit" in json.loads(answer.stdout)["error"]


@pytest.mark.parametrize("arguments", [("tasks",), ("show", "anything"), ("stats",), ("locks",), ("test",)])
def test_without_the_database_there_is_a_document_too(arguments):
    with database_refuses("", 1_000):
        code, out, err = run(*arguments, "--json")
    assert (code, json.loads(out)) == (1, {"error": err})
    assert err.startswith("The database has failed: the server closed the connection")


@pytest.mark.django_db(transaction=True)
def test_what_was_done_before_the_database_failed_is_printed(manager):
    names = [manager.launch_async_task(tasks.add, number) for number in range(3)]
    cancelled: list[str] = []
    with ExitStack() as stack:

        def fail_after_the_second(task_name: str, **kwargs: Any) -> None:
            cancelled.append(task_name)
            if len(cancelled) == 2:
                stack.enter_context(database_refuses("", 1_000))

        task_cancelled.connect(fail_after_the_second)
        stack.callback(task_cancelled.disconnect, fail_after_the_second)
        code, out, err = run("cancel", "--all", "--yes", "--json")
    document = json.loads(out)
    assert (code, document["error"]) == (1, err)
    assert [(entry["task"], entry["done"]) for entry in document["results"]] == [(names[0], True)]
    assert err.startswith("The database has failed")
    assert err.endswith("The other tasks were not changed.")


def test_an_error_that_nobody_expects_is_in_the_document_and_raised(monkeypatch):
    monkeypatch.setattr(SUBCOMMANDS["stats"], "handle", lambda console, options: 1 / 0)
    out = StringIO()
    with pytest.raises(ZeroDivisionError):
        call_command("pcrud", "stats", "--json", stdout=out)
    assert json.loads(out.getvalue()) == {"error": "ZeroDivisionError: division by zero"}


def test_ctrl_c_is_no_traceback(monkeypatch):
    def interrupt(console, options):
        console.document({"so far": 1})
        raise KeyboardInterrupt

    monkeypatch.setattr(SUBCOMMANDS["test"], "handle", interrupt)
    code, out, err = run("test", "--json")
    assert (code, err, json.loads(out)) == (1, "Interrupted.", {"so far": 1, "error": "Interrupted."})


def test_without_a_standard_input_nobody_is_asked(failed, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    code, _out, err = run("retry", "--all")
    assert (code, err.splitlines()[-1]) == (2, "There is no terminal to ask at. Confirm with --yes.")


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_who_reads_a_pipe_may_stop(options):
    """As ``head`` does; the command says nothing, and its exit code is that of what it has done."""
    read, write = os.pipe()
    os.close(read)
    try:
        answer = process("stats", *options, stdout=write)
    finally:
        os.close(write)
    assert answer.returncode == 0, answer.stderr
    assert "BrokenPipeError" not in answer.stderr


def test_the_exit_code_of_wrong_arguments_is_2():
    answer = process("tasks", "--limit", "0")
    assert (answer.returncode, answer.stdout) == (2, "")
    assert "--limit" in answer.stderr
    assert process("cancel").returncode == 2


def test_each_subcommand_explains_itself():
    answer = process("--help")
    assert answer.returncode == 0
    assert "Exit codes: 0 done, 1 something failed or was refused, 2 wrong arguments." in " ".join(
        answer.stdout.split()
    )
    for name in SUBCOMMANDS:
        assert f"    {name} " in answer.stdout
