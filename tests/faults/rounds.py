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
from django.utils import timezone
from django_q.models import OrmQ, Task

from powercrud_dashboard.exceptions import EnqueueError, TaskConflict, TaskNotRetryable, WorkerLost
from powercrud_dashboard.models import ActiveTask, ConflictLock, TaskEvent, TaskObject, TaskRecord
from tests.faults import ledger
from tests.faults.checker import check
from tests.faults.crashes import crash_nowhere
from tests.faults.kinds import Fault
from tests.faults.work import Manager
from tests.faults.world import World

#: Seconds after which a round that has not come to rest is broken.
REST_WITHIN = 90

#: Seconds without any change after which a person restarts the clusters.
STALLED_AFTER = 25

#: Tasks that each round has beside those of its faults.
TASKS = 10
OBJECTS = [str(number) for number in range(16)]

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
    is_over: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ledger = Path(settings.STATE_DIR) / f"ledger-{self.number}"
        self.user: Any = None
        self.was_restarted = False

    def run(self) -> list[str]:
        """Return what does not hold; nothing if all is well."""
        self._begin()
        for fault in self.faults:
            fault.prepare(self)
        self.world.start_cluster()
        strikes = [fault.strike for fault in self.faults]
        for step in self._shuffled([self.launch] * TASKS, strikes, [self._cancel_one, self._retry_one, self._run_one]):
            time.sleep(random.uniform(0, 0.15))
            with suppress(*AWAY):
                step(self) if step in strikes else step()
        rested = self._come_to_rest()
        self._end()
        found = check(self.launched, self.deleted, ledger.read(self.ledger))
        return found if rested else [*self._restless(), *found]

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
        **options: Any,
    ) -> None:
        """Launch a task on some objects; one that is refused leaves nothing."""
        objects = random.sample(OBJECTS, random.randint(1, 2))
        work = {
            "ledger": str(self.ledger),
            "objects": objects,
            "seconds": random.uniform(0.05, 1.0) if seconds is None else seconds,
            "outcome": outcome or random.choice(["done", "done", "done", "fails"]),
        }
        with suppress(TaskConflict, ValueError):
            self.launched.add(
                (manager or self.manager).launch_async_task(
                    "tests.faults.work.work",
                    task_kwargs=work,
                    conflict_ids={"faults.object": objects},
                    user=self.user,
                    **{**self._some_policy(), **options},
                )
            )

    @staticmethod
    def _some_policy() -> dict[str, Any]:
        if random.random() < 0.5:
            return {}
        lost = {"retry_on": [Exception]} if random.random() < 0.5 else {"retry_on": [ValueError, WorkerLost]}
        return {"max_retries": random.randint(1, 2), "retry_backoff": 0.2, **lost}

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

    def launch_path(self, path: str) -> None:
        self.launched.add(self.manager.launch_async_task(path, user=self.user))

    def in_background(self, act: Callable[[], None]) -> None:
        self._threads.append(threading.Thread(target=act, daemon=True))
        self._threads[-1].start()

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
            f" heartbeat {active.heartbeat_at}, next run {active.next_run_at}, queued {active.queued_at},"
            f" message {active.queue_receipt}, now {now}"
            for active in ActiveTask.objects.tasks()
        ] or [f"not at rest after {REST_WITHIN} s, but soon after that"]

    # Before and after

    def _begin(self) -> None:
        crash_nowhere()
        self.world.start_servers()
        self.world.options.clear()
        ConflictLock.objects.all().delete()
        ActiveTask.objects.all().delete()
        for model in (TaskEvent, TaskObject, TaskRecord, OrmQ, Task):
            model.objects.all()._raw_delete("default")
        self.user = get_user_model().objects.create_superuser(f"boss {self.number}")

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
                self.manager.cleanup_completed_tasks()
                if not ActiveTask.objects.tasks().exists():
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
        for thread in self._threads:
            thread.join(10)
        self.world.stop_clusters()
        # A worker that had been given up may have told of its end while its cluster was stopped.
        with suppress(*AWAY):
            self.manager.cleanup_completed_tasks()
