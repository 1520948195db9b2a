from __future__ import annotations

import pytest
from django.core.exceptions import PermissionDenied
from django_q.models import OrmQ

from powercrud_dashboard.admin import background_action
from powercrud_dashboard.admin.running import run_action
from powercrud_dashboard.models import ActiveTask, TaskRecord
from tests.testapp.models import Project

pytestmark = pytest.mark.django_db

CHANGELIST = "/admin/testapp/project/"


@pytest.fixture
def projects(make_projects) -> list[Project]:
    return make_projects(3)


def choose(client, action: str, projects: list[Project]):
    data = {"action": action, "_selected_action": [project.pk for project in projects]}
    return client.post(CHANGELIST, data, follow=True)


def offered(client) -> set[str]:
    form = client.get(CHANGELIST).context_data["action_form"]
    return {value for value, _label in form.fields["action"].choices} if form else set()


def test_the_actions_are_offered_to_who_has_their_permission(client_of, make_user, boss, projects):
    own = {"archive", "archive_free_ones", "touch_projects"}
    assert own <= offered(boss)
    assert not own & offered(client_of(make_user("viewer", "view_project")))
    assert own <= offered(client_of(make_user("editor", "view_project", "change_project")))


def test_a_click_locks_the_selection_and_launches_one_task(boss, superuser, projects, manager):
    response = choose(boss, "archive", projects[:2])
    record = TaskRecord.objects.get()
    assert (record.label, record.user, record.status) == ("Archive selected projects", superuser, "pending")
    assert record.affected_objects == ["project 0", "project 1"]
    pks = {project.pk for project in projects}
    assert manager.check_conflict({"testapp.Project": pks}) == {projects[0].pk, projects[1].pk}
    page = response.content.decode()
    assert "“Archive selected projects” runs in the background for 2 objects." in page
    assert f'<a href="/admin/powercrud_dashboard/taskrecord/{record.pk}/change/">View progress</a>' in page
    assert not Project.objects.filter(archived=True).exists()


def test_a_partly_locked_selection_is_refused_with_who_is_in_the_way(boss, projects):
    choose(boss, "archive", projects[:1])
    first = TaskRecord.objects.get()
    page = choose(boss, "archive", projects).content.decode()
    assert "was not launched: 1 selected object is locked by" in page
    assert f'<a href="/admin/powercrud_dashboard/taskrecord/{first.pk}/change/">Archive selected projects</a>' in page
    assert TaskRecord.objects.count() == OrmQ.objects.count() == 1


def test_or_runs_without_those(boss, projects):
    choose(boss, "archive", projects[:1])
    page = choose(boss, "archive_free_ones", projects).content.decode()
    assert "runs in the background for 2 objects" in page
    assert "1 locked object was skipped." in page
    assert TaskRecord.objects.latest("pk").affected_objects == ["project 1", "project 2"]
    page = choose(boss, "archive_free_ones", projects).content.decode()
    assert "was not launched: all selected objects are locked." in page
    assert TaskRecord.objects.count() == 2


def test_the_body_runs_with_the_real_admin_and_the_selected_rows(settings, boss, projects):
    settings.POWERCRUD_SETTINGS = {"ASYNC_ENABLED": False}
    choose(boss, "archive", projects[1:])
    record = TaskRecord.objects.get()
    assert record.status == "success"
    assert list(Project.objects.filter(archived=True)) == projects[1:]
    assert record.events.get(event="log").message == "Archived by boss."


def test_a_task_function_gets_keys_and_model(settings, boss, projects):
    settings.POWERCRUD_SETTINGS = {"ASYNC_ENABLED": False}
    choose(boss, "touch_projects", projects)
    record = TaskRecord.objects.get()
    assert (record.func, record.label) == ("tests.testapp.tasks.touch_projects", "Touch projects")
    assert record.result == {"model": "testapp.project", "touched": 3}


def test_an_action_that_is_not_allowed_can_not_be_forced(client_of, make_user, projects):
    choose(client_of(make_user("viewer", "view_project")), "archive", projects)
    assert not TaskRecord.objects.exists()
    assert not ActiveTask.objects.exists()


@pytest.mark.parametrize("change", ["deactivated", "no longer staff", "lost the permission", "deleted"])
def test_the_permission_is_checked_again_in_the_worker(make_user, projects, change):
    user = make_user("editor", "view_project", "change_project")
    arguments = {
        "site_name": "admin",
        "model": "testapp.project",
        "action_name": "archive",
        "pks": [project.pk for project in projects],
        "user_pk": user.pk,
    }
    if change == "deleted":
        user.delete()
    else:
        user.is_active = change != "deactivated"
        user.is_staff = change != "no longer staff"
        user.save()
        if change == "lost the permission":
            user.user_permissions.clear()
    with pytest.raises(PermissionDenied, match="since"):
        run_action(**arguments)
    assert not Project.objects.filter(archived=True).exists()


@pytest.mark.parametrize(
    "gone", [{"site_name": "elsewhere"}, {"model": "testapp.document"}, {"action_name": "delete_selected"}]
)
def test_what_a_deploy_has_removed_is_said(superuser, gone):
    arguments = {"site_name": "admin", "model": "testapp.project", "action_name": "archive", "user_pk": superuser.pk}
    with pytest.raises(LookupError, match="has no "):
        run_action(**{**arguments, **gone}, pks=[])


def test_a_wrong_policy_is_refused_at_once():
    with pytest.raises(ValueError, match="use 'abort' or 'skip'"):
        background_action(on_conflict="ignore")(run_action)
