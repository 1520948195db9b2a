"""Checks of the running system: can progress be shared, does a cluster answer."""

from __future__ import annotations

import logging
import uuid

from django.core.cache import caches
from django.core.cache.backends.dummy import DummyCache
from django.core.cache.backends.locmem import LocMemCache
from django.db import Error as DjangoDatabaseError

from powercrud_dashboard import queueing
from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.models import ActiveTask, ConflictLock, TaskRecord

logger = logging.getLogger(__name__)


def cache_works() -> bool:
    """Return whether the fast lane's cache keeps values and is shared between processes.

    True without a cache: then progress is in the database alone.
    """
    if not app_settings.CACHE_NAME:
        return True
    try:
        cache = caches[app_settings.CACHE_NAME]
        if isinstance(cache, LocMemCache | DummyCache):
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
    """Return whether a cluster ran a probe task in time (milliseconds; by default as set)."""
    try:
        return queueing.probe(app_settings.QCLUSTER_PROBE_TIMEOUT_MS if timeout_ms is None else timeout_ms)
    except Exception:
        logger.exception("The probe task could not be run")
        return False


def database_works() -> bool:
    """Return whether the package's tables are there."""
    try:
        for model in (ActiveTask, ConflictLock, TaskRecord):
            model._default_manager.exists()
    except DjangoDatabaseError:
        logger.exception("The tables can't be read; run migrate")
        return False
    return True
