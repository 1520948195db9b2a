"""In a project's own admin: the strip, the lock marks, the tasks of an object, and edits that locks block."""

from __future__ import annotations

import re

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from powercrud_dashboard.admin import edits, mixins
from powercrud_dashboard.dashboard_manager import DashboardAsyncManager
from powercrud_dashboard.models import ActiveTask, ConflictLock, TaskRecord
from tests.clicks import said
from tests.testapp.models import Document, Project

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
    ActiveTask.objects.claim_pending(name, host="worker-1", pid=4711)
    TaskRecord.objects.record_start(name, attempt=1)
    manager.update_progress(name, "Step 1/4: reading")
    return TaskRecord.objects.get(task_name=name)


def marks(page: str) -> dict[str, bool]:
    """Return for each row's key whether it is marked as locked."""
    found = re.findall(r'<span class="pcrud-lock"[^>]*data-pcrud-lock="([^"]*)"( hidden)?>', page)
    return {key: not hidden for key, hidden in found}


def change_page(row, base: str = CHANGELIST) -> str:
    return f"{base}{row.pk}/change/"


# The changelist


def test_the_strip_shows_the_models_unfinished_tasks(boss, running):
    page = boss.get(CHANGELIST).content.decode()
    strip = page[page.index('id="pcrud-strip"') : page.index('id="changelist-form"')]
    assert "Nightly rebuild" in strip
    assert 'value="25"' in strip
    assert f'hx-get="{CHANGELIST}background-tasks/"' in strip
    assert f'action="{TASKS}{running.pk}/cancel/"' in strip


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
    assert f'data-pcrud-locked="{keys[0]}"' in part
    assert f'name="next" value="{CHANGELIST}?p=1"' in part
    assert manager.remove_active_task(running.task_name)
    part = boss.get(f"{CHANGELIST}background-tasks/", {"key": keys}).content.decode()
    assert 'data-pcrud-locked=""' in part
    assert "hx-trigger" not in part


def test_lock_marks_are_brought_up_to_date_without_a_task_to_show(boss, projects, manager):
    manager.add_conflict_ids("nightly", {"testapp.Project": projects[:1]})
    assert "hx-get" in boss.get(CHANGELIST).content.decode()
    keys = {"key": [str(row.pk) for row in projects]}
    part = boss.get(f"{CHANGELIST}background-tasks/", keys).content.decode()
    assert "hx-get" in part
    manager.remove_conflict_ids("nightly")
    part = boss.get(f"{CHANGELIST}background-tasks/", keys).content.decode()
    assert "hx-get" not in part
    assert 'data-pcrud-locked=""' in part


@pytest.mark.parametrize("look", ["strip_context", "lock_by_key"])
def test_a_task_that_ends_between_two_looks_leaves_no_mark(boss, projects, manager, monkeypatch, look):
    name = manager.launch_async_task(ADD, 1, conflict_ids={"testapp.Project": projects[:1]})
    original = getattr(mixins, look)

    def cancelled_before(*args):
        manager.cancel_task(name)
        return original(*args)

    monkeypatch.setattr(mixins, look, cancelled_before)
    part = boss.get(f"{CHANGELIST}background-tasks/", {"key": [str(projects[0].pk)]}).content.decode()
    assert 'data-pcrud-locked=""' in part or "hx-get" in part


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
    assert "works on this object." in page
    panel = page[page.index("pcrud-object-tasks") :]
    assert panel.index("Earlier") < panel.index("Nightly rebuild")
    assert "Done" in panel
    assert f"{TASKS}?model=testapp.project&amp;object_id={projects[0].pk}" in panel
    other = boss.get(change_page(projects[1])).content.decode()
    assert "works on this object." not in other
    assert "pcrud-object-tasks" not in other


def test_staff_see_of_an_object_the_tasks_that_they_may_see(client_of, make_user, running, projects):
    editor = client_of(make_user("editor", "view_project", "change_project"))
    page = editor.get(change_page(projects[0])).content.decode()
    assert "works on this object." in page
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
    assert "This is being worked on by Nightly rebuild and can't be changed" in text.replace("&#x27;", "'")
    assert 'value="typed by hand"' in text
    assert "It can't be changed or deleted until that has ended." in text.replace("&#x27;", "'")
    assert Project.objects.get(pk=projects[0].pk).name == "project 0"


def test_others_are_saved(boss, running, projects):
    assert boss.post(change_page(projects[1], SPECIAL), form_data(projects[1], name="new")).status_code == 302
    assert Project.objects.get(pk=projects[1].pk).name == "new"
    assert ConflictLock.objects.count() == 1
    assert ActiveTask.objects.count() == 1


def test_an_admin_that_does_not_ask_for_it_saves(boss, running, projects):
    assert boss.post(change_page(projects[0]), form_data(projects[0], name="new")).status_code == 302


@pytest.fixture
def locked_at_the_last_moment(monkeypatch, projects):
    """Lock the first project between the form's check and the save."""
    monkeypatch.setattr(edits, "locks_of_others", lambda objects: [])
    DashboardAsyncManager().add_conflict_ids("faster", {"testapp.Project": projects[:1]})


def test_it_is_checked_again_in_the_saves_transaction(boss, projects, locked_at_the_last_moment):
    answer = boss.post(change_page(projects[0], SPECIAL), form_data(projects[0], name="new"))
    assert said(answer) == ["Nothing was changed: faster works on it just now."]
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
    assert "This is being worked on by Nightly rebuild" in page
    assert Project.objects.get(pk=projects[0].pk).name == "project 0"


def test_and_saves_the_others(boss, running, projects):
    boss.post(SPECIAL, edited_list(projects, **{f"p{projects[1].pk}": "typed"}))
    assert Project.objects.get(pk=projects[1].pk).name == "typed"


def test_an_editable_list_at_the_last_moment(boss, projects, locked_at_the_last_moment):
    both = {f"p{projects[0].pk}": "typed", f"p{projects[1].pk}": "typed"}
    answer = boss.post(SPECIAL, edited_list(projects, **both))
    assert said(answer) == ["Nothing was changed: faster works on it just now."]
    assert not Project.objects.filter(name="typed").exists()


@pytest.mark.parametrize("chosen", [[0], [0, 1, 2]])
def test_deleting_locked_objects_is_refused(boss, running, projects, chosen):
    if len(chosen) == 1:
        answer = boss.post(f"{SPECIAL}{projects[0].pk}/delete/", {"post": "yes"})
    else:
        pks = [projects[number].pk for number in chosen]
        answer = boss.post(SPECIAL, {"action": "delete_selected", "_selected_action": pks, "post": "yes"})
    assert said(answer) == ["Nothing was changed: Nightly rebuild works on it just now."]
    assert Project.objects.count() == 3


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
