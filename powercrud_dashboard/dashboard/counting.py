"""Counts that stop at a cap, so that they cost the same with a million rows as with ten thousand."""

from __future__ import annotations

from collections.abc import Mapping

from django.db.models import IntegerField, QuerySet, Subquery
from django.utils.formats import number_format

from powercrud_dashboard.models import TaskRecord

#: A list is said to have "10,000+" rows where there are more.
CAP = 10_000


class _Count(Subquery):
    template = "(SELECT COUNT(*) FROM (%(subquery)s) AS capped)"
    output_field = IntegerField()


def capped_counts(querysets: Mapping[str, QuerySet[TaskRecord]], *, cap: int = CAP) -> dict[str, int]:
    """Return how many rows each of the ordered querysets has, in one query; ``cap + 1`` stands for any more."""
    counts = [_Count(queryset.values("pk")[: cap + 1]) for queryset in querysets.values()]
    # One row to hang the counts on; without any there is nothing to count.
    row = TaskRecord.objects.order_by("-created_at", "-pk").values_list(*counts)[:1]
    found: tuple[int | None, ...] = next(iter(row), (0,) * len(counts))
    # Django leaves a queryset that can have no rows out of the query.
    return {name: count or 0 for name, count in zip(querysets, found, strict=True)}


def count_words(count: int, *, cap: int = CAP) -> str:
    """Return a count as people read it, such as "1,234" or "10,000+"."""
    number = number_format(min(count, cap), use_l10n=True, force_grouping=True)
    return f"{number}+" if count > cap else number
