"""The code in the pages that have no test of their own does what they say."""

from __future__ import annotations

import json
import re
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import ModuleType
from typing import Any

import pytest
from django.conf import settings
from django.core.checks import run_checks

from powercrud_dashboard.async_manager import AsyncManager
from powercrud_dashboard.models import ConflictLock, TaskRecord
from powercrud_dashboard.q2 import queue
from tests.services import serving
from tests.testapp.models import Project
from tests.workers import run_queue

pytestmark = pytest.mark.django_db(transaction=True)


def blocks_of(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (settings.ROOT / "docs" / f"{page}.md").read_text(), re.S)


@pytest.fixture
def project(monkeypatch):
    """Put the blocks of a page into a module of the reader's project."""

    def make(name: str, *blocks: str) -> ModuleType:
        module = ModuleType(name)
        parent, _, _last = name.rpartition(".")
        monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
        monkeypatch.setitem(sys.modules, name, module)
        for block in blocks:
            exec(compile(block, name, "exec"), module.__dict__)
        return module

    return make


@pytest.fixture
def posted():
    """A server that remembers what is posted to it, and its address."""
    found: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    with serving(server):
        yield f"http://127.0.0.1:{server.server_port}/", found


def test_the_readmes_task_runs(project, make_projects, superuser):
    _action, task = re.findall(r"```python\n(.*?)```", (settings.ROOT / "README.md").read_text(), re.S)
    [renamed, other] = make_projects(2)
    code = project("myapp.tasks", task.replace("myapp", "tests.testapp", 1).replace("myapp.Project", "testapp.Project"))
    sys.modules["myapp"].tasks = code
    name = code.launch([renamed.pk], superuser)
    assert ConflictLock.objects.get().object_id == str(renamed.pk)
    run_queue()
    assert TaskRecord.objects.get(task_name=name).status == "success"
    assert Project.objects.get(pk=renamed.pk).name == f"old {renamed.name}"
    assert Project.objects.get(pk=other.pk).name == other.name


def test_a_webhook_is_posted_by_a_task(project, settings, posted):
    code, setting = blocks_of("webhooks")
    url, found = posted
    module = project("myapp.webhooks", code)
    module.URL = url
    settings.POWERCRUD_SETTINGS = project("mysite.settings", setting).POWERCRUD_SETTINGS
    manager = AsyncManager.resolve_manager()
    assert type(manager) is module.WebhookManager
    name = manager.launch_async_task("tests.testapp.tasks.add", 1)
    run_queue()
    assert found == [{"task": name, "success": True}]
    assert list(TaskRecord.objects.order_by("pk").values_list("label", "status")) == [
        ("tests.testapp.tasks.add", "success"),
        ("Webhook", "success"),
    ]
    assert not TaskRecord.objects.unfinished().exists()


def test_the_group_of_operators_has_its_permissions(project):
    [code] = blocks_of("permissions")
    operators = project("myapp.groups", code).operators
    assert operators.permissions.count() == 6


def test_a_project_of_several_clusters_passes_the_checks(project, settings):
    clusters, launch = blocks_of("clusters")
    settings.Q_CLUSTER = project("mysite.settings", clusters).Q_CLUSTER
    assert queue.cluster_settings()["reports"]["timeout"] == 7200
    assert not [message for message in run_checks() if message.id == "powercrud_dashboard.W003"]
    project("myapp.tasks", "def yearly_report(year): ...")
    project(
        "myapp.launch",
        f"from powercrud_dashboard.async_manager import AsyncManager\nmanager = AsyncManager()\n{launch}",
    )
    assert TaskRecord.objects.get().cluster == "reports"


def test_code_that_was_written_for_django_q2(project):
    [code] = blocks_of("from-django-q2")
    project("myapp.tasks", "def rebuild(pk): ...")
    rebuild_all = project("myapp.launch", code).rebuild_all
    sys.modules["myapp"].tasks = sys.modules["myapp.tasks"]
    names = rebuild_all([1, 2])
    assert len(names) == 2
    # It has the lock.
    assert rebuild_all([2]) == []
    assert set(TaskRecord.objects.values_list("task_name", flat=True)) == set(names)
    assert set(TaskRecord.objects.values_list("group", "status")) == {("nightly", "pending")}


def test_code_that_was_written_for_celery(project, capsys, superuser):
    function, launch = blocks_of("from-celery")
    tasks = project("myapp.tasks", function)
    launch_reminders = project("myapp.launch", launch).launch_reminders
    sys.modules["myapp"].tasks = tasks
    name = launch_reminders([1, 2], superuser)
    record = TaskRecord.objects.get(task_name=name)
    assert (record.label, record.user) == ("Send reminders", superuser)
    tasks.send_reminders([3])
    assert capsys.readouterr().out == "reminder for 3\n"


def test_progress_of_a_loop_and_by_hand(project):
    [code] = blocks_of("progress")
    project("myapp.tasks", code)
    AsyncManager().launch_async_task("myapp.tasks.rebuild", [1, 2, 3], sync=True)
    record = TaskRecord.objects.get()
    assert (record.message, record.progress_current, record.progress_total) == ("Step 2/2: writing the index", 2, 2)


def test_a_list_of_a_persons_own_tasks(project, rf, make_user, superuser, monkeypatch):
    staff = make_user("staff")
    code = blocks_of("own-pages")[1]
    view = project("myapp.views", code)
    shown: list[Any] = []
    monkeypatch.setattr(view, "render", lambda request, template, context: shown.append(list(context["records"])))
    for user in (staff, superuser):
        AsyncManager().launch_async_task("tests.testapp.tasks.add", 1, user=user, label=user.username)
    request = rf.get("/")
    request.user = staff
    view.my_tasks(request)
    assert [record.label for record in shown[0]] == [staff.username]


def test_the_tutorials_settings_are_right(project):
    """The rest of the tutorial is followed by tests/packaging."""
    models, _admin, code, *_admins = blocks_of("tutorial")
    found = project("mysite.settings", f"INSTALLED_APPS = []\nDATABASES = {{'default': {{}}}}\n{code}")
    assert found.Q_CLUSTER["retry"] > found.Q_CLUSTER["timeout"]
    assert "class Invoice" in models
