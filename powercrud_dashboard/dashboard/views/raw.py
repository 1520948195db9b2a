from __future__ import annotations

from django.http import Http404, HttpRequest, HttpResponse
from django.utils.translation import gettext as _

from powercrud_dashboard.dashboard.formatting import readable_json
from powercrud_dashboard.dashboard.views.base import DashboardView
from powercrud_dashboard.models import ActiveTask, TaskRecord


class RawTaskView(DashboardView):
    """All that is kept of one task, as one JSON document with secrets masked."""

    http_method_names = ["get", "head", "options"]

    def get(self, request: HttpRequest, pk: int) -> HttpResponse:
        # Only code reads the signed payload, and it may hold what the other columns mask.
        record = TaskRecord.objects.visible_to(request.user).filter(pk=pk).defer("payload").first()
        if record is None:
            raise Http404(_("There is no such task."))
        active = ActiveTask.objects.tasks().filter(task_name=record.task_name).values().first()
        document = {
            "record": {
                field.attname: getattr(record, field.attname)
                for field in record._meta.concrete_fields
                if field.name != "payload"
            },
            "active": active,
            "events": list(record.events.values("event", "timestamp", "actor_label", "message", "payload")),
            "objects": list(record.objects_worked_on.values("model_label", "object_id", "text", "outcome", "error")),
        }
        return HttpResponse(readable_json(document), content_type="application/json; charset=utf-8")
