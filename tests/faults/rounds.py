"""One round: tasks are launched, cancelled and retried by people while things break; then all must come to rest."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import DatabaseError, InterfaceError, connection
from django.test import Client
from django.utils import timezone
from django_q.models import OrmQ, Task

from powercrud_dashboard.async_manager import RetryPolicy
from powercrud_dashboard.exceptions import EnqueueError, TaskConflict, TaskNotRetryable, WorkerLost
from powercrud_dashboard.models import ActiveTask, ConflictLock, TaskRecord, WorkerProcess
from tests.faults import ledger, release
from tests.faults.checker import ACTION, check
from tests.faults.clock import set_clocks_right
from tests.faults.crashes import crash_nowhere
from tests.faults.fault import Fault
from tests.faults.work import Manager
from tests.faults.world import World
from tests.testapp.models import Project, Visit

#: Seconds after which a round that has not come to rest is broken.
REST_WITHIN = 120

#: Seconds without any change after which a person restarts the clusters.
STALLED_AFTER = 25

#: Seconds that what a person does may take while a host is away.
ANSWERS_WITHIN = 8.0

#: Tasks that each round has beside those of its faults.
TASKS = 10
OBJECTS = [str(number) for number in range(16)]

#: Projects for the action per object, and how many each click is for.
PROJECTS, VISITED_AT_ONCE = 60, 30

#: What the driver itself meets while the database is away or the broker does not answer.
AWAY = (DatabaseError, InterfaceError, EnqueueError, OSError)


@dataclass
class Round:
    world: World
    number: int
    faults: Sequence[Fault]
    manager: Manager = field(default_factory=Manager)
    launched: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)
    #: Tasks whose launches were rolled back.
    undone: set[str] = field(default_factory=set)
    is_over: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)
    #: Those that the round waits for before it can come to rest.
    _awaited: list[threading.Thread] = field(default_factory=list)
    _slow: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ledger = Path(settings.STATE_DIR) / f"ledger-{self.number}"
        self.user: Any = None
        self.was_restarted = False

    def run(self) -> list[str]:
        """Return what does not hold; nothing if all is well."""
        self._begin()
        for fault in self.faults:
            fault.prepare(self)
        for host in self.world.hosts:
            self.world.start_cluster(host)
        strikes = [fault.strike for fault in self.faults]
        for step in self._shuffled([self.launch] * TASKS, strikes, [self._cancel_one, self._retry_one, self._run_one]):
            time.sleep(random.uniform(0, 0.15))
            with suppress(*AWAY):
                if step in strikes:
                    step(self)
                else:
                    self._timed(step)
        rested = self._come_to_rest()
        self._end()
        may_lose = self.was_restarted or any(self.world.lane in fault.loses for fault in self.faults)
        book = ledger.read(self.ledger)
        found = [*self._slow, *check(self.launched, self.deleted, book, undone=self.undone, may_lose=may_lose)]
        return found if rested else [*self._restless(), *found]

    def _timed(self, step: Callable[[], Any]) -> None:
        """Do something as another host than one that is away: it must not wait for that one."""
        began = time.monotonic()
        was_away = self.world.is_a_host_away
        try:
            step()
        finally:
            took = time.monotonic() - began
            # SQLite has one writer, which may be frozen.
            if was_away and took > ANSWERS_WITHIN and self.world.database is not None:
                self._slow.append(f"{step.__name__} took {took:.1f} s while a host was away")

    @staticmethod
    def _shuffled(*parts: Sequence[Callable[..., Any]]) -> list[Callable[..., Any]]:
        steps = [step for part in parts for step in part]
        random.shuffle(steps)
        return steps

    # What people and faults do

    def launch(
        self,
        *,
        outcome: str = "",
        seconds: float | None = None,
        manager: Manager | None = None,
        way: str = "",
        note: bool = True,
        **options: Any,
    ) -> str | None:
        """Launch a task on some objects and return its name; None if it is refused, which leaves nothing.

        Without ``note`` the caller sees to it that the task is accounted for.
        """
        objects = random.sample(OBJECTS, random.randint(1, 2))
        work = {
            "ledger": str(self.ledger),
            "objects": objects,
            "seconds": random.uniform(0.05, 1.0) if seconds is None else seconds,
            "outcome": outcome or random.choice(["done", "done", "done", "fails"]),
            "way": way,
            "others": [key for key in OBJECTS if key not in objects],
        }
        # The errors of a function that runs in this process are raised here.
        with suppress(TaskConflict, ValueError):
            name = (manager or self.manager).launch_async_task(
                "tests.faults.work.work",
                task_kwargs=work,
                conflict_ids={"faults.object": objects},
                user=self.user,
                **{**self._some_policy(), **options},
            )
            if note:
                self.launched.add(name)
            return name
        return None

    @staticmethod
    def _some_policy() -> dict[str, Any]:
        if random.random() < 0.5:
            return {}
        classes = [Exception] if random.random() < 0.5 else [ValueError, WorkerLost]
        return {"retry": RetryPolicy(random.randint(1, 2), backoff=0.2, retry_on=classes)}

    def launch_stubborn(self) -> None:
        objects = random.sample(OBJECTS, 1)
        with suppress(TaskConflict):
            self.launched.add(
                self.manager.launch_async_task(
                    "tests.faults.work.ignore_its_time_limit",
                    str(self.ledger),
                    objects,
                    conflict_ids={"faults.object": objects},
                    timeout=1,
                )
            )

    def launch_action(self) -> None:
        """Click on the action per object, for some of the projects."""
        client = Client()
        client.force_login(self.user)
        keys = random.sample(list(Project.objects.values_list("pk", flat=True)), VISITED_AT_ONCE)
        client.post("/admin/testapp/project/", {"action": "count_visits", "_selected_action": keys})
        self.launched.update(TaskRecord.objects.filter(label=ACTION).values_list("task_name", flat=True))

    def pause_one(self) -> None:
        if names := list(ActiveTask.objects.tasks().values_list("task_name", flat=True)):
            self.manager.pause_task(random.choice(names), user=self.user, keep_locks=random.random() < 0.7)

    def resume_all(self) -> None:
        for name in list(ActiveTask.objects.paused().values_list("task_name", flat=True)):
            with suppress(TaskConflict):
                self.manager.resume_task(name, user=self.user)

    def launch_path(self, path: str) -> None:
        self.launched.add(self.manager.launch_async_task(path, user=self.user))

    def wait_for_runs(self) -> None:
        """Wait until another function runs, for a short time only: none may run at all."""
        before, deadline = self._begun(), time.monotonic() + 1
        while time.monotonic() < deadline and self._begun() == before:
            time.sleep(0.05)

    def _begun(self) -> int:
        return self.ledger.read_text().count('"begin"') if self.ledger.exists() else 0

    def in_background(self, act: Callable[[], None], *, is_awaited: bool = False) -> None:
        """Do something beside the round's steps. What ``is_awaited`` has ended before the round comes to rest."""

        def act_if_possible() -> None:
            with suppress(*AWAY):
                act()

        thread = threading.Thread(target=act_if_possible, daemon=True)
        (self._awaited if is_awaited else self._threads).append(thread)
        thread.start()

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        """Do something so many seconds from now, before the round comes to rest."""

        def wait_and_act() -> None:
            time.sleep(seconds)
            act()

        self.in_background(wait_and_act, is_awaited=True)

    def _cancel_one(self) -> None:
        if names := list(ActiveTask.objects.tasks().values_list("task_name", flat=True)):
            self.manager.cancel_task(random.choice(names), user=self.user)

    def _retry_one(self) -> None:
        failed = TaskRecord.objects.filter(status__in=["failed", "cancelled"], func="tests.faults.work.work")
        if names := list(failed.values_list("task_name", flat=True)):
            with suppress(TaskConflict, TaskNotRetryable):
                self.launched.add(self.manager.retry_task(random.choice(names), user=self.user))

    def _run_one(self) -> None:
        for name in ActiveTask.objects.waiting().values_list("task_name", flat=True)[:1]:
            self.manager.run_task_now(name, user=self.user)

    @staticmethod
    def _restless() -> list[str]:
        now = timezone.now()
        return [
            f"not at rest after {REST_WITHIN} s: {active.task_name} is {active.state}, attempt {active.attempt},"
            f" heartbeat {active.worker and active.worker.heartbeat_at}, next run {active.next_run_at},"
            f" queued {active.queued_at},"
            f" message {active.queue_receipt}, now {now}"
            for active in ActiveTask.objects.tasks()
        ] or [f"not at rest after {REST_WITHIN} s, but soon after that"]

    # Before and after

    def _begin(self) -> None:
        crash_nowhere()
        set_clocks_right()
        release.use(0)
        self.world.start_servers()
        self.world.options.clear()
        self.world.ledger = self.ledger
        ConflictLock.objects.all().delete()
        ActiveTask.objects.all().delete()
        WorkerProcess.objects.all().delete()
        parts = {relation.related_model for relation in TaskRecord._meta.related_objects} - {TaskRecord}
        for model in (*parts, TaskRecord, OrmQ, Task):
            model._base_manager.all()._raw_delete("default")
        self.user = get_user_model().objects.create_superuser(f"boss {self.number}")
        Visit.objects.all().delete()
        if not Project.objects.exists():
            Project.objects.bulk_create(Project(name=f"project {number}") for number in range(PROJECTS))

    def _come_to_rest(self) -> bool:
        """Clean up as a schedule does, with clusters that are replaced where they are gone, until no task is left."""
        deadline = time.monotonic() + REST_WITHIN
        changed_at, before = time.monotonic(), None
        while time.monotonic() < deadline:
            crash_nowhere()
            try:
                now = set(ActiveTask.objects.tasks().values_list("task_name", "state", "attempt"))
                if now != before:
                    changed_at, before = time.monotonic(), now
                elif time.monotonic() - changed_at > STALLED_AFTER:
                    self._restart_by_hand()
                    changed_at = time.monotonic()

                self.world.see_to_it_that_one_runs()
                self._timed(self.manager.cleanup_completed_tasks)
                self.resume_all()
                is_busy = any(thread.is_alive() for thread in self._awaited)
                if not is_busy and not ActiveTask.objects.tasks().exists():
                    return True
            except AWAY:
                connection.close()
            time.sleep(0.2)
        return False

    def _restart_by_hand(self) -> None:
        """Do what a person does who sees that the queue does not move.

        A process that is killed while it holds the lock of a cluster's queue in memory has the others wait for ever.
        """
        self.was_restarted = True
        self.world.kill_clusters()
        self.world.start_cluster()

    def _end(self) -> None:
        self.is_over.set()
        for thread in [*self._threads, *self._awaited]:
            thread.join(10)
        set_clocks_right()
        self.world.stop_clusters()
        # A worker that had been given up may have told of its end while its cluster was stopped.
        with suppress(*AWAY):
            self.manager.cleanup_completed_tasks()
