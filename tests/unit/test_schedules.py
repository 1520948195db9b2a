"""Schedules on the cluster page: how they fare, run now, pause and resume."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.contrib.admin.models import LogEntry
from django.utils import timezone
from django_q.models import OrmQ, Schedule, Task

from powercrud_dashboard.q2 import schedules
from powercrud_dashboard.schedules import CLEANUP_NAME, CLEANUP_PATH
from tests.services import wait_until
from tests.workers import meanwhile

pytestmark = pytest.mark.django_db

BASE = "/admin/powercrud_dashboard/taskrecord/"
CLUSTER = f"{BASE}cluster/"


@pytest.fixture
def keeper(make_user):
    """Somebody who may change schedules."""
    return make_user("keeper", "view_taskrecord", "change_schedule")


def make(**fields) -> Schedule:
    settled = {"func": "tests.testapp.tasks.add", "args": "2", "name": "nightly", "schedule_type": Schedule.DAILY}
    return Schedule.objects.create(next_run=timezone.now() + timedelta(hours=5), **{**settled, **fields})


def url(schedule: Schedule, action: str) -> str:
    return f"{BASE}schedules/{schedule.pk}/{action}/"


def act(client, schedule: Schedule, action: str) -> str:
    return client.post(url(schedule, action), follow=True).content.decode()


def test_a_schedule_is_shown_with_its_next_run_and_its_last_result(client_of, keeper):
    schedule = make(task="a" * 32)
    client = client_of(keeper)
    assert "still running, or result deleted" in client.get(CLUSTER).content.decode()
    now = timezone.now()
    task = Task.objects.create(id="a" * 32, name="x", func="f", started=now, stopped=now, success=True)
    page = client.get(CLUSTER).content.decode()
    assert "<strong>nightly</strong>" in page
    assert "Succeeded" in page
    task.success = False
    task.save()
    assert "Failed" in client.get(CLUSTER).content.decode()
    schedule.delete()
    make()
    assert "Never run" in client.get(CLUSTER).content.decode()


def test_how_often_a_schedule_runs_is_said_in_words(client_of, keeper):
    make(schedule_type=Schedule.MINUTES, minutes=5)
    make(schedule_type=Schedule.MINUTES, minutes=1)
    make()
    page = client_of(keeper).get(CLUSTER).content.decode()
    assert all(f">{words}<" in page for words in ("every 5 minutes", "every minute", "Daily"))


def test_all_schedules_take_two_queries(django_assert_num_queries):
    for _number in range(5):
        make(task="a" * 32)
    with django_assert_num_queries(2):
        assert len(schedules.schedule_states()) == 5


def test_two_hosts_that_are_set_up_at_the_same_moment_make_one_schedule():
    def ensure() -> bool:
        return schedules.ensure_schedule(CLEANUP_PATH, name=CLEANUP_NAME, seconds=300)

    with meanwhile(ensure, before="INSERT INTO"):
        assert ensure()
    assert not ensure()
    assert Schedule.objects.get(name=CLEANUP_NAME).func == CLEANUP_PATH


def test_pause_and_resume(client_of, keeper):
    schedule = make()
    client = client_of(keeper)
    page = act(client, schedule, "pause")
    assert "“nightly” is paused." in page
    assert url(schedule, "resume") in page
    assert url(schedule, "pause") not in page
    schedule.refresh_from_db()
    assert schedule.next_run is None
    page = act(client, schedule, "resume")
    assert "“nightly” runs again as scheduled." in page
    schedule.refresh_from_db()
    assert timedelta(hours=23) < schedule.next_run - timezone.now() <= timedelta(hours=25)
    said = LogEntry.objects.filter(user=keeper, object_id=schedule.pk).order_by("pk")
    assert [entry.change_message for entry in said] == ["“nightly” is paused.", "“nightly” runs again as scheduled."]


@pytest.mark.parametrize(
    ("fields", "action", "answer"),
    [
        ({"schedule_type": Schedule.ONCE}, "pause", "no further runs"),
        ({"repeats": 0}, "pause", "no further runs"),
        ({}, "resume", "is not paused"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(client_of, keeper, fields, action, answer):
    schedule = make(**fields)
    page = act(client_of(keeper), schedule, action)
    assert answer in page
    assert Schedule.objects.get(pk=schedule.pk).next_run == schedule.next_run
    assert not LogEntry.objects.exists()


def test_a_schedule_that_is_gone(client_of, keeper):
    schedule = make()
    Schedule.objects.all().delete()
    assert "The schedule no longer exists." in act(client_of(keeper), schedule, "run")


def test_an_unknown_action_is_not_found(client_of, keeper):
    assert client_of(keeper).post(url(make(), "explode")).status_code == 404


def test_buttons_are_for_who_may_change_schedules(client_of, make_user):
    schedule = make()
    viewer = client_of(make_user("viewer", "view_taskrecord"))
    assert "/schedules/" not in viewer.get(CLUSTER).content.decode()
    for action in ("run", "pause", "resume"):
        assert viewer.post(url(schedule, action)).status_code == 403
    assert not OrmQ.objects.exists()
    assert client_of(make_user("outsider", "change_schedule")).post(url(schedule, "run")).status_code == 403


def test_run_now_leaves_the_next_run_as_it_is(client_of, keeper):
    schedule = make(kwargs="{'step': 3}", cluster="slow")
    page = act(client_of(keeper), schedule, "run")
    assert "was queued to run now" in page
    queued = OrmQ.objects.get()
    assert queued.key == "slow"
    task = queued.task
    assert (task["func"], task["args"], task["kwargs"]) == ("tests.testapp.tasks.add", (2,), {"step": 3})
    assert task["group"] == "nightly"
    after = Schedule.objects.get(pk=schedule.pk)
    assert (after.next_run, after.repeats, after.task) == (schedule.next_run, -1, task["id"])


@pytest.mark.parametrize(
    ("args", "kwargs", "called_with"),
    [
        (None, None, ((), {})),
        ("1, 'two'", None, ((1, "two"), {})),
        ("[1]", "a=1, b='x'", (([1],), {"a": 1, "b": "x"})),
        ("", "{'a': [1]}", ((), {"a": [1]})),
    ],
)
def test_arguments_are_read_as_the_scheduler_reads_them(args, kwargs, called_with):
    schedules.run_now(make(args=args, kwargs=kwargs))
    task = OrmQ.objects.get().task
    assert (task["args"], task["kwargs"]) == called_with


def test_options_in_the_arguments_and_the_intended_date_are_kept():
    options = "{'q_options': {'group': 'own', 'timeout': 7}}"
    schedules.run_now(make(kwargs=options, intended_date_kwarg="day", hook="tests.testapp.hook"))
    task = OrmQ.objects.get().task
    assert (task["group"], task["timeout"], task["hook"]) == ("own", 7, "tests.testapp.hook")
    assert task["kwargs"]["day"].startswith(str(timezone.now().year))


@pytest.mark.parametrize("broken", [{"args": "1,,"}, {"kwargs": "a b"}, {"kwargs": "[1]"}, {"args": "print()"}])
def test_arguments_that_cant_be_read_run_nothing(client_of, keeper, broken):
    page = act(client_of(keeper), make(**broken), "run")
    assert "can&#x27;t be read" in page
    assert "“nightly” was not changed" in page
    assert "Check the schedule" in page
    assert not OrmQ.objects.exists()
    assert not LogEntry.objects.exists()


@pytest.mark.django_db(transaction=True)
@pytest.mark.cluster
def test_a_real_cluster_runs_it_and_the_page_says_how_it_went(client_of, keeper, cluster):
    schedule = make()
    client = client_of(keeper)
    act(client, schedule, "run")
    wait_until(lambda: "Succeeded" in client.get(CLUSTER).content.decode(), "the page shows the result")
