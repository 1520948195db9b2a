"""The settings of the package, read from ``settings.POWERCRUD_SETTINGS``."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from types import UnionType
from typing import Any

from django.conf import settings as django_settings
from django.core.signals import setting_changed
from django.dispatch import receiver

SETTING_NAME = "POWERCRUD_SETTINGS"

#: The largest number of a setting. So many seconds, 68 years, can be added to and subtracted from dates.
MAX_NUMBER = 2**31 - 1
#: The smallest number, where it is not 0.
MINIMUMS = {"DASHBOARD_PAGE_SIZE": 1, "DASHBOARD_HEARTBEAT_TIMEOUT": 5}
#: The possible values, where it is one of a few.
CHOICES = {"DASHBOARD_TRACK": ("all", "own")}
#: The longest retention: a hundred years.
MAX_RETENTION_DAYS = 36_500


@dataclass(frozen=True)
class Settings:
    """All settings with their defaults. Durations are in seconds unless the name contains another unit.

    docs/settings.md is made from the comments.
    """

    #: Whether tasks run in the background. If ``False``, they run in the calling process and are recorded the same way.
    ASYNC_ENABLED: bool = True
    #: A shared cache that carries progress beside the database, which is faster. ``None`` uses only the database.
    CACHE_NAME: str | None = None
    #: How long a named reservation holds its locks if no task takes it over. See docs/locks.md.
    CONFLICT_TTL: int = 60 * 60
    #: How long progress stays in the cache.
    PROGRESS_TTL: int = 2 * 60 * 60
    #: How long a queued task may be missing from the broker: two cleanups have to miss it, and this time has to pass
    #: since it was queued, before it is recorded as failed. Set it to less than the interval of the cleanups. With the
    #: ORM broker one cleanup is enough, after 60 seconds, or sooner if this is less. See
    #: docs/reliability.md#what-django-q2-can-lose.
    CLEANUP_GRACE_PERIOD: int = 4 * 60
    #: Accepted for PowerCRUD, without effect: the time limit is the ``timeout`` of the task or of its cluster.
    MAX_TASK_DURATION: int = 60 * 60
    #: Interval of the schedule that ``manage.py pcrud_schedule_cleanup`` creates: whole minutes, at least one.
    CLEANUP_SCHEDULE_INTERVAL: int = 5 * 60
    #: How long ``validate_async_qcluster`` waits for its probe task, in milliseconds.
    QCLUSTER_PROBE_TIMEOUT_MS: int = 5_000
    #: The default manager: ``{"manager_class": "dotted.path", "config": {...}}``. See docs/manager.md#managers.
    ASYNC_MANAGER_DEFAULT: dict[str, Any] = field(default_factory=dict)
    #: The same for this package alone, where ``ASYNC_MANAGER_DEFAULT`` names a manager of django-powercrud. See
    #: docs/powercrud.md.
    DASHBOARD_MANAGER_DEFAULT: dict[str, Any] = field(default_factory=dict)

    #: How long a worker process may miss heartbeats. After that it stops its task, is watched by others, and is then
    #: declared lost. See docs/reliability.md#heartbeats-and-lost-workers.
    DASHBOARD_HEARTBEAT_TIMEOUT: int = 30
    #: Dotted path of the manager that writes the history of the tasks of all managers. ``None`` keeps no history. The
    #: default is used instead of a path that can't be imported, which is logged. See docs/manager.md#history.
    DASHBOARD_RECORDER: str | None = "powercrud_dashboard.dashboard_manager.DashboardAsyncManager"
    #: Which tasks are recorded: ``"all"``, or ``"own"`` for those that managers of this package launch. See
    #: docs/django-q2.md and docs/django-tasks.md#observed-tasks.
    DASHBOARD_TRACK: str = "all"
    #: Patterns of function paths, such as ``"shop.tasks.*"``: of the tasks of plain django-q2, only those are recorded
    #: that match one.
    DASHBOARD_TRACK_INCLUDE: list[str] = field(default_factory=lambda: ["*"])
    #: Patterns of the functions whose tasks are left out.
    DASHBOARD_TRACK_EXCLUDE: list[str] = field(default_factory=list)
    #: The share of the tasks that is recorded, by pattern, such as ``{"shop.tasks.ping": 0.01}``: the first pattern
    #: that matches decides. The others are counted in the statistics, and recorded if they fail.
    DASHBOARD_TRACK_SAMPLE: dict[str, Any] = field(default_factory=dict)
    #: Days to keep ended tasks of plain django-q2, unless ``DASHBOARD_RETENTION_DAYS`` is shorter. ``None`` keeps them.
    DASHBOARD_TRACK_RETENTION_DAYS: int | None = 7
    #: Maximum number of records of plain django-q2's tasks: cleanup deletes the oldest above it. ``None`` is no limit.
    DASHBOARD_TRACK_MAX_RECORDS: int | None = 100_000
    #: Maximum number of objects kept by name for each task, and as many more that failed. The counts are always exact.
    DASHBOARD_OBJECT_LIMIT: int = 10_000
    #: Maximum number of events kept for each task. Later progress and log events are dropped; changes of its state are
    #: not.
    DASHBOARD_EVENT_LIMIT: int = 1_000
    #: Lowest level of the module ``logging`` at which what a task's code logs is kept with the task. See docs/logs.md.
    DASHBOARD_LOG_LEVEL: str = "INFO"
    #: Maximum number of log lines kept for each task: the first and the newest. 0 keeps none.
    DASHBOARD_LOG_LINES: int = 1_000
    #: Maximum number of characters kept in the log lines of each task.
    DASHBOARD_LOG_SIZE: int = 500_000
    #: Whether what a task's code prints is kept in its log as well.
    DASHBOARD_LOG_PRINT: bool = False
    #: Whether people are told of their ended tasks. ``None``: if ``TaskNoticesMiddleware`` is in ``MIDDLEWARE``. See
    #: docs/notices.md.
    DASHBOARD_NOTICES: bool | None = None
    #: Seconds after its launch at which the end of a task is also told by mail. ``None`` sends no mails. See
    #: docs/notices.md#mails.
    DASHBOARD_MAIL_AFTER: int | None = None
    #: Whether people get these mails who have not chosen.
    DASHBOARD_MAIL_DEFAULT: bool = True
    #: Where the site is, such as ``"https://example.com"``, for the links in mails.
    DASHBOARD_BASE_URL: str | None = None
    #: When alerts are opened and who is told of them, see docs/monitoring.md#alerts. ``None`` opens none.
    DASHBOARD_ALERTS: dict[str, Any] | None = field(default_factory=dict)
    #: Programs that send this text as a bearer token may read the health address and the metrics, see
    #: docs/monitoring.md#health. ``None`` leaves them to people with the permission.
    DASHBOARD_HEALTH_TOKEN: str | None = None
    #: Days to keep ended tasks, by status, such as ``{"success": 30, "failed": 365}``, at most 36,500. Tasks with a
    #: missing status, or with ``None``, are kept.
    DASHBOARD_RETENTION_DAYS: dict[str, Any] = field(default_factory=dict)
    #: Maximum size in bytes of a file that is kept with a task: an upload, or a file that an action returns.
    DASHBOARD_FILE_LIMIT: int = 10 * 1024 * 1024
    #: Dotted path of a subclass of ``powercrud_dashboard.extension.Dashboard``, which changes who may do what, and what
    #: the pages show. See docs/extending.md.
    DASHBOARD_CLASS: str | None = None
    #: Whether users may cancel, retry, pause, dismiss and reopen the tasks that they launched, without further
    #: permissions. See docs/permissions.md.
    DASHBOARD_MANAGE_OWN_TASKS: bool = True
    #: Dotted paths of middleware that runs around an admin action in a worker, as around a request. See
    #: docs/admin.md#the-request.
    DASHBOARD_WORKER_MIDDLEWARE: list[str] = field(default_factory=list)
    #: Values of the session that an admin action in a worker has. They are kept with the task.
    DASHBOARD_WORKER_SESSION_KEYS: list[str] = field(default_factory=list)
    #: Schedules of plain functions that run under a lock, by name: ``True`` for one run at a time, or as well the
    #: objects that each run locks, ``{"app_label.Model": [pk, ...]}``. See
    #: docs/schedules.md#put-an-existing-schedule-under-a-lock.
    DASHBOARD_SCHEDULE_LOCKS: dict[str, Any] = field(default_factory=dict)
    #: Seconds between two refreshes of an open page.
    DASHBOARD_REFRESH_INTERVAL: int = 2
    #: The release of the project, which is kept with each task: a text, or a callable that returns one. ``None`` is the
    #: tag or the short commit that is checked out in ``BASE_DIR`` or above it, if that is a git repository.
    DASHBOARD_RELEASE: str | Callable[[], str] | None = None
    #: Rows on each page of the lists.
    DASHBOARD_PAGE_SIZE: int = 50

    @classmethod
    def load(cls) -> Settings:
        """Return the settings of the project, with defaults for all others.

        Unknown keys are ignored and invalid values replaced by the default, so that a mistake never stops a worker.
        System checks report both.
        """
        given = getattr(django_settings, SETTING_NAME, None)
        if not isinstance(given, dict):
            return cls()
        accepted = {
            name: value
            for name, value in given.items()
            if name in SETTING_NAMES and (name in WITHOUT_DEFAULT or is_valid(name, value))
        }
        for name in MANAGER_SETTINGS & accepted.keys():
            accepted[name] = {
                key: value
                for key, value in accepted[name].items()
                if key in MANAGER_TYPES and isinstance(value, MANAGER_TYPES[key])
            }
        return cls(**accepted)


SETTING_TYPES: dict[str, Any] = typing.get_type_hints(Settings)
SETTING_NAMES = [setting.name for setting in dataclasses.fields(Settings)]


#: In the place of an invalid value of these the default would let people see and do more than the project wants.
WITHOUT_DEFAULT = {"DASHBOARD_CLASS"}

#: The settings that name a manager, and the keys of each.
MANAGER_SETTINGS = {"ASYNC_MANAGER_DEFAULT", "DASHBOARD_MANAGER_DEFAULT"}
MANAGER_TYPES: dict[str, type] = {"manager_class": str, "config": dict}


def is_valid(name: str, value: object) -> bool:
    """Return whether the setting of this name can have this value."""
    if name in CHOICES:
        return value in CHOICES[name]
    return _has_type(value, SETTING_TYPES[name]) and (
        not isinstance(value, int) or MINIMUMS.get(name, 0) <= value <= MAX_NUMBER
    )


def is_retention(days: object) -> bool:
    """Return whether records can be kept for so many days; None for all records."""
    if days is None:
        return True
    return isinstance(days, int | float) and not isinstance(days, bool) and 0 <= days <= MAX_RETENTION_DAYS


def is_share(value: object) -> bool:
    """Return whether this is a share: a number from 0 to 1."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _has_type(value: object, expected: Any) -> bool:
    options = typing.get_args(expected) if typing.get_origin(expected) is UnionType else (expected,)
    for option in options:
        kind = typing.get_origin(option) or option
        # bool is a subclass of int, but not a valid number.
        if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
            return kind is not list or all(isinstance(item, str) for item in value)
    return False


class _LazySettings:
    """Loads :class:`Settings` on first use, and again after the Django setting changes."""

    def __init__(self) -> None:
        self._loaded: Settings | None = None

    def __getattr__(self, name: str) -> Any:
        if self._loaded is None:
            self._loaded = Settings.load()
        return getattr(self._loaded, name)

    def reset(self) -> None:
        self._loaded = None


_lazy_settings = _LazySettings()
#: Read settings as attributes of this object: ``app_settings.CONFLICT_TTL``.
app_settings: Settings = typing.cast(Settings, _lazy_settings)


@receiver(setting_changed)
def _reset_on_change(*, setting: str, **kwargs: Any) -> None:
    if setting == SETTING_NAME:
        _lazy_settings.reset()
