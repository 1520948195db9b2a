"""Checks of the running system: the tables, the progress cache, and whether a cluster runs tasks."""

from __future__ import annotations

import logging
import uuid

from django.core.cache import caches
from django.db import Error as DjangoDatabaseError

from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.models import ActiveTask, ConflictLock, TaskRecord
from powercrud_dashboard.q2 import queue

logger = logging.getLogger(__name__)


def cache_works() -> bool:
    """Return whether the progress cache keeps values and is shared between processes.

    True without a cache: then progress is in the database only.
    """
    if not app_settings.CACHE_NAME:
        return True
    try:
        cache = caches[app_settings.CACHE_NAME]
        if not queue.is_shared_cache(app_settings.CACHE_NAME):
            logger.warning(
                "The cache %r is not shared between processes: set CACHE_NAME to one that is, or to None.",
                app_settings.CACHE_NAME,
            )
            return False
        key, value = f"powercrud_dashboard:check:{uuid.uuid4().hex}", uuid.uuid4().hex
        cache.set(key, value, 60)
        works: bool = cache.get(key) == value
        cache.delete(key)
    except Exception:
        logger.exception("The cache %r does not work", app_settings.CACHE_NAME)
        return False
    return works


def cluster_answers(timeout_ms: int | None = None) -> bool:
    """Return whether a cluster runs a probe task within so many milliseconds, by default as set."""
    try:
        return queue.probe(app_settings.QCLUSTER_PROBE_TIMEOUT_MS if timeout_ms is None else timeout_ms)
    except Exception:
        logger.exception("The probe task could not be run")
        return False


def database_works() -> bool:
    """Return whether the package's tables exist."""
    try:
        for model in (ActiveTask, ConflictLock, TaskRecord):
            model._default_manager.exists()
    except DjangoDatabaseError:
        logger.exception("The tables can't be read; run migrate")
        return False
    return True
