"""Code in the pattern of PowerCRUD's guide, in a real cluster: it works after one import was changed."""

from __future__ import annotations

import json
from io import StringIO

import pytest
from django.core.management import call_command
from django.test import RequestFactory
from django_q.brokers import get_broker
from django_q.models import Schedule
from django_q.tasks import async_task

from powercrud_dashboard.async_context import get_current_task, register_descendant_conflicts, task_context
from powercrud_dashboard.async_manager import AsyncManager
from powercrud_dashboard.exceptions import TaskConflict
from powercrud_dashboard.models import ActiveTask, ConflictLock, TaskRecord
from tests.services import wait_until
from tests.testapp import guide, tasks
from tests.testapp.models import Project
from tests.workers import claimed_elsewhere, silence

pytestmark = [pytest.mark.cluster, pytest.mark.django_db(transaction=True)]

SOON = 60_000
NOTIFICATIONS = "tests.testapp.guide.NotificationsAsyncManager"


def all_are_rebuilt(projects: list[Project]) -> None:
    wait_until(lambda: TaskRecord.objects.completed().count() == len(projects), "the tasks end")
    assert {project.name for project in Project.objects.all()} == {"rebuilt with info"}
    assert not ConflictLock.objects.exists()
    assert not ActiveTask.objects.exists()


# The basic pattern and its launch sites


def test_an_admin_action_launches_them(cluster, make_projects, superuser):
    request = RequestFactory().post("/")
    request.user = superuser
    guide.rebuild_projects(None, request, Project.objects.filter(pk__in=[project.pk for project in make_projects(3)]))
    all_are_rebuilt(list(Project.objects.all()))
    assert set(TaskRecord.objects.values_list("user__username", flat=True)) == {"boss"}


def test_a_command_launches_them(cluster, make_projects):
    make_projects(2)
    call_command("rebuild_projects")
    all_are_rebuilt(list(Project.objects.all()))


def test_a_view_launches_one(cluster, make_projects, superuser):
    (project,) = make_projects(1)
    request = RequestFactory().post("/")
    request.user = superuser
    name = guide.start_rebuild(request, project.pk).content.decode()
    assert AsyncManager().get_task_status(name, wait=SOON) == "success"
    record = TaskRecord.objects.get(task_name=name)
    assert record.result == {"project": project.pk, "steps": 3}
    assert (record.message, record.affected_objects) == ("Step 3/3: write", [str(project)])


def test_the_rest_of_a_reservation_stays_reserved(cluster, make_projects, tmp_path):
    first, second = make_projects(2)
    manager = AsyncManager()
    assert manager.add_conflict_ids("custom-task", {"testapp.Project": {first.pk, second.pk}})
    name = manager.launch_async_task(
        tasks.wait_for_file, str(tmp_path / "go on"), conflict_ids={"testapp.Project": {first.pk}}
    )
    holders = dict(ConflictLock.objects.values_list("object_id", "active_task__task_name"))
    assert holders == {str(first.pk): name, str(second.pk): "custom-task"}
    with pytest.raises(TaskConflict):
        AsyncManager().launch_async_task(tasks.add, 1, conflict_ids={"testapp.Project": {second.pk}})
    (tmp_path / "go on").touch()
    assert manager.get_task_status(name, wait=SOON) == "success"
    assert manager.check_conflict(object_data={"testapp.Project": {first.pk, second.pk}}) == {second.pk}
    assert manager.remove_conflict_ids(task_name="custom-task") == 1


# Progress


def test_a_page_polls_until_its_286(cluster, boss, make_projects, tmp_path, until_started):
    path = tmp_path / "go on"
    name = AsyncManager().launch_async_task(tasks.wait_for_file, str(path))
    until_started(path)
    poll = lambda: boss.get("/powercrud/async/progress/", {"task_name": name})  # noqa: E731
    AsyncManager().update_progress(name, progress_data="Step 1/2: waiting")
    answer = poll()
    assert answer.status_code == 200
    found = answer.json()
    assert (found["task_name"], found["status"], found["progress"]) == (name, "in_progress", "Step 1/2: waiting")
    path.touch()
    wait_until(lambda: poll().status_code == 286, "polling stops")
    assert poll().json()["status"] == "success"


# Lifecycle hooks


@pytest.mark.parametrize("is_configured", [False, True])
def test_a_subclass_hears_of_its_tasks(cluster, settings, make_projects, is_configured):
    settings.POWERCRUD_SETTINGS = {"ASYNC_MANAGER_DEFAULT": {"manager_class": NOTIFICATIONS}} if is_configured else {}
    manager = AsyncManager.resolve_manager() if is_configured else guide.NotificationsAsyncManager()
    (project,) = make_projects(1)
    good = manager.launch_async_task(guide.rebuild_project, project.pk)
    wait_until(lambda: "completion" in " ".join(guide.heard(good)), "the completion hook is called")
    assert guide.heard(good) == [
        "create pending",
        # However short the task was, its last report is an event.
        "progress in_progress",
        "complete success",
        f"completion True {{'project': {project.pk}, 'steps': 3}}",
    ]
    bad = manager.launch_async_task(tasks.fail, "for a reason")
    wait_until(lambda: "completion" in " ".join(guide.heard(bad)), "the completion hook is called")
    assert guide.heard(bad) == ["create pending", "fail failed", "completion False for a reason"]
    # They are on the pages as well.
    assert TaskRecord.objects.get(task_name=good).status == "success"


# Cleanup


@pytest.mark.parametrize("way", ["command", "call", "schedule"])
def test_what_a_lost_worker_left_is_cleaned_up(cluster_later, make_projects, way):
    (project,) = make_projects(1)
    name = AsyncManager().launch_async_task(
        guide.rebuild_project, project.pk, conflict_ids={"testapp.Project": {project.pk}}
    )
    claimed_elsewhere(name)
    silence()
    if way == "command":
        out = StringIO()
        call_command("pcrud_cleanup_async", json=True, stdout=out)
        assert name in json.loads(out.getvalue())["cleaned"]
    elif way == "call":
        assert name in AsyncManager().cleanup_completed_tasks()["cleaned"]
    else:
        call_command("pcrud_schedule_cleanup", stdout=StringIO())
        # Its own message is gone; with it, the next delivery would run the task.
        get_broker().purge_queue()
        async_task(Schedule.objects.get().func)
        cluster_later()
        wait_until(lambda: guide.is_over(name), "the scheduled function has cleaned up")
    assert TaskRecord.objects.get(task_name=name).failure_reason == "worker_lost"
    assert not ConflictLock.objects.exists()


# The context


def test_code_of_its_own_may_enter_the_context_of_a_task(make_projects):
    first, second = make_projects(2)
    name = AsyncManager().launch_async_task(guide.rebuild_project, first.pk)
    with task_context(name, "powercrud_dashboard.async_manager.AsyncManager") as context:
        assert get_current_task() is context
        assert (context.task_name, context.manager_class_path) == (
            name,
            "powercrud_dashboard.async_manager.AsyncManager",
        )
        assert register_descendant_conflicts("testapp.Project", {second.pk})
        context.update_progress("Step 1/2: by hand")
    assert get_current_task() is None
    assert AsyncManager().check_conflict({"testapp.Project": {first.pk, second.pk}}) == {second.pk}
    assert AsyncManager().get_progress(name) == "Step 1/2: by hand"


def test_in_the_tasks_own_worker_it_is_the_context_that_is_there(cluster):
    name = AsyncManager().launch_async_task(tasks.enter_its_context)
    assert AsyncManager().get_task_status(name, wait=SOON) == "success"
    assert TaskRecord.objects.get(task_name=name).result is True
