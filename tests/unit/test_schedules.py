"""The page of the schedules: how they fare, run now, pause and resume."""

from __future__ import annotations

import re
import uuid
from datetime import timedelta

import pytest
from django.contrib.admin.models import LogEntry
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from django_q.models import OrmQ, Schedule, Task

from powercrud_dashboard.dashboard.schedules import shown_schedules
from powercrud_dashboard.models import TaskRecord, WorkerProcess
from powercrud_dashboard.q2 import schedules
from powercrud_dashboard.schedules import CLEANUP_NAME, CLEANUP_PATH
from tests.services import wait_until
from tests.workers import meanwhile

pytestmark = pytest.mark.django_db

BASE = "/admin/powercrud_dashboard/taskrecord/"
PAGE = f"{BASE}schedules/"
#: Of a refresh: session, user, two of permissions, the clock, whether a cluster runs; and four of the schedules.
QUERIES = 10


@pytest.fixture
def keeper(make_user):
    """Somebody who may change schedules."""
    return make_user("keeper", "view_taskrecord", "change_schedule")


def make(**fields) -> Schedule:
    usual = {"func": "tests.testapp.tasks.add", "args": "2", "name": "nightly", "schedule_type": Schedule.DAILY}
    return Schedule.objects.create(**{**usual, "next_run": timezone.now() + timedelta(hours=5), **fields})


def url(schedule: Schedule, action: str) -> str:
    return f"{BASE}schedules/{schedule.pk}/{action}/"


def edit_url(schedule: Schedule) -> str:
    return f"/admin/django_q/schedule/{schedule.pk}/change/"


def act(client, schedule: Schedule, action: str) -> str:
    return client.post(url(schedule, action), follow=True).content.decode()


def test_a_schedule_is_shown_with_its_next_run_and_its_last_result(client_of, keeper):
    schedule = make(task="a" * 32)
    client = client_of(keeper)
    assert "still running, or not on record" in client.get(PAGE).content.decode()
    now = timezone.now()
    task = Task.objects.create(id="a" * 32, name="x", func="f", started=now, stopped=now, success=True)
    page = client.get(PAGE).content.decode()
    assert f'{edit_url(schedule)}" title="Change the schedule">nightly</a>' in page
    assert "Completed" in page
    task.success = False
    task.save()
    assert "Failed" in client.get(PAGE).content.decode()
    schedule.delete()
    make(next_run=now + timedelta(days=1, hours=23, minutes=30))
    page = client.get(PAGE).content.decode()
    assert "Never run" in page
    assert ">in 1\N{NO-BREAK SPACE}d 23\N{NO-BREAK SPACE}h<" in page


def test_how_often_a_schedule_runs_is_said_in_words(client_of, keeper):
    make(schedule_type=Schedule.MINUTES, minutes=5)
    make(schedule_type=Schedule.MINUTES, minutes=1)
    make()
    page = client_of(keeper).get(PAGE).content.decode()
    assert all(f">{words}<" in page for words in ("Every 5 minutes", "Every minute", "Daily"))


def ran(schedule: Schedule, status: str = "success", *, ago: float = 60, took: float = 1.5, **fields) -> TaskRecord:
    """Put a run of the schedule that ended so many seconds ago on record."""
    ended = timezone.now() - timedelta(seconds=ago)
    began = ended - timedelta(seconds=took)
    return TaskRecord.objects.create(
        task_name=uuid.uuid4().hex,
        func=schedule.func,
        label=schedule.func,
        status=status,
        **{
            "group": str(schedule.name or schedule.pk),
            **{"created_at": began, "started_at": began, "finished_at": ended, "run_time": ended - began},
            **fields,
        },
    )


def test_the_runs_on_record_are_shown_with_links(client_of, keeper):
    schedule = make()
    first, last = ran(schedule, "failed", ago=7200, error="ValueError: no stock"), ran(schedule)
    running = ran(schedule, "in_progress", ago=0, finished_at=None, run_time=timedelta())
    page = client_of(keeper).get(PAGE).content.decode()
    for record in (first, last, running):
        assert f'href="{BASE}{record.pk}/change/"' in page
    assert "took 1.5\xa0s" in page
    assert "1 of the last 3 failed" in page
    assert re.search(r'title="Failed, [^"]*no stock"', page)
    assert page.index(f"{first.pk}/change/") < page.index('title="Completed')
    assert f"{BASE}?group=nightly" in page


def test_runs_of_a_schedule_without_a_name_are_found_by_its_key(client_of, keeper):
    record = ran(make(name=None))
    assert f"{BASE}{record.pk}/change/" in client_of(keeper).get(PAGE).content.decode()


def test_the_group_in_the_options_of_a_schedule_counts(client_of, keeper):
    record = ran(make(kwargs="q_options={'group': 'own'}"), group="own")
    assert f"{BASE}{record.pk}/change/" in client_of(keeper).get(PAGE).content.decode()


def test_only_the_newest_runs_are_marked(client_of, keeper):
    schedule = make()
    records = [ran(schedule, ago=100 - number) for number in range(12)]
    page = client_of(keeper).get(PAGE).content.decode()
    assert [f"taskrecord/{record.pk}/change/" in page for record in records] == [False, False] + [True] * 10


def test_a_skipped_run_is_no_failure_and_says_why(client_of, keeper):
    schedule = make()
    ran(
        schedule,
        "cancelled",
        source="schedule",
        started_at=None,
        message="Skipped, as the run before has not ended (7).",
    )
    page = client_of(keeper).get(PAGE).content.decode()
    assert re.search(r'title="Skipped, [^"]*the run before has not ended \(7\)\."', page)
    assert "failed" not in page


def test_a_run_that_is_under_way_is_shown_although_later_ones_were_skipped(client_of, keeper):
    schedule = make()
    running = ran(schedule, "in_progress", ago=300, finished_at=None, run_time=timedelta())
    ran(schedule, "cancelled", source="schedule", started_at=None)
    page = client_of(keeper).get(PAGE).content.decode()
    assert re.search(rf'{running.pk}/change/">\s*<span class="pcrud-status pcrud-status-in_progress', page)


def test_what_has_failed_is_first_then_what_is_missed(client_of, keeper):
    make(name="paused", next_run=None)
    make(name="late", next_run=timezone.now() - timedelta(hours=1))
    ran(make(name="good"))
    bad = make(name="bad")
    ran(bad, "success", ago=500)
    failure = ran(bad, "failed")
    client = client_of(keeper)

    def order() -> list[str]:
        return re.findall(r"<strong>(?:<a [^>]*>)?(?!keeper)(\w+)(?:</a>)?</strong>", client.get(PAGE).content.decode())

    assert order() == ["bad", "late", "good", "paused"]
    TaskRecord.objects.filter(pk=failure.pk).update(resolution="dismissed")
    assert order() == ["late", "good", "bad", "paused"]


def test_a_missed_schedule_says_whether_its_cluster_runs(client_of, keeper):
    due = timezone.now() - timedelta(minutes=10)
    make(next_run=due, cluster="slow")
    client = client_of(keeper)
    assert "no cluster slow runs" in client.get(PAGE).content.decode()
    WorkerProcess.objects.create(identity="1", host="h", pid=1, cluster="slow")
    page = client.get(PAGE).content.decode()
    assert "the cluster slow runs, but has not taken it" in page
    assert "10\xa0min ago" in page


@pytest.mark.parametrize(
    "fields",
    [
        lambda now: {"next_run": None},
        lambda now: {"repeats": 0, "next_run": now - timedelta(hours=1)},
        lambda now: {"next_run": now + timedelta(minutes=1)},
        # A cluster looks only now and then.
        lambda now: {"next_run": now - timedelta(seconds=30)},
    ],
    ids=["paused", "used up", "later", "just now"],
)
def test_what_is_not_missed(client_of, keeper, fields):
    make(**fields(timezone.now()))
    assert "Missed" not in client_of(keeper).get(PAGE).content.decode()
    assert schedules.count() == (1, 0)


def test_a_hundred_schedules_take_as_many_queries_as_one(client_of, keeper):
    client = client_of(keeper)

    def queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            assert client.get(PAGE, headers={"HX-Request": "true"}).status_code == 200
        return len(captured)

    for number in range(3):
        ran(make(name=f"schedule {number}", task=f"{number}" * 32))
    client.get(PAGE)
    few = queries()
    for number in range(3, 100):
        ran(make(name=f"schedule {number}", task=f"{number}".zfill(32)), "failed" if number % 2 else "success")
    assert queries() == few == QUERIES


def test_the_runs_are_read_from_an_index():
    for number in range(3):
        ran(make(name=f"schedule {number}"))
    with CaptureQueriesContext(connection) as captured:
        assert len(shown_schedules(lambda record: "")) == 3
    (query,) = (query["sql"] for query in captured if "UNION ALL" in query["sql"])
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute(f"EXPLAIN {'QUERY PLAN ' if connection.vendor == 'sqlite' else ''}{query}")
        plan = str(cursor.fetchall())
    assert plan.count("pcrud_record_group") == 3
    assert "SCAN powercrud_dashboard_taskrecord" not in plan


def test_the_cluster_page_counts_them_and_links_to_them(client_of, keeper):
    make()
    make(name="late", next_run=timezone.now() - timedelta(hours=1))
    page = client_of(keeper).get(f"{BASE}cluster/").content.decode()
    assert f'<a href="{PAGE}">2 schedules, 1 of them has missed its time</a>' in page


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
    assert url(schedule, "run") not in viewer.get(PAGE).content.decode()
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
    wait_until(lambda: "Completed" in client.get(PAGE).content.decode(), "the page shows the result")
