from __future__ import annotations

import uuid

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from powercrud_dashboard.async_manager import AsyncManager
from powercrud_dashboard.exceptions import TaskConflict
from powercrud_dashboard.models import ActiveTask, ConflictLock
from tests.testapp.models import Document, Project

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


def test_a_string_in_place_of_a_collection_is_refused():
    with pytest.raises(TypeError, match="pass a set of primary keys"):
        AsyncManager().add_conflict_ids("mine", {"testapp.Project": "12"})


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
    assert "testapp.project 1 (held by custom-task)" in str(caught.value)
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
    assert len(releasing) <= 3


def test_ending_a_task_releases_its_locks_in_two_statements():
    manager = AsyncManager()
    manager.launch_async_task(ADD, 1, task_key="big", conflict_ids={"testapp.Document": Document.objects.none()})
    manager.add_conflict_ids("big", {"testapp.Project": range(1_000)})
    active = ActiveTask.objects.get(task_name="big")
    with CaptureQueriesContext(connection) as ending:
        assert ActiveTask.objects.end(active) == 1_000
    assert len(ending) == 2
