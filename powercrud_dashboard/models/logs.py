"""What the code of tasks has logged: one row for each line, and a mark where lines were left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import models
from django.db.models import Count, Q, Sum
from django.db.models.functions import Length
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.models.database import PrimaryManager, in_chunks
from powercrud_dashboard.models.fields import CharField, TextField
from powercrud_dashboard.models.history import TaskRecord
from powercrud_dashboard.models.prepared import PreparedInsert
from powercrud_dashboard.text import SHORT

#: Up to so many lines are inserted by a prepared statement, one for each number of rows.
FEW_LINES = 4
#: The part of the limits that the first lines of a task have for themselves, and the part that is made free at once
#: when they are reached, so that not each further line deletes another one.
FIRST_PART = FREED_PART = 5


#: The names of the levels, the highest first; "success" is one of Django's messages.
LEVEL_NAMES = ((50, "critical"), (40, "error"), (30, "warning"), (25, "success"), (20, "info"))


@dataclass(frozen=True)
class LogLine:
    """A line before it is written; with ``left_out``, the mark for so many lines that are not kept."""

    message: str
    level: int
    logger: str
    time: datetime
    left_out: int = 0


class TaskLogLineQuerySet(models.QuerySet["TaskLogLine"]):
    def matching(self, *, level: int = 0, text: str = "") -> TaskLogLineQuerySet:
        """The lines of at least this level whose message or logger contains the text."""
        if not (level or text):
            return self
        lines = self.filter(level__gte=level, left_out=0)
        return lines.filter(Q(message__icontains=text) | Q(logger__icontains=text)) if text else lines


_TaskLogLineBase = PrimaryManager.from_queryset(TaskLogLineQuerySet)


class TaskLogLineManager(_TaskLogLineBase["TaskLogLine"]):
    """What is written of one task at a time."""

    def add(self, record_pk: int, lines: Sequence[LogLine], *, is_first: bool = False) -> None:
        """Add lines to the log of a task. Of too many, the first and the newest are kept.

        Args:
            record_pk: the key of the task's record.
            lines: the lines, oldest first.
            is_first: whether the log is known to be empty.
        """
        limits = _Limits()
        count, size = (0, 0) if is_first else self._kept(record_pk)
        if not limits.allow(count + len(lines), size + sum(len(line.message) for line in lines)):
            lines = self._make_room(record_pk, lines, limits)
        rows: list[dict[str, Any]] = [
            {
                "record": record_pk,
                "time": line.time,
                "level": line.level,
                "logger": line.logger,
                "message": line.message,
                "left_out": line.left_out,
            }
            for line in lines
        ]
        if len(rows) > FEW_LINES:
            self.bulk_create(TaskLogLine(record_id=row.pop("record"), **row) for row in rows)
        elif rows:
            _ADD_LINES.execute(rows)

    def _kept(self, record_pk: int) -> tuple[int, int]:
        found = self.filter(record=record_pk).aggregate(count=Count("pk"), size=Sum(Length("message")))
        return found["count"], found["size"] or 0

    def _make_room(self, record_pk: int, lines: Sequence[LogLine], limits: _Limits) -> list[LogLine]:
        """Delete the lines between the first and the newest ones, and return those of the new lines that are kept."""
        stored = self.filter(record=record_pk).order_by("pk").values_list("pk", Length("message"), "left_out")
        entries = [*stored, *((None, len(line.message), line.left_out) for line in lines)]
        begin, end = limits.cut([size for _pk, size, _left_out in entries])
        cut = entries[begin:end]
        left_out = sum(count or 1 for _pk, _size, count in cut)
        deleted = [pk for pk, _size, _left_out in cut if pk is not None]
        new_begin = len(entries) - len(lines)
        kept = [line for number, line in enumerate(lines, new_begin) if not begin <= number < end]
        if deleted:
            # In the place of the first of them, so that the order of the keys stays that of the lines.
            mark, *others = deleted
            self.filter(pk=mark).update(message="", logger="", level=0, left_out=left_out)
            for pks in in_chunks(others, using=self.all().db):
                self.filter(pk__in=pks).delete()
        else:
            first_cut = lines[begin - new_begin]
            kept.insert(max(0, begin - new_begin), LogLine("", 0, "", first_cut.time, left_out))
        return kept


class _Limits:
    """How many lines and characters of one task are kept."""

    def __init__(self) -> None:
        self.lines = app_settings.DASHBOARD_LOG_LINES
        self.characters = app_settings.DASHBOARD_LOG_SIZE

    def allow(self, lines: int, characters: int) -> bool:
        return lines <= self.lines and characters <= self.characters

    def cut(self, sizes: Sequence[int]) -> tuple[int, int]:
        """Return which of the entries to leave out, as the numbers of the first one and of the first one after."""
        begin = _fitting(sizes, self.lines // FIRST_PART, self.characters // FIRST_PART)
        # One line is for the mark.
        rest_of_lines = self.lines - self.lines // FIRST_PART - self.lines // FREED_PART - 1
        rest_of_characters = self.characters - self.characters // FIRST_PART - self.characters // FREED_PART
        end = len(sizes) - _fitting(list(reversed(sizes)), rest_of_lines, rest_of_characters)
        return begin, max(end, begin + 1)


def _fitting(sizes: Sequence[int], lines: int, characters: int) -> int:
    """Return how many of the entries fit, from the first one on."""
    fitting = 0
    for size in sizes[: max(lines, 0)]:
        characters -= size
        if characters < 0:
            break
        fitting += 1
    return fitting


class TaskLogLine(models.Model):
    """A line of a task's log, or the mark for lines that are not kept."""

    record = models.ForeignKey(
        TaskRecord, verbose_name=_("task"), on_delete=models.CASCADE, related_name="log_lines", db_index=False
    )
    time = models.DateTimeField(_("time"), default=timezone.now)
    #: The number that the module logging has for it.
    level = models.PositiveSmallIntegerField(_("level"))
    #: Empty for a line of ``TaskContext.log()``.
    logger = CharField(_("logger"), max_length=SHORT, blank=True)
    message = TextField(_("message"), blank=True)
    #: Of a mark: the number of lines that are not kept.
    left_out = models.PositiveIntegerField(_("lines left out"), default=0)

    objects = TaskLogLineManager()

    class Meta:
        verbose_name = _("log line")
        verbose_name_plural = _("log lines")
        ordering = ["pk"]
        default_permissions = ()
        indexes = [models.Index(fields=["record", "id"], name="pcrud_log_line")]

    def __str__(self) -> str:
        return self.message

    @property
    def level_name(self) -> str:
        """The name of the highest known level that its level reaches."""
        return next((name for number, name in LEVEL_NAMES if self.level >= number), "debug")


_ADD_LINES = PreparedInsert(TaskLogLine)
