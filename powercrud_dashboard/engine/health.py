"""Checks of the running system: the tables, the progress cache, the broker, and whether a cluster runs tasks."""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from django.core.cache import caches
from django.db import Error as DjangoDatabaseError
from django.utils.translation import gettext as _

from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.engine.alert_rules import Rules
from powercrud_dashboard.engine.launch import runs_in_caller
from powercrud_dashboard.engine.vitals import Waiting, Workers, waiting_by_queue
from powercrud_dashboard.models import ActiveTask, AlertEvaluation, AlertKind, ConflictLock, TaskRecord
from powercrud_dashboard.q2 import queue

logger = logging.getLogger(__name__)


def cache_works() -> bool:
    """Return whether the progress cache keeps values and is shared between processes; what is wrong is logged.

    True without a cache: then progress is in the database only.
    """
    if not app_settings.CACHE_NAME:
        return True
    try:
        if not queue.is_shared_cache(app_settings.CACHE_NAME):
            logger.warning(
                "The cache %r is not shared between processes: set CACHE_NAME to one that is, or to None.",
                app_settings.CACHE_NAME,
            )
            return False
        return cache_keeps_values(app_settings.CACHE_NAME)
    except Exception:
        logger.exception("The cache %r does not work", app_settings.CACHE_NAME)
        return False


def cache_keeps_values(name: str) -> bool:
    """Return whether the cache of this name keeps a value.

    Raises:
        Exception: whatever the cache raises while it is away.
    """
    cache = caches[name]
    key, value = f"powercrud_dashboard:check:{uuid.uuid4().hex}", uuid.uuid4().hex
    cache.set(key, value, 60)
    is_kept: bool = cache.get(key) == value
    cache.delete(key)
    return is_kept


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


@dataclass
class Health:
    """Whether tasks are run, and what is in the way if they are not."""

    #: A code and a sentence for each.
    reasons: list[dict[str, str]] = field(default_factory=list)
    workers: int = 0
    waiting: int = 0
    oldest_wait: timedelta = timedelta()
    #: Whether it is time to evaluate the alerts.
    is_evaluation_due: bool = False

    @classmethod
    def now(cls) -> Health:
        """Ask the broker and the database, the latter in three queries that neither write nor wait for locks."""
        health = cls()
        try:
            health.is_evaluation_due = AlertEvaluation.objects.is_due()
            health._look_at(Workers.now(), waiting_by_queue())
        except DjangoDatabaseError:
            logger.exception("The health can't be read from the database")
            health._add("database", _("The database can't be read"))
            return health
        if not queue.broker_answers():
            health._add("broker", _("The broker can't be reached"))
        return health

    @property
    def is_good(self) -> bool:
        return not self.reasons

    def as_dict(self) -> dict[str, Any]:
        return {
            "status": "ok" if self.is_good else "failing",
            "reasons": self.reasons,
            "workers": self.workers,
            "waiting": self.waiting,
            "oldest_wait": round(self.oldest_wait.total_seconds(), 3),
        }

    def _look_at(self, workers: Workers, waiting: dict[str, Waiting]) -> None:
        self.workers = len(workers.alive)
        self.waiting = sum(its.tasks for its in waiting.values())
        self.oldest_wait = max((its.oldest_wait for its in waiting.values()), default=timedelta())
        if not runs_in_caller():
            if not workers.alive:
                self._add("no_workers", _("No worker runs"))
            else:
                for name in sorted(set(waiting) - workers.queues):
                    self._add("no_workers", _("No worker runs for the queue %(name)s") % {"name": name})
        rules = Rules()
        for name, its in sorted(waiting.items()):
            limits = rules.limits(AlertKind.OLDEST_WAIT, "queues", name)
            if limits is not None and its.oldest_wait >= timedelta(seconds=limits["seconds"]):
                text = _("The oldest task in the queue %(name)s has waited for %(seconds)d seconds")
                self._add("oldest_wait", text % {"name": name, "seconds": its.oldest_wait.total_seconds()})
        for host, offset in sorted(workers.wrong_clocks.items()):
            text = _("The clock of %(host)s and the database’s are %(seconds)d seconds apart")
            self._add("clock", text % {"host": host, "seconds": abs(offset.total_seconds())})

    def _add(self, code: str, text: str) -> None:
        self.reasons.append({"code": code, "text": text})
