"""Rows of models that inherit from others: their tasks are found by any label, and links lead to the right page."""

from __future__ import annotations

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.admin.sites import all_sites
from django.db.models import Model
from django.test import override_settings
from django.urls import path

from powercrud_dashboard.admin import TaskRecordAdmin
from powercrud_dashboard.async_context import register_descendant_conflicts
from powercrud_dashboard.async_manager import ALL_OBJECTS, AsyncManager
from powercrud_dashboard.exceptions import TaskConflict
from powercrud_dashboard.models import ConflictLock, TaskObject, TaskRecord

pytestmark = pytest.mark.django_db

ADD = "tests.testapp.tasks.add"
MODELS = ["place", "cafe", "favouritecafe"]
LIST = "/places/powercrud_dashboard/taskrecord/"


@pytest.fixture
def site(other_app):
    """An admin site with the three models of a row."""
    site = admin.AdminSite("places")
    site.register(TaskRecord, TaskRecordAdmin)
    for name in MODELS:
        site.register(apps.get_model("otherapp", name))
    with override_settings(ROOT_URLCONF=(path("places/", site.urls),)):
        yield site
    all_sites.discard(site)


@pytest.fixture
def cafe(site) -> Model:
    return apps.get_model("otherapp", "cafe").objects.create(name="a cafe")


def launched_for(manager, given) -> None:
    """Launch a task for an object, and cancel it so that its page shows outcomes."""
    name = manager.launch_async_task(ADD, 1, conflict_ids={given._meta.label: {given.pk}}, affected_objects=[given])
    manager.cancel_task(name)


def links_in(page) -> list[str]:
    return [name for name in MODELS if f'href="/places/otherapp/{name}/1/change/"' in page.content.decode()]


@pytest.mark.parametrize("label", ["otherapp.Cafe", "otherapp.place", "otherapp.FavouriteCafe"])
def test_the_tasks_of_an_object_are_found_by_any_of_its_labels(cafe, manager, label):
    launched_for(manager, cafe)
    assert TaskObject.objects.touching(label, cafe.pk).count() == 1
    assert not TaskObject.objects.touching(label, "2").exists()


@pytest.mark.parametrize("name", MODELS)
def test_an_object_is_linked_to_the_page_of_the_model_that_it_was_given_by(cafe, boss, manager, name):
    launched_for(manager, apps.get_model("otherapp", name).objects.get())
    assert links_in(boss.get(LIST)) == [name]
    assert links_in(boss.get(f"{LIST}{TaskRecord.objects.get().pk}/change/")) == [name]


@pytest.mark.parametrize(("name", "kind"), [("place", "place"), ("cafe", "cafe"), ("favouritecafe", "favourite cafe")])
def test_objects_are_counted_as_what_they_were_given_as(cafe, boss, manager, name, kind):
    launched_for(manager, apps.get_model("otherapp", name).objects.get())
    assert f"1 {kind}" in boss.get(LIST).content.decode()


def test_a_link_leads_to_a_page_that_the_user_may_view(cafe, site, boss, manager, monkeypatch):
    launched_for(manager, cafe)
    monkeypatch.setattr(
        site.get_model_admin(type(cafe)), "has_view_or_change_permission", lambda request, obj=None: False
    )
    assert links_in(boss.get(LIST)) == ["place"]


# Two parents


@pytest.fixture
def eatery(other_app) -> Model:
    """An object whose rows in the tables of its two parents have different keys."""
    for name in ("place", "business", "business"):
        apps.get_model("otherapp", name).objects.create()
    eatery = apps.get_model("otherapp", "eatery").objects.create()
    assert (eatery.pk, eatery.business_id) == (2, 3)
    return eatery


ROWS = {"otherapp.place": {"2"}, "otherapp.business": {"3"}}


def locked() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for label, key in ConflictLock.objects.values_list("model_label", "object_id"):
        found.setdefault(label, set()).add(key)
    return found


def lock_in_worker(pk: int) -> bool:
    return register_descendant_conflicts("otherapp.Eatery", [pk]) and locked() == ROWS


def test_all_rows_of_an_object_are_locked(eatery, manager):
    ids = {"otherapp.Eatery": {eatery.pk}}
    name = manager.launch_async_task(ADD, 1, conflict_ids=ids)
    assert locked() == ROWS
    record = TaskRecord.objects.get(task_name=name)
    assert (record.affected_count, record.objects_worked_on.count()) == (1, 1)
    manager.cancel_task(name)
    assert manager.add_conflict_ids("mine", ids)
    assert locked() == ROWS
    assert manager.remove_conflict_ids("mine", ids) == 2
    again = manager.retry_task(name)
    assert locked() == ROWS
    manager.cancel_task(again)
    assert manager.launch_async_task(f"{__name__}.lock_in_worker", eatery.pk, sync=True)
    assert TaskRecord.objects.latest("pk").result is True


def test_a_retry_of_some_objects_locks_all_of_their_rows(eatery, manager):
    ids = {"otherapp.Eatery": {eatery.pk}}
    name = manager.launch_async_task(f"{__name__}.visit", conflict_ids=ids, by_object=True)
    manager.cancel_task(name)
    manager.retry_task(name, only={"otherapp.place": {str(eatery.pk)}})
    assert locked() == ROWS


def visit(only=None) -> None:
    pass


@pytest.mark.parametrize("label", ["otherapp.Place", "otherapp.Business"])
@pytest.mark.parametrize("of_all", [False, True], ids=["row", "table"])
def test_an_object_is_held_by_a_lock_on_any_of_its_rows(eatery, manager, label, of_all):
    key = eatery.pk if label == "otherapp.Place" else eatery.business_id
    AsyncManager().add_conflict_ids("yours", {label: ALL_OBJECTS if of_all else {key}})
    for keys in ({eatery.pk}, ALL_OBJECTS):
        with pytest.raises(TaskConflict):
            manager.launch_async_task(ADD, 1, conflict_ids={"otherapp.Eatery": keys})
    assert manager.check_conflict({"otherapp.Eatery": {eatery.pk}}) == {eatery.pk}
    assert manager.check_conflict({"otherapp.Eatery": {7}}) == ({7} if of_all and label == "otherapp.Place" else set())


def test_the_whole_of_a_model_is_the_whole_of_its_parents(eatery, manager):
    manager.add_conflict_ids("mine", {"otherapp.Eatery": ALL_OBJECTS})
    assert locked() == {"otherapp.place": {"*"}, "otherapp.business": {"*"}}
