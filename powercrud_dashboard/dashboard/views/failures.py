"""Failed tasks, grouped by function and error."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from django.db import models
from django.db.models import Max, OuterRef, Q, Subquery
from django.db.models.functions import Coalesce, Left
from django.http import QueryDict
from django.utils.functional import cached_property
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, pgettext

from powercrud_dashboard.dashboard import access
from powercrud_dashboard.dashboard.filters import ALL_FAILURES, WINDOWS
from powercrud_dashboard.dashboard.formatting import Moment
from powercrud_dashboard.dashboard.listing import Count, Listing
from powercrud_dashboard.dashboard.rows import ANY_KEY
from powercrud_dashboard.dashboard.selection import BulkAction, actions_for_all
from powercrud_dashboard.dashboard.tables import FailureRow, FailureTable
from powercrud_dashboard.dashboard.views.base import RefreshingPageView
from powercrud_dashboard.models import Resolution, TaskEvent, TaskRecord, TaskStatus
from powercrud_dashboard.models.database import database_now
from powercrud_dashboard.text import GAP, MESSAGE

if TYPE_CHECKING:
    from powercrud_dashboard.dashboard.access import User

DEFAULT_WINDOW = "24h"

#: What an empty page says.
_EMPTY = {
    Resolution.OPEN.value: gettext_lazy("No failure is open in this period."),
    ALL_FAILURES: gettext_lazy("No task failed in this period."),
}

#: The number of failures that are grouped, the newest first.
MAX_FAILURES = 10_000

#: The number of groups that are shown.
MAX_GROUPS = 200


@dataclass(frozen=True)
class FailureGroup:
    """Failures of one function whose errors differ only in variable parts, such as names and numbers."""

    func: str
    exception_class: str
    pattern: str
    count: int
    #: How many of them a retry is queued or running for.
    retried: int
    #: Whether some of them can be retried, and were not only observed.
    is_retryable: bool
    #: When such a failure was seen first, however long ago.
    first: datetime
    #: When the last of these tasks ended.
    last: datetime
    newest_pk: int
    #: The last line of the newest error, with the parts that the pattern leaves out; "" if it leaves nothing out.
    newest_error: str
    #: Query string of the task list for exactly these tasks; "" for errors without a pattern.
    query: str

    @property
    def element_id(self) -> str:
        """What tells its elements from those of the other groups on the page."""
        kind = "\n".join((self.func, self.pattern))
        return hashlib.blake2s(kind.encode(errors="surrogatepass"), digest_size=6).hexdigest()


class _Newest(NamedTuple):
    first_seen: datetime
    last_line: str


class FailureSummary:
    """The failures that the user may see, for the time window and the function in the query parameters."""

    def __init__(self, parameters: QueryDict, user: User) -> None:
        window = parameters.get("within", "")
        self.window = window if window in WINDOWS else DEFAULT_WINDOW
        self.function = parameters.get("function", "").strip()
        resolution = parameters.get("resolution", "")
        self.resolution = resolution if resolution in (*Resolution.values, ALL_FAILURES) else Resolution.OPEN.value
        self._user = user

    @cached_property
    def groups(self) -> list[FailureGroup]:
        """The groups, largest first."""
        failed = Listing(QueryDict(self._query()), self._user).matching()
        newest = failed.order_by("-finished_at", "-pk").values("pk")[:MAX_FAILURES]
        # Not by a query for each failure.
        under_way = TaskRecord.objects.unfinished().values("chain")
        rows = list(
            TaskRecord.objects.filter(pk__in=newest)
            # By what the list can be filtered. The pattern begins with the name of the class, which others may share.
            .values("func", "error_pattern")
            .annotate(
                a_class=Max("exception_class"),
                count=models.Count("pk"),
                retried=models.Count("pk", filter=Q(chain__in=under_way) | Q(pk__in=under_way)),
                retryable=models.Count("pk", filter=Q(source__in=access.sources_for("retry_taskrecord"))),
                last=Max("finished_at"),
                newest_pk=Max("pk"),
            )
            .order_by("-count", "-last")[:MAX_GROUPS]
        )
        newest_by_pk = self._newest([row["newest_pk"] for row in rows])
        return [
            FailureGroup(
                func=row["func"],
                exception_class=row["a_class"],
                pattern=row["error_pattern"],
                count=row["count"],
                retried=row["retried"],
                is_retryable=row["retryable"] > 0,
                first=newest_by_pk[row["newest_pk"]].first_seen,
                newest_error=newest_by_pk[row["newest_pk"]].last_line if GAP in row["error_pattern"] else "",
                last=row["last"],
                newest_pk=row["newest_pk"],
                query=self._query(function=row["func"], pattern=row["error_pattern"]) if row["error_pattern"] else "",
            )
            for row in rows
        ]

    def _newest(self, pks: list[int]) -> dict[int, _Newest]:
        """Return what is shown of each of these records, and when a failure like it was seen first."""
        alike = TaskRecord.objects.visible_to(self._user).exclude(resolution="")
        same = {name: OuterRef(name) for name in ("error_pattern", "func")}
        first = alike.filter(**same, finished_at__isnull=False).order_by("finished_at").values("finished_at")[:1]
        rows = TaskRecord.objects.filter(pk__in=pks).values_list(
            "pk", Coalesce(Subquery(first), "finished_at"), Left("error", MESSAGE)
        )
        return {pk: _Newest(first_seen, error.strip().rpartition("\n")[2].strip()) for pk, first_seen, error in rows}

    @property
    def is_bounded(self) -> bool:
        """Whether some failures in the window may be missing from the groups."""
        return len(self.groups) == MAX_GROUPS or sum(group.count for group in self.groups) >= MAX_FAILURES

    def _query(self, **filters: str) -> str:
        parameters = QueryDict(mutable=True)
        parameters["status"] = str(TaskStatus.FAILED)
        parameters["within"] = self.window
        if self.resolution != Resolution.OPEN:
            parameters["resolution"] = self.resolution
        if self.function:
            parameters["function"] = self.function
        for name, value in filters.items():
            parameters[name] = value
        return parameters.urlencode()


#: The page is rendered again after this many seconds, because the time window moves.
STALE_AFTER = 60


class FailuresView(RefreshingPageView):
    """Failures grouped by function and error, with actions on each group."""

    page_name = "failures"
    template_name = "powercrud_dashboard/failures/page.html"
    partial_template_name = "powercrud_dashboard/failures/_list.html"

    @cached_property
    def summary(self) -> FailureSummary:
        return FailureSummary(self.request.GET, self.request.user)

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        # Read the version before the groups, so that the next refresh includes concurrent changes.
        version = self.current_version()
        summary = self.summary
        actions = [
            action
            for action in actions_for_all(self.request.user)
            if TaskStatus.FAILED in action.statuses and summary.resolution in action.resolutions
        ]
        return super().get_context_data(
            title=pgettext("of tasks", "Failures"),
            summary=summary,
            resolutions=[
                (value, label, value == summary.resolution)
                for value, label in (*Resolution.choices, (ALL_FAILURES, _("All")))
            ],
            actions=actions,
            bulk_url=self.url("bulk"),
            windows=[(name, window.label, name == summary.window) for name, window in WINDOWS.items()],
            table=FailureTable(
                summary.groups,
                row=self._rows(actions),
                is_actionable=bool(actions),
                bulk_url=self.url("bulk"),
                request=self.request,
                empty_text=str(_EMPTY.get(summary.resolution, _("No such failure in this period."))),
            ),
            limit=Count(MAX_FAILURES),
            version=version,
            **kwargs,
        )

    def current_version(self) -> str:
        return f"{TaskEvent.objects.newest_state()}.{int(time.time() // STALE_AFTER)}"

    def _rows(self, actions: list[BulkAction]) -> Callable[[FailureGroup], FailureRow]:
        """Return what makes the row of a group. URLs that rows have in common are looked up once."""
        now, list_url, task_url = database_now(), self.list_url(), self.url("change", ANY_KEY)
        parameters = self.request.GET.copy()
        without_retry = [action for action in actions if action.name != "retry"]

        def row(group: FailureGroup) -> FailureRow:
            parameters["function"] = group.func
            return FailureRow(
                group=group,
                url=f"{list_url}?{group.query}" if group.query else "",
                function_url=f"{self.request.path}?{parameters.urlencode()}",
                changed_url=self.function_url(group.func, group.pattern),
                first=Moment.of(group.first, now),
                last=Moment.of(group.last, now),
                newest_url=task_url.replace(str(ANY_KEY), str(group.newest_pk)),
                actions=actions if group.is_retryable else without_retry,
            )

        return row
