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
    """All settings with their defaults. Durations are in seconds unless the name contains another unit."""

    #: Whether tasks run in the background. If False, they run in the calling process and are recorded the same way.
    ASYNC_ENABLED: bool = True
    #: Cache for progress, in addition to the database. It is faster. None uses only the database.
    CACHE_NAME: str | None = None
    #: How long a named reservation holds its locks if no task takes it over.
    CONFLICT_TTL: int = 60 * 60
    #: Timeout of progress in the cache.
    PROGRESS_TTL: int = 2 * 60 * 60
    #: How long a queued task may be missing from the broker before cleanup marks it as lost. Less than the interval of
    #: the cleanups, so that the second one that misses a task does.
    CLEANUP_GRACE_PERIOD: int = 4 * 60
    #: Accepted for PowerCRUD, without effect: the time limit is the ``timeout`` of the task or of its cluster.
    MAX_TASK_DURATION: int = 60 * 60
    #: Interval of the schedule that ``pcrud_schedule_cleanup`` creates.
    CLEANUP_SCHEDULE_INTERVAL: int = 5 * 60
    #: How long ``validate_async_qcluster`` waits for its probe task, in milliseconds.
    QCLUSTER_PROBE_TIMEOUT_MS: int = 5_000
    #: The default manager: ``{"manager_class": "dotted.path", "config": {...}}``.
    ASYNC_MANAGER_DEFAULT: dict[str, Any] = field(default_factory=dict)
    #: The same for this package alone, where ``ASYNC_MANAGER_DEFAULT`` is one of PowerCRUD's managers.
    DASHBOARD_MANAGER_DEFAULT: dict[str, Any] = field(default_factory=dict)

    #: How long a worker process may miss heartbeats before it is marked as lost.
    DASHBOARD_HEARTBEAT_TIMEOUT: int = 30
    #: Dotted path of the manager that records the tasks of all managers. None disables the history.
    DASHBOARD_RECORDER: str | None = "powercrud_dashboard.dashboard_manager.DashboardAsyncManager"
    #: Which tasks are recorded: "all", or "own" for those that managers of this package launch.
    DASHBOARD_TRACK: str = "all"
    #: Maximum number of objects recorded for each task; the counts are always exact.
    DASHBOARD_OBJECT_LIMIT: int = 10_000
    #: Maximum number of events for each task. Later progress and log events are dropped; state changes are not.
    DASHBOARD_EVENT_LIMIT: int = 1_000
    #: Lowest level of the module logging at which what a task's code logs is kept with the task.
    DASHBOARD_LOG_LEVEL: str = "INFO"
    #: Maximum number of log lines for each task: the first and the newest. 0 keeps none.
    DASHBOARD_LOG_LINES: int = 1_000
    #: Maximum number of characters in the log lines of each task.
    DASHBOARD_LOG_SIZE: int = 500_000
    #: Whether what a task's code prints is kept as well.
    DASHBOARD_LOG_PRINT: bool = False
    #: Whether the pages tell people of their ended tasks. None: if the middleware is in MIDDLEWARE.
    DASHBOARD_NOTICES: bool | None = None
    #: Seconds after its launch at which the end of a task is also told by mail. None sends no mails.
    DASHBOARD_MAIL_AFTER: int | None = None
    #: Whether people get these mails who have not chosen.
    DASHBOARD_MAIL_DEFAULT: bool = True
    #: Where the site is, such as ``"https://example.com"``, for the links in mails.
    DASHBOARD_BASE_URL: str | None = None
    #: Days to keep finished records, by status. Records with a missing status or None are kept indefinitely.
    DASHBOARD_RETENTION_DAYS: dict[str, Any] = field(default_factory=dict)
    #: Maximum size in bytes of a file that an action receives from its form or returns.
    DASHBOARD_FILE_LIMIT: int = 10 * 1024 * 1024
    #: Whether users may cancel and retry the tasks that they launched, without further permissions.
    DASHBOARD_MANAGE_OWN_TASKS: bool = True
    #: Dotted paths of middleware that runs around an admin action in a worker, as around a request.
    DASHBOARD_WORKER_MIDDLEWARE: list[str] = field(default_factory=list)
    #: Values of the session that an admin action in a worker has. They are kept with the task.
    DASHBOARD_WORKER_SESSION_KEYS: list[str] = field(default_factory=list)
    #: Default refresh interval of the pages.
    DASHBOARD_REFRESH_INTERVAL: int = 2
    #: The release of the project, which is kept with each task: a text, or a callable that returns one. None is the tag
    #: or the commit that is checked out.
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
        accepted = {name: value for name, value in given.items() if name in SETTING_NAMES and is_valid(name, value)}
        for name in MANAGER_SETTINGS & accepted.keys():
            accepted[name] = {
                key: value
                for key, value in accepted[name].items()
                if key in MANAGER_TYPES and isinstance(value, MANAGER_TYPES[key])
            }
        return cls(**accepted)


SETTING_TYPES: dict[str, Any] = typing.get_type_hints(Settings)
SETTING_NAMES = [setting.name for setting in dataclasses.fields(Settings)]


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
