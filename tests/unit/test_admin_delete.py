"""The admin's own delete page of a task."""

from __future__ import annotations

import pytest
from django.contrib import admin

from powercrud_dashboard.engine.files import keep_result
from powercrud_dashboard.models import TaskFile, TaskRecord
from tests.clicks import TASKS

pytestmark = pytest.mark.django_db


@pytest.fixture
def record(manager) -> TaskRecord:
    """A task that has ended and left a file."""
    name = manager.launch_async_task("tests.testapp.tasks.add", 1, sync=True)
    keep_result(name, "names.csv", "text/csv", [b"a"])
    return TaskRecord.objects.get()


def test_a_task_is_deleted_with_its_files(boss, record):
    boss.post(f"{TASKS}{record.pk}/delete/", {"post": "yes"})
    assert not TaskRecord.objects.exists()
    assert not TaskFile.objects.exists()


def test_so_are_several(rf, record):
    model_admin = admin.site.get_model_admin(TaskRecord)
    model_admin.delete_queryset(rf.post("/"), TaskRecord.objects.all())
    assert not TaskRecord.objects.exists()
    assert not TaskFile.objects.exists()
