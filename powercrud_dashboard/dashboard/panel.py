"""What the admin's index says of background tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.http import QueryDict
from django.utils.translation import gettext_lazy as _

from powercrud_dashboard.dashboard.counting import Count, capped_counts
from powercrud_dashboard.dashboard.listing import Listing
from powercrud_dashboard.models import TaskStatus

if TYPE_CHECKING:
    from powercrud_dashboard.access import Person


@dataclass(frozen=True)
class PanelLine:
    label: Any
    status: str
    #: The query of the task list that shows these tasks.
    query: str
    count: Count


LINES = (
    (_("Running"), TaskStatus.IN_PROGRESS, f"status={TaskStatus.IN_PROGRESS}"),
    (_("Queued"), TaskStatus.PENDING, f"status={TaskStatus.PENDING}"),
    (_("Failed in the last 24 hours"), TaskStatus.FAILED, f"status={TaskStatus.FAILED}&within=24h"),
)


def panel_lines(user: Person) -> list[PanelLine]:
    """Return how many of the tasks that this person may see run, wait and have failed of late, in one query."""
    counts = capped_counts({query: Listing(QueryDict(query), user).to_count(status) for _label, status, query in LINES})
    return [PanelLine(label, str(status), query, counts[query]) for label, status, query in LINES]
