"""The tries of a task, a chain of retries: what they know of each other."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from django.db import models, transaction
from django.db.models import Exists, OuterRef, Q
from django.db.models.functions import Coalesce

from powercrud_dashboard.models.statuses import Resolution, TaskStatus

Record = TypeVar("Record", bound=models.Model)


class ChainQuerySet(models.QuerySet[Record]):
    """Records whose deletion leaves the rest of their chains as it is."""

    def delete(self) -> tuple[int, dict[str, int]]:
        """Delete the records, with what belongs to them, as Django does."""
        with self.leaving_chains():
            return super().delete()

    # As those of Django's own: managers have no such method.
    delete.alters_data = True  # type: ignore[attr-defined]
    delete.queryset_only = True  # type: ignore[attr-defined]

    @contextmanager
    def leaving_chains(self) -> Iterator[None]:
        """Delete the records in this block, in a transaction. The other tries keep what they knew by them."""
        with transaction.atomic(using=self.db):
            failed_retries = self.exclude(resolution="").exclude(chain=None)
            chains = list(failed_retries.order_by().values_list("chain", flat=True).distinct())
            self._note_partial_retries()
            yield
            self._all().count_last_failures(chains)

    def count_last_failures(self, chains: Collection[int | None]) -> None:
        """Count the last unresolved failure of these chains, after later ones were resolved or deleted."""
        if not chains:
            return
        tries = self._all().filter(Q(pk__in=chains) | Q(chain__in=chains), superseded=True)
        later = self._all().filter(chain=OuterRef("chain_or_pk"), pk__gt=OuterRef("pk"), status=TaskStatus.FAILED)
        is_last = ~Exists(later.exclude(resolution=Resolution.RESOLVED))
        tries.alias(chain_or_pk=Coalesce("chain", "pk")).filter(is_last).update(superseded=False)

    def _note_partial_retries(self) -> None:
        """Note that the retries of these records are for some objects only, if these are."""
        partial = list(self.filter(is_partial=True).values_list("pk", flat=True))
        while partial:
            retries = self._all().filter(retry_of__in=partial, is_partial=False)
            found = list(retries.values_list("pk", flat=True))
            retries.update(is_partial=True)
            # Their retries keep their place in the chain, unless they are deleted as well.
            partial = list(self.filter(pk__in=found).values_list("pk", flat=True))

    def _all(self) -> Any:
        return self.model._default_manager.using(self.db)
