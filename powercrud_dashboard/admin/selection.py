"""The rows selected in a changelist: their keys, or all rows of the changelist."""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Iterable, Iterator
from contextvars import Context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from django.contrib.admin.views.main import ALL_VAR, ORDER_VAR, PAGE_VAR
from django.core.paginator import Paginator
from django.db import connections
from django.db.models import Count, QuerySet
from django.http import HttpRequest, QueryDict
from django.utils.translation import gettext_lazy

from powercrud_dashboard.admin.request import as_at_click, surroundings_of, worker_request
from powercrud_dashboard.engine import locks
from powercrud_dashboard.models.database import OTHER_PARAMETERS, one_column
from powercrud_dashboard.models.labels import row_label
from powercrud_dashboard.models.locks import WHOLE_MODEL
from powercrud_dashboard.models.objects import ObjectOutcome, Outcome
from powercrud_dashboard.text import MESSAGE, SHORT, KeptText, clean_text, error_text

if TYPE_CHECKING:
    from powercrud_dashboard.admin.actions import Admin

logger = logging.getLogger(__name__)

#: "Select all" of more rows than this is stored as the query string of the changelist; the worker looks them up.
MAX_KEYS = 1_000

#: Rows read from the database at a time.
READ_CHUNK_SIZE = 1_000

#: Objects that a record describes; the count is exact.
DESCRIBED_OBJECTS = 100

LOCKED_BY = KeptText(gettext_lazy("Locked by %(holder)s"))

#: Query parameters of a changelist that do not filter its rows.
NO_FILTERS = (ALL_VAR, ORDER_VAR, PAGE_VAR)


def lock_label(model_admin: Admin) -> str:
    """Return the label under which the rows of the admin are locked and recorded."""
    return row_label(model_admin.model)


def filters_of(request: HttpRequest) -> str:
    """Return the normalized query string of the filters of the changelist."""
    filters = QueryDict(mutable=True)
    for name, values in sorted(request.GET.lists()):
        if name not in NO_FILTERS:
            filters.setlist(name, values)
    return filters.urlencode()


def locked_rows(label: str, pks: list[Any], *, except_for: str = "") -> dict[Any, str]:
    """Return the rows of a model that are locked by others than the task ``except_for``: their holders by key."""
    found = locks.locks_by_key(label, pks, except_for=except_for)
    on_model = found.get(WHOLE_MODEL)
    return {pk: str(lock.active_task) for pk in pks if (lock := on_model or found.get(str(pk)))}


def outcomes_of_locked(label: str, holders: dict[Any, str], rows: QuerySet[Any]) -> list[ObjectOutcome]:
    """Return the outcomes of those of the rows that are skipped because they are locked."""
    names = names_of(rows, holders)
    return [
        ObjectOutcome(
            label, str(pk), Outcome.SKIPPED, error_text(LOCKED_BY(holder=holder), MESSAGE), names.get(str(pk), "")
        )
        for pk, holder in holders.items()
    ]


def names_of(rows: QuerySet[Any], pks: Collection[Any]) -> dict[str, str]:
    """Return what people read of the first of the rows with these keys, by key."""
    described = SelectedRows(rows, list(pks)).described() if pks else []
    return {str(row.pk): clean_text(row, SHORT) for row in described}


def changelist_path(request: HttpRequest) -> str:
    """Return the path of the changelist with its query string, as the ``ModelAdmin`` may have changed it."""
    return f"{request.path}?{request.GET.urlencode()}"


class _UncountedPaginator(Paginator):  # type: ignore[type-arg]
    """A paginator for a changelist whose rows are not shown, so that it does not count them."""

    count = 0


@dataclass(frozen=True)
class SelectedRows:
    """Selected rows, within a queryset of all rows that can be selected."""

    queryset: QuerySet[Any]
    #: Keys of the selected rows; None for all rows of the queryset.
    pks: list[Any] | None

    @classmethod
    def of_click(cls, model_admin: Admin, request: HttpRequest, queryset: QuerySet[Any]) -> SelectedRows:
        """Return the rows of the queryset of an admin action.

        "Select all" of many rows does not read their keys, if a worker finds the same rows from the query string. It
        does not if the changelist depends on the session, for instance.
        """
        keys = queryset.values_list("pk", flat=True)
        if (
            request.POST.get("select_across") == "1"
            and len(keys[: MAX_KEYS + 1]) > MAX_KEYS
            # Without the context variables of the request, such as the current tenant.
            and Context().run(_is_found_by_worker, model_admin, request, queryset)
        ):
            return cls(queryset, None)
        return cls(queryset, None).restricted_to(keys)

    @classmethod
    def of_changelist(cls, model_admin: Admin, request: HttpRequest) -> SelectedRows:
        """Return all rows of the changelist at the path of a click, as its user finds them."""
        match, request = request.resolver_match, copy.copy(request)
        request.resolver_match = match
        request.method, request.POST = "GET", QueryDict()
        # Without the page number, because that page may no longer exist.
        request.GET = QueryDict(filters_of(request))
        uncounted: Any = copy.copy(model_admin)
        uncounted.show_full_result_count = False
        uncounted.paginator = _UncountedPaginator
        return cls(uncounted.get_changelist_instance(request).get_queryset(request).order_by(), None)

    def restricted_to(self, pks: Iterable[Any]) -> SelectedRows:
        """Return only the rows with these keys, each once and in their own order: a selection is a set."""
        return SelectedRows(self.queryset, sorted(set(pks)))

    def after(self, last: Any) -> SelectedRows:
        """Return only the rows with later keys than this one; all after None."""
        if last is None:
            return self
        if self.pks is not None:
            return self.restricted_to(pk for pk in self.pks if pk > last)
        return SelectedRows(self.queryset.filter(pk__gt=last), None)

    def count(self) -> int:
        if self.pks is not None:
            return len(self.pks)
        if len(self.queryset.query.alias_map) > 1:
            # A join may yield a row several times.
            distinct: int = self.queryset.order_by().aggregate(rows=Count("pk", distinct=True))["rows"]
            return distinct
        return self.queryset.count()

    def selected(self) -> QuerySet[Any]:
        """Return the selected rows."""
        if self.pks is None:
            return self.queryset
        connection = connections[self.queryset.db]
        limit = connection.features.max_query_params
        if connection.vendor == "sqlite" and limit and len(self.pks) > limit - OTHER_PARAMETERS:
            prepare = self.queryset.model._meta.pk.get_db_prep_value
            keys = one_column([str(prepare(pk, connection)) for pk in self.pks], using=self.queryset.db)
            return self.queryset.filter(pk__in=cast(Any, keys))
        return self.queryset.filter(pk__in=self.pks)

    def described(self) -> list[Any]:
        """Return the first of the selected rows, each once, for people to read."""
        rows = self.queryset if self.pks is None else self.queryset.filter(pk__in=self.pks[:DESCRIBED_OBJECTS])
        return list({row.pk: row for row in rows[:DESCRIBED_OBJECTS]}.values())

    def among(self, texts: list[str]) -> set[str]:
        """Return those of these keys, given as text, that belong to selected rows."""
        to_python = self.queryset.model._meta.pk.to_python
        keys = [to_python(text) for text in texts]
        return {str(pk) for pk in self.selected().filter(pk__in=keys).values_list("pk", flat=True)}

    def keys_after(self, last: Any, size: int) -> list[Any]:
        """Return the next keys of the selected rows, at most this many, in order; the first ones after None."""
        rows = self.selected().order_by("pk")
        keys = (rows if last is None else rows.filter(pk__gt=last)).values_list("pk", flat=True)
        # A queryset with joins may have a row several times.
        return list(dict.fromkeys(keys[:size]))

    def chunks(self, size: int) -> Iterator[list[Any]]:
        """Yield the keys of the selected rows in lists of at most this size, in order.

        Uses keyset paging, so the task may change rows in ways that remove them from the selection.
        """
        if self.pks is not None:
            for start in range(0, len(self.pks), size):
                part = self.restricted_to(self.pks[start : start + size]).selected()
                yield list(dict.fromkeys(part.order_by("pk").values_list("pk", flat=True)))
            return
        last: Any = None
        while chunk := self.keys_after(last, size):
            yield chunk
            last = chunk[-1]


def _is_found_by_worker(model_admin: Admin, request: HttpRequest, queryset: QuerySet[Any]) -> bool:
    """Return whether a worker would select these rows, which is so if the SQL is the same."""
    path, surroundings = changelist_path(request), surroundings_of(request)
    try:
        with as_at_click(surroundings):
            in_worker = SelectedRows.of_changelist(model_admin, worker_request(request.user, path, {}, surroundings))
            return str(in_worker.queryset.query) == str(queryset.order_by().query)
    except Exception:
        # The code of the project's changelist may need more than a worker has, such as a session.
        logger.debug("The selection at %s is kept by its keys", path, exc_info=True)
        return False
