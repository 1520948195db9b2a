"""Options, calls in the caller's process, pages and settings of Django's tasks framework on django-q2."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime, timedelta

import django
import pytest
from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from django.db import connection, transaction
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from django_q.models import OrmQ

if not django_settings.TASKS_FRAMEWORK:
    pytest.skip("There is no tasks framework.", allow_module_level=True)

from powercrud_dashboard.async_manager import RetryPolicy
from powercrud_dashboard.contrib.django_tasks.framework import (
    InvalidTask,
    Task,
    TaskResultStatus,
    task_backends,
)
from powercrud_dashboard.dashboard_manager import DashboardAsyncManager
from powercrud_dashboard.models import ActiveTask, TaskRecord
from tests.testapp import framework_tasks as tasks
from tests.unit.test_django_tasks import backends, heard, soon  # noqa: F401
from tests.workers import run_queue

if django.VERSION >= (6, 0):
    from django.tasks import default_task_backend
    from django.tasks.exceptions import InvalidTaskBackend
else:
    from django_tasks import default_task_backend
    from django_tasks.exceptions import InvalidTaskBackendError as InvalidTaskBackend

pytestmark = pytest.mark.django_db(transaction=True)


def test_run_after_is_the_earliest_time():
    result = tasks.multiply.using(run_after=soon()).enqueue(2, 3)
    assert result.status == TaskResultStatus.READY
    assert not OrmQ.objects.exists()
    assert DashboardAsyncManager.send_due_tasks() == 0
    found = default_task_backend.get_result(result.id)
    assert found == result
    ActiveTask.objects.update(next_run_at=timezone.now())
    assert DashboardAsyncManager.send_due_tasks() == 1
    run_queue()
    result.refresh()
    assert result.return_value == 6


def test_a_naive_time_is_refused():
    with pytest.raises(InvalidTask, match="run_after must be an aware datetime"):
        tasks.nothing.using(run_after=datetime(2030, 1, 1))  # noqa: DTZ001 - it is to be refused


def test_priorities_are_not_supported_as_django_says_it():
    with pytest.raises(InvalidTask, match="Backend does not support setting priority of tasks"):
        tasks.nothing.using(priority=10)


CLUSTERS = {"default": {-100: "bulk", 0: "pcrud-tests", 50: "urgent"}, "reports": "night"}


@pytest.mark.parametrize(
    ("options", "cluster"),
    [
        ({}, "pcrud-tests"),
        ({"priority": 49}, "pcrud-tests"),
        ({"priority": 50}, "urgent"),
        ({"priority": 100}, "urgent"),
        ({"priority": -1}, "bulk"),
        ({"queue_name": "reports"}, "night"),
        ({"queue_name": "queue_1"}, "queue_1"),
    ],
)
def test_queue_and_priority_choose_the_cluster(options, cluster, record_of):
    with backends(QUEUES=[], OPTIONS={"clusters": CLUSTERS}):
        assert task_backends["default"].supports_priority
        task = tasks.nothing.using(**options)
        result = task.enqueue()
        assert default_task_backend.get_result(result.id) == result
        assert result.task == task
    assert record_of(result.id).cluster == cluster
    assert OrmQ.objects.get().key == cluster


def test_below_the_lowest_priority_the_lowest_cluster_is_chosen(record_of):
    with backends(OPTIONS={"clusters": {"default": {10: "some", 50: "urgent"}}}):
        assert record_of(tasks.nothing.enqueue().id).cluster == "some"


def test_a_queue_without_priorities_refuses_one():
    with backends(QUEUES=[], OPTIONS={"clusters": CLUSTERS}):
        with pytest.raises(InvalidTask, match="in the queue 'reports'"):
            tasks.nothing.using(queue_name="reports", priority=1)
        with pytest.raises(InvalidTask, match="priority must be a whole number"):
            tasks.nothing.using(priority=101)


def test_a_queue_that_is_not_in_the_settings_is_refused():
    assert tasks.in_queue_1.enqueue().task.queue_name == "queue_1"
    with pytest.raises(InvalidTask, match="Queue 'queue-2' is not valid for backend"):
        tasks.nothing.using(queue_name="queue-2")
    with backends(QUEUES=[]):
        free = tasks.nothing.using(queue_name="queue-2")
    with pytest.raises(InvalidTask, match="Queue 'queue-2' is not valid for backend"):
        free.enqueue()


def test_the_default_queue_is_the_default_cluster():
    tasks.nothing.enqueue()
    assert OrmQ.objects.get().key == "pcrud-tests"


def test_a_worker_of_another_cluster_finds_the_default_queue(monkeypatch, record_of):
    monkeypatch.setattr("django_q.conf.Conf.CLUSTER_NAME", "night")
    assert record_of(tasks.nothing.enqueue().id).cluster == ""
    with backends(QUEUES=["reports"], OPTIONS={"clusters": CLUSTERS}):
        assert record_of(tasks.nothing.using(queue_name="reports").enqueue().id).cluster == "night"
    assert list(OrmQ.objects.order_by("pk").values_list("key", flat=True)) == ["pcrud-tests", "night"]


def test_time_limit_and_retries_come_from_the_options():
    with backends(OPTIONS={"timeout": timedelta(minutes=5), "retry": 3}):
        tasks.nothing.enqueue()
    active = ActiveTask.objects.get()
    assert (active.time_limit, active.policy["max_retries"]) == (300, 3)


def test_unknown_backends_are_unknown():
    with pytest.raises(InvalidTaskBackend, match="'unknown' doesn't exist"):
        tasks.nothing.using(backend="unknown")
    with (
        override_settings(TASKS={"missing": {"BACKEND": "does.not.exist"}}),
        pytest.raises(InvalidTaskBackend, match=r"Could not find backend 'does\.not\.exist'"),
    ):
        tasks.nothing.using(backend="missing")


def test_a_task_of_another_backend_can_be_enqueued_on_this_one():
    immediate = tasks.multiply.using(backend="immediate")
    result = immediate.using(backend="default").enqueue(4, 5)
    run_queue()
    result.refresh()
    assert (result.return_value, result.backend) == (20, "default")


def test_only_functions_of_modules_are_tasks():
    def local() -> None: ...

    for function in (any, local):
        with pytest.raises(InvalidTask, match="defined at a module level"):
            tasks.task()(function)


def test_a_context_that_the_function_does_not_take_is_refused():
    with pytest.raises(InvalidTask, match="does not have a first argument of 'context'"):
        tasks.task(takes_context=True)(tasks.multiply.func)


def test_tasks_are_called_without_the_backend():
    assert tasks.multiply.call(2, 3) == 6
    assert tasks.multiply.name == "multiply"
    assert isinstance(tasks.multiply, Task)
    assert tasks.multiply.module_path == "tests.testapp.framework_tasks.multiply"


# In the caller's process


def test_without_workers_a_task_runs_at_once(at_once, heard):  # noqa: F811
    result = tasks.multiply.enqueue(6, 7)
    assert result.status == TaskResultStatus.SUCCESSFUL
    assert result.return_value == 42
    assert result.attempts == 1
    assert [(name, status) for name, _sender, _id, status in heard] == [
        ("enqueued", "READY"),
        ("started", "RUNNING"),
        ("finished", "SUCCESSFUL"),
    ]


@pytest.mark.parametrize("task", [tasks.raise_value_error, tasks.leave], ids=["error", "exit"])
def test_without_workers_a_failure_is_a_result(at_once, task):
    result = task.enqueue()
    assert result.status == TaskResultStatus.FAILED
    assert result.errors[0].traceback.rstrip().endswith(("it broke", "it leaves"))


def test_without_workers_a_keyboard_interrupt_is_raised(at_once):
    with pytest.raises(KeyboardInterrupt):
        tasks.interrupt.enqueue()


def test_without_workers_a_task_runs_inside_the_transaction(at_once):
    with transaction.atomic():
        result = tasks.raise_value_error.enqueue()
        assert result.status == TaskResultStatus.FAILED
        assert tasks.multiply.enqueue(2, 2).return_value == 4


# Pages and settings


def test_a_retry_from_the_page_is_a_new_result(boss, record_of, heard):  # noqa: F811
    result = tasks.raise_value_error.enqueue("first")
    run_queue()
    record = record_of(result.id)
    boss.post(reverse("admin:powercrud_dashboard_taskrecord_retry", args=[record.pk]))
    new = TaskRecord.objects.latest("pk")
    found = default_task_backend.get_result(new.task_name)
    assert (found.task, found.args) == (tasks.raise_value_error, ["first"])
    assert [name for name, *_ in heard] == ["enqueued", "started", "finished", "enqueued"]


def test_a_retry_may_have_other_arguments(manager):
    result = tasks.multiply.enqueue(6, right=7)
    run_queue()
    with pytest.raises(TypeError, match="unexpected keyword argument 'wrong'"):
        manager.retry_task(result.id, task_kwargs={"wrong": 1})
    new = manager.retry_task(result.id, task_args=[5], task_kwargs={"right": 5})
    run_queue()
    found = default_task_backend.get_result(new)
    assert (found.args, found.return_value) == ([5], 25)


@pytest.mark.markup
def test_the_page_shows_the_task_as_it_was_enqueued(boss, record_of):
    result = tasks.multiply.enqueue(6, right=7)
    page = boss.get(reverse("admin:powercrud_dashboard_taskrecord_change", args=[record_of(result.id).pk])).text
    for text in ("multiply", "tests.testapp.framework_tasks.multiply", "&quot;right&quot;: 7"):
        assert text in page
    assert "observed" not in page


def test_without_a_history_there_are_no_results(settings):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_RECORDER": None}
    with pytest.raises(ImproperlyConfigured, match="DASHBOARD_RECORDER"):
        tasks.nothing.enqueue()
    assert [message.id for message in task_backends["default"].check()] == ["powercrud_dashboard.E031"]


def test_without_the_app_the_error_says_what_to_do(settings):
    code = "import powercrud_dashboard.contrib.django_tasks"
    setup = "from django.conf import settings; settings.configure(INSTALLED_APPS=[]); import django; django.setup()"
    ran = subprocess.run([sys.executable, "-c", f"{setup}; {code}"], capture_output=True, text=True, cwd=settings.ROOT)
    assert "add 'powercrud_dashboard' to INSTALLED_APPS" in ran.stderr


def test_enqueueing_asks_the_database_no_more_than_a_launch(manager, django_assert_num_queries):
    manager.launch_async_task("tests.testapp.tasks.add", 1)
    with CaptureQueriesContext(connection) as launch:
        manager.launch_async_task("tests.testapp.tasks.add", 1)
    with django_assert_num_queries(len(launch)):
        tasks.multiply.enqueue(1)


def test_the_settings_of_the_tests_are_right():
    assert list(default_task_backend.check()) == []


@pytest.mark.parametrize(
    ("params", "check", "words"),
    [
        ({"QUEUES": "default"}, "E030", "QUEUES"),
        ({"OPTIONS": {"timeuot": 5}}, "E030", "Did you mean timeout?"),
        ({"OPTIONS": {"colour": 5}}, "E030", "Known options: clusters, timeout, retry"),
        ({"OPTIONS": {"timeout": "soon"}}, "E030", "timeout"),
        ({"OPTIONS": {"retry": "often"}}, "E030", "retry"),
        ({"OPTIONS": {"retry": RetryPolicy(1, retry_on="no.such.Error")}}, "E030", "no.such.Error"),
        ({"OPTIONS": {"clusters": ["urgent"]}}, "E030", "clusters"),
        ({"OPTIONS": {"clusters": {"default": {"high": "urgent"}}}}, "E030", "clusters"),
        ({"OPTIONS": {"clusters": {"default": {}}}}, "E030", "clusters"),
        ({"OPTIONS": {"clusters": {"other": "pcrud-tests"}}}, "E030", "not in QUEUES"),
        ({"OPTIONS": {"clusters": {"default": "elsewhere"}}}, "W030", "ALT_CLUSTERS"),
    ],
)
def test_what_is_wrong_with_the_settings_is_told(params, check, words):
    with backends(**params):
        (message,) = task_backends["default"].check()
    assert message.id == f"powercrud_dashboard.{check}"
    assert words in f"{message.msg} {message.hint}"
