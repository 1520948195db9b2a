"""Finds managers by their dotted path, and the two classes of the layers above that the engine has to name.

It is the only module that imports classes of this package by their path.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

from django.utils.module_loading import import_string

from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.models import ActiveTask, TaskRecord

logger = logging.getLogger(__name__)

BASE_MANAGER = "powercrud_dashboard.async_manager.AsyncManager"

#: The manager where none is named and none is configured; also the default recorder.
DEFAULT_MANAGER = "powercrud_dashboard.dashboard_manager.DashboardAsyncManager"

_PROGRESS_VIEW = "powercrud_dashboard.dashboard.endpoint.ProgressView"
_RUN_TASK = "powercrud_dashboard.worker.task.run_task"


def resolve_manager(path: str | None = None, config: Mapping[str, Any] | None = None) -> Any:
    """Return a manager of the class at ``path``, else of the configured class, else of the default class.

    ``config`` is passed to the class by keyword. A path that can't be imported is logged and the next class is used,
    so that a typing error never loses a task. So it is for a configured class that can't be made; a class that was
    asked for raises what its ``__init__`` raises.
    """
    configured = _configured()
    for candidate in (path, configured.get("manager_class"), DEFAULT_MANAGER):
        manager_class = _import_manager(candidate) if candidate else None
        if manager_class is not None:
            settings = config or (None if path else configured.get("config"))
            if candidate == path:
                return make_manager(manager_class, settings)
            try:
                return make_manager(manager_class, settings)
            except Exception:
                logger.exception("The configured manager %s can't be made; the default is used instead", candidate)
    return make_manager(import_string(BASE_MANAGER), config)


def _configured() -> dict[str, Any]:
    """Return the class and the configuration of the configured manager, as far as there is one."""
    if own := app_settings.DASHBOARD_MANAGER_DEFAULT:
        return own
    shared = app_settings.ASYNC_MANAGER_DEFAULT
    return {} if is_only_for_powercrud(shared.get("manager_class")) else shared


def is_only_for_powercrud(dotted_path: str | None) -> bool:
    """Return whether the class at this path is a manager of django-powercrud, and none of this package."""
    if not dotted_path:
        return False
    try:
        found = _imported(dotted_path)
    except Exception:
        # It is reported where the manager is used.
        return False
    # Importing the class has imported this module, if the class is derived from it.
    powercrud: Any = sys.modules.get("powercrud.async_manager")
    is_theirs = powercrud is not None and isinstance(found, type) and issubclass(found, powercrud.AsyncManager)
    return is_theirs and not issubclass(found, _imported(BASE_MANAGER))


def find_manager(dotted_path: str | None) -> type[Any] | None:
    """Return the manager class at this path; None if there is none, or it is not one of this package."""
    return _import_manager(dotted_path) if dotted_path and not is_only_for_powercrud(dotted_path) else None


def make_manager(manager_class: type[Any], config: Mapping[str, Any] | None) -> Any:
    """Return a manager of this class, made with ``config`` if there is any."""
    return manager_class(config=dict(config)) if config else manager_class()


def manager_of(task: ActiveTask | TaskRecord) -> Any:
    """Return the manager that a task was launched by, with its configuration.

    If its class can't be instantiated any more, this is logged and the default manager is returned.
    """
    try:
        return resolve_manager(task.manager_class, task.manager_config)
    except Exception:
        logger.exception(
            "The manager %s of task %s can't be made",
            task.manager_class,
            task.task_name,
            extra={"task_name": task.task_name},
        )
        return _imported(DEFAULT_MANAGER)()


def recorder_for(manager: Any) -> Any:
    """Return the manager that writes the history of ``manager``'s tasks; None if no history is kept.

    It is the class that ``DASHBOARD_RECORDER`` names, or ``manager`` itself if that is of this class.
    """
    path = app_settings.DASHBOARD_RECORDER
    if path is None:
        return None
    recorder_class = _import_manager(path, base=DEFAULT_MANAGER) or _imported(DEFAULT_MANAGER)
    if isinstance(manager, recorder_class):
        return manager
    try:
        return recorder_class()
    except Exception:
        logger.exception("The recorder %s can't be made; the default is used instead", path)
        return _imported(DEFAULT_MANAGER)()


def _import_manager(dotted_path: str, base: str = BASE_MANAGER) -> type[Any] | None:
    try:
        found = _imported(dotted_path)
    except Exception:
        # Importing runs the module, which may raise anything.
        logger.exception("The manager class %s can't be imported; the default is used instead", dotted_path)
        return None
    if not (isinstance(found, type) and issubclass(found, _imported(base))):
        logger.error("%s is not a subclass of %s; the default is used instead", dotted_path, base)
        return None
    return found


@cache
def _imported(dotted_path: str) -> Any:
    return import_string(dotted_path)


def progress_view() -> Any:
    """Return the class of the progress endpoint, which is one of the pages."""
    return import_string(_PROGRESS_VIEW)


def run_task() -> Any:
    """Return the function that runs a task in a worker."""
    return _imported(_RUN_TASK)
