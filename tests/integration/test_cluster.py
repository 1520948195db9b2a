"""The promises that need a real worker: processes, signals, connections."""

from __future__ import annotations

import json
import os
import signal
import socket
import uuid
from contextlib import suppress
from datetime import timedelta
from itertools import pairwise

import pytest
from django.conf import settings as django_settings
from django.core.management import call_command
from django.db import OperationalError, connection
from django.utils import timezone
from django_q.models import OrmQ, Task

from powercrud_dashboard.async_manager import AsyncManager
from powercrud_dashboard.engine import processes
from powercrud_dashboard.engine.spec import VERSION, TaskCall, TaskSpec
from powercrud_dashboard.exceptions import TaskConflict
from powercrud_dashboard.models import ActiveTask, ConflictLock, TaskRecord, WorkerProcess
from powercrud_dashboard.q2 import queue
from tests.services import wait_until
from tests.testapp import tasks
from tests.testapp.models import Project

pytestmark = [pytest.mark.cluster, pytest.mark.django_db(transaction=True)]

ONE = {"testapp.Project": {1}}
#: Milliseconds within which a task that has little to do ends.
SOON = 60_000


def nothing_is_active() -> bool:
    return not ActiveTask.objects.exists() and not ConflictLock.objects.exists()


def running(manager, name: str):
    """Wait until a worker has claimed the task; return its row."""
    wait_until(lambda: manager.get_task_status(name) == "in_progress", f"{name} runs")
    return ActiveTask.objects.get(task_name=name)


def test_the_guides_basic_pattern(cluster_later, make_projects, superuser):
    """Reserve, launch, work, progress, result; with a manager that keeps no history."""
    projects = make_projects(3)
    manager = AsyncManager()
    conflict_ids = {"testapp.Project": {project.pk for project in projects}}
    assert manager.add_conflict_ids("custom-task", conflict_ids)
    name = manager.launch_async_task(
        func="tests.testapp.tasks.rebuild_project",
        project_id=projects[0].pk,
        conflict_ids=conflict_ids,
        user=superuser,
        affected_objects=[str(project) for project in projects],
        task_kwargs={"extra": "info"},
    )
    assert not AsyncManager().add_conflict_ids("custom-task", conflict_ids)
    cluster_later()
    assert manager.get_task_status(name, wait=SOON) in ("success", None)
    wait_until(lambda: Task.objects.filter(name=name).exists(), "django-q2 has saved the result")
    assert manager.get_task_status(name) == manager.STATUSES.SUCCESS
    assert manager.is_task_complete(name)
    assert Task.objects.get(name=name).result == {"project": projects[0].pk, "steps": 3, "extra": "info"}
    assert Task.objects.get(name=name).func == "tests.testapp.tasks.rebuild_project"
    assert nothing_is_active()
    assert manager.check_conflict(conflict_ids) == set()


def test_a_completed_task_is_recorded_with_everything(cluster, manager, make_projects, record_of):
    (project,) = make_projects(1)
    name = manager.launch_async_task(tasks.rebuild_project, project.pk, conflict_ids={"testapp.Project": [project.pk]})
    assert manager.get_task_status(name, wait=SOON) == "success"
    record = record_of(name)
    assert record.result == {"project": project.pk, "steps": 3}
    assert (record.message, record.progress_current, record.progress_total) == ("Step 3/3: write", 3, 3)
    assert record.created_at <= record.started_at <= record.finished_at
    assert record.events.first().event == "create"
    assert record.events.get(event="start").payload["worker_pid"] in cluster.worker_pids
    assert manager.get_progress(name) == "Step 3/3: write"
    assert nothing_is_active()


def test_a_failed_task_has_its_traceback_and_is_not_run_again(cluster, manager, record_of, tmp_path):
    name = manager.launch_async_task(tasks.fail, "for a reason", conflict_ids=ONE)
    assert manager.get_task_status(name, wait=SOON) == "failed"
    record = record_of(name)
    assert (record.error, record.exception_class, record.failure_reason) == (
        "for a reason",
        "builtins.ValueError",
        "error",
    )
    assert record.traceback.rstrip().endswith("ValueError: for a reason")
    assert nothing_is_active()
    wait_until(lambda: not OrmQ.objects.exists(), "the broker has forgotten the task")


def test_a_function_that_would_end_the_process_only_ends_its_task(cluster, manager, record_of):
    workers = cluster.worker_pids
    name = manager.launch_async_task(tasks.leave)
    assert manager.get_task_status(name, wait=SOON) == "failed"
    assert record_of(name).exception_class == "builtins.SystemExit"
    after = manager.launch_async_task(tasks.add, 1)
    assert manager.get_task_status(after, wait=SOON) == "success"
    assert cluster.worker_pids == workers


def test_a_timeout_is_recorded_as_one(cluster, manager, record_of, tmp_path):
    name = manager.launch_async_task(
        tasks.sleep_without_reporting, str(tmp_path / "x"), 60, timeout=1, conflict_ids=ONE
    )
    assert manager.get_task_status(name, wait=SOON) == "failed"
    record = record_of(name)
    assert record.failure_reason == "timeout"
    assert "maximum timeout value (1 seconds)" in record.error
    assert "time.sleep(seconds)" in record.traceback
    assert nothing_is_active()


@pytest.mark.parametrize("function", [tasks.sleep_without_reporting, tasks.swallow_errors])
def test_a_running_task_that_never_reports_is_cancelled_and_its_worker_lives(
    cluster, manager, record_of, superuser, tmp_path, until_started, function
):
    sign = tmp_path / "sign"
    seconds = [60] if function is tasks.sleep_without_reporting else []
    name = manager.launch_async_task(function, str(sign), *seconds, conflict_ids=ONE, user=superuser)
    worker = until_started(sign)
    assert manager.cancel_task(name, user=superuser)
    assert manager.get_task_status(name, wait=SOON) == "cancelled"
    record = record_of(name)
    assert record.events.get(event="cancel").actor == superuser
    assert nothing_is_active()
    # The process that ran it takes on the next tasks.
    pids = set()

    def worker_answers() -> bool:
        again = manager.launch_async_task(tasks.count_runs, str(tmp_path / "ledger"))
        assert manager.get_task_status(again, wait=SOON) == "success"
        pids.add(record_of(again).result)
        return worker in pids

    wait_until(worker_answers, "the same worker process runs another task")


def test_idle_workers_that_are_killed_keep_no_others_from_their_tasks(cluster, manager):
    """They do not hold the lock of the queue that they share while they wait, which nobody would release."""
    killed = cluster.worker_pids
    wait_until(lambda: WorkerProcess.objects.count() == len(killed), "all wait for tasks")
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: (now := cluster.worker_pids) and not set(now) & set(killed), "the cluster has others")
    name = manager.launch_async_task(tasks.add, 1)
    assert manager.get_task_status(name, wait=SOON) == "success"


def test_a_cancelled_queued_task_never_runs(manager, transactional_db, cluster_later, tmp_path, record_of):
    ledger = tmp_path / "ledger"
    name = manager.launch_async_task(tasks.count_runs, str(ledger))
    assert manager.cancel_task(name)
    last = manager.launch_async_task(tasks.add, 1)
    cluster_later()
    assert manager.get_task_status(last, wait=SOON) == "success"
    assert not ledger.exists()
    assert record_of(name).status == "cancelled"


def test_progress_shows_while_the_task_is_in_a_transaction(cluster, manager, make_projects, tmp_path, until_started):
    """On PostgreSQL through the reporter's own connection; SQLite has one writer, so through the cache."""
    (project,) = make_projects(1)
    path = tmp_path / "go on"
    name = manager.launch_async_task(tasks.rename_in_transaction, project.pk, str(path))
    until_started(path)
    wait_until(lambda: manager.get_progress(name) == "half way", "progress shows")
    assert Project.objects.get().name == "project 0"
    if connection.vendor == "postgresql":
        columns = ("progress_message", "progress_current", "progress_total")
        row = ActiveTask.objects.filter(task_name=name).values_list(*columns)
        wait_until(lambda: row.get() == ("half way", 5, 10), "the database has it as well")
    path.touch()
    assert manager.get_task_status(name, wait=SOON) == "success"
    assert Project.objects.get().name == "renamed"


def test_the_heartbeat_goes_on_while_a_task_reports_nothing(cluster, manager, tmp_path, until_started):
    path = tmp_path / "go on"
    name = manager.launch_async_task(tasks.wait_for_file, str(path))
    until_started(path)
    first = running(manager, name).worker
    assert first.pid in cluster.worker_pids
    wait_until(lambda: WorkerProcess.objects.get(pk=first.pk).beats > first.beats, "another heartbeat")
    path.touch()
    assert manager.get_task_status(name, wait=SOON) == "success"


def test_idle_workers_are_known_and_gone_when_their_cluster_has_stopped(cluster):
    rows = WorkerProcess.objects.all()
    wait_until(lambda: sorted(rows.values_list("pid", flat=True)) == sorted(cluster.worker_pids), "all have a row")
    assert set(rows.values_list("host", "cluster")) == {(socket.gethostname(), django_settings.Q_CLUSTER["name"])}
    cluster.stop()
    assert not WorkerProcess.objects.exists()


def test_no_transaction_of_a_task_holds_up_its_heartbeat(cluster, manager, make_projects, tmp_path, until_started):
    """It has locked its own row, as a task does that locks more objects inside of a transaction."""
    path = tmp_path / "go on"
    (project,) = make_projects(1)
    name = manager.launch_async_task(tasks.lock_more_in_transaction, project.pk, str(path))
    until_started(path)
    process = ActiveTask.objects.get(task_name=name).worker
    if connection.vendor == "postgresql":
        wait_until(lambda: WorkerProcess.objects.get(pk=process.pk).beats > process.beats + 1, "its process beats")
    else:
        # SQLite's one writer is the task: nobody can write, and so nobody is judged.
        timeout = django_settings.POWERCRUD_SETTINGS["DASHBOARD_HEARTBEAT_TIMEOUT"]
        wait_until(WorkerProcess.objects.silent_for(timeout).filter(pk=process.pk).exists, "its process is silent")
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA busy_timeout = 500")
        with suppress(OperationalError):
            assert manager.cleanup_completed_tasks()["cleaned"] == {}
    path.touch()
    assert manager.get_task_status(name, wait=SOON) == "success"
    assert nothing_is_active()


def test_log_lines_of_a_worker_are_kept(cluster, manager, record_of):
    name = manager.launch_async_task(tasks.log_lines)
    assert manager.get_task_status(name, wait=SOON) == "success"
    logged = record_of(name).events.filter(event="log").values_list("message", flat=True)
    assert list(logged) == ["first line", "second line"]


def test_results_that_can_not_travel_are_described(cluster, manager, record_of):
    name = manager.launch_async_task(tasks.unpicklable)
    assert manager.get_task_status(name, wait=SOON) == "success"
    assert "<function unpicklable" in record_of(name).result
    wait_until(lambda: Task.objects.filter(name=name).exists(), "django-q2 has saved it as well")
    assert record_of(name).events.filter(event="log", payload__level="warning").exists()


def redeliver(message: str) -> None:
    """Put the same message into the queue once more, as a broker does that got no receipt."""
    queue.get_broker().enqueue(message)


@pytest.fixture
def captured_messages(monkeypatch) -> list[str]:
    """The messages that this process hands to the broker."""
    sent: list[str] = []
    broker = type(queue.get_broker())
    original = broker.enqueue

    def enqueue(self, message):
        sent.append(message)
        return original(self, message)

    monkeypatch.setattr(broker, "enqueue", enqueue)
    return sent


def test_a_second_delivery_of_a_finished_task_runs_nothing(cluster, manager, tmp_path, captured_messages, record_of):
    ledger = tmp_path / "ledger"
    name = manager.launch_async_task(tasks.count_runs, str(ledger))
    assert manager.get_task_status(name, wait=SOON) == "success"
    wait_until(lambda: Task.objects.filter(name=name).exists(), "django-q2 has saved it")
    saved = Task.objects.get(name=name).result
    redeliver(captured_messages[0])
    drain(manager)
    assert len(ledger.read_text().splitlines()) == 1
    assert record_of(name).attempts == 1
    assert Task.objects.get(name=name).result == saved


def test_a_second_delivery_of_a_running_task_runs_nothing(cluster, manager, tmp_path, captured_messages, record_of):
    go_on = tmp_path / "go on"
    name = manager.launch_async_task(tasks.wait_for_file, str(go_on))
    running(manager, name)
    redeliver(captured_messages[0])
    drain(manager)
    assert len(list(tmp_path.glob("go on.started-*"))) == 1
    assert not Task.objects.filter(name=name).exists()
    go_on.touch()
    assert manager.get_task_status(name, wait=SOON) == "success"
    wait_until(lambda: Task.objects.filter(name=name).exists(), "django-q2 has saved the real result")
    assert Task.objects.get(name=name).result == str(go_on)
    assert record_of(name).attempts == 1


def test_what_only_a_newer_release_can_run_stays_in_the_queue(cluster, manager, record_of):
    """Brokers with receipts deliver it again; to others, such as Redis, the worker gives it back."""
    spec = {**json.loads(TaskSpec("tests.testapp.tasks.add").to_text()), "version": VERSION + 1}
    queue.enqueue(TaskCall("from-tomorrow", json.dumps(spec), "add"), task_name="from-tomorrow")
    broker = queue.get_broker()
    for _ in range(4):
        assert manager.get_task_status(manager.launch_async_task(tasks.add, 1), wait=SOON) == "success"
    assert cluster.stop() == 0
    assert broker.queue_size() + (broker.lock_size() or 0) == 1


def drain(manager) -> None:
    """Wait until the workers have taken everything that was queued so far."""
    for _worker in range(django_settings.Q_CLUSTER["workers"]):
        assert manager.get_task_status(manager.launch_async_task(tasks.add, 1), wait=SOON) == "success"
    if queue.broker_database():
        wait_until(lambda: OrmQ.objects.count() <= ActiveTask.objects.count(), "the queue is empty")


def test_a_killed_worker_is_found_and_its_objects_can_be_locked_again(
    cluster, manager, tmp_path, until_started, record_of
):
    path = tmp_path / "never"
    name = manager.launch_async_task(tasks.wait_for_file, str(path), conflict_ids=ONE)
    worker = until_started(path)
    with pytest.raises(TaskConflict):
        manager.launch_async_task(tasks.add, 1, conflict_ids=ONE)
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: name in manager.cleanup_completed_tasks()["cleaned"], "cleanup finds it")
    record = record_of(name)
    assert (record.status, record.failure_reason, record.error) == ("failed", "worker_lost", "Worker lost")
    assert nothing_is_active()
    path.touch()
    again = manager.retry_task(name)
    assert manager.get_task_status(again, wait=SOON) == "success"
    assert record_of(again).retry_of == record


def test_a_killed_cluster_loses_nothing(cluster, manager, tmp_path, until_started, record_of):
    path = tmp_path / "never"
    running_task = manager.launch_async_task(tasks.wait_for_file, str(path), conflict_ids=ONE)
    until_started(path)
    cluster.kill()
    queued = manager.launch_async_task(tasks.add, 1, conflict_ids={"testapp.Project": {2}})
    wait_until(lambda: running_task in manager.cleanup_completed_tasks()["cleaned"], "cleanup finds it")
    assert record_of(running_task).failure_reason == "worker_lost"
    assert record_of(queued).status == "pending"
    assert manager.check_conflict({"testapp.Project": {1, 2}}) == {2}


def test_a_lost_workers_task_is_taken_over_by_its_next_delivery(
    cluster, manager, tmp_path, until_started, captured_messages, record_of
):
    path = tmp_path / "go on"
    name = manager.launch_async_task(tasks.wait_for_file, str(path), conflict_ids=ONE)
    os.kill(until_started(path), signal.SIGKILL)
    path.touch()
    wait_until(lambda: processes.find_lost(task_name=name), "its process is declared lost")
    redeliver(captured_messages[0])
    assert manager.get_task_status(name, wait=SOON) == "success"
    assert record_of(name).attempts == 2
    assert nothing_is_active()


def test_cleanup_finds_what_the_broker_has_lost_and_leaves_what_it_has(settings, cluster_later, manager, record_of):
    settings.POWERCRUD_SETTINGS = {"CLEANUP_GRACE_PERIOD": 0}
    name = manager.launch_async_task(tasks.add, 1, conflict_ids=ONE)
    assert manager.cleanup_completed_tasks()["cleaned"] == {}
    queue.get_broker().purge_queue()
    cluster_later()
    cleaned = {}
    # Until all clusters have said that they hold no message, it is left for the next cleanup.
    wait_until(
        lambda: cleaned.update(manager.cleanup_completed_tasks()["cleaned"]) or name in cleaned, "cleanup finds it"
    )
    assert cleaned[name]["reason"] == "lost in the queue"
    assert record_of(name).failure_reason == "never_started"
    assert nothing_is_active()


def test_cleanup_leaves_tasks_alone_that_a_busy_cluster_holds(settings, cluster, manager, tmp_path, until_started):
    """They are in no queue any more with Redis, and not begun yet."""
    settings.POWERCRUD_SETTINGS = {"CLEANUP_GRACE_PERIOD": 0}
    path = tmp_path / "go on"
    names = [manager.launch_async_task(tasks.wait_for_file, str(path)) for _task in range(4)]
    until_started(path)
    wait_until(lambda: queue.get_broker().queue_size() == 0, "the cluster has taken all messages")
    assert manager.cleanup_completed_tasks()["cleaned"] == {}
    path.touch()
    assert [manager.get_task_status(name, wait=SOON) for name in names] == ["success"] * 4


def test_a_retry_of_a_failed_task_completes(cluster, manager, make_projects, record_of):
    name = manager.launch_async_task(tasks.rebuild_project, 1_000, conflict_ids={"testapp.Project": {1_000}})
    assert manager.get_task_status(name, wait=SOON) == "failed"
    assert "Project matching query does not exist" in record_of(name).error
    Project.objects.create(pk=1_000, name="now it is there")
    again = manager.retry_task(name)
    assert manager.get_task_status(again, wait=SOON) == "success"


def test_a_cluster_that_runs_answers_the_probe_and_keeps_no_trace(cluster, manager, settings):
    settings.POWERCRUD_SETTINGS = {**settings.POWERCRUD_SETTINGS, "QCLUSTER_PROBE_TIMEOUT_MS": SOON}
    assert manager.validate_async_qcluster()
    assert manager.validate_async_system()
    wait_until(lambda: not OrmQ.objects.exists(), "the queue is empty")
    assert not Task.objects.exists()
    assert not TaskRecord.objects.exists()


@pytest.mark.usefixtures("_empty_queue")
def test_without_a_cluster_the_probe_says_so_and_keeps_no_trace(manager):
    assert not manager.validate_async_qcluster(timeout_ms=100)
    assert not Task.objects.exists()
    assert queue.get_broker().queue_size() == 0


@pytest.mark.usefixtures("_empty_queue")
def test_a_probe_removes_what_a_busy_cluster_has_left_of_an_earlier_one(manager):
    now = timezone.now()
    ended = {"func": "math.floor", "success": True, "started": now}
    late, new, other = (uuid.uuid4().hex for _number in range(3))
    hour_ago = now - timedelta(hours=1)
    Task.objects.create(id=late, name=f"{queue.PROBE_PREFIX}late", group=queue.PROBE_GROUP, stopped=hour_ago, **ended)
    # That of another process, which may still read it.
    Task.objects.create(id=new, name=f"{queue.PROBE_PREFIX}new", group=queue.PROBE_GROUP, stopped=now, **ended)
    Task.objects.create(id=other, name="other", stopped=hour_ago, **ended)
    assert not manager.validate_async_qcluster(timeout_ms=1)
    assert set(Task.objects.values_list("pk", flat=True)) == {new, other}


def test_a_cluster_stops_cleanly_after_tasks(cluster, manager):
    assert manager.get_task_status(manager.launch_async_task(tasks.add, 1), wait=SOON) == "success"
    assert cluster.stop() == 0


def test_an_admin_action_runs_in_a_worker(cluster, client_of, superuser, make_projects, record_of):
    projects = make_projects(3)
    chosen = [project.pk for project in projects[:2]]
    client_of(superuser).post("/admin/testapp/project/", {"action": "archive", "_selected_action": chosen})
    record = TaskRecord.objects.get()
    wait_until(lambda: record_of(record.task_name).is_finished, "the action ends")
    record.refresh_from_db()
    assert (record.status, record.label) == ("success", "Archive selected projects")
    assert list(Project.objects.filter(archived=True).values_list("pk", flat=True)) == chosen
    assert record.events.get(event="log").message == "Archived by boss."
    assert (record.progress_current, record.progress_total) == (2, 2)


@pytest.mark.parametrize(("function", "each"), [("connections_made", 0), ("connections_made_by_a_query", 1)])
def test_a_worker_connects_for_the_functions_of_its_tasks_and_not_for_its_own_writing(cluster, manager, function, each):
    for _ in range(9):
        manager.launch_async_task(f"tests.testapp.tasks.{function}")
    wait_until(lambda: TaskRecord.objects.completed().count() == 9, "the tasks end")
    by_worker: dict[int, list[int]] = {}
    for result in TaskRecord.objects.order_by("finished_at").values_list("result", flat=True):
        by_worker.setdefault(result["pid"], []).append(result["made"])
    # What a worker opens for its first task is for all.
    grown = {later - earlier for made in by_worker.values() for earlier, later in pairwise(made)}
    assert grown == {each}


def test_the_cluster_is_tested_with_a_real_task(cluster, boss, capsys):
    call_command("pcrud", "test", "--json")
    found = json.loads(capsys.readouterr().out)
    assert (found["passed"], found["stopped_at"], found["advice"]) == (True, None, "")
    assert all(step["done"] for step in found["steps"])
    assert all(step["milliseconds"] >= 0 for step in found["steps"][:4])
    assert not TaskRecord.objects.filter(group="pcrud-test").exists()
    name = django_settings.Q_CLUSTER["name"]
    address = boss.post(f"/admin/powercrud_dashboard/taskrecord/cluster/test/{name}/")["Location"]
    wait_until(lambda: "The cluster works." in boss.get(address).content.decode(), "the test has passed")


def test_the_doctor_finds_a_cluster_that_works(cluster, capsys):
    call_command("pcrud_schedule_cleanup")
    wait_until(lambda: WorkerProcess.objects.exclude(cluster="").exists(), "a worker is known")
    capsys.readouterr()
    call_command("pcrud", "doctor", "--json")
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert [finding["text"] for finding in findings if finding["level"] == "problem"] == []
    [tested] = [finding["text"] for finding in findings if finding["examination"] == "test"]
    assert tested.startswith(f"Queue {django_settings.Q_CLUSTER['name']}: a test task took ")
