from __future__ import annotations

from django.contrib import messages
from django.utils.translation import gettext as _

from powercrud_dashboard.dashboard.views.base import TaskActionView
from powercrud_dashboard.models import TaskRecord


class CancelTaskView(TaskActionView):
    """Cancel a queued task, or ask a running one's worker to stop it."""

    required_permission = "cancel_taskrecord"

    def act(self, record: TaskRecord) -> TaskRecord:
        if not self.manager_of(record).cancel_task(record.task_name, user=self.request.user):  # type: ignore[arg-type]
            messages.warning(self.request, _("The task has ended already, or is being cancelled."))
            return record
        record.refresh_from_db(fields=["status"])
        if record.is_finished:
            messages.success(self.request, _("The task was cancelled."))
        else:
            messages.success(self.request, _("The task was asked to stop; it will end in a few seconds."))
        return record
