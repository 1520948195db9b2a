"""The task list that an address stands for: whose tasks, which filters, in what order, which page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db.models import QuerySet
from django.http import QueryDict
from django.utils.functional import cached_property

from powercrud_dashboard.dashboard.counting import CAP, Count, capped_counts, counts_among_first
from powercrud_dashboard.dashboard.filters import TaskFilter
from powercrud_dashboard.dashboard.keyset import Order, Page, page_of
from powercrud_dashboard.models import TaskRecord, TaskStatus

if TYPE_CHECKING:
    from powercrud_dashboard.access import Person

#: Columns that a list can be sorted by, under their names in the address.
SORTABLE = {
    "created_at": "created_at",
    "duration": "run_time",
    "status": "status",
    "label": "label",
    "affected_count": "affected_count",
    "user_label": "user_label",
}

#: Columns of the record that no row of a list shows.
WIDE = ("payload", "traceback", "result", "task_args", "task_kwargs", "conflict_ids", "affected_objects")

#: More new tasks than this are not counted.
NEWER_AT_MOST = 99


class Listing:
    """What the list at this address shows to this person."""

    def __init__(self, parameters: QueryDict, user: Person) -> None:
        self.parameters = parameters
        self._visible = TaskRecord.objects.visible_to(user)
        self.filter = TaskFilter(parameters, queryset=self._visible)

    @cached_property
    def status(self) -> str:
        """The tab asked for; anything unknown shows all tasks."""
        asked = self.parameters.get("status", "")
        return asked if asked in TaskStatus.values else ""

    @cached_property
    def sort(self) -> str:
        """What the list is sorted by, in the form of the address."""
        asked = self.parameters.get("sort", "")
        if asked.removeprefix("-") in SORTABLE:
            return asked
        return {"created_at": "-created_at", "id": "-created_at", "run_time": "-duration"}.get(self._indexed.column, "")

    @cached_property
    def order(self) -> Order:
        if not self.sort:
            return self._indexed
        column = SORTABLE[self.sort.removeprefix("-")]
        if column == "created_at" and self._indexed.column == "id":
            column = "id"
        return Order(column, self.sort.startswith("-"))

    @property
    def shows_newest_first(self) -> bool:
        return self.order in (Order("created_at"), Order("id"))

    def matching(self, *, considers_all: bool = False) -> QuerySet[TaskRecord]:
        """Return the tasks of this tab that pass the filters."""
        return self.filter.found(self.status, considers_all=considers_all)

    def to_count(self, status: str) -> QuerySet[TaskRecord, Any]:
        """Return something of each task of this status that passes, in an order that the database finds them in."""
        return self._indexed.values(self.filter.found(status))

    @cached_property
    def counts(self) -> dict[str, Count]:
        """How many tasks each tab has, by status, with all under ""."""
        if self.filter.is_answered_by_status:
            found = capped_counts({status: self.to_count(status) for status in TaskStatus.values})
            total = sum(found.values(), Count(0))
        else:
            found, total = counts_among_first(self.filter.found(to_count_in=self._indexed), TaskStatus.values)
        return {**found, "": total}

    @cached_property
    def is_bounded(self) -> bool:
        """Whether only some of the matches are looked at: the newest for words, the first in an order without index."""
        if self._window_start is not None:
            return True
        return self.counts[""].is_more and self.filter.is_bounded(self.status)

    def page(self, size: int, *, start: str | None = None) -> Page:
        """Return the page that the address asks for, or the one that starts at a place."""
        if start is None and self.is_first_page and (page := self._page_of_newest(size)) is not None:
            return page
        records = self._sortable().defer(*WIDE)
        if start is not None:
            return page_of(records, self.order, size, start=start)
        return page_of(
            records,
            self.order,
            size,
            start=self.parameters.get("from", ""),
            before=self.parameters.get("before", ""),
        )

    def _page_of_newest(self, size: int) -> Page | None:
        """Return the first page if there are so many matches that some of the newest records fill it."""
        if self.order != Order("id") or not self.counts[""].is_more:
            return None
        newest = self.filter.found_among_newest(self.status)
        page = page_of(newest.defer(*WIDE), self.order, size) if newest is not None else None
        return page if page is not None and page.following else None

    @property
    def is_first_page(self) -> bool:
        return not (self.parameters.get("from") or self.parameters.get("before"))

    def newest_place(self) -> str:
        """Return the place of the list's first task, "" for an empty list."""
        first = self.order.apply(self._sortable()).only("pk", self.order.column).first()
        return self.order.place_of(first) if first else ""

    def newer_than(self, place: str) -> int:
        """Return how many tasks have come before that place; one more than ``NEWER_AT_MOST`` for any more."""
        newer = self.order.before_place(place)
        if newer is None:
            return 0
        return len(self.order.apply(self.matching().filter(newer)).values_list("pk", flat=True)[: NEWER_AT_MOST + 1])

    @cached_property
    def _indexed(self) -> Order:
        """The order in which the database finds what the filters want without looking at the rest."""
        if self.filter.wants_end_times:
            return Order("finished_at")
        if self.filter.wants_run_times or self.parameters.get("sort", "").removeprefix("-") == "duration":
            return Order("run_time")
        # The search index hands out the records in the order of their keys, which is that of their creation.
        return Order("id" if self.filter.wants_words else "created_at")

    def _sortable(self) -> QuerySet[TaskRecord]:
        """Return the tasks to put in order: all, or the first 10,000 where the order has no index."""
        if (start := self._window_start) is None:
            return self.matching()
        # Of two bounds on a column SQLite takes the first to its index: this one, which leaves less.
        within = self._visible.filter((f"{self._indexed.column}__gte", start))
        return TaskFilter(self.parameters, queryset=within).found(self.status)

    @cached_property
    def _window_start(self) -> object | None:
        if self.order.column == self._indexed.column:
            return None
        values = self._indexed.apply(self.matching()).values_list(self._indexed.column, flat=True)
        return next(iter(values[CAP : CAP + 1]), None)
