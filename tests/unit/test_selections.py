"""A selection is a set, and what is locked of it is counted as a whole."""

from __future__ import annotations

import pytest
from django.contrib import admin
from django.contrib.auth.models import Group, User
from django.db import connection
from django.urls import path

from powercrud_dashboard.admin import BackgroundAction, BackgroundActionsMixin, background_action
from powercrud_dashboard.admin import selection as selected_rows
from powercrud_dashboard.admin.clicks import launcher
from powercrud_dashboard.admin.running import run_action
from powercrud_dashboard.dashboard_manager import DashboardAsyncManager
from powercrud_dashboard.models import ConflictLock, TaskRecord
from tests.clicks import CHANGELIST, TASKS, choose, last, said
from tests.testapp import tasks
from tests.testapp.models import Project
from tests.workers import deliver, meanwhile

pytestmark = pytest.mark.django_db


@pytest.fixture
def projects(make_projects) -> list[Project]:
    return make_projects(5)


@pytest.fixture
def few_keys(monkeypatch):
    """Let selections of more than three rows count as large."""
    monkeypatch.setattr(selected_rows, "MAX_KEYS", 3)


# A set


@pytest.mark.parametrize("action", ["peek", "visit_in_chunks", "touch_projects"])
def test_the_same_click_in_another_order_launches_once(boss, projects, action):
    choose(boss, action, projects, f"{CHANGELIST}?o=1")
    launched = TaskRecord.objects.count()
    answer = choose(boss, action, projects, f"{CHANGELIST}?o=-1")
    assert "is already queued or running for this selection." in said(answer)[0]
    assert TaskRecord.objects.count() == launched


def test_an_object_that_is_named_twice_is_processed_once(projects, superuser, manager, record_of):
    keys = [str(projects[1].pk), str(projects[0].pk), str(projects[1].pk)]
    click = {"site_name": "admin", "model": "testapp.project", "action_name": "visit", "user_pk": superuser.pk}
    name = manager.launch_async_task(run_action, by_object=True, object_count=2, sync=True, pks=keys, **click)
    assert record_of(name).done_count == 2


class UserAdmin(BackgroundActionsMixin, admin.ModelAdmin):
    """A changelist that has a row for each group of a user."""

    actions = ["greet", "greet_in_chunks"]
    greeted: list[str] = []

    def get_queryset(self, request):
        return super().get_queryset(request).filter(groups__name__startswith="group")

    @background_action(permissions=["change"], per_object=True, conflict=False)
    def greet(self, request, user):
        self.greeted.append(user.username)

    @background_action(permissions=["change"], per_object=True, chunk_size=2)
    def greet_in_chunks(self, request, user):
        self.greeted.append(user.username)


site = admin.AdminSite(name="users")
site.register(User, UserAdmin)
urlpatterns = [path("admin/", admin.site.urls), path("users/", site.urls)]


@pytest.fixture
def users() -> list[User]:
    groups = [Group.objects.create(name=f"group {number}") for number in range(3)]
    users = [User.objects.create(username=f"user {number}") for number in range(4)]
    for user in users:
        user.groups.set(groups)
    UserAdmin.greeted.clear()
    return users


@pytest.mark.urls(__name__)
@pytest.mark.parametrize("action", ["greet", "greet_in_chunks"])
@pytest.mark.parametrize("size", [3, 100], ids=["by its query", "by its keys"])
def test_rows_that_a_join_repeats_are_one_object_each(boss, users, at_once, monkeypatch, action, size):
    monkeypatch.setattr(selected_rows, "MAX_KEYS", size)
    answer = choose(boss, action, users[:1], "/users/auth/user/", select_across="1")
    assert UserAdmin.greeted == [user.username for user in users]
    assert "has finished for 4 objects." in said(answer)[0]
    assert sum(TaskRecord.objects.values_list("affected_count", flat=True)) == 4


# Refusals


def test_a_refused_group_counts_all_locked_objects(boss, projects, manager):
    manager.add_conflict_ids("nightly", {"testapp.Project": [projects[0], projects[3], projects[4]]})
    answer = choose(boss, "visit_in_chunks", projects)
    assert "was not launched: 3 selected objects are locked by nightly" in said(answer)[0]


def test_a_worker_that_finds_locked_rows_counts_all_of_them(boss, projects, at_once, few_keys, manager, monkeypatch):
    monkeypatch.setattr("powercrud_dashboard.admin.running.READ_CHUNK_SIZE", 2)
    manager.add_conflict_ids("nightly", {"testapp.Project": [projects[1], projects[2], projects[4]]})
    answer = choose(boss, "archive", projects[:1], select_across="1")
    assert "was not launched: 3 selected objects are locked by nightly" in said(answer)[0]
    assert f"Project {projects[1].pk} (held by nightly) and 2 more" in last().error


def test_a_refused_lock_of_the_model_does_not_count_selected_objects(boss, projects, manager):
    manager.add_conflict_ids("nightly", {"testapp.Project": projects[:2]})
    answer = choose(boss, "audit", projects[4:])
    assert "it locks all objects of the model, and some are locked by nightly" in said(answer)[0]


def test_objects_that_are_locked_just_before_the_launch_are_skipped_as_well(boss, projects, manager):
    def lock_one():
        assert manager.add_conflict_ids("nightly", {"testapp.Project": projects[:1]})

    # The click leaves out what is locked, before it launches the task for the rest.
    with meanwhile(lock_one, after=f"SELECT {connection.ops.quote_name(ConflictLock._meta.db_table)}"):
        answer = choose(boss, "archive_free_ones", projects)
    assert "runs in the background for 4 objects." in said(answer)[0]
    assert "1 locked object was skipped." in said(answer)[1]
    assert (last().affected_count, last().skipped_count) == (4, 1)


def test_skipped_objects_are_on_the_record_of_a_task_that_failed_in_the_request(
    boss, projects, manager, at_once, with_actions
):
    @background_action(permissions=["change"], on_conflict="skip")
    def fail(modeladmin, request, queryset):
        raise LookupError("no")

    with_actions(fail)
    manager.add_conflict_ids("nightly", {"testapp.Project": projects[:2]})
    choose(boss, "fail", projects)
    assert (last().status, last().skipped_count) == ("failed", 2)


def test_the_confirmation_page_says_that_it_has_not_looked_at_all_locks(boss, projects, few_keys, manager):
    manager.add_conflict_ids("nightly", {"testapp.Project": range(1_000_000, 1_001_000)})
    page = choose(boss, "archive_after_all", projects[:1], select_across="1").content.decode()
    assert "Some of the selected objects may be locked." in page


def test_links_lead_only_to_tasks_that_one_may_see(make_user, client_of, projects):
    one, two = (client_of(make_user(name, "change_project", "view_project")) for name in ("one", "two"))
    choose(one, "archive", projects)
    for action in ("archive", "visit_in_chunks"):
        (message,) = said(choose(two, action, projects))
        assert "href" not in message
    assert f"{TASKS}{TaskRecord.objects.get().pk}/change/" in said(choose(one, "archive", projects))[0]


# Task functions


@pytest.mark.django_db(transaction=True)
def test_the_permission_for_a_task_function_is_checked_again_in_the_worker(make_user, client_of, projects):
    user = make_user("temp", "change_project", "view_project")
    choose(client_of(user), "touch_projects", projects)
    user.user_permissions.clear()
    with pytest.raises(Exception, match="has lost the permission"):
        deliver()
    assert last().status == "failed"
    assert not Project.objects.filter(archived=True).exists()


def test_a_task_function_gets_the_objects_in_order_and_the_name_of_its_task(boss, projects, at_once, with_actions):
    with_actions(launcher(BackgroundAction(name="tell", description="Tell", task=f"{__name__}.tell")))
    choose(boss, "tell", reversed(projects))
    record = last()
    assert record.result == [[project.pk for project in projects], "testapp.project", record.task_name]
    assert record.func == f"{__name__}.tell"
    assert record.manager_class == f"{DashboardAsyncManager.__module__}.DashboardAsyncManager"


def tell(pks, model, task_key, manager_class):
    assert manager_class.endswith("DashboardAsyncManager")
    return [pks, model, task_key]


def test_a_task_function_that_can_not_be_called_is_told_at_the_click(boss, projects, with_actions):
    function = f"{tasks.__name__}.read_file"
    with_actions(launcher(BackgroundAction(name="tell", description="Tell", task=function)))
    (message,) = said(choose(boss, "tell", projects))
    assert "“Tell” failed: tests.testapp.tasks.read_file(): missing a required argument: 'path'" in message
    assert not TaskRecord.objects.exists()
