"""Cleanup goes on past rows that fail, and past records that the project refers to."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta

import pytest
from django.apps import apps
from django.db import connection
from django.utils import timezone
from django_q.conf import Conf

from powercrud_dashboard.async_manager import AsyncManager, RetryPolicy
from powercrud_dashboard.engine import pruning
from powercrud_dashboard.exceptions import WorkerLost
from powercrud_dashboard.models import (
    ActiveTask,
    ConflictLock,
    TaskRecord,
)
from tests.unit.test_cleanup import ADD, ONE, age
from tests.workers import claimed_elsewhere, silence

# Processes are not judged inside of a transaction of the caller's.
pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _defaults(settings) -> None:
    settings.POWERCRUD_SETTINGS = {}


@pytest.fixture
def launch(manager):
    return lambda **options: manager.launch_async_task(ADD, 1, conflict_ids=ONE, **options)


class DemandingManager(AsyncManager):
    """Can't be made without a configuration that nobody has kept."""

    def __init__(self, config):
        super().__init__(config)


BAD_ROWS = {
    "a policy that names a module": {"policy": {"max_retries": 1, "retry_on": ["tests.testapp.tasks"]}},
    "a policy that names nothing": {"policy": {"max_retries": 1, "retry_on": ["no_such_module.Error"]}},
    "a key of a later release": {"policy": {"max_retries": 0, "jitter": 0.5}},
    "a policy in an unknown form": {"policy": {"max_retries": "many"}},
    "a policy that is a list": {"policy": ["max_retries"]},
    "a manager that can't be made": {"manager_class": f"{__name__}.DemandingManager"},
    "a manager that is gone": {"manager_class": "no_such_module.Manager"},
    "a configuration that it does not take": {"manager_config": {"tone": "polite"}},
}


@pytest.mark.parametrize("columns", BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_lost_task_is_ended_whatever_its_row_has_in_it(manager, launch, record_of, columns):
    name = launch()
    claimed_elsewhere(name)
    ActiveTask.objects.update(**columns)
    silence()
    assert name in manager.cleanup_completed_tasks()["cleaned"]
    assert record_of(name).failure_reason == "worker_lost"
    assert not ConflictLock.objects.exists()


@contextmanager
def refusing(table: str, operation: str, condition: str) -> Iterator[None]:
    """Let the database refuse an operation on some rows of a table, for a reason that nobody knows of."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN RAISE EXCEPTION 'this row is bad'; END $$"
            )
            cursor.execute(
                f"CREATE TRIGGER refuse BEFORE {operation} ON {table} FOR EACH ROW WHEN ({condition}) "
                "EXECUTE FUNCTION refuse()"
            )
        else:
            cursor.execute(
                f"CREATE TRIGGER refuse BEFORE {operation} ON {table} FOR EACH ROW WHEN {condition} "
                "BEGIN SELECT RAISE(ABORT, 'this row is bad'); END"
            )
        try:
            yield
        finally:
            cursor.execute(f"DROP TRIGGER refuse{f' ON {table}' if connection.vendor == 'postgresql' else ''}")
            if connection.vendor == "postgresql":
                cursor.execute("DROP FUNCTION refuse()")


def refusing_to_end(name: str) -> AbstractContextManager[None]:
    return refusing(ActiveTask._meta.db_table, "DELETE", f"OLD.task_name = '{name}'")


def test_a_task_that_can_not_be_ended_keeps_no_other(manager, caplog):
    names = [manager.launch_async_task(ADD, number, task_key=f"task-{number}") for number in range(3)]
    for name in names:
        claimed_elsewhere(name)
    silence()
    with refusing_to_end("task-0"):
        assert set(manager.cleanup_completed_tasks()["cleaned"]) == {"task-1", "task-2"}
    assert "this row is bad" in caplog.text


def test_a_reservation_that_can_not_be_ended_keeps_no_other(settings, manager, caplog):
    settings.POWERCRUD_SETTINGS = {"CONFLICT_TTL": 0}
    for number in range(3):
        manager.add_conflict_ids(f"reservation-{number}", {"testapp.Project": {number}})
    with refusing_to_end("reservation-0"):
        assert set(manager.cleanup_completed_tasks()["cleaned"]) == {"reservation-1", "reservation-2"}
    assert "this row is bad" in caplog.text


def test_a_stale_holder_that_can_not_be_ended_keeps_no_other(settings, manager):
    settings.POWERCRUD_SETTINGS = {"CONFLICT_TTL": 0}
    for number in range(2):
        manager.add_conflict_ids(f"reservation-{number}", {"testapp.Project": {number}})
    with refusing_to_end("reservation-0"):
        assert AsyncManager().launch_async_task(ADD, 1, conflict_ids={"testapp.Project": {1}})


def test_a_launch_gets_past_more_stale_holders_than_an_error_names(settings, manager):
    settings.POWERCRUD_SETTINGS = {"CONFLICT_TTL": 0}
    for number in range(50):
        AsyncManager().add_conflict_ids("reserved", {"testapp.Project": {number}})
    assert manager.launch_async_task(ADD, 1, conflict_ids={"testapp.Project": range(50)})


# Records that the project refers to


@pytest.fixture
def expire(settings, manager):
    """Make records that are past their retention; return their keys."""
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_RETENTION_DAYS": {"success": 7}}

    def make(count: int) -> list[int]:
        then = timezone.now() - timedelta(days=8)
        TaskRecord.objects.bulk_create(
            TaskRecord(task_name=f"old-{number}", label="old", func=ADD, status="success", finished_at=then)
            for number in range(count)
        )
        return list(TaskRecord.objects.order_by("pk").values_list("pk", flat=True))

    return make


def test_what_the_project_protects_is_kept_and_the_rest_is_pruned(manager, expire, other_app):
    pks = expire(6)
    for model, pk in zip(("Invoice", "Approval", "Comment", "Batch"), pks, strict=False):
        apps.get_model("otherapp", model).objects.create(record_id=pk)
    assert manager.cleanup_completed_tasks()["pruned_records"] == 4
    assert set(TaskRecord.objects.values_list("pk", flat=True)) == set(pks[:2])
    assert not apps.get_model("otherapp", "Comment").objects.exists()
    assert apps.get_model("otherapp", "Batch").objects.get().record_id is None


def test_what_goes_with_a_record_may_be_protected_itself(manager, expire, other_app):
    comment = apps.get_model("otherapp", "Comment").objects.create(record_id=expire(3)[1])
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE protected (comment_id bigint REFERENCES otherapp_comment (id))")
        cursor.execute("INSERT INTO protected VALUES (%s)", [comment.pk])
    try:
        assert manager.cleanup_completed_tasks()["pruned_records"] == 2
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP TABLE protected")


def test_a_record_that_the_database_refuses_to_delete_keeps_no_other(settings, manager, expire):
    pks = expire(5)
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_RETENTION_DAYS": {"success": 7, "failed": 7}}
    TaskRecord.objects.filter(pk=pks[4]).update(status="failed")
    with refusing(TaskRecord._meta.db_table, "DELETE", f"OLD.id = {pks[1]}"):
        assert manager.cleanup_completed_tasks()["pruned_records"] == 4
    assert TaskRecord.objects.get().pk == pks[1]


def test_a_blocked_batch_does_not_keep_later_ones(manager, expire, monkeypatch):
    monkeypatch.setattr(pruning, "DELETED_AT_ONCE", 20)
    pks = expire(2 * pruning.DELETED_AT_ONCE)
    blocked = pks[: pruning.DELETED_AT_ONCE]
    with connection.cursor() as cursor:
        # Django knows nothing of this table.
        cursor.execute(
            "CREATE TABLE ledger (record_id bigint REFERENCES powercrud_dashboard_taskrecord (id) "
            "DEFERRABLE INITIALLY DEFERRED)"
        )
        cursor.executemany("INSERT INTO ledger VALUES (%s)", [[pk] for pk in blocked])
    try:
        assert manager.cleanup_completed_tasks()["pruned_records"] == pruning.DELETED_AT_ONCE
        assert set(TaskRecord.objects.values_list("pk", flat=True)) == set(blocked)
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP TABLE ledger")


def test_a_step_that_fails_keeps_no_other(settings, manager, launch, monkeypatch, caplog):
    """The broker may be in another database, which is away."""
    settings.POWERCRUD_SETTINGS = {"CONFLICT_TTL": 0}
    manager.add_conflict_ids("expired", ONE)
    monkeypatch.setattr(Conf, "ORM", "no-such-database")
    assert "expired" in manager.cleanup_completed_tasks()["cleaned"]
    assert "A step of the cleanup failed" in caplog.text


@pytest.fixture
def bound_on_the_server() -> Iterator[None]:
    """Have PostgreSQL bind the parameters, of which it then takes 65,535."""
    connection.close()
    options = connection.settings_dict["OPTIONS"]
    if connection.vendor == "postgresql":
        options["server_side_binding"] = True
    yield
    connection.close()
    options.pop("server_side_binding", None)


@pytest.mark.long
def test_a_queue_may_be_longer_than_a_statement_has_parameters(manager, launch, bound_on_the_server):
    queued = ActiveTask.objects.get(task_name=launch())
    count = (connection.features.max_query_params or 65_535) + 1
    if count > 100_000:
        pytest.skip("SQLite takes more parameters here than a test should make rows")
    long_ago = timezone.now() - timedelta(minutes=10)
    ActiveTask.objects.bulk_create(
        (
            ActiveTask(
                task_name=f"task-{number}",
                state="pending",
                queue_receipt=str(10**6 if number == count // 2 else queued.queue_receipt),
                sent_at=long_ago,
                queued_at=long_ago,
            )
            for number in range(count)
        ),
        batch_size=1_000,
    )
    summary = manager.cleanup_completed_tasks(dry_run=True)
    assert list(summary["cleaned"]) == [f"task-{count // 2}"]


def test_a_task_may_have_more_objects_than_a_statement_has_parameters(manager, settings, bound_on_the_server):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_OBJECT_LIMIT": 12_000}
    name = manager.launch_async_task(ADD, 1, conflict_ids={"testapp.Project": range(70_000)})
    manager.add_conflict_ids("mine", {"testapp.Document": [uuid.uuid4() for _ in range(70_000)]})
    assert ConflictLock.objects.filter(active_task__task_name=name).count() == 70_000
    assert len(manager.check_conflict({"testapp.Project": range(70_000)})) == 70_000
    assert manager.cancel_task(name)
    assert TaskRecord.objects.get().objects_worked_on.count() == 12_000


def test_a_long_transaction_is_no_lost_launch(manager, launch):
    """The row says when it was written, which is long before its commit; a broker elsewhere gets it after that."""
    name = launch()
    ActiveTask.objects.update(sent_at=None, queue_receipt="", queued_at=timezone.now() - timedelta(minutes=30))
    assert manager.cleanup_completed_tasks()["cleaned"] == {}
    assert ActiveTask.objects.get().task_name == name


def test_a_task_that_is_queued_again_has_the_time_anew(manager, launch):
    name = launch(retry=RetryPolicy(max_retries=1, retry_on=[WorkerLost]))
    ActiveTask.objects.update(sent_at=None, queue_receipt="")
    manager.cleanup_completed_tasks()
    claimed_elsewhere(name)
    age(name, minutes=5)
    manager.cleanup_completed_tasks()
    assert manager.run_task_now(name)
    ActiveTask.objects.update(sent_at=None, queue_receipt="")
    assert manager.cleanup_completed_tasks()["cleaned"] == {}
