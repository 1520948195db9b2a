"""The code in the pages about admin actions does what they say."""

from __future__ import annotations

import re
import sys
from types import ModuleType

import pytest
from django.conf import settings
from django.contrib import admin
from django.contrib.admin.sites import all_sites
from django.urls import include, path

from powercrud_dashboard.models import ActiveTask, ConflictLock, TaskRecord
from tests.testapp.models import Project

pytestmark = pytest.mark.django_db

ADDRESS = "/docs/testapp/project/"


def blocks_under(heading: str, page: str = "admin") -> list[str]:
    """Return the Python blocks of a section; "" is what stands above the first heading."""
    text = (settings.ROOT / f"docs/{page}.md").read_text()
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, re.M | re.S))
    sections[""] = text.partition("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", sections[heading], re.S)


def run(block: str, name: str = "docs_admin") -> ModuleType:
    module = ModuleType(name)
    exec(compile(block, name, "exec"), module.__dict__)
    return module


@pytest.fixture
def serve(settings, client_of, superuser):
    """Put the page's ``ProjectAdmin`` into a site, and return a client of it."""
    sites: list[admin.AdminSite] = []

    def serve(block: str):
        while sites:
            all_sites.discard(sites.pop())
        site = admin.AdminSite("docs")
        sites.append(site)
        site.register(Project, run(block).ProjectAdmin)
        settings.ROOT_URLCONF = (
            path("docs/", site.urls),
            path("tasks/", include("powercrud_dashboard.urls")),
            path("admin/", admin.site.urls),
        )
        return client_of(superuser)

    yield serve
    for site in sites:
        all_sites.discard(site)


@pytest.fixture
def projects(make_projects):
    return make_projects(3)


def choose(client, action: str, rows, **more) -> TaskRecord | None:
    client.post(ADDRESS, {"action": action, "_selected_action": [row.pk for row in rows], **more})
    return TaskRecord.objects.order_by("pk").last()


def test_before_there_is_no_task_and_after_there_is_one(serve, projects, at_once):
    before, after = blocks_under("")
    assert choose(serve(before), "archive", projects[:2]) is None
    assert Project.objects.filter(archived=True).count() == 2
    Project.objects.update(archived=False)
    record = choose(serve(after), "archive", projects[:2])
    assert (record.status, record.affected_count, record.label) == ("success", 2, "Archive selected projects")
    assert record.events.get(event="log").message == "Archived."
    assert Project.objects.filter(archived=True).count() == 2


def test_the_second_differs_by_the_import_the_mixin_and_one_line():
    before, after = blocks_under("")
    changed = [line.strip() for line in after.splitlines() if line not in before.splitlines()]
    assert [line.partition("(")[0] for line in changed] == [
        "from powercrud_dashboard.admin import BackgroundActionsMixin, background_action",
        "class ProjectAdmin",
        "@background_action",
    ]


def test_the_readmes_action(serve, projects, at_once):
    [block, _task] = re.findall(r"```python\n(.*?)```", (settings.ROOT / "README.md").read_text(), re.S)
    # The model is registered in another site already.
    block = block.replace("@admin.register(Project)\n", "").replace("myapp.models", "tests.testapp.models")
    client = serve(block)
    record = choose(client, "archive", projects[:2])
    assert (record.status, record.done_count, record.label) == ("success", 2, "Archive selected projects")
    assert Project.objects.filter(archived=True).count() == 2
    assert client.get(ADDRESS).status_code == 200


def test_one_object_at_a_time(serve, projects, at_once):
    [block] = blocks_under("One object at a time")
    Project.objects.update(archived=True)
    Project.objects.filter(pk=projects[1].pk).update(name="")
    record = choose(serve(block), "publish", projects)
    assert (record.status, record.done_count, record.failed_count) == ("success", 2, 1)
    assert record.objects_worked_on.get(outcome="failed").error == "ValueError: It has no name."


def test_parameters_and_confirmation(serve, projects, at_once):
    [block] = blocks_under("Parameters and confirmation", "forms")
    client = serve(block)
    assert choose(client, "rename", projects, **{"pcrud-confirmed": "1", "pcrud-prefix": ""}) is None
    choose(client, "rename", projects[:1], **{"pcrud-confirmed": "1", "pcrud-prefix": "old"})
    assert Project.objects.filter(name__startswith="old ").count() == 1
    assert choose(client, "purge", projects).label == "Rename"
    choose(client, "purge", projects, **{"pcrud-confirmed": "1"})
    assert not Project.objects.exists()


def test_an_action_with_a_page_of_its_own(serve, projects, at_once):
    [block] = blocks_under("Actions with a page of their own", "forms")
    record = choose(serve(block), "rename_all", projects[:2], apply="1", name="all alike")
    assert (record.status, record.affected_count) == ("success", 2)
    assert Project.objects.filter(name="all alike").count() == 2


def test_delete_selected(serve, projects, at_once):
    [block] = blocks_under("Delete selected", "forms")
    client = serve(block)
    assert choose(client, "delete_selected", projects[:2]) is None
    assert choose(client, "delete_selected", projects[:2], post="yes").status == "success"
    assert list(Project.objects.all()) == [projects[2]]


def test_large_selections(serve, make_projects):
    [block] = blocks_under("Large selections")
    client, projects = serve(block), make_projects(3)
    assert choose(client, "archive", projects[:2]).status == "success"
    assert choose(client, "touch", projects[:1]).status == "pending"
    choose(client, "archive", make_projects(500))
    assert TaskRecord.objects.exclude(group="").count() == 0
    choose(client, "archive", make_projects(501))
    assert sorted(TaskRecord.objects.exclude(group="").values_list("affected_count", flat=True)) == [1, 500]


def test_retries(serve, projects):
    [block] = blocks_under("Retries of admin actions", "retries")
    client = serve(block)
    choose(client, "archive", projects[:1])
    choose(client, "publish", projects[1:])
    policies = ActiveTask.objects.order_by("pk").values_list("policy", flat=True)
    assert [(policy["max_retries"], policy["backoff"], policy["retry_on"]) for policy in policies] == [
        (3, 30, []),
        (5, 60, ["builtins.ConnectionError"]),
    ]


def test_task_functions(serve, projects, at_once, monkeypatch):
    admin_code, task_code = blocks_under("Task functions as admin actions", "task-functions")
    monkeypatch.setitem(sys.modules, "myapp", ModuleType("myapp"))
    monkeypatch.setitem(sys.modules, "myapp.tasks", run(task_code, "myapp.tasks"))
    client = serve(admin_code)
    assert choose(client, "rebuild_projects", projects).result == {"rebuilt": 3}
    record = choose(client, "audit", projects[:1])
    assert record.result == {"task": record.task_name, "checked": 1}


def test_actions_of_other_packages(serve, projects, at_once):
    [block] = blocks_under("Actions of other packages")
    record = choose(serve(block), "long_one", projects)
    assert (record.label, record.events.get(event="log").message) == ("A long one", "3 rows.")


def test_locks_in_the_list_and_in_the_form(serve, projects, manager):
    [block] = blocks_under("Locks in the list and in the form", "locks")
    client = serve(block)
    manager.launch_async_task("tests.testapp.tasks.add", 1, conflict_ids={"testapp.Project": projects[:1]})
    assert client.get(ADDRESS).content.decode().count("Locked by") == 2
    assert client.post(f"{ADDRESS}{projects[0].pk}/change/", {"name": "changed"}).status_code == 200
    assert client.post(f"{ADDRESS}{projects[1].pk}/change/", {"name": "changed"}).status_code == 302
    assert list(Project.objects.filter(name="changed")) == [projects[1]]
    assert ConflictLock.objects.count() == 1
