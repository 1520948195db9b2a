"""Tasks that leave a transaction open, or break their connection in one."""

from __future__ import annotations

from contextlib import nullcontext, suppress

import pytest
from django.db import OperationalError, connection, connections, transaction

from powercrud_dashboard.models import ActiveTask
from tests.testapp.models import Project
from tests.workers import deliver

ADD, FAIL = "tests.testapp.tasks.add", "tests.testapp.tasks.fail"


def leave_block_open() -> None:
    transaction.atomic().__enter__()
    Project.objects.create(name="in a block")


def leave_block_open_and_fail() -> None:
    leave_block_open()
    raise ValueError("it broke")


def leave_transaction_open() -> None:
    transaction.set_autocommit(False)
    Project.objects.create(name="by hand")


def break_connection_and_fail() -> None:
    leave_transaction_open()
    connection.connection.close()
    raise ValueError("it broke")


def commit_by_hand() -> None:
    leave_transaction_open()
    transaction.commit()
    assert Project.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_a_connection_that_is_broken_in_a_transaction_does_not_hide_the_error(manager, record_of, own_connection):
    name = manager.launch_async_task(break_connection_and_fail)
    with pytest.raises(ValueError, match="it broke"):
        deliver()
    assert (record_of(name).status, record_of(name).error) == ("failed", "it broke")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("in_transaction", [False, True])
@pytest.mark.parametrize(
    ("func", "error"),
    [
        (leave_block_open, "a transaction was left open on 'default'"),
        (leave_block_open_and_fail, "it broke"),
        (leave_transaction_open, "a transaction was left open on 'default'"),
        (commit_by_hand, ""),
    ],
)
def test_a_task_that_leaves_a_transaction_open_is_not_completed(
    manager, record_of, own_connection, func, error, sync, in_transaction
):
    """What it has written is rolled back, as nobody would commit it."""
    if in_transaction and (not sync or "block" not in func.__name__):
        pytest.skip("a worker has no transaction of its own, and in one nobody can change autocommit")
    with transaction.atomic() if in_transaction else nullcontext(), suppress(ValueError, OperationalError):
        manager.launch_async_task(func, task_key="one", sync=sync)
        if not sync:
            deliver()
    connections.close_all()
    record = record_of("one")
    assert error in record.error
    assert (record.status, Project.objects.exists()) == (("failed", False) if error else ("success", True))
    assert not ActiveTask.objects.exists()
