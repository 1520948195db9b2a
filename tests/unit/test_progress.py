from __future__ import annotations

import pytest
from django.core.cache import cache
from django.core.cache.backends.base import BaseCache

from powercrud_dashboard.async_context import (
    TaskContext,
    get_current_task,
    running_task,
    skip_nested_async,
    track,
)
from powercrud_dashboard.async_manager import AsyncManager
from powercrud_dashboard.engine import progress
from powercrud_dashboard.engine.progress import Progress
from powercrud_dashboard.exceptions import TaskCancelled
from powercrud_dashboard.models import ActiveTask
from tests.testapp import tasks
from tests.testapp.models import Project

ADD = "tests.testapp.tasks.add"


@pytest.fixture
def context():
    """The context of a task in a worker, where the heartbeat thread fetches what is reported."""
    made = TaskContext("task-1", AsyncManager(), writes_at_once=False)
    with running_task(made):
        yield made


@pytest.mark.parametrize(
    ("message", "current", "total"),
    [
        ("Step 3/10: label", 3, 10),
        ("3 of 10", 3, 10),
        ("done 10/10.", 10, 10),
        ("Step 0/7", 0, 7),
        ("on 3/10/2026", None, None),
        ("copying a/1/2", None, None),
        ("ratio 10/3", None, None),
        ("hello", None, None),
        ("", None, None),
    ],
)
def test_a_message_may_say_how_far_it_is(message, current, total):
    assert Progress.parse(message) == Progress(message, current, total)


def test_numbers_that_are_given_win_over_the_message():
    assert Progress.parse("Step 3/10", current=5, total=6) == Progress("Step 3/10", 5, 6)


@pytest.mark.parametrize(
    ("current", "total", "percent"),
    [
        (0, 10, 0),
        (5, 10, 50),
        (999, 1000, 99),
        (10, 10, 100),
        (12, 10, 100),
        (1, 0, None),
        (None, 10, None),
        (1, None, None),
    ],
)
def test_percent(current, total, percent):
    assert Progress("", current, total).percent == percent


def test_messages_fit_every_database():
    message = Progress.parse("a\x00b" + "x" * 5_000).message
    assert len(message) == 1_000
    assert message.startswith("a\N{REPLACEMENT CHARACTER}b")
    assert message.endswith("(cut)")


@pytest.mark.django_db
def test_progress_from_outside_a_worker_is_written_at_once(manager, record_of):
    name = manager.launch_async_task(ADD, 1)
    manager.update_progress(name, "Step 2/4: halfway")
    row = ActiveTask.objects.get(task_name=name)
    assert (row.progress_message, row.progress_current, row.progress_total) == ("Step 2/4: halfway", 2, 4)
    assert manager.get_progress(name) == "Step 2/4: halfway"
    assert record_of(name).events.get(event="progress").message == "Step 2/4: halfway"


@pytest.mark.django_db
def test_a_flushed_cache_loses_no_progress(manager):
    name = manager.launch_async_task(ADD, 1)
    manager.update_progress(name, "here")
    assert progress.read(name).message == "here"
    cache.clear()
    assert progress.read(name).message == "here"


@pytest.mark.django_db
def test_the_cache_is_ahead_of_the_database(manager):
    name = manager.launch_async_task(ADD, 1)
    progress.write_to_cache(name, Progress("newer"))
    assert manager.get_progress(name) == "newer"


@pytest.mark.django_db
def test_a_cache_that_fails_is_only_logged(manager, settings, caplog):
    settings.POWERCRUD_SETTINGS = {"CACHE_NAME": "broken"}
    settings.CACHES = {**settings.CACHES, "broken": {"BACKEND": f"{__name__}.BrokenCache"}}
    name = manager.launch_async_task(ADD, 1)
    manager.update_progress(name, "still known")
    assert manager.get_progress(name) == "still known"
    assert "can't be written" in caplog.text
    assert "can't be read" in caplog.text


class BrokenCache(BaseCache):
    def __init__(self, location, params):
        super().__init__(params)

    def get_many(self, *args, **kwargs):
        raise ConnectionError("nobody there")

    set = delete = get_many


@pytest.mark.django_db
def test_progress_of_an_unknown_task_is_nothing(manager):
    manager.update_progress("nobody", "hello")
    assert manager.get_progress("nobody") is None


@pytest.mark.django_db
def test_reporting_in_a_worker_makes_no_query(context, django_assert_num_queries):
    with django_assert_num_queries(0):
        AsyncManager().update_progress("task-1", "Step 1/2", current=1)
        for _item in track(range(100)):
            pass
    assert context.latest_report() == ("", 100, 100)


def test_track_counts_what_is_done(context):
    seen = []
    for item in track("abc", description="Letters"):
        seen.append((item, context.latest_report()))
    assert seen == [("a", ("Letters", 0, 3)), ("b", ("Letters", 1, 3)), ("c", ("Letters", 2, 3))]
    assert context.latest_report() == ("Letters", 3, 3)


def test_track_takes_what_has_no_length(context):
    list(track(iter([1, 2]), description="?"))
    assert context.latest_report() == ("?", 2, 2)
    list(track(item for item in [1, 2]))
    assert context.latest_report() == ("", 2, None)
    list(track((item for item in [1, 2]), total=2))
    assert context.latest_report() == ("", 2, 2)


def test_a_tracked_loop_around_another_goes_on(context):
    for _outer in track("ab", description="outer"):
        list(track("xyz", description="inner"))
    assert context.latest_report() == ("outer", 2, 2)


@pytest.mark.django_db
def test_track_asks_a_queryset_for_its_count(context, make_projects):
    make_projects(3)
    assert len(list(track(Project.objects.all()))) == 3
    assert context.latest_report() == ("", 3, 3)


def test_track_outside_of_a_task_is_the_plain_loop():
    assert list(track([1, 2])) == [1, 2]


def test_a_cancelled_task_stops_between_two_items(context):
    done = []

    def run() -> None:
        for item in track(range(10)):
            done.append(item)
            if item == 3:
                context.stop_with(TaskCancelled)

    with pytest.raises(TaskCancelled):
        run()
    assert done == [0, 1, 2, 3]
    with pytest.raises(TaskCancelled):
        context.update_progress("more")


def test_nobody_stops_a_task_that_commits(context):
    context.commit_now()
    context.stop_with(TaskCancelled)
    context.update_progress("committed")
    context.check_cancelled()


def test_its_time_limit_does_not_stop_it_either(context):
    ended = []
    context.end_time_limit = lambda: ended.append(True)
    context.commit_now()
    assert ended == [True]


def test_a_cancelled_task_does_not_commit(context):
    context.stop_with(TaskCancelled)
    with pytest.raises(TaskCancelled):
        context.commit_now()


def test_cancellation_is_no_ordinary_error():
    assert not issubclass(TaskCancelled, Exception)


def test_code_knows_whether_it_runs_in_a_task(context):
    assert get_current_task() is context
    assert skip_nested_async()


def test_code_outside_of_a_task_knows_that_too():
    assert get_current_task() is None
    assert not skip_nested_async()


@pytest.mark.django_db
def test_a_sync_task_writes_its_progress_and_log_lines(manager, record_of, make_projects):
    pks = [project.pk for project in make_projects(3)]
    record = record_of(manager.launch_async_task(tasks.track_projects, pks, sync=True))
    assert (record.message, record.progress_current, record.progress_total) == ("Working", 3, 3)
    assert record.events.filter(event="progress").exists()
    record = record_of(manager.launch_async_task(tasks.log_lines, sync=True))
    logged = record.events.filter(event="log").values_list("message", "payload")
    assert list(logged) == [("first line", {"level": "info"}), ("second line", {"level": "warning"})]


@pytest.mark.django_db
def test_a_task_locks_more_on_its_way(manager, record_of):
    taken = manager.launch_async_task(tasks.lock_descendants, "testapp.Project", [1, 2], sync=True)
    assert record_of(taken).result is True
    manager.add_conflict_ids("other", {"testapp.Project": {2}})
    refused = manager.launch_async_task(tasks.lock_descendants, "testapp.Project", [1, 2], sync=True)
    assert record_of(refused).result is False
    assert manager.check_conflict({"testapp.Project": {1, 2}}) == {2}
