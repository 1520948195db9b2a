"""Tasks of Django's tasks framework in a real cluster, their results read by this process."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.conf import settings as django_settings
from django.utils import timezone

if not django_settings.TASKS_FRAMEWORK:
    pytest.skip("There is no tasks framework.", allow_module_level=True)

from powercrud_dashboard.contrib.django_tasks.framework import TaskResultStatus, task_backends
from powercrud_dashboard.models import TaskRecord
from tests.services import wait_until
from tests.testapp import framework_tasks as tasks

pytestmark = [pytest.mark.cluster, pytest.mark.django_db(transaction=True)]


def finished(result):
    """Wait until a task has ended and return its result, as it is found anew."""
    backend = task_backends["default"]
    wait_until(lambda: backend.get_result(result.id).is_finished, "the task ends")
    return backend.get_result(result.id)


def test_functions_and_coroutines_run_in_workers(cluster):
    results = [tasks.multiply.enqueue(number, right=2) for number in range(10)]
    coroutine = tasks.add_in_coroutine.enqueue(1, 2)
    assert [finished(result).return_value for result in results] == [number * 2 for number in range(10)]
    ended = finished(coroutine)
    assert ended.return_value == 3
    assert ended.enqueued_at <= ended.started_at <= ended.finished_at
    (worker,) = ended.worker_ids
    assert int(worker.rpartition("-")[2]) in cluster.worker_pids


def test_failures_have_their_class_and_traceback(cluster):
    for task, kind in ((tasks.raise_own_error, tasks.Unprintable), (tasks.leave, SystemExit)):
        ended = finished(task.enqueue())
        assert ended.status == TaskResultStatus.FAILED
        assert ended.errors[0].exception_class is kind
        assert ended.errors[0].traceback.startswith("Traceback")


def test_a_running_task_is_running_and_can_be_cancelled(cluster, manager, tmp_path):
    result = tasks.wait_for.enqueue(str(tmp_path / "never"))
    wait_until(lambda: result.refresh() or result.status == TaskResultStatus.RUNNING, "the task runs")
    assert (result.attempts, result.finished_at) == (1, None)
    assert manager.cancel_task(result.id)
    ended = finished(result)
    assert ended.status == TaskResultStatus.FAILED
    assert ended.errors[0].exception_class_path == "powercrud_dashboard.exceptions.TaskCancelled"


def test_workers_queue_a_task_when_its_time_has_come(cluster):
    moment = timezone.now() + timedelta(seconds=2)
    ended = finished(tasks.multiply.using(run_after=moment).enqueue(2, 3))
    assert ended.return_value == 6
    assert ended.started_at >= moment
    assert ended.task.run_after == moment


def test_the_context_and_tasks_that_enqueue_others(cluster):
    assert finished(tasks.describe_context.enqueue()).return_value["attempt"] == 1
    inner = finished(tasks.enqueue_another.enqueue(21)).return_value
    wait_until(lambda: TaskRecord.objects.get(task_name=inner).is_finished, "the inner task ends")
    assert tasks.multiply.get_result(inner).return_value == 42


def test_tasks_that_other_backends_run_in_a_worker_are_observed(cluster, record_of):
    ended = finished(tasks.run_at_once.enqueue(4))
    record = record_of(ended.return_value)
    assert (record.source, record.status, record.result) == ("django_tasks", "success", 8)
