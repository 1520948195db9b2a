from __future__ import annotations

from django.contrib import messages
from django.utils.translation import gettext as _

from powercrud_dashboard.dashboard.views.base import TaskActionView
from powercrud_dashboard.exceptions import EnqueueError, TaskAlreadyActive, TaskConflict, TaskNotRetryable
from powercrud_dashboard.models import TaskRecord

#: What a retry may answer with. The last two: the function is gone, or takes other arguments, since a deploy.
REFUSALS = (TaskConflict, TaskNotRetryable, TaskAlreadyActive, EnqueueError, TypeError, ValueError)


class RetryTaskView(TaskActionView):
    """Launch an ended task again and show the new one."""

    required_permission = "retry_taskrecord"

    def act(self, record: TaskRecord) -> TaskRecord:
        try:
            new_name = self.manager_of(record).retry_task(record.task_name, user=self.request.user)  # type: ignore[arg-type]
        except REFUSALS as error:
            messages.error(self.request, str(error))
            return record
        messages.success(self.request, _("The task was queued again."))
        return TaskRecord.objects.filter(task_name=new_name).first() or record
