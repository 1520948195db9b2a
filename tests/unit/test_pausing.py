"""Tasks that are paused and resumed."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from datetime import timedelta

import pytest
from django.contrib import admin
from django.db import connection, transaction
from django.db.backends.signals import connection_created
from django.db.models import F
from django_q.models import OrmQ, Task

from powercrud_dashboard.admin import BackgroundAction, background_action
from powercrud_dashboard.async_context import get_current_task, track
from powercrud_dashboard.async_manager import AsyncManager, RetryPolicy
from powercrud_dashboard.engine import processes
from powercrud_dashboard.engine.pace import Throttle
from powercrud_dashboard.exceptions import TaskCancelled, TaskConflict, TaskNotPausable
from powercrud_dashboard.models import ActiveTask, ConflictLock, TaskCursor, TaskRecord, WorkerProcess
from tests.clicks import TASKS, choose, last, said
from tests.services import wait_until
from tests.testapp import tasks
from tests.testapp.models import Project
from tests.workers import claimed_elsewhere, database_refuses, run_queue

pytestmark = pytest.mark.django_db(transaction=True)

HOUR = timedelta(hours=1)
IDS = {"testapp.Project": {1, 2}}
#: What the functions below have worked on.
done: list[object] = []
#: What they do after so many items.
acts: dict[int, Callable[[], object]] = {}


def test_the_timeline_of_a_paused_task_is_in_words(manager, boss, record_of):
    name = manager.launch_async_task(loop, 3)
    acts[2] = pause_here()
    run_queue()
    assert manager.resume_task(name, user="Ann")
    page = boss.get(f"{TASKS}{record_of(name).pk}/change/").content.decode()
    found = re.findall(r'<span class="pcrud-event-name">(.*?)</span>', page)
    assert [name for name in found if "ause" in name or "esume" in name] == ["Pause requested", "Paused", "Resumed"]


@pytest.fixture(autouse=True)
def _nothing_done() -> None:
    done.clear()
    acts.clear()


@pytest.fixture(autouse=True)
def _no_heartbeat(monkeypatch, settings) -> None:
    """Keep the thread that beats from seeing a request in a moment that no test knows."""
    monkeypatch.setattr(processes, "HEARTBEAT_INTERVAL", 3600)
    settings.POWERCRUD_SETTINGS = {**settings.POWERCRUD_SETTINGS, "DASHBOARD_HEARTBEAT_TIMEOUT": 3600}


def loop(count: int) -> int:
    for number in track(range(count), description="Looping"):
        _work(number)
    return len(done)


def loop_from(count: int, resume_at: int = 0) -> int:
    for number in track(range(resume_at, count), initial=resume_at):
        _work(number)
    return resume_at


def own_loop(count: int, resume_at: int) -> str:
    for number in range(resume_at, count):
        get_current_task().check_paused(resume_at=number)
        _work(number)
    return "own"


def nested(count: int) -> None:
    for outer in track(range(count)):
        for inner in track(range(2)):
            _work((outer, inner))


def _work(item: object) -> None:
    done.append(item)
    if act := acts.pop(len(done), None):
        act()


def pause_here(**options: object) -> Callable[[], None]:
    """Return what asks the running task to pause, and has its worker see that at once."""

    def pause() -> None:
        task = get_current_task()
        assert AsyncManager().pause_task(task.task_name, user="Ann", **options)
        task.pace.pausing = True

    return pause


def events(record: TaskRecord) -> list[tuple[str, str]]:
    return list(record.events.exclude(event__in=["progress", "log"]).values_list("event", "actor_label"))


def test_a_queued_task_is_paused_at_once(manager, record_of):
    name = manager.launch_async_task(tasks.add, 1, conflict_ids=IDS)
    assert manager.pause_task(name, user="Ann")
    assert not manager.pause_task(name)
    assert manager.get_task_status(name) == manager.STATUSES.PAUSED == "paused"
    assert record_of(name).get_status_display() == "Paused"
    assert not OrmQ.objects.exists()
    assert ConflictLock.objects.count() == 2
    assert manager.resume_task(name, user="Bob")
    assert not manager.resume_task(name)
    assert manager.get_task_status(name) == "pending"
    run_queue()
    record = record_of(name)
    assert (record.status, record.attempts) == ("success", 1)
    assert events(record) == [
        ("create", ""),
        ("pause", "Ann"),
        ("resume", "Bob"),
        ("start", ""),
        ("complete", ""),
        ("cleanup", ""),
    ]


def test_a_message_that_is_delivered_nevertheless_runs_nothing(manager, record_of):
    name = manager.launch_async_task(tasks.add, 1)
    message = OrmQ.objects.get().task
    manager.pause_task(name)
    assert message["func"](*message["args"]).acknowledged
    assert record_of(name).status == "paused"


def test_a_running_one_stops_at_its_next_item_and_has_no_worker_then(manager, record_of):
    name = manager.launch_async_task(f"{__name__}.loop", 5, conflict_ids=IDS)
    acts[2] = pause_here()
    run_queue()
    assert done == [0, 1]
    record, active = record_of(name), ActiveTask.objects.get()
    assert (record.status, active.state, active.worker, active.locks.count()) == ("paused", "paused", None, 2)
    assert (active.progress_message, active.progress_current, active.progress_total) == ("Looping", 2, 5)
    assert events(record)[1:] == [("start", ""), ("pause_requested", "Ann"), ("pause", "")]
    assert not Task.objects.exists()
    assert manager.resume_task(name)
    run_queue()
    # It begins again.
    assert done == [0, 1, 0, 1, 2, 3, 4]
    assert (record_of(name).status, record_of(name).attempts) == ("success", 2)


def test_the_page_of_a_paused_one_says_when_it_started_and_how_long_it_ran(manager, boss, record_of):
    name = manager.launch_async_task(loop, 3)
    acts[2] = pause_here()
    page = f"{TASKS}{record_of(name).pk}/change/"

    def facts() -> dict[str, str]:
        found = re.findall(r"<dt>(Started|Duration)</dt><dd>(.*?)</dd>", boss.get(page).content.decode(), re.DOTALL)
        return {name: re.sub(r"<[^>]*>", "", text).strip() for name, text in found}

    assert facts()["Started"] == "–"
    run_queue()
    started = record_of(name).events.get(event="start").timestamp
    ActiveTask.objects.update(ran_before=timedelta(seconds=75))
    assert f"{started:%H:%M:%S} UTC" in facts()["Started"]
    assert facts()["Duration"] == "1\N{NO-BREAK SPACE}min 15\N{NO-BREAK SPACE}s"


def test_the_first_button_of_a_paused_one_resumes_it(manager, boss):
    manager.pause_task(manager.launch_async_task(loop, 3))
    assert re.findall(r'class="pcrud-row-button pcrud-row-(\w+)"', boss.get(TASKS).content.decode())[0] == "resume"


def test_its_run_time_is_that_of_all_its_parts(manager, record_of):
    def an_hour_later() -> None:
        for rows in (ActiveTask.objects, TaskRecord.objects):
            rows.update(started_at=F("started_at") - HOUR)
        pause_here()()

    name = manager.launch_async_task(loop, 3)
    acts[2] = an_hour_later
    run_queue()
    assert record_of(name).status == "paused"
    assert manager.resume_task(name)
    run_queue()
    record = record_of(name)
    assert record.status == "success"
    assert HOUR <= record.run_time < 2 * HOUR
    assert record.duration == record.run_time


def test_a_function_may_take_how_far_it_was(manager, record_of):
    name = manager.launch_async_task(f"{__name__}.loop_from", 6)
    acts[2] = acts[4] = pause_here()
    for _ in range(3):
        run_queue()
        manager.resume_task(name)
    assert done == [0, 1, 2, 3, 4, 5]
    assert (record_of(name).status, record_of(name).result) == ("success", 4)


def test_so_may_a_loop_of_its_own(manager, record_of):
    name = manager.launch_async_task(f"{__name__}.own_loop", 4)
    acts[2] = pause_here()
    run_queue()
    assert record_of(name).status == "paused"
    manager.resume_task(name)
    run_queue()
    assert done == [0, 1, 2, 3]
    assert record_of(name).status == "success"


def test_only_the_outer_one_of_two_loops_stops(manager, record_of):
    name = manager.launch_async_task(f"{__name__}.nested", 3)
    acts[3] = pause_here()
    run_queue()
    assert done == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert record_of(name).status == "paused"


def test_a_retry_goes_on_in_the_same_way(manager, record_of):
    name = manager.launch_async_task(f"{__name__}.loop_from", 4, retry=RetryPolicy(1, backoff=0))

    def fail():
        raise ValueError("no")

    acts[3] = fail
    run_queue()
    manager.send_due_tasks()
    run_queue()
    assert done == [0, 1, 2, 2, 3]
    assert record_of(name).status == "success"


def test_a_running_task_may_be_resumed_before_it_has_stopped(manager, record_of):
    name = manager.launch_async_task(tasks.add, 1)
    claimed_elsewhere(name)
    assert manager.pause_task(name)
    assert not manager.pause_task(name)
    assert manager.resume_task(name)
    assert ActiveTask.objects.get().pause_requested_at is None
    assert record_of(name).events.filter(event="resume").exists()


def test_and_goes_on_if_it_has_just_stopped(manager, record_of):
    name = manager.launch_async_task(f"{__name__}.loop_from", 4)

    def pause_and_resume():
        pause_here()()
        manager.resume_task(name)

    acts[2] = pause_and_resume
    run_queue()
    assert (record_of(name).status, done) == ("success", [0, 1, 2, 3])


def test_one_that_fails_meanwhile_is_paused_before_its_retry(manager, record_of):
    name = manager.launch_async_task(f"{__name__}.loop", 4, conflict_ids=IDS, retry=RetryPolicy(1, backoff=0))

    def fail():
        pause_here(keep_locks=False)()
        raise ValueError("no")

    acts[2] = fail
    run_queue()
    record = record_of(name)
    assert (record.status, len(done)) == ("paused", 2)
    assert events(record)[-3:] == [("pause_requested", "Ann"), ("retry", ""), ("pause", "")]
    assert not ConflictLock.objects.exists()
    manager.resume_task(name)
    run_queue()
    assert (record_of(name).status, len(done)) == ("success", 6)


def in_a_transaction(count: int, resume_at: int = 0) -> None:
    with transaction.atomic():
        for number in track(range(resume_at, count), initial=resume_at):
            Project.objects.create(name=str(number))
            _work(number)


def own_loop_in_a_transaction(count: int, resume_at: int = 0) -> None:
    with transaction.atomic():
        for number in range(resume_at, count):
            get_current_task().check_paused(resume_at=number)
            Project.objects.create(name=str(number))
            _work(number)


@pytest.mark.parametrize("func", [in_a_transaction, own_loop_in_a_transaction])
def test_items_that_are_rolled_back_are_not_done(manager, record_of, func):
    name = manager.launch_async_task(func, 4)
    acts[2] = pause_here()
    run_queue()
    # Its own request is rolled back as well.
    manager.pause_task(name)
    manager.resume_task(name)
    run_queue()
    assert record_of(name).status == "success"
    assert sorted(Project.objects.values_list("name", flat=True)) == ["0", "1", "2", "3"]


def test_one_that_its_caller_waits_for_runs_to_its_end(manager, record_of, monkeypatch):
    monkeypatch.setattr(processes, "HEARTBEAT_INTERVAL", 0)

    def pause():
        assert manager.pause_task(get_current_task().task_name)
        worker = WorkerProcess.objects.get(tasks__task_name=get_current_task().task_name)
        beats = {worker.beats}

        def has_looked():
            worker.refresh_from_db()
            beats.add(worker.beats)
            return len(beats) > 2

        wait_until(has_looked, "the request is seen")

    acts[1] = pause
    name = manager.launch_async_task(f"{__name__}.loop", 3, sync=True)
    assert (record_of(name).status, len(done)) == ("success", 3)


def test_a_cancel_is_stronger(manager, record_of):
    name = manager.launch_async_task(f"{__name__}.loop", 4, conflict_ids=IDS)

    def pause_and_cancel():
        pause_here()()
        manager.cancel_task(name, user="Eve")

    acts[2] = pause_and_cancel
    run_queue()
    assert record_of(name).status == "cancelled"
    assert events(record_of(name))[-2:] == [("cancel", ""), ("cleanup", "")]
    assert not ConflictLock.objects.exists()


def test_a_paused_task_can_be_cancelled_and_outlives_cleanup(manager, record_of):
    name = manager.launch_async_task(tasks.add, 1, conflict_ids=IDS)
    manager.pause_task(name)
    ActiveTask.objects.update(created_at="2020-01-01T00:00Z", queued_at="2020-01-01T00:00Z")
    TaskRecord.objects.update(created_at="2020-01-01T00:00Z")
    assert manager.cleanup_completed_tasks()["skipped"] == {name: "task is paused"}
    assert manager.send_due_tasks() == 0
    assert record_of(name).status == "paused"
    assert manager.cancel_task(name)
    assert record_of(name).status == "cancelled"
    assert not ConflictLock.objects.exists()


def test_its_locks_may_be_given_back_and_are_taken_again(manager, record_of):
    name = manager.launch_async_task(tasks.add, 1, conflict_ids=IDS)
    manager.pause_task(name, keep_locks=False)
    assert not ConflictLock.objects.exists()
    other = manager.launch_async_task(tasks.add, 1, conflict_ids={"testapp.Project": {2}})
    with pytest.raises(TaskConflict, match="testapp"):
        manager.resume_task(name)
    assert (record_of(name).status, ConflictLock.objects.count()) == ("paused", 1)
    manager.cancel_task(other)
    assert manager.resume_task(name)
    assert ConflictLock.objects.filter(active_task__task_name=name).count() == 2
    run_queue()
    assert record_of(name).status == "success"


def test_a_task_that_waits_for_its_retry_can_be_paused(manager, record_of):
    name = manager.launch_async_task(tasks.fail_until, 2, retry=RetryPolicy(1, backoff=0))
    run_queue()
    assert manager.pause_task(name)
    assert manager.send_due_tasks() == 0
    manager.resume_task(name)
    run_queue()
    assert record_of(name).status == "success"


def test_a_resumption_waits_for_the_broker(manager, record_of):
    name = manager.launch_async_task(tasks.add, 1, conflict_ids=IDS)
    manager.pause_task(name)
    with database_refuses(f'INSERT INTO "{OrmQ._meta.db_table}"', 2):
        assert manager.resume_task(name)
        manager.send_due_tasks()
    assert (record_of(name).status, OrmQ.objects.count()) == ("pending", 0)
    assert ConflictLock.objects.count() == 2
    manager.send_due_tasks()
    run_queue()
    assert record_of(name).status == "success"


def test_a_task_that_could_not_be_resumed_is_not_paused(manager):
    name = manager.launch_async_task(tasks.add, 1)
    TaskRecord.objects.update(payload="")
    with pytest.raises(TaskNotPausable, match="its arguments were not kept"):
        manager.pause_task(name)


def test_without_a_history_it_is(settings):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_RECORDER": None}
    manager = AsyncManager()
    name = manager.launch_async_task(f"{__name__}.loop", 2)
    assert manager.pause_task(name)
    assert manager.resume_task(name)
    run_queue()
    assert done == [0, 1]


@pytest.mark.parametrize("keep_locks", [True, False])
def test_an_action_per_object_goes_on_with_the_objects_that_are_left(boss, make_projects, with_actions, keep_locks):
    projects = make_projects(5)

    def each(modeladmin, request, project):
        Project.objects.filter(pk=project.pk).update(name=project.name + "+")
        _work(project.pk)

    with_actions(background_action(permissions=["change"], per_object=True)(each))

    def pause():
        get_current_task().pace.pausing = True

    acts[2] = pause
    choose(boss, "each", projects)
    # Another session asks, as the transaction of an object is open in this one.
    name = last().task_name
    real = ActiveTask.objects.filter(task_name=name)
    real.update(pause_requested_at="2026-01-01T00:00Z", pause_keeps_locks=keep_locks)
    run_queue()
    record = last()
    assert (record.status, record.done_count) == ("paused", 2)
    assert ConflictLock.objects.exists() == keep_locks
    AsyncManager().resume_task(name)
    run_queue()
    record = last()
    assert (record.status, record.done_count, record.attempts) == ("success", 5, 2)
    assert done == [project.pk for project in projects]
    assert not TaskCursor.objects.exists()


# Slices and throttles


def test_a_slice_gives_the_worker_back_and_queues_the_task_again(boss, make_projects, with_actions):
    projects = make_projects(4)

    def each(modeladmin, request, project):
        done.append(project.pk)

    with_actions(background_action(permissions=["change"], per_object=True, slice=1e-9)(each))
    choose(boss, "each", projects)
    for number in range(1, 4):
        other = AsyncManager().launch_async_task(tasks.add, 1)
        run_queue(at_most=1)
        record = TaskRecord.objects.get(label="Each")
        assert (record.status, record.done_count, len(done)) == ("pending", number, number)
        # At the end of the queue.
        assert [message.name() for message in OrmQ.objects.order_by("pk")] == [other, record.task_name]
        AsyncManager().cancel_task(other)
    run_queue()
    record = TaskRecord.objects.get(label="Each")
    assert (record.status, record.done_count, record.attempts, record.failure_reason) == ("success", 4, 4, "")
    assert done == [project.pk for project in projects]
    assert not Task.objects.filter(success=False).exists()


def test_a_pause_in_the_moment_of_its_end_is_not_lost(boss, make_projects, with_actions, manager):
    def each(modeladmin, request, project):
        done.append(project.pk)

    with_actions(background_action(permissions=["change"], per_object=True, slice=1e-9)(each))
    choose(boss, "each", make_projects(3))
    others: list[threading.Thread] = []

    def pause():
        try:
            manager.pause_task(last().task_name)
        finally:
            connection.close()

    def execute(execute, sql, params, many, context):
        answer = execute(sql, params, many, context)
        # The look at what others have asked for, before the task is handed back.
        if not others and sql.startswith("SELECT") and "pause_requested_by" in sql and '"attempt" = ' in sql:
            others.append(threading.Thread(target=pause))
            others[0].start()
            # It has asked, or waits for this transaction.
            others[0].join(0.5)
        return answer

    def look_on(sender, connection, **kwargs):
        if threading.current_thread() is threading.main_thread():
            connection.execute_wrappers.append(execute)

    # The connection is replaced after the work.
    connection_created.connect(look_on)
    try:
        run_queue(at_most=1)
    finally:
        connection_created.disconnect(look_on)
        connection.execute_wrappers.remove(execute)
    others[0].join()
    assert (last().status, ActiveTask.objects.get().state) == ("paused", "paused")


def test_it_ends_also_while_a_callable_lets_nothing_begin(boss, make_projects, with_actions):
    waits = [0.01, 3600, 0, 0]

    def each(modeladmin, request, project):
        done.append(project.pk)

    options = {"slice": 1e-9, "throttle": lambda: waits.pop(0)}
    with_actions(background_action(permissions=["change"], per_object=True, **options)(each))
    choose(boss, "each", make_projects(2))
    for number in (0, 0, 1):
        run_queue(at_most=1)
        assert (last().status, len(done)) == ("pending", number)
    run_queue()
    assert (last().status, len(done)) == ("success", 2)


def test_a_throttle_waits_between_two_objects(boss, make_projects, with_actions):
    waits = [0.0, 0.01, 0.02, None, 0]
    asked: list[float | None] = []

    def wait():
        asked.append(waits[len(asked)])
        return asked[-1]

    def touch(modeladmin, request, queryset):
        for project in track(queryset):
            done.append((project.pk, len(asked)))

    with_actions(background_action(permissions=["change"], throttle=wait)(touch))
    projects = make_projects(3)
    choose(boss, "touch", projects)
    run_queue()
    assert last().status == "success"
    assert done == [(projects[0].pk, 1), (projects[1].pk, 4), (projects[2].pk, 5)]


@pytest.mark.parametrize("what", ["pause", "cancel"])
def test_its_wait_is_interrupted(boss, make_projects, with_actions, what):
    def wait():
        if not done:
            return 0
        task = get_current_task()
        if what == "pause":
            pause_here()()
        else:
            AsyncManager().cancel_task(task.task_name)
            task.stop_with(TaskCancelled)
        return 3600

    def touch(modeladmin, request, queryset):
        for project in track(queryset):
            done.append(project.pk)

    with_actions(background_action(permissions=["change"], throttle=wait)(touch))
    choose(boss, "touch", make_projects(3))
    run_queue()
    assert (last().status, len(done)) == ("paused" if what == "pause" else "cancelled", 1)


def test_a_number_is_objects_a_second():
    throttle = Throttle(10)
    assert throttle.delay() == 0
    assert 0 < throttle.delay() <= 0.1


def test_also_if_each_slice_has_only_one():
    assert 0 < Throttle(10, goes_on=True).delay() <= 0.1


# The pages


def test_the_pages_pause_and_resume(boss, make_projects, with_actions, manager):
    name = manager.launch_async_task(tasks.add, 1, conflict_ids={"testapp.Project": make_projects(1)})
    record = last()
    page = boss.get(f"{TASKS}{record.pk}/change/").content.decode()
    assert f"{record.pk}/pause/" in page
    assert "Keep the locks" in page
    assert f"{record.pk}/pause/" in boss.get("/admin/testapp/project/").content.decode()
    answer = boss.post(f"{TASKS}{record.pk}/pause/", {"asks_for_locks": "1"}, follow=True)
    assert said(answer) == ["The task was paused."]
    assert "Its objects are not locked." in answer.content.decode()
    assert not ConflictLock.objects.exists()
    page = boss.get(TASKS).content.decode()
    assert "status=paused" in page
    assert f"{record.pk}/resume/" in boss.get(TASKS, {"status": "paused"}).content.decode()
    assert f"{record.pk}/resume/" in boss.get("/admin/testapp/project/").content.decode()
    assert said(boss.post(f"{TASKS}{record.pk}/pause/", follow=True))[0].startswith("The task has already ended")
    assert said(boss.post(f"{TASKS}{record.pk}/resume/", follow=True)) == ["The task was resumed."]
    assert manager.get_task_status(name) == "pending"
    assert said(boss.post(f"{TASKS}{record.pk}/resume/", follow=True)) == ["The task is not paused."]
    assert boss.get("/admin/powercrud_dashboard/taskrecord/").status_code == 200


def test_many_are_paused_and_resumed_at_once(boss, manager):
    names = [manager.launch_async_task(tasks.add, number) for number in range(3)]
    for action, status in (("pause", "paused"), ("resume", "pending")):
        boss.post(f"{TASKS}bulk/", {"action": action, "all": "1", "filter": "", "confirmed": "yes", "up_to": "999999"})
        assert [manager.get_task_status(name) for name in names] == [status] * 3


def test_pausing_needs_the_permission_or_an_own_task(make_user, client_of, manager):
    owner = make_user("owner")
    viewer = make_user("viewer", "view_taskrecord")
    pauser = make_user("pauser", "view_taskrecord", "pause_taskrecord")
    manager.launch_async_task(tasks.add, 1, user=owner)
    url = f"/admin/powercrud_dashboard/taskrecord/{last().pk}"
    assert client_of(viewer).post(f"{url}/pause/").status_code == 403
    for user in (owner, pauser):
        for action, status in (("pause", "paused"), ("resume", "pending")):
            assert client_of(user).post(f"{url}/{action}/").status_code == 302
            assert last().status == status
            assert last().events.filter(event=action).last().actor == user


@pytest.mark.parametrize(
    ("options", "check"),
    [
        ({"slice": 10}, "E026"),
        ({"slice": "x", "per_object": True}, "E025"),
        ({"throttle": "x"}, "E025"),
        ({"slice": 10_000, "per_object": True}, "W022"),
        ({"slice": 1, "per_object": True, "throttle": 5}, None),
    ],
)
def test_the_options_are_checked(with_actions, options, check):
    def act(modeladmin, request, queryset):
        """Do nothing."""

    with_actions(background_action(permissions=["change"], **options)(act))
    found = [message.id.rpartition(".")[2] for message in admin.site.get_model_admin(Project).check()]
    assert found == ([check] if check else [])


@pytest.mark.parametrize("options", [{"slice": 0}, {"throttle": 0}, {"throttle": float("inf")}])
def test_impossible_values_are_refused_at_once(options):
    with pytest.raises(ValueError, match="greater than 0"):
        BackgroundAction(name="act", description="", **options)
