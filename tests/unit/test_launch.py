from __future__ import annotations

import functools
import math

import pytest
from django.contrib.auth.models import AnonymousUser
from django.db import transaction
from django.db.models.sql.compiler import SQLInsertCompiler
from django_q.conf import Conf
from django_q.models import OrmQ, Task

from powercrud_dashboard.async_manager import AsyncManager
from powercrud_dashboard.dashboard_manager import DashboardAsyncManager
from powercrud_dashboard.exceptions import TaskConflict, TaskNameTaken, UnimportableCallable
from powercrud_dashboard.models import ActiveTask, ConflictLock, TaskEvent, TaskRecord
from tests.testapp import tasks

pytestmark = pytest.mark.django_db

ADD = "tests.testapp.tasks.add"


def nothing_is_left() -> bool:
    return not any(model.objects.exists() for model in (ActiveTask, ConflictLock, TaskRecord, TaskEvent, OrmQ))


def test_a_queued_task_is_recorded_before_anything_runs(manager, superuser, record_of):
    name = manager.launch_async_task(
        tasks.add,
        1,
        right=2,
        conflict_ids={"testapp.Project": {7, 8}},
        user=superuser,
        affected_objects=["seven", "eight"],
        label="Add them",
        group="sums",
    )
    record = record_of(name)
    assert (record.status, record.label, record.func) == ("pending", "Add them", ADD)
    assert (record.user, record.user_label, record.group) == (superuser, "boss", "sums")
    assert (record.task_args, record.task_kwargs) == ([1], {"right": 2})
    assert (record.affected_objects, record.affected_count) == (["seven", "eight"], 2)
    assert record.conflict_ids == {"testapp.project": ["7", "8"]}
    assert list(record.objects_worked_on.values_list("object_id", flat=True)) == ["7", "8"]
    (event,) = record.events.all()
    assert (event.event, event.actor) == ("create", superuser)
    assert OrmQ.objects.get().func() == ADD
    assert manager.get_task_status(name) == manager.STATUSES.PENDING
    assert manager.get_active_tasks() == {name}


def test_a_launch_has_django_write_no_insert_of_ours_anew(manager, monkeypatch):
    manager.launch_async_task(ADD, 1)
    written = []
    as_sql = SQLInsertCompiler.as_sql
    monkeypatch.setattr(
        SQLInsertCompiler, "as_sql", lambda compiler: written.append(compiler.query.model) or as_sql(compiler)
    )
    manager.launch_async_task(ADD, 2)
    assert written == [OrmQ]


def test_a_launch_with_its_record_takes_few_statements(manager, django_assert_max_num_queries):
    """Two rows of history, one of coordination and the queue entry, each part in its savepoint."""
    with django_assert_max_num_queries(11):
        manager.launch_async_task(ADD, 1)


def test_without_a_subclass_no_history_is_kept():
    name = AsyncManager().launch_async_task(ADD, 1)
    assert ActiveTask.objects.get(task_name=name).manager_class == "powercrud_dashboard.async_manager.AsyncManager"
    assert not TaskRecord.objects.exists()


def test_anonymous_visitors_are_nobody(manager, record_of):
    record = record_of(manager.launch_async_task(ADD, 1, user=AnonymousUser()))
    assert (record.user, record.user_label) == (None, "")


@pytest.mark.parametrize(
    ("func", "words"),
    [
        (lambda: None, "a lambda has no importable name"),
        (functools.partial(tasks.add, 1), "it has no importable name"),
        ("tests.testapp.tasks.nothing", "AttributeError"),
        ("no_such_module.function", "ModuleNotFoundError"),
        ("tests.testapp.tasks", "it is a module, not a function"),
    ],
)
def test_what_a_worker_can_not_import_is_refused_by_name(manager, func, words):
    with pytest.raises(UnimportableCallable, match=words):
        manager.launch_async_task(func)
    assert nothing_is_left()


def test_a_local_function_is_refused(manager):
    def local() -> None: ...

    with pytest.raises(UnimportableCallable, match="defined inside another function"):
        manager.launch_async_task(local)


def test_arguments_that_do_not_fit_are_refused_in_the_words_of_the_call(manager):
    with pytest.raises(TypeError, match="missing a required argument: 'left'"):
        manager.launch_async_task(ADD)
    with pytest.raises(TypeError, match="unexpected keyword argument 'nope'"):
        manager.launch_async_task(ADD, 1, nope=2)
    assert nothing_is_left()


def test_arguments_that_can_not_be_pickled_are_refused(manager):
    with pytest.raises(TypeError, match="can't be sent to a worker"):
        manager.launch_async_task(ADD, lambda: None)
    assert nothing_is_left()


def test_builtin_functions_work_as_they_are(manager, record_of):
    record = record_of(manager.launch_async_task(math.floor, 2.5, sync=True))
    assert (record.status, record.result) == ("success", 2)


def test_a_callable_that_can_not_be_hashed_works_as_functions_do(manager, record_of):
    path = "tests.testapp.tasks.double_and_triple"
    assert record_of(manager.launch_async_task(path, 5, sync=True)).result == [10, 15]
    with pytest.raises(TypeError, match="missing a required argument: 'value'"):
        manager.launch_async_task(path)


def test_task_key_and_manager_class_are_injected_where_the_signature_takes_them(manager, record_of):
    name = manager.launch_async_task(tasks.injected, sync=True)
    assert record_of(name).result == [name, "powercrud_dashboard.dashboard_manager.DashboardAsyncManager"]


def test_arguments_named_like_options_reach_the_function(manager, record_of):
    wanted = {"group": 1, "timeout": 2, "hook": 3, "cluster": 4, "task_name": 5, "func": 6, "broker": 7, "user": 8}
    name = manager.launch_async_task(tasks.echo, task_kwargs=wanted, sync=True)
    assert record_of(name).result == wanted


def test_positional_arguments_come_from_both_places(manager, record_of):
    name = manager.launch_async_task(tasks.add, 40, task_args=[2], sync=True)
    assert record_of(name).result == 42


def test_the_wanted_name_is_used_once(manager):
    assert manager.launch_async_task(ADD, 1, task_key="my-task") == "my-task"
    with pytest.raises(TaskNameTaken):
        manager.launch_async_task(ADD, 1, task_key="my-task")
    manager.cancel_task("my-task")
    with pytest.raises(TaskNameTaken):
        manager.launch_async_task(ADD, 1, task_key="my-task")


def test_a_refused_launch_leaves_nothing(manager):
    manager.launch_async_task(ADD, 1, task_key="first", conflict_ids={"testapp.Project": {1}})
    with pytest.raises(TaskConflict):
        manager.launch_async_task(ADD, 1, task_key="second", conflict_ids={"testapp.Project": {1, 2}})
    assert list(TaskRecord.objects.values_list("task_name", flat=True)) == ["first"]
    assert manager.check_conflict({"testapp.Project": {2}}) == set()
    assert OrmQ.objects.count() == 1


def test_a_launch_in_a_transaction_is_part_of_it(manager):
    with transaction.atomic():
        manager.launch_async_task(ADD, 1, conflict_ids={"testapp.Project": {1}})
        assert OrmQ.objects.exists()
        transaction.set_rollback(True)
    assert nothing_is_left()


def test_failed_tasks_will_be_acknowledged(manager):
    manager.launch_async_task(ADD, 1)
    assert OrmQ.objects.get().task["ack_failure"] is True


def test_options_of_django_q_reach_it(manager):
    manager.launch_async_task(ADD, 1, timeout=5, q_options={"save": False, "group": "by-option"})
    options = OrmQ.objects.get().task
    assert (options["timeout"], options["save"], options["group"]) == (5, False, "by-option")


def test_a_named_cluster_gets_its_own_queue(manager, record_of):
    name = manager.launch_async_task(ADD, 1, cluster="slow-lane")
    assert OrmQ.objects.get().key == "slow-lane"
    assert record_of(name).cluster == "slow-lane"


@pytest.mark.parametrize("option", ["task_key", "group", "cluster"])
@pytest.mark.parametrize("name", ["x" * 101, "nul\x00"], ids=["long", "nul"])
def test_names_that_no_table_holds_are_refused(manager, option, name):
    with pytest.raises(ValueError, match=f"{option} is .* at most 100 characters"):
        manager.launch_async_task(ADD, 1, **{option: name})
    assert nothing_is_left()


def test_a_cluster_set_to_sync_runs_here(manager, record_of, monkeypatch):
    monkeypatch.setattr(Conf, "SYNC", True)
    record = record_of(manager.launch_async_task(ADD, 1, conflict_ids={"testapp.Project": {1}}))
    assert (record.status, record.result) == ("success", 1)
    with pytest.raises(ValueError, match="it broke"):
        manager.launch_async_task(tasks.fail)
    assert TaskRecord.objects.latest("pk").status == "failed"
    assert not ActiveTask.objects.exists()


def test_sync_runs_here_and_is_recorded_the_same_way(manager, record_of):
    name = manager.launch_async_task(ADD, 1, right=1, sync=True, conflict_ids={"testapp.Project": {1}})
    record = record_of(name)
    assert (record.status, record.result, record.attempts) == ("success", 2, 1)
    assert list(record.events.values_list("event", flat=True)) == ["create", "start", "complete", "cleanup"]
    assert record.objects_worked_on.get().outcome == "done"
    assert not ActiveTask.objects.exists()
    assert not ConflictLock.objects.exists()


def test_sync_failures_are_recorded_and_raised(manager):
    with pytest.raises(ValueError, match="it broke"):
        manager.launch_async_task(tasks.fail, sync=True, conflict_ids={"testapp.Project": {1}})
    record = TaskRecord.objects.get()
    assert (record.status, record.failure_reason, record.error) == ("failed", "error", "it broke")
    assert record.exception_class == "builtins.ValueError"
    assert record.traceback.startswith("Traceback")
    assert "raise ValueError(message)" in record.traceback
    assert "worker/task.py" not in record.traceback
    assert not ConflictLock.objects.exists()


def test_disabled_async_runs_in_the_caller(settings, manager, record_of):
    settings.POWERCRUD_SETTINGS = {"ASYNC_ENABLED": False}
    assert record_of(manager.launch_async_task(ADD, 1)).status == "success"


@pytest.mark.parametrize("options", [{"save": False}, {"cached": 60}])
def test_results_that_django_q_does_not_keep_are_recorded(manager, record_of, options):
    record = record_of(manager.launch_async_task(ADD, 1, sync=True, q_options=options))
    assert (record.status, record.result) == ("success", 1)
    assert not Task.objects.exists()


def test_a_subclass_is_used_in_the_worker_with_its_config(record_of):
    name = ConfiguredManager({"tone": "polite"}).launch_async_task(ADD, 1, sync=True)
    assert record_of(name).manager_class == f"{__name__}.ConfiguredManager"
    assert [seen for seen in ConfiguredManager.seen if seen[0] == "complete"] == [("complete", {"tone": "polite"})]


class ConfiguredManager(DashboardAsyncManager):
    seen: list[tuple[str, dict]] = []

    def async_task_lifecycle(self, event, task_name, **payload):
        super().async_task_lifecycle(event, task_name, **payload)
        self.seen.append((event, self.config))
