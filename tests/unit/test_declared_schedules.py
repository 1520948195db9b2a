"""Schedules that are declared in code, and schedules of plain functions under a lock."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from contextlib import suppress
from datetime import timedelta
from io import StringIO

import pytest
from django.core.checks import run_checks
from django.core.management import call_command
from django.utils import timezone
from django_q.models import OrmQ, Schedule
from django_q.scheduler import scheduler
from django_q.signals import pre_enqueue

from powercrud_dashboard import schedules
from powercrud_dashboard.exceptions import ScheduleNotDeclared, TaskConflict
from powercrud_dashboard.models import ActiveTask, TaskRecord, WorkerProcess
from powercrud_dashboard.schedules import declared_schedules, run_scheduled, scheduled, sync_schedules
from tests.conftest import SETTINGS_MODULE
from tests.testapp import tasks
from tests.workers import meanwhile

#: Without a transaction around the test, as a worker ends those that it finds.
pytestmark = pytest.mark.django_db(transaction=True)

PAGE = "/admin/powercrud_dashboard/taskrecord/schedules/"
YEARLY = {"every": "yearly"}


@pytest.fixture(autouse=True)
def _only_what_the_test_declares():
    schedules.declarations()
    before = list(schedules.registry)
    schedules.registry.clear()
    yield
    schedules.registry[:] = before


@pytest.fixture
def locks(settings):
    """Put schedules under locks, as the settings of a project do."""

    def put(**by_name) -> None:
        settings.POWERCRUD_SETTINGS = {"DASHBOARD_SCHEDULE_LOCKS": by_name}
        schedules.connect()

    yield put
    pre_enqueue.disconnect(sender="django_q", dispatch_uid="powercrud_dashboard.lock_scheduled")


def fire(name: str) -> None:
    """Let a schedule be due, and do what a cluster does: schedule it, and run the call that this has queued."""
    assert Schedule.objects.filter(name=name).update(next_run=timezone.now() - timedelta(seconds=1))
    before = list(OrmQ.objects.values_list("pk", flat=True))
    scheduler()
    deliver(*before)


def deliver(*left: int) -> None:
    """Run the messages of the queue as a worker does, but for those with these keys, which are left."""
    for message in OrmQ.objects.exclude(pk__in=left).order_by("pk"):
        message.delete()
        task = message.task
        func = pkgutil.resolve_name(task["func"]) if isinstance(task["func"], str) else task["func"]
        with suppress(Exception):
            func(*task["args"], **task["kwargs"])


def test_a_declared_schedule_fires_and_its_run_is_a_task():
    scheduled(every="daily", name="sums", args=(2,), kwargs={"right": 3}, label="Add up", timeout=77)(tasks.add)
    assert sync_schedules()["created"] == ["sums"]
    fire("sums")
    record = TaskRecord.objects.get()
    assert (record.status, record.label, record.func) == ("pending", "Add up", "tests.testapp.tasks.add")
    assert (record.group, record.source, record.user) == ("sums", "", None)
    assert ActiveTask.objects.get().time_limit == 77
    deliver()
    record.refresh_from_db()
    assert (record.status, record.result) == ("success", 5)
    assert Schedule.objects.get().next_run > timezone.now() + timedelta(hours=22)


def test_the_function_is_not_changed():
    assert scheduled(**YEARLY)(tasks.debug_setting) is tasks.debug_setting
    assert list(declared_schedules()) == ["tests.testapp.tasks.debug_setting"]


def test_a_run_that_overlaps_is_skipped_and_on_record(caplog):
    scheduled(**YEARLY, name="slow", label="Slow")(tasks.debug_setting)
    sync_schedules()
    fire("slow")
    first = TaskRecord.objects.get()
    fire("slow")
    skipped = TaskRecord.objects.exclude(pk=first.pk).get()
    assert (skipped.status, skipped.source, skipped.group, skipped.label) == ("cancelled", "schedule", "slow", "Slow")
    assert skipped.message == f"Skipped, as the run before has not ended ({first.task_name})."
    assert "Schedule slow: Skipped" in caplog.text
    deliver()
    fire("slow")
    assert TaskRecord.objects.queued().count() == 1


def test_runs_may_overlap_if_the_declaration_says_so():
    scheduled(**YEARLY, name="quick", overlap="allow")(tasks.debug_setting)
    sync_schedules()
    fire("quick")
    assert run_scheduled("quick")
    assert TaskRecord.objects.queued().count() == 2


def test_a_run_whose_objects_are_locked_is_skipped(manager, make_projects):
    (project,) = make_projects(1)
    manager.launch_async_task(tasks.add, 1, conflict_ids={"testapp.Project": [project.pk]}, label="Editor")
    scheduled(**YEARLY, name="all", conflict_ids={"testapp.Project": ["*"]})(tasks.debug_setting)
    run_scheduled("all")
    skipped = TaskRecord.objects.get(group="all")
    assert skipped.status == "cancelled"
    assert skipped.message.startswith("Skipped. Locked: ")
    assert "held by Editor" in skipped.message


def test_objects_to_lock_are_found_when_a_run_is_launched(make_projects, record_of):
    scheduled(**YEARLY, name="chosen", conflict_ids=lambda: {"testapp.Project": keys})(tasks.debug_setting)
    keys = [project.pk for project in make_projects(2)]
    record = record_of(run_scheduled("chosen"))
    assert record.conflict_ids == {"testapp.project": sorted(map(str, keys))}


def test_a_run_that_cant_be_launched_has_failed_and_is_not_delivered_again():
    def broken() -> dict[str, list[int]]:
        raise LookupError("no catalogue")

    scheduled(**YEARLY, name="broken", conflict_ids=broken)(tasks.debug_setting)
    sync_schedules()
    Schedule.objects.update(next_run=timezone.now() - timedelta(seconds=1))
    scheduler()
    assert OrmQ.objects.get().task["ack_failure"] is True
    with pytest.raises(LookupError):
        run_scheduled("broken")
    record = TaskRecord.objects.get()
    assert (record.status, record.failure_reason, record.exception_class) == (
        "failed",
        "not_queued",
        "builtins.LookupError",
    )
    assert record.error == "no catalogue"
    assert "in broken" in record.traceback


def test_a_schedule_that_is_not_declared_any_more_fails_and_says_what_to_do():
    with pytest.raises(ScheduleNotDeclared, match="pcrud_sync_schedules"):
        run_scheduled("gone")
    record = TaskRecord.objects.get()
    assert (record.status, record.label, record.group) == ("failed", "gone", "gone")


def refused() -> None:
    raise TaskConflict([])


def test_a_function_that_runs_at_once_and_fails_is_no_skipped_run(at_once):
    scheduled(**YEARLY, name="bad")(refused)
    with pytest.raises(TaskConflict):
        run_scheduled("bad")
    record = TaskRecord.objects.get()
    assert (record.status, record.source) == ("failed", "")


# Synchronising


def test_a_timing_is_one_of_django_q2s_kinds():
    wanted = {
        timedelta(minutes=15): (Schedule.MINUTES, 15),
        timedelta(hours=1): (Schedule.HOURLY, None),
        timedelta(hours=36): (Schedule.MINUTES, 36 * 60),
        timedelta(days=1): (Schedule.DAILY, None),
        timedelta(weeks=2): (Schedule.BIWEEKLY, None),
        "monthly": (Schedule.MONTHLY, None),
    }
    for every in wanted:
        scheduled(every=every, name=str(every))(tasks.add)
    sync_schedules()
    found = {row.name: (row.schedule_type, row.minutes) for row in Schedule.objects.all()}
    assert found == {str(every): kind for every, kind in wanted.items()}


def test_a_cron_expression_is_kept_and_evaluated():
    scheduled(" 30  4 * * 1-5 ", name="early")(tasks.add)
    sync_schedules()
    schedule = Schedule.objects.get()
    assert (schedule.schedule_type, schedule.cron) == (Schedule.CRON, "30 4 * * 1-5")
    assert (schedule.next_run.hour, schedule.next_run.minute) == (4, 30)


@pytest.mark.parametrize(
    ("given", "kind", "says"),
    [
        ({}, TypeError, "cron expression or every="),
        ({"cron": "* * * * *", "every": "daily"}, TypeError, "not both"),
        ({"cron": 5}, TypeError, "use a text"),
        ({"every": 5}, TypeError, "use a timedelta"),
        ({"every": "often"}, ValueError, "hourly"),
        ({"every": timedelta(seconds=30)}, ValueError, "whole minutes"),
        ({"every": timedelta(days=40)}, ValueError, "32,767"),
        ({"every": "daily", "overlap": "queue"}, ValueError, '"skip" or "allow"'),
        ({"every": "daily", "retry": "often"}, TypeError, "whole number"),
        ({"every": "daily", "timeout": 0}, ValueError, "timeout"),
        ({"every": "daily", "conflict_ids": [1]}, TypeError, "mapping"),
        ({"every": "daily", "name": "x" * 95}, ValueError, "at most 91"),
    ],
)
def test_an_option_that_has_no_possible_value_is_refused(given, kind, says):
    with pytest.raises(kind, match=says):
        scheduled(**given)(tasks.add)
    assert schedules.registry == []


def test_the_next_run_changes_only_with_the_timing():
    scheduled(every="daily", name="nightly")(tasks.debug_setting)
    sync_schedules()
    soon = timezone.now() + timedelta(minutes=3)
    Schedule.objects.update(next_run=soon)
    schedules.registry.clear()
    scheduled(every="daily", name="nightly", cluster="slow")(tasks.fail)
    assert sync_schedules()["updated"] == ["nightly"]
    schedule = Schedule.objects.get()
    assert (schedule.next_run, schedule.cluster) == (soon, "slow")
    assert sync_schedules()["unchanged"] == ["nightly"]
    schedules.registry.clear()
    scheduled(every="weekly", name="nightly", cluster="slow")(tasks.fail)
    sync_schedules()
    assert Schedule.objects.get().next_run > timezone.now() + timedelta(days=6)


def test_what_somebody_has_paused_stays_paused():
    scheduled(every="daily", name="nightly")(tasks.debug_setting)
    sync_schedules()
    Schedule.objects.update(next_run=None)
    schedules.registry.clear()
    scheduled(every="weekly", name="nightly")(tasks.add)
    assert sync_schedules()["updated"] == ["nightly"]
    schedule = Schedule.objects.get()
    assert (schedule.next_run, schedule.schedule_type) == (None, Schedule.WEEKLY)


def test_what_is_not_declared_any_more_is_deleted_and_nothing_else():
    others = [
        Schedule.objects.create(func="tests.testapp.tasks.add", name="nightly"),
        Schedule.objects.create(func="tests.testapp.tasks.add", name="manual"),
    ]
    scheduled(every="daily", name="nightly")(tasks.debug_setting)
    scheduled(every="daily")(tasks.debug_setting)
    sync_schedules()
    schedules.registry.clear()
    # A renamed function: its default name is another one.
    scheduled(every="daily")(tasks.fail)
    changes = sync_schedules()
    assert changes == {
        "created": ["tests.testapp.tasks.fail"],
        "updated": [],
        "deleted": ["nightly", "tests.testapp.tasks.debug_setting"],
        "unchanged": [],
    }
    assert set(Schedule.objects.exclude(name="tests.testapp.tasks.fail")) == set(others)


def test_a_renamed_function_with_a_named_schedule_keeps_its_row(record_of):
    scheduled(every="daily", name="nightly")(tasks.fail)
    sync_schedules()
    before = Schedule.objects.get()
    schedules.registry.clear()
    scheduled(every="daily", name="nightly")(tasks.debug_setting)
    assert sync_schedules()["unchanged"] == ["nightly"]
    assert Schedule.objects.get() == before
    assert record_of(run_scheduled("nightly")).func == "tests.testapp.tasks.debug_setting"


def test_a_row_that_somebody_has_changed_or_copied_is_set_back():
    scheduled(every="daily", name="nightly")(tasks.debug_setting)
    sync_schedules()
    schedule = Schedule.objects.get()
    Schedule.objects.update(args="'other'", schedule_type=Schedule.HOURLY)
    schedule.pk = None
    schedule.save()
    changes = sync_schedules()
    assert (changes["updated"], changes["deleted"]) == (["nightly"], ["nightly"])
    assert (Schedule.objects.get().args, Schedule.objects.get().schedule_type) == ("'nightly'", Schedule.DAILY)


def test_two_hosts_that_synchronise_at_the_same_moment_make_one_row():
    scheduled(every="daily", name="nightly")(tasks.debug_setting)
    # The other host is done between this one's first look and its turn.
    with meanwhile(sync_schedules, after='SELECT "django_q_schedule"'):
        assert sync_schedules()["unchanged"] == ["nightly"]
    assert Schedule.objects.count() == 1


def test_the_command_says_what_it_does_and_what_it_would_do():
    scheduled(every="daily", name="nightly")(tasks.debug_setting)

    def said(*options: str) -> str:
        call_command("pcrud_sync_schedules", *options, stdout=(out := StringIO()))
        return out.getvalue()

    assert said("--dry-run") == "nightly: would be created\n"
    assert not Schedule.objects.exists()
    assert said() == "nightly: created\n"
    assert json.loads(said("--json")) == {"created": [], "updated": [], "deleted": [], "unchanged": ["nightly"]}
    schedules.registry.clear()
    assert said() == "nightly: deleted\n"
    assert said() == "No schedule is declared.\n"


def test_migrate_synchronises():
    scheduled(every="daily", name="nightly")(tasks.debug_setting)
    call_command("migrate", verbosity=0)
    assert Schedule.objects.get().name == "nightly"


def test_synchronising_nothing_takes_one_query(django_assert_num_queries):
    with django_assert_num_queries(1):
        sync_schedules()


# System checks


def found() -> dict[str, str]:
    return {str(item.id).rpartition(".")[2]: item.msg for item in run_checks() if "schedule" in item.msg.lower()}


def test_two_declarations_with_one_name_are_reported_and_the_first_one_counts():
    scheduled(every="daily", name="nightly")(tasks.debug_setting)
    scheduled(every="daily", name="nightly")(tasks.fail)
    assert "tests.testapp.tasks.debug_setting and again for tests.testapp.tasks.fail" in found()["W040"]
    assert declared_schedules()["nightly"].func == "tests.testapp.tasks.debug_setting"


def test_a_function_that_no_worker_can_call_is_reported():
    scheduled(every="daily", name="hidden")(lambda: None)
    assert "hidden" in found()["E040"]
    schedules.registry.clear()
    scheduled(every="daily", name="careless", args=(1, 2, 3))(tasks.add)
    assert "too many positional arguments" in found()["E040"]
    schedules.registry.clear()
    scheduled("61 * * * *", name="odd")(tasks.add)
    assert "odd" in found()["E040"]
    schedules.registry.clear()
    scheduled("1 * * * *", args=(1,))(tasks.add)
    assert found() == {}


def test_without_croniter_a_check_says_what_to_install():
    code = """
import sys
sys.modules["croniter"] = None
import django
django.setup()
from django.core.checks import run_checks
from powercrud_dashboard.schedules import scheduled
from tests.testapp import tasks
scheduled("0 2 * * *", name="nightly", args=(1,))(tasks.add)
print([(item.id, item.hint) for item in run_checks() if "nightly" in item.msg])
"""
    environment = {"DJANGO_SETTINGS_MODULE": SETTINGS_MODULE, "PYTHONPATH": ":".join(sys.path), "PATH": ""}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "E040" in run.stdout
    assert "Install 'powercrud-dashboard[cron]'" in run.stdout


@pytest.mark.parametrize("lock", [False, {}, {"testapp.Project": "7"}, ["testapp.Project"]])
def test_a_lock_that_is_none_is_reported(settings, lock):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_SCHEDULE_LOCKS": {"nightly": lock}}
    assert "'nightly'" in found()["E041"]


def test_a_lock_for_a_schedule_that_there_is_not_is_reported(settings):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_SCHEDULE_LOCKS": {"nightly": True}}
    assert found() == {}

    def of_database() -> list[str]:
        return [item.msg for item in run_checks(databases=["default"]) if item.id == "powercrud_dashboard.W041"]

    assert of_database() == []
    WorkerProcess.objects.create(identity="1", host="one", pid=1)
    assert "names 'nightly'" in of_database()[0]
    row = Schedule.objects.create(name="nightly", func="tests.testapp.tasks.add")
    assert of_database() == []
    # Its tasks have another group, so that the lock would not be theirs.
    Schedule.objects.filter(pk=row.pk).update(kwargs="q_options={'group': 'night'}")
    assert "names 'nightly'" in of_database()[0]


# Schedules of plain functions under a lock


def plain(**fields) -> Schedule:
    usual = {"func": "tests.testapp.tasks.add", "args": "2", "kwargs": "right=3", "schedule_type": Schedule.DAILY}
    return Schedule.objects.create(**{**usual, "name": "nightly", **fields})


def test_a_plain_schedule_runs_as_a_task_under_its_lock(locks):
    locks(nightly={"testapp.Project": ["*"]})
    plain(hook="tests.testapp.tasks.add", cluster="pcrud-tests")
    Schedule.objects.update(next_run=timezone.now() - timedelta(seconds=1))
    scheduler()
    # The hook is for the result of the function.
    assert "hook" not in OrmQ.objects.get().task
    deliver()
    assert OrmQ.objects.get().task["hook"] == "tests.testapp.tasks.add"
    record = TaskRecord.objects.get()
    assert (record.func, record.group, record.cluster) == ("tests.testapp.tasks.add", "nightly", "pcrud-tests")
    assert record.conflict_ids == {"testapp.project": ["*"]}
    assert OrmQ.objects.get().task["kwargs"] == {}
    deliver()
    record.refresh_from_db()
    assert (record.status, record.result) == ("success", 5)


def test_a_second_run_while_the_first_runs_is_skipped_and_shown(locks, boss):
    locks(nightly=True)
    plain()
    fire("nightly")
    fire("nightly")
    first, second = TaskRecord.objects.order_by("pk")
    assert (first.status, second.status, second.source) == ("pending", "cancelled", "schedule")
    page = boss.get(PAGE).content.decode()
    assert 'title="Skipped, ' in page
    assert "runs under a lock" in page


def test_other_schedules_and_tasks_are_left_alone(locks, manager):
    locks(nightly=True)
    plain(name="other")
    Schedule.objects.update(next_run=timezone.now() - timedelta(seconds=1))
    scheduler()
    assert OrmQ.objects.get().task["func"] == "tests.testapp.tasks.add"
    name = manager.launch_async_task(tasks.add, 1, group="nightly")
    deliver()
    assert TaskRecord.objects.get(task_name=name).status == "success"


def test_a_declared_schedule_keeps_the_lock_of_its_declaration(locks, boss):
    locks(nightly={"testapp.Project": ["*"]})
    scheduled(every="daily", name="nightly")(tasks.debug_setting)
    sync_schedules()
    fire("nightly")
    record = TaskRecord.objects.get()
    assert (record.status, record.conflict_ids) == ("pending", {})
    assert "runs under a lock" not in boss.get(PAGE).content.decode()


def test_a_schedule_without_a_name_is_known_by_its_key(locks):
    schedule = plain(name=None)
    locks(**{str(schedule.pk): True})
    Schedule.objects.update(next_run=timezone.now() - timedelta(seconds=1))
    scheduler()
    deliver()
    assert TaskRecord.objects.get().group == str(schedule.pk)


# The page


def test_a_declared_schedule_is_marked_and_run_now_launches_it(boss, superuser):
    scheduled(every="daily", name="nightly", label="Add up")(tasks.debug_setting)
    sync_schedules()
    schedule = Schedule.objects.get()
    page = boss.get(PAGE).content.decode()
    assert "declared in code" in page
    assert "<code>tests.testapp.tasks.debug_setting</code>" in page.replace("<wbr>", "")
    said = boss.post(f"{PAGE}{schedule.pk}/run/", follow=True).content.decode()
    assert "“nightly” was queued to run now." in said
    record = TaskRecord.objects.get()
    assert (record.group, record.user, record.label) == ("nightly", superuser, "Add up")
    said = boss.post(f"{PAGE}{schedule.pk}/run/", follow=True).content.decode()
    assert "already queued or running" in said
    assert f"/{record.pk}/change/" in said
    assert TaskRecord.objects.count() == 1


def test_what_is_not_in_step_with_the_code_is_said(boss):
    scheduled(every="daily", name="old")(tasks.debug_setting)
    sync_schedules()
    schedules.registry.clear()
    scheduled(every="daily", name="new")(tasks.debug_setting)
    page = boss.get(PAGE).content.decode()
    assert "not declared in code any more" in page
    assert "Declared in code, but not in the database: new." in page


def test_a_skipped_run_says_on_its_page_what_it_is(boss):
    scheduled(**YEARLY, name="slow")(tasks.debug_setting)
    run_scheduled("slow")
    run_scheduled("slow")
    skipped = TaskRecord.objects.get(source="schedule")
    page = boss.get(f"/admin/powercrud_dashboard/taskrecord/{skipped.pk}/change/").content.decode()
    assert "Skipped" in page
    assert "Launched by the schedule “slow”" in page
    assert "can't be retried" not in page
