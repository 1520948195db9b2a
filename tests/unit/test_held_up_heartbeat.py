"""The thread that writes the heartbeat of a worker, while the database does not answer it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
from django.db import connection
from django.db.backends.signals import connection_created

from powercrud_dashboard.engine import processes
from powercrud_dashboard.models import ActiveTask
from powercrud_dashboard.worker import heartbeat
from tests.services import DEADLINE, wait_until
from tests.testapp import tasks
from tests.workers import deliver

LOOKS = f"SELECT {connection.ops.quote_name(ActiveTask._meta.db_table)}"


class HeldUp:
    """Holds up the thread where it asks whether the task is still its own, as when the host is cut off."""

    def __init__(self) -> None:
        self.is_held = threading.Event()
        self.goes_on = threading.Event()

    def is_over(self) -> bool:
        return not any(thread.name == "powercrud-dashboard-heartbeat" for thread in threading.enumerate())

    def hold(self, connection, **kwargs):
        """Receive Django's signal for a new connection."""
        if threading.current_thread().name == "powercrud-dashboard-heartbeat":
            connection.execute_wrappers.append(self._execute)

    def _execute(self, execute, sql, params, many, context):
        if sql.startswith(LOOKS):
            self.is_held.set()
            self.goes_on.wait(DEADLINE)
        return execute(sql, params, many, context)


@pytest.fixture
def held_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldUp]:
    held_up = HeldUp()
    monkeypatch.setattr(processes, "HEARTBEAT_INTERVAL", 0.0)
    monkeypatch.setattr(heartbeat, "ROUND_AT_MOST", 0.0)
    wait_until(held_up.is_over, "that of the last task has ended")
    connection_created.connect(held_up.hold)
    yield held_up
    connection_created.disconnect(held_up.hold)
    held_up.goes_on.set()
    wait_until(held_up.is_over, "it has ended")


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The exit codes with which this process was to be ended at once."""
    ends: list[int] = []
    monkeypatch.setattr(os, "_exit", ends.append)
    monkeypatch.setattr(heartbeat, "STOPS_WITHIN", 0.0)
    return ends


@pytest.mark.django_db(transaction=True)
def test_no_process_is_ended_for_a_task_that_has_ended(manager, record_of, monkeypatch, held_up, ends):
    """It may wait for the next task by now, and keep all other workers of its cluster from theirs."""
    monkeypatch.setattr(tasks, "add", lambda *args: held_up.is_held.wait(DEADLINE))
    name = manager.launch_async_task("tests.testapp.tasks.add", 1)
    assert deliver() is True
    assert record_of(name).status == "success"
    held_up.goes_on.set()
    wait_until(held_up.is_over, "the thread has ended")
    assert ends == []
    events = list(record_of(name).events.order_by("pk").values_list("event", flat=True))
    assert events == ["create", "start", "complete", "cleanup"]
