"""Counts that stop at a cap, so that they cost the same with a million rows as with ten thousand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from django.db import models
from django.db.models import IntegerField, Q, QuerySet, Subquery
from django.utils.formats import number_format

from powercrud_dashboard.models import TaskRecord

#: A list is said to have "10,000+" rows where there are more.
CAP = 10_000


@dataclass(frozen=True)
class Count:
    """A number of rows, or the number at which counting stopped."""

    number: int
    is_more: bool = False

    def __add__(self, other: Count) -> Count:
        return _capped(self.number + other.number, is_more=self.is_more or other.is_more)

    def __str__(self) -> str:
        number = number_format(self.number, use_l10n=True, force_grouping=True)
        return f"{number}+" if self.is_more else number


def _capped(number: int, *, is_more: bool = False) -> Count:
    return Count(min(number, CAP), is_more or number > CAP)


class _Count(Subquery):
    template = "(SELECT COUNT(*) FROM (%(subquery)s) AS capped)"
    output_field = IntegerField()


def capped_counts(querysets: Mapping[str, QuerySet[TaskRecord, Any]]) -> dict[str, Count]:
    """Return how many rows each of the ordered querysets has, up to the cap, in one query."""
    counts = [_Count(queryset[: CAP + 1]) for queryset in querysets.values()]
    # One row to hang the counts on; without any there is nothing to count.
    row = TaskRecord.objects.order_by("-created_at", "-pk").values_list(*counts)[:1]
    found: tuple[int | None, ...] = next(iter(row), (0,) * len(counts))
    # Django leaves a queryset that can have no rows out of the query.
    return {name: _capped(number or 0) for name, number in zip(querysets, found, strict=True)}


def counts_among_first(records: QuerySet[TaskRecord], statuses: Iterable[str]) -> tuple[dict[str, Count], Count]:
    """Return how many of the first rows, up to the cap, have each status, and how many there are in all."""
    wanted: dict[str, Any] = {status: models.Count("pk", filter=Q(status=status)) for status in statuses}
    found = records.only("pk", "status")[: CAP + 1].aggregate(**wanted, total=models.Count("pk"))
    total = _capped(found.pop("total"))
    return {status: Count(number, total.is_more) for status, number in found.items()}, total
