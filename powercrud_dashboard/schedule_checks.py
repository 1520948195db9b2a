"""System checks of schedules: of those that are declared, of the locks in the settings, and of the cleanup's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.db import DatabaseError

from powercrud_dashboard.conf import SETTING_NAME, app_settings
from powercrud_dashboard.engine.locks import normalise
from powercrud_dashboard.models import TaskRecord, WorkerProcess
from powercrud_dashboard.models.database import coordination_db
from powercrud_dashboard.q2 import schedules
from powercrud_dashboard.schedules import CLEANUP_PATH, declarations, undiscovered


@register()
def check_declared_schedules(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Check the schedules that are declared in code."""
    found: list[CheckMessage] = [
        Warning(
            f"The schedules that {path} may declare are unknown: importing it fails with {error}.",
            hint="Correct it, or install what it needs. Until then no declared schedule is deleted.",
            id="powercrud_dashboard.W042",
        )
        for path, error in undiscovered().items()
    ]
    functions: dict[str, str] = {}
    for declared in declarations():
        if declared.name in functions:
            found.append(
                Warning(
                    f"The schedule {declared.name!r} is declared for {functions[declared.name]} and again for "
                    f"{declared.func}: the second one never runs.",
                    hint="Pass different names to @scheduled.",
                    id="powercrud_dashboard.W040",
                )
            )
            continue
        functions[declared.name] = declared.func
        if problem := declared.problem():
            found.append(
                Error(
                    f"The schedule {declared.name!r} can't run: {problem}.",
                    hint="Install 'powercrud-dashboard[cron]', or use every= in the place of a cron expression."
                    if "croniter" in problem
                    else f"Correct @scheduled on {declared.func}.",
                    id="powercrud_dashboard.E040",
                )
            )
    return found


@register()
def check_lock_setting(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Check the values of ``DASHBOARD_SCHEDULE_LOCKS``."""
    found: list[CheckMessage] = []
    locks: dict[Any, Any] = app_settings.DASHBOARD_SCHEDULE_LOCKS
    for name, lock in locks.items():
        try:
            is_valid_lock = lock is True or bool(isinstance(lock, dict) and normalise(lock))
        except (TypeError, ValueError):
            is_valid_lock = False
        if not (isinstance(name, str) and is_valid_lock):
            found.append(
                Error(
                    f"{SETTING_NAME}['DASHBOARD_SCHEDULE_LOCKS'] has the invalid item {name!r}: {lock!r}.",
                    hint="Map the name of a schedule to True, or to the objects to lock, such as "
                    "{'app_label.Model': ['*']} for all objects of a model.",
                    id="powercrud_dashboard.E041",
                )
            )
    return found


def _has_run() -> bool:
    """Return whether anything has run in this installation: not in the database of a test run."""
    return WorkerProcess.objects.exists() or TaskRecord.objects.exists()


@register(Tags.database)
def check_schedule_locks(
    app_configs: Sequence[AppConfig] | None, databases: Sequence[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Warn of schedules in ``DASHBOARD_SCHEDULE_LOCKS`` that there are not. This reads the database."""
    names = app_settings.DASHBOARD_SCHEDULE_LOCKS
    if not names or coordination_db() not in (databases or ()):
        return []
    try:
        unknown = schedules.unknown_names(names) if _has_run() else []
    except DatabaseError:
        # Before the first "migrate".
        return []
    return [
        Warning(
            f"{SETTING_NAME}['DASHBOARD_SCHEDULE_LOCKS'] names {name!r}, but no schedule has this name.",
            hint="Use the name of the schedule, or its key if it has no name; or the group in its q_options, if it has "
            "one there.",
            id="powercrud_dashboard.W041",
        )
        for name in unknown
    ]


@register(Tags.database)
def check_cron_schedules(
    app_configs: Sequence[AppConfig] | None, databases: Sequence[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Warn of schedules that stop django-q2's scheduler. This reads the database."""
    if coordination_db() not in (databases or ()):
        return []
    try:
        names = schedules.without_croniter()
    except DatabaseError:
        # Before the first "migrate".
        return []
    return [
        Warning(
            f"The schedule {name!r} has a cron expression, and croniter is not installed: "
            "as soon as it is due, django-q2 runs no schedule of its cluster.",
            hint="Install 'powercrud-dashboard[cron]', or delete the schedule.",
            id="powercrud_dashboard.W043",
        )
        for name in names
    ]


@register(Tags.database)
def check_cleanup_schedule(
    app_configs: Sequence[AppConfig] | None, databases: Sequence[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Warn if no schedule runs the cleanup. This reads the database, which ``check --database`` allows."""
    if coordination_db() not in (databases or ()):
        return []
    try:
        is_missing = _has_run() and not schedules.runs(CLEANUP_PATH)
    except DatabaseError:
        # Before the first "migrate".
        return []
    if not is_missing:
        return []
    return [
        Warning(
            "No schedule runs the cleanup: tasks of lost workers keep their locks, and the history grows.",
            hint="Run 'manage.py pcrud_schedule_cleanup' once, or call 'manage.py pcrud_cleanup_async' regularly.",
            id="powercrud_dashboard.W008",
        )
    ]
