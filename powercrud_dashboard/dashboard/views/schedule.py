from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.contrib import messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from powercrud_dashboard import access, timetable
from powercrud_dashboard.dashboard.views.base import DashboardView

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScheduleAction:
    """What can be done to a schedule, and the words for it."""

    #: Returns False if it could not be done.
    act: Callable[[Any], object]
    done: Any
    refused: Any = ""


ACTIONS = {
    "run": ScheduleAction(timetable.run_now, gettext_lazy("“%(schedule)s” was queued to run now.")),
    "pause": ScheduleAction(
        timetable.pause,
        gettext_lazy("“%(schedule)s” is paused."),
        gettext_lazy("“%(schedule)s” has no further run that could be paused."),
    ),
    "resume": ScheduleAction(
        timetable.resume,
        gettext_lazy("“%(schedule)s” runs again as scheduled."),
        gettext_lazy("“%(schedule)s” is not paused."),
    ),
}


class ScheduleActionView(DashboardView):
    """Run a schedule now, pause or resume it. The admin's history of the schedule keeps who did it."""

    http_method_names = ["post", "options"]
    page_name = "cluster"
    required_permission = "view_taskrecord"

    def post(self, request: HttpRequest, pk: int, action: str) -> HttpResponse:
        if not access.may_change_schedules(request.user):
            raise PermissionDenied
        if action not in ACTIONS:
            raise Http404
        schedule = timetable.find(pk)
        if schedule is None:
            messages.error(request, _("There is no such schedule any more."))
        else:
            self._do(ACTIONS[action], schedule)
        return redirect(self.url("cluster"))

    def _do(self, action: ScheduleAction, schedule: Any) -> None:
        name = {"schedule": schedule.name or schedule.func}
        try:
            with transaction.atomic():
                if action.act(schedule) is False:
                    messages.warning(self.request, action.refused % name)
                    return
                LogEntry.objects.log_actions(
                    self.request.user.pk,  # type: ignore[arg-type]
                    [schedule],
                    CHANGE,
                    str(action.done % name),
                )
        except Exception as error:
            # A broker that is away, arguments that can't be read, a cron expression without croniter.
            logger.exception("The schedule %s could not be acted on", schedule.pk)
            messages.error(
                self.request,
                _("“%(schedule)s” stays as it was (%(error)s). Correct it in its form, or see whether its broker runs.")
                % {**name, "error": f"{type(error).__name__}: {error}"},
            )
            return
        messages.success(self.request, action.done % name)
