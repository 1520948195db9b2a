from __future__ import annotations

import pytest
from django.core.management import call_command
from django.db import DatabaseError, connection

from powercrud_dashboard import lifecycle, signals
from powercrud_dashboard.async_manager import AsyncManager
from powercrud_dashboard.dashboard_manager import DashboardAsyncManager
from powercrud_dashboard.models import ActiveTask, ConflictLock, TaskRecord
from powercrud_dashboard.recording import to_json
from powercrud_dashboard.worker.task import claim
from tests.testapp import tasks
from tests.testapp.models import Project

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
    assert ActiveTask.objects.claim_pending(name, host="elsewhere", pid=1)
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


@pytest.mark.django_db(transaction=True)
def test_signals_tell_those_who_must_listen(manager):
    heard = []

    def listen(signal, **facts):
        heard.append((facts["task_name"], facts.get("event", "started")))

    signals.task_started.connect(listen)
    signals.task_finished.connect(listen)
    try:
        name = manager.launch_async_task(ADD, 1, sync=True)
    finally:
        signals.task_started.disconnect(listen)
        signals.task_finished.disconnect(listen)
    assert heard == [(name, "started"), (name, "complete")]


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
@pytest.mark.parametrize("event", ["create", "start", "complete"])
def test_a_connection_that_is_lost_on_the_way_is_no_success(monkeypatch, event):
    manager = CutOffManager()
    name = "cut-off"
    steps = {
        "create": lambda: manager.launch_async_task(ADD, 1, task_key=name),
        "start": lambda: claim(manager, name),
        "complete": lambda: lifecycle.end(manager, ActiveTask.objects.running().get(), "complete", result=1),
    }
    for step in steps:
        monkeypatch.setattr(CutOffManager, "cut_off_at", event if step == event else "")
        if step == event:
            before = list(ActiveTask.objects.values_list("state", "attempt"))
            with pytest.raises(DatabaseError):
                steps[step]()
            connection.close()
            assert list(ActiveTask.objects.values_list("state", "attempt")) == before
            return
        steps[step]()


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
