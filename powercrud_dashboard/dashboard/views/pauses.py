"""Pause and resume tasks, queues, and functions on all queues."""

from __future__ import annotations

from django.contrib import messages
from django.contrib.admin.models import ADDITION, DELETION, LogEntry
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.translation import gettext as _

from powercrud_dashboard.dashboard import access
from powercrud_dashboard.dashboard.operations import REFUSALS, manager_of
from powercrud_dashboard.dashboard.views.base import DashboardView, TaskActionView
from powercrud_dashboard.engine import pauses
from powercrud_dashboard.exceptions import TaskNotPausable
from powercrud_dashboard.models import Pause, TaskRecord, TaskStatus
from powercrud_dashboard.models.pausing import PauseKind
from powercrud_dashboard.text import SHORT, clean_text


class PauseTaskView(TaskActionView):
    """Pause a queued task, or request the pause of a running one."""

    task_permission = "pause_taskrecord"

    def act(self, record: TaskRecord) -> TaskRecord:
        # A form without the checkbox keeps the locks.
        keep_locks = "keep_locks" in self.request.POST or "asks_for_locks" not in self.request.POST
        try:
            is_done = manager_of(record).pause_task(record.task_name, user=self.request.user, keep_locks=keep_locks)
        except TaskNotPausable as error:
            messages.error(self.request, str(error))
            return record
        record.refresh_from_db(fields=["status"])
        if not is_done:
            messages.warning(self.request, _("The task has already ended, or is paused or being cancelled."))
        elif record.status == TaskStatus.PAUSED:
            messages.success(self.request, _("The task was paused."))
        else:
            messages.success(self.request, _("The task pauses at its next object or item."))
        return record


class ResumeTaskView(TaskActionView):
    """Queue a paused task again."""

    task_permission = "pause_taskrecord"

    def act(self, record: TaskRecord) -> TaskRecord:
        try:
            is_done = manager_of(record).resume_task(record.task_name, user=self.request.user)
        except REFUSALS as error:
            messages.error(self.request, str(error))
            return record
        if is_done:
            messages.success(self.request, _("The task was resumed."))
        else:
            messages.warning(self.request, _("The task is not paused."))
        return record


class _QueueView(DashboardView):
    """Base class of actions on a queue or a function. The admin log records the user."""

    http_method_names = ["post", "options"]
    page_name = "cluster"

    def post(self, request: HttpRequest) -> HttpResponse:
        if not access.may_pause_queues(request.user):
            raise PermissionDenied
        # As it is stored, by which it is found again.
        kind, name = request.POST.get("kind", ""), clean_text(request.POST.get("name", "").strip(), SHORT)
        if kind not in PauseKind.values or not name:
            messages.error(request, _("Name a queue, or the dotted path of a function."))
        else:
            self.act(kind, name)
        back = "cluster" if access.has_permission(request.user, "view_taskrecord") else "changelist"
        return HttpResponseRedirect(self.next_url(self.url(back)))

    def act(self, kind: str, name: str) -> None:
        """Perform the action, and add a message."""
        raise NotImplementedError

    def note(self, pause: Pause, flag: int) -> None:
        LogEntry.objects.log_actions(
            self.request.user.pk,  # type: ignore[arg-type]
            [pause],
            flag,
        )


class PauseQueueView(_QueueView):
    """Let nothing new of a queue, or of a function on all queues, start."""

    def act(self, kind: str, name: str) -> None:
        if not pauses.pause(kind, name, self.request.user, self.request.POST.get("note", "").strip()):
            messages.warning(self.request, _("“%(name)s” is paused already.") % {"name": name})
            return
        self.note(Pause.objects.get(kind=kind, name=name), ADDITION)
        messages.success(self.request, _("“%(name)s” is paused.") % {"name": name})
        if not pauses.is_known(kind, name):
            messages.warning(self.request, pauses.UNKNOWN % {"name": name})


class ResumeQueueView(_QueueView):
    """Let the tasks of a queue or function start again."""

    def act(self, kind: str, name: str) -> None:
        pause = Pause.objects.filter(kind=kind, name=name).first()
        if pause is None or not pauses.resume(kind, name, self.request.user):
            messages.warning(self.request, _("“%(name)s” is not paused.") % {"name": name})
            return
        self.note(pause, DELETION)
        messages.success(self.request, _("“%(name)s” is resumed.") % {"name": name})
