"""Whatever starts an action per object again, it goes on with the objects that have no outcome."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from django.contrib import admin
from django.db import connection, transaction
from django.utils import timezone
from django_q.exceptions import TimeoutException

from powercrud_dashboard.admin import background_action, selection
from powercrud_dashboard.async_context import get_current_task
from powercrud_dashboard.async_manager import AsyncManager, RetryPolicy
from powercrud_dashboard.exceptions import ClusterStopping, TaskCancelled, TaskGivenUp
from powercrud_dashboard.models import ActiveTask, ConflictLock, TaskCursor, TaskRecord
from tests.clicks import CHANGELIST, TASKS, choose, last
from tests.services import wait_until
from tests.testapp.models import Country, Project
from tests.workers import run_queue, silence

pytestmark = pytest.mark.django_db(transaction=True)

Body = Callable[[Project], object]


class Worked:
    """An action per object, whose body may be another in each attempt; counts how often each object was worked on."""

    def __init__(self) -> None:
        self.on: Counter[int] = Counter()
        self.bodies: Iterator[Body] = iter(())
        self.attempts: dict[int, Body] = {}

    def each(self, project: Project) -> None:
        self.on[project.pk] += 1
        attempt = get_current_task()._attempt
        if attempt not in self.attempts:
            self.attempts[attempt] = next(self.bodies, lambda project: None)
        self.attempts[attempt](project)
        project.name += "+"
        project.save()

    @property
    def stored(self) -> Counter[int]:
        """How often the work on each object was stored."""
        return Counter({project.pk: project.name.count("+") for project in Project.objects.all()})


@pytest.fixture
def worked(with_actions) -> Worked:
    worked = Worked()

    def each(modeladmin, request, project):
        worked.each(project)

    with_actions(background_action(permissions=["change"], per_object=True, retry=POLICY)(each))
    return worked


POLICY = RetryPolicy(2, backoff=0, retry_on=[Exception])


def at(project: Project, act: Callable[[], object]) -> Body:
    """Return a body that does something in the middle of one object."""
    return lambda other: act() if other.pk == project.pk else None


def stop_cluster() -> None:
    raise ClusterStopping("")


def lose_worker() -> None:
    """End this attempt as if its process had died, and have that found."""

    def give_up() -> None:
        try:
            silence()
            AsyncManager().cleanup_completed_tasks()
        finally:
            connection.close()

    meanwhile(give_up)
    raise TaskGivenUp("")


def meanwhile(act: Callable[[], object]) -> None:
    """Do something in another session, in the middle of the transaction of an object."""
    if connection.vendor == "sqlite":
        # It keeps others from writing.
        connection.close()
    other = threading.Thread(target=act)
    # This attempt may be told to stop meanwhile: only once the other session is done.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGURG, signal.SIGCONT})
    try:
        other.start()
        other.join()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def go_on() -> TaskRecord:
    """Run what is queued and what is due, until nothing is."""

    def nothing_is_left() -> bool:
        with suppress(TimeoutException):
            run_queue()
        if not ActiveTask.objects.waiting().update(next_run_at=timezone.now()):
            return True
        # None is sent while the heartbeat thread of an attempt that was given up has the row.
        AsyncManager.send_due_tasks()
        return False

    wait_until(nothing_is_left, "all has been run")
    return last()


def counts(record: TaskRecord) -> tuple[int, int, int]:
    return record.done_count, record.failed_count, record.skipped_count


def test_a_requeue_goes_on_with_the_object_that_it_was_stopped_at(boss, make_projects, worked):
    projects = make_projects(5)
    worked.bodies = iter([at(projects[2], stop_cluster)])
    choose(boss, "each", projects)
    record = go_on()
    assert (record.status, record.attempts, counts(record)) == ("success", 2, (5, 0, 0))
    assert set(worked.stored.values()) == {1}
    assert [worked.on[project.pk] for project in projects] == [1, 1, 2, 1, 1]
    assert not TaskCursor.objects.exists()


def test_so_does_a_retry_after_a_lost_worker(boss, make_projects, worked):
    projects = make_projects(5)
    worked.bodies = iter([at(projects[2], lose_worker), at(projects[3], lose_worker)])
    choose(boss, "each", projects)
    record = go_on()
    assert (record.status, record.attempts, counts(record)) == ("success", 3, (5, 0, 0))
    assert set(worked.stored.values()) == {1}


def test_and_one_at_the_time_limit(boss, make_projects, worked):
    def reach_limit():
        raise TimeoutException

    projects = make_projects(5)
    # More often than the policy allows retries: each attempt has got further.
    worked.bodies = iter([at(project, reach_limit) for project in projects[:4]])
    choose(boss, "each", projects)
    record = go_on()
    assert (record.status, record.attempts, counts(record)) == ("success", 5, (5, 0, 0))
    assert set(worked.stored.values()) == {1}


def test_an_object_that_always_kills_its_worker_fails_alone(boss, make_projects, worked):
    projects = make_projects(4)
    worked.bodies = iter([at(projects[1], lose_worker)] * 9)
    choose(boss, "each", projects)
    record = go_on()
    assert (record.status, record.attempts, counts(record)) == ("success", 4, (3, 1, 0))
    assert worked.on[projects[1].pk] == 3
    failed = record.objects_worked_on.get(outcome="failed")
    assert failed.object_id == str(projects[1].pk)
    assert failed.error.startswith("Worker lost")


def test_if_too_many_do_the_task_fails(boss, make_projects, worked):
    projects = make_projects(6)
    worked.bodies = iter([lambda project: lose_worker()] * 20)
    choose(boss, "each", projects)
    record = go_on()
    assert (record.status, record.failure_reason, counts(record)) == ("failed", "worker_lost", (0, 2, 0))
    assert not ActiveTask.objects.exists()


def test_an_attempt_that_was_given_up_stores_nothing_more(boss, make_projects, worked):
    projects = make_projects(3)

    def overtake():
        silence()
        AsyncManager().cleanup_completed_tasks()
        go_on()
        connection.close()

    worked.bodies = iter([at(projects[1], lambda: meanwhile(overtake))])
    choose(boss, "each", projects)
    record = go_on()
    assert record.status == "success"
    assert set(worked.stored.values()) == {1}


@pytest.mark.parametrize("limit", [3, 100])
def test_an_object_that_fails_after_its_commit_is_counted_once(boss, make_projects, worked, settings, limit):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_OBJECT_LIMIT": limit}
    projects = make_projects(5)

    def fail():
        raise ValueError("no")

    def later(project):
        if project.pk == projects[1].pk:
            transaction.on_commit(fail)
        if project.pk == projects[3].pk:
            stop_cluster()

    worked.bodies = iter([later])
    choose(boss, "each", projects)
    record = go_on()
    assert (record.status, counts(record)) == ("success", (4, 1, 0))
    assert set(worked.stored.values()) == {1}


def test_an_object_that_waits_for_its_turn_is_not_suspected(boss, make_projects, with_actions):
    reached = iter([True] * 4)

    def throttle():
        if next(reached, False):
            raise TimeoutException("the time limit")
        return 0

    def each(modeladmin, request, project):
        pass

    policy = RetryPolicy(9, backoff=0)
    with_actions(background_action(permissions=["change"], per_object=True, throttle=throttle, retry=policy)(each))
    choose(boss, "each", make_projects(2))
    record = go_on()
    assert (record.status, record.attempts, counts(record)) == ("success", 5, (2, 0, 0))


def test_a_retry_of_objects_that_all_failed_is_one_of_all(boss, make_projects, worked):
    def fail(project):
        raise ValueError("no")

    projects = make_projects(3)
    worked.bodies = iter([fail])
    choose(boss, "each", projects)
    record = go_on()
    assert (record.status, record.attempts, counts(record)) == ("success", 2, (3, 0, 0))


def test_counts_are_exact_beyond_the_limit_of_the_ledger(boss, make_projects, worked, settings, monkeypatch):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_OBJECT_LIMIT": 3}
    projects = make_projects(8)

    def fail():
        raise ValueError("no")

    def some(*acts):
        return lambda project: [act(project) for act in acts]

    worked.bodies = iter([some(at(projects[1], fail), at(projects[5], lose_worker))])
    choose(boss, "each", projects)
    record = go_on()
    assert (record.status, counts(record)) == ("success", (7, 1, 0))
    assert {project.pk: worked.stored[project.pk] for project in projects} == {
        project.pk: int(project != projects[1]) for project in projects
    }


@pytest.mark.parametrize("limit", [3, 100])
@pytest.mark.parametrize("is_query", [False, True])
def test_a_retry_by_hand_goes_on_as_well(boss, make_projects, with_actions, settings, monkeypatch, limit, is_query):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_OBJECT_LIMIT": limit}
    monkeypatch.setattr(selection, "MAX_KEYS", 2 if is_query else 1_000)
    projects = make_projects(8)
    worked = Worked()

    def each(modeladmin, request, project):
        worked.each(project)
        if project.pk == projects[1].pk and worked.on[project.pk] < 3:
            raise ValueError("not yet")

    with_actions(background_action(permissions=["change"], per_object=True)(each))
    worked.bodies = iter([at(projects[5], lose_worker)])
    chosen = {"select_across": "1"} if is_query else {}
    choose(boss, "each", projects, **chosen)
    record = go_on()
    assert (record.status, record.failure_reason, counts(record)) == ("failed", "worker_lost", (4, 1, 0))

    for stop in (at(projects[6], lose_worker), lambda project: None):
        worked.attempts.clear()
        worked.bodies = iter([stop])
        boss.post(f"{TASKS}{last().pk}/retry/")
        record = go_on()
    assert (record.status, counts(record)) == ("success", (3, 0, 0))
    assert set(worked.stored.values()) == {1}


@pytest.fixture
def _countries_in_dictionary_order() -> Iterator[None]:
    """Have the database order the keys of countries in another way than Python does."""
    if connection.vendor != "postgresql":
        pytest.skip("only PostgreSQL has collations")
    change = "ALTER TABLE testapp_country ALTER COLUMN name TYPE varchar(60) COLLATE %s"
    with connection.cursor() as cursor:
        cursor.execute(change % '"en-x-icu"')
    yield
    with connection.cursor() as cursor:
        cursor.execute(change % '"default"')


@pytest.mark.usefixtures("_countries_in_dictionary_order")
@pytest.mark.parametrize("conflict", [True, False])
def test_keys_that_are_texts_have_one_order(boss, monkeypatch, conflict):
    monkeypatch.setattr(selection, "MAX_KEYS", 2)
    names = ["a", "B", "c", "D", "e", "F"]
    Country.objects.bulk_create(map(Country, names))
    done: list[str] = []

    def each(modeladmin, request, country):
        if len(done) in stops:
            stops.remove(len(done))
            AsyncManager().cancel_task(get_current_task().task_name)
            raise TaskCancelled("")
        done.append(country.name)

    stops = [2, 4]
    countries = admin.site.get_model_admin(Country)
    action = background_action(permissions=["change"], per_object=True, conflict=conflict)(each)
    monkeypatch.setattr(countries, "actions", [*countries.actions, action])
    choose(boss, "each", [Country(names[0])], "/admin/testapp/country/", select_across="1")
    for _ in range(3):
        go_on()
        boss.post(f"{TASKS}{last().pk}/retry/")
    assert sorted(done) == sorted(names)


def test_rows_that_the_worker_looked_up_stay_the_selection(boss, make_projects, worked, monkeypatch):
    monkeypatch.setattr(selection, "MAX_KEYS", 2)
    projects = make_projects(5)

    worked.bodies = iter([at(projects[2], stop_cluster)])
    choose(boss, "each", projects, select_across="1")
    run_queue()
    late = make_projects(1)
    record = go_on()
    assert (record.status, counts(record)) == ("success", (5, 0, 0))
    assert worked.on[late[0].pk] == 0


@pytest.mark.parametrize("keep_locks", [True, False])
def test_and_rows_that_the_task_has_only_locked_do_not_join_it(
    boss, make_projects, worked, manager, monkeypatch, keep_locks
):
    monkeypatch.setattr(selection, "MAX_KEYS", 2)
    projects, others = make_projects(5), make_projects(2)
    Project.objects.filter(pk__in=[other.pk for other in others]).update(archived=True)

    def lock_another():
        assert get_current_task().take_locks("testapp.Project", [others[1].pk])

    acts = at(projects[1], lock_another), at(projects[3], stop_cluster)
    worked.bodies = iter([lambda project: [act(project) for act in acts]])
    choose(boss, "each", projects, f"{CHANGELIST}?archived__exact=0", select_across="1")
    run_queue()
    assert manager.pause_task(last().task_name, keep_locks=keep_locks)
    assert manager.resume_task(last().task_name)
    assert ConflictLock.objects.filter(object_id=others[1].pk).exists()
    record = go_on()
    assert (record.status, counts(record)) == ("success", (5, 0, 0))
    assert not any(worked.on[other.pk] for other in others)
