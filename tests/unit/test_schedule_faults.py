"""What goes wrong beside a declared schedule or a lock, and is kept from doing further harm."""

from __future__ import annotations

import functools
import queue
import sys
from datetime import timedelta
from multiprocessing import Value

import django
import pytest
from django.core.checks import run_checks
from django.core.management import call_command
from django.db import OperationalError, connection
from django.test import override_settings
from django.utils import timezone
from django_q.brokers import get_broker
from django_q.exceptions import TimeoutException
from django_q.models import OrmQ, Schedule
from django_q.scheduler import scheduler
from django_q.signals import pre_enqueue
from django_q.signing import SignedPackage
from django_q.tasks import async_chain, async_iter, async_task
from django_q.worker import worker

from powercrud_dashboard import schedules
from powercrud_dashboard.models import ActiveTask, TaskRecord
from powercrud_dashboard.q2 import schedules as rows
from powercrud_dashboard.schedules import run_scheduled, scheduled, sync_schedules
from tests.testapp import tasks
from tests.workers import database_refuses

pytestmark = pytest.mark.django_db(transaction=True)

if django.VERSION >= (6, 0):
    from django.tasks import task
else:
    from django_tasks import task

PAGE = "/admin/powercrud_dashboard/taskrecord/schedules/"
ADD = "tests.testapp.tasks.add"


@pytest.fixture(autouse=True)
def _only_what_the_test_declares():
    schedules.declarations()
    before = list(schedules.registry)
    schedules.registry.clear()
    yield
    schedules.registry[:] = before


@pytest.fixture
def nightly_is_locked(settings):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_SCHEDULE_LOCKS": {"nightly": True}}
    schedules.connect()
    yield
    pre_enqueue.disconnect(sender="django_q", dispatch_uid="powercrud_dashboard.lock_scheduled")


def declare_nightly() -> None:
    scheduled(every="daily", name="nightly", args=(2,))(tasks.add)


def run_in_worker(packed: str) -> dict[str, object]:
    """Have django-q2's worker run a message, and return it with its result."""
    taken, results = queue.Queue(), queue.Queue()
    taken.put(SignedPackage.loads(packed))
    taken.put("STOP")
    worker(taken, results, Value("f", -1))
    return results.get_nowait()


def due() -> str:
    """Let all schedules be due, and return the message that the scheduler queues, taken out of the queue."""
    Schedule.objects.update(next_run=timezone.now() - timedelta(seconds=1))
    scheduler()
    return take()


def take() -> str:
    ((key, packed),) = get_broker().dequeue()
    get_broker().acknowledge(key)
    return packed


def checked(**options) -> dict[str, str]:
    return {str(item.id).rpartition(".")[2]: item.msg for item in run_checks(**options)}


# Modules of other apps


@pytest.fixture
def foreign_app(tmp_path, monkeypatch, settings):
    """Install an app whose module of tasks declares a schedule, and then can't be imported."""
    package = tmp_path / "foreign_app"
    package.mkdir()
    (package / "__init__.py").touch()
    code = """
        from powercrud_dashboard.schedules import scheduled

        @scheduled(every="daily", name="foreign")
        def work(): ...

        import a_queue_that_is_not_installed
    """
    (package / "tasks.py").write_text("\n".join(line.strip() for line in code.splitlines()))
    monkeypatch.syspath_prepend(tmp_path)
    with override_settings(INSTALLED_APPS=[*settings.INSTALLED_APPS, "foreign_app"]):
        schedules.undiscovered.cache_clear()
        yield
    schedules.undiscovered.cache_clear()
    sys.modules.pop("foreign_app", None)


def test_a_module_that_cant_be_imported_stops_nothing_and_its_schedules_stay(foreign_app):
    Schedule.objects.create(name="foreign", func=schedules.RUN_PATH, args="'foreign'", schedule_type=Schedule.DAILY)
    declare_nightly()
    call_command("migrate", verbosity=0)
    assert sorted(Schedule.objects.values_list("name", flat=True)) == ["foreign", "nightly"]
    assert sync_schedules() == {"created": [], "updated": [], "deleted": [], "unchanged": ["foreign", "nightly"]}
    problem = checked()["W042"]
    assert "foreign_app.tasks" in problem
    assert "ModuleNotFoundError: No module named 'a_queue_that_is_not_installed'" in problem
    assert "E040" not in checked()
    assert run_scheduled("nightly")


# A launch that fails


def leave() -> None:
    raise SystemExit("no")


def run_out_of_time() -> None:
    raise TimeoutException("Task exceeded maximum timeout value (60 seconds)")


@pytest.mark.parametrize(("conflict_ids", "error"), [(leave, "no"), (run_out_of_time, "Task exceeded maximum")])
def test_a_launch_that_leaves_or_takes_too_long_is_recorded_as_failed(conflict_ids, error):
    scheduled(every="daily", name="nightly", args=(2,), conflict_ids=conflict_ids)(tasks.add)
    with pytest.raises(SystemExit):
        run_scheduled("nightly")
    record = TaskRecord.objects.get()
    assert (record.status, record.failure_reason, record.group) == ("failed", "not_queued", "nightly")
    assert record.error.startswith(error)


def test_a_launch_is_tried_again_while_the_database_is_away(monkeypatch, record_of):
    monkeypatch.setattr(schedules, "TRIES_AGAIN_AFTER", 0.01)
    declare_nightly()
    # The message, and the record that says so.
    with database_refuses("INSERT INTO", 2):
        name = run_scheduled("nightly")
    assert record_of(name).status == "pending"
    assert TaskRecord.objects.count() == 1


def test_a_launch_is_given_up_if_the_database_stays_away(monkeypatch):
    monkeypatch.setattr(schedules, "TRIES_FOR", 0.0)
    declare_nightly()
    with database_refuses("INSERT INTO", 2), pytest.raises(OperationalError):
        run_scheduled("nightly")
    # By then it was there again.
    assert TaskRecord.objects.get().failure_reason == "not_queued"


# A message that is delivered twice


def test_a_launch_that_is_delivered_twice_launches_one_run(record_of):
    declare_nightly()
    sync_schedules()
    launch = due()
    first = run_in_worker(launch)
    # While the run waits, and after it has ended.
    assert run_in_worker(launch)["result"] == first["result"]
    run_in_worker(take())
    assert run_in_worker(launch)["result"] == first["result"]
    assert not OrmQ.objects.exists()
    assert record_of(str(first["result"])).status == "success"
    assert TaskRecord.objects.count() == 1
    # The next one is another.
    assert run_in_worker(due())["result"] != first["result"]


def test_a_skipped_launch_that_is_delivered_twice_is_on_record_once():
    declare_nightly()
    sync_schedules()
    run_scheduled("nightly")
    launch = due_beside_the_run()
    for _delivery in range(2):
        assert run_in_worker(launch)["success"]
    assert sorted(TaskRecord.objects.values_list("status", flat=True)) == ["cancelled", "pending"]


def due_beside_the_run() -> str:
    """Return the message of a due schedule; that of the run stays in the queue."""
    Schedule.objects.update(next_run=timezone.now() - timedelta(seconds=1))
    scheduler()
    return str(OrmQ.objects.order_by("pk").last().payload)


def test_a_locked_launch_that_is_delivered_twice_launches_one_run(nightly_is_locked):
    Schedule.objects.create(name="nightly", func=ADD, args="2", schedule_type=Schedule.DAILY)
    launch = due()
    first = run_in_worker(launch)
    run_in_worker(take())
    assert run_in_worker(launch)["result"] == first["result"]
    assert TaskRecord.objects.get().status == "success"


def test_without_a_history_a_second_delivery_finds_the_active_task(settings):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_RECORDER": None}
    scheduled(every="daily", name="nightly", args=(2,), overlap="allow")(tasks.add)
    sync_schedules()
    launch = due()
    assert run_in_worker(launch)["result"] == run_in_worker(launch)["result"]
    assert ActiveTask.objects.tasks().count() == 1


def test_an_object_that_cant_be_hashed_runs_as_before():
    async_task(tasks.Scale([1, 2]), 3)
    assert run_in_worker(take())["success"]


# Locks


@pytest.mark.parametrize("func", [ADD, tasks.add])
def test_a_function_has_the_lock_by_its_path_and_as_an_object(nightly_is_locked, func):
    async_task(func, 1, right=2, group="nightly")
    launch = OrmQ.objects.get().task
    assert launch["func"] == schedules.LOCKED_PATH
    assert launch["args"][:4] == ("nightly", ADD, (1,), {"right": 2})


def test_a_synchronous_call_runs_under_the_lock_in_its_caller(nightly_is_locked):
    async_task(ADD, 1, right=2, group="nightly", sync=True)
    assert TaskRecord.objects.get().status == "success"
    assert not OrmQ.objects.exists()
    with pytest.raises(ValueError, match="no"):
        async_task("tests.testapp.tasks.fail", "no", group="nightly", sync=True)
    assert TaskRecord.objects.failed().get().error == "no"


def test_what_a_worker_cant_import_is_left_alone(nightly_is_locked):
    async_task(functools.partial(tasks.add, 1), group="nightly")
    assert OrmQ.objects.get().task["func"]() == 1


def test_chains_and_iterations_are_left_alone(nightly_is_locked):
    async_chain([(ADD, (1, 2)), ("math.ceil", (1.5,))], group="nightly")
    assert OrmQ.objects.get().task["func"] == ADD
    OrmQ.objects.all().delete()
    async_iter(ADD, [1, 2], group="nightly")
    assert {message.task["func"] for message in OrmQ.objects.all()} == {ADD}


# Rows


def test_what_somebody_has_set_in_the_admin_is_set_back_and_one_that_was_used_up_waits_for_its_time():
    declare_nightly()
    sync_schedules()
    long_ago = timezone.now() - timedelta(days=30)
    Schedule.objects.update(repeats=0, hook="no.hook", intended_date_kwarg="when", next_run=long_ago)
    assert sync_schedules()["updated"] == ["nightly"]
    schedule = Schedule.objects.get()
    assert (schedule.repeats, schedule.hook, schedule.intended_date_kwarg) == (-1, None, None)
    assert schedule.next_run > timezone.now()
    assert sync_schedules()["unchanged"] == ["nightly"]


@pytest.mark.parametrize("cron", ["0 0 30 2 *", ",".join(map(str, range(45))) + " * * * *", " "])
def test_one_timing_that_is_not_possible_is_reported_and_the_others_are_made(cron, caplog):
    scheduled(cron, name="never", args=(1,))(tasks.add)
    declare_nightly()
    assert "'never' can't run: " in checked()["E040"]
    assert sync_schedules()["created"] == ["nightly"]
    assert "The schedule never can't run: " in caplog.text
    # One that was made before stays as it is.
    Schedule.objects.create(name="never", func=schedules.RUN_PATH, args="'never'", schedule_type=Schedule.DAILY)
    assert sync_schedules()["unchanged"] == ["never", "nightly"]
    assert Schedule.objects.get(name="never").schedule_type == Schedule.DAILY


def test_nothing_is_synchronised_before_all_columns_are_there():
    declare_nightly()
    column = Schedule._meta.get_field("intended_date_kwarg")
    with connection.schema_editor() as editor:
        editor.remove_field(Schedule, column)
    try:
        call_command("migrate", verbosity=0)
    finally:
        with connection.schema_editor() as editor:
            editor.add_field(Schedule, column)
    assert not Schedule.objects.exists()
    call_command("migrate", verbosity=0)
    assert Schedule.objects.get().name == "nightly"


@pytest.mark.parametrize(
    "broken",
    [{"args": "{[1]}"}, {"kwargs": "{[]: 1}"}, {"args": "-" * 5000 + "1"}, {"kwargs": "a=" + "-" * 5000 + "1"}],
)
def test_a_row_whose_arguments_are_no_values_is_shown_and_not_run(boss, broken):
    schedule = Schedule.objects.create(name="odd", func=ADD, schedule_type=Schedule.DAILY, **broken)
    assert ">odd</a></strong>" in boss.get(PAGE).content.decode()
    assert "can&#x27;t be read" in boss.post(f"{PAGE}{schedule.pk}/run/", follow=True).content.decode()
    assert not OrmQ.objects.exists()


def test_a_schedule_whose_timing_changes_while_it_is_resumed_runs_by_the_new_one():
    Schedule.objects.create(name="nightly", func=ADD, schedule_type=Schedule.YEARLY, next_run=None)
    read = Schedule.objects.get()
    Schedule.objects.update(schedule_type=Schedule.MINUTES, minutes=5)
    assert rows.resume(read)
    assert Schedule.objects.get().next_run < timezone.now() + timedelta(minutes=6)
    assert not rows.resume(Schedule.objects.get())


def test_a_schedule_that_is_deleted_while_it_is_run_by_hand_runs():
    schedule = Schedule.objects.create(name="nightly", func=ADD, args="2", schedule_type=Schedule.DAILY)
    Schedule.objects.all().delete()
    rows.run_now(schedule)
    assert OrmQ.objects.get().task["func"] == ADD


def test_a_cron_row_without_croniter_is_reported(monkeypatch):
    Schedule.objects.create(name="manual", func=ADD, args="2", schedule_type=Schedule.CRON, cron="0 2 * * *")
    assert "W043" not in checked(databases=["default"])
    monkeypatch.setattr("django_q.conf.croniter", None)
    assert "'manual'" in checked(databases=["default"])["W043"]


# What is no function


@pytest.mark.parametrize("func", [task()(tasks.add), functools.partial(tasks.add, 1)], ids=["task", "partial"])
def test_what_is_no_function_is_refused_with_words(func):
    with pytest.raises(TypeError, match="below @task"):
        scheduled(every="daily")(func)
    assert schedules.registry == []
