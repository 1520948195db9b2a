"""The checker sees what does not hold."""

from __future__ import annotations

import pytest

from powercrud_dashboard.models import ActiveTask, ConflictLock, TaskEvent, TaskRecord
from tests.faults import ledger
from tests.faults.checker import NOTICES_WITHIN, OBEDIENT, TAKEN_BEFORE, check
from tests.faults.ledger import RAISED, RETURNED, Book, Deed, Entry, Ledger, Run
from tests.testapp import tasks

pytestmark = pytest.mark.django_db


@pytest.fixture
def done(manager) -> str:
    """A task that was launched, run and recorded."""
    return manager.launch_async_task(tasks.add, 1, sync=True)


@pytest.fixture
def queued(manager, superuser) -> str:
    return manager.launch_async_task(tasks.add, 1, conflict_ids={"a.b": {1}}, user=superuser)


def run(task: str, began: float, *seen: float, objects: str = "", outcome: str = RETURNED, cluster: str = "") -> Run:
    entries = [Entry(at, frozenset(objects)) for at in (began, *seen)]
    return Run(task, 1, "alpha", cluster, entries, outcome)


def found_in(*runs: Run, deeds: tuple[Deed, ...] = ()) -> list[str]:
    return check([], [], Book(list(runs), list(deeds)))


def test_what_holds_is_not_complained_of(done, queued):
    runs = [run(done, 0, 1, objects="a"), run("other", 1.5, 2, objects="a"), run("third", 1.6, 3, objects="b")]
    assert check([done, queued], [], Book(runs), may_lose=False) == []


def test_a_task_that_is_gone(done, queued):
    TaskEvent.objects.all().delete()
    TaskRecord.objects.filter(task_name=done).delete()
    ActiveTask.objects.filter(task_name=queued).update(state="in_progress")
    found = " ".join(check([done, queued], [], Book()))
    assert f"{done} was launched and has no record" in found
    assert f"{queued} is recorded as pending, and is in_progress" in found
    assert f"{queued} does not begin with its creation" in found
    assert check([done], [done], Book())[0] != f"{done} was launched and has no record"


def test_a_record_that_says_other_than_its_events(done):
    TaskRecord.objects.update(status="failed")
    assert check([done], [], Book()) == [
        f"{done} is recorded as failed; its events say pending, in_progress, success",
    ]


def test_a_lock_without_its_holder(queued):
    # Foreign keys are checked at the end of the transaction.
    ActiveTask.objects.filter(task_name=queued)._raw_delete("default")
    TaskRecord.objects.update(status="cancelled")
    TaskEvent.objects.create(record=TaskRecord.objects.get(), event="cancel")
    assert check([queued], [], Book()) == ["the lock on 1 has outlived its holder"]
    ConflictLock.objects.all().delete()


def test_a_deed_of_nobody(done):
    record = TaskRecord.objects.get()
    TaskEvent.objects.create(record=record, event="run_now")
    assert check([done], [], Book()) == [f"nobody is named for run_now of {done}"]


def test_a_run_that_nobody_began(done):
    runs = Book([run(done, 0, 1), run(done, 2, 3)])
    assert check([done], [], runs) == [f"{done} was begun 1 times, and ran 2 times"]


def test_a_launch_that_was_rolled_back(done):
    assert check([], [], Book(), undone=["another"]) == []
    assert check([], [], Book(), undone=[done]) == [f"the launch of {done} was rolled back, and it has a record"]


def test_a_message_that_nothing_has_lost(done):
    TaskRecord.objects.update(status="failed", failure_reason="never_started")
    TaskEvent.objects.create(record=TaskRecord.objects.get(), event="fail")
    assert check([done], [], Book()) == []
    lost = f"{done} is recorded as never started, and nothing has lost its message"
    assert check([done], [], Book(), may_lose=False) == [lost]


# Side by side


def test_two_runs_at_the_same_time():
    where = "(process 1 on alpha, from 0.00 to 2.00, process 1 on alpha, from 1.00 to 3.00)"
    assert found_in(run("x", 0, 2), run("x", 1, 3)) == [f"x ran twice at the same time {where}"]
    shared = found_in(run("x", 0, 2, objects="ab"), run("y", 1, 3, objects="b"))
    assert shared == [f"x and y worked on b at the same time {where}"]


def test_an_object_that_a_task_has_locked_later():
    locks_more = run("x", 0, 1)
    locks_more.entries += [Entry(at, frozenset("b")) for at in (2, 4)]
    assert found_in(locks_more, run("y", 0.5, 1.5, objects="b")) == []
    assert "worked on b" in found_in(locks_more, run("y", 0.5, 2.5, objects="b"))[0]


def test_a_process_that_was_frozen_may_notice_late_that_its_task_has_passed_on():
    frozen = (Deed("frozen", 1, "one"), Deed("thawed", 10, "one"))
    noticed = run("x", 0, 0.9, 10.1, 9 + NOTICES_WITHIN, cluster="one", outcome=RAISED)
    assert found_in(noticed, run("x", 5, 20, cluster="two"), deeds=frozen) == []
    assert found_in(noticed, run("x", 0.5, 20, cluster="two"), deeds=frozen) != []
    goes_on = run("x", 0, 0.9, 10.1, 12, 12 + NOTICES_WITHIN, cluster="one")
    assert found_in(goes_on, run("x", 5, 20, cluster="two"), deeds=frozen) != []
    # It has its task to itself again.
    assert found_in(goes_on, run("x", 5, 9, cluster="two"), deeds=frozen) == []
    begun_then = run("x", 10.5, 11, cluster="one")
    assert found_in(begun_then, run("x", 5, 20, cluster="two"), deeds=frozen) != []


# Ends


@pytest.fixture
def obedient(done) -> str:
    """A completed task whose function does as it is told."""
    TaskRecord.objects.update(func=OBEDIENT)
    return done


def test_a_completion_that_nobody_worked_for(obedient):
    said = f"{obedient} is recorded as completed, and no run of it has returned"
    assert check([], [], Book()) == [f"{said} (the last: no run)"]
    assert found_in(run(obedient, 0, 1, outcome="")) == [f"{said} (the last: no end)"]
    assert found_in(run(obedient, 0, 1, outcome=RAISED)) == [f"{said} (the last: raised)"]
    assert found_in(run(obedient, 0, 1)) == []


@pytest.mark.parametrize("reason", ["error", "never_started", "worker_lost"])
def test_a_failure_of_what_has_returned(obedient, reason):
    TaskRecord.objects.update(status="failed", failure_reason=reason)
    TaskEvent.objects.create(record=TaskRecord.objects.get(), event="fail")
    found = found_in(run(obedient, 0, 1))
    # A process may be lost after the function's end.
    said = {
        "error": ["is recorded as failed with an error, and its last run has returned"],
        "never_started": ["is recorded as never started, and has run 1 times"],
    }
    assert found == [f"{obedient} {text}" for text in said.get(reason, [])]


# Stops

STOPPED = Deed("stopped", 10, "one")


def test_a_task_that_begins_on_a_cluster_that_stops():
    late = run("x", 10.1 + TAKEN_BEFORE, 12, cluster="one")
    assert "began on the cluster one" in found_in(late, deeds=(STOPPED,))[0]
    taken_before = run("x", 10.1, 12, cluster="one")
    elsewhere = run("y", 13, 14, cluster="two")
    assert found_in(taken_before, elsewhere, deeds=(STOPPED,)) == []


def test_a_task_that_its_clusters_stop_has_ended():
    cut_short = run("x", 9, 10.5, cluster="one", outcome="")
    assert found_in(cut_short, deeds=(STOPPED,)) == ["x did not come to its end, as the cluster one was stopped"]
    assert found_in(run("x", 9, 10.5, cluster="one", outcome=RAISED), deeds=(STOPPED,)) == []
    assert found_in(cut_short, deeds=(STOPPED, Deed("killed", 10.6, "one"))) == []


def test_a_cluster_that_does_not_stop():
    still_there = Deed("still there", 35, "one", "2 processes")
    assert found_in(deeds=(STOPPED, still_there)) == ["the cluster one does not stop: 2 processes"]
    assert found_in(deeds=(STOPPED, still_there, Deed("killed", 5, "one"))) == []


def test_what_a_task_finds_wrong():
    assert found_in(deeds=(Deed("wrong", 1, "one", "this is not right"),)) == ["this is not right"]


# The ledger


def test_the_ledger_tells_of_runs_with_and_without_an_end(tmp_path):
    path = tmp_path / "ledger"
    with Ledger(path, "one").run("first", ["a"]) as book:
        book.tick(["a", "b"])
    with pytest.raises(LookupError), Ledger(path).run("second", ["b"]):
        raise LookupError
    left = Ledger(path).run("third", ["c"])
    left.__enter__()
    first, second, third = ledger.read(path).runs
    assert (first.task, first.cluster, first.outcome, second.outcome, third.outcome) == (
        "first",
        "one",
        RETURNED,
        RAISED,
        "",
    )
    assert [sorted(entry.objects) for entry in first.entries] == [["a"], ["a", "b"], ["a", "b"]]
    assert first.began < first.last_seen < second.began < second.last_seen < third.began == third.last_seen


def test_the_ledger_tells_of_what_was_done_to_clusters(tmp_path):
    Ledger(tmp_path / "ledger", "one").note("wrong", text="so it is")
    (deed,) = ledger.read(tmp_path / "ledger").deeds
    assert (deed.what, deed.cluster, deed.text) == ("wrong", "one", "so it is")
