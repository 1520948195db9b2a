"""The task list: its filters, order, pages and counts, at a cost that does not grow with the number of records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.db import models
from django.db.models import Case, IntegerField, OuterRef, Q, QuerySet, Subquery, When
from django.db.models.functions import Coalesce
from django.http import QueryDict
from django.utils.formats import number_format
from django.utils.functional import cached_property

from powercrud_dashboard.dashboard import access
from powercrud_dashboard.dashboard.filters import ALL_FAILURES, TaskFilter
from powercrud_dashboard.dashboard.keyset import Order, Page, Section, page_of
from powercrud_dashboard.dashboard.statuses import WAITING, tab_of
from powercrud_dashboard.extension import dashboard
from powercrud_dashboard.models import ActiveTask, Resolution, TaskRecord, TaskStatus
from powercrud_dashboard.models.database import Now
from powercrud_dashboard.models.history import TaskRecordQuerySet
from powercrud_dashboard.models.prepared import values_of
from powercrud_dashboard.models.statuses import UNFINISHED

if TYPE_CHECKING:
    from powercrud_dashboard.dashboard.access import User

#: Counting stops at this number; larger counts are shown as "10,000+".
CAP = 10_000


@dataclass(frozen=True)
class Count:
    """A number of rows, or the cap if there are more."""

    number: int
    is_capped: bool = False

    @classmethod
    def capped(cls, number: int, cap: int) -> Count:
        return cls(min(number, cap), number > cap)

    def __add__(self, other: Count) -> Count:
        total = Count.capped(self.number + other.number, CAP)
        return Count(total.number, total.is_capped or self.is_capped or other.is_capped)

    def __str__(self) -> str:
        number = number_format(self.number, use_l10n=True, force_grouping=True)
        return f"{number}+" if self.is_capped else number


class CappedCount(Subquery):
    """The number of rows of a queryset that is limited to one more than the cap."""

    template = "(SELECT COUNT(*) FROM (%(subquery)s) AS capped)"
    output_field = IntegerField()


def capped_counts(
    names: Sequence[str], rows: Callable[[str], QuerySet[TaskRecord, Any]], *kept_as: Hashable
) -> dict[str, Count]:
    """Count the rows of the queryset of each name up to the cap, in one query, kept as by :func:`values_of`."""
    if not names:
        return {}
    kept_as = (*kept_as, CAP) if kept_as else ()
    numbers = values_of(lambda: [CappedCount(rows(name)[: CAP + 1]) for name in names], *kept_as)
    # Django omits empty querysets from the query, so their count is None.
    return {name: Count.capped(number or 0, CAP) for name, number in zip(names, numbers, strict=True)}


def counts_among_first(records: QuerySet[TaskRecord], conditions: Mapping[str, Q]) -> tuple[dict[str, Count], Count]:
    """Count the first rows, up to the cap, by status and in total. ``conditions`` are those of the statuses."""
    aggregates: dict[str, Any] = {status: models.Count("pk", filter=which) for status, which in conditions.items()}
    columns = records.only("pk", "status", "resolution", "superseded")
    numbers = columns[: CAP + 1].aggregate(**aggregates, total=models.Count("pk"))
    total = Count.capped(numbers.pop("total"), CAP)
    return {status: Count(number, total.is_capped) for status, number in numbers.items()}, total


#: Columns to sort by, keyed by the value of the ``sort`` parameter.
SORTABLE = {
    "created_at": "created_at",
    "finished_at": "finished_at",
    "duration": "run_time",
    "status": "status",
    "label": "label",
    "affected_count": "affected_count",
    "user_label": "user_label",
}

#: Large columns that no list shows.
WIDE_COLUMNS = ("payload", "traceback", "result", "task_args", "task_kwargs", "conflict_ids", "affected_objects")

#: The tasks of a tab that are sorted by their functions, and the functions that are offered as filters.
MAX_SORTED_BY_KIND = 1_000
MAX_KINDS = 8

#: The number of new tasks is counted up to this limit.
MAX_NEWER = 99


class Listing:
    """The task list for the given query parameters and user."""

    def __init__(self, parameters: QueryDict, user: User) -> None:
        self.parameters = parameters
        self._user = user
        self._visible = TaskRecord.objects.visible_to(user)
        self.filter = TaskFilter(parameters, queryset=self._visible, user=user)

    @classmethod
    def of(cls, parameters: Mapping[str, str], user: User) -> Listing:
        """Return the list for query parameters that are no part of a request."""
        query = QueryDict(mutable=True)
        query.update(parameters)
        return cls(query, user)

    @cached_property
    def status(self) -> str:
        """The name of the selected tab; "" for all tasks."""
        return tab_of(self.parameters.get("status", ""))

    @cached_property
    def sort(self) -> str:
        """The value of the ``sort`` parameter, or the default order in the same form."""
        sort = self.parameters.get("sort", "")
        if sort.removeprefix("-") in SORTABLE:
            return sort
        default = {
            "created_at": "-created_at",
            "id": "-created_at",
            "run_time": "-duration",
            "finished_at": "-finished_at",
        }
        return default.get(self._index_order.column, "")

    @cached_property
    def order(self) -> Order:
        if not self.sort:
            return self._index_order
        column = SORTABLE[self.sort.removeprefix("-")]
        if column == "created_at" and self._index_order.column == "id":
            column = "id"
        return Order(column, self.sort.startswith("-"))

    @property
    def shows_newest_first(self) -> bool:
        return self.order in (Order("created_at"), Order("id"))

    @property
    def resolution(self) -> str:
        """The resolution of the failures that are listed: without a filter only open ones are listed as failed."""
        return self.filter.chosen_resolution or Resolution.OPEN

    def matching(self, *, is_complete: bool = False) -> TaskRecordQuerySet:
        """Return the tasks of this tab that match the filters."""
        return self.filter.matching(self.status, is_complete=is_complete)

    def matching_with(self, status: str) -> TaskRecordQuerySet:
        """Return those of the tasks of this tab that have this status, without a limit to what a search considers."""
        if self.status:
            return self.matching(is_complete=True)
        # Among all tasks there are settled failures, and queued ones that wait for a retry.
        return self.filter.matching(status, resolution=ALL_FAILURES, is_separate=False, is_complete=True)

    @cached_property
    def matches_any(self) -> bool:
        """Whether any task of this tab matches the filters."""
        return self.matching().exists()

    def countable(self, status: str, resolution: str = "") -> QuerySet[TaskRecord, Any]:
        """Return one column of the matching tasks with this status, in the order of the index.

        Among the queued tasks are those that wait for a retry. ``resolution`` is that of failures, if the filters have
        none; empty for open ones.
        """
        return self._index_order.values(self.filter.matching(status, resolution=resolution, is_separate=False))

    @cached_property
    def counts(self) -> dict[str, Count]:
        """The number of tasks on each tab, by its name; "" is the total."""
        # A task that waits has not ended.
        cannot_wait = self.filter.filters_end_time or self.filter.filters_run_time
        waiting = [] if cannot_wait else [WAITING.name]
        counts = {WAITING.name: Count(0)}
        if self.filter.is_indexed_by_status:
            # Settled failures are on no tab but that of all tasks.
            kept_as = ("tabs",) if self._shows_all else ()
            counts.update(capped_counts([*TaskStatus.values, *waiting, ""], self._counted, *kept_as))
            others = (counts[status] for status in TaskStatus.values if status != TaskStatus.FAILED)
            total = sum(others, counts[""])
        else:
            conditions = {status: Q(status=status) for status in TaskStatus.values}
            if not self.filter.chosen_resolution:
                conditions[TaskStatus.FAILED] = Q(resolution=Resolution.OPEN, superseded=False)
            matching = self.filter.matching(count_order=self._index_order)
            among_first, total = counts_among_first(matching, conditions)
            # Mostly there are none, which takes less work to find out.
            if waiting and not ActiveTask.objects.waiting().exists():
                waiting = []
            counts.update({**among_first, **capped_counts(waiting, self._counted)})
        queued = counts[TaskStatus.PENDING]
        # Cheaper than to look for those that do not wait: they are counted from an index alone.
        left = max(0, queued.number - counts[WAITING.name].number)
        return {**counts, TaskStatus.PENDING: Count(left, queued.is_capped), "": total}

    def number_with(self, statuses: Collection[str]) -> Count:
        """Return how many of the listed tasks have one of these statuses, as the tabs count them."""
        if self.status:
            return self.counts[self.status]
        waiting = [WAITING.name] if TaskStatus.PENDING in statuses else []
        return sum((self.counts[status] for status in (*statuses, *waiting)), Count(0))

    @property
    def open_failures(self) -> Count | None:
        """The number of all open failures, if their tab shows it."""
        return self.counts[TaskStatus.FAILED] if self._shows_all else None

    @cached_property
    def functions(self) -> list[tuple[str, int]]:
        """How many of the first tasks of this tab are of each function, the most frequent first."""
        first = self.order.apply(self.matching()).values_list("func", flat=True)[:MAX_SORTED_BY_KIND]
        return Counter(first).most_common(MAX_KINDS)

    def _counted(self, name: str) -> QuerySet[TaskRecord, Any]:
        """Return one column of the tasks that are counted under this name."""
        if name == WAITING.name:
            # In no order if they are searched for words.
            return self.filter.matching(name, count_order=self._index_order).values_list("pk")
        return self.countable(name) if name else self.countable(TaskStatus.FAILED, ALL_FAILURES)

    @property
    def _shows_all(self) -> bool:
        """Whether nothing is left out: there is no filter, and the user may see all tasks."""
        return not self.filter.is_active and access.has_permission(self._user, "view_taskrecord")

    @cached_property
    def is_bounded(self) -> bool:
        """Whether the list omits matches because of the search limit, or because the order has no index."""
        if self._window_start is not None:
            return True
        return self.counts[""].is_capped and self.filter.is_bounded(self.status)

    def page(self, size: int) -> Page:
        """Return the page for the query parameters."""
        if self.is_first_page and (page := self._page_of_newest(size)) is not None:
            return page
        return page_of(
            self._sections(self._sortable()),
            size,
            start=self.parameters.get("from", ""),
            before=self.parameters.get("before", ""),
        )

    def of_keys(self, keys: Sequence[str]) -> list[TaskRecord]:
        """Return the tasks with these primary keys, in this order, whatever the filters are."""
        found = {str(record.pk): record for record in self._shown(self._visible.filter(pk__in=keys))}
        return [found[key] for key in keys if key in found]

    def _page_of_newest(self, size: int) -> Page | None:
        """Return the first page if matches among the newest records fill it."""
        if self.order != Order("id") or not self.counts[""].is_capped:
            return None
        newest = self.filter.matching_newest(self.status)
        page = page_of(self._sections(newest), size) if newest is not None else None
        return page if page is not None and page.next_cursor else None

    def _sections(self, records: QuerySet[TaskRecord]) -> list[Section]:
        """Return the sections of the list: running tasks before the others, tasks without an end behind them."""
        records, order = self._shown(records), self.order
        if order.column == "finished_at":
            ended = Section(records.filter(finished_at__isnull=False), order)
            others = records.filter((f"{self.filter.column('status')}__in", UNFINISHED))
            unfinished = Section(others, Order("created_at"), prefix="u")
            return [ended, unfinished] if order.is_descending else [unfinished, ended]
        if self.status or not (self.shows_newest_first and self.counts[TaskStatus.IN_PROGRESS].number):
            return [Section(records, order)]
        running = self._shown(self.filter.matching(TaskStatus.IN_PROGRESS))
        others = records.exclude((self.filter.column("status"), TaskStatus.IN_PROGRESS))
        return [Section(running, order, prefix="r"), Section(others, order)]

    @staticmethod
    def _shown(records: QuerySet[TaskRecord]) -> QuerySet[TaskRecord]:
        """Return the records without the columns that no list shows, and with what the project adds.

        Each has the time at which it is read, and an open failure the key of its retry that is queued or running.
        """
        chain = Coalesce(OuterRef("chain"), OuterRef("pk"))
        retry = Subquery(TaskRecord.objects.unfinished().filter(chain=chain).values("pk")[:1])
        retry_pk = Case(When(resolution=Resolution.OPEN, then=retry))
        return dashboard().prepare_list(records.defer(*WIDE_COLUMNS).annotate(read_at=Now(), retry_pk=retry_pk))

    @property
    def is_first_page(self) -> bool:
        return not (self.parameters.get("from") or self.parameters.get("before"))

    def newest_cursor(self) -> str:
        """Return the cursor of the first task in the list; "" for an empty list."""
        first = self.order.apply(self._sortable()).only("pk", self.order.column).first()
        return self.order.cursor_of(first) if first else ""

    def count_newer(self, cursor: str) -> int:
        """Count the tasks before the cursor, up to ``MAX_NEWER + 1``."""
        newer = self.order.before_cursor(cursor)
        if newer is None:
            return 0
        return len(self.order.apply(self.matching().filter(newer)).values_list("pk", flat=True)[: MAX_NEWER + 1])

    @cached_property
    def _index_order(self) -> Order:
        """The order in which an index yields the matches of the filters."""
        sort = self.parameters.get("sort", "").removeprefix("-")
        if self.filter.filters_end_time or (sort == "finished_at" and self.filter.is_indexed_by_status):
            return Order("finished_at")
        if self.filter.filters_run_time or sort == "duration":
            return Order("run_time")
        # The search index yields records in the order of their keys, which is the order of creation.
        return Order("id" if self.filter.uses_search_index else "created_at")

    def _sortable(self) -> QuerySet[TaskRecord]:
        """Return the tasks to sort: all, or the first 10,000 if no index has this order."""
        if (start := self._window_start) is None:
            return self.matching()
        # SQLite uses its index only for the first of two conditions on a column. This one is more selective.
        window = self._visible.filter((f"{self._index_order.column}__gte", start))
        return TaskFilter(self.parameters, queryset=window, user=self._user).matching(self.status)

    @cached_property
    def _window_start(self) -> object | None:
        if self.order.column == self._index_order.column:
            return None
        values = self._index_order.apply(self.matching()).values_list(self._index_order.column, flat=True)
        return next(iter(values[CAP : CAP + 1]), None)
