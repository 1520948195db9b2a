from __future__ import annotations

from django.http import Http404, HttpRequest, HttpResponse
from django.utils.http import content_disposition_header
from django.utils.translation import gettext as _

from powercrud_dashboard.dashboard.views.base import DashboardView
from powercrud_dashboard.models import TaskFile, TaskRecord


class DownloadView(DashboardView):
    """A file that a task has made, for who may see the task."""

    http_method_names = ["get", "head", "options"]

    def get(self, request: HttpRequest, pk: int, file_pk: int) -> HttpResponse:
        record = TaskRecord.objects.visible_to(request.user).filter(pk=pk).values_list("task_name").first()
        if record is None:
            raise Http404(_("There is no such task."))
        kept = TaskFile.objects.results_of(*record).filter(pk=file_pk).defer(None).first()
        if kept is None:
            raise Http404(_("There is no such file."))
        response = HttpResponse(bytes(kept.content), content_type=kept.content_type)
        # What an action made may hold what anybody has typed: it is saved, and never shown as a page of this site.
        response.headers["Content-Disposition"] = content_disposition_header(True, kept.name) or "attachment"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response
