from __future__ import annotations

from django.contrib import messages
from django.utils.translation import gettext as _

from powercrud_dashboard.dashboard.views.base import TaskActionView
from powercrud_dashboard.models import TaskRecord


class RunNowView(TaskActionView):
    """Queue a task that waits for its next try at once."""

    required_permission = "retry_taskrecord"

    def act(self, record: TaskRecord) -> TaskRecord:
        if self.manager_of(record).run_task_now(record.task_name, user=self.request.user):  # type: ignore[arg-type]
            messages.success(self.request, _("The task is queued and does not wait any longer."))
        else:
            messages.warning(self.request, _("The task does not wait for a next try (any more)."))
        return record
