"""Keyset paging: a page starts at a cursor, not at an offset, so the database never counts or skips rows.

New rows do not shift a page, and a cursor stays valid after its row is deleted. The primary key breaks ties.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import MAXYEAR, MINYEAR, datetime, timedelta
from typing import Any, TypeVar

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db.models import Q, QuerySet
from django.utils import timezone

from powercrud_dashboard.models import TaskRecord

Records = TypeVar("Records", bound=QuerySet[TaskRecord])

#: Every number with this many digits fits into a 64-bit column.
MAX_KEY_DIGITS = 18


def is_key(text: str) -> bool:
    """Return whether a text can be a primary key of a record."""
    return text.isdecimal() and len(text) <= MAX_KEY_DIGITS


#: SQLite stores durations as microseconds in a 64-bit column.
MAX_DURATION = timedelta(microseconds=2**63 - 1)


@dataclass(frozen=True)
class Order:
    """The order of a list: by one column, then by primary key."""

    column: str
    is_descending: bool = True

    def apply(self, records: Records, *, is_reversed: bool = False) -> Records:
        sign = "-" if self.is_descending != is_reversed else ""
        return records.order_by(f"{sign}{self.column}", f"{sign}pk")

    def values(self, records: QuerySet[TaskRecord]) -> QuerySet[TaskRecord, Any]:
        """Return the values of the column in order. An index on this column alone can answer the query."""
        return records.order_by(f"{'-' if self.is_descending else ''}{self.column}").values_list(self.column)

    @property
    def _field(self) -> Any:
        return TaskRecord._meta.get_field(self.column)

    def cursor_of(self, record: TaskRecord) -> str:
        """Return the cursor of the record, for use as a query parameter."""
        return f"{record.pk}.{self._field.value_to_string(record)}"

    def from_cursor(self, cursor: str) -> Q | None:
        """Return the condition for the row at the cursor and those after it; None for an invalid cursor."""
        return self._side_of(cursor, is_reversed=False, is_inclusive=True)

    def before_cursor(self, cursor: str) -> Q | None:
        """Return the condition for the rows before the cursor; None for an invalid cursor."""
        return self._side_of(cursor, is_reversed=True, is_inclusive=False)

    def _side_of(self, cursor: str, *, is_reversed: bool, is_inclusive: bool) -> Q | None:
        pk, __, text = cursor.partition(".")
        if not is_key(pk) or "\x00" in text:
            return None
        try:
            value = self._field.to_python(text)
        except (ValidationError, ValueError, OverflowError):
            return None
        if not _is_comparable(value):
            return None
        side = "lt" if self.is_descending != is_reversed else "gt"
        tie = {f"pk__{side}{'e' if is_inclusive else ''}": int(pk)}
        # The first condition is redundant, but databases can use an index for it.
        return Q(**{f"{self.column}__{side}e": value}) & (Q(**{f"{self.column}__{side}": value}) | Q(**tie))


def _is_comparable(value: object) -> bool:
    """Return whether every database can compare a column with the value."""
    if isinstance(value, datetime):
        # Others can't be converted to another time zone, or compared with the column.
        return timezone.is_aware(value) == settings.USE_TZ and MINYEAR < value.year < MAXYEAR
    if isinstance(value, timedelta):
        return abs(value) <= MAX_DURATION
    return value is not None


@dataclass(frozen=True)
class Page:
    """The rows of one page, and the cursors of the previous and next pages ("" if there is none)."""

    records: list[TaskRecord]
    previous_cursor: str = ""
    next_cursor: str = ""


@dataclass(frozen=True)
class Section:
    """A part of a list that has an order of its own. The sections of a list share no row."""

    records: QuerySet[TaskRecord]
    order: Order
    #: What the cursors of its rows begin with, a letter or nothing, so that they tell the section.
    prefix: str = ""

    def cursor_of(self, record: TaskRecord) -> str:
        return self.prefix + self.order.cursor_of(record)

    def condition(self, cursor: str, *, is_reversed: bool) -> Q | None:
        """Return the condition for this section's rows from the cursor on, or before it; None for another cursor."""
        own = cursor.removeprefix(self.prefix) if cursor.startswith(self.prefix) else ""
        return self.order.before_cursor(own) if is_reversed else self.order.from_cursor(own)


#: A row and its section.
_Row = tuple[TaskRecord, Section]


def page_of(sections: Sequence[Section], size: int, *, start: str = "", before: str = "") -> Page:
    """Return the page that starts at or ends before a cursor; the first page without a valid cursor."""
    if before and (earlier := _rows(sections, size + 1, before, is_reversed=True)) is not None and len(earlier) >= size:
        shown = earlier[:size][::-1]
        return Page(_records(shown), _cursor_of(shown[0]) if len(earlier) > size else "", before)
    later = _rows(sections, size + 1, start) if start else None
    rows = later if later is not None else _rows(sections, size + 1) or []
    shown = rows[:size]
    next_cursor = _cursor_of(rows[size]) if len(rows) > size else ""
    if later is None:
        return Page(_records(shown), "", next_cursor)
    if not shown:
        # All rows at and after the cursor are gone.
        return page_of(sections, size)
    first = _cursor_of(shown[0])
    return Page(_records(shown), first if _rows(sections, 1, first, is_reversed=True) else "", next_cursor)


def _rows(sections: Sequence[Section], limit: int, cursor: str = "", *, is_reversed: bool = False) -> list[_Row] | None:
    """Return the first rows at and after a cursor, or the last ones before it, backwards; None for an invalid cursor.

    Without a cursor they are the first of the list.
    """
    found: list[_Row] = []
    is_reached = not cursor
    for section in reversed(sections) if is_reversed else sections:
        records = section.records
        if not is_reached:
            condition = section.condition(cursor, is_reversed=is_reversed)
            if condition is None:
                continue
            is_reached = True
            records = records.filter(condition)
        left = section.order.apply(records, is_reversed=is_reversed)[: limit - len(found)]
        found += [(record, section) for record in left]
        if len(found) == limit:
            break
    return found if is_reached else None


def _records(rows: Sequence[_Row]) -> list[TaskRecord]:
    return [record for record, __ in rows]


def _cursor_of(row: _Row) -> str:
    record, section = row
    return section.cursor_of(record)
