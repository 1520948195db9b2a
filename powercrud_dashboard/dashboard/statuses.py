"""The statuses of tasks as the pages show them: their words, their icons, and the tabs of the list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy

from powercrud_dashboard.models import ActiveTask, Source, TaskStatus

if TYPE_CHECKING:
    from powercrud_dashboard.dashboard.live import LiveTask
    from powercrud_dashboard.models import TaskRecord
    from powercrud_dashboard.models.history import TaskRecordQuerySet


@dataclass(frozen=True)
class ShownStatus:
    """A status as the pages show it. The stylesheet has the icon and the colour for each name."""

    name: str
    label: Any


#: A queued task that has failed before and waits for its retry.
WAITING = ShownStatus("waiting", _("Waiting for retry"))
#: A queued task that waits for the time that its launch has named.
SCHEDULED = ShownStatus("scheduled", _("Scheduled"))
#: A completed task that went on past objects that failed.
WITH_ERRORS = ShownStatus("errors", _("Completed with errors"))
#: A run that its schedule has left out.
SKIPPED = ShownStatus("skipped", pgettext_lazy("of a task", "Skipped"))

#: The statuses of records, by their values.
BY_VALUE = {str(status): ShownStatus(str(status), status.label) for status in TaskStatus}

#: The first and the last tabs of the list, which are always there. Between them are those of the other statuses, as
#: long as they have tasks.
FIRST_TABS = (TaskStatus.PENDING, TaskStatus.IN_PROGRESS)
LAST_TABS = (TaskStatus.FAILED, TaskStatus.SUCCESS, TaskStatus.CANCELLED)
OCCASIONAL_TABS = (WAITING.name, *(name for name in BY_VALUE if name not in (*FIRST_TABS, *LAST_TABS)))

#: The tabs of the list by their names, in their order.
TABS = {str(name): BY_VALUE.get(name, WAITING) for name in (*FIRST_TABS, *OCCASIONAL_TABS, *LAST_TABS)}


#: The words that the pages have for statuses, which people type.
WORDS = {
    "queued": str(TaskStatus.PENDING),
    "running": str(TaskStatus.IN_PROGRESS),
    "completed": str(TaskStatus.SUCCESS),
}


def tab_of(word: str) -> str:
    """Return the name of the tab that a name or a word stands for; "" if there is none."""
    name = WORDS.get(word.lower(), word.lower())
    return name if name in TABS else ""


def shown_status(record: TaskRecord, live: LiveTask | None = None) -> ShownStatus:
    """Return the status to show of a record; of an unfinished one with its live state."""
    if record.has_failed_objects:
        return WITH_ERRORS
    if live is not None and live.waits and record.status == TaskStatus.PENDING:
        return WAITING if live.waits_for_retry else SCHEDULED
    if record.source == Source.SCHEDULE and record.status == TaskStatus.CANCELLED:
        return SKIPPED
    # A newer release may know more of them.
    return BY_VALUE.get(record.status) or ShownStatus("unknown", record.status)


def stored_status(tab: str) -> str:
    """Return the status that the records of a tab have; "" for all."""
    return str(TaskStatus.PENDING) if tab == WAITING.name else tab


def on_tab(
    records: TaskRecordQuerySet, tab: str, column: str = "status", *, is_separate: bool = True
) -> TaskRecordQuerySet:
    """Return the records of a tab; all for "".

    Args:
        records: the records.
        tab: the name of the tab.
        column: the column of the status, or a transform of it.
        is_separate: whether queued tasks that wait for a retry are left out of the tab of queued ones.
    """
    if not tab:
        return records
    waiting = ActiveTask.objects.using(records.db).waiting_for_retry().values("task_name")
    records = records.filter((column, stored_status(tab)))
    if tab == WAITING.name:
        return records.filter(task_name__in=waiting)
    return records.exclude(task_name__in=waiting) if is_separate and tab == TaskStatus.PENDING else records
