from __future__ import annotations

from django.contrib import messages
from django.utils.translation import gettext as _

from powercrud_dashboard import retrying
from powercrud_dashboard.dashboard.views.base import TaskActionView
from powercrud_dashboard.dashboard.views.retry import REFUSALS
from powercrud_dashboard.models import TaskRecord


class RetryObjectsView(TaskActionView):
    """Launch an ended task again for those of its objects that it did not get done."""

    required_permission = "retry_taskrecord"

    def act(self, record: TaskRecord) -> TaskRecord:
        manager = self.manager_of(record)
        try:
            changes = retrying.for_objects_not_done(record)
            new_name = manager.retry_task(record.task_name, user=self.request.user, **changes)  # type: ignore[arg-type]
        except REFUSALS as error:
            messages.error(self.request, str(error))
            return record
        messages.success(self.request, _("The task was queued again for the objects that were not done."))
        return TaskRecord.objects.filter(task_name=new_name).first() or record
