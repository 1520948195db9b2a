"""How a worker process writes what plain django-q2 has it run: whatever the values are, and whatever fails."""

from __future__ import annotations

import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import repeat
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import OperationalError
from django.db.backends.signals import connection_created
from django.utils import timezone
from django.utils.functional import SimpleLazyObject
from django_q.signals import pre_execute

from powercrud_dashboard.engine.plain import Run
from powercrud_dashboard.engine.spec import TaskSpec
from powercrud_dashboard.exceptions import TaskNotRetryable
from powercrud_dashboard.models import TaskRecord
from powercrud_dashboard.worker import observe, unwritten
from tests.services import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

ADD = "tests.testapp.tasks.add"


class Results:
    """django-q2's queue of results."""

    def __init__(self) -> None:
        self.put: Callable[[Any], None] = [].append


@pytest.fixture
def results(monkeypatch) -> Iterator[Results]:
    """Make this process a worker whose tasks are observed."""
    before = signal.getsignal(signal.SIGURG)
    monkeypatch.setattr(observe, "_worker_side", None)
    queue = Results()
    observe.watch_worker(queue)
    yield queue
    observe.finish()
    signal.signal(signal.SIGURG, before)


def run(results: Results, *, success: bool = True, **facts: Any) -> str:
    """Have the worker run a task; return its id."""
    outcome = {"success": success, "result": 3 if success else "no : Traceback\nValueError: no"}
    outcome.update({name: facts.pop(name) for name in ("result",) if name in facts})
    task = {"id": uuid.uuid4().hex, "name": "given", "func": ADD, "args": (1, 2), "kwargs": {}, **facts}
    task["started"] = timezone.now() - timedelta(seconds=2)
    pre_execute.send(sender="django_q", func=None, task=task)
    task.update(outcome, stopped=timezone.now())
    results.put(task)
    return task["id"]


class WithoutText:
    def __str__(self) -> str:
        raise SystemExit(3)

    __repr__ = __str__


class WithoutClass:
    @property
    def __class__(self) -> Any:
        raise RuntimeError("unbound")


def nobody() -> Any:
    return SimpleLazyObject(lambda: User.objects.get(pk=-5))


@pytest.mark.parametrize("make", [WithoutText, WithoutClass, nobody])
@pytest.mark.parametrize("place", ["result", "args"])
def test_a_value_that_can_not_be_looked_at_keeps_no_other_task_from_being_recorded(results, make, place):
    value = make()
    odd = run(results, **{place: (value,) if place == "args" else value})
    other = run(results)
    wait_until(lambda: TaskRecord.objects.finished().filter(task_name__in=[odd, other]).count() == 2, "both", 30)


def test_a_task_of_which_nothing_can_be_told_is_logged_and_left_out(results, caplog):
    run(results, args=5)
    other = run(results)
    wait_until(lambda: TaskRecord.objects.finished().filter(task_name=other).exists(), "the other", 30)
    assert "could not be observed" in caplog.text
    assert TaskRecord.objects.count() == 1


def test_a_result_is_recorded_as_it_was_returned(results, record_of):
    shared = [1]
    first = run(results, result=shared)
    shared.append(2)
    second = run(results, result=shared)
    observe.finish()
    assert (record_of(first).result, record_of(second).result) == ([1], [1, 2])


def begin(**facts: Any) -> dict[str, Any]:
    task = {"id": uuid.uuid4().hex, "name": "given", "func": ADD, "args": (), "kwargs": {}, **facts}
    task["started"] = timezone.now() - timedelta(seconds=2)
    pre_execute.send(sender="django_q", func=None, task=task)
    return task


@pytest.mark.parametrize("is_long", [False, True])
def test_arguments_are_recorded_as_they_were_given_whatever_the_function_does_to_them(
    results, record_of, monkeypatch, is_long
):
    monkeypatch.setattr(observe, "RUNS_LONG", 0.0)
    order, lines = {"shop": "north", "number": 7}, [1, 2, 3]
    task = begin(args=(order,), kwargs={"lines": lines})
    order.pop("number")
    lines.clear()
    if is_long:
        observe.look()
        assert record_of(task["id"]).task_args == [{"shop": "north", "number": 7}]
    task.update(success=False, result="no : Traceback\nValueError: no", stopped=timezone.now())
    results.put(task)
    assert observe.finish()
    record = record_of(task["id"])
    assert (record.status, record.task_kwargs) == ("failed", {"lines": [1, 2, 3]})
    spec = TaskSpec.from_signed(record.payload)
    assert (spec.args, spec.kwargs) == (({"shop": "north", "number": 7},), {"lines": [1, 2, 3]})


def test_so_are_those_of_a_task_that_is_recorded_only_as_it_fails(results, record_of, settings):
    settings.POWERCRUD_SETTINGS = {**settings.POWERCRUD_SETTINGS, "DASHBOARD_TRACK_SAMPLE": {ADD: 0}}
    order = {"shop": "north", "number": 7}
    task = begin(args=(order,))
    order.pop("number")
    task.update(success=False, result="no : Traceback\nValueError: no", stopped=timezone.now())
    results.put(task)
    assert observe.finish()
    assert TaskSpec.from_signed(record_of(task["id"]).payload).args == ({"shop": "north", "number": 7},)


def test_a_task_that_is_delivered_again_before_its_end_is_written_has_two_attempts(results, record_of):
    name = run(results, success=False)
    run(results, id=name)
    observe.finish()
    record = record_of(name)
    assert (record.status, record.attempts) == ("success", 2)


def test_a_result_that_django_q_loses_is_no_success(results, record_of):
    name = run(results, result=[threading.Lock()])
    assert observe.finish()
    record = record_of(name)
    assert (record.status, record.resolution) == ("failed", "open")
    assert record.exception_class == "powercrud_dashboard.worker.observe.ResultNotPassedOn"
    assert "cannot pickle" in record.error
    assert "ForkingPickler" in record.traceback


def test_a_task_with_the_name_of_a_managers_task_is_recorded(results, manager, record_of):
    manager.launch_async_task(ADD, 1, 2, task_key="nightly")
    name = run(results, name="nightly")
    observe.finish()
    assert record_of(name).status == "success"


def test_the_ends_that_are_kept_while_the_database_is_away_are_limited(monkeypatch, caplog):
    monkeypatch.setattr(unwritten, "KEPT_AT_MOST", 4)
    ends = unwritten.Unwritten()
    for number in range(6):
        ends.add(end_of(number, success=number % 2 == 0))
    assert "some are not recorded" in caplog.text
    written: list[Run] = []

    def refuse(runs: Any) -> None:
        raise OperationalError("away")

    with pytest.raises(OperationalError):
        ends.write(3, refuse)
    ends.write(3, written.extend)
    assert [run.message["id"] for run in written] == [1, 2, 3, 5]
    assert "The ends of 2 tasks were not recorded" in caplog.text
    assert not ends


def test_the_room_that_the_kept_ends_take_is_limited(monkeypatch):
    monkeypatch.setattr(unwritten, "KEPT_BYTES", 50_000)
    ends = unwritten.Unwritten()
    for number in range(10):
        ends.add(end_of(number, success=False, args=("x" * 10_000,)))
    written: list[Run] = []
    ends.write(100, written.extend)
    assert [run.message["id"] for run in written] == [6, 7, 8, 9]


def test_an_end_that_takes_much_room_is_kept_beside_the_others():
    ends = unwritten.Unwritten()
    ends.add(end_of(1, success=True))
    ends.add(end_of(2, success=False, args=("x" * (unwritten.KEPT_BYTES + 1),)))
    written: list[Run] = []
    ends.write(100, written.extend)
    assert [run.message["id"] for run in written] == [1, 2]
    assert len(written[1].message["args"][0]) < 200_000


def test_large_arguments_are_shown_in_part_and_not_used_for_a_retry(results, manager, record_of):
    name = run(results, success=False, args=("x" * 6_000_000, 2))
    assert observe.finish()
    record = record_of(name)
    assert (record.status, record.error) == ("failed", "no")
    assert record.task_args[0].startswith("xxx")
    with pytest.raises(TaskNotRetryable, match="not kept"):
        manager.retry_task(name)


def end_of(number: int, **facts: Any) -> Run:
    return Run({"id": number, "args": (), "kwargs": {}, "result": None, **facts})


def test_what_a_busy_cluster_has_taken_at_once_is_recorded_as_queued(monkeypatch):
    monkeypatch.setattr(observe, "FLOWING", 1)
    monkeypatch.setattr(observe, "LOOK_INTERVAL", 0.05)
    monkeypatch.setattr(observe, "WAITS_LONG", 0.1)
    taken = Results()
    pusher = observe._PusherSide(taken)
    try:
        for number in range(5):
            # Its broker has none of them any more.
            message = {"id": uuid.uuid4().hex, "name": "given", "func": ADD, "args": (number,), "kwargs": {}}
            pusher.put({**message, "started": timezone.now(), "cluster": "pcrud-tests", "ack_id": None})
        wait_until(lambda: TaskRecord.objects.queued().count() == 5, "all of them wait", 30)
    finally:
        pusher.finish()


@contextmanager
def connections_refused(times: int | None) -> Iterator[None]:
    """Let so many of the writing thread's connections fail; all of them, if it is None."""
    left = repeat(True) if times is None else repeat(True, times)

    def refuse(**kwargs: Any) -> None:
        if "observe" in threading.current_thread().name and next(left, False):
            raise OperationalError("the database is away")

    connection_created.connect(refuse)
    yield
    connection_created.disconnect(refuse)


def test_what_can_not_be_written_at_the_end_of_a_worker_is_tried_again(results, record_of):
    with connections_refused(2):
        name = run(results)
        assert observe.finish()
    assert record_of(name).status == "success"


def test_a_worker_that_could_not_write_all_says_so(results, monkeypatch):
    monkeypatch.setattr(observe, "ENDS_WITHIN", 0.1)
    with connections_refused(None):
        run(results)
        assert not observe.finish()
        # Its last try must not fall into another test.
        name = "powercrud-dashboard-observe"
        wait_until(lambda: all(thread.name != name for thread in threading.enumerate()), "its thread has ended", 30)
        assert not TaskRecord.objects.exists()
