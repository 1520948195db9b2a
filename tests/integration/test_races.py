"""Many processes at once, on the real database and through a real cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from django.conf import settings

from powercrud_dashboard.models import ActiveTask, ConflictLock, TaskRecord

pytestmark = [pytest.mark.cluster, pytest.mark.django_db(transaction=True)]

RACERS = 20
ROUNDS = 10
OBJECTS = 50


class Racers:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout.readline() == "ready\n"

    def all_do(self, command: str) -> list[str]:
        """Give all of them the same command at once, "#" being the place of each; return their answers."""
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().split()


@pytest.fixture
def start_racers(transactional_db) -> Iterator[Callable[[int], Racers]]:
    with ExitStack() as running:

        def start(number: int) -> Racers:
            # Leaving the context closes the standard input, at which they end, and waits for that.
            process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "tests.integration.racer", str(number)],
                env={**os.environ, "DJANGO_SETTINGS_MODULE": settings.SETTINGS_MODULE},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            return Racers(running.enter_context(process))

        yield start


def test_of_twenty_processes_exactly_one_gets_the_objects(start_racers):
    racers = start_racers(RACERS)
    for _round in range(ROUNDS):
        assert sorted(racers.all_do(f"reserve {OBJECTS}")) == ["lost"] * (RACERS - 1) + ["won"]
        assert ConflictLock.objects.count() == OBJECTS
        assert ConflictLock.objects.values("active_task").distinct().count() == 1
        released = racers.all_do("release")
        assert sorted(map(int, released)) == [0] * (RACERS - 1) + [OBJECTS]
        assert not ConflictLock.objects.exists()
        assert not ActiveTask.objects.exists()


def test_a_whole_model_is_held_by_one_or_its_objects_by_others(start_racers):
    racers = start_racers(8)
    for shift in range(ROUNDS):
        answers = racers.all_do(f"reserve-one-or-all {shift}#")
        kinds = set(answers) - {"lost"}
        assert kinds in ({"all"}, {"one"})
        assert answers.count("all") <= 1
        assert ConflictLock.objects.count() == 8 - answers.count("lost")
        racers.all_do("release")
    assert not ConflictLock.objects.exists()


@pytest.mark.long
def test_eight_processes_with_a_hundred_tasks_each_leave_nothing(cluster, start_racers):
    assert start_racers(8).all_do("launch 100") == ["100"] * 8
    assert not ActiveTask.objects.exists()
    assert not ConflictLock.objects.exists()
    assert TaskRecord.objects.completed().count() == 800
    # The workers' own end, and nobody else's, ended each of them.
    assert set(TaskRecord.objects.values_list("attempts", flat=True)) == {1}
