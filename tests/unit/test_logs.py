"""What the code of a task logs is kept with the task."""

from __future__ import annotations

import logging
import sys
import threading
from contextlib import suppress

import pytest
from django.conf import settings as django_settings
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from powercrud_dashboard.async_context import task_context
from powercrud_dashboard.models import TaskEvent, TaskLogLine, TaskRecord
from tests.services import wait_until
from tests.testapp import chatty
from tests.workers import deliver, run_queue

CHATTY = "tests.testapp.chatty"


@pytest.fixture
def with_settings(settings):
    def change(**values: object) -> None:
        settings.POWERCRUD_SETTINGS = {**django_settings.POWERCRUD_SETTINGS, **values}

    return change


@pytest.fixture(params=[pytest.param(True, id="sync"), pytest.param(False, id="worker")])
def run(request, manager, record_of):
    """Run a task, in this process or as a worker does; return its record."""

    def run(function: object, *args: object, **options: object) -> TaskRecord:
        sync = request.param
        with suppress(ValueError):
            name = manager.launch_async_task(function, *args, task_key="task-1", sync=sync, **options)
            if not sync:
                deliver()
            assert name == "task-1"
        return record_of("task-1")

    return run


@pytest.fixture
def alone(monkeypatch):
    """Let there be no other handler of records."""
    return lambda: monkeypatch.setattr(logging.root, "handlers", [])


def messages(record: TaskRecord) -> list[str]:
    return list(record.log_lines.values_list("message", flat=True))


@pytest.mark.django_db(transaction=True)
def test_what_a_task_logs_is_kept_with_level_logger_and_time(run):
    record = run(chatty.log_in_levels)
    lines = list(record.log_lines.all())
    assert [(line.level, line.logger, line.message.splitlines()[0]) for line in lines] == [
        (20, CHATTY, "invoice 12 sent"),
        (30, "chatty.own", "a warning of its own"),
        (25, "", "Sent."),
        (40, CHATTY, "invoice 13 failed"),
    ]
    assert lines[-1].message.endswith("LookupError: no such invoice")
    assert all(record.started_at <= line.time <= record.finished_at for line in lines)
    # What the task has told on purpose is in its timeline as well.
    assert [event.message for event in record.events.filter(event="log")] == ["Sent."]


@pytest.mark.django_db(transaction=True)
def test_the_last_lines_of_a_task_that_fails_are_kept(run):
    record = run(chatty.log_and_fail)
    assert (record.status, messages(record)) == ("failed", ["about to fail"])


@pytest.mark.django_db(transaction=True)
def test_the_level_is_a_setting(run, with_settings):
    with_settings(DASHBOARD_LOG_LEVEL="ERROR")
    assert [text.splitlines()[0] for text in messages(run(chatty.log_in_levels))] == ["Sent.", "invoice 13 failed"]


@pytest.mark.django_db(transaction=True)
def test_no_lines_are_kept_if_the_settings_say_so(run, with_settings):
    with_settings(DASHBOARD_LOG_LINES=0)
    record = run(chatty.log_in_levels)
    assert messages(record) == []
    assert record.events.filter(event="log").exists()


@pytest.mark.django_db(transaction=True)
def test_of_too_many_lines_the_first_and_the_newest_are_kept(run, with_settings):
    with_settings(DASHBOARD_LOG_LINES=100)
    lines = list(run(chatty.log_many, 1_000).log_lines.all())
    assert len(lines) <= 100
    assert [line.message for line in lines[:20]] == [f"line {number}" for number in range(20)]
    kept = len(lines) - 21
    assert kept >= 50
    assert [line.message for line in lines[21:]] == [f"line {number}" for number in range(1_000 - kept, 1_000)]
    assert lines[20].left_out == 1_000 - 20 - kept


@pytest.mark.django_db
def test_the_mark_counts_what_is_left_out_by_several_writes(manager, with_settings):
    with_settings(DASHBOARD_LOG_LINES=50)
    name = manager.launch_async_task(chatty.log_nothing)
    for part in range(30):
        with task_context(name):
            chatty.log_many(7, f"part {part}")
    lines = list(TaskLogLine.objects.order_by("pk"))
    first = [*(f"part 0 {number}" for number in range(7)), *(f"part 1 {number}" for number in range(3))]
    assert [line.message for line in lines[:10]] == first
    assert [bool(line.left_out) for line in lines] == [number == 10 for number in range(len(lines))]
    assert lines[10].left_out + len(lines) - 1 == 210
    assert lines[-1].message == "part 29 6"


@pytest.mark.django_db(transaction=True)
def test_the_characters_of_a_log_are_bounded(run, with_settings):
    with_settings(DASHBOARD_LOG_SIZE=10_000)
    lines = list(run(chatty.log_many, 50, "x" * 1_000).log_lines.all())
    assert sum(len(line.message) for line in lines) <= 10_000
    assert lines[0].message.endswith(" 0")
    assert lines[-1].message.endswith(" 49")
    assert sum(line.left_out for line in lines) + len(lines) - 1 == 50


@pytest.mark.django_db(transaction=True)
def test_odd_messages_are_kept_as_text(run, alone):
    alone()
    red, unfitting, long = messages(run(chatty.log_oddly))
    assert red == "red\N{REPLACEMENT CHARACTER} and \N{REPLACEMENT CHARACTER} more"
    assert unfitting.startswith("%d pieces")
    assert len(long) == 10_000


@pytest.mark.django_db(transaction=True)
def test_an_object_that_logs_while_it_is_printed_is_no_endless_loop(run, alone):
    alone()
    assert messages(run(chatty.log_while_logging)) == ["an object"]


@pytest.mark.django_db(transaction=True)
def test_only_threads_with_the_context_of_the_task_log_for_it(run):
    assert messages(run(chatty.log_in_threads)) == ["from a thread of the task"]


@pytest.mark.django_db(transaction=True)
def test_the_queries_that_write_the_log_are_not_logged(run, with_settings, settings):
    with_settings(DASHBOARD_LOG_LEVEL="DEBUG")
    backend = logging.getLogger("django.db.backends")
    before, debug = backend.level, connection.force_debug_cursor
    backend.setLevel(logging.DEBUG)
    connection.force_debug_cursor = True
    try:
        record = run(chatty.log_queries)
    finally:
        backend.setLevel(before)
        connection.force_debug_cursor = debug
    lines = [text for text in messages(record) if "INSERT" in text or "powercrud" in text]
    assert lines == []
    assert any("SELECT 1" in text for text in messages(record))
    assert messages(record)[-1] == "after"


@pytest.mark.django_db(transaction=True)
def test_prints_are_kept_by_choice(run, with_settings, capsys):
    with_settings(DASHBOARD_LOG_PRINT=True)
    before = sys.stdout, sys.stderr
    record = run(chatty.print_lines)
    assert (sys.stdout, sys.stderr) == before
    assert list(record.log_lines.values_list("logger", "message")) == [
        ("stdout", "first line"),
        ("stdout", "10 %"),
        ("stdout", "20 %"),
        ("stderr", "to the other stream"),
        ("stdout", "without an end"),
    ]
    printed = capsys.readouterr()
    assert printed.out.startswith("first line\n")
    assert printed.err == "to the other stream\n"


@pytest.mark.django_db(transaction=True)
def test_prints_are_not_kept_by_default(run):
    assert messages(run(chatty.print_lines)) == []


@pytest.mark.django_db(transaction=True)
def test_nothing_stays_attached(run):
    before = list(logging.root.handlers), list(chatty.own.handlers)
    run(chatty.log_in_levels)
    assert (logging.root.handlers, chatty.own.handlers) == before


@pytest.mark.django_db(transaction=True)
def test_a_warning_that_nobody_handles_is_still_printed(run, capsys, alone):
    alone()
    run(chatty.log_in_levels)
    assert capsys.readouterr().err.count("invoice 13 failed") == 1


@pytest.mark.django_db(transaction=True)
def test_a_task_that_logs_nothing_pays_nothing(manager):
    def statements(function: object) -> int:
        manager.launch_async_task(function)
        with CaptureQueriesContext(connection) as captured:
            deliver()
        return len(captured)

    statements(chatty.log_nothing)
    nothing = statements(chatty.log_nothing)
    assert statements(chatty.log_in_levels) == nothing + 2  # the lines of the log, and the line of the timeline
    assert nothing <= 9


@pytest.mark.django_db
def test_a_log_call_never_waits_for_the_database(manager, django_assert_num_queries):
    name = manager.launch_async_task(chatty.log_nothing)
    with task_context(name), django_assert_num_queries(0):
        chatty.log_many(100)
    assert TaskLogLine.objects.count() == 100


@pytest.mark.django_db(transaction=True)
def test_lines_of_a_transaction_that_is_rolled_back_are_kept(run):
    def roll_back() -> None:
        with transaction.atomic():
            chatty.logger.info("inside")
            transaction.set_rollback(True)

    globals()["roll_back"] = roll_back
    roll_back.__qualname__ = "roll_back"
    assert messages(run(f"{__name__}.roll_back")) == ["inside"]


@pytest.mark.django_db(transaction=True)
def test_lines_are_written_while_the_task_runs(manager, record_of, tmp_path):
    name = manager.launch_async_task(chatty.log_until, str(tmp_path / "end"))

    def work() -> None:
        deliver()
        connection.close()

    worker = threading.Thread(target=work)
    worker.start()
    try:
        wait_until(lambda: record_of(name).log_lines.count() > 2, "the first lines are there")
        assert record_of(name).status == "in_progress"
    finally:
        (tmp_path / "end").touch()
        worker.join()
    lines = messages(record_of(name))
    assert lines[-1] == "the last line"
    assert lines[:-1] == [f"step {number}" for number in range(len(lines) - 1)]


@pytest.mark.django_db(transaction=True)
def test_the_log_of_a_retry_goes_on(manager, record_of):
    manager.launch_async_task(chatty.log_and_fail, retry=1, task_key="task-1")
    run_queue(at_most=1)
    manager.run_task_now("task-1")
    run_queue()
    assert messages(record_of("task-1")) == ["about to fail"] * 2


@pytest.mark.django_db
def test_the_log_goes_with_its_record(manager, boss, superuser):
    manager.launch_async_task(chatty.log_in_levels, sync=True)
    record = TaskRecord.objects.get()
    boss.post(f"/admin/powercrud_dashboard/taskrecord/{record.pk}/delete/", {"post": "yes"})
    assert not TaskLogLine.objects.exists()
    assert not TaskEvent.objects.exists()
