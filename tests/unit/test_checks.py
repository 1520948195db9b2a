from __future__ import annotations

import pytest
from django.core.checks import run_checks

from powercrud_dashboard.async_manager import AsyncManager
from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.dashboard_manager import DashboardAsyncManager

pytestmark = pytest.mark.django_db

WAL = {"transaction_mode": "IMMEDIATE", "init_command": "PRAGMA journal_mode=WAL;"}


def found() -> dict[str, str]:
    """The package's own messages: id -> text and hint."""
    messages = [message for message in run_checks() if str(message.id).startswith("powercrud_dashboard.")]
    return {message.id.rpartition(".")[2]: f"{message.msg} {message.hint}" for message in messages}


def test_a_project_without_settings_is_fine(settings):
    del settings.POWERCRUD_SETTINGS
    assert found() == {}
    assert app_settings.CONFLICT_TTL == 3600


@pytest.mark.parametrize(
    ("given", "check", "words"),
    [
        ([], "E001", "must be a dict, not list"),
        ({"CONFLICT_TLL": 5}, "W001", "Did you mean CONFLICT_TTL?"),
        ({"SOMETHING": 5}, "W001", "Known keys"),
        ({"CONFLICT_TTL": "5"}, "E002", "a whole number"),
        ({"CONFLICT_TTL": -5}, "E002", "a whole number"),
        ({"CONFLICT_TTL": True}, "E002", "a whole number"),
        ({"ASYNC_ENABLED": 1}, "E002", "True or False"),
        ({"ASYNC_MANAGER_DEFAULT": "x"}, "E002", "a dict"),
        ({"CACHE_NAME": 5}, "E002", "a string or None"),
        ({"CACHE_NAME": "nowhere"}, "E003", "not in CACHES"),
        ({"ASYNC_MANAGER_DEFAULT": {"manager_class": "no.such.Manager"}}, "E004", "can't be imported"),
        ({"ASYNC_MANAGER_DEFAULT": {"manager_class": "tests.testapp.tasks.add"}}, "E004", "no subclass"),
        ({"DASHBOARD_RETENTION_DAYS": {"done": 5}}, "E005", "'done'"),
        ({"DASHBOARD_RETENTION_DAYS": {"failed": "x"}}, "E005", "number of days"),
    ],
)
def test_mistakes_in_the_settings_are_said(settings, given, check, words):
    settings.POWERCRUD_SETTINGS = given
    messages = found()
    assert list(messages) == [check]
    assert words in messages[check]


def test_what_can_not_be_used_falls_back_to_the_default(settings):
    settings.POWERCRUD_SETTINGS = {"CONFLICT_TTL": "x", "PROGRESS_TTL": 5, "UNKNOWN": 1}
    assert (app_settings.CONFLICT_TTL, app_settings.PROGRESS_TTL) == (3600, 5)


def test_apps_that_are_needed_are_named(settings):
    settings.INSTALLED_APPS = [app for app in settings.INSTALLED_APPS if app != "django_htmx"]
    assert "'django_htmx'" in found()["E006"]


@pytest.mark.parametrize(
    ("cluster", "check"),
    [
        ({"timeout": 60, "retry": 60}, "W003"),
        ({"timeout": 60, "retry": 30}, "W003"),
        ({"timeout": 90}, "W003"),
        ({"retry": 90}, "W002"),
        ({"timeout": 60, "retry": 90, "ALT_CLUSTERS": {"long": {"timeout": 900}}}, "W003"),
    ],
)
def test_clusters_that_deliver_twice_are_named(settings, cluster, check):
    settings.Q_CLUSTER = {"name": "mine", "orm": "default", **cluster}
    messages = found()
    assert list(messages) == [check]
    assert ("'long'" if "ALT_CLUSTERS" in cluster else "'mine'") in messages[check]


@pytest.mark.parametrize(
    ("options", "checks"),
    [
        ({}, ["W004", "W005"]),
        ({"transaction_mode": "IMMEDIATE"}, ["W005"]),
        ({"init_command": "PRAGMA journal_mode = wal"}, ["W004"]),
        (WAL, []),
    ],
)
def test_sqlite_without_the_options_for_many_processes_is_named(monkeypatch, settings, options, checks):
    database = {"ENGINE": "django.db.backends.sqlite3", "OPTIONS": options}
    monkeypatch.setitem(settings.DATABASES, "default", {**settings.DATABASES["default"], **database})
    assert list(found()) == checks


class OwnManager(DashboardAsyncManager):
    """What a project has instead of the default."""


OWN = f"{__name__}.OwnManager"


def test_the_named_manager_comes_first_then_the_configured_then_the_dashboards(settings):
    assert type(AsyncManager.resolve_manager()) is DashboardAsyncManager
    settings.POWERCRUD_SETTINGS = {"ASYNC_MANAGER_DEFAULT": {"manager_class": OWN, "config": {"a": 1}}}
    assert isinstance(AsyncManager.resolve_manager(), OwnManager)
    assert AsyncManager.resolve_manager().config == {"a": 1}
    named = AsyncManager.resolve_manager("powercrud_dashboard.async_manager.AsyncManager", {"b": 2})
    assert type(named) is AsyncManager
    assert named.config == {"b": 2}


@pytest.mark.parametrize("path", ["no.such.Manager", "nodots", "tests.testapp.tasks.add"])
def test_a_manager_that_does_not_import_is_logged_and_the_default_used(caplog, path):
    assert type(AsyncManager.resolve_manager(path)) is DashboardAsyncManager
    assert path in caplog.text


def test_the_statuses_are_those_of_powercrud():
    statuses = AsyncManager.STATUSES
    values = (statuses.PENDING, statuses.IN_PROGRESS, statuses.SUCCESS, statuses.FAILED, statuses.CANCELLED)
    assert values == ("pending", "in_progress", "success", "failed", "cancelled")
    assert statuses.UNKNOWN is None


@pytest.mark.parametrize(
    ("cache_settings", "works"),
    [
        (None, True),
        ({"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}, False),
        ({"BACKEND": "django.core.cache.backends.dummy.DummyCache"}, False),
        ("default", True),
    ],
)
def test_a_cache_must_be_shared(settings, cache_settings, works):
    name = cache_settings if isinstance(cache_settings, str | None) else "own"
    if isinstance(cache_settings, dict):
        settings.CACHES = {**settings.CACHES, "own": cache_settings}
    settings.POWERCRUD_SETTINGS = {"CACHE_NAME": name}
    assert AsyncManager().validate_async_cache() is works
