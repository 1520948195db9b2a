"""When alerts are opened, and when they end."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.core.management import call_command
from django.db import DataError, connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from django_q.models import Schedule

from powercrud_dashboard.engine import alerts, processes
from powercrud_dashboard.engine.alert_messages import text_of
from powercrud_dashboard.engine.cleanup import Cleanup
from powercrud_dashboard.engine.vitals import Workers
from powercrud_dashboard.models import ActiveTask, Alert, AlertEvaluation, TaskRecord, WorkerProcess
from powercrud_dashboard.q2 import queue
from tests.alerting import ended, evaluate, later, open_alerts, past_alerts, worker
from tests.testapp import tasks
from tests.workers import database_refuses, meanwhile, run_queue

pytestmark = pytest.mark.django_db(transaction=True)

#: Longer than any worker may be silent with the settings of the tests, which say five seconds.
LONG = 30
QUEUE = queue.current_cluster()


@pytest.fixture(autouse=True)
def with_alerts(settings):
    def change(alerts: object = None, **others: object) -> None:
        settings.POWERCRUD_SETTINGS = {
            "DASHBOARD_HEARTBEAT_TIMEOUT": 5,
            "DASHBOARD_ALERTS": {} if alerts is None else alerts,
            **others,
        }

    change()
    return change


def one_alert() -> Alert:
    return Alert.objects.get()


# Turns


def test_the_installation_evaluates_twice_a_minute_at_most():
    assert alerts.evaluate()
    assert not alerts.evaluate()
    AlertEvaluation.objects.update(due_at=timezone.now() - timedelta(seconds=1))
    assert alerts.evaluate()


def test_a_clock_that_was_set_back_does_not_stop_it():
    AlertEvaluation.objects.create(pk=1, due_at=timezone.now() + timedelta(hours=1))
    assert alerts.evaluate()


@pytest.mark.parametrize("is_first", [True, False])
def test_of_two_processes_that_are_due_one_evaluates(is_first):
    if not is_first:
        AlertEvaluation.objects.create(pk=1, due_at=timezone.now() - timedelta(seconds=1))
    seen = []
    with meanwhile(lambda: seen.append(alerts.evaluate()), after="SELECT"):
        seen.append(alerts.evaluate())
    assert seen == [True, False]


def test_of_two_evaluations_at_the_same_time_one_opens_the_alert(with_alerts):
    with_alerts({"call": "tests.alerting.tell"})
    with meanwhile(evaluate, after='SELECT "powercrud_dashboard_alert"'):
        evaluate()
    assert one_alert().messages.count() == 1


def test_an_evaluation_that_takes_long_ends_no_alert_that_another_has_opened_meanwhile():
    worker(1)

    def another() -> None:
        WorkerProcess.objects.update(heartbeat_at=timezone.now() - timedelta(hours=1))
        evaluate(times=1)
        assert open_alerts() == [("no_workers", "")]

    # By then it has judged the workers.
    with meanwhile(another, before='SELECT "powercrud_dashboard_taskrecord"'):
        evaluate(times=1)
    evaluate()
    assert (open_alerts(), past_alerts()) == ([("no_workers", "")], [])


def test_an_alert_that_can_not_be_opened_stops_no_other(alive):
    for name in ("a", "b", "c"):
        Schedule.objects.create(name=name, func="math.floor", next_run=timezone.now() - timedelta(hours=1))
    refused = []

    def execute(execute, sql, params, many, context):
        if sql.startswith('INSERT INTO "powercrud_dashboard_alert" ') and not refused:
            refused.append(params)
            raise DataError("value too long")
        return execute(sql, params, many, context)

    with connection.execute_wrapper(execute):
        evaluate(times=1)
    assert len(refused) == 1
    assert len(open_alerts()) == 2


def test_the_name_of_a_host_may_be_as_long_as_its_column(alive):
    lost = worker(12_345, silent=LONG)
    WorkerProcess.objects.filter(pk=lost.pk).update(host="h" * 255)
    evaluate()
    ((kind, subject),) = open_alerts()
    assert kind == "workers_lost"
    assert subject.endswith(" 12345")


def test_an_evaluation_costs_few_queries_whatever_the_history(with_alerts):
    with_alerts({"failure_rate": {"queues": {QUEUE: {}}, "functions": {"app.f1": {"minutes": 5}}}})
    worker(1)
    evaluate()
    for count in (1, 50):
        for number in range(count):
            ended(3, "failed", func=f"app.f{number}")
            ended(7, "success", func=f"app.f{number}")
        AlertEvaluation.objects.update(due_at=timezone.now() - timedelta(seconds=1))
        with CaptureQueriesContext(connection) as captured:
            alerts.evaluate()
        # Whether it is time, and the turn; then the queues, the workers, the failures, the schedules, the open alerts.
        kinds = [
            sql.lstrip("(").partition(" ")[0] for sql in (query["sql"] for query in captured) if "set_config" not in sql
        ]
        assert (kinds.count("SELECT"), kinds.count("UPDATE"), kinds.count("INSERT")) == (6, 2, 0)


# Workers


def test_without_any_worker_there_is_one_alert_until_one_comes():
    evaluate()
    evaluate()
    assert open_alerts() == [("no_workers", "")]
    assert text_of(one_alert()) == "No worker runs"
    worker(1)
    evaluate()
    assert (open_alerts(), past_alerts()) == ([], [("no_workers", "")])


def test_a_deploy_is_no_alert():
    worker(1)
    evaluate()
    WorkerProcess.objects.all().delete()  # they have said so
    evaluate(times=1)
    assert open_alerts() == []
    worker(2, started=1)
    evaluate(times=1)
    WorkerProcess.objects.all().delete()
    evaluate(times=1)
    assert open_alerts() == []
    evaluate(times=1)
    assert open_alerts() == [("no_workers", "")]


def test_workers_are_missed_soon_after_the_clock_was_set_back():
    worker(1, silent=-3_600)
    evaluate(times=1)
    assert open_alerts() == []  # its next heartbeat may be about to come
    evaluate(times=1)
    assert open_alerts() == [("no_workers", "")]


def test_workers_that_have_not_said_so_are_missed_at_once():
    worker(1, silent=LONG)
    evaluate(times=1)
    assert open_alerts() == [("no_workers", "")]
    # It is one alert, however soon it is evaluated again.
    later(0)
    assert alerts.evaluate()
    assert (open_alerts(), past_alerts()) == ([("no_workers", "")], [])


def test_if_all_workers_die_that_is_one_alert_that_ends_with_the_first_who_comes_back():
    worker(1)
    worker(2)
    evaluate()
    assert open_alerts() == []
    WorkerProcess.objects.update(heartbeat_at=timezone.now() - timedelta(seconds=LONG))
    evaluate()
    assert open_alerts() == [("no_workers", "")]
    worker(3, started=1)
    evaluate()
    assert (open_alerts(), past_alerts()) == ([], [("no_workers", "")])


def test_a_second_death_of_all_is_a_second_alert():
    for pid in (1, 2):
        worker(pid, silent=LONG)
        evaluate()
        alive = worker(10 + pid, started=1)
        evaluate()
        alive.delete()
    assert past_alerts() == [("no_workers", "")] * 2


def test_tasks_in_the_callers_process_need_no_worker(with_alerts):
    with_alerts(ASYNC_ENABLED=False)
    worker(1, silent=LONG)
    evaluate()
    assert open_alerts() == []


def test_a_queue_without_a_worker_is_an_alert_when_a_task_waits_there(manager):
    worker(1)
    manager.launch_async_task(tasks.add, 1, cluster="reports")
    evaluate()
    assert open_alerts() == []  # its worker may be about to start
    ActiveTask.objects.update(queued_at=timezone.now() - timedelta(seconds=40))
    evaluate()
    assert open_alerts() == [("no_workers", "reports")]
    assert text_of(one_alert()) == "No worker runs for the queue reports"


def test_a_lost_worker_is_an_alert_until_another_takes_its_place():
    worker(1)
    worker(2, silent=LONG)
    evaluate()
    evaluate()
    assert open_alerts() == [("workers_lost", "web1 2")]
    assert text_of(one_alert()) == f"The worker process 2 on web1, of the queue {QUEUE}, is lost"
    # One of another queue is none.
    worker(3, started=1, cluster="reports")
    evaluate()
    assert open_alerts() == [("workers_lost", "web1 2")]
    worker(4, started=1)
    evaluate()
    assert (open_alerts(), past_alerts()) == ([], [("workers_lost", "web1 2")])


def test_each_death_is_an_alert_also_if_the_cluster_has_replaced_the_worker_at_once():
    worker(1)
    worker(2, started=3_600, silent=3 * LONG)
    worker(3, started=2 * LONG)
    evaluate(times=1)
    assert open_alerts() == [("workers_lost", "web1 2")]
    evaluate()
    assert (open_alerts(), past_alerts()) == ([], [("workers_lost", "web1 2")])
    WorkerProcess.objects.filter(pid=3).update(heartbeat_at=timezone.now() - timedelta(seconds=LONG))
    evaluate()
    assert open_alerts() == [("workers_lost", "web1 3")]
    # Once replaced, it is over for good: the cluster may be made smaller later.
    successor = worker(4, started=1)
    evaluate()
    successor.delete()
    evaluate()
    assert open_alerts() == []


def test_a_worker_that_was_declared_lost_and_goes_on_under_another_identity_takes_its_own_place():
    worker(1)
    process = processes.ThisProcess()
    process.become_worker(QUEUE)
    first = WorkerProcess.objects.filter(pk=process.register())
    hour_ago, silent_since = (timezone.now() - timedelta(seconds=seconds) for seconds in (3_600, LONG))
    first.update(started_at=hour_ago, heartbeat_at=silent_since)
    assert WorkerProcess.objects.declare_lost(first.get())
    evaluate()
    assert [kind for kind, _subject in open_alerts()] == ["workers_lost"]
    process.beat()
    evaluate()
    assert (open_alerts(), len(past_alerts())) == ([], 1)
    # It is one worker, also after it was lost twice: it takes the place of no other, and is missed when it is gone.
    second = WorkerProcess.objects.filter(pk=process.identity)
    second.update(heartbeat_at=silent_since + timedelta(seconds=5))
    assert WorkerProcess.objects.declare_lost(second.get())
    evaluate()
    assert [worker.pk for worker in Workers.now().not_replaced] == [process.identity]
    assert (len(open_alerts()), len(past_alerts())) == (1, 1)


def test_a_second_death_under_the_same_process_id_is_a_second_alert():
    worker(1)
    worker(7, silent=2 * LONG)
    evaluate()
    second = WorkerProcess.objects.filter(pk=worker(7, started=LONG + 5).pk)
    evaluate()
    assert open_alerts() == []
    second.update(heartbeat_at=timezone.now() - timedelta(seconds=LONG))
    evaluate()
    assert (open_alerts(), past_alerts()) == ([("workers_lost", "web1 7")], [("workers_lost", "web1 7")])
    worker(7, started=1)
    evaluate()
    assert past_alerts() == [("workers_lost", "web1 7")] * 2


def test_a_worker_that_was_only_silent_for_a_while_can_still_be_lost():
    worker(1)
    silent = worker(2, silent=LONG)
    evaluate()
    assert WorkerProcess.objects.beat(silent.pk)
    evaluate()
    assert (open_alerts(), past_alerts()) == ([], [("workers_lost", "web1 2")])
    WorkerProcess.objects.filter(pk=silent.pk).update(heartbeat_at=timezone.now() - timedelta(seconds=LONG))
    evaluate()
    assert open_alerts() == [("workers_lost", "web1 2")]


def test_the_row_of_a_lost_worker_is_kept_for_its_alert():
    worker(1)
    worker(2, silent=600)
    evaluate()
    processes.forget_old()
    evaluate()
    assert open_alerts() == [("workers_lost", "web1 2")]
    WorkerProcess.objects.filter(pid=2).update(heartbeat_at=timezone.now() - timedelta(days=2))
    processes.forget_old()
    evaluate()
    assert open_alerts() == []


def test_a_worker_that_has_left_is_not_lost():
    worker(1)
    worker(2).delete()
    evaluate()
    assert open_alerts() == []


# Queues


@pytest.fixture
def waiting(manager):
    """Tasks that wait since so many seconds."""

    def launch(count: int, seconds: float, **options: object) -> None:
        names = [manager.launch_async_task(tasks.add, number, **options) for number in range(count)]
        ActiveTask.objects.filter(task_name__in=names).update(queued_at=timezone.now() - timedelta(seconds=seconds))

    worker(1)
    worker(2, cluster="reports")
    return launch


def test_the_oldest_wait(waiting):
    waiting(1, 800)
    evaluate()
    assert open_alerts() == []
    waiting(1, 1_000)
    evaluate()
    assert open_alerts() == [("oldest_wait", QUEUE)]
    assert text_of(one_alert()) == f"The oldest task in the queue {QUEUE} had waited for 16 minutes"
    ActiveTask.objects.all().delete()
    evaluate()
    assert open_alerts() == []


def test_the_depth_of_a_queue(with_alerts, waiting):
    with_alerts({"queue_depth": {"tasks": 3}})
    waiting(2, 0)
    evaluate()
    assert open_alerts() == []
    waiting(1, 0)
    evaluate()
    assert open_alerts() == [("queue_depth", QUEUE)]
    assert text_of(one_alert()) == f"3 tasks wait in the queue {QUEUE}"


def test_a_number_that_goes_up_and_down_at_its_limit_is_one_alert(with_alerts, waiting, manager):
    with_alerts({"queue_depth": {"tasks": 10}, "oldest_wait": {"seconds": 1_000}})
    waiting(9, 900)
    evaluate()
    assert open_alerts() == []
    waiting(1, 1_100)
    evaluate()
    one_each = [("oldest_wait", QUEUE), ("queue_depth", QUEUE)]
    assert open_alerts() == one_each
    oldest, *others = ActiveTask.objects.order_by("queued_at").values_list("task_name", flat=True)
    manager.cancel_task(oldest)
    evaluate()
    assert (open_alerts(), past_alerts()) == (one_each, [])
    for name in others[:2]:
        manager.cancel_task(name)
    ActiveTask.objects.update(queued_at=timezone.now() - timedelta(seconds=700))
    evaluate()
    assert (open_alerts(), past_alerts()) == ([], one_each)


def test_a_queue_may_have_limits_of_its_own(with_alerts, waiting):
    with_alerts({"oldest_wait": {"seconds": 10, "queues": {"reports": {"seconds": 60}}}})
    waiting(1, 20, cluster="reports")
    evaluate()
    assert open_alerts() == []
    waiting(1, 20)
    waiting(1, 80, cluster="reports")
    evaluate()
    assert open_alerts() == [("oldest_wait", QUEUE), ("oldest_wait", "reports")]


def test_what_does_not_wait_for_a_worker_does_not_count(with_alerts, waiting, manager):
    with_alerts({"queue_depth": {"tasks": 1}})
    manager.launch_async_task(tasks.add, 1, run_after=timezone.now() + timedelta(hours=1))
    evaluate()
    assert open_alerts() == []


# Failures


@pytest.fixture
def alive():
    worker(1)


def test_the_failure_rate_of_a_function(alive):
    ended(5, "success")
    ended(4, "failed")
    evaluate()
    assert open_alerts() == []  # nine are too few
    ended(1, "failed")
    evaluate()
    assert open_alerts() == [("failure_rate", "app.work")]
    assert text_of(one_alert()) == "5 of 10 tasks of app.work failed in the last 15 minutes"
    ended(2, "success")
    evaluate()
    assert open_alerts() == [("failure_rate", "app.work")]  # five of twelve: not a fifth below the limit
    ended(1, "success")
    evaluate()
    assert open_alerts() == []


def test_failures_of_long_ago_do_not_count(alive):
    ended(20, "failed", minutes=16)
    evaluate()
    assert open_alerts() == []


def test_attempts_do_not_count(alive, manager, with_alerts):
    """Five tasks that each succeed at their second attempt."""
    ended(5, "success")
    for _number in range(5):
        manager.launch_async_task(tasks.fail_until, 2, retry=1)
    run_queue()
    ActiveTask.objects.update(next_run_at=timezone.now())
    assert manager.send_due_tasks() == 5
    run_queue()
    assert set(TaskRecord.objects.values_list("status", flat=True)) == {"success"}
    with_alerts({"failure_rate": {"at_least": 1, "share": 0.1}})
    evaluate()
    assert open_alerts() == []


def test_a_failure_that_is_settled_does_not_count(alive):
    ended(10, "failed", resolution="resolved")
    ended(10, "failed", resolution="dismissed")
    ended(10, "failed", superseded=True)
    evaluate()
    assert open_alerts() == []


def test_functions_and_queues_may_have_limits_of_their_own(alive, with_alerts):
    own = {"functions": {"app.a": {"share": 0.1, "at_least": 2, "minutes": 60}, "app.b": None}}
    with_alerts({"failure_rate": {**own, "queues": {"reports": {"at_least": 20}}}})
    ended(1, "failed", func="app.a", minutes=50)
    ended(9, "success", func="app.a")
    ended(15, "failed", func="app.b", cluster="reports")
    ended(15, "success", func="app.c", cluster="reports")
    evaluate()
    assert open_alerts() == [("failure_rate", "app.a"), ("failure_rate", "queue:reports")]
    texts = {text_of(alert) for alert in Alert.objects.all()}
    assert "15 of 30 tasks of the queue reports failed in the last 15 minutes" in texts


# Schedules


def test_a_schedule_that_has_missed_its_run(alive):
    due = timezone.now() - timedelta(minutes=3)
    schedule = Schedule.objects.create(name="Nightly", func="math.floor", schedule_type=Schedule.DAILY, next_run=due)
    evaluate()
    assert open_alerts() == [("missed_schedule", "Nightly")]
    assert "The schedule “Nightly” has missed its run of" in text_of(one_alert())
    Schedule.objects.filter(pk=schedule.pk).update(next_run=timezone.now() + timedelta(days=1))
    evaluate()
    assert open_alerts() == []


def test_a_schedule_that_is_a_little_late_used_up_or_paused_is_none(alive):
    now = timezone.now()
    Schedule.objects.create(name="late", func="math.floor", next_run=now - timedelta(seconds=60))
    Schedule.objects.create(name="used up", func="math.floor", next_run=now - timedelta(days=1), repeats=0)
    Schedule.objects.create(name="paused", func="math.floor", schedule_type=Schedule.DAILY, next_run=None)
    evaluate()
    assert open_alerts() == []


# Settings, and the rest


def test_a_kind_may_be_off(with_alerts):
    with_alerts({"no_workers": None})
    evaluate()
    assert open_alerts() == []


def test_without_alerts_those_that_are_open_end(with_alerts):
    evaluate()
    with_alerts(None, DASHBOARD_ALERTS=None)
    evaluate()
    assert (open_alerts(), past_alerts()) == ([], [("no_workers", "")])


def test_what_can_not_be_judged_stays_as_it_is(alive):
    Schedule.objects.create(name="a", func="math.floor", next_run=timezone.now() - timedelta(hours=1))
    evaluate()
    assert open_alerts() == [("missed_schedule", "a")]
    WorkerProcess.objects.all().delete()
    with database_refuses('SELECT "django_q_schedule"', 2):
        evaluate()
    assert open_alerts() == [("missed_schedule", "a"), ("no_workers", "")]


def test_the_cleanup_tells_of_workers_that_were_lost_long_before_it_came():
    worker(1, silent=600)
    call_command("pcrud_cleanup_async")
    assert open_alerts() == [("no_workers", "")]
    assert not WorkerProcess.objects.filter(is_loss_told=False).exists()


def test_the_cleanup_evaluates_and_forgets_what_ended_long_ago():
    old = Alert.objects.create(kind="oldest_wait", subject="a", resolved_at=timezone.now() - timedelta(days=91))
    Alert.objects.create(kind="oldest_wait", subject="b", resolved_at=timezone.now() - timedelta(days=89))
    worker(1, silent=LONG)
    Cleanup(dry_run=True).run()
    assert open_alerts() == []
    call_command("pcrud_cleanup_async")
    assert open_alerts() == [("no_workers", "")]
    assert not Alert.objects.filter(pk=old.pk).exists()
    assert past_alerts() == [("oldest_wait", "b")]
