"""The package's settings: one typed object read from ``settings.POWERCRUD_SETTINGS``."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings as django_settings
from django.core.signals import setting_changed
from django.dispatch import receiver

SETTING_NAME = "POWERCRUD_SETTINGS"

DAY = 24 * 60 * 60


@dataclass(frozen=True)
class Settings:
    """Every setting with its default. Times are in seconds unless the name says otherwise."""

    #: False runs every task at once in the caller's process, recorded the same way.
    ASYNC_ENABLED: bool = True
    #: Cache that carries progress as a fast lane beside the database. None uses the database alone.
    CACHE_NAME: str | None = None
    #: How long a named reservation that no task has taken over holds its locks.
    CONFLICT_TTL: int = 60 * 60
    #: How long a progress entry may stay in the cache.
    PROGRESS_TTL: int = 2 * 60 * 60
    #: How long a queued task may go unseen by the broker before cleanup calls it lost.
    CLEANUP_GRACE_PERIOD: int = DAY
    #: How long a worker whose process is alive may go without a heartbeat.
    MAX_TASK_DURATION: int = 60 * 60
    #: How often the schedule made by ``pcrud_schedule_cleanup`` runs.
    CLEANUP_SCHEDULE_INTERVAL: int = 5 * 60
    #: How long ``validate_async_qcluster`` waits for its probe, in milliseconds.
    QCLUSTER_PROBE_TIMEOUT_MS: int = 5_000
    #: ``{"manager_class": "dotted.path", "config": {...}}``: the manager where none is named.
    ASYNC_MANAGER_DEFAULT: dict[str, Any] = field(default_factory=dict)

    #: Silence after which a worker that can't be asked is taken for dead.
    DASHBOARD_HEARTBEAT_TIMEOUT: int = 30
    #: Objects kept by name for each task; the counts stay exact beyond it.
    DASHBOARD_OBJECT_LIMIT: int = 10_000
    #: Events kept for each task; later progress and log lines are dropped, state changes never.
    DASHBOARD_EVENT_LIMIT: int = 1_000
    #: Days that finished records are kept, by status. A status that is absent or None is kept for good.
    DASHBOARD_RETENTION_DAYS: dict[str, Any] = field(default_factory=dict)
    #: Bytes of a file that is kept with a task: one that a form was sent with, or that an action answered with.
    DASHBOARD_FILE_LIMIT: int = 10 * 1024 * 1024
    #: Seconds between two refreshes of an open page.
    DASHBOARD_REFRESH_INTERVAL: int = 2
    #: Rows on one page of the task list.
    DASHBOARD_PAGE_SIZE: int = 50

    @classmethod
    def load(cls) -> Settings:
        """Return the defaults overlaid with what the project sets.

        Unknown keys and values of the wrong type are left to the system checks: here
        they fall back to the default, so that a typo never stops a worker.
        """
        given = getattr(django_settings, SETTING_NAME, None)
        if not isinstance(given, dict):
            return cls()
        accepted = {
            name: value
            for name, value in given.items()
            if name in SETTING_TYPES and has_type(value, SETTING_TYPES[name])
        }
        return cls(**accepted)


SETTING_TYPES: dict[str, Any] = typing.get_type_hints(Settings)
SETTING_NAMES = [setting.name for setting in dataclasses.fields(Settings)]


def has_type(value: object, expected: Any) -> bool:
    """Tell whether ``value`` is what a setting annotated as ``expected`` takes."""
    options = typing.get_args(expected) if typing.get_origin(expected) is not dict else ()
    for option in options or (expected,):
        kind = typing.get_origin(option) or option
        # bool is a subclass of int, and True seconds is a mistake.
        if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
            return not (kind is int and typing.cast(int, value) < 0)
    return False


class _LazySettings:
    """Loads :class:`Settings` at first use and again after a change of the Django setting."""

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
