"""The manager's API in any order, beside a small model of what must hold."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import hypothesis.strategies as st
import pytest
from django.utils import timezone
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from powercrud_dashboard import failing, lifecycle
from powercrud_dashboard.dashboard_manager import DashboardAsyncManager
from powercrud_dashboard.exceptions import TaskConflict, TaskNotRetryable
from powercrud_dashboard.models import ActiveTask, ConflictLock, TaskEvent, TaskObject, TaskRecord
from powercrud_dashboard.worker.task import claim
from tests.testapp import tasks

LABEL = "machine.object"
OBJECTS = st.sampled_from([frozenset(objects) for objects in ("", "a", "b", "c", "d", "ab", "bc", "cd", "ad")])
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
        self.launched_with: dict[str, tuple[frozenset[str], int]] = {}
        self.retried: dict[str, str] = {}
        self.waiting: set[str] = set()
        self.holders: dict[str, str] = {}

    def _is_free(self, objects: frozenset[str]) -> bool:
        return not any(item in self.holders for item in objects)

    def _is_unfinished(self, name: str) -> bool:
        return self.statuses[name] in ("pending", "in_progress")

    def _note_launch(self, name: str, objects: frozenset[str], retries: int) -> None:
        self.names.append(name)
        self.statuses[name] = "pending"
        self.attempt_of[name] = 0
        self.retries_left[name] = retries
        self.launched_with[name] = (objects, retries)
        self.holders.update(dict.fromkeys(objects, name))

    def _note_end(self, name: str, status: str) -> None:
        self.statuses[name] = status
        self.waiting.discard(name)
        self.holders = {item: holder for item, holder in self.holders.items() if holder != name}

    def _note_failure(self, name: str, *, covered: bool) -> None:
        if covered and self.retries_left[name]:
            self.retries_left[name] -= 1
            self.statuses[name] = "pending"
            self.waiting.add(name)
        else:
            self._note_end(name, "failed")

    # What callers do

    @rule(objects=OBJECTS, retries=st.integers(0, 2))
    def launch(self, objects, retries):
        options = {"conflict_ids": {LABEL: objects}, "max_retries": retries, "requeue_on_stop": False}
        if not self._is_free(objects):
            with pytest.raises(TaskConflict):
                DashboardAsyncManager().launch_async_task(tasks.add, 1, **options)
            return
        name = DashboardAsyncManager().launch_async_task(tasks.add, 1, **options)
        self._note_launch(name, objects, retries)

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
        own = set(ConflictLock.objects.filter(active_task__in=manager.reservations).values_list("object_id", flat=True))
        if not self._is_free(frozenset(objects - own)):
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
        asked = ActiveTask.objects.filter(task_name=name).exclude(cancel_requested_at=None).exists()
        expected = self.statuses[name] in ("pending", "in_progress") and not asked
        assert self.manager.cancel_task(name) == expected
        if self.statuses[name] == "pending":
            self._note_end(name, "cancelled")

    @precondition(lambda self: self.names)
    @rule(which=LATEST)
    def retry(self, which):
        name = latest(self.names, which, lambda name: not self._is_unfinished(name))
        objects, retries = self.launched_with[name]
        under_way = self.statuses.get(self.retried.get(name, ""), "") in ("pending", "in_progress")
        try:
            again = self.manager.retry_task(name)
        except TaskNotRetryable:
            assert self.statuses[name] in ("pending", "in_progress") or under_way
            return
        except TaskConflict:
            assert not self._is_free(objects)
            return
        assert self.statuses[name] not in ("pending", "in_progress")
        assert not under_way
        assert self._is_free(objects)
        self.retried[name] = again
        self._note_launch(again, objects, retries)

    @precondition(lambda self: self.names)
    @rule(which=LATEST)
    def run_now(self, which):
        name = latest(self.names, which, self.waiting.__contains__)
        assert self.manager.run_task_now(name) == (name in self.waiting)
        self.waiting.discard(name)

    # What workers do

    @precondition(lambda self: self.names)
    @rule(which=LATEST)
    def start(self, which):
        name = latest(self.names, which, lambda name: self.statuses[name] == "pending")
        active = claim(self.manager, name)
        may_start = self.statuses[name] == "pending" and name not in self.waiting
        assert (active is not None) == may_start
        if active is None:
            return
        self.statuses[name] = "in_progress"
        self.attempt_of[name] += 1
        assert active.attempt == self.attempt_of[name]
        self.attempts.append(active)

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
        asked = ActiveTask.objects.filter(pk=active.pk).exclude(cancel_requested_at=None).exists()
        noted = failing.fail(self.manager, active, ValueError, reason="error", error="broke", traceback="")
        assert noted == self._is_current(active)
        if self._is_current(active):
            # Who has asked for an end gets it.
            self._note_failure(active.task_name, covered=not asked)

    @precondition(lambda self: any(status == "in_progress" for status in self.statuses.values()))
    @rule()
    def lose_all_workers(self):
        ActiveTask.objects.running().update(
            heartbeat_at=timezone.now() - timedelta(hours=1), worker_host="a host that is gone"
        )
        self.manager.cleanup_completed_tasks()
        for name in [name for name, status in self.statuses.items() if status == "in_progress"]:
            self._note_failure(name, covered=False)

    # What must hold

    @invariant()
    def locks_are_held_by_whom_the_model_says(self):
        locks = ConflictLock.objects.values_list("object_id", "active_task__task_name")
        assert dict(locks) == self.holders

    @invariant()
    def each_task_is_where_the_model_says(self):
        assert dict(TaskRecord.objects.values_list("task_name", "status")) == self.statuses
        active = {name: status for name, status in self.statuses.items() if status in ("pending", "in_progress")}
        assert dict(ActiveTask.objects.tasks().values_list("task_name", "state")) == active
        assert set(ActiveTask.objects.waiting().values_list("task_name", flat=True)) == self.waiting


@pytest.mark.django_db
def test_in_any_order():
    run_state_machine_as_test(
        Managers,
        settings=settings(
            max_examples=60, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
