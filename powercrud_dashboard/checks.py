"""Every system check of the package. Ids: ``powercrud_dashboard.E0xx`` and ``powercrud_dashboard.W0xx``."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any

from django.apps import AppConfig, apps
from django.conf import settings
from django.core.cache import caches
from django.core.checks import CheckMessage, Error, Warning, register
from django.utils.module_loading import import_string

from powercrud_dashboard import queueing
from powercrud_dashboard.async_manager import AsyncManager
from powercrud_dashboard.conf import SETTING_NAME, SETTING_NAMES, SETTING_TYPES, has_type
from powercrud_dashboard.models import TaskStatus
from powercrud_dashboard.models.coordination import coordination_db

#: What the pages are made of.
REQUIRED_APPS = ("django_q", "django_htmx", "django_tables2", "django_filters")


@register()
def check_settings(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Check ``POWERCRUD_SETTINGS``: keys, types, and that what it names exists."""
    given = getattr(settings, SETTING_NAME, {})
    if not isinstance(given, dict):
        return [
            Error(
                f"{SETTING_NAME} must be a dict, not {type(given).__name__}.",
                hint=f"Write {SETTING_NAME} = {{'CONFLICT_TTL': 3600, ...}}, or leave it out.",
                id="powercrud_dashboard.E001",
            )
        ]
    return [
        *_unknown_keys(given),
        *_wrong_types(given),
        *_cache_that_is_not_there(given),
        *_manager_that_does_not_import(given),
        *_unknown_statuses(given),
    ]


def _unknown_keys(given: dict[str, Any]) -> Iterator[CheckMessage]:
    if apps.is_installed("powercrud"):
        # django-powercrud reads keys of its own from the same dict.
        return
    for name in given:
        if name in SETTING_NAMES:
            continue
        similar = get_close_matches(str(name), SETTING_NAMES, n=1)
        hint = f"Did you mean {similar[0]}?" if similar else f"Known keys: {', '.join(SETTING_NAMES)}."
        yield Warning(
            f"{SETTING_NAME} has an unknown key {name!r}, which has no effect.",
            hint=hint,
            id="powercrud_dashboard.W001",
        )


def _wrong_types(given: dict[str, Any]) -> Iterator[CheckMessage]:
    for name, value in given.items():
        if name in SETTING_TYPES and not has_type(value, SETTING_TYPES[name]):
            yield Error(
                f"{SETTING_NAME}[{name!r}] is {value!r}, which can't be used; the default is used instead.",
                hint=f"Set it to {_describe(SETTING_TYPES[name])}.",
                id="powercrud_dashboard.E002",
            )


def _describe(expected: Any) -> str:
    words = {int: "a whole number, 0 or more", bool: "True or False", str: "a string", type(None): "None"}
    options = typing.get_args(expected) if typing.get_origin(expected) is not dict else ()
    return " or ".join(words.get(option, "a dict") for option in options or (expected,))


def _cache_that_is_not_there(given: dict[str, Any]) -> Iterator[CheckMessage]:
    name = given.get("CACHE_NAME")
    if isinstance(name, str) and name not in caches.settings:
        yield Error(
            f"{SETTING_NAME}['CACHE_NAME'] names the cache {name!r}, which is not in CACHES.",
            hint="Name one of the caches in CACHES, or set it to None to keep progress in the database alone.",
            id="powercrud_dashboard.E003",
        )


def _manager_that_does_not_import(given: dict[str, Any]) -> Iterator[CheckMessage]:
    default = given.get("ASYNC_MANAGER_DEFAULT")
    path = default.get("manager_class") if isinstance(default, dict) else None
    if path is None:
        return
    try:
        found = import_string(path)
    except (ImportError, TypeError, AttributeError) as error:
        problem = f"can't be imported: {error}"
    else:
        if isinstance(found, type) and issubclass(found, AsyncManager):
            return
        problem = "is no subclass of powercrud_dashboard.async_manager.AsyncManager"
    yield Error(
        f"{SETTING_NAME}['ASYNC_MANAGER_DEFAULT']['manager_class'] is {path!r}, which {problem}.",
        hint=f"Set it to the dotted path of a manager class, such as {AsyncManager.DEFAULT_MANAGER!r}.",
        id="powercrud_dashboard.E004",
    )


def _unknown_statuses(given: dict[str, Any]) -> Iterator[CheckMessage]:
    days_by_status = given.get("DASHBOARD_RETENTION_DAYS")
    for status, days in (days_by_status or {}).items() if isinstance(days_by_status, dict) else ():
        is_number = isinstance(days, int | float) and not isinstance(days, bool) and days >= 0
        if status not in TaskStatus.values or not (days is None or is_number):
            yield Error(
                f"{SETTING_NAME}['DASHBOARD_RETENTION_DAYS'] has {status!r}: {days!r}, which can't be used.",
                hint="Map 'success', 'failed' or 'cancelled' to a number of days, or to None to keep them for good.",
                id="powercrud_dashboard.E005",
            )


@register()
def check_installed_apps(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Check that the apps which the pages are made of are installed."""
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
def check_cluster_settings(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Warn of Q_CLUSTER settings under which django-q2 delivers a task that is still running."""
    found: list[CheckMessage] = []
    for name, cluster in queueing.cluster_settings().items():
        retry, timeout = cluster.get("retry", 60), cluster.get("timeout")
        if timeout is None:
            found.append(
                Warning(
                    f"Q_CLUSTER {name!r} sets no timeout: a task that runs longer than retry "
                    f"({retry} seconds) is delivered a second time.",
                    hint="Set 'timeout' to the longest time a task may take, and 'retry' to more than that. Tasks "
                    "launched through a manager are not run twice, other django-q2 tasks are.",
                    id="powercrud_dashboard.W002",
                )
            )
        elif retry <= timeout:
            found.append(
                Warning(
                    f"Q_CLUSTER {name!r} has retry ({retry} seconds) not larger than timeout ({timeout} seconds): "
                    "django-q2 delivers tasks again while they run.",
                    hint=f"Set 'retry' to more than {timeout}.",
                    id="powercrud_dashboard.W003",
                )
            )
    return found


@register()
def check_sqlite_options(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Warn of SQLite without the options that web and worker processes need to write side by side."""
    return list(_sqlite_hints(coordination_db()))


def _sqlite_hints(alias: str) -> Iterator[CheckMessage]:
    database: dict[str, Any] = settings.DATABASES.get(alias, {})
    if not database.get("ENGINE", "").endswith("sqlite3"):
        return
    options = database.get("OPTIONS", {})
    if str(options.get("transaction_mode", "")).upper() not in ("IMMEDIATE", "EXCLUSIVE"):
        yield Warning(
            f"DATABASES[{alias!r}] is SQLite with deferred transactions: under load they fail with "
            "'database is locked' instead of waiting for each other.",
            hint='Add "transaction_mode": "IMMEDIATE" to its OPTIONS.',
            id="powercrud_dashboard.W004",
        )
    if "wal" not in str(options.get("init_command", "")).lower():
        yield Warning(
            f"DATABASES[{alias!r}] is SQLite without WAL: pages wait while a worker writes.",
            hint='Add "init_command": "PRAGMA journal_mode=WAL;" to its OPTIONS.',
            id="powercrud_dashboard.W005",
        )
