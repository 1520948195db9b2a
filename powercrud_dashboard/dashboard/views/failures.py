from __future__ import annotations

import time
from typing import Any

from django.utils.functional import cached_property
from django.utils.translation import gettext as _

from powercrud_dashboard.dashboard.counting import Count
from powercrud_dashboard.dashboard.filters import WINDOWS
from powercrud_dashboard.dashboard.selection import actions_for
from powercrud_dashboard.dashboard.tables import FailureTable
from powercrud_dashboard.dashboard.triage import CONSIDERED, FailureGroup, Triage
from powercrud_dashboard.dashboard.views.base import RefreshingPageView
from powercrud_dashboard.models import TaskEvent

#: The windows move on, so the page is made anew after so many seconds at the latest.
STALE_AFTER = 60


class FailuresView(RefreshingPageView):
    """Failures grouped by function and error, with what can be done to a whole group."""

    page_name = "failures"
    template_name = "powercrud_dashboard/failures/page.html"
    partial_template_name = "powercrud_dashboard/failures/_list.html"

    @cached_property
    def triage(self) -> Triage:
        return Triage(self.request.GET, self.request.user)

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        # Before the groups: what happens between the two is then still news.
        state = self.current_state()
        triage = self.triage
        return super().get_context_data(
            title=_("Failures"),
            triage=triage,
            windows=[(name, window.label, name == triage.window) for name, window in WINDOWS.items()],
            table=FailureTable(
                triage.groups,
                group_url=lambda group: self.list_url(group.query),
                function_url=self._function_url,
                task_url=lambda pk: self.url("change", pk),
                actions=[action for action in actions_for(self.request.user) if action.name != "cancel"],
                bulk_url=self.url("bulk"),
                request=self.request,
            ),
            considered=Count(CONSIDERED),
            state=state,
            **kwargs,
        )

    def current_state(self) -> str:
        return f"{TaskEvent.objects.newest_state()}.{int(time.time() // STALE_AFTER)}"

    def _function_url(self, group: FailureGroup) -> str:
        """Return the address of this page with failures of that function only."""
        parameters = self.request.GET.copy()
        parameters["function"] = group.func
        return f"{self.request.path}?{parameters.urlencode()}"
