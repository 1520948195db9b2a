"""In a project's own admin: the strip, the lock marks, the tasks of an object, and edits that locks block."""

from __future__ import annotations

import html
import json
import re

import pytest
from django.contrib import admin
from django.contrib.sessions.models import Session
from django.db import DatabaseError, connection, transaction
from django.test.utils import CaptureQueriesContext
from django.urls import path

from powercrud_dashboard.admin import BackgroundActionsMixin
from powercrud_dashboard.admin.edits import hold_for_edit
from powercrud_dashboard.models import ActiveTask, ConflictLock, TaskRecord
from powercrud_dashboard.models.changes import RecordChange
from tests.clicks import said
from tests.testapp.models import Document, Project
from tests.workers import claimed_elsewhere, meanwhile

pytestmark = pytest.mark.django_db

CHANGELIST = "/admin/testapp/project/"
SPECIAL = "/admin/testapp/specialproject/"
TASKS = "/admin/powercrud_dashboard/taskrecord/"
ADD = "tests.testapp.tasks.add"


@pytest.fixture
def projects(make_projects) -> list[Project]:
    return make_projects(3)


@pytest.fixture
def running(manager, projects, superuser) -> TaskRecord:
    """A task on the first project."""
    name = manager.launch_async_task(
        ADD,
        1,
        label="Nightly rebuild",
        user=superuser,
        conflict_ids={"testapp.Project": projects[:1]},
        affected_objects=projects[:1],
    )
    claimed_elsewhere(name, host="worker-1", pid=4711)
    TaskRecord.objects.change(name, RecordChange.started(attempt=1))
    manager.update_progress(name, "Step 1/4: reading")
    return TaskRecord.objects.get(task_name=name)


def marks(page: str) -> dict[str, bool]:
    """Return for each row's key whether it is marked as locked."""
    found = re.findall(r'<a class="pcrud-lock"[^>]*data-pcrud-lock="([^"]*)"( hidden)?>', page)
    return {key: not hidden for key, hidden in found}


def change_page(row, base: str = CHANGELIST) -> str:
    return f"{base}{row.pk}/change/"


# The changelist


def test_the_strip_shows_the_models_unfinished_tasks(boss, running):
    page = boss.get(CHANGELIST).content.decode()
    strip = page[page.index('id="pcrud-strip"') : page.index('id="changelist-form"')]
    assert "Nightly rebuild" in strip
    assert 'value="25"' in strip
    assert f'hx-post="{CHANGELIST}background-tasks/"' in strip
    assert f'action="{TASKS}{running.pk}/cancel/"' in strip


def test_running_tasks_come_before_queued_ones_and_a_group_is_one_line(boss, running, projects, manager, superuser):
    options = {"affected_objects": projects[1:], "user": superuser}
    for number in range(3):
        manager.launch_async_task(ADD, number, label="Part", group="parts", **options)
    for number in range(5):
        manager.launch_async_task(ADD, number, label=f"Alone {number}", **options)
    page = boss.get(CHANGELIST).content.decode()
    strip = page[page.index('id="pcrud-strip"') : page.index('id="changelist-form"')]
    labels = re.findall(r'pcrud-strip-label"><a href="[^"]*">([^<]*)<', strip)
    assert labels == ["Nightly rebuild", "Alone 4", "Alone 3", "Alone 2", "Alone 1"]
    assert "and 4 more" in strip
    for record in TaskRecord.objects.filter(label__startswith="Alone"):
        manager.cancel_task(record.task_name)
    strip = boss.get(f"{CHANGELIST}background-tasks/").content.decode()
    assert re.findall(r'pcrud-strip-label"><a href="[^"]*">([^<]*)<', strip) == ["Nightly rebuild", "Part"]
    assert "Queued: 3" in strip
    assert f'href="{TASKS}groups/parts/"' in strip
    assert f'action="{TASKS}groups/parts/cancel/"' in strip


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"status": "success", "failed_count": 3}, "“Nightly rebuild” ended: 3 failed."),
        ({"status": "failed", "error": "KeyError: 5"}, "“Nightly rebuild” failed: KeyError: 5"),
        ({"status": "cancelled"}, "“Nightly rebuild” was cancelled."),
        ({"status": "success"}, "“Nightly rebuild” has completed."),
    ],
)
def test_a_changelist_that_is_open_says_when_one_of_its_tasks_has_ended(boss, running, manager, change, text):
    def watched(page: str) -> str:
        return re.findall(r'data-pcrud-watched="([^"]*)"', page)[0]

    shown = watched(boss.get(CHANGELIST).content.decode())
    assert shown == str(running.pk)
    TaskRecord.objects.filter(pk=running.pk).update(**change)
    for __ in range(2):
        part = boss.get(f"{CHANGELIST}background-tasks/", {"watched": shown, "next": "/there/"}).content.decode()
        assert text in part
        assert '<a href="/there/">Reload to see new values</a>' in part
        shown = watched(part)
    # Whoever opens it now sees the new values.
    assert "Reload to see new values" not in boss.get(CHANGELIST).content.decode()
    assert boss.get(f"{CHANGELIST}background-tasks/", {"watched": "x,,999999999999999999999"}).status_code == 200


def test_a_lock_mark_leads_to_the_task_that_holds_the_lock(boss, running, projects, manager, client_of, make_user):
    page = boss.get(CHANGELIST).content.decode()
    address = re.findall(r'<a class="pcrud-lock" href="([^"]*)" title="Locked by Nightly rebuild"', page)[0]
    assert boss.get(address).url == f"{TASKS}{running.pk}/change/"
    viewer = client_of(make_user("viewer", "view_project"))
    assert "Locked by Nightly rebuild" in viewer.get(address, follow=True).content.decode()
    manager.add_conflict_ids("by hand", {"testapp.Project": projects[1:2]})
    other = address.replace(f"key={projects[0].pk}", f"key={projects[1].pk}")
    assert boss.get(other).url == f"{TASKS}locks/?q=testapp.project+{projects[1].pk}"
    manager.remove_conflict_ids("by hand")
    assert "is not locked any more" in boss.get(other, follow=True).content.decode()


def test_a_changelist_says_that_no_cluster_runs(boss, projects):
    assert "No cluster is running" in boss.get(CHANGELIST).content.decode()


def test_without_tasks_there_is_no_strip_and_nothing_refreshes(boss, projects):
    page = boss.get(CHANGELIST).content.decode()
    assert '<section class="pcrud-strip"' not in page
    assert "hx-trigger" not in page


def test_tasks_of_other_models_and_of_other_people_are_not_in_it(boss, running, client_of, make_user, manager):
    assert "Nightly rebuild" not in boss.get("/admin/testapp/document/").content.decode()
    assert "Nightly rebuild" in boss.get(SPECIAL).content.decode()
    editor = client_of(make_user("editor", "view_project", "change_project"))
    page = editor.get(CHANGELIST).content.decode()
    assert '<section class="pcrud-strip"' not in page
    # Locked it is for everybody.
    assert list(marks(page).values()).count(True) == 1


def test_the_strip_by_itself_and_the_locks_of_the_shown_rows(boss, running, projects, manager):
    keys = [str(project.pk) for project in projects]
    part = boss.get(f"{CHANGELIST}background-tasks/", {"key": keys, "next": f"{CHANGELIST}?p=1"}).content.decode()
    assert f'data-pcrud-locked="[&quot;{keys[0]}&quot;]"' in part
    assert f'name="next" value="{CHANGELIST}?p=1"' in part
    assert manager.remove_active_task(running.task_name)
    part = boss.get(f"{CHANGELIST}background-tasks/", {"key": keys}).content.decode()
    assert 'data-pcrud-locked="[]"' in part
    assert "hx-trigger" not in part


def test_the_keys_of_many_rows_are_no_part_of_an_address(client_of, superuser, manager):
    """Servers take addresses of some thousand characters."""
    documents = [Document.objects.create() for _number in range(200)]
    manager.launch_async_task(ADD, 1, conflict_ids={"testapp.Document": documents[-1:]})
    keys = [str(document.pk) for document in documents]
    client = client_of(superuser)
    client.handler.enforce_csrf_checks = True
    page = client.get("/admin/testapp/document/").content.decode()
    (token,) = re.findall(r"""hx-headers='{"X-CSRFToken": "(\w+)"}'""", page)
    address = "/admin/testapp/document/background-tasks/"
    assert client.post(address, {"key": keys}).status_code == 403
    part = client.post(address, {"key": keys, "next": "/there/"}, headers={"X-CSRFToken": token}).content.decode()
    assert f'data-pcrud-locked="[&quot;{keys[-1]}&quot;]"' in part
    assert 'data-pcrud-next="/there/"' in part


def test_lock_marks_are_brought_up_to_date_without_a_task_to_show(boss, projects, manager):
    manager.add_conflict_ids("nightly", {"testapp.Project": projects[:1]})
    assert "hx-post" in boss.get(CHANGELIST).content.decode()
    keys = {"key": [str(row.pk) for row in projects]}
    part = boss.get(f"{CHANGELIST}background-tasks/", keys).content.decode()
    assert "hx-post" in part
    manager.remove_conflict_ids("nightly")
    part = boss.get(f"{CHANGELIST}background-tasks/", keys).content.decode()
    assert "hx-post" not in part
    assert 'data-pcrud-locked="[]"' in part


class SessionAdmin(BackgroundActionsMixin, admin.ModelAdmin):
    """The admin of a model whose keys are texts."""


site = admin.AdminSite()
site.register(Session, SessionAdmin)
urlpatterns = [path("admin/", site.urls)]


@pytest.mark.urls(__name__)
def test_keys_of_locked_rows_may_have_spaces(boss, manager):
    manager.add_conflict_ids("nightly", {"sessions.Session": ["north east"]})
    part = boss.get("/admin/sessions/session/background-tasks/", {"key": ["north east", "other"]}).content.decode()
    (locked,) = re.findall('data-pcrud-locked="([^"]*)"', part)
    assert json.loads(html.unescape(locked)) == ["north east"]


@pytest.mark.parametrize("read", ["taskrecord", "activetask", "conflictlock"])
def test_a_task_that_ends_between_two_looks_leaves_no_mark(boss, projects, manager, read):
    name = manager.launch_async_task(ADD, 1, conflict_ids={"testapp.Project": projects[:1]})
    with meanwhile(lambda: manager.cancel_task(name), after=f'SELECT "powercrud_dashboard_{read}"."id"'):
        part = boss.get(f"{CHANGELIST}background-tasks/", {"key": [str(projects[0].pk)]}).content.decode()
    assert 'data-pcrud-locked="[]"' in part or "hx-post" in part


def test_the_strip_is_for_who_may_see_the_model(client_of, make_user, boss, running):
    address = f"{CHANGELIST}background-tasks/"
    assert client_of(make_user("nobody")).get(address).status_code == 403
    assert boss.get(address, {"key": "no number"}).status_code == 400


def test_cancelling_from_the_strip_leads_back_to_the_list(boss, running):
    address = f"{CHANGELIST}?archived__exact=0"
    answer = boss.post(f"{TASKS}{running.pk}/cancel/", {"next": address})
    assert answer["Location"] == address


def test_locked_rows_are_marked_in_as_many_queries_however_many_there_are(boss, running, projects, make_projects):
    page = boss.get(CHANGELIST).content.decode()
    assert marks(page) == {str(project.pk): project == projects[0] for project in projects}
    assert "Locked by Nightly rebuild" in page
    with CaptureQueriesContext(connection) as few:
        boss.get(CHANGELIST)
    make_projects(15)
    with CaptureQueriesContext(connection) as many:
        boss.get(CHANGELIST)
    assert len(many) == len(few)


def test_a_lock_on_the_whole_model_marks_each_row(boss, projects):
    boss.post(CHANGELIST, {"action": "audit", "_selected_action": [projects[0].pk]})
    assert set(marks(boss.get(CHANGELIST).content.decode()).values()) == {True}


# The change form


def test_the_change_form_names_who_holds_the_object_and_the_tasks_that_touched_it(boss, running, projects, manager):
    manager.launch_async_task(ADD, 2, label="Earlier", object_ids={"testapp.Project": projects[:1]}, sync=True)
    page = boss.get(change_page(projects[0])).content.decode()
    assert f'<a href="{TASKS}{running.pk}/change/">Nightly rebuild</a>' in page
    assert "has locked this object." in page
    panel = page[page.index("pcrud-object-tasks") :]
    assert panel.index("Earlier") < panel.index("Nightly rebuild")
    assert "Done" in panel
    assert "</time>, by boss" in panel
    assert f"{TASKS}?model=testapp.project&amp;object_id={projects[0].pk}" in panel
    other = boss.get(change_page(projects[1])).content.decode()
    assert "has locked this object." not in other
    assert "pcrud-object-tasks" not in other


def test_staff_see_of_an_object_the_tasks_that_they_may_see(client_of, make_user, running, projects):
    editor = client_of(make_user("editor", "view_project", "change_project"))
    page = editor.get(change_page(projects[0])).content.decode()
    assert "has locked this object." in page
    assert "pcrud-object-tasks-title" not in page


def test_a_reservation_is_named_as_one(boss, projects, manager):
    manager.add_conflict_ids("custom-task", {"testapp.Project": projects[:1]})
    assert "has reserved this object." in boss.get(change_page(projects[0])).content.decode()


def test_the_history_leads_to_the_tasks(boss, projects):
    page = boss.get(f"{CHANGELIST}{projects[0].pk}/history/").content.decode()
    assert f"{TASKS}?model=testapp.project&amp;object_id={projects[0].pk}" in page


def test_forms_of_new_objects_and_pages_of_other_packages_stay_whole(boss, projects):
    assert boss.get(f"{CHANGELIST}add/").status_code == 200
    page = boss.get(change_page(projects[0], SPECIAL)).content.decode()
    assert "Shout" in page
    document = Document.objects.create()
    assert "export" in boss.get("/admin/testapp/document/").content.decode().lower()
    assert boss.get(f"/admin/testapp/document/{document.pk}/change/").status_code == 200


# Edits that a lock blocks


def form_data(row, **changes) -> dict[str, str]:
    return {"name": row.name, **({"archived": "on"} if row.archived else {}), **changes}


def test_saving_a_locked_object_is_refused_and_what_was_typed_stays(boss, running, projects):
    page = boss.post(change_page(projects[0], SPECIAL), form_data(projects[0], name="typed by hand"))
    text = page.content.decode()
    assert "This object is locked by Nightly rebuild and can't be changed" in text.replace("&#x27;", "'")
    assert 'value="typed by hand"' in text
    assert "It can't be changed or deleted until the lock is released." in text.replace("&#x27;", "'")
    assert Project.objects.get(pk=projects[0].pk).name == "project 0"


def test_a_reservation_is_not_called_a_task(boss, manager, projects):
    manager.add_conflict_ids("nightly", {"testapp.Project": [projects[0].pk]})
    page = boss.post(change_page(projects[0], SPECIAL), form_data(projects[0], name="new"))
    assert "locked by nightly and can't be changed until the lock is released." in html.unescape(page.content.decode())


def test_others_are_saved(boss, running, projects):
    assert boss.post(change_page(projects[1], SPECIAL), form_data(projects[1], name="new")).status_code == 302
    assert Project.objects.get(pk=projects[1].pk).name == "new"
    assert ConflictLock.objects.count() == 1
    assert ActiveTask.objects.count() == 1


def test_an_admin_that_does_not_ask_for_it_saves(boss, running, projects):
    assert boss.post(change_page(projects[0]), form_data(projects[0], name="new")).status_code == 302


@pytest.fixture
def locked_at_the_last_moment(manager, projects):
    """Lock the first project between the form's check and the save."""

    def lock() -> None:
        assert manager.add_conflict_ids("faster", {"testapp.Project": projects[:1]})

    with meanwhile(lock, before='INSERT INTO "powercrud_dashboard_activetask"'):
        yield


def test_it_is_checked_again_in_the_saves_transaction(boss, projects, locked_at_the_last_moment):
    answer = boss.post(change_page(projects[0], SPECIAL), form_data(projects[0], name="new"))
    assert said(answer) == ["Nothing was changed: the object is locked by faster."]
    assert answer["Location"] == change_page(projects[0], SPECIAL)
    assert Project.objects.get(pk=projects[0].pk).name == "project 0"


def edited_list(projects, **names: str) -> dict[str, str]:
    """Return what the editable changelist sends, newest first as it is ordered there."""
    rows = list(Project.objects.order_by("-pk"))
    data = {"form-TOTAL_FORMS": str(len(rows)), "form-INITIAL_FORMS": str(len(rows)), "_save": "Save"}
    for number, row in enumerate(rows):
        data |= {f"form-{number}-id": str(row.pk), f"form-{number}-name": names.get(f"p{row.pk}", row.name)}
    return data


def test_an_editable_list_refuses_locked_rows(boss, running, projects):
    page = boss.post(SPECIAL, edited_list(projects, **{f"p{projects[0].pk}": "typed"})).content.decode()
    assert "This object is locked by Nightly rebuild" in page
    assert Project.objects.get(pk=projects[0].pk).name == "project 0"


def test_and_saves_the_others(boss, running, projects):
    boss.post(SPECIAL, edited_list(projects, **{f"p{projects[1].pk}": "typed"}))
    assert Project.objects.get(pk=projects[1].pk).name == "typed"


def test_an_editable_list_at_the_last_moment(boss, projects, locked_at_the_last_moment):
    both = {f"p{projects[0].pk}": "typed", f"p{projects[1].pk}": "typed"}
    answer = boss.post(SPECIAL, edited_list(projects, **both))
    assert said(answer) == ["Nothing was changed: the object is locked by faster."]
    assert not Project.objects.filter(name="typed").exists()


@pytest.mark.parametrize("chosen", [[0], [0, 1, 2]])
def test_deleting_locked_objects_is_refused(boss, running, projects, chosen):
    if len(chosen) == 1:
        answer = boss.post(f"{SPECIAL}{projects[0].pk}/delete/", {"post": "yes"})
    else:
        pks = [projects[number].pk for number in chosen]
        answer = boss.post(SPECIAL, {"action": "delete_selected", "_selected_action": pks, "post": "yes"})
    assert said(answer) == ["Nothing was changed: the object is locked by Nightly rebuild."]
    assert Project.objects.count() == 3


def test_an_action_that_has_changed_some_rows_is_not_said_to_have_changed_nothing(boss, manager, projects):
    manager.add_conflict_ids("nightly", {"testapp.Project": [projects[1].pk]})
    answer = boss.post(SPECIAL, {"action": "rename_each", "_selected_action": [project.pk for project in projects]})
    assert Project.objects.filter(name="renamed").count() == 1
    assert said(answer) == ["The action was stopped: an object is locked by nightly."]


def test_an_error_of_the_database_while_an_object_is_held_is_not_hidden(projects):
    failure = pytest.raises(DatabaseError, match="no_such_table")
    with failure, transaction.atomic(), hold_for_edit(projects), connection.cursor() as cursor:
        cursor.execute("SELECT * FROM no_such_table")
    assert not ConflictLock.objects.exists()


def test_deleting_others_leaves_no_lock(boss, running, projects):
    boss.post(f"{SPECIAL}{projects[1].pk}/delete/", {"post": "yes"})
    boss.post(SPECIAL, {"action": "delete_selected", "_selected_action": [projects[2].pk], "post": "yes"})
    assert Project.objects.count() == 1
    assert ConflictLock.objects.count() == 1


def test_a_task_may_change_through_the_admin_what_it_holds_itself(manager, projects, superuser):
    manager.launch_async_task(
        "tests.testapp.tasks.save_through_admin",
        projects[0].pk,
        superuser.pk,
        conflict_ids={"testapp.Project": projects[:1]},
        sync=True,
    )
    assert Project.objects.get(pk=projects[0].pk).name == "saved"
    manager.add_conflict_ids("somebody", {"testapp.Project": projects[1:2]})
    with pytest.raises(RuntimeError, match="somebody"):
        manager.launch_async_task("tests.testapp.tasks.save_through_admin", projects[1].pk, superuser.pk, sync=True)
