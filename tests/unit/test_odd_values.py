"""Values that no database stores, or that can't be printed, never cost a task its state."""

from __future__ import annotations

import json
import sys
import uuid
from datetime import timedelta
from decimal import Decimal
from types import SimpleNamespace

import hypothesis.strategies as st
import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.db import connection
from django.utils import timezone
from django.utils.translation import gettext_lazy
from django_q.models import OrmQ
from hypothesis import HealthCheck, given, settings

from powercrud_dashboard.async_context import get_current_task, track
from powercrud_dashboard.async_manager import AsyncManager, RetryPolicy
from powercrud_dashboard.dashboard_manager import DashboardAsyncManager
from powercrud_dashboard.exceptions import UnimportableCallable
from powercrud_dashboard.models import ActiveTask, ConflictLock, TaskRecord
from tests.clicks import CHANGELIST, last
from tests.testapp import tasks
from tests.testapp.models import Project
from tests.workers import claimed_elsewhere, deliver

pytestmark = pytest.mark.django_db

ADD = "tests.testapp.tasks.add"
NUL, HALF = "a\x00b", "a\ud800b"


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("not even that")

    __repr__ = __str__

    def __int__(self) -> int:
        raise RuntimeError("nor counted")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("nor compared")

    __hash__ = None


class NoText:
    def __str__(self) -> str:
        return 5

    __repr__ = __str__


class Much:
    def __str__(self) -> str:
        return "x" * 3_000_000

    __repr__ = __str__


#: Hypothesis prints what it draws; these can't be printed, or not in reasonable time.
UNPRINTABLE = {"unprintable": Unprintable(), "no text": NoText(), "much": Much()}
ODD = {
    "nul": NUL,
    "half of a pair": HALF,
    "long": "x" * 300,
    "bytes": b"\x00",
    "nul in a key": {NUL: {HALF: 1}},
    "nan": float("nan"),
    "infinite": float("inf"),
    "large": 2**70,
    "negative": -1,
    "decimal": Decimal("NaN"),
    "deep": tasks.nested(200, 1),
}
ODD_VALUES = st.recursive(
    st.text(st.characters(), max_size=20) | st.sampled_from(list(ODD.values())) | st.integers() | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters()), inner, max_size=3),
    max_leaves=5,
)


def report_oddly(message: object, value: object) -> object:
    task = get_current_task()
    task.log(message, message)
    task.update_progress(message, current=value, total=value)
    task.note_outcome("testapp.project", message, "failed", message, message)
    return message


few = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@few
@given(ODD_VALUES, ODD_VALUES)
def test_whatever_a_task_reports_it_ends_as_it_did(manager, message, value):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tasks, "add", lambda left: report_oddly(message, value))
        name = manager.launch_async_task(ADD, 1, sync=True, object_ids={"testapp.project": {1}}, by_object=True)
    record = TaskRecord.objects.get(task_name=name)
    assert (record.status, record.failed_count) == ("success", 1)
    assert list(record.events.values_list("event", flat=True)) == [
        *("create", "start", "log", "progress", "complete", "cleanup"),
    ]


@few
@given(ODD_VALUES, ODD_VALUES)
def test_whatever_is_launched_is_recorded(manager, value, other):
    options = {"label": other, "affected_objects": [value, other], "user": other}
    name = manager.launch_async_task(tasks.echo, task_kwargs={NUL: value, "other": other}, sync=True, **options)
    record = TaskRecord.objects.get(task_name=name)
    assert (record.status, len(record.task_kwargs)) == ("success", 2)
    json.dumps(record.task_kwargs, allow_nan=False, ensure_ascii=False).encode()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("odd", [*ODD, *UNPRINTABLE])
def test_a_worker_records_the_end_of_a_task_that_reported_it(manager, record_of, monkeypatch, odd):
    value = {**ODD, **UNPRINTABLE}[odd]
    name = manager.launch_async_task(ADD, 1, object_ids={"testapp.project": {1}}, by_object=True)
    monkeypatch.setattr(tasks, "add", lambda left: report_oddly(value, value))
    deliver()
    record = record_of(name)
    assert record.status == "success"
    assert list(record.events.values_list("event", flat=True)) == [
        *("create", "start", "log", "progress", "complete", "cleanup"),
    ]
    assert record.objects_worked_on.filter(outcome="failed").exists()
    assert not ActiveTask.objects.exists()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), "many", 2**70, -1, Unprintable(), None])
def test_how_far_a_task_is_is_a_whole_number_or_not_known(manager, number):
    name = manager.launch_async_task(ADD, 1)
    manager.update_progress(name, "working", current=number, total=number)
    assert manager.describe_progress(name)["current"] is None
    manager.update_progress(name, "working", current=Decimal(3), total=4.0)
    assert manager.describe_progress(name)["percent"] == 75


def test_arguments_keep_their_structure_whatever_is_among_them(manager, record_of):
    arguments = {"pattern": "\\u0000", "text": NUL, "when": timedelta(seconds=5), "inner": {"odd": Unprintable()}}
    record = record_of(manager.launch_async_task(tasks.echo, task_kwargs=arguments, sync=True))
    expected = {
        "pattern": "\\u0000",
        "text": "a\N{REPLACEMENT CHARACTER}b",
        "when": "P0DT00H00M05S",
        "inner": {"odd": "<Unprintable that can't be printed: RuntimeError>"},
    }
    assert record.task_kwargs == record.result == expected


def test_what_is_too_much_is_cut_where_it_is(manager, record_of):
    much = {"first": 1, "rows": [{"name": "x" * 100}] * 10_000, "last": 2}
    kept = record_of(manager.launch_async_task(tasks.echo, task_kwargs={"much": much})).task_kwargs["much"]
    assert kept["first"] == 1
    assert kept["rows"][0] == {"name": "x" * 100}
    assert "(cut)" in kept["rows"][-1]
    assert len(json.dumps(kept)) < 200_000


def test_arguments_that_can_not_be_compared_can_be_changed(manager, record_of):
    name = manager.launch_async_task(ADD, Unprintable(), right=1)
    manager.cancel_task(name)
    manager.retry_task(name, task_args=[Unprintable()])
    changed = record_of(name).events.get(event="retry").payload["changed_arguments"]
    assert changed.keys() == {"left"}


# The options of a launch


def test_names_may_be_what_stands_for_a_name(manager, record_of):
    key = uuid.uuid4()
    name = manager.launch_async_task(ADD, 1, task_key=key, group=5, cluster=gettext_lazy("slow"), unique_key=7)
    record = record_of(name)
    assert (name, record.group, record.cluster) == (str(key), "5", "slow")
    assert manager.get_task_status(key) == "pending"
    assert OrmQ.objects.get().task["group"] == "5"


@pytest.mark.parametrize("option", ["task_key", "group", "cluster", "unique_key"])
@pytest.mark.parametrize(
    ("name", "error"),
    [
        *((NUL, ValueError), (HALF, ValueError), ("x" * 101, ValueError)),
        *(
            (1.5, TypeError),
            (True, TypeError),
            (b"bytes", TypeError),
            (["list"], TypeError),
            (Unprintable(), TypeError),
        ),
    ],
)
def test_names_that_are_no_names_are_refused(manager, option, name, error):
    with pytest.raises(error, match=f"{option} is .*use"):
        manager.launch_async_task(ADD, 1, **{option: name})
    assert not ActiveTask.objects.exists()
    assert not OrmQ.objects.exists()


@pytest.mark.parametrize(
    ("timeout", "seconds"),
    [(timedelta(minutes=1, milliseconds=1), 61), (0.5, 1), (Decimal("2"), 2), (30, 30), (-1, -1), (None, None)],
)
def test_a_time_limit_is_in_whole_seconds(manager, timeout, seconds):
    manager.launch_async_task(ADD, 1, timeout=timeout)
    assert OrmQ.objects.get().task.get("timeout") == seconds


@pytest.mark.parametrize("timeout", [float("nan"), float("inf"), 0, -2, 2**31, "60", True, [], timedelta()])
@pytest.mark.parametrize("is_option", [True, False])
def test_a_time_limit_that_no_worker_can_set_is_refused(manager, timeout, is_option):
    options = {"timeout": timeout}
    with pytest.raises((TypeError, ValueError), match=r"timeout is .*seconds"):
        manager.launch_async_task(ADD, 1, **({"q_options": options} if is_option else options))
    assert not ActiveTask.objects.exists()


@pytest.mark.parametrize("count", [-1, 2**31, float("inf"), "many"])
def test_a_number_of_objects_that_is_none_is_refused(manager, count):
    with pytest.raises((TypeError, ValueError), match="object_count is"):
        manager.launch_async_task(ADD, 1, object_count=count)


def test_an_option_that_is_given_twice_is_that_which_is_given_by_itself(manager, record_of):
    twice = {"group": "one", "cluster": "lane", "timeout": 10, "sync": True, "task_name": "first"}
    name = manager.launch_async_task(
        ADD, 1, group="two", cluster="fast", timeout=20, task_key="second", q_options={**twice, "sync": False}
    )
    record, task = record_of(name), OrmQ.objects.get().task
    assert (name, record.group, record.cluster, task["timeout"]) == ("second", "two", "fast", 20)
    assert (task["name"], task["group"]) == ("second", "two")
    assert manager.launch_async_task(ADD, 1, q_options=twice) == "first"
    assert record_of("first").group == "one"
    assert record_of("first").status == "success"


@pytest.mark.parametrize("backoff", [float("nan"), float("inf"), -1, Decimal("NaN"), "30", None, True])
def test_a_backoff_that_is_no_time_is_refused(backoff):
    with pytest.raises((TypeError, ValueError), match=r"backoff is .*seconds"):
        RetryPolicy(1, backoff=backoff)


@pytest.mark.parametrize("backoff", [Decimal("1.5"), timedelta(seconds=1.5), 1.5])
def test_a_backoff_is_kept_as_a_number_of_seconds(manager, backoff):
    manager.launch_async_task(ADD, 1, retry=RetryPolicy(1, backoff=backoff))
    assert ActiveTask.objects.get().policy["backoff"] == 1.5


@pytest.mark.parametrize("config", [{"a": NUL}, {HALF: 1}, {"a": float("inf")}, {"a": tasks.nested(60, 1)}])
def test_a_config_that_no_database_stores_is_refused(config):
    with pytest.raises(TypeError, match="kept as JSON"):
        AsyncManager(config).launch_async_task(ADD, 1)


@pytest.mark.parametrize(
    "conflict_ids",
    [
        {"no.model": {"x" * 256}},
        {"no.model": {NUL}},
        {"no.model": {HALF}},
        {"x" * 202: {1}},
        {NUL: {1}},
        {5: {1}},
        {"testapp.Project": {float("inf")}},
        {"testapp.Document": {b"bytes"}},
        {"testapp.SpecialThing": {"x" * 256}},
    ],
)
def test_a_key_that_no_lock_can_have_is_refused(manager, conflict_ids):
    for call in (
        lambda: manager.launch_async_task(ADD, 1, conflict_ids=conflict_ids),
        lambda: manager.launch_async_task(ADD, 1, object_ids=conflict_ids),
        lambda: manager.add_conflict_ids("reserved", conflict_ids),
        lambda: manager.remove_conflict_ids("reserved", conflict_ids),
        lambda: manager.check_conflict(conflict_ids),
    ):
        with pytest.raises((TypeError, ValueError), match="conflict_ids"):
            call()
    assert not ActiveTask.objects.exists()


@pytest.mark.parametrize("name", [NUL, HALF, "x" * 101, 1.5])
def test_a_reservation_has_a_name_that_can_be_stored(manager, name):
    with pytest.raises((TypeError, ValueError), match="task_name is"):
        manager.add_conflict_ids(name, {"testapp.Project": {1}})


@pytest.mark.parametrize("name", [NUL, HALF, "x" * 300, uuid.uuid4(), 5])
def test_there_is_no_task_of_a_name_that_can_not_be_stored(manager, name):
    manager.launch_async_task(ADD, 1)
    assert manager.get_task_status(name) is None
    assert manager.get_progress(name) is None
    assert manager.describe_progress(name)["status"] == "unknown"
    assert not manager.is_active_task(name)
    assert not manager.cancel_task(name)
    assert not manager.remove_active_task(name)
    assert not manager.run_task_now(name)
    assert manager.remove_conflict_ids(name) == 0
    manager.update_progress(name, "nobody's")
    # The transaction can still be used.
    assert TaskRecord.objects.count() == 1


@pytest.mark.parametrize("source", ["raise RuntimeError('no longer')", "import sys; sys.exit(1)", "1 +"])
def test_a_module_that_can_not_be_imported_is_refused_by_name(manager, tmp_path, monkeypatch, source):
    module = f"odd_module_{abs(hash(source))}"
    (tmp_path / f"{module}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnimportableCallable, match=f"{module}.function can't run .* importing it fails"):
        manager.launch_async_task(f"{module}.function")
    sys.modules.pop(module, None)


# Who did it


@pytest.fixture(params=["nobody", "unsaved", "deleted", "deleted meanwhile", "text", "odd text", "no row", "other"])
def somebody(request, make_user):
    """Somebody who is no row of the users' table."""
    gone = make_user("gone")
    gone_too = User.objects.get(pk=gone.pk)
    User.objects.filter(pk=gone.pk).delete()
    gone_too.delete()
    people = {
        "nobody": AnonymousUser(),
        "unsaved": User(username="unsaved"),
        "deleted": gone_too,
        "deleted meanwhile": gone,
        "text": "nightly import",
        "odd text": NUL,
        "no row": SimpleNamespace(pk=None),
        "other": Project(pk=1, name="not a user"),
    }
    return people[request.param]


@pytest.mark.django_db(transaction=True)
def test_what_somebody_does_who_is_no_row_is_done(manager, record_of, somebody):
    queued = manager.launch_async_task(ADD, 1, user=somebody)
    assert manager.cancel_task(queued, user=somebody)
    assert record_of(queued).status == "cancelled"
    again = manager.retry_task(queued, user=somebody)
    claimed_elsewhere(again)
    assert manager.cancel_task(again, user=somebody)
    assert ActiveTask.objects.get(task_name=again).cancel_requested_at is not None
    waiting = manager.launch_async_task(ADD, 1, retry=1)
    ActiveTask.objects.filter(task_name=waiting).update(next_run_at=timezone.now())
    assert manager.run_task_now(waiting, user=somebody)
    manager.add_conflict_ids(waiting, {"testapp.Project": {1}})
    assert manager.release_conflict_lock(ConflictLock.objects.get(), user=somebody)
    for name, event in ((queued, "create"), (queued, "cancel"), (queued, "retry"), (again, "cancel_requested")):
        assert record_of(name).events.filter(event=event).exists(), event
    connection.check_constraints()


def test_a_user_who_is_no_row_is_found_by_the_key(manager, record_of, superuser):
    """Some authentication backends have such users."""
    name = manager.launch_async_task(ADD, 1, user=SimpleNamespace(pk=superuser.pk, is_anonymous=False))
    assert record_of(name).user_id == superuser.pk
    manager.cancel_task(name, user=superuser.pk)
    assert record_of(name).events.get(event="cancel").actor == superuser
    assert record_of(manager.launch_async_task(ADD, 1, user=True)).user is None


def test_nobody_is_taken_for_the_user_whose_key_is_the_name(manager, record_of, superuser):
    namesake = User(username=str(superuser.pk))
    name = manager.launch_async_task(ADD, 1, user=namesake)
    manager.cancel_task(name, user=namesake)
    again = manager.retry_task(name, user=namesake)
    for task_name in (name, again):
        assert (record_of(task_name).user, record_of(task_name).user_label) == (None, namesake.username)
    assert set(record_of(name).events.values_list("actor", flat=True)) == {None}


# Events


class OddRecorder(DashboardAsyncManager):
    """Can't write one detail of an event."""

    def record_lifecycle_events(self, task_name, events):
        if any(payload.get("result") or payload.get("task_args") for _event, payload in events):
            raise RuntimeError("no such details")
        super().record_lifecycle_events(task_name, events)


def test_an_event_whose_details_can_not_be_written_is_written_without_them(record_of, caplog):
    name = OddRecorder().launch_async_task(ADD, 1, sync=True, group="odd")
    record = record_of(name)
    assert (record.status, record.func, record.group, record.result) == ("success", ADD, "odd", None)
    assert list(record.events.values_list("event", flat=True)) == ["create", "start", "complete", "cleanup"]
    assert "could not be recorded" in record.events.get(event="complete").message
    assert "no such details" in caplog.text
    assert OddRecorder().retry_task(name)


class OddError(Exception):
    def __str__(self) -> str:
        return "x" * 3_000_000 + NUL


class OddHookManager(DashboardAsyncManager):
    def async_task_lifecycle(self, event, task_name, **payload):
        super().async_task_lifecycle(event, task_name, **payload)
        if event == "create":
            raise type("Unprintable", (Exception,), {"__str__": Unprintable.__str__})


def test_a_failed_hook_is_shown_even_if_its_error_can_not_be_printed(record_of):
    name = OddHookManager().launch_async_task(ADD, 1)
    assert "can't be printed" in record_of(name).events.get(event="hook_error").message


@pytest.mark.django_db(transaction=True)
def test_an_error_of_any_size_is_recorded(manager, record_of, monkeypatch):
    def fail(left: int) -> None:
        raise OddError

    name = manager.launch_async_task(ADD, 1)
    monkeypatch.setattr(tasks, "add", fail)
    with pytest.raises(OddError):
        deliver()
    record = record_of(name)
    assert (record.status, len(record.error)) == ("failed", 100_000)
    assert len(record.events.get(event="fail").message) == 1_000


class NotSent:
    """A result that can't be pickled, for a reason that can't be printed."""

    def __reduce__(self):
        raise type("Unprintable", (Exception,), {"__str__": Unprintable.__str__})


@pytest.mark.django_db(transaction=True)
def test_a_result_that_can_not_be_sent_for_an_odd_reason_is_described(manager, record_of, monkeypatch):
    name = manager.launch_async_task(ADD, 1)
    monkeypatch.setattr(tasks, "add", lambda left: NotSent())
    deliver()
    assert record_of(name).status == "success"
    assert "NotSent" in record_of(name).result


# Objects


@pytest.mark.parametrize("text", ["raise", "x" * 300, NUL])
def test_an_object_whose_text_is_odd_is_worked_on(boss, make_projects, at_once, monkeypatch, text):
    def odd_text(self: Project) -> str:
        if text == "raise":
            raise LookupError("its owner is gone")
        return text

    projects = make_projects(2)
    monkeypatch.setattr(Project, "__str__", odd_text)
    # The page that would follow shows the objects.
    boss.post(CHANGELIST, {"action": "visit", "_selected_action": [project.pk for project in projects]})
    record = last()
    assert (record.status, record.done_count) == ("success", 2)
    assert [*record.objects_worked_on.values_list("outcome", flat=True)] == ["done", "done"]


def test_progress_of_a_loop_of_unknown_length_is_shown(manager, record_of, monkeypatch):
    monkeypatch.setattr(tasks, "add", lambda left: len(list(track([1, 2], total=float("inf"), description=NUL))))
    record = record_of(manager.launch_async_task(ADD, 1, sync=True))
    assert (record.status, record.progress_current, record.progress_total) == ("success", 2, None)
