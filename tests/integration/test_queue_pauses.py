"""A queue that is paused before a real cluster, with either broker: no message is lost, and each task runs once."""

from __future__ import annotations

import pytest

from powercrud_dashboard.engine import pauses
from powercrud_dashboard.models import ActiveTask, TaskRecord
from powercrud_dashboard.q2 import queue
from tests.services import wait_until
from tests.testapp import tasks

pytestmark = [pytest.mark.cluster, pytest.mark.django_db(transaction=True)]


def test_a_pause_loses_and_doubles_nothing(cluster, manager):
    name = queue.current_cluster()
    assert pauses.pause("queue", name)
    names = [manager.launch_async_task(tasks.add, number) for number in range(5)]
    wait_until(lambda: ActiveTask.objects.held().count() == 5, "all are held back")
    assert manager.pause_task(names[0])
    assert pauses.resume("queue", name)
    records = TaskRecord.objects.filter(task_name__in=names)
    wait_until(lambda: records.filter(status="success").count() == 4, "the others have run")
    # Paused and resumed while its message is in the queue, which Redis does not give back.
    assert pauses.pause("queue", name)
    assert manager.resume_task(names[0])
    assert manager.pause_task(names[0])
    assert manager.resume_task(names[0])
    wait_until(lambda: ActiveTask.objects.held().exists(), "it is held back")
    assert pauses.resume("queue", name)
    wait_until(lambda: records.filter(status="success").count() == 5, "it has run")
    assert set(records.values_list("attempts", flat=True)) == {1}
    assert not ActiveTask.objects.exists()
