"""Paging by the place of a row in the order, not by its number: no row is counted or skipped over.

New rows don't shift a page, a place outlives its row, and rows with the same value are told apart by their key.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.core.exceptions import ValidationError
from django.db.models import Q, QuerySet
from django.utils import timezone

from powercrud_dashboard.models import TaskRecord

#: Any number of so many digits fits into a column of 64 bits.
DIGITS_OF_A_KEY = 18


@dataclass(frozen=True)
class Order:
    """The order of a list: by one column, and by primary key where the values are the same."""

    column: str
    is_descending: bool = True

    def apply(self, records: QuerySet[TaskRecord], *, is_reversed: bool = False) -> QuerySet[TaskRecord]:
        sign = "-" if self.is_descending != is_reversed else ""
        return records.order_by(f"{sign}{self.column}", f"{sign}pk")

    def values(self, records: QuerySet[TaskRecord]) -> QuerySet[TaskRecord, Any]:
        """Return the column's values in its order, which an index of the column alone can give."""
        return records.order_by(f"{'-' if self.is_descending else ''}{self.column}").values_list(self.column)

    @property
    def _field(self) -> Any:
        return TaskRecord._meta.get_field(self.column)

    def place_of(self, record: TaskRecord) -> str:
        """Return the record's place as text for an address."""
        return f"{record.pk}.{self._field.value_to_string(record)}"

    def from_place(self, place: str) -> Q | None:
        """Return the condition for that place and what follows; None for text that is no place in this order."""
        return self._beside(place, is_reversed=False, includes_it=True)

    def before_place(self, place: str) -> Q | None:
        """Return the condition for what comes before that place."""
        return self._beside(place, is_reversed=True, includes_it=False)

    def _beside(self, place: str, *, is_reversed: bool, includes_it: bool) -> Q | None:
        pk, __, text = place.partition(".")
        if not pk.isdecimal() or len(pk) > DIGITS_OF_A_KEY or "\x00" in text:
            return None
        try:
            value = self._field.to_python(text)
        except (ValidationError, ValueError, OverflowError):
            return None
        if value is None or (isinstance(value, datetime) and timezone.is_naive(value)):
            return None
        side = "lt" if self.is_descending != is_reversed else "gt"
        tie = {f"pk__{side}{'e' if includes_it else ''}": int(pk)}
        # The first condition says nothing new, but it is the one that databases take an index for.
        return Q(**{f"{self.column}__{side}e": value}) & (Q(**{f"{self.column}__{side}": value}) | Q(**tie))


@dataclass(frozen=True)
class Page:
    """Some rows of a list, and the places where the pages beside it lie ("" where there is none)."""

    records: list[TaskRecord]
    previous: str = ""
    following: str = ""


def page_of(records: QuerySet[TaskRecord], order: Order, size: int, *, start: str = "", before: str = "") -> Page:
    """Return the page that starts at a place, or the one that ends before it; otherwise the first.

    A place that can't be read shows the first page.
    """
    earlier = order.before_place(before) if before else None
    if earlier is not None:
        rows = list(order.apply(records.filter(earlier), is_reversed=True)[: size + 1])
        if len(rows) >= size:
            shown = rows[:size][::-1]
            previous = order.place_of(shown[0]) if len(rows) > size else ""
            return Page(shown, previous, before)
    later = order.from_place(start) if start else None
    rows = list(order.apply(records if later is None else records.filter(later))[: size + 1])
    shown = rows[:size]
    following = order.place_of(rows[size]) if len(rows) > size else ""
    if later is None:
        return Page(shown, "", following)
    if not shown:
        # What was here is gone: show what there is.
        return page_of(records, order, size)
    first = order.place_of(shown[0])
    has_earlier = records.filter(order.before_place(first) or Q()).exists()
    return Page(shown, first if has_earlier else "", following)
