"""The checker sees what does not hold."""

from __future__ import annotations

import pytest

from powercrud_dashboard.models import ActiveTask, ConflictLock, TaskEvent, TaskRecord
from tests.faults import ledger
from tests.faults.checker import check
from tests.faults.ledger import Ledger, Run
from tests.testapp import tasks

pytestmark = pytest.mark.django_db


@pytest.fixture
def done(manager) -> str:
    """A task that was launched, run and recorded."""
    return manager.launch_async_task(tasks.add, 1, sync=True)


@pytest.fixture
def queued(manager, superuser) -> str:
    return manager.launch_async_task(tasks.add, 1, conflict_ids={"a.b": {1}}, user=superuser)


def run(task: str, began: float, until: float, *objects: str, ended: bool = True) -> Run:
    return Run(task, objects, 1, began, until, ended)


def test_what_holds_is_not_complained_of(done, queued):
    runs = [run(done, 0, 1, "a"), run("other", 1.5, 2, "a"), run("third", 1.6, 3, "b")]
    assert check([done, queued], [], runs) == []


def test_a_task_that_is_gone(done, queued):
    TaskEvent.objects.all().delete()
    TaskRecord.objects.filter(task_name=done).delete()
    ActiveTask.objects.filter(task_name=queued).update(state="in_progress")
    found = " ".join(check([done, queued], [], []))
    assert f"{done} was launched and has no record" in found
    assert f"{queued} is recorded as pending, and is in_progress" in found
    assert f"{queued} does not begin with its creation" in found
    assert check([done], [done], [])[0] != f"{done} was launched and has no record"


def test_a_record_that_says_other_than_its_events(done):
    TaskRecord.objects.update(status="failed")
    assert check([done], [], []) == [
        f"{done} is recorded as failed; its events say pending, in_progress, success",
    ]


def test_a_lock_without_its_holder(queued):
    # Foreign keys are checked at the end of the transaction.
    ActiveTask.objects.filter(task_name=queued)._raw_delete("default")
    TaskRecord.objects.update(status="cancelled")
    TaskEvent.objects.create(record=TaskRecord.objects.get(), event="cancel")
    assert check([queued], [], []) == ["the lock on 1 has outlived its holder"]
    ConflictLock.objects.all().delete()


def test_a_deed_of_nobody(done):
    record = TaskRecord.objects.get()
    TaskEvent.objects.create(record=record, event="run_now")
    assert check([done], [], []) == [f"nobody is named for run_now of {done}"]


def test_a_run_that_nobody_began(done):
    assert check([done], [], [run(done, 0, 1), run(done, 2, 3)]) == [f"{done} was begun 1 times, and ran 2 times"]


def test_two_runs_at_the_same_time(done):
    twice = check([], [], [run("x", 0, 2), run("x", 1, 3)])
    assert twice == ["x ran twice at the same time (processes 1, 1)"]
    shared = check([], [], [run("x", 0, 2, "a", "b"), run("y", 1, 3, "b")])
    assert shared == ["x and y worked on b at the same time"]


def test_a_completion_that_nobody_worked_for(done):
    TaskRecord.objects.update(func="tests.faults.work.work")
    assert check([done], [], []) == [f"{done} is recorded as completed, and never came to its end"]


def test_the_ledger_tells_of_runs_with_and_without_an_end(tmp_path):
    path = tmp_path / "ledger"
    with Ledger(path).run("one", ["a"]) as book:
        book.tick("one", ["a"])
    with pytest.raises(LookupError), Ledger(path).run("two", ["b"]):
        raise LookupError
    one, two = ledger.read(path)
    assert (one.task, one.objects, one.ended, two.ended) == ("one", ("a",), True, False)
    assert one.began < one.last_seen < two.began == two.last_seen
