"""Background actions in an admin site of one's own, and on rows of another database."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from django.contrib.admin.sites import AdminSite, all_sites
from django.contrib.auth.models import Group, User
from django.core import mail
from django.core.management import call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext, override_script_prefix
from django.urls import include, path

from powercrud_dashboard.admin import TaskRecordAdmin
from powercrud_dashboard.admin.pages import dashboard_url
from powercrud_dashboard.async_context import get_current_task
from powercrud_dashboard.async_manager import AsyncManager
from powercrud_dashboard.engine import mails
from powercrud_dashboard.exceptions import TaskConflict
from powercrud_dashboard.models import ConflictLock, TaskRecord
from tests.backoffice import BackofficeProjectAdmin
from tests.testapp.admin import ODD
from tests.testapp.models import Project, Shelf
from tests.workers import run_queue

BACKOFFICE = "/backoffice/testapp/project/"
SHELVES = "/admin/testapp/shelf/"


def choose(client, action: str, pks, address: str, **more):
    return client.post(address, {"action": action, "_selected_action": list(pks), **more}, follow=True)


@pytest.mark.django_db
def test_an_action_runs_with_the_admin_of_the_site_that_it_was_clicked_in(boss, make_projects, at_once):
    projects = make_projects(3)
    Project.objects.filter(pk=projects[0].pk).update(name="hidden treasure")
    # The hidden one is chosen by a forged request.
    choose(boss, "archive", [project.pk for project in projects], BACKOFFICE)
    assert TaskRecord.objects.get().result == {"site": "backoffice", "archived": 2}


@pytest.mark.django_db
def test_its_links_lead_to_where_the_pages_are(boss, make_projects):
    response = choose(boss, "archive", [make_projects(1)[0].pk], BACKOFFICE)
    record = TaskRecord.objects.get()
    assert response.request["PATH_INFO"] == BACKOFFICE
    # This site does not have the pages itself; they are also mounted outside of the admin.
    assert f"/tasks/{record.pk}/change/" in response.content.decode()
    assert dashboard_url("admin", "change", 1) == "/admin/powercrud_dashboard/taskrecord/1/change/"


class OpenSite(AdminSite):
    """Lets in who is in a group, staff or not."""

    def has_permission(self, request):
        return request.user.groups.filter(name="office").exists()


@pytest.fixture
def open_site() -> Iterator[OpenSite]:
    site = OpenSite("open")
    site.register(Project, BackofficeProjectAdmin)
    yield site
    all_sites.discard(site)


@pytest.fixture
def clerk(make_user, client_of):
    """Somebody without is_staff whom the open site lets in."""
    user = make_user("clerk", "change_project", "view_project", is_staff=False)
    user.groups.add(Group.objects.create(name="office"))
    return client_of(user)


def test_one_line_registers_the_pages_in_a_site(settings, open_site, clerk, boss, make_projects):
    open_site.register(TaskRecord, TaskRecordAdmin)
    settings.ROOT_URLCONF = (path("open/", open_site.urls),)
    answer = choose(clerk, "archive", [make_projects(1)[0].pk], "/open/testapp/project/")
    assert answer.status_code == 200
    page = f"/open/powercrud_dashboard/taskrecord/{TaskRecord.objects.get().pk}/change/"
    assert page in answer.content.decode()
    for address in (page, "/open/", "/open/powercrud_dashboard/taskrecord/", "/open/testapp/project/"):
        assert clerk.get(address).status_code == 200
    # The site says who comes in.
    assert boss.get(page).status_code == 302


@pytest.mark.parametrize("prefix", ["/", "/sub/"])
def test_the_pages_outside_of_the_admin_take_the_site_that_there_is(settings, open_site, clerk, boss, manager, prefix):
    settings.ROOT_URLCONF = (path("open/", open_site.urls), path("tasks/", include("powercrud_dashboard.urls")))
    settings.LOGIN_URL = "/open/login/"
    name = manager.launch_async_task("tests.testapp.tasks.add", 1, user=User.objects.get(username="clerk"))
    pk = TaskRecord.objects.get(task_name=name).pk
    with override_script_prefix(prefix):
        for address in ("/tasks/", f"/tasks/{pk}/change/", "/tasks/failures/"):
            assert clerk.get(address).status_code == 200
            assert boss.get(address).status_code == 403


@pytest.mark.django_db
def test_a_project_without_the_pages_has_no_links_to_them(settings):
    settings.ROOT_URLCONF = ()
    assert dashboard_url("admin", "changelist") == ""


def test_a_worker_finds_a_site_that_only_the_urls_import():
    code = """
import django; django.setup()
from powercrud_dashboard.admin.actions import find_model_admin
print(type(find_model_admin("backoffice", "testapp.project")).__name__)
"""
    # In a process of its own: this one has imported the URLs already.
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert found.stdout.strip() == "BackofficeProjectAdmin", found.stderr


def test_loading_the_package_does_not_resolve_the_relations_of_models():
    """Some models may not be loaded yet: a relation that is resolved too early stays a text."""
    code = """
import django; django.setup()
import powercrud_dashboard.urls
from django.contrib.auth.models import User
print("_relation_tree" in vars(User._meta))
"""
    # In a process of its own: this one has asked for them already.
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert found.stdout.strip() == "False", found.stderr


@pytest.mark.django_db(databases=["default", "archive"])
def test_rows_of_another_database(boss, at_once):
    shelves = [Shelf.objects.create(label=label) for label in ("a", ODD, "c")]
    choose(boss, "fill", [shelf.pk for shelf in shelves], SHELVES)
    record = TaskRecord.objects.get()
    assert (record.done_count, record.failed_count) == (2, 1)
    # Each object is all or nothing in its own database.
    assert list(Shelf.objects.order_by("pk").values_list("is_full", flat=True)) == [True, False, True]
    assert not ConflictLock.objects.exists()


@pytest.mark.django_db(databases=["default", "archive"])
def test_they_are_locked_and_marked_as_any(boss):
    shelf, other = (Shelf.objects.create(label=label) for label in ("a", "b"))
    choose(boss, "fill", [shelf.pk], SHELVES)
    page = boss.get(SHELVES).content.decode()
    assert page.count("Locked by") == 2
    refused = boss.post(f"{SHELVES}{shelf.pk}/change/", {"label": "changed"})
    assert refused.status_code == 200
    boss.post(f"{SHELVES}{other.pk}/change/", {"label": "changed"})
    assert list(Shelf.objects.order_by("pk").values_list("label", flat=True)) == ["a", "changed"]
    boss.post(SHELVES, {"action": "delete_selected", "_selected_action": [shelf.pk, other.pk], "post": "yes"})
    assert Shelf.objects.count() == 2
    boss.post(SHELVES, {"action": "delete_selected", "_selected_action": [other.pk], "post": "yes"})
    assert list(Shelf.objects.all()) == [shelf]


@pytest.mark.django_db(databases=["default", "archive"])
def test_a_replica_that_lags_behind_decides_nothing(settings, boss, manager):
    settings.DATABASE_ROUTERS = ["tests.testapp.routers.ReplicaRouter"]
    ids = {"testapp.Project": {1}}
    name = manager.launch_async_task("tests.testapp.tasks.add", 1, conflict_ids=ids)
    assert manager.check_conflict(ids) == {1}
    with pytest.raises(TaskConflict):
        manager.launch_async_task("tests.testapp.tasks.add", 1, conflict_ids=ids)
    manager.update_progress(name, "half way")
    assert manager.get_progress(name) == "half way"
    assert manager.cancel_task(name)
    assert not manager.check_conflict(ids)
    manager.launch_async_task("tests.testapp.tasks.add", 1, conflict_ids=ids, sync=True)
    assert list(TaskRecord.objects.values_list("status", flat=True)) == ["success", "cancelled"]
    page = boss.get("/admin/powercrud_dashboard/taskrecord/").content.decode()
    assert page.count("data-pcrud-row") == 2


def be_cancelled_by(pk: int) -> None:
    task = get_current_task()
    AsyncManager().cancel_task(task.task_name, user=User.objects.get(pk=pk))
    task.update_progress("looks whether it is")


@pytest.mark.django_db(transaction=True)
def test_users_may_be_in_a_database_of_their_own(boss, superuser, manager, settings, make_user, record_of):
    """No query joins them to the tables of this package."""
    settings.POWERCRUD_SETTINGS = {
        **settings.POWERCRUD_SETTINGS,
        "DASHBOARD_NOTICES": True,
        "DASHBOARD_MAIL_AFTER": 0,
        "DASHBOARD_BASE_URL": "https://example.com",
    }
    clerk = make_user("clerk", email="clerk@example.com")
    locked = {"testapp.project": [1]}
    queued = manager.launch_async_task("math.floor", 1.5, user=clerk, conflict_ids=locked)
    waiting = manager.launch_async_task("math.floor", 1.5, user=clerk)
    record = record_of(queued)
    with CaptureQueriesContext(connection) as queries:
        for page in ("", "?q=clerk", "locks/", "locks/?q=clerk", "cluster/", "failures/", f"{record.pk}/change/"):
            assert boss.get(f"/admin/powercrud_dashboard/taskrecord/{page}").status_code == 200
        queue = boss.get(dashboard_url("admin", "queue"), {"queue": record.cluster or "pcrud-tests"})
        assert queue.status_code == 200
        call_command("pcrud", "locks", "--json")
        assert manager.cancel_task(waiting, user=superuser)
        with pytest.raises(BaseException, match="was cancelled"):
            manager.launch_async_task(be_cancelled_by, superuser.pk, user=clerk, sync=True, task_key="running")
        run_queue()
        mails.send_due()
        assert [message.to for message in mail.outbox] == [["clerk@example.com"]]
    assert record_of("running").status == "cancelled"
    assert record_of("running").events.get(event="cancel").actor == superuser
    joined = [query["sql"] for query in queries if "JOIN" in query["sql"] and "auth_user" in query["sql"]]
    # Django's own, of the groups and permissions of a user, do not touch a table of this package.
    assert [sql for sql in joined if "powercrud_dashboard_" in sql] == []
