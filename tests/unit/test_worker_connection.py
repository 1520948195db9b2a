"""The connection that a worker keeps for its own writing, from one task to the next."""

from __future__ import annotations

from contextlib import suppress

import pytest
from django.db import connections

from powercrud_dashboard.models import TaskRecord
from powercrud_dashboard.worker import connection
from powercrud_dashboard.worker.connection import WorkerConnection

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def kept():
    keeper = WorkerConnection()
    yield keeper
    keeper.close()


def session_of(keeper: WorkerConnection) -> object:
    """Use the connection, and return what the driver has for it."""
    with keeper.in_use():
        TaskRecord.objects.exists()
        return connections["default"].connection


def test_it_stays_open_and_is_never_the_one_that_functions_get(kept):
    TaskRecord.objects.exists()
    djangos = connections["default"].connection
    first = session_of(kept)
    assert first is not djangos
    assert connections["default"].connection is djangos
    connections["default"].close()
    assert session_of(kept) is first


def test_after_a_while_without_use_it_is_opened_anew(kept, monkeypatch):
    first = session_of(kept)
    monkeypatch.setattr(connection, "CLOSE_AFTER", -1.0)
    assert session_of(kept) is not first


def test_an_error_leaves_no_broken_connection_behind(kept):
    djangos = connections["default"]
    first = session_of(kept)
    with suppress(KeyboardInterrupt), kept.in_use():
        connections["default"].set_autocommit(False)
        raise KeyboardInterrupt
    assert connections["default"] is djangos
    assert session_of(kept) is not first


@pytest.mark.parametrize("options", [{"CONN_MAX_AGE": None}, {"CONN_MAX_AGE": 60}, {"OPTIONS": {"pool": True}}])
def test_where_django_keeps_its_own_connections_that_is_enough(kept, monkeypatch, options):
    TaskRecord.objects.exists()
    djangos = connections["default"]
    for name, value in options.items():
        monkeypatch.setitem(djangos.settings_dict, name, value)
    with kept.in_use():
        assert connections["default"] is djangos
