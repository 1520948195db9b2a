"""The page of tasks that belong together, and what is done to all of them at once."""

from __future__ import annotations

import pytest
from django.contrib.messages import get_messages

from powercrud_dashboard.async_context import get_current_task
from powercrud_dashboard.dashboard.selection import MAX_SELECTED
from powercrud_dashboard.dashboard_manager import DashboardAsyncManager
from powercrud_dashboard.models import ActiveTask, TaskRecord, TaskStatus
from powercrud_dashboard.models.changes import RecordChange
from tests.clicks import said
from tests.testapp import tasks
from tests.workers import claimed_elsewhere

pytestmark = pytest.mark.django_db

GROUP = "/admin/powercrud_dashboard/taskrecord/groups/nightly/"


@pytest.fixture
def group(manager, superuser) -> dict[str, str]:
    """Four tasks, of two objects each, of which one has ended well, one has failed, one runs and one waits."""
    options = {"group": "nightly", "user": superuser}
    with pytest.raises(ValueError, match="it broke"):
        manager.launch_async_task(
            tasks.fail, task_key="failed", affected_objects=["a", "b"], sync=True, **options, label="Nightly"
        )
    manager.launch_async_task(tasks.add, 1, task_key="done", affected_objects=["c", "d"], sync=True, **options)
    manager.launch_async_task(tasks.add, 1, task_key="running", affected_objects=["e", "f"], **options)
    claimed_elsewhere("running", host="w", pid=1)
    TaskRecord.objects.change("running", RecordChange.started(attempt=1))
    manager.launch_async_task(
        tasks.add, 1, task_key="queued", affected_objects=["g", "h"], conflict_ids={"testapp.Project": {1}}, **options
    )
    return {name: name for name in ("failed", "done", "running", "queued")}


def test_the_group_is_shown_as_one(boss, group, manager):
    manager.update_progress("running", "Step 1/2: half")
    shown = boss.get(GROUP).context["group"]
    # Nobody knows what the failed task has done with its two.
    assert (shown.object_count, shown.processed_object_count, shown.percent) == (8, 3, 37)
    page = boss.get(GROUP).content.decode()
    assert "Group: Nightly" in page
    assert "3 of 8 objects" in page
    assert "hx-trigger" in page


def test_objects_that_were_not_reached_are_not_counted_as_processed(boss, group):
    TaskRecord.objects.filter(task_name="failed").update(by_object=True, done_count=1)
    assert boss.get(GROUP).context["group"].processed_object_count == 3
    TaskRecord.objects.filter(task_name="running").update(status=TaskStatus.CANCELLED, by_object=True, skipped_count=1)
    assert boss.get(GROUP).context["group"].processed_object_count == 4


def test_only_its_own_tasks_are_in_it(boss, group, manager):
    manager.launch_async_task(tasks.add, 1, group="other")
    assert len(boss.get(GROUP).context["tasks"]) == 4
    assert boss.get(GROUP.replace("nightly", "unheard-of")).status_code == 404
    assert boss.get(GROUP.replace("nightly", "%00")).status_code == 404
    assert boss.post(f"{GROUP.replace('nightly', '%00')}cancel/").status_code == 404


def test_all_that_have_not_ended_are_cancelled(boss, group, superuser, record_of):
    response = boss.post(f"{GROUP}cancel/")
    assert response.url == GROUP
    assert said(response) == ["2 tasks are being cancelled."]
    assert record_of("queued").status == TaskStatus.CANCELLED
    # The one that runs is asked to stop.
    assert ActiveTask.objects.get(task_name="running").cancel_requested_at
    assert record_of("queued").events.get(event="cancel").actor == superuser
    assert record_of("done").status == TaskStatus.SUCCESS


def test_a_warning_tells_that_there_is_nothing_to_cancel(boss, group, manager):
    manager.remove_active_task("running")
    manager.cancel_task("queued")
    (message,) = get_messages(boss.post(f"{GROUP}cancel/").wsgi_request)
    assert (message.level_tag, message.message) == (
        "warning",
        "No tasks were cancelled: none of them is queued or running.",
    )


def test_all_that_failed_or_were_cancelled_run_again_once(boss, group, manager, superuser):
    manager.cancel_task("queued")
    assert said(boss.post(f"{GROUP}retry/")) == ["2 tasks were queued again."]
    again = TaskRecord.objects.filter(group="nightly").exclude(retry_of=None)
    assert {record.retry_of.task_name for record in again} == {"failed", "queued"}
    assert {record.user for record in again} == {superuser}
    # The retries count in place of what they are retries of.
    assert boss.get(GROUP).context["group"].object_count == 8
    assert said(boss.post(f"{GROUP}retry/")) == ["There are no failed or cancelled tasks to retry."]


def test_what_can_not_be_retried_is_told(boss, group, manager):
    manager.cancel_task("queued")
    manager.add_conflict_ids("somebody", {"testapp.Project": {1}})
    done, refused = said(boss.post(f"{GROUP}retry/"))
    assert done == "1 task was queued again."
    assert refused.startswith("1 task was not changed: tests.testapp.tasks.add (")
    assert "somebody" in refused


class BlockingManager(DashboardAsyncManager):
    """A manager whose tasks can't be cancelled or retried."""

    def cancel_task(self, task_name, user=None):
        raise RuntimeError("not this one")

    retry_task = cancel_task


@pytest.mark.parametrize("action", ["cancel", "retry"])
def test_one_task_that_fails_to_change_stops_no_other(boss, group, manager, action):
    if action == "retry":
        manager.cancel_task("queued")
    first = TaskRecord.objects.get(task_name="failed" if action == "retry" else "queued")
    last = manager.launch_async_task(tasks.add, 1, group="nightly")
    if action == "retry":
        manager.cancel_task(last)
    TaskRecord.objects.filter(pk=first.pk).update(manager_class=f"{__name__}.BlockingManager")
    done, refused = said(boss.post(f"{GROUP}{action}/"))
    assert done.startswith("2 tasks ")
    assert refused == f"1 task was not changed: {first} (RuntimeError: not this one)"


@pytest.mark.parametrize(("action", "status"), [("cancel", TaskStatus.PENDING), ("retry", TaskStatus.FAILED)])
def test_it_is_told_that_more_are_left_than_are_changed_at_once(boss, action, status):
    numbers = range(MAX_SELECTED + 1)
    TaskRecord.objects.bulk_create(TaskRecord(task_name=str(n), group="nightly", status=status) for n in numbers)
    assert said(boss.post(f"{GROUP}{action}/"))[0] == (
        "1 task is left, as at most 1000 are changed at once. Repeat the action."
    )


def test_what_is_offered_is_what_there_is_to_do(boss, group, client_of, make_user, manager):
    assert [label for label, __ in boss.get(GROUP).context["actions"]] == [
        "Cancel unfinished tasks",
        "Retry failed and cancelled tasks",
    ]
    viewer = client_of(make_user("viewer", "view_taskrecord"))
    assert viewer.get(GROUP).context["actions"] == []
    assert viewer.post(f"{GROUP}cancel/").status_code == 403
    assert boss.post(f"{GROUP}explode/").status_code == 404
    assert boss.get(f"{GROUP}cancel/").status_code == 405


@pytest.fixture
def partly_done(manager, superuser) -> TaskRecord:
    """A task of the group that has done one of its three objects."""
    name = manager.launch_async_task(
        f"{__name__}.visit_some",
        group="nightly",
        user=superuser,
        sync=True,
        by_object=True,
        object_ids={"testapp.Project": {1, 2, 3}},
        only=None,
    )
    return TaskRecord.objects.get(task_name=name)


def visit_some(only=None) -> None:
    for key, outcome in ((1, "done"), (2, "failed")):
        get_current_task().note_outcome("testapp.Project", key, outcome)


def test_the_objects_that_were_not_done_run_again_in_all_tasks(boss, group, partly_done, superuser):
    assert "Retry failed objects only" in boss.get(GROUP).content.decode()
    assert said(boss.post(f"{GROUP}retry_objects/")) == ["1 task was queued again for its unfinished objects."]
    again = partly_done.retries.get()
    assert (again.user, again.group) == (superuser, "nightly")
    assert sorted(again.objects_worked_on.values_list("object_id", flat=True)) == ["2", "3"]
    # The others are no tasks that tell what became of each object.
    assert TaskRecord.objects.exclude(retry_of=None).count() == 1
    assert "Retry failed objects only" not in boss.get(GROUP).content.decode()
    assert said(boss.post(f"{GROUP}retry_objects/")) == ["There are no objects that failed or were not reached."]


def test_refused_chunks_of_a_split_selection_run_again_as_well(boss, group, partly_done):
    TaskRecord.objects.filter(pk=partly_done.pk).update(affected_count=0, done_count=0, failed_count=2)
    boss.post(f"{GROUP}retry_objects/")
    assert partly_done.retries.exists()


def test_it_takes_the_permission_to_retry(client_of, make_user, group, partly_done):
    viewer = client_of(make_user("viewer", "view_taskrecord"))
    assert "Retry failed objects only" not in viewer.get(GROUP).content.decode()
    assert viewer.post(f"{GROUP}retry_objects/").status_code == 403
