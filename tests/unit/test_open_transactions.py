"""A process that was frozen, or cut off, in the middle of a transaction: nobody waits for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.utils import timezone

from powercrud_dashboard.async_manager import AsyncManager, RetryPolicy
from powercrud_dashboard.engine import cleanup, processes
from powercrud_dashboard.exceptions import TaskBusy, WorkerLost
from powercrud_dashboard.models import ActiveTask, ConflictLock, FailureReason, TaskRecord, WorkerProcess
from powercrud_dashboard.models.database import impatient_transaction
from tests.clicks import TASKS, choose, said
from tests.conftest import POSTGRESQL
from tests.services import wait_until
from tests.workers import claimed_elsewhere, silence

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(not POSTGRESQL, reason="SQLite has one writer, on one host"),
]

ADD = "tests.testapp.tasks.add"
ONE, TWO = ({"testapp.Project": {number}} for number in (1, 2))


@pytest.fixture(autouse=True)
def _waits_end() -> Iterator[None]:
    """Who waits for the other session fails instead of hanging."""
    with connection.cursor() as cursor:
        cursor.execute("SET statement_timeout = '20s'")
    yield
    with connection.cursor() as cursor:
        cursor.execute("RESET statement_timeout")


@contextmanager
def open_transaction(sql: str, *params: object) -> Iterator[None]:
    """Another session that has executed this statement and neither commits nor answers."""
    other: Any = connections.create_connection("default")
    try:
        other.set_autocommit(False)
        with other.cursor() as cursor:
            cursor.execute(sql, params)
            assert cursor.rowcount > 0
        yield
        other.rollback()
    finally:
        other.close()


def locking(model: Any, **which: object) -> Any:
    """The same, with these rows locked as by a change of them."""
    sql, params = model._default_manager.filter(**which).values("pk").query.sql_with_params()
    return open_transaction(f"{sql} FOR UPDATE", *params)


def lost(manager, conflict_ids, host: str = "frozen") -> str:
    name = manager.launch_async_task(ADD, 1, conflict_ids=conflict_ids)
    claimed_elsewhere(name, host=host)
    silence()
    return name


@pytest.mark.parametrize("locked", [ActiveTask, ConflictLock, TaskRecord])
def test_cleanup_ends_the_next_lost_task(manager, record_of, locked):
    frozen, gone = lost(manager, ONE), lost(manager, TWO, "gone")
    which = {"active_task__task_name": frozen} if locked is ConflictLock else {"task_name": frozen}
    with locking(locked, **which):
        assert set(manager.cleanup_completed_tasks()["cleaned"]) == {gone}
        assert record_of(frozen).status == "pending"
        assert ActiveTask.objects.filter(task_name=frozen).exists()
    assert set(manager.cleanup_completed_tasks()["cleaned"]) == {frozen}
    assert record_of(frozen).failure_reason == "worker_lost"


def test_cleanup_judges_the_next_silent_process(manager):
    """One is frozen in the middle of a heartbeat."""
    frozen, gone = lost(manager, ONE), lost(manager, TWO, "gone")
    with locking(WorkerProcess, host="frozen"):
        assert set(manager.cleanup_completed_tasks()["cleaned"]) == {gone}
    assert set(manager.cleanup_completed_tasks()["cleaned"]) == {frozen}


def test_cleanup_ends_the_next_reservation_and_prunes(manager, settings):
    settings.POWERCRUD_SETTINGS = {"CONFLICT_TTL": 0, "DASHBOARD_RETENTION_DAYS": {"success": 1, "failed": 1}}
    manager.add_conflict_ids("frozen", ONE)
    manager.add_conflict_ids("forgotten", TWO)
    old = timezone.now() - timedelta(days=2)
    for status in ("success", "failed"):
        TaskRecord.objects.create(task_name=status, func=ADD, status=status, finished_at=old)
    with locking(ActiveTask, task_name="frozen"), locking(TaskRecord, status="success"):
        summary = manager.cleanup_completed_tasks()
    assert (set(summary["cleaned"]), summary["pruned_records"]) == ({"forgotten"}, 1)


def test_a_launch_on_objects_that_are_being_released_is_refused(manager):
    """The other host was frozen between the end of its task and the commit."""
    lost(manager, ONE)
    with open_transaction(f"DELETE FROM {ConflictLock._meta.db_table}"):
        with pytest.raises(TaskBusy, match="Try again"):
            manager.launch_async_task(ADD, 2, conflict_ids=ONE)
        with pytest.raises(TaskBusy):
            manager.add_conflict_ids("mine", ONE)
    assert TaskRecord.objects.count() == 1
    assert manager.launch_async_task(ADD, 2, conflict_ids=ONE)


def test_the_same_click_twice_does_not_wait_for_the_first(manager):
    manager.launch_async_task(ADD, 1, unique_key="other")
    table = ActiveTask._meta.db_table
    with (
        open_transaction(f"UPDATE {table} SET unique_key = %s", "import"),
        pytest.raises(TaskBusy),
    ):
        manager.launch_async_task(ADD, 2, unique_key="import")


def test_locks_that_are_being_released_are_not_waited_for(manager):
    manager.add_conflict_ids("mine", ONE)
    with locking(ConflictLock), pytest.raises(TaskBusy):
        manager.remove_conflict_ids("mine")
    with transaction.atomic():
        assert manager.remove_conflict_ids("mine") == 1
        assert limit() == "0"


def test_clicks_say_to_try_again(boss, manager, make_projects, make_user, client_of):
    (project,) = make_projects(1)
    name = manager.launch_async_task(ADD, 1, conflict_ids={"testapp.Project": {project.pk}})
    record = TaskRecord.objects.get(task_name=name)
    ended = manager.launch_async_task(ADD, 1, sync=True)
    ended = TaskRecord.objects.get(task_name=ended)
    lock = ConflictLock.objects.get()
    clicks = {
        "cancel": lambda: boss.post(f"{TASKS}{record.pk}/cancel/", follow=True),
        "cancel several": lambda: boss.post(
            f"{TASKS}bulk/", {"action": "cancel", "confirmed": "yes", "selected": [record.pk]}, follow=True
        ),
        "retry": lambda: boss.post(f"{TASKS}{ended.pk}/retry/", {"confirmed": "yes"}, follow=True),
        "delete": lambda: boss.post(
            f"{TASKS}bulk/", {"action": "delete", "confirmed": "yes", "selected": [ended.pk]}, follow=True
        ),
        "release": lambda: boss.post(f"{TASKS}locks/{lock.pk}/release/", {"confirmed": "yes"}, follow=True),
        "launch": lambda: choose(boss, "archive", [project]),
    }
    with (
        locking(ActiveTask),
        locking(TaskRecord),
        open_transaction(f"DELETE FROM {ConflictLock._meta.db_table}"),
    ):
        answers = {what: " ".join(said(click())) for what, click in clicks.items()}
    assert {what for what, text in answers.items() if "Try again in a moment" not in text} == set(), answers
    assert TaskRecord.objects.count() == 2


def test_a_task_that_has_locked_more_in_its_own_transaction_can_be_cancelled(manager):
    name = lost(manager, ONE)
    with transaction.atomic():
        assert manager.add_conflict_ids(name, TWO)
        other = connections.create_connection("default")
        try:
            with other.cursor() as cursor:
                cursor.execute("SET lock_timeout = '1s'")
                cursor.execute(f"UPDATE {ActiveTask._meta.db_table} SET cancel_requested_at = now()")
        finally:
            other.close()


def limit(name: str = "lock_timeout") -> str:
    with connection.cursor() as cursor:
        cursor.execute(f"SHOW {name}")
        return cursor.fetchone()[0]


def test_postgresql_ends_what_a_frozen_process_leaves_open():
    idle = "idle_in_transaction_session_timeout"
    with impatient_transaction():
        assert limit(idle) == "30s"
    with transaction.atomic():
        AsyncManager().launch_async_task(ADD, 1, conflict_ids=ONE)
        with impatient_transaction():
            assert limit(idle) == "0"


def test_the_callers_transaction_keeps_its_own_limit():
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL lock_timeout = '7s'")
        name = AsyncManager().launch_async_task(ADD, 1, conflict_ids=ONE, unique_key="one")
        AsyncManager().add_conflict_ids("more", TWO)
        AsyncManager().cancel_task(name)
        assert limit() == "7s"
    assert limit() == "0"


def when_commits(sql: str, params: tuple[object, ...], act: Callable[[], object]) -> object:
    """Call ``act``, which waits for the rows that another session has changed by this, until that one commits."""
    other: Any = connections.create_connection("default")
    other.inc_thread_sharing()
    other.set_autocommit(False)
    with other.cursor() as cursor:
        cursor.execute(sql, params)
        assert cursor.rowcount == 1

    def commit_when_awaited() -> None:
        with other.cursor() as cursor:

            def is_awaited() -> bool:
                cursor.execute("SELECT pg_blocking_pids(%s)", [pid])
                return bool(cursor.fetchone()[0])

            wait_until(is_awaited, "somebody waits for the rows")
        other.commit()

    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        pid = cursor.fetchone()[0]
    thread = threading.Thread(target=commit_when_awaited)
    thread.start()
    try:
        return act()
    finally:
        thread.join()
        other.close()


TABLE = ActiveTask._meta.db_table
#: How somebody else takes a lost task over, and how its process, if it lives, keeps it under a new identity.
CHANGES = {
    "taken over": f"UPDATE {TABLE} SET attempt = attempt + 1, worker_id = %s WHERE task_name = %s",
    "moved": f"UPDATE {TABLE} SET worker_id = %s WHERE task_name = %s",
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("act", ["take over", "give up", "try again"])
def test_a_lost_task_passes_on_once(manager, act, change):
    policy = RetryPolicy(1, retry_on=WorkerLost) if act == "try again" else None
    name = manager.launch_async_task(ADD, 1, conflict_ids=ONE, retry=policy)
    claimed_elsewhere(name)
    WorkerProcess.objects.update(lost_at=timezone.now())
    (found,) = processes.find_lost()
    first, second = (WorkerProcess.objects.create(identity=str(number), host="a", pid=1) for number in (1, 2))

    def pass_on() -> object:
        if act == "take over":
            return ActiveTask.objects.take_over(found, worker=second.pk)
        return cleanup.give_up(manager, found, FailureReason.WORKER_LOST)

    assert not when_commits(CHANGES[change], (first.pk, name), pass_on)
    assert ActiveTask.objects.get().worker_id == first.pk


class LaunchesInItsHook(AsyncManager):
    """Has a transaction of its own in its hook, which is called after a commit of the package's."""

    limits: dict[str, str]

    def async_task_lifecycle(self, event: str, task_name: str, **payload: Any) -> None:
        if event == "create":
            with transaction.atomic():
                AsyncManager().launch_async_task(ADD, 1, conflict_ids=TWO)
                type(self).limits = {
                    name: limit(name) for name in ("lock_timeout", "idle_in_transaction_session_timeout")
                }


def test_a_transaction_of_a_hook_keeps_its_own_limits():
    LaunchesInItsHook().launch_async_task(ADD, 1, conflict_ids=ONE)
    assert set(LaunchesInItsHook.limits.values()) == {"0"}
