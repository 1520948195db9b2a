"""What settles a failure, and what counts as open."""

from __future__ import annotations

import pytest

from powercrud_dashboard.async_context import get_current_task
from powercrud_dashboard.async_manager import AsyncManager
from powercrud_dashboard.exceptions import TaskNotRetryable
from powercrud_dashboard.models import Resolution, TaskEvent, TaskRecord
from powercrud_dashboard.models.objects import ObjectOutcome
from tests.testapp import tasks

pytestmark = pytest.mark.django_db

KEYS = [str(number) for number in range(1, 6)]


def fail(manager, name: str, **more) -> str:
    with pytest.raises(ValueError, match="it broke"):
        manager.launch_async_task(tasks.fail, task_key=name, sync=True, **more)
    return name


def end(manager, name: str, event: str = "complete", **payload) -> str:
    """Have a queued task end."""
    manager.async_task_lifecycle("start", name, attempt=1)
    manager.async_task_lifecycle(event, name, **payload)
    manager.remove_active_task(name)
    return name


def retry(manager, name: str, event: str = "complete", user=None, **payload) -> str:
    return end(manager, manager.retry_task(name, user=user), event, **payload)


def resolutions() -> list[str]:
    return list(TaskRecord.objects.order_by("pk").values_list("resolution", flat=True))


def open_names() -> list[str]:
    return list(TaskRecord.objects.open_failures().order_by("pk").values_list("task_name", flat=True))


@pytest.fixture
def failed(manager) -> str:
    return fail(manager, "first")


def test_a_failure_is_open_and_others_are_nothing(manager, failed):
    manager.launch_async_task(tasks.add, 1, sync=True)
    manager.cancel_task(manager.launch_async_task(tasks.add, 1))
    manager.launch_async_task(tasks.add, 1)
    assert resolutions() == ["open", "", "", ""]
    assert open_names() == ["first"]


def test_a_retry_that_completes_resolves_it(manager, failed, superuser, record_of):
    again = retry(manager, failed, user=superuser)
    record = record_of(failed)
    assert (record.status, record.resolution, record.is_done) == ("failed", "resolved", True)
    assert record.time_to_resolution.total_seconds() > 0
    assert record_of(again).resolution == ""
    assert open_names() == []
    event = record.events.get(event="resolve")
    assert (event.actor, event.payload["new_task_name"]) == (superuser, again)


def test_it_stays_open_while_its_retry_is_under_way_and_can_not_be_retried_again(manager, failed):
    again = manager.retry_task(failed)
    assert open_names() == [failed]
    assert not TaskRecord.objects.open_failures().not_being_retried().exists()
    with pytest.raises(TaskNotRetryable, match=again):
        manager.retry_task(failed)
    manager.cancel_task(again)
    assert TaskRecord.objects.open_failures().not_being_retried().get().task_name == failed


def test_no_try_of_a_chain_is_retried_while_another_is_under_way(manager, failed):
    second = retry(manager, failed, "fail", error="again")
    manager.retry_task(second)
    with pytest.raises(TaskNotRetryable, match="has not ended yet"):
        manager.retry_task(failed)


def test_earlier_tries_never_count_twice_and_are_settled_together(manager, failed):
    second = retry(manager, failed, "fail", error="again")
    assert resolutions() == ["open", "open"]
    assert open_names() == [second]
    third = retry(manager, failed, "fail", error="once more")
    assert open_names() == [third]
    retry(manager, third)
    assert resolutions() == ["resolved", "resolved", "resolved", ""]
    assert open_names() == []
    assert TaskEvent.objects.filter(event="resolve").count() == 3


def test_a_completed_task_that_fails_when_it_runs_again_is_a_new_failure(manager, record_of):
    name = manager.launch_async_task(tasks.add, 1, sync=True)
    again = retry(manager, name, "fail", error="broke")
    assert open_names() == [again]
    retry(manager, again)
    assert resolutions() == ["", "resolved", ""]


@pytest.mark.parametrize("event", ["complete", "fail"])
def test_the_report_of_a_worker_that_was_given_up_is_as_good_as_any_other(manager, failed, event, record_of):
    second = retry(manager, failed, "fail", reason="worker_lost", error="lost")
    assert open_names() == [second]
    manager.async_task_lifecycle(event, second, error="it broke", late=True)
    if event == "complete":
        assert resolutions() == ["resolved", ""]
        assert record_of(second).status == "success"
    else:
        assert open_names() == [second]


def test_an_inferred_failure_that_a_retry_has_resolved_stays_so_when_its_worker_reports_it(manager, record_of):
    lost = end(manager, manager.launch_async_task(tasks.add, 1), "fail", reason="worker_lost", error="lost")
    retry(manager, lost)
    manager.async_task_lifecycle("fail", lost, error="it broke", late=True)
    assert (record_of(lost).error, record_of(lost).resolution) == ("it broke", "resolved")


def test_an_inferred_failure_that_was_none_is_no_failure(manager, record_of):
    lost = end(manager, manager.launch_async_task(tasks.add, 1), "fail", reason="worker_lost", error="lost")
    manager.dismiss_failure(lost, "anna", "who cares")
    manager.async_task_lifecycle("complete", lost, result=1, late=True)
    record = record_of(lost)
    assert (record.status, record.resolution, record.resolution_note) == ("success", "", "")


def test_automatic_retries_are_attempts_of_one_task(manager, failed, record_of):
    again = manager.retry_task(failed)
    manager.async_task_lifecycle("start", again, attempt=1)
    manager.async_task_lifecycle("retry", again, error="not yet", traceback="", postponed=True)
    assert open_names() == [failed]
    end(manager, again)
    assert resolutions() == ["resolved", ""]


# Retries for some of the objects


def process(only=None):
    for key in only or KEYS:
        get_current_task().note_outcome("testapp.project", key, "failed" if key in _bad else "done")
    if _is_fatal:
        raise ValueError("it broke")


_bad: set[str] = set()
_is_fatal: list[None] = []


@pytest.fixture
def by_object(manager):
    """A task that failed after it had done three of five objects; return the set of those that fail in its retries."""
    _bad.clear()
    _bad.update({"2", "4"})
    _is_fatal.clear()
    manager.launch_async_task(process, task_key="first", object_ids={"testapp.Project": KEYS}, by_object=True)
    outcomes = [ObjectOutcome("testapp.project", key, "failed" if key in _bad else "done") for key in KEYS]
    manager.async_task_lifecycle("objects", "first", outcomes=outcomes)
    end(manager, "first", "fail", error="it broke")
    return _bad


@pytest.fixture
def run_here(by_object, settings):
    settings.POWERCRUD_SETTINGS = {"ASYNC_ENABLED": False}


def only(*keys: str):
    return {"testapp.project": set(keys)}


@pytest.mark.usefixtures("run_here")
def test_a_retry_of_some_objects_settles_a_failure_when_none_is_left(manager, by_object, record_of):
    by_object.clear()
    manager.retry_task("first", only=only("2"))
    assert record_of("first").resolution == "open"
    manager.retry_task("first", only=only("4"))
    assert record_of("first").resolution == "resolved"


@pytest.mark.usefixtures("run_here")
def test_only_what_no_later_try_has_done_is_left_to_retry(boss, manager, by_object, record_of):
    first = record_of("first")
    address = f"/admin/powercrud_dashboard/taskrecord/{first.pk}"
    by_object.remove("2")
    boss.post(f"{address}/retry-objects/")
    second = record_of("first").retries.get()
    assert (second.status, second.done_count, second.failed_count) == ("success", 1, 1)
    assert record_of("first").resolution == "open"
    by_object.clear()
    boss.post(f"{address}/retry-objects/")
    third = record_of("first").retries.latest("pk")
    assert [entry.object_id for entry in third.objects_worked_on.all()] == ["4"]
    assert record_of("first").resolution == "resolved"
    assert "retry-objects" not in boss.get(f"{address}/change/").content.decode()


@pytest.mark.usefixtures("run_here")
def test_a_failed_retry_of_some_objects_is_resolved_by_its_own_retry(manager, by_object, record_of):
    _is_fatal.append(None)
    with pytest.raises(ValueError, match="it broke"):
        manager.retry_task("first", only=only("2"))
    (second,) = open_names()
    assert second != "first"
    _is_fatal.clear()
    by_object.remove("2")
    manager.retry_task(second)
    assert record_of(second).resolution == "resolved"
    # The other object is still to be done, so that the first failure counts again.
    assert open_names() == ["first"]


@pytest.mark.usefixtures("run_here")
@pytest.mark.parametrize("event", ["fail", "cancel"])
@pytest.mark.parametrize("chosen", ["all", "selected", "row"])
def test_what_a_retry_of_some_objects_has_left_is_retried_with_the_others(
    boss, manager, by_object, record_of, event, chosen
):
    by_object.clear()
    manager.retry_task("first", only=only("2"))
    if event == "cancel":
        TaskRecord.objects.filter(task_name="first").update(status="cancelled", resolution="")
    first = record_of("first")
    address = "/admin/powercrud_dashboard/taskrecord/"
    # Without a question, as its work is not done a second time.
    if chosen == "row":
        boss.post(f"{address}{first.pk}/retry/")
    else:
        data = {"action": "retry", "filter": f"status={first.status}", "confirmed": "yes", chosen: first.pk}
        boss.post(f"{address}bulk/", data)
    assert first.retries.count() == 2


def test_a_retry_of_all_objects_settles_it_whatever_it_reports(manager, by_object, record_of):
    retry(manager, "first")
    assert record_of("first").resolution == "resolved"


def test_a_task_that_completed_with_failed_objects_is_no_failure(manager, record_of):
    _bad.clear()
    _bad.add("2")
    _is_fatal.clear()
    manager.launch_async_task(
        process, task_key="first", object_ids={"testapp.Project": KEYS}, by_object=True, sync=True
    )
    assert (record_of("first").failed_count, resolutions(), open_names()) == (1, [""], [])


# By a person


def test_a_failure_is_dismissed_with_a_note_and_reopened(manager, failed, superuser, record_of):
    assert manager.dismiss_failure(failed, superuser, "known\x00 outage")
    record = record_of(failed)
    assert (record.resolution, record.resolution_by) == ("dismissed", "boss")
    assert record.resolution_note == "known\N{REPLACEMENT CHARACTER} outage"
    assert open_names() == []
    event = record.events.get(event="dismiss")
    assert (event.actor, event.message) == (superuser, record.resolution_note)
    assert not manager.dismiss_failure(failed, superuser)
    assert manager.reopen_failure(failed, superuser)
    assert not manager.reopen_failure(failed, superuser)
    record = record_of(failed)
    assert (record.resolution, record.resolution_at, record.resolution_by) == ("open", None, "")
    assert record.events.get(event="reopen").actor == superuser
    assert open_names() == [failed]


def test_the_tries_of_a_chain_are_dismissed_and_reopened_together(manager, failed):
    second = retry(manager, failed, "fail", error="again")
    assert manager.dismiss_failure(second, "anna")
    assert resolutions() == ["dismissed", "dismissed"]
    assert manager.reopen_failure(failed)
    assert open_names() == [second]


def test_what_a_retry_completes_is_resolved_even_if_it_was_dismissed(manager, failed):
    manager.dismiss_failure(failed, "anna")
    retry(manager, failed)
    assert resolutions() == ["resolved", ""]
    assert not manager.reopen_failure(failed)


def test_what_is_no_open_failure_can_not_be_dismissed(manager):
    done = manager.launch_async_task(tasks.add, 1, sync=True)
    running = manager.launch_async_task(tasks.add, 1)
    for name in (done, running, "unheard-of"):
        assert not manager.dismiss_failure(name)
        assert not manager.reopen_failure(name)


class Listening(AsyncManager):
    heard: list[tuple[str, str]] = []

    def async_task_lifecycle(self, event, task_name, **payload):
        self.heard.append((event, payload["status"]))


def test_hooks_hear_of_it(failed):
    Listening.heard.clear()
    Listening().dismiss_failure(failed)
    Listening().reopen_failure(failed)
    assert Listening.heard == [("dismiss", "failed"), ("reopen", "failed")]


# Deletion


def test_when_the_last_failed_try_is_deleted_the_one_before_counts_again(boss, manager, failed, record_of):
    second = retry(manager, failed, "fail", error="again")
    third = retry(manager, second, "fail", error="once more")
    assert open_names() == [third]
    delete(boss, record_of(third))
    assert open_names() == [second]
    delete(boss, record_of(failed))
    assert open_names() == [second]


def test_a_chain_holds_together_without_its_first_try(boss, manager, failed, record_of):
    second = retry(manager, failed, "fail", error="again")
    third = retry(manager, second, "fail", error="once more")
    delete(boss, record_of(failed))
    retry(manager, third)
    assert record_of(second).resolution == Resolution.RESOLVED


def delete(client, *records: TaskRecord) -> None:
    data = {"action": "delete", "selected": [record.pk for record in records], "confirmed": "yes"}
    client.post("/admin/powercrud_dashboard/taskrecord/bulk/", data)


#: As a person deletes records on the page, and as code of the project does.
DELETIONS = {
    "page": lambda boss, records: delete(boss, *records),
    "queryset": lambda boss, records: TaskRecord.objects.filter(pk__in=[record.pk for record in records]).delete(),
    "one by one": lambda boss, records: [TaskRecord.objects.get(pk=record.pk).delete() for record in records],
}


@pytest.mark.parametrize("way", DELETIONS)
def test_it_counts_again_however_the_last_one_is_deleted(boss, manager, failed, record_of, way):
    second = retry(manager, failed, "fail", error="again")
    DELETIONS[way](boss, [record_of(second)])
    assert open_names() == [failed]


@pytest.mark.usefixtures("run_here")
@pytest.mark.parametrize("way", DELETIONS)
@pytest.mark.parametrize("deleted", [1, 2])
def test_a_retry_of_some_objects_stays_one_if_the_tries_before_it_are_deleted(
    boss, manager, by_object, record_of, deleted, way
):
    by_object.clear()
    _is_fatal.append(None)
    with pytest.raises(ValueError, match="it broke"):
        manager.retry_task("first", only=only("2"))
    for _number in range(2):
        (last,) = open_names()
        with pytest.raises(ValueError, match="it broke"):
            manager.retry_task(last)
    tries = list(TaskRecord.objects.order_by("pk"))
    _is_fatal.clear()
    DELETIONS[way](boss, tries[1 : 1 + deleted])
    manager.retry_task(tries[3].task_name)
    assert record_of(tries[3].task_name).resolution == "resolved"
    # The other object is still to be done.
    assert open_names() == ["first"]
