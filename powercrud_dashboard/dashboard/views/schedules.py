from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.contrib import messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from powercrud_dashboard.dashboard import access
from powercrud_dashboard.dashboard.schedules import ShownSchedule, not_synced, shown_schedules
from powercrud_dashboard.dashboard.views.base import DashboardView, ObjectLinks, RefreshingPageView
from powercrud_dashboard.exceptions import TaskAlreadyActive, TaskConflict
from powercrud_dashboard.models.database import database_now
from powercrud_dashboard.q2 import schedules
from powercrud_dashboard.q2.schedules import ScheduleState
from powercrud_dashboard.schedules import RUN_PATH, ScheduledTask, declared_schedules

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScheduleRow:
    """A schedule with the URLs of what the page links to, and its buttons as (label, URL)."""

    shown: ShownSchedule
    runs_url: str
    function_url: str
    #: Of django-q2's page of it; "" where the code declares it, or for who may not open that page.
    edit_url: str
    actions: list[tuple[str, str]]


class ScheduleListView(RefreshingPageView):
    """django-q2's schedules with their runs, those that have failed first."""

    page_name = "schedules"
    required_permission = "view_taskrecord"
    template_name = "powercrud_dashboard/schedules/page.html"
    partial_template_name = "powercrud_dashboard/schedules/_list.html"

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        shown = shown_schedules(lambda record: self.url("change", record.pk))
        links = ObjectLinks(self.site, self.request)
        return super().get_context_data(
            title=_("Schedules"),
            now=database_now(),
            schedules=[self._row(schedule, links) for schedule in shown],
            not_synced=not_synced(shown),
            **kwargs,
        )

    def _row(self, shown: ShownSchedule, links: ObjectLinks) -> ScheduleRow:
        return ScheduleRow(
            shown,
            self.list_of(group=shown.state.group) if shown.runs else "",
            self.function_url(shown.func) if shown.runs else "",
            "" if shown.calls_declared else links.url("django_q.schedule", str(shown.state.schedule.pk)),
            self._actions(shown.state) if access.may_change_schedules(self.request.user) else [],
        )

    def _actions(self, state: ScheduleState) -> list[tuple[str, str]]:
        actions = {
            "run": _("Run now"),
            **({"pause": _("Pause")} if state.can_pause else {}),
            **({"resume": _("Resume")} if state.is_paused else {}),
        }
        return [(label, self.url("schedule", state.schedule.pk, name)) for name, label in actions.items()]


@dataclass(frozen=True)
class ScheduleAction:
    """An action on a schedule, and its messages."""

    #: Returns False if the action is not possible.
    run: Callable[[Any], object]
    success_message: Any
    refusal_message: Any = ""


ACTIONS = {
    "run": ScheduleAction(schedules.run_now, gettext_lazy("“%(schedule)s” was queued to run now.")),
    "pause": ScheduleAction(
        schedules.pause,
        gettext_lazy("“%(schedule)s” is paused."),
        gettext_lazy("“%(schedule)s” has no further runs to pause."),
    ),
    "resume": ScheduleAction(
        schedules.resume,
        gettext_lazy("“%(schedule)s” runs again as scheduled."),
        gettext_lazy("“%(schedule)s” is not paused."),
    ),
}


class ScheduleActionView(DashboardView):
    """Run a schedule now, pause it or resume it. The admin log records the user."""

    http_method_names = ["post", "options"]
    page_name = "schedules"
    required_permission = "view_taskrecord"

    def post(self, request: HttpRequest, pk: int, action: str) -> HttpResponse:
        if not access.may_change_schedules(request.user):
            raise PermissionDenied
        if action not in ACTIONS:
            raise Http404
        schedule = schedules.find(pk)
        if schedule is None:
            messages.error(request, _("The schedule no longer exists."))
        else:
            self._perform(ACTIONS[action], schedule)
        return HttpResponseRedirect(self.url("schedules"))

    def _perform(self, action: ScheduleAction, schedule: Any) -> None:
        name = {"schedule": schedule.name or schedule.func}
        try:
            with transaction.atomic():
                if self._run(action, schedule) is False:
                    messages.warning(self.request, action.refusal_message % name)
                    return
                LogEntry.objects.log_actions(
                    self.request.user.pk,  # type: ignore[arg-type]
                    [schedule],
                    CHANGE,
                    str(action.success_message % name),
                )
        except (TaskAlreadyActive, TaskConflict) as error:
            messages.error(self.request, self.explain(error))
            return
        except Exception as error:
            # For example: an unavailable broker, invalid arguments, or a cron expression without croniter.
            logger.exception("Action on schedule %s failed", schedule.pk)
            messages.error(
                self.request,
                _("“%(schedule)s” was not changed (%(error)s). Check the schedule, and that its broker is running.")
                % {**name, "error": f"{type(error).__name__}: {error}"},
            )
            return
        messages.success(self.request, action.success_message % name)

    def _run(self, action: ScheduleAction, schedule: Any) -> object:
        declared = self._declared(schedule) if action is ACTIONS["run"] else None
        # Launched here, so that the person who does it sees why it can't be.
        return action.run(schedule) if declared is None else declared.launch(self.request.user)

    @staticmethod
    def _declared(schedule: Any) -> ScheduledTask | None:
        return declared_schedules().get(schedule.name or "") if schedule.func == RUN_PATH else None
