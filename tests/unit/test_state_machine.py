"""The manager's API in any order, beside a small model of what must hold."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import hypothesis.strategies as st
import pytest
from django.utils import timezone
from django_q.models import OrmQ
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from powercrud_dashboard.async_manager import RetryPolicy
from powercrud_dashboard.dashboard_manager import DashboardAsyncManager
from powercrud_dashboard.engine import lifecycle, locks, policy, processes, requests
from powercrud_dashboard.exceptions import TaskConflict, TaskNotRetryable
from powercrud_dashboard.models import ActiveTask, ConflictLock, TaskEvent, TaskObject, TaskRecord, WorkerProcess
from tests.testapp import tasks
from tests.workers import silence

LABEL = "machine.object"
SOME = ("", "a", "b", "c", "d", "ab", "bc", "cd", "ad")
OBJECTS = st.sampled_from([frozenset(objects) for objects in SOME])
#: The whole model now and then.
OBJECTS_OR_ALL = st.sampled_from([frozenset(objects) for objects in (*SOME, "*")])
ENDS = ("complete", "fail", "cancel")
UNFINISHED = ("pending", "in_progress", "paused")
#: Counted from the end: what is going on is among the latest.
LATEST = st.integers(0, 4)
ANY = 4


def latest(items: list[Any], which: int, likely: Callable[[Any], bool] = lambda item: True) -> Any:
    """Return one of the latest items; as a rule, one that something can be done with."""
    chosen = [item for item in items if which == ANY or likely(item)] or items
    return chosen[-1 - which % len(chosen)]


class Managers(RuleBasedStateMachine):
    """What the model knows: the status of each task, and who holds each object."""

    def __init__(self) -> None:
        super().__init__()
        ConflictLock.objects.all().delete()
        ActiveTask.objects.all().delete()
        WorkerProcess.objects.all().delete()
        OrmQ.objects.all().delete()
        for model in (TaskEvent, TaskObject, TaskRecord):
            model.objects.all()._raw_delete("default")
        self.manager = DashboardAsyncManager()
        self.names: list[str] = []
        self.reservations: list[tuple[DashboardAsyncManager, frozenset[str]]] = []
        #: A worker's hold on one attempt of a task, which may be long past.
        self.attempts: list[ActiveTask] = []
        self.statuses: dict[str, str] = {}
        self.attempt_of: dict[str, int] = {}
        self.retries_left: dict[str, int] = {}
        self.launched_with: dict[str, tuple[frozenset[str], int, bool]] = {}
        #: Tasks whose end was inferred, so that their workers may still correct it.
        self.given_up: set[str] = set()
        #: The first try of each task.
        self.first: dict[str, str] = {}
        #: The objects that a paused task has given back.
        self.given_back: dict[str, frozenset[str]] = {}
        #: The tasks that somebody wants to pause, and whether they are to keep their locks.
        self.to_pause: dict[str, bool] = {}
        #: The paused tasks that wait for their retry when they are resumed.
        self.waits_again: set[str] = set()
        self.waiting: set[str] = set()
        self.holders: dict[str, str] = {}

    def _is_free(self, objects: frozenset[str], holder: str = "") -> bool:
        """Return whether nobody but this holder holds one of the objects."""
        others = {item for item, name in self.holders.items() if name != holder}
        if "*" in objects or "*" in others:
            return not (objects and others)
        return not objects & others

    def _is_asked(self, name: str) -> bool:
        return ActiveTask.objects.filter(task_name=name).exclude(cancel_requested_at=None).exists()

    def _is_unfinished(self, name: str) -> bool:
        return self.statuses[name] in UNFINISHED

    def _note_launch(self, name: str, objects: frozenset[str], retries: int, covers_all: bool = False) -> None:
        self.names.append(name)
        self.statuses[name] = "pending"
        self.attempt_of[name] = 0
        self.retries_left[name] = retries
        self.launched_with[name] = (objects, retries, covers_all)
        self.holders.update(dict.fromkeys(objects, name))

    def _note_end(self, name: str, status: str) -> None:
        self.statuses[name] = status
        self.waiting.discard(name)
        self.waits_again.discard(name)
        self.given_back.pop(name, None)
        self.to_pause.pop(name, None)
        self.holders = {item: holder for item, holder in self.holders.items() if holder != name}

    def _note_failure(self, name: str, *, covered: bool) -> None:
        if covered and self.retries_left[name]:
            self.retries_left[name] -= 1
            self.statuses[name] = "pending"
            self.waiting.add(name)
            if name in self.to_pause:
                self._note_paused(name, keep_locks=self.to_pause[name])
        else:
            self._note_end(name, "failed")

    def _note_given_up(self, name: str, *, asked: bool) -> None:
        self._note_failure(name, covered=self.launched_with[name][2] and not asked)
        if self.statuses[name] == "failed":
            self.given_up.add(name)

    # What callers do

    @rule(objects=OBJECTS_OR_ALL, retries=st.integers(0, 2), covers_all=st.booleans())
    def launch(self, objects, retries, covers_all):
        # Exception also stands for lost workers and for what the queue has lost.
        policy = RetryPolicy(retries, retry_on=[Exception] if covers_all else (), requeue_on_stop=False)
        options = {"conflict_ids": {LABEL: objects}, "retry": policy}
        if not self._is_free(objects):
            with pytest.raises(TaskConflict):
                DashboardAsyncManager().launch_async_task(tasks.add, 1, **options)
            return
        name = DashboardAsyncManager().launch_async_task(tasks.add, 1, **options)
        self._note_launch(name, objects, retries, covers_all)

    @rule(name=st.sampled_from(["one", "two"]), objects=OBJECTS.filter(bool))
    def reserve(self, name, objects):
        # An instance of its own, whose next launch takes over what it has reserved.
        manager = DashboardAsyncManager()
        done = manager.add_conflict_ids(name, {LABEL: objects})
        assert done == self._is_free(objects)
        if not done:
            return
        self.holders.update(dict.fromkeys(objects, name))
        self.reservations.append((manager, objects))

    @precondition(lambda self: self.reservations)
    @rule(which=LATEST)
    def launch_with_a_reservation(self, which):
        manager, objects = latest(self.reservations, which)
        reserved = ConflictLock.objects.filter(active_task__unique_key__in=manager.reservations)
        own = set(reserved.values_list("object_id", flat=True))
        others = {item for item in self.holders if item not in own}
        if objects & others or "*" in others:
            with pytest.raises(TaskConflict):
                manager.launch_async_task(tasks.add, 1, conflict_ids={LABEL: objects})
            return
        name = manager.launch_async_task(tasks.add, 1, conflict_ids={LABEL: objects})
        self._note_launch(name, objects, 0)

    @rule(name=st.sampled_from(["one", "two"]), objects=OBJECTS)
    def release(self, name, objects):
        released = self.manager.remove_conflict_ids(name, {LABEL: objects})
        mine = {item for item in objects if self.holders.get(item) == name}
        assert released == len(mine)
        for item in mine:
            del self.holders[item]

    @rule()
    def expire_reservations(self):
        ActiveTask.objects.reservations().update(expires_at=timezone.now() - timedelta(seconds=1))
        self.manager.cleanup_completed_tasks()
        self.holders = {item: holder for item, holder in self.holders.items() if holder in self.statuses}

    @precondition(lambda self: self.names)
    @rule(which=LATEST)
    def cancel(self, which):
        name = latest(self.names, which, self._is_unfinished)
        asked = self._is_asked(name)
        expected = self._is_unfinished(name) and not asked
        assert self.manager.cancel_task(name) == expected
        if self.statuses[name] in ("pending", "paused"):
            self._note_end(name, "cancelled")

    @precondition(lambda self: self.names)
    @rule(which=LATEST)
    def retry(self, which):
        name = latest(self.names, which, lambda name: not self._is_unfinished(name))
        objects, retries, covers_all = self.launched_with[name]
        first = self.first.get(name, name)
        under_way = any(
            self._is_unfinished(other)
            for other in self.names
            if other != name and self.first.get(other, other) == first
        )
        try:
            again = self.manager.retry_task(name)
        except TaskNotRetryable:
            assert self._is_unfinished(name) or under_way
            return
        except TaskConflict:
            assert not self._is_free(objects)
            return
        assert not self._is_unfinished(name)
        assert not under_way
        assert self._is_free(objects)
        self.first[again] = first
        self._note_launch(again, objects, retries, covers_all)

    def _note_paused(self, name: str, *, keep_locks: bool) -> None:
        self.statuses[name] = "paused"
        if name in self.waiting:
            self.waiting.discard(name)
            self.waits_again.add(name)
        self.to_pause.pop(name, None)
        if not keep_locks:
            self.given_back[name] = frozenset(item for item, holder in self.holders.items() if holder == name)
            self.holders = {item: holder for item, holder in self.holders.items() if holder != name}

    @precondition(lambda self: self.names)
    @rule(which=LATEST, keep_locks=st.booleans())
    def pause(self, which, keep_locks):
        name = latest(self.names, which, self._is_unfinished)
        is_running = self.statuses[name] == "in_progress"
        is_new = is_running and name not in self.to_pause and not self._is_asked(name)
        expected = is_new or self.statuses[name] == "pending"
        assert self.manager.pause_task(name, keep_locks=keep_locks) == expected
        if is_new:
            self.to_pause[name] = keep_locks
        elif expected:
            self._note_paused(name, keep_locks=keep_locks)

    @precondition(lambda self: self.names)
    @rule(which=LATEST)
    def resume(self, which):
        name = latest(self.names, which, lambda name: self.statuses[name] == "paused")
        objects = self.given_back.get(name, frozenset())
        is_paused = self.statuses[name] == "paused"
        if is_paused and not self._is_free(objects, name):
            with pytest.raises(TaskConflict):
                self.manager.resume_task(name)
            return
        assert self.manager.resume_task(name) == (is_paused or name in self.to_pause)
        self.to_pause.pop(name, None)
        if is_paused:
            self.statuses[name] = "pending"
            if name in self.waits_again:
                self.waits_again.discard(name)
                self.waiting.add(name)
            self.holders.update(dict.fromkeys(self.given_back.pop(name, ()), name))

    @precondition(lambda self: self.names)
    @rule(which=LATEST)
    def run_now(self, which):
        name = latest(self.names, which, self.waiting.__contains__)
        assert self.manager.run_task_now(name) == (name in self.waiting)
        self.waiting.discard(name)

    @rule()
    def let_retries_be_due(self):
        ActiveTask.objects.waiting().update(next_run_at=timezone.now() - timedelta(seconds=1))
        assert self.manager.send_due_tasks() == len(self.waiting)
        self.waiting.clear()

    @precondition(lambda self: self.names)
    @rule(which=LATEST)
    def remove_by_hand(self, which):
        name = latest(self.names, which, self._is_unfinished)
        assert self.manager.remove_active_task(name) == self._is_unfinished(name)
        if self._is_unfinished(name):
            self._note_end(name, "cancelled")

    @precondition(lambda self: self.holders)
    @rule(which=LATEST)
    def release_a_lock(self, which):
        item = latest(sorted(self.holders), which)
        assert self.manager.release_conflict_lock(ConflictLock.objects.get(object_id=item))
        del self.holders[item]

    @precondition(lambda self: self.names)
    @rule(which=LATEST, how=st.sampled_from(["never sent", "lost by the broker"]))
    def lose_a_message(self, which, how):
        name = latest(self.names, which, lambda name: self.statuses[name] == "pending")
        row = ActiveTask.objects.ready().filter(task_name=name)
        is_lost = row.exists()
        if how == "never sent":
            row.update(sent_at=None, queue_receipt="")
            self.manager.cleanup_completed_tasks()
            row.update(expires_at=timezone.now() - timedelta(seconds=1))
        else:
            OrmQ.objects.filter(pk__in=[active.queue_receipt or 0 for active in row]).delete()
            row.update(queued_at=timezone.now() - timedelta(hours=1))
        # Retries that are due are sent by each cleanup; here none is due by itself.
        self.manager.cleanup_completed_tasks()
        if is_lost:
            self._note_given_up(name, asked=False)

    # What workers do

    @precondition(lambda self: self.names)
    @rule(which=LATEST)
    def start(self, which):
        name = latest(self.names, which, lambda name: self.statuses[name] == "pending")
        active = self._claim(name)
        may_start = self.statuses[name] == "pending" and name not in self.waiting
        assert (active is not None) == may_start
        if active is None:
            return
        self.statuses[name] = "in_progress"
        self.attempt_of[name] += 1
        assert active.attempt == self.attempt_of[name]
        self.attempts.append(active)

    def _claim(self, name: str) -> ActiveTask | None:
        """Do what a worker does to begin a task."""
        worker = WorkerProcess.objects.create(identity=uuid.uuid4().hex, host="elsewhere", pid=1)
        active = ActiveTask.objects.claim(name, worker=worker.pk)
        if active is not None:
            lifecycle.emit(self.manager, "start", name, attempt=active.attempt)
        return active

    def _is_current(self, active: ActiveTask) -> bool:
        name = active.task_name
        return self.statuses[name] == "in_progress" and self.attempt_of[name] == active.attempt

    @precondition(lambda self: self.attempts)
    @rule(which=LATEST)
    def report_progress(self, which):
        active = latest(self.attempts, which, self._is_current)
        self.manager.update_progress(active.task_name, "Step 1/2: on the way")

    @precondition(lambda self: self.attempts)
    @rule(which=LATEST)
    def finish(self, which):
        active = latest(self.attempts, which, self._is_current)
        assert lifecycle.end(self.manager, active, "complete", result=1) == self._is_current(active)
        if self._is_current(active):
            self._note_end(active.task_name, "success")

    @precondition(lambda self: self.attempts)
    @rule(which=LATEST)
    def fail(self, which):
        active = latest(self.attempts, which, self._is_current)
        asked = self._is_asked(active.task_name)
        noted = policy.fail(self.manager, active, ValueError, reason="error", error="broke", traceback="")
        assert noted == self._is_current(active)
        if self._is_current(active):
            # Who has asked for an end gets it.
            self._note_failure(active.task_name, covered=not asked)

    @precondition(lambda self: self.attempts)
    @rule(which=LATEST, objects=OBJECTS_OR_ALL)
    def lock_more(self, which, objects):
        """Also a worker may try whose task was given up, or has passed to another attempt."""
        active = latest(self.attempts, which, self._is_current)
        name = active.task_name
        expected = self._is_current(active) and self._is_free(objects, name)
        assert locks.extend(name, locks.normalise({LABEL: objects}), attempt=active.attempt) == expected
        if expected:
            self.holders.update(dict.fromkeys(objects, name))

    @precondition(lambda self: self.attempts)
    @rule(which=LATEST)
    def notice_the_cancel(self, which):
        active = latest(self.attempts, which, lambda active: self._is_asked(active.task_name))
        if self._is_asked(active.task_name):
            assert lifecycle.end(self.manager, active, "cancel") == self._is_current(active)
            if self._is_current(active):
                self._note_end(active.task_name, "cancelled")

    @precondition(lambda self: self.attempts)
    @rule(which=LATEST)
    def give_the_worker_back(self, which):
        """At its next object: somebody wants it to pause or has cancelled it, or its slice is over."""
        active = latest(self.attempts, which, self._is_current)
        name, asked = active.task_name, self._is_asked(active.task_name)
        is_current = self._is_current(active)
        assert requests.give_worker_back(self.manager, active) == is_current
        if is_current and asked:
            self._note_end(name, "cancelled")
        elif is_current and name in self.to_pause:
            self._note_paused(name, keep_locks=self.to_pause[name])
        elif is_current:
            self.statuses[name] = "pending"

    @precondition(lambda self: self.attempts)
    @rule(which=LATEST)
    def end_late(self, which):
        """A worker whose task was given up reports how it really ended."""
        active = latest(self.attempts, which, lambda active: active.task_name in self.given_up)
        name = active.task_name
        if self._is_unfinished(name):
            return
        lifecycle.emit(self.manager, "complete", name, result=1, attempt=active.attempt, started_at=None, late=True)
        if name in self.given_up:
            self.given_up.remove(name)
            self.statuses[name] = "success"

    @precondition(lambda self: self.attempts)
    @rule(which=LATEST)
    def lose_a_worker(self, which):
        active = latest(self.attempts, which, self._is_current)
        name = active.task_name
        if self._is_current(active):
            asked = self._is_asked(name)
            silence(tasks__task_name=name)
            self.manager.cleanup_completed_tasks()
            self._note_given_up(name, asked=asked)

    @precondition(lambda self: self.attempts)
    @rule(which=LATEST)
    def deliver_the_message_of_a_lost_worker_again(self, which):
        active = latest(self.attempts, which, self._is_current)
        name = active.task_name
        if not self._is_current(active):
            assert processes.find_lost(task_name=name) == []
            return
        silence(tasks__task_name=name)
        [lost] = processes.find_lost(task_name=name)
        second = WorkerProcess.objects.create(identity=uuid.uuid4().hex, host="second", pid=2)
        again = ActiveTask.objects.take_over(lost, worker=second.pk)
        assert ActiveTask.objects.take_over(lost, worker=second.pk) is None
        self.attempt_of[name] += 1
        assert again.attempt == self.attempt_of[name]
        lifecycle.emit(self.manager, "start", name, attempt=again.attempt)
        self.attempts.append(again)

    # What must hold

    @invariant()
    def locks_are_held_by_whom_the_model_says(self):
        locks = ConflictLock.objects.values_list("object_id", "active_task__task_name")
        assert dict(locks) == self.holders

    @invariant()
    def each_lock_has_a_holder(self):
        assert not ConflictLock.objects.all().orphaned().exists()
        locked = ConflictLock.objects.values("active_task")
        assert not ActiveTask.objects.reservations().exclude(pk__in=locked).exists()

    @invariant()
    def each_end_is_recorded_once(self):
        # The timeline also has reports that came too late to change anything.
        ends = TaskEvent.objects.filter(event__in=ENDS).exclude(message__startswith="Arrived after")
        told = ends.values_list("record__task_name", "payload")
        recorded = [name for name, payload in told if not payload.get("late")]
        assert sorted(recorded) == sorted(name for name in self.names if not self._is_unfinished(name))

    @invariant()
    def each_task_is_where_the_model_says(self):
        assert dict(TaskRecord.objects.values_list("task_name", "status")) == self.statuses
        active = {name: status for name, status in self.statuses.items() if status in UNFINISHED}
        assert dict(ActiveTask.objects.tasks().values_list("task_name", "state")) == active
        assert set(ActiveTask.objects.waiting().values_list("task_name", flat=True)) == self.waiting


@pytest.mark.long
@pytest.mark.django_db(transaction=True)
def test_in_any_order():
    run_state_machine_as_test(
        Managers,
        settings=settings(
            max_examples=60, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
