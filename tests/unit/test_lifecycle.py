from __future__ import annotations

import json
import os
import re
import sys
import threading

import pytest
from django.core.management import call_command
from django.db import DatabaseError, OperationalError, connection
from django.db.backends.signals import connection_created
from django.utils import timezone
from django_q.models import OrmQ

from powercrud_dashboard.async_context import get_current_task, task_context, track
from powercrud_dashboard.async_manager import AsyncManager, RetryPolicy
from powercrud_dashboard.dashboard_manager import DashboardAsyncManager
from powercrud_dashboard.engine import lifecycle, processes
from powercrud_dashboard.engine.values import to_json
from powercrud_dashboard.exceptions import TaskCancelled, WorkerLost
from powercrud_dashboard.models import ActiveTask, ConflictLock, TaskRecord, WorkerProcess
from powercrud_dashboard.text import MAX_DEPTH
from powercrud_dashboard.worker import heartbeat
from tests.services import wait_until
from tests.testapp import tasks
from tests.testapp.models import Project
from tests.workers import claimed_elsewhere, deliver

pytestmark = pytest.mark.django_db

ADD = "tests.testapp.tasks.add"


class RaisingManager(DashboardAsyncManager):
    """Its hook fails after it has written something of its own."""

    def async_task_lifecycle(self, event, task_name, **payload):
        super().async_task_lifecycle(event, task_name, **payload)
        Project.objects.create(name=f"half done at {event}")
        raise RuntimeError(f"no {event} for you")


class BrokenQueryManager(DashboardAsyncManager):
    """Its hook breaks the transaction that it runs in."""

    def async_task_lifecycle(self, event, task_name, **payload):
        TaskRecord.objects.create(task_name="twice", label="", func="", manager_class="")
        TaskRecord.objects.create(task_name="twice", label="", func="", manager_class="")


class ListeningManager(AsyncManager):
    heard: list[tuple[str, dict]] = []

    def async_task_lifecycle(self, event, task_name, **payload):
        self.heard.append((event, payload))


def test_a_hook_that_raises_breaks_nothing_and_is_shown(record_of, caplog):
    name = RaisingManager().launch_async_task(ADD, 1, sync=True, conflict_ids={"testapp.Project": {1}})
    record = record_of(name)
    assert (record.status, record.result) == ("success", 1)
    kept = list(record.events.values_list("event", flat=True))
    assert kept == [
        *("create", "hook_error", "start", "hook_error"),
        # Hooks hear of the end when all of it is recorded.
        *("complete", "cleanup", "hook_error", "hook_error"),
    ]
    shown = record.events.filter(event="hook_error").first()
    assert "RuntimeError: no create for you" in shown.message
    assert "in async_task_lifecycle" in shown.payload["traceback"]
    assert "Traceback" in caplog.text
    assert not Project.objects.exists()
    assert not ConflictLock.objects.exists()


class ExitingManager(DashboardAsyncManager):
    """Its hooks end the process, as code that was written as a program does."""

    def async_task_lifecycle(self, event, task_name, **payload):
        raise SystemExit(f"no {event} for you")

    def handle_task_completion(self, task, task_name):
        raise SystemExit(3)


@pytest.mark.django_db(transaction=True)
def test_a_hook_that_exits_ends_neither_the_launch_nor_the_task(record_of):
    record = record_of(ExitingManager().launch_async_task(ADD, 1, sync=True))
    assert (record.status, record.result) == ("success", 1)
    shown = record.events.filter(event="hook_error").values_list("message", flat=True)
    assert len(shown) == 5
    assert "SystemExit: no create for you" in shown[0]


class ForkingManager(DashboardAsyncManager):
    """Its hook forks a child that returns, or exits."""

    ways = {"returns": lambda: None, "exits": lambda: sys.exit(4)}

    def async_task_lifecycle(self, event, task_name, **payload):
        if event == "create":
            child = os.fork()
            if not child:
                self.ways[self.config["way"]]()
            else:
                self.code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("way", "code"), [("returns", 0), ("exits", 4)])
def test_a_child_that_a_hook_forks_does_not_go_on_with_the_launch(record_of, way, code):
    manager = ForkingManager({"way": way})
    record = record_of(manager.launch_async_task(ADD, 1))
    assert manager.code == code
    assert list(record.events.values_list("event", flat=True)) == ["create"]


def test_a_hook_that_breaks_its_transaction_breaks_only_its_own_part():
    name = BrokenQueryManager().launch_async_task(ADD, 1)
    assert TaskRecord.objects.get().task_name == name


def test_the_guides_subclass_hears_of_everything(superuser):
    ListeningManager.heard.clear()
    ListeningManager().launch_async_task(ADD, 1, user=superuser, affected_objects=["one"], sync=True)
    with pytest.raises(ValueError, match="it broke"):
        ListeningManager().launch_async_task(tasks.fail, sync=True)
    events = [event for event, _payload in ListeningManager.heard]
    assert events == ["create", "start", "complete", "cleanup", "create", "start", "fail", "cleanup"]
    payloads = dict(ListeningManager.heard[:4])
    assert (payloads["create"]["user"], payloads["create"]["affected_objects"]) == (superuser, ["one"])
    assert payloads["complete"]["result"] == 1
    assert dict(ListeningManager.heard[4:])["fail"]["result"] == "it broke"


def test_an_event_after_the_end_never_brings_a_task_back(manager, record_of):
    name = manager.launch_async_task(ADD, 1)
    manager.cancel_task(name)
    for event in ("start", "complete", "fail"):
        manager.async_task_lifecycle(event, name, result=1, error="late")
    record = record_of(name)
    assert (record.status, record.result, record.error) == ("cancelled", None, "")
    assert record.events.filter(event="complete").get().message.startswith("Arrived after")


@pytest.mark.parametrize("event", ["complete", "fail"])
def test_the_truth_wins_over_a_guess(manager, record_of, event):
    name = manager.launch_async_task(ADD, 1)
    manager.async_task_lifecycle("fail", name, reason="worker_lost", error="Worker lost")
    manager.async_task_lifecycle(event, name, reason="error", result=5, error="it broke", late=True)
    record = record_of(name)
    expected = ("success", "", 5, "") if event == "complete" else ("failed", "error", None, "it broke")
    assert (record.status, record.failure_reason, record.result, record.error) == expected


def test_a_cancelled_queued_task_ends_at_once(manager, record_of, superuser):
    name = manager.launch_async_task(ADD, 1, conflict_ids={"testapp.Project": {1}})
    assert manager.cancel_task(name, user=superuser)
    assert record_of(name).status == manager.get_task_status(name) == "cancelled"
    assert record_of(name).events.get(event="cancel").actor == superuser
    assert not ActiveTask.objects.exists()
    assert not ConflictLock.objects.exists()
    assert not manager.cancel_task(name)


def test_cancelling_tells_the_manager_that_launched_the_task(superuser):
    ListeningManager.heard.clear()
    name = ListeningManager().launch_async_task(ADD, 1)
    DashboardAsyncManager().cancel_task(name, user=superuser)
    assert ListeningManager.heard[1][0] == "cancel"


def test_a_running_task_is_asked_to_stop_once(manager, record_of, superuser):
    name = manager.launch_async_task(ADD, 1)
    assert claimed_elsewhere(name)
    assert manager.cancel_task(name, user=superuser)
    assert not manager.cancel_task(name, user=superuser)
    assert record_of(name).events.get(event="cancel_requested").actor == superuser
    assert ActiveTask.objects.get().cancel_requested_by == superuser


def test_removing_an_active_task_by_hand_releases_it(manager, record_of):
    name = manager.launch_async_task(ADD, 1, conflict_ids={"testapp.Project": {1}})
    assert manager.remove_active_task(name)
    assert not manager.remove_active_task(name)
    assert not ConflictLock.objects.exists()
    assert record_of(name).status == "cancelled"


def test_results_of_every_kind_are_kept(manager, record_of):
    record = record_of(manager.launch_async_task(tasks.awkward_result, sync=True))
    assert record.status == "success"
    assert "nan" in record.result
    record = record_of(manager.launch_async_task(tasks.unpicklable, sync=True))
    assert "<function unpicklable" in record.result


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ({"a": [1, None, True]}, {"a": [1, None, True]}),
        ({3, 1, 2}, [1, 2, 3]),
        ("a\x00b", "a\N{REPLACEMENT CHARACTER}b"),
        ("\\u0000", "\\u0000"),
        (object, "<class 'object'>"),
    ],
)
def test_json_of_anything(value, kept):
    assert to_json(value) == kept or kept in str(to_json(value))


@pytest.mark.parametrize("depth", [60, 960, 100_000])
def test_deeply_nested_results_are_cut(depth):
    kept = to_json({"list": tasks.nested(depth, 1), "b": 2})
    assert kept["b"] == 2
    assert json.dumps(kept).count("[") == MAX_DEPTH - 1


def test_huge_results_are_cut():
    assert len(to_json("x" * 10_000_000)) <= 1_000


def test_events_of_a_talkative_task_are_limited(settings, manager, record_of):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_EVENT_LIMIT": 5}
    name = manager.launch_async_task(ADD, 1)
    for number in range(20):
        manager.update_progress(name, f"at {number}")
    manager.cancel_task(name)
    kept = list(record_of(name).events.values_list("event", flat=True))
    assert kept.count("progress") == 4
    assert kept[-2:] == ["cancel", "cleanup"]


def test_progress_that_only_counts_on_is_one_line(manager, record_of):
    name = manager.launch_async_task(ADD, 1)
    for message, current in (("read", 1), ("read", 2), ("write", 1), ("write", 2)):
        manager.update_progress(name, message, current=current, total=2)
    lines = record_of(name).events.filter(event="progress").values_list("message", "payload")
    assert list(lines) == [("read", {"current": 2, "total": 2}), ("write", {"current": 2, "total": 2})]


def test_objects_of_a_big_task_are_limited_and_its_count_is_exact(settings, manager, record_of):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_OBJECT_LIMIT": 10}
    name = manager.launch_async_task(ADD, 1, conflict_ids={"testapp.Project": range(1, 101)})
    record = record_of(name)
    assert record.affected_count == 100
    assert record.objects_worked_on.count() == len(record.conflict_ids["testapp.project"]) == 10
    assert ConflictLock.objects.count() == 100


def test_migrations_are_complete():
    call_command("makemigrations", check=True, dry_run=True, verbosity=0)


class CutOffManager(DashboardAsyncManager):
    """The database closes its connection while an event is written."""

    cut_off_at = ""

    def record_lifecycle_events(self, task_name, events):
        if self.cut_off_at in [event for event, _payload in events]:
            connection.connection.close()
        super().record_lifecycle_events(task_name, events)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("event", "left"),
    [("create", []), ("start", [("in_progress", 1)]), ("complete", [("in_progress", 1)])],
)
def test_a_connection_that_is_lost_on_the_way_is_no_success(monkeypatch, event, left):
    monkeypatch.setattr(CutOffManager, "cut_off_at", event)
    monkeypatch.setattr("powercrud_dashboard.worker.task.DATABASE_RETRY_DELAYS", ())
    try:
        CutOffManager().launch_async_task(ADD, 1)
    except DatabaseError:
        assert event == "create"
    else:
        OrmQ.objects.get().task["func"]()
    connection.close()
    assert list(ActiveTask.objects.values_list("state", "attempt")) == left


def test_many_log_lines_at_once_fill_the_timeline_to_its_limit_and_say_so_once(settings, manager, record_of):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_EVENT_LIMIT": 5}
    name = manager.launch_async_task(ADD, 1)
    log = [("log", {"message": f"line {number}", "level": "info"}) for number in range(10)]
    lifecycle.emit_all(manager, name, log)
    lifecycle.emit_all(manager, name, [("log", {"message": "later", "level": "info"})])
    messages = list(record_of(name).events.values_list("message", flat=True))
    assert messages[:5] == ["", "line 0", "line 1", "line 2", "line 3"]
    assert messages[5].startswith("There are 5 events")
    assert len(messages) == 6


class OneBrokenEventManager(DashboardAsyncManager):
    """One of the events that are recorded together can't be."""

    def record_lifecycle_events(self, task_name, events):
        super().record_lifecycle_events(task_name, events)
        if "cleanup" in [event for event, _payload in events]:
            raise RuntimeError("no cleanup for you")


def test_an_event_that_can_not_be_recorded_does_not_take_others_with_it(record_of, caplog):
    name = OneBrokenEventManager().launch_async_task(ADD, 1, sync=True)
    record = record_of(name)
    assert (record.status, record.result) == ("success", 1)
    assert list(record.events.values_list("event", flat=True)) == ["create", "start", "complete"]
    assert "no cleanup for you" in caplog.text
    assert not ActiveTask.objects.exists()


def talk() -> None:
    task = get_current_task()
    task.log("before")
    task.update_progress("Step 1/2")
    task.log("between", "warning")
    task.update_progress("Step 2/2")
    task.log("after")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("manager_class", [AsyncManager, ListeningManager])
def test_what_a_short_task_reports_is_in_order_and_before_its_end(record_of, manager_class):
    """Its newest progress is the only one that a short task writes."""
    ListeningManager.heard.clear()
    began = timezone.now()
    name = manager_class().launch_async_task(f"{__name__}.talk")
    deliver()
    events = record_of(name).events.values_list("event", "message", "timestamp")
    assert [event[:2] for event in events][2:-1] == [
        ("log", "before"),
        ("log", "between"),
        ("progress", "Step 2/2"),
        ("log", "after"),
        ("complete", "Step 2/2"),
    ]
    times = [time for _event, _message, time in events]
    assert times == sorted(times)
    assert times[0] >= began
    if manager_class is ListeningManager:
        heard = [event for event, _payload in ListeningManager.heard]
        assert heard == ["create", "start", "log", "log", "progress", "log", "complete", "cleanup"]
        assert dict(ListeningManager.heard)["progress"]["progress_payload"] == "Step 2/2"


@pytest.mark.django_db(transaction=True)
def test_the_timeline_shows_the_level_of_a_line(boss, manager, record_of):
    record = record_of(manager.launch_async_task(f"{__name__}.talk"))
    deliver()
    page = boss.get(f"/admin/powercrud_dashboard/taskrecord/{record.pk}/change/").content.decode()
    assert re.findall(r"pcrud-level-(\w+)\">(\w+)<", page) == [("warning", "Warning")]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("locks", [None, {"testapp.Project": [1]}])
def test_the_timeline_says_that_locks_are_released_if_there_were_some(boss, manager, record_of, locks):
    record = record_of(manager.launch_async_task(tasks.add, 1, conflict_ids=locks))
    deliver()
    page = boss.get(f"/admin/powercrud_dashboard/taskrecord/{record.pk}/change/").content.decode()
    assert ("Locks released" in page) is bool(locks)


def track_and_talk() -> None:
    list(track([1, 2], description="Working"))
    get_current_task().log("after the loop")


@pytest.mark.django_db(transaction=True)
def test_the_timeline_shows_the_message_of_a_loop_once(boss, manager, record_of):
    record = record_of(manager.launch_async_task(f"{__name__}.track_and_talk"))
    deliver()
    page = boss.get(f"/admin/powercrud_dashboard/taskrecord/{record.pk}/change/").content.decode()
    told = re.findall(r'pcrud-event-message">([^<]*)<', page)
    assert told == ["Working 2/2", "after the loop"]


@pytest.mark.django_db(transaction=True)
def test_the_last_report_of_a_loop_is_as_old_as_its_end(manager, record_of):
    name = manager.launch_async_task(f"{__name__}.track_and_talk")
    deliver()
    events = list(record_of(name).events.values_list("event", "message", "payload"))
    assert events[2:4] == [
        ("progress", "Working", {"current": 2, "total": 2}),
        ("log", "after the loop", {"level": "info"}),
    ]


class DeafManager(AsyncManager):
    """Must not hear of the tasks of others."""

    def async_task_lifecycle(self, event, task_name, **payload):
        raise AssertionError(event)


def test_progress_from_outside_is_heard_by_the_manager_of_the_task():
    ListeningManager.heard.clear()
    name = ListeningManager({"tone": "polite"}).launch_async_task(ADD, 1)
    DeafManager().update_progress(name, "Step 1/2")
    assert [event for event, _payload in ListeningManager.heard] == ["create", "progress"]
    payload = ListeningManager.heard[1][1]
    assert (payload["message"], payload["current"], payload["total"]) == ("Step 1/2", 1, 2)


@pytest.mark.parametrize("is_running", [True, False])
def test_the_context_of_a_cancelled_task_is_not_entered(manager, is_running):
    name = manager.launch_async_task(ADD, 1)
    if is_running:
        claimed_elsewhere(name)
    manager.cancel_task(name)
    with pytest.raises(TaskCancelled), task_context(name):
        pytest.fail("The block was entered")


def test_a_report_of_a_task_that_was_cancelled_meanwhile_raises(manager):
    name = manager.launch_async_task(ADD, 1)
    claimed_elsewhere(name)
    with task_context(name) as task:
        task.update_progress("still going")
        manager.cancel_task(name)
        with pytest.raises(TaskCancelled):
            task.update_progress("not any more")
        with pytest.raises(TaskCancelled):
            list(track([1, 2]))


def test_a_task_that_is_cancelled_while_it_waits_for_its_retry_has_no_failure(manager, record_of):
    name = manager.launch_async_task(ADD, 1, retry=1)
    claimed_elsewhere(name)
    WorkerProcess.objects.update(lost_at=timezone.now())
    ActiveTask.objects.update(policy=RetryPolicy(1, retry_on=[WorkerLost]).to_json())
    manager.cleanup_completed_tasks()
    assert record_of(name).failure_reason == "worker_lost"
    assert manager.cancel_task(name)
    record = record_of(name)
    assert (record.status, record.failure_reason, record.error, record.error_pattern) == ("cancelled", "", "", "")
    # What happened stays in the timeline.
    assert record.events.get(event="retry").message == "Worker lost"


@pytest.mark.django_db(transaction=True)
def test_a_start_that_the_heartbeat_fails_to_record_is_recorded_with_the_end(manager, record_of, monkeypatch, settings):
    """The round of the heartbeat takes longer than the end waits for it, and then fails."""
    # The silence of the heartbeat does not stop the task.
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_HEARTBEAT_TIMEOUT": 3600}
    monkeypatch.setattr(heartbeat, "ROUND_AT_MOST", 0.1)
    # So that the next write of the thread is that of the report.
    monkeypatch.setattr(processes, "HEARTBEAT_INTERVAL", 3600)
    heartbeat_thread = "powercrud-dashboard-heartbeat"
    wait_until(lambda: all(thread.name != heartbeat_thread for thread in threading.enumerate()), "no other runs")
    is_writing, is_over, has_failed = threading.Event(), threading.Event(), threading.Event()

    def fail_late(execute, sql, params, many, context):
        # The first statement of a write, which has locked nothing yet.
        if "_timeout" in sql and is_armed.is_set():
            is_writing.set()
            is_over.wait(30)
            has_failed.set()
            raise OperationalError("the server closed the connection")
        return execute(sql, params, many, context)

    def on_connection(connection, **kwargs):
        if threading.current_thread().name == heartbeat_thread and fail_late not in connection.execute_wrappers:
            connection.execute_wrappers.append(fail_late)

    is_armed = threading.Event()

    def until_it_is_written(left: int) -> int:
        is_armed.set()
        get_current_task().update_progress("working")
        assert is_writing.wait(30)
        return left

    name = manager.launch_async_task(ADD, 1)
    monkeypatch.setattr(tasks, "add", until_it_is_written)
    connection_created.connect(on_connection)
    try:
        deliver()
    finally:
        is_over.set()
        connection_created.disconnect(on_connection)
    assert has_failed.wait(30)
    events = list(record_of(name).events.values_list("event", flat=True))
    assert events == ["create", "start", "progress", "complete", "cleanup"]
    assert record_of(name).attempts == 1
