"""The tray in the admin's header: a person's running tasks, and those that have ended and were not seen yet."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db.models import OuterRef, Subquery
from django.utils import timezone
from django.utils.functional import cached_property
from django.utils.translation import gettext

from powercrud_dashboard.dashboard.links import dashboard_url
from powercrud_dashboard.dashboard.notices import subject_of, with_records
from powercrud_dashboard.engine.progress import newest
from powercrud_dashboard.models import ActiveTask, TaskNotice, TaskRecord
from powercrud_dashboard.models.coordination import ActiveTaskState

#: Tasks that it names, of each kind; a link leads to all.
SHOWN = 6
#: Tasks are counted up to this number.
COUNTED = 50
#: Seconds between two refreshes, at least. It is on every page.
MIN_INTERVAL = 5


@dataclass(frozen=True)
class TrayTask:
    """A task as the tray shows it."""

    name: str
    url: str
    #: Of one that has not ended.
    state: str = ""
    percent: int | None = None
    message: str = ""
    #: Of one that has ended.
    record: TaskRecord | None = None
    failed_url: str = ""

    @property
    def time_since_end(self) -> timedelta | None:
        ended = self.record.finished_at if self.record else None
        return timezone.now() - ended if ended else None


class Tray:
    """What the tray shows to a person, in two queries."""

    def __init__(self, user: Any, site_name: str | None, interval: int) -> None:
        """Prepare it.

        Args:
            user: the person.
            site_name: the name of the admin site that the links lead to.
            interval: the seconds between two refreshes of pages that the person has chosen; 0 for none.
        """
        self._user = user
        self._site_name = site_name
        self._interval = interval
        self.url = dashboard_url(site_name, "tray")
        self.seen_url = dashboard_url(site_name, "seen")
        self.preferences_url = dashboard_url(site_name, "notifications")
        self.all_url = dashboard_url(site_name, "changelist", mine="on")

    @cached_property
    def _active(self) -> list[ActiveTask]:
        record = TaskRecord.objects.filter(task_name=OuterRef("task_name")).values("pk")
        mine = ActiveTask.objects.tasks().filter(user_id=self._user.pk)
        # Those that run come first.
        return list(mine.annotate(record_pk=Subquery(record)).order_by("state", "-pk")[: COUNTED + 1])

    @cached_property
    def _notices(self) -> list[TaskNotice]:
        return list(with_records(TaskNotice.objects.of(self._user).filter(is_for_pages=True))[: COUNTED + 1])

    @cached_property
    def unfinished(self) -> list[TrayTask]:
        """The first of the tasks that are queued or running."""
        active = self._active[:SHOWN]
        progress = newest(active)
        return [
            TrayTask(
                gettext(str(task)),
                self._page("change", getattr(task, "record_pk", None)),
                state=task.state,
                percent=progress[task.task_name].percent,
                message=progress[task.task_name].message or "",
            )
            for task in active
        ]

    @cached_property
    def ended(self) -> list[TrayTask]:
        """The newest of the tasks that have ended and were not seen yet."""
        records = {notice.record.pk: notice.record for notice in self._notices[:SHOWN]}
        return [
            TrayTask(
                subject_of(record),
                self._page("change", record.pk),
                record=record,
                failed_url=self._page("change", record.pk, outcome="failed") if record.failed_count else "",
            )
            for record in records.values()
        ]

    def _page(self, page: str, pk: object, **parameters: str) -> str:
        return dashboard_url(self._site_name, page, pk, **parameters) if pk else ""

    @property
    def unfinished_count(self) -> str:
        return _capped(len(self._active))

    @property
    def ended_count(self) -> str:
        return _capped(len(self._notices))

    @property
    def running(self) -> int:
        return sum(task.state == ActiveTaskState.IN_PROGRESS for task in self._active)

    @property
    def newest(self) -> int:
        """The key of the newest notice that is shown: what comes after it was not seen."""
        return self._notices[0].pk if self._notices else 0

    @property
    def interval(self) -> int:
        """Seconds until it is to be refreshed; 0 if nothing is expected to change."""
        return max(self._interval, MIN_INTERVAL) if self._interval and self._active else 0

    @property
    def version(self) -> str:
        """A text that changes with what is shown."""
        shown = (self.unfinished, self.unfinished_count, self.ended_count, self.newest)
        return hashlib.blake2s(repr(shown).encode(), digest_size=8).hexdigest()


def _capped(number: int) -> str:
    return f"{COUNTED}+" if number > COUNTED else str(number)
