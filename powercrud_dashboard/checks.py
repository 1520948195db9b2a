"""System checks, with the ids ``powercrud_dashboard.E0xx`` and ``powercrud_dashboard.W0xx``."""

from __future__ import annotations

import logging
import typing
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from types import UnionType
from typing import Any

from django.apps import AppConfig, apps
from django.conf import settings
from django.core.cache import BaseCache, caches
from django.core.cache.backends.db import BaseDatabaseCache
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.db import connections, router
from django.utils.module_loading import import_string

from powercrud_dashboard.async_manager import AsyncManager
from powercrud_dashboard.conf import (
    CHOICES,
    MANAGER_SETTINGS,
    MANAGER_TYPES,
    MAX_NUMBER,
    MAX_RETENTION_DAYS,
    MINIMUMS,
    SETTING_NAME,
    SETTING_NAMES,
    SETTING_TYPES,
    WITHOUT_DEFAULT,
    app_settings,
    is_retention,
    is_share,
    is_valid,
)
from powercrud_dashboard.dashboard_manager import DashboardAsyncManager
from powercrud_dashboard.engine import alert_rules, registry
from powercrud_dashboard.engine.notices import MIDDLEWARE
from powercrud_dashboard.extension import dashboard
from powercrud_dashboard.models.database import coordination_db
from powercrud_dashboard.models.statuses import FINISHED
from powercrud_dashboard.q2 import queue

#: What a project without a broker may add.
BROKER_EXAMPLE = """Q_CLUSTER = {"name": "mysite", "orm": "default", "timeout": 600, "retry": 660}"""
#: The first version with RETURNING, which claims a task in one statement.
MIN_SQLITE_VERSION = (3, 35)
#: What the middleware of the notices comes after: itself, or a subclass.
NEEDED_BY_NOTICES = (
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
)
#: Settings that have secrets, which are not shown.
SECRET = {"DASHBOARD_ALERTS", "DASHBOARD_HEALTH_TOKEN"}
#: Packages that the pages use.
REQUIRED_APPS = ("django_q", "django_htmx", "django_tables2", "django_filters")


@register()
def check_settings(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Check the keys, types and values of ``POWERCRUD_SETTINGS``."""
    given = getattr(settings, SETTING_NAME, {})
    if not isinstance(given, dict):
        return [
            Error(
                f"{SETTING_NAME} must be a dict, not {type(given).__name__}.",
                hint=f"Set {SETTING_NAME} = {{'CONFLICT_TTL': 3600, ...}}, or remove it.",
                id="powercrud_dashboard.E001",
            )
        ]
    return [
        *_unknown_keys(given),
        *_wrong_types(given),
        *_unknown_cache(given),
        *_invalid_managers(given),
        *_unusable_in_views(given),
        *_unknown_statuses(given),
        *_invalid_shares(given),
        *_missing_middleware(given),
        *_unknown_level(given),
        *_unusable_alerts(given),
        *_unusable_token(given),
        *_unusable_dashboard(),
    ]


def _unknown_keys(given: dict[str, Any]) -> Iterator[CheckMessage]:
    managers = [(f"{SETTING_NAME}[{name!r}]", default, list(MANAGER_TYPES)) for name, default in _managers(given)]
    for place, keys, known in [(SETTING_NAME, given, SETTING_NAMES), *managers]:
        for name in keys:
            is_peers = (
                place == SETTING_NAME and not str(name).startswith("DASHBOARD_") and apps.is_installed("powercrud")
            )
            if name in known or is_peers:
                # django-powercrud reads other keys from the same dict.
                continue
            similar = get_close_matches(str(name), known, n=1)
            yield Warning(
                f"{place} has the unknown key {name!r}, which has no effect.",
                hint=f"Did you mean {similar[0]}?" if similar else f"Known keys: {', '.join(known)}.",
                id="powercrud_dashboard.W001",
            )


def _managers(given: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the settings that name a manager."""
    for name in sorted(MANAGER_SETTINGS):
        if isinstance(default := given.get(name), dict):
            yield name, default


def _wrong_types(given: dict[str, Any]) -> Iterator[CheckMessage]:
    for name, value in given.items():
        if name in SETTING_NAMES and name not in WITHOUT_DEFAULT and not is_valid(name, value):
            shown = alert_rules.HIDDEN if name in SECRET else value
            yield _invalid_value(f"[{name!r}]", shown, _describe(name))
    # The path of the class has a check of its own.
    for name, default in _managers(given):
        if not isinstance(config := default.get("config"), dict | None):
            yield _invalid_value(f"[{name!r}]['config']", config, "a dict")


def _invalid_value(key: str, value: object, expected: str) -> CheckMessage:
    return Error(
        f"{SETTING_NAME}{key} has the invalid value {value!r}; the default is used instead.",
        hint=f"Set it to {expected}.",
        id="powercrud_dashboard.E002",
    )


def _describe(name: str) -> str:
    if name in CHOICES:
        return " or ".join(map(repr, CHOICES[name]))
    expected = SETTING_TYPES[name]
    number = f"a whole number from {MINIMUMS.get(name, 0)} to {MAX_NUMBER:,}"
    names = {int: number, bool: "True or False", str: "a string", type(None): "None"}
    kinds = {list: "a list of strings", dict: "a dict", Callable: "a callable"}
    options = typing.get_args(expected) if typing.get_origin(expected) is UnionType else (expected,)
    return " or ".join(names.get(option) or kinds[typing.get_origin(option)] for option in options)


def _unknown_cache(given: dict[str, Any]) -> Iterator[CheckMessage]:
    name = given.get("CACHE_NAME")
    if isinstance(name, str) and name not in caches.settings:
        yield Error(
            f"{SETTING_NAME}['CACHE_NAME'] is {name!r}, which is not in CACHES.",
            hint="Set it to a cache in CACHES, or to None to store progress only in the database.",
            id="powercrud_dashboard.E003",
        )


def _invalid_managers(given: dict[str, Any]) -> Iterator[CheckMessage]:
    for name, default in _managers(given):
        path = default.get("manager_class")
        if name != "ASYNC_MANAGER_DEFAULT" or not registry.is_only_for_powercrud(path):
            yield from _invalid_manager(f"[{name!r}]['manager_class']", path, AsyncManager)
    yield from _invalid_manager("['DASHBOARD_RECORDER']", given.get("DASHBOARD_RECORDER"), DashboardAsyncManager)


def _invalid_manager(key: str, path: Any, base: type[AsyncManager]) -> Iterator[CheckMessage]:
    if path is None:
        return
    try:
        manager_class = import_string(path)
    except Exception as error:
        # Importing runs the module, which may raise anything.
        problem = f"can't be imported: {type(error).__name__}: {error}"
    else:
        if isinstance(manager_class, type) and issubclass(manager_class, base):
            return
        problem = f"is not a subclass of {base.__module__}.{base.__name__}"
    yield Error(
        f"{SETTING_NAME}{key} is {path!r}, which {problem}.",
        hint=f"Set it to the dotted path of a manager class, such as {AsyncManager.DEFAULT_MANAGER!r}.",
        id="powercrud_dashboard.E004",
    )


def _unusable_in_views(given: dict[str, Any]) -> Iterator[CheckMessage]:
    """Warn of a default manager that the views of django-powercrud, which is installed, can't use."""
    path = (dict(_managers(given)).get("ASYNC_MANAGER_DEFAULT") or {}).get("manager_class")
    if not (apps.is_installed("powercrud") and isinstance(path, str)):
        return
    manager_class, base = _imported(path), _imported("powercrud.async_manager.AsyncManager")
    is_ours = isinstance(manager_class, type) and issubclass(manager_class, AsyncManager)
    if is_ours and base is not None and not issubclass(manager_class, base):
        yield Warning(
            f"{SETTING_NAME}['ASYNC_MANAGER_DEFAULT']['manager_class'] is {path!r}, which PowerCRUD's views can't use: "
            "they launch no task in the background.",
            hint="Derive it from powercrud_dashboard.contrib.powercrud.PowerCrudManager, or name it under "
            "'DASHBOARD_MANAGER_DEFAULT'.",
            id="powercrud_dashboard.W009",
        )


def _unknown_statuses(given: dict[str, Any]) -> Iterator[CheckMessage]:
    days_by_status = given.get("DASHBOARD_RETENTION_DAYS")
    for status, days in (days_by_status or {}).items() if isinstance(days_by_status, dict) else ():
        if status not in FINISHED or not is_retention(days):
            yield Error(
                f"{SETTING_NAME}['DASHBOARD_RETENTION_DAYS'] has the invalid item {status!r}: {days!r}.",
                hint="Map 'success', 'failed' or 'cancelled' to a number of days, at most "
                f"{MAX_RETENTION_DAYS:,}, or to None to keep all records.",
                id="powercrud_dashboard.E005",
            )


def _invalid_shares(given: dict[str, Any]) -> Iterator[CheckMessage]:
    shares = given.get("DASHBOARD_TRACK_SAMPLE")
    for pattern, share in shares.items() if isinstance(shares, dict) else ():
        if not (isinstance(pattern, str) and is_share(share)):
            yield Error(
                f"{SETTING_NAME}['DASHBOARD_TRACK_SAMPLE'] has the invalid item {pattern!r}: {share!r}.",
                hint="Map a pattern of function paths to the share that is recorded, from 0 to 1.",
                id="powercrud_dashboard.E015",
            )


def _missing_middleware(given: dict[str, Any]) -> Iterator[CheckMessage]:
    paths = given.get("DASHBOARD_WORKER_MIDDLEWARE", [])
    for path in paths if is_valid("DASHBOARD_WORKER_MIDDLEWARE", paths) else ():
        try:
            import_string(path)
        except Exception as error:
            # Importing runs the module, which may raise anything.
            yield Error(
                f"{SETTING_NAME}['DASHBOARD_WORKER_MIDDLEWARE'] contains {path!r}, which can't be imported "
                f"({type(error).__name__}: {error}).",
                hint="Use the dotted path of a middleware, as in MIDDLEWARE.",
                id="powercrud_dashboard.E009",
            )


def _unknown_level(given: dict[str, Any]) -> Iterator[CheckMessage]:
    level = given.get("DASHBOARD_LOG_LEVEL", "INFO")
    levels = logging.getLevelNamesMapping()
    if isinstance(level, str) and level not in levels:
        yield Error(
            f"{SETTING_NAME}['DASHBOARD_LOG_LEVEL'] is {level!r}, which is no level of the module logging. "
            "INFO is used instead.",
            hint=f"Set it to one of {', '.join(name for name in levels if name != 'NOTSET')}.",
            id="powercrud_dashboard.E012",
        )


def _unusable_alerts(given: dict[str, Any]) -> Iterator[CheckMessage]:
    alerts = given.get("DASHBOARD_ALERTS")
    for mistake in alert_rules.mistakes(alerts) if isinstance(alerts, dict) else ():
        yield Error(
            f"{SETTING_NAME}['DASHBOARD_ALERTS'] has the invalid item {mistake.key!r}: {mistake.value!r}.",
            hint=f"Set it to {mistake.expected}.",
            id="powercrud_dashboard.E014",
        )


def _unusable_token(given: dict[str, Any]) -> Iterator[CheckMessage]:
    token = given.get("DASHBOARD_HEALTH_TOKEN")
    if isinstance(token, str) and not (token.isascii() and token.isprintable() and token == token.strip()):
        # It is a secret, and not shown.
        yield Error(
            f"{SETTING_NAME}['DASHBOARD_HEALTH_TOKEN'] is no text that every client sends alike in a header.",
            hint="Set it to a long random text of ASCII letters and digits.",
            id="powercrud_dashboard.E017",
        )


def _unusable_dashboard() -> Iterator[CheckMessage]:
    try:
        dashboard()
    except Exception as error:
        # Making the instance runs the project's code, which may raise anything.
        yield Error(
            f"{SETTING_NAME}['DASHBOARD_CLASS'] can't be used: {error}. The pages are not shown.",
            hint="Set it to the dotted path of a subclass of powercrud_dashboard.extension.Dashboard.",
            id="powercrud_dashboard.E016",
        )


@register()
def check_notices_middleware(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Check that the middleware of the notices comes after those whose work it needs."""
    paths = list(settings.MIDDLEWARE)
    if MIDDLEWARE not in paths:
        return []
    before = [found for path in paths[: paths.index(MIDDLEWARE)] if isinstance(found := _imported(path), type)]
    return [
        Error(
            f"{MIDDLEWARE} does not come after {path} in MIDDLEWARE.",
            hint=f"Move {MIDDLEWARE} to a place after it.",
            id="powercrud_dashboard.E013",
        )
        for path in NEEDED_BY_NOTICES
        if not any(issubclass(found, import_string(path)) for found in before)
    ]


def _imported(path: str) -> Any:
    try:
        return import_string(path)
    except ImportError:
        # Django reports it.
        return None


@register()
def check_installed_apps(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Check that the required apps are installed."""
    return [
        Error(
            f"powercrud_dashboard needs {name!r} in INSTALLED_APPS.",
            hint=f"Add {name!r} to INSTALLED_APPS.",
            id="powercrud_dashboard.E006",
        )
        for name in REQUIRED_APPS
        if not apps.is_installed(name)
    ]


@register()
def check_broker(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Check that ``Q_CLUSTER`` names a broker that can be used."""
    if queue.runs_synchronously() or queue.names_a_broker():
        return []
    hint = f"Add a broker: {BROKER_EXAMPLE}"
    if find_spec("redis") is None:
        return [
            Error(
                "Q_CLUSTER names no broker, and django-q2's default broker needs the package 'redis'.",
                hint=hint,
                id="powercrud_dashboard.E008",
            )
        ]
    return [
        Warning(
            "Q_CLUSTER names no broker: django-q2 uses Redis on this host, on port 6379.",
            hint=f"{hint}, or name the Redis server: 'redis': 'redis://localhost:6379/0'.",
            id="powercrud_dashboard.W006",
        )
    ]


@register()
def check_shared_caches(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Warn about caches that web processes and clusters do not share."""
    used = {
        queue.state_cache(): "the Cluster page can't show what django-q2's clusters save in it",
        app_settings.CACHE_NAME: "progress that workers write into it is not seen",
    }
    return [
        Warning(
            f"CACHES[{alias!r}] is not shared between processes: {loss}.",
            hint='Use a shared one, such as {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": '
            '"redis://localhost:6379/1"}, or {"BACKEND": "django.core.cache.backends.db.DatabaseCache", "LOCATION": '
            '"cache"} with "manage.py createcachetable".',
            id="powercrud_dashboard.W007",
        )
        for alias, loss in used.items()
        if alias in settings.CACHES and not queue.is_shared_cache(alias)
    ]


@register(Tags.database)
def check_cache_tables(
    app_configs: Sequence[AppConfig] | None, databases: Sequence[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Warn about caches in the database without a table. This reads the database."""
    aliases = {alias for alias in (queue.state_cache(), app_settings.CACHE_NAME) if alias in settings.CACHES}
    return [
        Warning(
            f"The table {table!r} of CACHES[{alias!r}] does not exist.",
            hint="Run 'manage.py createcachetable'.",
            id="powercrud_dashboard.W010",
        )
        for alias in sorted(aliases)
        if (table := _missing_table(caches[alias], databases or ()))
    ]


def _missing_table(cache: BaseCache, databases: Sequence[str]) -> str:
    """Return the table that a cache in one of these databases lacks, or ""."""
    if not isinstance(cache, BaseDatabaseCache):
        return ""
    entries: Any = cache.cache_model_class
    if (database := router.db_for_write(entries)) not in databases:
        return ""
    tables = connections[database].introspection.table_names()
    # Without any, nothing is migrated yet.
    return entries._meta.db_table if tables and entries._meta.db_table not in tables else ""


@register()
def check_cluster_settings(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Warn about Q_CLUSTER settings with which django-q2 delivers a running task again."""
    warnings: list[CheckMessage] = []
    for name, cluster in queue.cluster_settings().items():
        retry, timeout = cluster.get("retry", 60), cluster.get("timeout")
        if timeout is None:
            warnings.append(
                Warning(
                    f"Q_CLUSTER {name!r} has no timeout: a task that runs longer than retry "
                    f"({retry} seconds) is delivered again.",
                    hint="Set 'timeout' to the maximum run time of a task, and 'retry' to a larger value. Tasks "
                    "launched by a manager do not run twice, but other django-q2 tasks do.",
                    id="powercrud_dashboard.W002",
                )
            )
        elif _is_number(retry) and _is_number(timeout) and retry <= timeout:
            warnings.append(
                Warning(
                    f"Q_CLUSTER {name!r} has a retry of {retry} seconds, not larger than the timeout of {timeout} "
                    "seconds: django-q2 delivers running tasks again.",
                    hint=f"Set 'retry' to more than {timeout}.",
                    id="powercrud_dashboard.W003",
                )
            )
    return warnings


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


@register()
def check_database(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Check that the coordination database is PostgreSQL or a recent SQLite with the options that it needs."""
    alias = coordination_db()
    connection: Any = connections[alias]
    # Not the display name: on MySQL that connects to the server.
    found = connection.vendor
    if found == "postgresql":
        return list(_isolation(alias))
    if found == "sqlite":
        version = connection.Database.sqlite_version_info
        if version >= MIN_SQLITE_VERSION:
            return [*_sqlite_time_zone(alias), *_sqlite_warnings(alias)]
        found = f"SQLite {_dotted(version)}"
    return [
        Error(
            f"powercrud_dashboard can't use DATABASES[{alias!r}], which is {found}.",
            hint=f"Use PostgreSQL, or SQLite {_dotted(MIN_SQLITE_VERSION)} or later. A database router can send the "
            "models of powercrud_dashboard, and the users, to another database.",
            id="powercrud_dashboard.E007",
        )
    ]


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _isolation(alias: str) -> Iterator[CheckMessage]:
    level = connections.settings[alias]["OPTIONS"].get("isolation_level")
    # The numbers of the levels depend on the version of psycopg, which need not be installed.
    levels = import_string("django.db.backends.postgresql.psycopg_any.IsolationLevel")
    if level not in (None, levels.READ_COMMITTED):
        yield Error(
            f"DATABASES[{alias!r}] has an isolation level other than READ COMMITTED: a launch would not see locks that "
            "others take at the same moment, and two tasks would hold one object.",
            hint="Remove isolation_level from its OPTIONS. A database router can send the models of "
            "powercrud_dashboard, and the users, to another database.",
            id="powercrud_dashboard.E011",
        )


def _sqlite_time_zone(alias: str) -> Iterator[CheckMessage]:
    if settings.USE_TZ and connections[alias].timezone_name != "UTC":
        yield Error(
            f"DATABASES[{alias!r}] uses SQLite with a TIME_ZONE of its own: times are compared with SQLite's clock, "
            "which is in UTC.",
            hint="Remove TIME_ZONE from it; the setting TIME_ZONE is for what people see.",
            id="powercrud_dashboard.E010",
        )


def _sqlite_warnings(alias: str) -> Iterator[CheckMessage]:
    options = connections.settings[alias]["OPTIONS"]
    if str(options.get("transaction_mode", "")).upper() not in ("IMMEDIATE", "EXCLUSIVE"):
        yield Warning(
            f"DATABASES[{alias!r}] uses SQLite with deferred transactions, which fail with "
            "'database is locked' under concurrent writes.",
            hint='Add "transaction_mode": "IMMEDIATE" to its OPTIONS.',
            id="powercrud_dashboard.W004",
        )
    if "wal" not in str(options.get("init_command", "")).lower():
        yield Warning(
            f"DATABASES[{alias!r}] uses SQLite without WAL: readers wait while a worker writes.",
            hint='Add "init_command": "PRAGMA journal_mode=WAL;" to its OPTIONS.',
            id="powercrud_dashboard.W005",
        )
