"""Failed tasks by what went wrong, so that a hundred failures of one cause are one line."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from django.db.models import Count, Max, Min
from django.http import QueryDict
from django.utils.functional import cached_property

from powercrud_dashboard.dashboard.filters import WINDOWS
from powercrud_dashboard.dashboard.listing import Listing
from powercrud_dashboard.models import TaskRecord, TaskStatus

if TYPE_CHECKING:
    from powercrud_dashboard.access import Person

DEFAULT_WINDOW = "24h"

#: So many of the newest failures are grouped; a burst of more is of one cause, as a rule.
CONSIDERED = 10_000

#: Groups beyond so many are not shown.
GROUPS_AT_MOST = 200


@dataclass(frozen=True)
class FailureGroup:
    """Failures of one function whose errors differ in nothing but names, numbers and the like."""

    func: str
    exception_class: str
    pattern: str
    count: int
    first: datetime
    last: datetime
    newest_pk: int
    #: The query of the task list that shows exactly these; "" for errors without a pattern to find them by.
    query: str


class Triage:
    """The failures that this person may see of the window, and perhaps function, that an address names."""

    def __init__(self, parameters: QueryDict, user: Person) -> None:
        asked = parameters.get("within", "")
        self.window = asked if asked in WINDOWS else DEFAULT_WINDOW
        self.function = parameters.get("function", "").strip()
        self._user = user

    @cached_property
    def groups(self) -> list[FailureGroup]:
        """The groups, the largest first."""
        failed = Listing(QueryDict(self._query()), self._user).matching()
        newest = failed.order_by("-finished_at", "-pk").values("pk")[:CONSIDERED]
        rows = (
            TaskRecord.objects.filter(pk__in=newest)
            .values("func", "exception_class", "error_pattern")
            .annotate(count=Count("pk"), first=Min("finished_at"), last=Max("finished_at"), newest_pk=Max("pk"))
            .order_by("-count", "-last")[:GROUPS_AT_MOST]
        )
        return [
            FailureGroup(
                func=row["func"],
                exception_class=row["exception_class"],
                pattern=row["error_pattern"],
                count=row["count"],
                first=row["first"],
                last=row["last"],
                newest_pk=row["newest_pk"],
                query=self._query(function=row["func"], pattern=row["error_pattern"]) if row["error_pattern"] else "",
            )
            for row in rows
        ]

    @property
    def is_bounded(self) -> bool:
        """Whether there may be failures in this window that are in no group."""
        return len(self.groups) == GROUPS_AT_MOST or sum(group.count for group in self.groups) >= CONSIDERED

    def _query(self, **narrower: str) -> str:
        parameters = QueryDict(mutable=True)
        parameters["status"] = str(TaskStatus.FAILED)
        parameters["within"] = self.window
        if self.function:
            parameters["function"] = self.function
        for name, value in narrower.items():
            parameters[name] = value
        return parameters.urlencode()
