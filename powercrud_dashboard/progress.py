"""Progress: parse it, write it, read it; the cache is a fast lane beside the database."""

from __future__ import annotations

import logging
import re
import time
from dataclasses import dataclass

from django.core.cache import BaseCache, caches

from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.models import ActiveTask
from powercrud_dashboard.models.text import MESSAGE, clean_text

logger = logging.getLogger(__name__)

#: "Step 3/10: label", "3 of 10"; not a date or a path.
_STEP = re.compile(r"(?:^|\s)(\d{1,18})\s*(?:/|of)\s*(\d{1,18})(?=$|[\s:.,;)])")

#: Clocks of two hosts, or of a host and its database, may differ by this much (seconds).
CLOCK_TOLERANCE = 2.0


@dataclass(frozen=True)
class Progress:
    message: str = ""
    current: int | None = None
    total: int | None = None

    @classmethod
    def parse(cls, message: object = None, current: int | None = None, total: int | None = None) -> Progress:
        """Make progress from what a task reports; a message such as "Step 3/10" also yields the numbers."""
        text = "" if message is None else clean_text(message, MESSAGE)
        if current is None and total is None and (step := _STEP.search(text)):
            found_current, found_total = int(step[1]), int(step[2])
            if found_current <= found_total:
                current, total = found_current, found_total
        return cls(text, current, total)

    @property
    def percent(self) -> int | None:
        """Whole percents from 0 to 100, or None as long as the total is not known."""
        if self.current is None or not self.total or self.total < 0:
            return None
        return max(0, min(100, self.current * 100 // self.total))

    def as_columns(self) -> dict[str, object]:
        return {
            "progress_message": self.message,
            "progress_current": self.current,
            "progress_total": self.total,
        }

    @classmethod
    def of_row(cls, row: ActiveTask) -> Progress:
        return cls(row.progress_message, row.progress_current, row.progress_total)


def write(task_name: str, progress: Progress) -> bool:
    """Write progress at once. Return whether the task is there to have any."""
    written = bool(ActiveTask.objects.tasks().filter(task_name=task_name).update(**progress.as_columns()))
    if written:
        write_fast_lane(task_name, progress)
    return written


def read(task_name: str) -> Progress | None:
    """Return the newest progress of a queued or running task, or None if there is no such task."""
    row = ActiveTask.objects.tasks().filter(task_name=task_name).first()
    return None if row is None else newest([row])[task_name]


def newest(rows: list[ActiveTask]) -> dict[str, Progress]:
    """Return the newest progress of each of the rows: the fast lane's, unless the row is younger."""
    found = {row.task_name: Progress.of_row(row) for row in rows}
    entries = _fast_lane_entries(list(found))
    for row in rows:
        entry = entries.get(_key(row.task_name))
        if entry is None:
            continue
        written_at, progress = entry
        beat = row.heartbeat_at.timestamp() if row.heartbeat_at else 0.0
        if written_at + CLOCK_TOLERANCE >= beat:
            found[row.task_name] = progress
    return found


def write_fast_lane(task_name: str, progress: Progress) -> None:
    """Put progress into the cache, if one is configured. A cache that fails is only logged."""
    if (cache := _cache()) is None:
        return
    try:
        cache.set(_key(task_name), (time.time(), progress), app_settings.PROGRESS_TTL)
    except Exception:
        logger.warning("The progress cache can't be written; progress is in the database only.", exc_info=True)


def forget(task_name: str) -> None:
    """Drop the cache entry of a task that has ended."""
    if (cache := _cache()) is None:
        return
    try:
        cache.delete(_key(task_name))
    except Exception:
        logger.warning("The progress cache can't be written; an old entry stays until it expires.", exc_info=True)


def _fast_lane_entries(task_names: list[str]) -> dict[str, tuple[float, Progress]]:
    cache = _cache()
    if cache is None or not task_names:
        return {}
    try:
        return dict(cache.get_many([_key(name) for name in task_names]))
    except Exception:
        logger.warning("The progress cache can't be read; progress comes from the database.", exc_info=True)
        return {}


def _cache() -> BaseCache | None:
    return caches[app_settings.CACHE_NAME] if app_settings.CACHE_NAME else None


def _key(task_name: str) -> str:
    return f"powercrud_dashboard:progress:{task_name}"
