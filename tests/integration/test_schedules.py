"""Schedules before a real cluster: one that is declared, one that fails, one that overlaps, and one under a lock."""

from __future__ import annotations

import importlib
from datetime import timedelta
from functools import partial

import pytest
from django.core.management import call_command
from django.utils import timezone
from django_q.models import Schedule

from powercrud_dashboard import schedules
from powercrud_dashboard.models import ActiveTask, ConflictLock, TaskRecord
from powercrud_dashboard.schedules import run_scheduled
from tests.services import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.django_db(transaction=True)]

PAGE = "/admin/powercrud_dashboard/taskrecord/schedules/"


@pytest.fixture
def declared():
    """What the cluster finds in the modules of the project, in this process too."""
    schedules.declarations()
    before = list(schedules.registry)
    importlib.import_module("tests.testapp.declared")
    yield
    schedules.registry[:] = before


@pytest.fixture
def start_cluster(cluster_later, tmp_path):
    # The guard looks for due schedules after 30 seconds of its cycles: so it does in the first of them.
    return partial(cluster_later, PCRUD_TEST_SCHEDULES=str(tmp_path / "go"), PCRUD_TEST_GUARD_CYCLE="30")


def test_schedules_fire_fail_and_skip(declared, start_cluster, tmp_path, boss):
    call_command("pcrud_sync_schedules", verbosity=0)
    plain = {"func": "tests.testapp.tasks.add", "args": "4", "kwargs": "right=5"}
    Schedule.objects.create(name="plain", schedule_type=Schedule.DAILY, **plain)
    first = run_scheduled("waits")
    Schedule.objects.update(next_run=timezone.now() - timedelta(minutes=5))
    page = boss.get(PAGE).content.decode()
    assert page.count("Missed: no cluster pcrud-tests runs.") == 4
    start_cluster()

    def statuses(name: str) -> list[str]:
        return list(TaskRecord.objects.filter(group=name).order_by("pk").values_list("status", flat=True))

    wait_until(lambda: statuses("adds") == ["success"], "the declared schedule has run")
    wait_until(lambda: statuses("fails") == ["failed"], "the other one has failed")
    wait_until(lambda: statuses("plain") == ["success"], "the plain function has run under its lock")
    wait_until(lambda: statuses("waits") == ["in_progress", "cancelled"], "the second run is skipped")
    skipped = TaskRecord.objects.get(group="waits", status="cancelled")
    assert skipped.message == f"Skipped, as the run before has not ended ({first})."
    (tmp_path / "go").touch()
    wait_until(lambda: statuses("waits") == ["success", "cancelled"], "the first run has ended")
    results = dict(TaskRecord.objects.filter(status="success").values_list("group", "result"))
    assert results == {"adds": 5, "plain": 9, "waits": str(tmp_path / "go")}
    failed = TaskRecord.objects.get(group="fails")
    assert "nothing to report" in failed.traceback
    # Nothing but the runs is on record: the calls that launch them are none.
    assert TaskRecord.objects.count() == 5
    assert not ActiveTask.objects.exists()
    assert not ConflictLock.objects.exists()
    assert not Schedule.objects.filter(next_run__lt=timezone.now()).exists()
    page = boss.get(PAGE).content.decode()
    assert "Missed" not in page
    assert page.index("<strong>fails</strong>") < page.index("<strong>adds</strong>")
    assert "declared in code" in page
