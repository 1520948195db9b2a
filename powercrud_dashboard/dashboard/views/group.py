from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, QueryDict
from django.shortcuts import redirect
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from powercrud_dashboard import access
from powercrud_dashboard.dashboard.groups import TaskGroup
from powercrud_dashboard.dashboard.listing import WIDE
from powercrud_dashboard.dashboard.live import live_tasks
from powercrud_dashboard.dashboard.selection import ACT_ON_AT_MOST
from powercrud_dashboard.dashboard.views.base import DashboardView, RefreshingPageView
from powercrud_dashboard.dashboard.views.retry import REFUSALS
from powercrud_dashboard.models import TaskRecord, TaskStatus

#: Tasks shown on the page; a link leads to all.
SHOWN_TASKS = 50

#: Refusals that a message names; their number is exact.
NAMED_REFUSALS = 5

PERMISSIONS = {"cancel": "cancel_taskrecord", "retry": "retry_taskrecord"}


class GroupView(RefreshingPageView):
    """Tasks that belong together, as one: their progress, and what can be done to all of them."""

    page_name = "changelist"
    template_name = "powercrud_dashboard/group/page.html"
    partial_template_name = "powercrud_dashboard/group/_group.html"

    group: TaskGroup

    def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        self.group = TaskGroup(self.kwargs["group"], request.user)
        if not self.group.exists:
            raise Http404(_("There is no such group of tasks."))
        return super().get(request, *args, **kwargs)

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        group = self.group
        records = list(group.tasks.defer(*WIDE).order_by("pk")[:SHOWN_TASKS])
        live = live_tasks(records)
        query = QueryDict(mutable=True)
        query["group"] = group.name
        return super().get_context_data(
            title=_("Group: %(label)s") % {"label": records[0].label if records else group.name},
            group=group,
            counts=[(status, status.label, group.count(status)) for status in TaskStatus if group.count(status)],
            tasks=[(record, live.get(record.task_name), self.url("change", record.pk)) for record in records],
            has_more=sum(part.tasks for part in group.parts.values()) > len(records),
            list_of_group_url=self.list_url(query.urlencode()),
            actions=[(label, self.url("group_action", group.name, name)) for name, label in self._offered()],
            **kwargs,
        )

    def _offered(self) -> list[tuple[str, str]]:
        group, offered = self.group, []
        if not group.is_finished:
            offered.append(("cancel", _("Cancel all that have not ended")))
        if group.count(TaskStatus.FAILED) or group.count(TaskStatus.CANCELLED):
            offered.append(("retry", _("Retry all that failed or were cancelled")))
        return [(name, label) for name, label in offered if access.has_permission(self.request.user, PERMISSIONS[name])]


class GroupActionView(DashboardView):
    """Cancel or retry what there is to cancel or retry of a group."""

    http_method_names = ["post", "options"]
    page_name = "changelist"

    def post(self, request: HttpRequest, group: str, action: str) -> HttpResponse:
        if action not in PERMISSIONS:
            raise Http404
        if not access.has_permission(request.user, PERMISSIONS[action]):
            raise PermissionDenied
        chosen = TaskGroup(group, request.user)
        if not chosen.exists:
            raise Http404(_("There is no such group of tasks."))
        if action == "cancel":
            self._cancel(chosen)
        else:
            self._retry(chosen)
        return redirect(self.url("group", group))

    def _cancel(self, group: TaskGroup) -> None:
        records = group.unfinished().defer(*WIDE)[:ACT_ON_AT_MOST]
        done = sum(self.manager_of(record).cancel_task(record.task_name, user=self.request.user) for record in records)  # type: ignore[arg-type]
        words = ngettext("%(count)d task is being cancelled.", "%(count)d tasks are being cancelled.", done)
        messages.success(self.request, words % {"count": done})

    def _retry(self, group: TaskGroup) -> None:
        done, refused = 0, []
        for record in group.not_done().defer(*WIDE)[:ACT_ON_AT_MOST]:
            if reason := self._retry_one(record):
                refused.append(reason)
            else:
                done += 1
        if done:
            words = ngettext("%(count)d task was queued again.", "%(count)d tasks were queued again.", done)
            messages.success(self.request, words % {"count": done})
        if refused:
            words = ngettext("%(count)d task was not: %(why)s", "%(count)d tasks were not: %(why)s", len(refused))
            named = " ".join(refused[:NAMED_REFUSALS]) + (" …" if len(refused) > NAMED_REFUSALS else "")
            messages.warning(self.request, words % {"count": len(refused), "why": named})

    def _retry_one(self, record: TaskRecord) -> str:
        try:
            self.manager_of(record).retry_task(record.task_name, user=self.request.user)  # type: ignore[arg-type]
        except REFUSALS as error:
            return str(error)
        return ""
