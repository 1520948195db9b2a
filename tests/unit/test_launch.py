from __future__ import annotations

import functools
import math

import pytest
from django.contrib.auth.models import AnonymousUser
from django.db import connection, transaction
from django_q.brokers import get_broker
from django_q.conf import Conf
from django_q.models import OrmQ, Task
from django_q.signals import pre_enqueue

from powercrud_dashboard.async_manager import AsyncManager
from powercrud_dashboard.dashboard_manager import DashboardAsyncManager
from powercrud_dashboard.exceptions import TaskConflict, TaskNameTaken, UnimportableCallable
from powercrud_dashboard.models import ActiveTask, ConflictLock, TaskEvent, TaskRecord
from tests import work
from tests.testapp import tasks
from tests.workers import meanwhile

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


def test_a_launch_has_django_write_no_insert_of_ours_anew(manager):
    manager.launch_async_task(ADD, 1)
    assert OrmQ in work.compiled_models(lambda: manager.launch_async_task(ADD, 2))
    # The second tells of the queue entry, as Django writes that each time.
    assert not {ActiveTask, TaskRecord, TaskEvent} & {*work.compiled_models(lambda: manager.launch_async_task(ADD, 3))}


def test_a_launch_with_its_record_takes_few_statements(manager, django_assert_max_num_queries):
    """Two rows of history, one of coordination and the queue entry, each part in its savepoint."""
    with django_assert_max_num_queries(11):
        manager.launch_async_task(ADD, 1)


def test_tasks_of_a_plain_manager_are_recorded(record_of):
    name = AsyncManager().launch_async_task(ADD, 1, sync=True)
    record = record_of(name)
    assert record.manager_class == "powercrud_dashboard.async_manager.AsyncManager"
    assert (record.status, record.result) == ("success", 1)
    assert list(record.events.values_list("event", flat=True)) == ["create", "start", "complete", "cleanup"]


@pytest.mark.parametrize("manager_class", [AsyncManager, DashboardAsyncManager])
def test_without_a_recorder_no_history_is_kept(settings, manager_class):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_RECORDER": None}
    manager = manager_class()
    name = manager.launch_async_task(ADD, 1)
    assert manager.get_task_status(name) == "pending"
    assert not TaskRecord.objects.exists()
    assert manager.cancel_task(name)


class MarkingRecorder(DashboardAsyncManager):
    def record_lifecycle_events(self, task_name, events):
        super().record_lifecycle_events(task_name, events)
        TaskRecord.objects.filter(task_name=task_name).update(cluster="marked")


def test_a_recorder_of_the_projects_own_hears_of_all_tasks(settings, record_of):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_RECORDER": f"{__name__}.MarkingRecorder"}
    assert record_of(AsyncManager().launch_async_task(ADD, 1)).cluster == "marked"


class DemandingRecorder(DashboardAsyncManager):
    def __init__(self, channel):
        super().__init__()


def test_a_recorder_that_can_not_be_made_costs_no_record(settings, record_of):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_RECORDER": f"{__name__}.DemandingRecorder"}
    assert record_of(AsyncManager().launch_async_task(ADD, 1)).status == "pending"


def test_a_user_may_be_given_as_a_key_or_a_text(manager, record_of, superuser):
    by_key = record_of(manager.launch_async_task(ADD, 1, user=superuser.pk))
    assert (by_key.user, by_key.user_label) == (superuser, "boss")
    by_text_key = record_of(manager.launch_async_task(ADD, 1, user=str(superuser.pk)))
    assert by_text_key.user == superuser
    by_text = record_of(manager.launch_async_task(ADD, 1, user="nightly import"))
    assert (by_text.user, by_text.user_label) == (None, "nightly import")
    assert ActiveTask.objects.get(task_name=by_text.task_name).user is None


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


def test_who_hears_of_messages_hears_of_none_of_a_refused_launch(manager):
    heard: list[str] = []

    def hear(sender, task, **kwargs):
        heard.append(task["name"])

    pre_enqueue.connect(hear)
    try:
        name = manager.launch_async_task(ADD, 1, conflict_ids={"testapp.Project": {1}})
        with pytest.raises(TaskConflict):
            manager.launch_async_task(ADD, 1, conflict_ids={"testapp.Project": {1}})
        with pytest.raises(TaskNameTaken):
            manager.launch_async_task(ADD, 1, task_key=name)
    finally:
        pre_enqueue.disconnect(hear)
    assert heard == [name]
    active = ActiveTask.objects.get()
    assert active.queue_receipt == str(OrmQ.objects.get().pk)
    assert active.sent_at


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
    name = ConfiguredManager(config={"tone": "polite"}).launch_async_task(ADD, 1, sync=True)
    assert record_of(name).manager_class == f"{__name__}.ConfiguredManager"
    assert [seen for seen in ConfiguredManager.seen if seen[0] == "complete"] == [("complete", {"tone": "polite"})]


def test_its_config_is_there_in_every_later_call_for_the_task(record_of, superuser):
    ConfiguredManager.seen.clear()
    name = ConfiguredManager(config={"tone": "polite"}).launch_async_task(ADD, 1)
    # By others, who know nothing of it.
    DashboardAsyncManager().cancel_task(name, user=superuser)
    record = record_of(name)
    AsyncManager.resolve_manager(record.manager_class, record.manager_config).retry_task(name)
    assert {str(config) for _event, config in ConfiguredManager.seen} == {"{'tone': 'polite'}"}
    assert [event for event, _config in ConfiguredManager.seen] == ["create", "cancel", "cleanup", "create", "retry"]


def test_a_config_is_plain_json():
    with pytest.raises(TypeError, match="kept as JSON"):
        ConfiguredManager(config={"tone": object()}).launch_async_task(ADD, 1)


def test_a_manager_without_a_path_is_of_the_class_that_was_asked():
    assert type(ConfiguredManager.resolve_manager()) is ConfiguredManager
    assert type(ConfiguredManager.resolve_manager(None, {"tone": "polite"})) is ConfiguredManager
    assert type(AsyncManager.resolve_manager()) is DashboardAsyncManager


def test_an_option_of_django_q2_may_be_given_by_itself(manager, record_of):
    record = record_of(manager.launch_async_task(ADD, 1, sync=True, save=False))
    assert record.status == "success"
    assert not Task.objects.exists()
    broker = get_broker("another-queue")
    manager.launch_async_task(ADD, 1, broker=broker)
    assert OrmQ.objects.get().key == broker.list_key


class ConfiguredManager(DashboardAsyncManager):
    def __init__(self, *, config=None):
        super().__init__(config)

    seen: list[tuple[str, dict]] = []

    def async_task_lifecycle(self, event, task_name, **payload):
        super().async_task_lifecycle(event, task_name, **payload)
        self.seen.append((event, self.config))


def test_a_task_whose_unique_key_becomes_free_in_this_moment_is_launched(manager):
    other = manager.launch_async_task(ADD, 1, unique_key="nightly")
    look = f"SELECT {connection.ops.quote_name(ActiveTask._meta.db_table)}"
    with meanwhile(lambda: manager.cancel_task(other), before=look):
        name = manager.launch_async_task(ADD, 1, unique_key="nightly", task_key="named")
    assert manager.get_active_tasks() == {name}
