from __future__ import annotations

from django.contrib import messages
from django.contrib.admin.models import DELETION, LogEntry
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.utils.html import format_html, format_html_join
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.generic.base import TemplateResponseMixin

from powercrud_dashboard import access, cleanup
from powercrud_dashboard.dashboard.selection import ACT_ON_AT_MOST, Selection
from powercrud_dashboard.dashboard.views.base import DashboardView
from powercrud_dashboard.dashboard.views.retry import REFUSALS
from powercrud_dashboard.models import TaskRecord

#: Refused tasks that the message names; their number is exact.
NAMED_REFUSALS = 10


class BulkActionView(TemplateResponseMixin, DashboardView):
    """Retry, cancel or delete many tasks: first say what will happen, then do it."""

    http_method_names = ["post", "options"]
    page_name = "changelist"
    template_name = "powercrud_dashboard/tasks/bulk.html"

    def post(self, request: HttpRequest) -> HttpResponse:
        selection = Selection.from_form(request.POST, request.user)
        if selection is None:
            messages.error(request, _("Choose what to do with the selected tasks."))
            return self._back()
        if not access.has_permission(request.user, selection.action.permission):
            raise PermissionDenied
        if not selection.feasible and not selection.left_out:
            messages.warning(request, _("Select tasks first; nothing was changed."))
            return self._back()
        if request.POST.get("confirmed") != "yes":
            return self._ask(selection)
        self._do(selection)
        return self._back()

    def _ask(self, selection: Selection) -> HttpResponse:
        context = self.get_context_data(
            title=_("Are you sure?"),
            selection=selection,
            selected=selection.ticked,
            all_matching=self.request.POST.get("all", ""),
            filter_query=self.request.POST.get("filter", ""),
            act_on_at_most=ACT_ON_AT_MOST,
            up_to=selection.newest_pk,
            back_url=self._back_url(),
        )
        return self.render_to_response(context)

    def _do(self, selection: Selection) -> None:
        refused: list[tuple[TaskRecord, str]] = []
        if selection.action.name == "delete":
            self._delete(selection.feasible)
        else:
            act = self._retry if selection.action.name == "retry" else self._cancel
            refused = [(record, reason) for record in selection.feasible if (reason := act(record))]
        done = len(selection.feasible) - len(refused)
        if done:
            text = ngettext("%(action)s: %(count)d task.", "%(action)s: %(count)d tasks.", done)
            messages.success(self.request, text % {"action": selection.action.label, "count": done})
        not_done = [*refused, *selection.left_out]
        if not_done:
            self._say_not_done(not_done)

    def _say_not_done(self, not_done: list[tuple[TaskRecord, str]]) -> None:
        words = ngettext("%(count)d task was left as it is:", "%(count)d tasks were left as they are:", len(not_done))
        named = format_html_join("; ", "{} ({})", ((record, reason) for record, reason in not_done[:NAMED_REFUSALS]))
        more = " …" if len(not_done) > NAMED_REFUSALS else ""
        messages.warning(self.request, format_html("{} {}{}", words % {"count": len(not_done)}, named, more))

    def _retry(self, record: TaskRecord) -> str:
        try:
            self.manager_of(record).retry_task(record.task_name, user=self.request.user)  # type: ignore[arg-type]
        except REFUSALS as error:
            return str(error)
        return ""

    def _cancel(self, record: TaskRecord) -> str:
        if self.manager_of(record).cancel_task(record.task_name, user=self.request.user):  # type: ignore[arg-type]
            return ""
        return _("has ended already, or is being cancelled")

    def _delete(self, records: list[TaskRecord]) -> None:
        """Delete them all. The admin's log keeps who did it, as the records can't."""
        if records:
            LogEntry.objects.log_actions(self.request.user.pk, records, DELETION)  # type: ignore[arg-type]
            cleanup.delete_records([record.pk for record in records])

    def _back(self) -> HttpResponse:
        return redirect(self._back_url())

    def _back_url(self) -> str:
        """Return the address of the page where the person chose the tasks, which is the list as a rule."""
        return self.next_url(self.list_url(self.request.POST.get("filter", "")))
