"""Figures of ended tasks: counts, sums and histograms for each function, queue and span of time."""

from __future__ import annotations

import math
import struct
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from operator import add
from typing import Any

from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from powercrud_dashboard.models.database import PrimaryManager
from powercrud_dashboard.models.fields import CharField

#: Intervals of a histogram in each doubling of the time: each is 19 % longer than the one before.
PER_DOUBLING = 4
#: An interval's number, and how many times fell into it. A larger count takes several pairs.
_PAIR = struct.Struct("<BH")
_MAX_NUMBER, _MAX_COUNT = 255, 65_535


class Histogram:
    """How often times of each length occurred, in intervals whose lengths grow with the time.

    A percentile of it is at most 9 % off.
    """

    __slots__ = ("counts",)

    def __init__(self) -> None:
        #: By the number of the interval: 0 is less than a millisecond.
        self.counts = [0] * (_MAX_NUMBER + 1)

    def add(self, milliseconds: int, times: int = 1) -> None:
        """Count a time; less than 0 ``times`` takes it back."""
        number = int(math.log2(milliseconds) * PER_DOUBLING) + 1 if milliseconds >= 1 else 0
        self.counts[min(number, _MAX_NUMBER)] += times

    def add_packed(self, packed: bytes | memoryview) -> None:
        """Add a histogram that :meth:`pack` has returned, or several, one after the other."""
        counts = self.counts
        for (number, count), times in Counter(_PAIR.iter_unpack(packed)).items():
            counts[number] += count * times

    def merge(self, other: Histogram) -> None:
        """Add another histogram."""
        self.counts = list(map(add, self.counts, other.counts))

    def pack(self) -> bytes:
        """Return it in three bytes for each interval with a time in it."""
        packed = bytearray()
        for number, count in enumerate(self.counts):
            left = count
            while left > 0:
                packed += _PAIR.pack(number, min(left, _MAX_COUNT))
                left -= _MAX_COUNT
        return bytes(packed)

    def total(self) -> int:
        """Return the number of times in it."""
        return sum(self.counts)

    def percentile(self, share: float, longest: int) -> timedelta | None:
        """Return the time that this share (0.95 for p95) of the times does not exceed; None if there are none.

        ``longest`` is the longest of the times in milliseconds, which is known exactly.
        """
        wanted = math.ceil(share * self.total())
        if wanted <= 0:
            return None
        seen = accumulate(self.counts)
        number = next(number for number, so_many in enumerate(seen) if so_many >= wanted)
        middle = 2 ** ((number - 0.5) / PER_DOUBLING) if number else 0.0
        return timedelta(milliseconds=min(middle, longest))


class Span(models.IntegerChoices):
    """How long a row's time is, in seconds."""

    MINUTE = 60, _("Minute")
    HOUR = 3_600, _("Hour")
    DAY = 86_400, _("Day")


#: How long rows of a span are kept before they are merged into the next longer one, or deleted.
KEPT_FOR = {
    # The shortest period that the pages show, and a bit more for its first step.
    Span.MINUTE: timedelta(hours=1, minutes=5),
    Span.HOUR: timedelta(days=8),
    Span.DAY: timedelta(days=366),
}


def floor(moment: datetime, seconds: int) -> datetime:
    """Return the start of the span of so many seconds in which a moment lies; days are those of UTC."""
    epoch = datetime(1970, 1, 1, tzinfo=UTC if timezone.is_aware(moment) else None)
    return moment - (moment - epoch) % timedelta(seconds=seconds)


def span_for(moment: datetime, now: datetime) -> Span | None:
    """Return the span of the row that a task which ended at this moment belongs to; None if it is too old for one."""
    for span, kept in KEPT_FOR.items():
        if moment >= floor(now - kept, Span.HOUR if span == Span.MINUTE else Span.DAY):
            return span
    return None


class Joined(models.Aggregate):
    """The values of a binary column, or of one of JSON with commas between them, one after the other.

    So that the database reads thousands of rows, and Python only what they have in common.
    """

    def __init__(self, column: str, *, is_json: bool = False) -> None:
        super().__init__(column, output_field=models.TextField() if is_json else models.BinaryField())
        self._is_json = is_json

    def as_sqlite(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        # It joins texts only.
        template = "GROUP_CONCAT(%(expressions)s)" if self._is_json else "GROUP_CONCAT(HEX(%(expressions)s), '')"
        return self.as_sql(compiler, connection, template=template, **extra)

    def as_postgresql(self, compiler: Any, connection: Any) -> Any:
        template = (
            "STRING_AGG((%(expressions)s)::text, ',')" if self._is_json else "STRING_AGG(%(expressions)s, ''::bytea)"
        )
        return self.as_sql(compiler, connection, template=template)

    @staticmethod
    def bytes_of(joined: str | bytes | memoryview) -> bytes:
        """Return what is joined of a binary column."""
        return bytes.fromhex(joined) if isinstance(joined, str) else bytes(joined)


class StepOf(models.Func):
    """The number of the step of so many seconds since a moment in which a row begins."""

    def __init__(self, since: datetime, seconds: int) -> None:
        super().__init__(
            models.F("start"),
            models.Value(since, output_field=models.DateTimeField()),
            output_field=models.IntegerField(),
        )
        self._seconds = seconds

    # A thousandth more, as the fractions of a day are not exact.

    def as_sqlite(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        template = f"CAST((JULIANDAY(%(expressions)s)) * {86_400 / self._seconds} + 0.001 AS INTEGER)"
        return self.as_sql(compiler, connection, template=template, arg_joiner=") - JULIANDAY(", **extra)

    def as_postgresql(self, compiler: Any, connection: Any) -> Any:
        template = f"FLOOR(EXTRACT(EPOCH FROM (%(expressions)s)) / {self._seconds} + 0.001)::int"
        return self.as_sql(compiler, connection, template=template, arg_joiner=" - ")


class TaskStatisticsQuerySet(models.QuerySet["TaskStatistics"]):
    def since(self, moment: datetime) -> TaskStatisticsQuerySet:
        """The rows whose time begins at this moment or later."""
        return self.filter(start__gte=moment)

    def outlived(self, span: Span, now: datetime) -> TaskStatisticsQuerySet:
        """The rows of a span that are to be merged into the next longer one, or deleted."""
        return self.filter(
            span=span, start__lt=floor(now - KEPT_FOR[span], Span.HOUR if span == Span.MINUTE else Span.DAY)
        )


class TaskStatistics(models.Model):
    """What the ended tasks of one function and queue add up to, in one minute, hour or day."""

    #: The length of the time, in seconds.
    span = models.PositiveIntegerField(_("span"), choices=Span)
    start = models.DateTimeField(_("start"))
    func = CharField(_("function"), max_length=255)
    cluster = CharField(_("cluster"), max_length=100, blank=True)

    completed = models.PositiveIntegerField(_("completed"), default=0)
    failed = models.PositiveIntegerField(_("failed"), default=0)
    cancelled = models.PositiveIntegerField(_("cancelled"), default=0)

    #: From launch to start, of the tasks that a worker began at their first attempt.
    wait_ms = models.PositiveBigIntegerField(_("sum of waits, in milliseconds"), default=0)
    max_wait_ms = models.PositiveBigIntegerField(_("longest wait, in milliseconds"), default=0)
    waits = models.BinaryField(_("histogram of waits"), default=bytes)
    #: Of the tasks that were not cancelled.
    run_ms = models.PositiveBigIntegerField(_("sum of run times, in milliseconds"), default=0)
    max_run_ms = models.PositiveBigIntegerField(_("longest run time, in milliseconds"), default=0)
    runs = models.BinaryField(_("histogram of run times"), default=bytes)
    #: By host of the workers: ended tasks, failed tasks, milliseconds that they ran.
    hosts = models.JSONField(_("hosts"), default=dict, blank=True)

    last_ended_at = models.DateTimeField(_("last ended at"))
    last_failed_at = models.DateTimeField(_("last failed at"), null=True, blank=True)
    #: That of the task that was launched last.
    release = CharField(_("release"), max_length=100, blank=True)

    objects = PrimaryManager.from_queryset(TaskStatisticsQuerySet)()

    class Meta:
        verbose_name = _("task statistics")
        verbose_name_plural = _("task statistics")
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(fields=["func", "cluster", "span", "start"], name="pcrud_statistics_uniq"),
        ]
        indexes = [models.Index(fields=["start", "span"], name="pcrud_statistics_start")]

    def __str__(self) -> str:
        return f"{self.func} {self.start:%Y-%m-%d %H:%M}"


class TaskTotal(models.Model):
    """What all ended tasks of one function and queue add up to since they are counted. No number ever gets less.

    A task whose inferred failure was corrected counts as failed, and as what it was.
    """

    func = CharField(_("function"), max_length=255)
    cluster = CharField(_("cluster"), max_length=100, blank=True)
    completed = models.PositiveBigIntegerField(_("completed"), default=0)
    failed = models.PositiveBigIntegerField(_("failed"), default=0)
    cancelled = models.PositiveBigIntegerField(_("cancelled"), default=0)
    wait_ms = models.PositiveBigIntegerField(_("sum of waits, in milliseconds"), default=0)
    waits = models.BinaryField(_("histogram of waits"), default=bytes)
    run_ms = models.PositiveBigIntegerField(_("sum of run times, in milliseconds"), default=0)
    runs = models.BinaryField(_("histogram of run times"), default=bytes)

    objects = PrimaryManager["TaskTotal"]()

    class Meta:
        verbose_name = _("task total")
        verbose_name_plural = _("task totals")
        default_permissions = ()
        constraints = [models.UniqueConstraint(fields=["func", "cluster"], name="pcrud_total_uniq")]

    def __str__(self) -> str:
        return self.func
