"""The rows that a person has selected in a changelist: their keys, or the query that finds them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.db.models import QuerySet
from django.db.models.sql import Query

if TYPE_CHECKING:
    from powercrud_dashboard.admin.actions import Admin

#: Selections of more rows than this travel as their query, and are resolved in the worker.
KEYS_AT_MOST = 1_000

#: Rows that a walk over a query reads at once.
READ_AT_ONCE = 1_000


def lock_label(model_admin: Admin) -> str:
    """Return the label that an admin's objects are locked under: the rows of a proxy model are its concrete model's."""
    return (model_admin.opts.concrete_model or model_admin.model)._meta.label_lower


@dataclass(frozen=True)
class Rows:
    """Selected rows, as they travel to a worker: one of the two is there."""

    pks: list[Any] | None = None
    query: Query | None = None

    def __repr__(self) -> str:
        # What people read among the task's arguments.
        return f"{len(self.pks)} rows" if self.pks is not None else "all rows of the filtered list"

    @classmethod
    def of(cls, queryset: QuerySet[Any]) -> Rows:
        """Take the keys of a small selection, and the query of a large one."""
        pks = list(queryset.values_list("pk", flat=True)[: KEYS_AT_MOST + 1])
        if len(pks) <= KEYS_AT_MOST:
            return cls(pks=pks)
        return cls(query=queryset.order_by().query)

    def count_in(self, queryset: QuerySet[Any]) -> int:
        """Return how many rows are selected, in the database of ``queryset``."""
        if self.pks is not None:
            return len(self.pks)
        return self._selected_in(queryset).count()

    def _selected_in(self, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return QuerySet(model=queryset.model, query=self.query, using=queryset.db)

    def filter(self, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Return those of ``queryset`` that were selected."""
        if self.pks is not None:
            return queryset.filter(pk__in=self.pks)
        return queryset.filter(pk__in=self._selected_in(queryset).order_by().values("pk"))

    def chunks(self, queryset: QuerySet[Any], size: int) -> Iterator[list[Any]]:
        """Yield the keys of the selected rows of ``queryset`` in lists of this size, in the order of their keys.

        A query is walked along the keys, so that rows which drop out of it on the way, as they are being worked
        on, neither shift the others nor stop the walk.
        """
        rows = self.filter(queryset).order_by("pk").values_list("pk", flat=True)
        chunk = list(rows[:size])
        while chunk:
            yield chunk
            chunk = list(rows.filter(pk__gt=chunk[-1])[:size])
