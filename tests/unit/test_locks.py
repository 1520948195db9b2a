from __future__ import annotations

import uuid

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from powercrud_dashboard.async_context import get_current_task, register_descendant_conflicts
from powercrud_dashboard.async_manager import ALL_OBJECTS, AsyncManager, RetryPolicy
from powercrud_dashboard.engine import processes
from powercrud_dashboard.exceptions import TaskConflict, WorkerLost
from powercrud_dashboard.models import ActiveTask, ConflictLock, TaskObject, WorkerProcess
from tests.testapp.models import Document, Project
from tests.workers import deliver, silence

pytestmark = pytest.mark.django_db

ADD = "tests.testapp.tasks.add"


def test_a_reservation_locks_all_objects_and_says_so():
    manager = AsyncManager()
    assert manager.add_conflict_ids("mine", {"testapp.Project": {1, 2}})
    assert manager.check_conflict({"testapp.Project": {1, 2, 3}}) == {1, 2}


def test_a_partly_locked_reservation_locks_nothing():
    assert AsyncManager().add_conflict_ids("mine", {"testapp.Project": {1}})
    assert not AsyncManager().add_conflict_ids("yours", {"testapp.Project": {1, 2}})
    assert AsyncManager().check_conflict({"testapp.Project": [1, 2]}) == {1}
    assert not ActiveTask.objects.filter(task_name="yours").exists()


def test_the_same_name_from_elsewhere_is_somebody_else():
    assert AsyncManager().add_conflict_ids("custom-task", {"testapp.Project": {1}})
    assert not AsyncManager().add_conflict_ids("custom-task", {"testapp.Project": {1}})
    assert AsyncManager().add_conflict_ids("custom-task", {"testapp.Project": {2}})


@pytest.mark.parametrize(
    "other",
    [
        {"TESTAPP.project": {5}},
        {"testapp.project": ["5"]},
        {"testapp.Project": (5,)},
        {"testapp.SpecialProject": {5}},
    ],
    ids=["label in another case", "key as text", "another collection", "proxy model"],
)
def test_one_object_is_one_lock_however_it_is_spelled(other):
    assert AsyncManager().add_conflict_ids("mine", {"testapp.Project": {5}})
    assert not AsyncManager().add_conflict_ids("yours", other)


def test_uuid_keys_are_one_lock_with_and_without_dashes():
    key = uuid.uuid4()
    assert AsyncManager().add_conflict_ids("mine", {"testapp.Document": {key}})
    assert AsyncManager().check_conflict({"testapp.Document": {key.hex}}) == {key.hex}


def test_keys_may_come_as_a_queryset_or_as_objects(make_projects):
    projects = make_projects(3)
    assert AsyncManager().add_conflict_ids("mine", {"testapp.Project": Project.objects.all()})
    assert AsyncManager().check_conflict({"testapp.Project": projects}) == {project.pk for project in projects} | set()


def test_models_that_do_not_exist_are_locked_by_their_label():
    assert AsyncManager().add_conflict_ids("mine", {"Some.Thing": {"a"}})
    assert AsyncManager().check_conflict({"some.thing": {"a"}}) == {"a"}


@pytest.mark.parametrize("key", ["12", 12, None, Project(pk=12, name="one")], ids=repr)
def test_one_key_in_place_of_a_collection_is_refused(key):
    with pytest.raises(TypeError, match=r"^conflict_ids\['testapp.Project'\] is .*pass a set of primary keys"):
        AsyncManager().add_conflict_ids("mine", {"testapp.Project": key})


def test_a_key_that_is_none_of_the_model_is_refused():
    with pytest.raises(ValueError, match=r"conflict_ids\['testapp.Project'\]"):
        AsyncManager().add_conflict_ids("mine", {"testapp.Project": {"twelve"}})


def test_only_what_the_name_itself_holds_is_released():
    manager = AsyncManager()
    manager.add_conflict_ids("mine", {"testapp.Project": {1, 2}})
    manager.add_conflict_ids("yours", {"testapp.Project": {3}})
    assert manager.remove_conflict_ids("mine", {"testapp.Project": {1, 3}}) == 1
    assert manager.check_conflict({"testapp.Project": {1, 2, 3}}) == {2, 3}
    assert manager.remove_conflict_ids("mine") == 1
    assert not ActiveTask.objects.filter(task_name="mine").exists()


def test_a_launch_takes_over_what_its_instance_reserved():
    manager = AsyncManager()
    ids = {"testapp.Project": {1, 2}}
    assert manager.add_conflict_ids("custom-task", ids)
    task_name = manager.launch_async_task(ADD, 1, conflict_ids={"testapp.Project": {1, 2, 3}})
    assert set(ConflictLock.objects.values_list("active_task__task_name", flat=True)) == {task_name}
    assert ConflictLock.objects.count() == 3
    assert not ActiveTask.objects.filter(task_name="custom-task").exists()


def test_what_another_instance_reserved_is_a_conflict_that_names_the_facts():
    AsyncManager().add_conflict_ids("custom-task", {"testapp.Project": {1}})
    with pytest.raises(TaskConflict) as caught:
        AsyncManager().launch_async_task(ADD, 1, conflict_ids={"testapp.Project": {1, 2}})
    (held,) = caught.value.held
    assert (held.model_label, held.object_id, held.holder) == ("testapp.project", "1", "custom-task")
    assert caught.value.holders == ["custom-task"]
    assert "Project 1 (held by custom-task)" in str(caught.value)
    assert isinstance(caught.value, RuntimeError)
    assert ConflictLock.objects.count() == ActiveTask.objects.count() == 1


def test_a_reservation_is_not_a_task():
    manager = AsyncManager()
    manager.add_conflict_ids("custom-task", {"testapp.Project": {1}})
    assert manager.get_active_tasks() == set()
    assert not manager.is_active_task("custom-task")


def test_expired_reservations_give_way(settings):
    settings.POWERCRUD_SETTINGS = {"CONFLICT_TTL": 0}
    AsyncManager().add_conflict_ids("old", {"testapp.Project": {1}})
    assert AsyncManager().add_conflict_ids("new", {"testapp.Project": {1}})
    assert AsyncManager().launch_async_task(ADD, 1, conflict_ids={"testapp.Project": {1}})


def test_ten_thousand_objects_take_few_statements():
    manager, ids = AsyncManager(), {"testapp.Project": range(10_000)}
    with CaptureQueriesContext(
        connection,
    ) as locking:
        assert manager.add_conflict_ids("mine", ids)
    assert ConflictLock.objects.count() == 10_000
    with CaptureQueriesContext(connection) as releasing:
        assert manager.remove_conflict_ids("mine") == 10_000
    assert len(locking) < (10 if connection.vendor == "postgresql" else 100)
    assert len(releasing) < 10


def test_ending_a_task_releases_its_locks_in_two_statements():
    manager = AsyncManager()
    manager.launch_async_task(ADD, 1, task_key="big", conflict_ids={"testapp.Document": Document.objects.none()})
    manager.add_conflict_ids("big", {"testapp.Project": range(1_000)})
    active = ActiveTask.objects.get(task_name="big")
    with CaptureQueriesContext(connection) as ending:
        assert ActiveTask.objects.end(active) == 1_000
    assert len(ending) == 2


# Whole models


@pytest.mark.parametrize("own", [0, 5, 2_500])
def test_a_whole_model_is_refused_whoever_else_holds_one_of_its_objects(own):
    """However many of its objects one holds oneself."""
    manager = AsyncManager()
    assert own == 0 or manager.add_conflict_ids("mine", {"testapp.Project": range(own)})
    AsyncManager().add_conflict_ids("yours", {"testapp.Project": {999_999}})
    with pytest.raises(TaskConflict) as caught:
        manager.launch_async_task(ADD, 1, conflict_ids={"testapp.Project": ALL_OBJECTS})
    assert caught.value.holders == ["yours"]
    assert caught.value.total == 1


def test_a_whole_model_takes_over_all_that_its_instance_reserved():
    manager = AsyncManager()
    manager.add_conflict_ids("mine", {"testapp.Project": range(2_500), "testapp.Document": {uuid.uuid4()}})
    name = manager.launch_async_task(ADD, 1, conflict_ids={"testapp.Project": ALL_OBJECTS})
    assert ConflictLock.objects.filter(active_task__task_name=name).count() == 2_501
    assert ConflictLock.objects.get(active_task__task_name="mine").model_label == "testapp.document"


def test_an_object_is_refused_while_another_holds_the_whole_model():
    AsyncManager().add_conflict_ids("yours", {"testapp.Project": ALL_OBJECTS})
    with pytest.raises(TaskConflict):
        AsyncManager().launch_async_task(ADD, 1, conflict_ids={"testapp.Project": {1}})


def test_one_who_holds_the_whole_model_may_lock_an_object_as_well():
    manager = AsyncManager()
    name = manager.launch_async_task(ADD, 1, conflict_ids={"testapp.Project": ALL_OBJECTS})
    assert manager.add_conflict_ids(name, {"testapp.Project": {1}})


# Reservations


def test_a_launch_takes_over_only_what_it_locks_itself():
    manager = AsyncManager()
    manager.add_conflict_ids("custom-task", {"testapp.Project": {1, 2, 3}})
    name = manager.launch_async_task(ADD, 1, conflict_ids={"testapp.Project": {1}})
    held = dict(ConflictLock.objects.values_list("object_id", "active_task__task_name"))
    assert held == {"1": name, "2": "custom-task", "3": "custom-task"}
    second = manager.launch_async_task(ADD, 1, conflict_ids={"testapp.Project": {2, 3}})
    assert set(ConflictLock.objects.values_list("active_task__task_name", flat=True)) == {name, second}
    assert not ActiveTask.objects.filter(task_name="custom-task").exists()


def test_a_launch_without_objects_leaves_what_is_reserved():
    manager = AsyncManager()
    manager.add_conflict_ids("custom-task", {"testapp.Project": {1}})
    manager.launch_async_task(ADD, 1)
    assert ConflictLock.objects.get().active_task.task_name == "custom-task"


def test_reservations_of_one_name_by_two_people_are_released_apart():
    ann, bob = AsyncManager(), AsyncManager()
    ann.add_conflict_ids("custom-task", {"testapp.Project": {1}})
    bob.add_conflict_ids("custom-task", {"testapp.Project": {2}})
    assert ann.remove_conflict_ids("custom-task", {"testapp.Project": {2}}) == 0
    assert ann.remove_conflict_ids("custom-task") == 1
    assert ConflictLock.objects.get().object_id == "2"
    assert bob.remove_conflict_ids("custom-task") == 1
    assert not ActiveTask.objects.exists()


def test_somebody_who_reserved_nothing_releases_by_the_name():
    """As in another request, which has another instance."""
    AsyncManager().add_conflict_ids("custom-task", {"testapp.Project": {1}})
    assert AsyncManager().remove_conflict_ids("custom-task") == 1


@pytest.mark.django_db(transaction=True)
def test_a_reservation_that_was_rolled_back_gives_no_right_to_that_of_another():
    """SQLite uses the primary key of a row that was rolled back again."""
    ann = AsyncManager()
    with transaction.atomic():
        ann.add_conflict_ids("ann", {"testapp.Project": {1}})
        transaction.set_rollback(True)
    AsyncManager().add_conflict_ids("bob", {"testapp.Project": {1}})
    with pytest.raises(TaskConflict):
        ann.launch_async_task(ADD, 1, conflict_ids={"testapp.Project": {1}})
    assert ConflictLock.objects.get().active_task.task_name == "bob"


# Costs


@pytest.mark.parametrize("held", [30, 30_000])
def test_a_refusal_names_twenty_objects_and_counts_all(held):
    AsyncManager().add_conflict_ids("yours", {"testapp.Project": range(held)})
    with CaptureQueriesContext(connection) as queries, pytest.raises(TaskConflict) as caught:
        AsyncManager().launch_async_task(ADD, 1, conflict_ids={"testapp.Project": range(held)})
    assert (len(caught.value.held), caught.value.total) == (20, held)
    assert len(queries) <= 16
    # No statement reads more locks than are named.
    selects = [query["sql"] for query in queries if "SELECT" in query["sql"] and "locked_at" in query["sql"]]
    assert all("LIMIT 20" in sql for sql in selects if sql.startswith("SELECT"))


# A task that was given up


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("retries", [0, 1])
@pytest.mark.parametrize("how", ["descendants", "add_conflict_ids"])
def test_a_worker_whose_task_was_given_up_can_lock_nothing_more(manager, how, retries, monkeypatch, settings):
    # Its own worker does not look in the meantime whether it was given up.
    monkeypatch.setattr(processes, "HEARTBEAT_INTERVAL", 3600)
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_HEARTBEAT_TIMEOUT": 600}
    manager.launch_async_task(
        f"{__name__}.lock_when_given_up", how, retry=RetryPolicy(max_retries=retries, retry_on=[WorkerLost])
    )
    assert deliver() is False
    assert not ConflictLock.objects.exists()


def lock_when_given_up(how: str) -> bool:
    # Of a process that sends no heartbeat, as the one that runs this would.
    ActiveTask.objects.update(worker=WorkerProcess.objects.create(identity="lost", host="elsewhere", pid=1))
    silence(pk="lost")
    AsyncManager().cleanup_completed_tasks()
    if how == "descendants":
        return register_descendant_conflicts("testapp.Project", [1])
    task = get_current_task()
    return task.manager.add_conflict_ids(task.task_name, {"testapp.Project": {1}})


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("how", ["descendants", "add_conflict_ids"])
def test_a_worker_locks_more_while_its_task_runs(manager, how):
    name = manager.launch_async_task(f"{__name__}.lock_more", how)
    assert deliver() == [True, False, name]


def lock_more(how: str) -> list[object]:
    task = get_current_task()
    AsyncManager().add_conflict_ids("somebody", {"testapp.Project": {2}})

    def lock(key: int) -> bool:
        if how == "descendants":
            return register_descendant_conflicts("testapp.Project", [key])
        return task.manager.add_conflict_ids(task.task_name, {"testapp.Project": {key}})

    return [lock(1), lock(2), ConflictLock.objects.get(object_id="1").active_task.task_name]


def test_a_label_that_is_no_model_is_a_lock_of_its_own_and_told_once(caplog):
    ids = {"testapp.Projct": {1}}
    assert AsyncManager().add_conflict_ids("mine", ids)
    assert not AsyncManager().add_conflict_ids("yours", ids)
    (warning,) = [entry for entry in caplog.records if "testapp.projct" in entry.getMessage()]
    assert warning.levelname == "WARNING"


# Multi-table inheritance


@pytest.mark.parametrize("other", ["Place", "Cafe", "FavouriteCafe", "Bakery"])
@pytest.mark.parametrize("keys", [{1}, ALL_OBJECTS], ids=["object", "model"])
def test_a_row_of_a_child_model_is_that_of_its_parent(other_app, other, keys):
    AsyncManager().add_conflict_ids("mine", {"otherapp.Cafe": keys})
    assert not AsyncManager().add_conflict_ids("yours", {f"otherapp.{other}": {1}})
    assert not AsyncManager().add_conflict_ids("yours", {f"otherapp.{other}": ALL_OBJECTS})
    assert AsyncManager().check_conflict({f"otherapp.{other}": {1}}) == {1}


def test_a_row_that_only_has_the_key_of_another_is_not_that(other_app):
    AsyncManager().add_conflict_ids("mine", {"otherapp.Place": {1}})
    assert AsyncManager().add_conflict_ids("yours", {"otherapp.Opening": {1}})


def test_outcomes_of_a_child_model_belong_to_the_object_that_was_named(other_app, manager):
    manager.launch_async_task(
        f"{__name__}.note_cafe", sync=True, by_object=True, object_ids={"otherapp.Cafe": {1}}, only=None
    )
    entry = TaskObject.objects.get()
    assert (entry.model_label, entry.outcome) == ("otherapp.place", "done")


def note_cafe(only=None) -> None:
    get_current_task().note_outcome("otherapp.Cafe", 1, "done")


# By hand


def test_the_last_lock_of_a_reservation_is_released_with_it():
    manager = AsyncManager()
    manager.add_conflict_ids("mine", {"testapp.Project": {1}})
    lock, same = ConflictLock.objects.get(), ConflictLock.objects.get()
    assert manager.release_conflict_lock(lock)
    assert not ActiveTask.objects.exists()
    assert not manager.release_conflict_lock(same)


@pytest.mark.django_db
def test_what_one_has_reserved_is_released_apart_from_a_task_of_the_same_name():
    one, other = AsyncManager(), AsyncManager()
    assert one.add_conflict_ids("custom-task", {"testapp.Project": {1}})
    other.launch_async_task("tests.testapp.tasks.add", 1, task_key="custom-task", conflict_ids={"testapp.Project": {2}})
    assert one.remove_conflict_ids("custom-task", {"testapp.Project": {2}}) == 0
    assert one.remove_conflict_ids("custom-task") == 1
    assert ConflictLock.objects.get().object_id == "2"
    # Whoever has reserved nothing under the name means the task.
    assert other.remove_conflict_ids("custom-task") == 1
