from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.apps import apps
from django.contrib import admin
from django.db import DEFAULT_DB_ALIAS, connection, connections
from django.test import override_settings

from tests.testapp.models import Project


@pytest.fixture(autouse=True)
def _without_the_loop_of_a_browser() -> Iterator[None]:
    """Playwright leaves its event loop running in this thread, in which there is none in a worker."""
    loop = asyncio._get_running_loop()
    asyncio._set_running_loop(None)
    yield
    asyncio._set_running_loop(loop)


@pytest.fixture(autouse=True)
def _short_observation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that seem lost are not watched for long where there are none."""
    monkeypatch.setattr("powercrud_dashboard.engine.processes.OBSERVATION", 0.0)


@pytest.fixture(autouse=True)
def _patient_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not end this process, as a worker is ended that goes on with a task which may be another's by now."""
    monkeypatch.setattr("powercrud_dashboard.worker.heartbeat.STOPS_WITHIN", 120.0)


@pytest.fixture
def other_app(settings, transactional_db: None) -> Iterator[None]:
    """Install ``tests.otherapp``, with its tables."""
    with override_settings(INSTALLED_APPS=[*settings.INSTALLED_APPS, "tests.otherapp"]):
        # Django has not done so for the models that were there before.
        apps.clear_cache()
        tables = [model for model in apps.get_app_config("otherapp").get_models() if not model._meta.proxy]
        with connection.schema_editor() as editor:
            for table in tables:
                editor.create_model(table)
        yield
        with connection.schema_editor() as editor:
            for table in reversed(tables):
                editor.delete_model(table)


@pytest.fixture
def with_actions(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Give the admin of projects more actions."""

    def add(*actions: Callable[..., Any]) -> None:
        model_admin = admin.site.get_model_admin(Project)
        monkeypatch.setattr(model_admin, "actions", [*model_admin.actions, *actions])

    return add


@pytest.fixture
def own_connection() -> Iterator[None]:
    """Restore the connection, which an interruption replaces, as the database is deleted with it."""
    original = connections[DEFAULT_DB_ALIAS]
    yield
    connections.close_all()
    connections[DEFAULT_DB_ALIAS] = original
