"""Whether the queue is keeping up, in one sentence."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from powercrud_dashboard.dashboard.listing import Count
from powercrud_dashboard.dashboard.pulse import Pulse
from powercrud_dashboard.models import ActiveTask, TaskRecord, WorkerProcess
from powercrud_dashboard.models.coordination import ActiveTaskState
from powercrud_dashboard.q2 import queue
from tests.testapp import tasks

LIST = "/admin/powercrud_dashboard/taskrecord/"
#: The last tasks took half a second, and those that run now take longer.
LONG = {"run_time": timedelta(seconds=0.5), "youngest_runs": {"default": timedelta(seconds=8)}}


def workers(number: int, cluster: str = "") -> list[WorkerProcess]:
    return [
        WorkerProcess.objects.create(
            identity=f"{cluster}{number}", host="one", pid=number, cluster=cluster or queue.current_cluster()
        )
        for number in range(number)
    ]


def pulse(**facts) -> Pulse:
    """What it is when two workers are busy with tasks of a minute and ten tasks have waited for a while."""
    usual = {
        "waiting": Count(10),
        "oldest_wait": timedelta(minutes=2),
        "unserved_queue": "",
        "workers_by_queue": {"default": 2},
        "busy": 2,
        "arriving": 1.0,
        "ending": 2.0,
        "steadily_arriving": 1.0,
        "run_time": timedelta(minutes=1),
        "youngest_runs": {"default": timedelta(seconds=30)},
        "open_failures": Count(0),
        "has_pauses": False,
        "has_alerts": False,
    }
    return Pulse(**{**usual, **facts})


@pytest.mark.parametrize(
    ("facts", "tone", "sentence"),
    [
        ({}, "warn", "Empty in about 10\xa0min"),
        ({"waiting": Count(2)}, "ok", "Empty in about 2\xa0min"),
        ({"waiting": Count(10_000, is_capped=True)}, "warn", "Not empty before 6\xa0d 22\xa0h"),
        ({"steadily_arriving": 2.0}, "bad", "Growing, 1 more worker would hold it"),
        ({"steadily_arriving": 4.5}, "bad", "Growing, 3 more workers would hold it"),
        ({"workers_by_queue": {}}, "bad", "No worker runs"),
        ({"unserved_queue": "slow"}, "bad", "No worker runs for the queue slow"),
        ({"waiting": Count(0)}, "ok", "Keeping up"),
        ({"waiting": Count(0), "busy": 0}, "quiet", "Idle"),
        ({"busy": 1, "oldest_wait": timedelta(seconds=2)}, "ok", "Keeping up"),
        ({"run_time": None}, "warn", "No task has ended in the last 15 minutes"),
        ({"youngest_runs": {"default": timedelta(minutes=4)}}, "warn", "Busy with long tasks"),
        ({**LONG, "oldest_wait": timedelta(seconds=8)}, "ok", "Busy with long tasks"),
        ({**LONG, "youngest_runs": {}}, "ok", "Empty in about 2\xa0s"),
        ({**LONG, "youngest_runs": {"default": timedelta(seconds=0.8)}}, "ok", "Empty in about 2\xa0s"),
        ({**LONG, "workers_by_queue": {"default": 2, "idle": 1}}, "warn", "Busy with long tasks"),
        ({**LONG, "oldest_wait": timedelta(minutes=9)}, "warn", "Empty in about 10\xa0min"),
        ({**LONG, "steadily_arriving": 300.0}, "bad", "Growing, 1 more worker would hold it"),
        # The workers were busy all the time, and got less done than their run times alone would allow.
        ({"oldest_wait": timedelta(minutes=9), "ending": 1.5}, "warn", "Empty in about 20\xa0min"),
        ({"oldest_wait": timedelta(minutes=9), "ending": 0.5}, "bad", "Growing, 3 more workers would hold it"),
    ],
)
def test_the_sentence(facts, tone, sentence):
    found = pulse(**facts)
    assert (found.tone, found.sentence) == (tone, sentence)


@pytest.mark.django_db
def test_an_empty_database_has_no_worker_and_nothing_to_do():
    found = Pulse.now()
    assert (found.waiting.number, found.oldest_wait, found.workers, found.run_time) == (0, None, 0, None)


@pytest.mark.django_db
def test_it_is_read_in_two_queries(manager, django_assert_num_queries):
    manager.launch_async_task(tasks.add, 1)
    with django_assert_num_queries(2):
        assert Pulse.now().sentence == "No worker runs"


@pytest.mark.django_db
def test_tasks_that_no_worker_may_take_now_do_not_wait(manager):
    names = [manager.launch_async_task(tasks.add, number) for number in range(3)]
    workers(1)
    ActiveTask.objects.filter(task_name=names[0]).update(next_run_at=timezone.now() + timedelta(hours=1))
    ActiveTask.objects.filter(task_name=names[1]).update(missing_since=timezone.now())
    ActiveTask.objects.filter(task_name=names[2]).update(queued_at=timezone.now() - timedelta(minutes=3))
    found = Pulse.now()
    assert found.waiting.number == 1
    assert timedelta(minutes=3) <= found.oldest_wait < timedelta(minutes=4)


@pytest.mark.django_db
@pytest.mark.parametrize("facts", [{"state": ActiveTaskState.PAUSED}, {"held_by": "x"}])
def test_paused_tasks_and_those_of_paused_queues_do_not_wait(manager, facts):
    manager.launch_async_task(tasks.add, 1)
    assert Pulse.now().waiting.number == 1
    ActiveTask.objects.update(**facts)
    assert Pulse.now().waiting.number == 0


@pytest.mark.django_db
def test_reservations_do_not_wait(manager):
    manager.add_conflict_ids("mine", {"testapp.Project": {1}})
    assert Pulse.now().waiting.number == 0


@pytest.mark.django_db
def test_workers_are_busy_with_the_tasks_that_they_run(manager):
    first, _second = workers(2)
    # A process that is no worker of a cluster, as of a synchronous task.
    web = WorkerProcess.objects.create(identity="web", host="one", pid=9)
    silent = WorkerProcess.objects.create(identity="silent", host="two", pid=9, cluster="x")
    WorkerProcess.objects.filter(pk=silent.pk).update(heartbeat_at=timezone.now() - timedelta(hours=1))
    for process in (first, web, silent):
        assert ActiveTask.objects.claim(manager.launch_async_task(tasks.add, 1), worker=process.pk)
    found = Pulse.now()
    assert (found.workers, found.busy) == (2, 1)


@pytest.mark.django_db
def test_a_queue_without_a_worker_is_named(manager):
    manager.launch_async_task(tasks.add, 1)
    manager.launch_async_task(tasks.add, 1, cluster="slow")
    workers(1)
    found = Pulse.now()
    assert (found.unserved_queue, found.sentence) == ("slow", "No worker runs for the queue slow")
    workers(1, "slow")
    assert Pulse.now().unserved_queue == ""


def ended(count: int, *, ago: timedelta, run: float = 60.0, before: timedelta = timedelta(minutes=1)) -> None:
    now = timezone.now()
    start = TaskRecord.objects.count()
    TaskRecord.objects.bulk_create(
        TaskRecord(
            task_name=f"done-{start + number}",
            status="success",
            created_at=now - ago - before,
            started_at=now - ago,
            finished_at=now - ago,
            run_time=timedelta(seconds=run),
        )
        for number in range(count)
    )


@pytest.mark.django_db
def test_rates_are_those_of_the_last_minutes():
    ended(10, ago=timedelta(minutes=1), before=timedelta())
    ended(5, ago=timedelta(minutes=30))
    found = Pulse.now()
    assert (found.arriving, found.ending, found.run_time) == (2, 2, timedelta(minutes=1))


@pytest.mark.django_db
def test_a_click_that_launches_many_tasks_is_no_stream_of_them():
    ended(1_000, ago=timedelta(minutes=2), before=timedelta())
    found = Pulse.now()
    assert (found.arriving, found.steadily_arriving) == (200, 0)
    for minutes in (7, 12):
        ended(500, ago=timedelta(minutes=minutes), before=timedelta())
    assert Pulse.now().steadily_arriving == 100


@pytest.mark.django_db
def test_it_tells_when_the_next_tasks_start():
    workers(2)
    ended(3, ago=timedelta(minutes=1), run=30)
    assert Pulse.now().start_interval("") == timedelta(seconds=15)
    assert Pulse.now().start_interval("slow") is None


@pytest.mark.django_db
def test_it_does_not_tell_so_while_all_workers_run_longer_tasks(manager):
    [worker] = workers(1)
    ended(3, ago=timedelta(minutes=1), run=60)
    manager.launch_async_task(tasks.add, 1)
    ActiveTask.objects.update(state=ActiveTaskState.IN_PROGRESS, worker=worker)
    for seconds, interval in ((0, timedelta(minutes=1)), (150, timedelta(minutes=1)), (200, None)):
        ActiveTask.objects.update(started_at=timezone.now() - timedelta(seconds=seconds))
        found = Pulse.now()
        assert (found.busy, found.workers) == (1, 1)
        assert found.start_interval("") == interval
    # In a queue with a free worker nothing waits.
    WorkerProcess.objects.create(identity="free", host="one", pid=99, cluster=queue.current_cluster())
    assert Pulse.now().youngest_runs == {}
