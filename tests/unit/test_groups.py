"""The page of tasks that belong together, and what is done to all of them at once."""

from __future__ import annotations

import pytest

from powercrud_dashboard.models import ActiveTask, TaskRecord, TaskStatus
from tests.clicks import said
from tests.testapp import tasks

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
    ActiveTask.objects.claim_pending("running", host="w", pid=1)
    TaskRecord.objects.record_start("running", attempt=1)
    manager.launch_async_task(
        tasks.add, 1, task_key="queued", affected_objects=["g", "h"], conflict_ids={"testapp.Project": {1}}, **options
    )
    return {name: name for name in ("failed", "done", "running", "queued")}


def test_the_group_is_shown_as_one(boss, group, manager):
    manager.update_progress("running", "Step 1/2: half")
    shown = boss.get(GROUP).context["group"]
    assert (shown.object_count, shown.objects_through, shown.percent) == (8, 5, 62)
    page = boss.get(GROUP).content.decode()
    assert "Group: Nightly" in page
    assert "5 of 8 objects" in page
    assert "hx-trigger" in page


def test_only_its_own_tasks_are_in_it(boss, group, manager):
    manager.launch_async_task(tasks.add, 1, group="other")
    assert len(boss.get(GROUP).context["tasks"]) == 4
    assert boss.get(GROUP.replace("nightly", "unheard-of")).status_code == 404


def test_all_that_have_not_ended_are_cancelled(boss, group, superuser, record_of):
    response = boss.post(f"{GROUP}cancel/")
    assert response.url == GROUP
    assert said(response) == ["2 tasks are being cancelled."]
    assert record_of("queued").status == TaskStatus.CANCELLED
    # The one that runs is asked to stop.
    assert ActiveTask.objects.get(task_name="running").cancel_requested_at
    assert record_of("queued").events.get(event="cancel").actor == superuser
    assert record_of("done").status == TaskStatus.SUCCESS


def test_all_that_failed_or_were_cancelled_run_again_once(boss, group, manager, superuser):
    manager.cancel_task("queued")
    assert said(boss.post(f"{GROUP}retry/")) == ["2 tasks were queued again."]
    again = TaskRecord.objects.filter(group="nightly").exclude(retry_of=None)
    assert {record.retry_of.task_name for record in again} == {"failed", "queued"}
    assert {record.user for record in again} == {superuser}
    # The retries count in place of what they are retries of.
    assert boss.get(GROUP).context["group"].object_count == 8
    assert said(boss.post(f"{GROUP}retry/")) == []


def test_what_can_not_be_retried_is_told(boss, group, manager):
    manager.cancel_task("queued")
    manager.add_conflict_ids("somebody", {"testapp.Project": {1}})
    done, refused = said(boss.post(f"{GROUP}retry/"))
    assert done == "1 task was queued again."
    assert refused.startswith("1 task was not:")
    assert "somebody" in refused


def test_what_is_offered_is_what_there_is_to_do(boss, group, client_of, make_user, manager):
    assert [label for label, __ in boss.get(GROUP).context["actions"]] == [
        "Cancel all that have not ended",
        "Retry all that failed or were cancelled",
    ]
    viewer = client_of(make_user("viewer", "view_taskrecord"))
    assert viewer.get(GROUP).context["actions"] == []
    assert viewer.post(f"{GROUP}cancel/").status_code == 403
    assert boss.post(f"{GROUP}explode/").status_code == 404
    assert boss.get(f"{GROUP}cancel/").status_code == 405
