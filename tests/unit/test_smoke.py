"""The test of a cluster: how far it comes, and what is said where it stops."""

from __future__ import annotations

import html
import json
import logging
import re
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.core.management import CommandError, call_command
from django.utils import timezone
from django_q.brokers import get_broker
from django_q.conf import Conf
from django_q.models import OrmQ, Task

from powercrud_dashboard.engine import pauses, smoke, statistics
from powercrud_dashboard.management.pcrud.smoke import DeletedMeanwhile, run_test
from powercrud_dashboard.models import ActiveTask, TaskNotice, TaskRecord, TaskStatistics, WorkerProcess
from tests.workers import claimed_elsewhere, deliver

pytestmark = pytest.mark.django_db

BASE = "/admin/powercrud_dashboard/taskrecord/"
CLUSTER = f"{BASE}cluster/"
NAME = django_settings.Q_CLUSTER["name"]
REDIS = "redis" in django_settings.Q_CLUSTER
orm_only = pytest.mark.skipif(REDIS, reason="delivers from the table of the ORM broker")


@pytest.fixture(autouse=True)
def _empty_queue(transactional_db) -> None:
    get_broker().delete_queue()


@pytest.fixture
def started(manager):
    """A test that was launched a while ago; its name."""

    def start(cluster: str = "") -> str:
        name = smoke.start(manager, cluster, "anna")
        TaskRecord.objects.filter(task_name=name).update(created_at=timezone.now() - timedelta(seconds=10))
        return name

    return start


def report_of(name: str) -> smoke.Report:
    return smoke.report(TaskRecord.objects.get(task_name=name))


def advice(name: str) -> str:
    return str(report_of(name).advice)


def worker(cluster: str = NAME, *, age: float = 60, **fields: Any) -> WorkerProcess:
    fields["started_at"] = timezone.now() - timedelta(seconds=age)
    return WorkerProcess.objects.create(identity=f"w{cluster}{age}", host="h", pid=1, cluster=cluster, **fields)


def run(*arguments: str) -> tuple[int, str, str]:
    out, err = StringIO(), StringIO()
    try:
        call_command("pcrud", "test", *arguments, stdout=out, stderr=err, no_color=True)
    except CommandError as error:
        return error.returncode, out.getvalue(), str(error)
    return 0, out.getvalue(), err.getvalue()


def saved_by_django_q(name: str) -> None:
    Task.objects.create(id="a" * 32, name=name, func="f", started=timezone.now(), stopped=timezone.now(), success=True)


def test_a_test_that_was_just_launched_gives_no_advice(manager):
    report = report_of(smoke.start(manager, "", "anna"))
    assert [step.is_done for step in report.steps] == [True, False, False, False, False]
    assert report.next_step.name == "taken"
    assert (report.advice, report.has_ended, report.has_passed, report.cluster) == ("", False, False, NAME)


def test_without_a_cluster_it_says_how_to_start_one(started):
    assert advice(started()) == "No cluster is running. Start one: python manage.py qcluster"
    assert "Start one: Q_CLUSTER_NAME=nightly python manage.py qcluster" in advice(started("nightly"))


def test_clusters_of_other_queues_are_named(started):
    worker("slow")
    assert "serve other queues (slow)" in advice(started())


def test_a_paused_queue_is_said(started):
    pauses.pause("queue", NAME, "anna", "")
    assert advice(started()) == f"The queue “{NAME}” is paused. Resume it."


def test_idle_workers_that_take_nothing_have_another_broker(started):
    worker()
    assert "their broker may be another one" in advice(started())


def test_busy_workers_are_waited_for(started, manager):
    busy = worker()
    name = manager.launch_async_task("math.floor", 1)
    assert ActiveTask.objects.claim(name, worker=busy.pk)
    assert "All workers of this queue are busy." in advice(started())


def test_a_worker_between_two_tasks_is_not_idle(started, manager):
    worker()
    ended = TaskRecord.objects.create(
        task_name="other", func="f", status="success", worker_host="h", worker_pid=1, finished_at=timezone.now()
    )
    name = started()
    assert "All workers of this queue are busy." in advice(name)
    TaskRecord.objects.filter(pk=ended.pk).update(finished_at=timezone.now() - timedelta(minutes=1))
    assert "their broker may be another one" in advice(name)


def test_neither_is_one_that_has_just_started(started):
    worker(age=0)
    assert "another" not in advice(started())


@orm_only
@pytest.mark.parametrize(
    ("has_worker", "said"), [(True, "none of its workers has begun the task"), (False, "no worker of it is known here")]
)
def test_a_message_that_is_taken_and_not_begun_tells_of_another_database(started, has_worker, said):
    name = started()
    if has_worker:
        worker()
    OrmQ.objects.update(lock=timezone.now() + timedelta(seconds=60))
    assert said in advice(name)


def test_a_worker_that_does_not_end_it_is_named(started):
    name = started()
    claimed_elsewhere(name, host="frozen-host", pid=7)
    ActiveTask.objects.update(started_at=timezone.now() - timedelta(seconds=10))
    report = report_of(name)
    assert report.next_step.name == "ran"
    assert "process 7 on frozen-host" in str(report.advice)


@orm_only
def test_what_ran_has_its_times_and_waits_for_django_q(started):
    name = started()
    deliver()
    TaskRecord.objects.update(finished_at=timezone.now() - timedelta(seconds=10))
    report = report_of(name)
    assert [step.is_done for step in report.steps] == [True, True, True, True, False]
    assert "monitor process has not saved the result" in str(report.advice)
    assert not report.has_ended
    saved_by_django_q(name)
    report = report_of(name)
    assert report.has_passed
    assert report.advice == ""
    assert all(step.milliseconds is not None for step in report.steps[1:4])


def test_a_test_that_somebody_cancels_has_ended(started, manager):
    name = started()
    manager.cancel_task(name)
    report = report_of(name)
    assert (report.has_ended, report.has_passed, report.advice) == (True, False, "Somebody has cancelled it.")


def test_a_test_that_fails_says_why(started):
    name = started()
    ActiveTask.objects.all().delete()
    TaskRecord.objects.update(status="failed", error="no such\ntable", finished_at=timezone.now())
    assert "It has failed: table. Its page has the traceback." in advice(name)
    assert report_of(name).has_ended


def test_nothing_can_be_tested_where_tasks_run_in_the_caller(boss, at_once):
    page = html.unescape(boss.post(f"{CLUSTER}test/{NAME}/", follow=True).content.decode())
    assert "Tasks run in the process that launches them" in page
    code, __, error = run()
    assert (code, "ASYNC_ENABLED is False" in error) == (1, True)


def test_a_test_is_no_work(started, manager, settings):
    name = started()
    manager.cancel_task(name)
    assert statistics.uncounted(10) == ([], False)
    statistics.count_ended()
    assert not TaskStatistics.objects.exists()
    assert not TaskNotice.objects.exists()
    manager.cleanup_completed_tasks()
    assert TaskRecord.objects.filter(task_name=name).exists()
    TaskRecord.objects.update(finished_at=timezone.now() - timedelta(hours=2))
    assert manager.cleanup_completed_tasks(dry_run=True)["pruned_records"] == 1
    assert TaskRecord.objects.filter(task_name=name).exists()
    assert manager.cleanup_completed_tasks()["pruned_records"] == 1
    assert not TaskRecord.objects.exists()


def test_the_next_test_deletes_what_an_old_one_has_left(started, manager):
    old = started()
    saved_by_django_q(old)
    TaskRecord.objects.update(created_at=timezone.now() - timedelta(minutes=10))
    name = smoke.start(manager, "", "bert")
    assert TaskRecord.objects.get().task_name == name
    assert ActiveTask.objects.get().task_name == name
    assert not Task.objects.exists()
    assert REDIS or OrmQ.objects.count() == 1


def test_the_page_starts_a_test_and_shows_its_steps(boss, superuser):
    assert "Test the cluster</button>" in boss.get(CLUSTER).content.decode()
    answer = boss.post(f"{CLUSTER}test/{NAME}/", follow=True)
    ((address, __),) = answer.redirect_chain
    page = answer.content.decode()
    assert re.fullmatch(rf"{CLUSTER}test/\d+/report/\?launch=\d+", address)
    assert page.count("<span>Not yet</span>") == 3
    assert page.count("<span>Done</span>") == 1
    assert TaskRecord.objects.get().user_label == "boss"
    part = boss.get(address, headers={"hx-request": "true"})
    state = re.search('data-pcrud-state="(.*?)"', part.content.decode())[1]
    ActiveTask.objects.all().delete()
    TaskRecord.objects.update(status="failed", error="No <way>", finished_at=timezone.now())
    changed = boss.get(address, headers={"hx-request": "true", "x-pcrud-state": state}).content.decode()
    assert "No &lt;way&gt;" in changed
    state = re.search('data-pcrud-state="(.*?)"', changed)[1]
    assert boss.get(address, headers={"hx-request": "true", "x-pcrud-state": state}).status_code == 204


def test_a_test_that_was_deleted_leads_back_to_the_cluster(boss):
    answer = boss.get(f"{CLUSTER}test/99/report/", follow=True)
    assert "This test of the cluster was deleted." in answer.content.decode()
    assert answer.redirect_chain[-1][0] == CLUSTER


def test_other_tasks_have_no_report(boss, manager, record_of):
    pk = record_of(manager.launch_async_task("math.floor", 1)).pk
    assert boss.get(f"{CLUSTER}test/{pk}/report/").status_code == 302


def test_the_command_says_where_it_stops_and_leaves_nothing(db):
    code, out, error = run("--timeout", "0.2")
    assert code == 1
    assert "Launched: recorded, and handed to the broker" in out
    assert "stops before “Taken by a worker of the cluster”" in error
    assert not TaskRecord.objects.exists()
    assert not ActiveTask.objects.exists()
    assert REDIS or not OrmQ.objects.exists()


def test_its_json_is_complete_where_it_stops(db):
    code, out, __ = run("--timeout", "0.2", "--json")
    found = json.loads(out)
    assert (code, found["passed"], found["stopped_at"], found["cluster"]) == (1, False, "taken", NAME)
    assert [step["step"] for step in found["steps"]] == ["launched", "taken", "ran", "recorded", "saved"]
    assert found["steps"][0]["milliseconds"] > 0


@pytest.mark.parametrize("seconds", ["0", "-1", "nan"])
def test_impossible_times_are_refused(db, seconds):
    assert run("--timeout", seconds)[0] == 2


def test_a_broker_that_does_not_take_it_is_said(db, monkeypatch):
    def away(*args, **kwargs):
        raise ConnectionError("no broker here.")

    monkeypatch.setattr("django_q.brokers.orm.ORM.enqueue", away)
    monkeypatch.setattr("django_q.brokers.redis_broker.Redis.enqueue", away)
    code, out, error = run("--json")
    assert (code, json.loads(out)["stopped_at"]) == (1, "launched")
    assert error == (
        "Not launched: the broker does not take it. ConnectionError: no broker here. Check that it is running, and its "
        "address in Q_CLUSTER."
    )
    assert not TaskRecord.objects.exists()


def test_it_is_said_without_tracebacks_where_no_log_is_set_up(db, monkeypatch, capsys):
    monkeypatch.setattr(Conf, "BROKER_CLASS", "tests.brokers.AwayBroker")
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    err = StringIO()
    with pytest.raises(CommandError):
        call_command("pcrud", "test", stdout=StringIO(), stderr=err)
    assert re.fullmatch(r"Task \S+ could not be queued \(ConnectionError: Nobody listens\.\)\n", err.getvalue())
    assert capsys.readouterr().err == ""


def test_a_test_that_is_deleted_meanwhile_is_said(db):
    def delete(text: str) -> None:
        smoke.forget(TaskRecord.objects.get().task_name)

    with pytest.raises(DeletedMeanwhile, match="somebody has deleted the test before its end"):
        run_test("", "anna", 30, tell=delete)
