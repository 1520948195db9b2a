"""Actions of a project's admin, and of other packages, in a real cluster."""

from __future__ import annotations

import uuid

import pytest
from django.contrib.auth.models import Permission

from powercrud_dashboard.models import ConflictLock, TaskFile, TaskRecord
from tests.services import wait_until
from tests.testapp.admin import ODD
from tests.testapp.models import Document, Project, Shelf

pytestmark = [pytest.mark.cluster, pytest.mark.django_db(transaction=True)]

CHANGELIST = "/admin/testapp/project/"
TASKS = "/admin/powercrud_dashboard/taskrecord/"


def choose(client, action: str, rows, address: str = CHANGELIST, **more):
    client.post(address, {"action": action, "_selected_action": [row.pk for row in rows], **more})
    return TaskRecord.objects.latest("pk")


def ended(record: TaskRecord) -> TaskRecord:
    wait_until(lambda: (record.refresh_from_db(), record.is_finished)[1], "the task ends")
    return record


def test_an_ordinary_action(cluster, boss, make_projects):
    projects = make_projects(3)
    record = ended(choose(boss, "archive", projects[:2]))
    assert record.status == "success", record.traceback
    assert list(Project.objects.filter(archived=True)) == projects[:2]
    assert record.events.get(event="log").message == "Archived by boss."


def test_the_export_of_django_import_export(cluster, boss):
    documents = [Document.objects.create(id=uuid.UUID(int=number)) for number in range(3)]
    record = ended(choose(boss, "export_admin_action", documents, "/admin/testapp/document/"))
    assert record.status == "success", record.traceback
    kept = TaskFile.objects.get()
    content = boss.get(f"{TASKS}{record.pk}/files/{kept.pk}/").content.decode()
    assert content.split() == ["id", *(str(document.pk) for document in documents)]


def test_objects_one_by_one_then_those_that_failed(cluster, boss, make_projects):
    projects = make_projects(4)
    Project.objects.filter(pk=projects[2].pk).update(name=ODD)
    record = ended(choose(boss, "visit", projects))
    assert (record.status, record.result) == ("success", {"done": 3, "failed": 1, "skipped": 0})
    Project.objects.filter(name=ODD).update(name="mended")
    boss.post(f"{TASKS}{record.pk}/retry-objects/")
    retry = ended(TaskRecord.objects.latest("pk"))
    assert (retry.status, retry.affected_count, retry.done_count) == ("success", 1, 1)
    assert Project.objects.filter(archived=True).count() == 4


def test_a_group_runs_on_many_workers(cluster, boss, make_projects):
    choose(boss, "visit_in_chunks", make_projects(8))
    records = list(TaskRecord.objects.all())
    assert len(records) == 4
    for record in records:
        assert ended(record).status == "success", record.traceback
    assert Project.objects.filter(archived=True).count() == 8
    page = boss.get(f"{TASKS}groups/{records[0].group}/")
    assert page.context["group"].percent == 100
    assert "data-pcrud-refresh" not in page.text


def test_a_large_selection_is_resolved_in_the_worker(cluster, boss, make_projects):
    projects = make_projects(1_500)
    record = ended(choose(boss, "archive_free_ones", projects[:1], select_across="1"))
    assert record.status == "success", record.traceback
    assert (record.affected_count, record.result) == (1_500, {"archived": 1_500})
    assert not ConflictLock.objects.exists()


def test_a_form_with_a_file(cluster, boss, make_projects, tmp_path):
    projects = make_projects(1)
    notes = tmp_path / "notes.txt"
    notes.write_text("read me")
    with notes.open("rb") as upload:
        fields = {"pcrud-confirmed": "1", "pcrud-prefix": "new", "pcrud-notes": upload}
        record = ended(choose(boss, "rename", projects, **fields))
    assert record.result == {"count": None, "notes": "read me"}, record.traceback
    # It is kept for a retry.
    assert bytes(TaskFile.objects.get().content) == b"read me"


@pytest.mark.parametrize("change", ["deactivated", "lost the permission"])
def test_who_may_not_any_more_when_the_task_starts(cluster_later, client_of, make_user, make_projects, change):
    user = make_user("editor", "view_project", "change_project")
    record = choose(client_of(user), "archive", make_projects(2))
    if change == "deactivated":
        user.is_active = False
        user.save()
    else:
        user.user_permissions.set(Permission.objects.filter(codename="view_project"))
    cluster_later()
    assert ended(record).status == "failed"
    assert "since" in record.error
    assert not Project.objects.filter(archived=True).exists()
    assert not ConflictLock.objects.exists()


def test_a_site_that_only_the_urls_import(cluster, boss, make_projects):
    record = ended(choose(boss, "archive", make_projects(2), "/backoffice/testapp/project/"))
    assert record.result == {"site": "backoffice", "archived": 2}, record.traceback


@pytest.mark.django_db(transaction=True, databases=["default", "archive"])
def test_rows_of_another_database(cluster, boss):
    shelves = [Shelf.objects.create(label=label) for label in ("a", ODD)]
    record = ended(choose(boss, "fill", shelves, "/admin/testapp/shelf/"))
    assert record.result == {"done": 1, "failed": 1, "skipped": 0}, record.traceback
    assert Shelf.objects.get(is_full=True).label == "a"
    assert not ConflictLock.objects.exists()
