"""Actions that run in the request, with ``ATOMIC_REQUESTS``: what fails is undone, and its record stays."""

from __future__ import annotations

import pytest
from django.db import IntegrityError, connection, transaction

from powercrud_dashboard.admin import background_action
from powercrud_dashboard.models import ConflictLock, TaskRecord
from tests.clicks import choose, last, said
from tests.testapp.models import Project

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _atomic_requests(monkeypatch, at_once):
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)


@pytest.fixture
def projects(make_projects) -> list[Project]:
    return make_projects(4)


def raise_error(queryset):
    raise LookupError("half way")


def violate_a_constraint(queryset):
    Project.objects.create(pk=queryset[0].pk, name="duplicate")


def swallow_an_error(queryset):
    try:
        violate_a_constraint(queryset)
    except IntegrityError:
        """Without a savepoint."""


@pytest.mark.parametrize(
    ("fail", "error"),
    [
        (raise_error, "half way"),
        (violate_a_constraint, "UNIQUE|duplicate key"),
        (swallow_an_error, "The changes were rolled back"),
    ],
)
def test_an_action_that_fails_is_undone_and_its_record_stays(boss, projects, with_actions, fail, error):
    @background_action(permissions=["change"])
    def change(modeladmin, request, queryset):
        queryset.update(archived=True)
        fail(queryset)

    with_actions(change)
    answer = choose(boss, "change", projects)
    assert answer.status_code == 200
    assert "“Change” failed: " in said(answer)[0]
    record = TaskRecord.objects.get()
    assert record.status == "failed"
    assert any(part in record.error for part in error.split("|"))
    assert not Project.objects.filter(archived=True).exists()
    assert not ConflictLock.objects.exists()


def test_what_succeeds_is_stored(boss, projects):
    choose(boss, "archive", projects)
    assert last().status == "success"
    assert Project.objects.filter(archived=True).count() == 4


def test_outcomes_of_objects_stay_if_all_have_failed(boss, projects, with_actions):
    def each(modeladmin, request, project):
        raise LookupError("no")

    with_actions(background_action(permissions=["change"], per_object=True)(each))
    choose(boss, "each", projects)
    record = last()
    assert (record.status, record.failed_count) == ("failed", 4)
    assert set(record.objects_worked_on.values_list("outcome", flat=True)) == {"failed"}


def test_objects_that_were_done_before_an_error_are_undone_with_it(boss, projects, with_actions):
    def each(modeladmin, request, project):
        project.archived = True
        project.save()
        if project.pk == projects[2].pk:
            raise SystemExit("enough")

    with_actions(background_action(permissions=["change"], per_object=True)(each))
    choose(boss, "each", projects)
    record = last()
    assert (record.status, record.done_count) == ("failed", 0)
    assert set(record.objects_worked_on.values_list("outcome", flat=True)) == {"not_reached"}
    assert not Project.objects.filter(archived=True).exists()


def test_a_synchronous_task_in_a_transaction_undoes_only_its_own_work(manager, make_projects):
    (project,) = make_projects(1)
    with transaction.atomic():
        Project.objects.filter(pk=project.pk).update(name="of the caller")
        with pytest.raises(LookupError):
            manager.launch_async_task(rename_and_fail, project.pk, sync=True)
    assert Project.objects.get().name == "of the caller"
    assert last().status == "failed"


def rename_and_fail(pk: int) -> None:
    Project.objects.filter(pk=pk).update(name="of the task")
    raise LookupError("half way")
