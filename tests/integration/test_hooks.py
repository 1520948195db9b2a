"""Hooks of managers that block or raise, in a real cluster: no record waits for them, and none is lost."""

from __future__ import annotations

import pytest

from powercrud_dashboard.models import ActiveTask, ConflictLock, WorkerProcess
from tests.services import wait_until
from tests.testapp import tasks
from tests.testapp.managers import BlockedManager, ForkingManager, HeardManager, RaisingManager

pytestmark = [pytest.mark.cluster, pytest.mark.django_db(transaction=True)]


def test_while_a_hook_blocks_everything_else_goes_on(cluster, manager, record_of, tmp_path, until_started):
    unblocked, go_on = tmp_path / "unblocked", tmp_path / "go on"
    blocked = BlockedManager({"until": str(unblocked)}).launch_async_task(
        tasks.wait_for_file, str(go_on), conflict_ids={"testapp.Project": {1}}
    )
    until_started(go_on)
    # Its own heartbeat too: it must not be taken for lost.
    process = ActiveTask.objects.get(task_name=blocked).worker
    others = [manager.launch_async_task(tasks.add, number) for number in range(20)]
    wait_until(lambda: all(record_of(name).status == "success" for name in others), "the others end")
    wait_until(lambda: WorkerProcess.objects.get(pk=process.pk).beats > process.beats, "its process has a heartbeat")
    go_on.touch()
    wait_until(lambda: record_of(blocked).status == "success", "its own record has its end")
    assert not ConflictLock.objects.exists()
    unblocked.touch()


def test_a_hook_that_raises_is_shown_and_loses_nothing(cluster, record_of):
    names = [RaisingManager().launch_async_task(tasks.add, number) for number in range(5)]
    wait_until(lambda: all(record_of(name).is_finished for name in names), "all have ended")
    for name in names:
        assert record_of(name).status == "success"
        wait_until(lambda name=name: record_of(name).events.filter(event="hook_error").count() == 4, "all are told")


def test_receivers_of_signals_are_called_by_the_thread_of_the_hooks(cluster, record_of):
    name = HeardManager().launch_async_task(tasks.add, 1)
    wait_until(lambda: record_of(name).events.filter(event="hook_error").exists(), "it is told")
    event = record_of(name).events.get(event="hook_error")
    assert event.message.endswith("managers.refuse failed: RuntimeError: in powercrud-dashboard-hooks")
    wait_until(lambda: record_of(name).is_finished, "the task has ended")
    assert record_of(name).status == "success"


def test_a_child_that_a_hook_forks_is_no_second_worker(cluster, record_of, tmp_path):
    path = tmp_path / "code"
    name = ForkingManager({"path": str(path)}).launch_async_task(tasks.add, 1)
    wait_until(lambda: path.exists() and path.read_text() == "0", "the child has ended")
    wait_until(lambda: record_of(name).is_finished, "the task has ended")
    assert record_of(name).status == "success"
    assert cluster.stop() == 0
