"""Progress: parse it, write it, read it. A cache, if one is set, is written before the database."""

from __future__ import annotations

import logging
import re
import time
from dataclasses import dataclass
from typing import Any

from django.core.cache import BaseCache, caches

from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.models import ActiveTask
from powercrud_dashboard.text import MESSAGE, clean_text

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
    def parse(cls, message: object = None, current: Any = None, total: Any = None) -> Progress:
        """Make progress from what a task reports; a message such as "Step 3/10" also yields the numbers."""
        text = "" if message is None else clean_text(message, MESSAGE)
        if current is None and total is None and (step := _STEP.search(text)):
            found_current, found_total = int(step[1]), int(step[2])
            if found_current <= found_total:
                current, total = found_current, found_total
        return cls(text, fitting(current), fitting(total))

    @property
    def percent(self) -> int | None:
        """Whole percent from 0 to 100, or None if the total is not known."""
        if self.current is None or not self.total or self.total < 0:
            return None
        return max(0, min(100, self.current * 100 // self.total))

    def as_columns(self) -> dict[str, object]:
        return {
            "progress_message": self.message,
            "progress_current": self.current,
            "progress_total": self.total,
        }

    def as_payload(self) -> dict[str, Any]:
        """Return the facts of a ``progress`` event."""
        return {"message": self.message, "current": self.current, "total": self.total}

    @classmethod
    def of_row(cls, row: ActiveTask) -> Progress:
        return cls(row.progress_message, row.progress_current, row.progress_total)


def fitting(number: Any) -> int | None:
    """Return how much is done or to be done as a whole number that a column takes; None for anything else."""
    try:
        whole = None if number is None else int(number)
    except Exception:
        # Numbers that are infinite, texts, other people's classes.
        return None
    return whole if whole is not None and 0 <= whole < 2**63 else None


def write(task_name: str, progress: Progress) -> ActiveTask | None:
    """Write progress at once. Return the task with its manager; None if it is neither queued nor running."""
    written = ActiveTask.objects.write_progress_of(task_name, **progress.as_columns())
    if written is not None:
        write_to_cache(task_name, progress)
    return written


def read(task_name: str) -> Progress | None:
    """Return the newest progress of a queued or running task, or None if there is no such task."""
    row = ActiveTask.objects.tasks().filter(task_name=task_name).first()
    return None if row is None else newest([row])[row.task_name]


def newest(rows: list[ActiveTask]) -> dict[str, Progress]:
    """Return the newest progress of each row: the cache's, unless the row was written later."""
    found = {row.task_name: Progress.of_row(row) for row in rows}
    entries = _cached_entries(list(found))
    for row in rows:
        entry = entries.get(_key(row.task_name))
        if entry is None:
            continue
        written_at, progress = entry
        row_written_at = row.progress_at.timestamp() if row.progress_at else 0.0
        if written_at + CLOCK_TOLERANCE >= row_written_at:
            found[row.task_name] = progress
    return found


def write_to_cache(task_name: str, progress: Progress) -> None:
    """Put progress into the cache, if one is configured. A cache that fails is only logged."""
    if (cache := _cache()) is None:
        return
    try:
        cache.set(_key(task_name), (time.time(), progress), app_settings.PROGRESS_TTL)
    except Exception:
        logger.warning("The progress cache can't be written; progress is in the database only.", exc_info=True)


def forget(task_name: str) -> None:
    """Delete the cache entry of a task that has ended."""
    if (cache := _cache()) is None:
        return
    try:
        cache.delete(_key(task_name))
    except Exception:
        logger.warning("The progress cache can't be written; an old entry stays until it expires.", exc_info=True)


def _cached_entries(task_names: list[str]) -> dict[str, tuple[float, Progress]]:
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
