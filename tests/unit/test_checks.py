from __future__ import annotations

import sqlite3
import sys
from io import StringIO

import pytest
from django.conf import settings as django_settings
from django.core.checks import Tags, run_checks
from django.core.management import call_command
from django.db import OperationalError, connections

from powercrud_dashboard.async_manager import AsyncManager
from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.dashboard_manager import DashboardAsyncManager
from powercrud_dashboard.models import WorkerProcess

pytestmark = pytest.mark.django_db

WAL = {"transaction_mode": "IMMEDIATE", "init_command": "PRAGMA journal_mode=WAL;"}


def found() -> dict[str, str]:
    """The package's own messages: id -> text and hint."""
    # Django's own checks of models would ask every database what it can do.
    messages = [m for m in run_checks(databases=[]) if str(m.id).startswith("powercrud_dashboard.")]
    # Those of admin classes are about actions, of which the test project has odd ones.
    messages = [m for m in messages if m.obj is None]
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
        ({"ASYNC_MANAGER_DEFAULT": {"manager_class": "tests.testapp.tasks.add"}}, "E004", "not a subclass"),
        ({"DASHBOARD_RECORDER": "no.such.Recorder"}, "E004", "can't be imported"),
        ({"DASHBOARD_RECORDER": "powercrud_dashboard.async_manager.AsyncManager"}, "E004", "not a subclass"),
        ({"DASHBOARD_RETENTION_DAYS": {"done": 5}}, "E005", "'done'"),
        ({"DASHBOARD_TRACK_SAMPLE": {"shop.*": 1.5}}, "E015", "from 0 to 1"),
        ({"DASHBOARD_TRACK_SAMPLE": {5: 0.5}}, "E015", "5: 0.5"),
        ({"DASHBOARD_TRACK_MAX_RECORDS": "all"}, "E002", "None"),
        ({"DASHBOARD_RETENTION_DAYS": {"failed": "x"}}, "E005", "number of days"),
        ({"DASHBOARD_RETENTION_DAYS": {"failed": 1_000_000}}, "E005", "at most 36,500"),
        ({"DASHBOARD_RETENTION_DAYS": {"pending": 5}}, "E005", "'pending'"),
        ({"ASYNC_MANAGER_DEFAULT": {"config": 5}}, "E002", "['ASYNC_MANAGER_DEFAULT']['config']"),
        ({"ASYNC_MANAGER_DEFAULT": {"manager_clas": "x"}}, "W001", "Did you mean manager_class?"),
        ({"DASHBOARD_MANAGER_DEFAULT": {"manager_class": "no.such.Manager"}}, "E004", "can't be imported"),
        ({"DASHBOARD_WORKER_MIDDLEWARE": "one.path"}, "E002", "a list of strings"),
        ({"DASHBOARD_WORKER_MIDDLEWARE": ["one", 5]}, "E002", "a list of strings"),
        ({"DASHBOARD_WORKER_MIDDLEWARE": ["no.such.Middleware"]}, "E009", "can't be imported"),
        ({"DASHBOARD_LOG_LEVEL": "LOUD"}, "E012", "no level"),
        ({"DASHBOARD_HEALTH_TOKEN": "schl\u00fcssel"}, "E017", "in a header"),
        ({"DASHBOARD_HEALTH_TOKEN": "copied\n"}, "E017", "in a header"),
        ({"DASHBOARD_PAGE_SIZE": 0}, "E002", "a whole number from 1 to"),
        ({"CONFLICT_TTL": 10**12}, "E002", "to 2,147,483,647"),
    ],
)
def test_mistakes_in_the_settings_are_said(settings, given, check, words):
    settings.POWERCRUD_SETTINGS = given
    messages = found()
    assert list(messages) == [check]
    assert words in messages[check]


def test_what_can_not_be_used_falls_back_to_the_default(settings):
    settings.POWERCRUD_SETTINGS = {"CONFLICT_TTL": "x", "PROGRESS_TTL": 5, "DASHBOARD_PAGE_SIZE": 0, "UNKNOWN": 1}
    assert (app_settings.CONFLICT_TTL, app_settings.PROGRESS_TTL, app_settings.DASHBOARD_PAGE_SIZE) == (3600, 5, 50)


NOTICES = "powercrud_dashboard.middleware.TaskNoticesMiddleware"


@pytest.mark.parametrize(("place", "is_wrong"), [(0, True), (5, True), (6, False), (7, False)])
def test_the_middleware_of_the_notices_comes_after_those_it_needs(settings, place, is_wrong):
    assert settings.MIDDLEWARE[5].endswith("MessageMiddleware")
    settings.MIDDLEWARE = [*settings.MIDDLEWARE[:place], NOTICES, *settings.MIDDLEWARE[place:]]
    assert ("E013" in found()) == is_wrong


@pytest.mark.parametrize("wrong", [{"config": 5}, {"manager_class": 5}, {"unknown": 1}])
def test_so_does_a_part_of_the_default_manager(settings, wrong):
    settings.POWERCRUD_SETTINGS = {"ASYNC_MANAGER_DEFAULT": {"manager_class": OWN, "config": {"a": 1}, **wrong}}
    assert found()
    manager = AsyncManager.resolve_manager()
    assert isinstance(manager, DashboardAsyncManager if "manager_class" in wrong else OwnManager)
    assert manager.config == ({} if "config" in wrong else {"a": 1})


def test_a_manager_for_this_package_alone_counts_before_the_shared_one(settings):
    shared = {"manager_class": AsyncManager.DEFAULT_MANAGER, "config": {"a": 1}}
    own = {"manager_class": OWN, "config": {"a": 2}}
    settings.POWERCRUD_SETTINGS = {"ASYNC_MANAGER_DEFAULT": shared, "DASHBOARD_MANAGER_DEFAULT": own}
    assert not found()
    manager = AsyncManager.resolve_manager()
    assert (type(manager), manager.config) == (OwnManager, {"a": 2})


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


@pytest.mark.parametrize("times", [{"retry": None}, {"retry": "60"}, {"timeout": "60"}])
def test_what_is_no_number_is_not_compared(settings, times):
    settings.Q_CLUSTER = {"name": "mine", "orm": "default", "timeout": 60, "retry": 90, **times}
    assert found() == {}


@pytest.mark.parametrize("broker", [{}, {"orm": None}, None])
def test_a_cluster_without_a_broker_is_named(settings, broker):
    settings.Q_CLUSTER = None if broker is None else {"name": "mine", "timeout": 60, "retry": 90, **broker}
    assert '"orm": "default"' in found()["W006"]


@pytest.mark.parametrize("broker", [{"redis": "redis://localhost"}, {"broker_class": "some.Broker"}])
def test_any_broker_will_do(settings, broker):
    settings.Q_CLUSTER = {"name": "mine", "timeout": 60, "retry": 90, **broker}
    assert found() == {}


def test_without_redis_a_broker_must_be_named(settings, monkeypatch):
    settings.Q_CLUSTER = {"name": "mine", "timeout": 60, "retry": 90}
    monkeypatch.setitem(sys.modules, "redis", None)
    assert "needs the package 'redis'" in found()["E008"]


@pytest.mark.parametrize("backend", ["locmem.LocMemCache", "dummy.DummyCache"])
def test_caches_that_each_process_has_for_itself_are_named(settings, backend):
    settings.CACHES = {"default": {"BACKEND": f"django.core.cache.backends.{backend}"}}
    settings.POWERCRUD_SETTINGS = {"CACHE_NAME": "default"}
    assert list(found()) == ["W007"]


@pytest.mark.parametrize("name", ["default", "other"])
def test_a_cache_in_the_database_without_its_table(settings, name):
    def messages() -> list[tuple[str, str]]:
        checks = run_checks(tags=[Tags.database], databases=["default"])
        return [(message.msg, message.hint) for message in checks if message.id == "powercrud_dashboard.W010"]

    in_database = {"BACKEND": "django.core.cache.backends.db.DatabaseCache", "LOCATION": "no_such_table"}
    settings.CACHES = {**settings.CACHES, name: in_database}
    settings.POWERCRUD_SETTINGS = {"CACHE_NAME": name}
    text = f"The table 'no_such_table' of CACHES[{name!r}] does not exist."
    assert messages() == [(text, "Run 'manage.py createcachetable'.")]
    call_command("createcachetable", verbosity=0)
    assert messages() == []


def test_a_project_without_a_scheduled_cleanup_is_told_so(db):
    def messages() -> list[str]:
        checks = run_checks(tags=[Tags.database], databases=["default"])
        return [message.id for message in checks if str(message.id).startswith("powercrud_dashboard.")]

    # As at the beginning of a test run.
    assert messages() == []
    WorkerProcess.objects.create(identity="1", host="one", pid=1)
    assert messages() == ["powercrud_dashboard.W008"]
    call_command("pcrud_schedule_cleanup", stdout=StringIO())
    assert messages() == []


class OtherRouter:
    def db_for_write(self, model, **hints):
        return "other"


@pytest.fixture
def use(monkeypatch, settings):
    """A function that has the tables of the package written to a database of this kind."""

    def use(engine: str, **options: str) -> None:
        database = {**settings.DATABASES["archive"], "ENGINE": engine, "OPTIONS": options}
        monkeypatch.setitem(settings.DATABASES, "other", database)
        settings.DATABASE_ROUTERS = [f"{__name__}.OtherRouter"]

    yield use
    del connections["other"]


@pytest.mark.parametrize(
    ("options", "checks"),
    [
        ({}, ["W004", "W005"]),
        ({"transaction_mode": "IMMEDIATE"}, ["W005"]),
        ({"init_command": "PRAGMA journal_mode = wal"}, ["W004"]),
        (WAL, []),
    ],
)
def test_sqlite_without_the_options_for_many_processes_is_named(use, options, checks):
    use("django.db.backends.sqlite3", **options)
    assert list(found()) == checks


@pytest.mark.skipif(not django_settings.USE_TZ, reason="there are only local times")
def test_a_sqlite_with_times_that_its_own_clock_does_not_know_is_an_error(use, settings, monkeypatch):
    use("django.db.backends.sqlite3", **WAL)
    monkeypatch.setitem(settings.DATABASES["other"], "TIME_ZONE", "Asia/Tokyo")
    assert list(found()) == ["E010"]


@pytest.mark.parametrize(("level", "checks"), [(None, []), ("READ_COMMITTED", []), ("SERIALIZABLE", ["E011"])])
def test_another_isolation_level_is_an_error(use, level, checks):
    """A launch that locks a whole model would not see the locks on its objects that are taken meanwhile."""
    levels = pytest.importorskip("django.db.backends.postgresql.psycopg_any").IsolationLevel
    use("django.db.backends.postgresql", **({"isolation_level": levels[level].value} if level else {}))
    assert list(found()) == checks


def test_a_sqlite_without_returning_is_an_error(use, monkeypatch):
    use("django.db.backends.sqlite3", **WAL)
    monkeypatch.setattr(sqlite3.dbapi2, "sqlite_version_info", (3, 34, 1))
    messages = found()
    assert list(messages) == ["E007"]
    assert "DATABASES['other'], which is SQLite 3.34.1" in messages["E007"]


def test_a_database_without_support_is_an_error(use):
    use("django.db.backends.dummy")
    messages = found()
    assert list(messages) == ["E007"]
    assert "PostgreSQL, or SQLite 3.35" in messages["E007"]


def test_no_other_database_is_asked_for_its_name(use, monkeypatch):
    def connect(connection):
        raise OperationalError("the server is down")

    use("django.db.backends.dummy")
    monkeypatch.setattr(type(connections["other"]), "display_name", property(connect))
    assert list(found()) == ["E007"]


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
