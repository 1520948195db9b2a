"""What django-q2's table of finished tasks holds is brought into the history."""

from __future__ import annotations

import json
from base64 import b64encode
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.utils import timezone
from django_q.brokers import get_broker
from django_q.humanhash import uuid
from django_q.models import Task
from django_q.signing import SignedPackage

from powercrud_dashboard.engine import plain
from powercrud_dashboard.models import TaskRecord, TaskStatistics
from tests.testapp import tasks
from tests.workers import database_refuses

pytestmark = pytest.mark.django_db

ADD = "tests.testapp.tasks.add"
TRACEBACK = 'Traceback (most recent call last):\n  File "tasks.py", line 3, in add\nValueError: no such thing\n'


def finished(*, ended_ago: timedelta = timedelta(hours=1), **fields: Any) -> Task:
    """Make a row as django-q2 saves one."""
    name, pk = uuid()
    stopped = timezone.now() - ended_ago
    usual = {"func": ADD, "args": (2,), "kwargs": {}, "result": 3, "success": True, "attempt_count": 1}
    times = {"started": stopped - timedelta(seconds=5), "stopped": stopped}
    return Task.objects.create(**{"id": pk, "name": name, **usual, **times, **fields})


def run(*arguments: str) -> tuple[int, str]:
    out, err = StringIO(), StringIO()
    try:
        call_command("pcrud_import_history", *arguments, stdout=out, stderr=err, no_color=True)
    except CommandError as error:
        return error.returncode, f"{out.getvalue()}{error}"
    return 0, out.getvalue()


def summary(*arguments: str) -> dict[str, Any]:
    code, out = run(*arguments, "--json")
    assert code == 0, out
    return json.loads(out)


def counts(*arguments: str) -> dict[str, int]:
    return {name: value for name, value in summary(*arguments).items() if type(value) is int and value}


def spoil(row: Task, column: str, content: bytes) -> None:
    """Put into a column what can't be unpickled, as after a deploy that has removed a class."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"UPDATE django_q_task SET {column} = %s WHERE id = %s",
            [b64encode(content).decode(), row.pk],
        )


class Hostile(list):
    """Arguments of a class of somebody's own."""

    def __reduce__(self) -> Any:
        return Hostile, ()

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Any:
        raise RuntimeError("not to be read")


GONE = b"cno_such_module\nNoSuchClass\n."


def test_tasks_are_recorded_as_they_were():
    done = finished(group="night", kwargs={"to": "anna"}, cluster="slow")
    failed = finished(success=False, result=f"no such thing : {TRACEBACK}", attempt_count=3)
    assert counts() == {"found": 2, "imported": 2}
    record = TaskRecord.objects.get(task_name=done.pk)
    assert (record.status, record.func, record.group, record.cluster) == ("success", ADD, "night", "slow")
    assert (record.task_args, record.task_kwargs, record.result) == ([2], {"to": "anna"}, 3)
    assert (record.created_at, record.finished_at, record.started_at) == (done.started, done.stopped, None)
    # It ran under an older one.
    assert record.release == ""
    record = TaskRecord.objects.get(task_name=failed.pk)
    assert (record.status, record.resolution, record.attempts) == ("failed", "open", 3)
    assert (record.error, record.exception_class) == ("no such thing", "builtins.ValueError")
    assert [line.event for line in record.events.all()] == ["create", "fail"]


def test_it_can_be_run_again():
    rows = [finished() for _number in range(3)]
    assert counts() == {"found": 3, "imported": 3}
    before = list(TaskRecord.objects.order_by("pk").values_list("pk", "task_name"))
    finished()
    assert counts() == {"found": 4, "known": 3, "imported": 1}
    assert counts() == {"found": 4, "known": 4}
    assert list(TaskRecord.objects.order_by("pk").values_list("pk", "task_name"))[:3] == before
    assert {name for __, name in before} == {row.pk for row in rows}


@pytest.mark.django_db(transaction=True)
def test_it_goes_on_where_it_was_stopped():
    for _number in range(7):
        finished()
    with database_refuses("INSERT INTO", 1, after=4):
        code, out = run("--batch-size", "2")
    assert (code, "Stopped after 4 rows" in out) == (1, True)
    assert TaskRecord.objects.count() == 4
    assert counts("--batch-size", "2") == {"found": 7, "known": 4, "imported": 3}
    assert TaskRecord.objects.count() == 7
    assert TaskRecord.objects.filter(events__event="complete").count() == 7


def test_a_row_that_can_not_be_written_keeps_no_other():
    for _number in range(4):
        finished()
    bad = finished(name="bad-one", args=Hostile())
    code, out = run("--json")
    found = json.loads(out.partition("\n}")[0] + "}")
    assert (code, found["imported"], found["failed"]) == (1, 4, 1)
    assert found["failed_rows"] == {f"bad-one ({bad.pk})": "RuntimeError: not to be read"}
    assert "1 rows could not be written." in out


@pytest.mark.parametrize("column", ["args", "kwargs", "result"])
def test_values_that_can_not_be_unpickled_are_named_and_stop_nothing(manager, column):
    bad, other = finished(name="bad-one"), finished()
    spoil(bad, column, GONE)
    found = summary()
    assert (found["imported"], found["unreadable"]) == (2, 1)
    ((name, reason),) = found["unreadable_rows"].items()
    assert name == f"bad-one ({bad.pk})"
    assert reason == f"{column}: ModuleNotFoundError: No module named 'no_such_module'"
    record = TaskRecord.objects.get(task_name=bad.pk)
    shown = {"args": record.task_args, "kwargs": record.task_kwargs, "result": record.result}
    assert "unreadable: ModuleNotFoundError" in str(shown.pop(column))
    assert "unreadable" not in str(shown)
    assert TaskRecord.objects.get(task_name=other.pk).result == 3
    # Nothing is run with what stands in their place.
    assert bool(record.payload) is (column == "result")


@pytest.mark.parametrize("content", [b"", b"\x80", b"not a pickle", b"cbuiltins\nexit\n)R."])
def test_whatever_is_in_the_columns(content):
    bad = finished()
    for column in ("args", "kwargs", "result"):
        spoil(bad, column, content)
    found = summary()
    assert (found["found"], found["imported"], found["unreadable"]) == (1, 1, 1)


def test_a_column_that_is_no_base64():
    bad = finished()
    with connection.cursor() as cursor:
        cursor.execute("UPDATE django_q_task SET result = 'é%%' WHERE id = %s", [bad.pk])
    assert summary()["unreadable"] == 1


def test_arguments_of_odd_types_are_kept():
    finished(args=None, kwargs=None)
    finished(args={"a": 1}, kwargs=[1, 2])
    assert counts() == {"found": 2, "imported": 2}


def test_tasks_of_managers_are_left_out(manager):
    name = manager.launch_async_task(tasks.add, 1, sync=True)
    # One whose record was deleted, the cleanup's schedule and the probe.
    deleted = manager.launch_async_task(tasks.add, 1, sync=True, task_key="nightly 2030-01-31")
    TaskRecord.objects.get(task_name=deleted).delete()
    finished(func="powercrud_dashboard.schedules.cleanup_async_artifacts")
    finished(name="pcrud-probe-1", func="math.floor")
    assert counts() == {"found": 4, "known": 1, "own": 3}
    assert TaskRecord.objects.get().task_name == name


def test_plain_tasks_without_arguments_are_imported_whatever_their_names_are():
    finished(name="0cb1a1c2-5a52-4b8e-9a43-4a5c4ad0f6a1", args=(), kwargs={})
    assert counts() == {"found": 1, "imported": 1}


def test_tasks_that_are_only_counted_are_left_out(settings, manager):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_TRACK_SAMPLE": {ADD: 0.0}}
    row = finished()
    finished(success=False, result="x")
    message = {name: getattr(row, name) for name in ("id", "name", "func", "success", "started", "stopped")}
    plain.count_ends([plain.Run(message)])
    assert counts() == {"found": 2, "only_counted": 1, "imported": 1}
    manager.cleanup_completed_tasks()
    assert TaskStatistics.objects.get().completed == 1
    assert "1 only counted in the statistics" in run()[1]


def test_the_collected_result_of_an_iteration_is_no_further_task():
    ids = uuid()[1], uuid()[1]
    plain.record_ends(
        plain.Run({**vars(finished(group=ids[0])), "cluster": None}, timezone.now()) for _number in range(2)
    )
    finished(id=ids[0], args=[(1,), (2,)], result=[3, 4])
    assert counts() == {"found": 3, "known": 3}
    # There is no other trace of an iteration that was not observed.
    finished(id=ids[1], args=[(1,), (2,)], result=[3, 4])
    assert counts() == {"found": 4, "known": 3, "imported": 1}


def test_a_retry_has_the_hook_of_the_first_try():
    row = finished(success=False, result="x", hook="tests.testapp.tasks.note_end")
    run()
    call_command("pcrud", "retry", row.pk, stdout=StringIO())
    ((__, payload),) = get_broker().dequeue()
    message = SignedPackage.loads(payload)
    assert (message["hook"], message["func"]) == ("tests.testapp.tasks.note_end", ADD)


def test_only_the_last_days_if_that_is_wanted():
    new, old = finished(), finished(ended_ago=timedelta(days=3))
    assert counts("--since", "2") == {"found": 2, "before_since": 1, "imported": 1}
    assert TaskRecord.objects.get().task_name == new.pk
    assert counts() == {"found": 2, "known": 1, "imported": 1}
    assert TaskRecord.objects.filter(task_name=old.pk).exists()


def test_what_cleanup_would_delete_is_not_imported(manager, settings):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_RETENTION_DAYS": {"success": 2}}
    for days in (1, 3):
        finished(ended_ago=timedelta(days=days))
        finished(ended_ago=timedelta(days=days), success=False, result="x")
    assert counts() == {"found": 4, "past_retention": 1, "imported": 3}
    assert manager.cleanup_completed_tasks()["pruned_records"] == 0
    code, out = run()
    assert code == 0
    assert "past the retention: cleanup would delete them" in out


def test_nor_is_what_is_past_the_retention_or_the_number_of_observed_tasks(settings):
    days = {finished(ended_ago=timedelta(days=days)).pk: days for days in (1, 2, 3, 8)}
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_TRACK_MAX_RECORDS": 0}
    assert counts() == {"found": 4, "past_retention": 1, "over_limit": 3}
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_TRACK_MAX_RECORDS": 2}
    assert counts() == {"found": 4, "past_retention": 1, "over_limit": 1, "imported": 2}
    assert {days[name] for name in TaskRecord.objects.values_list("task_name", flat=True)} == {1, 2}
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_TRACK_MAX_RECORDS": None, "DASHBOARD_TRACK_RETENTION_DAYS": None}
    assert counts() == {"found": 4, "known": 2, "imported": 2}


@pytest.mark.parametrize(
    ("given", "left"), [({"DASHBOARD_TRACK": "own"}, 2), ({"DASHBOARD_TRACK_EXCLUDE": ["tests.*"]}, 1)]
)
def test_functions_that_are_not_observed_are_left_out(settings, given, left):
    finished()
    finished(func="math.floor")
    settings.POWERCRUD_SETTINGS = given
    assert counts() == {"found": 2, "not_tracked": left, **({"imported": 2 - left} if left < 2 else {})}


def test_a_name_that_the_launch_has_given_is_the_label():
    finished(name="Nightly sum")
    finished()
    run()
    assert set(TaskRecord.objects.values_list("label", flat=True)) == {"Nightly sum", ADD}


def test_a_dry_run_writes_nothing():
    bad = finished()
    finished()
    spoil(bad, "result", GONE)
    assert counts("--dry-run") == {"found": 2, "imported": 2, "unreadable": 1}
    code, out = run("--dry-run")
    assert (code, "2 would be imported" in out) == (0, True)
    assert not TaskRecord.objects.exists()


def test_an_empty_table_is_no_error():
    assert run() == (0, "        0 rows in django-q2's table, of which\n        0 imported\n")


@pytest.mark.parametrize("arguments", [("--batch-size", "0"), ("--since", "-1"), ("--since", "nan")])
def test_impossible_arguments_are_refused(arguments):
    assert run(*arguments)[0] == 2


def test_without_a_history_it_says_so(settings):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_RECORDER": None}
    code, out = run()
    assert (code, "DASHBOARD_RECORDER is None" in out) == (1, True)
