"""The messages in a queue, and what can be done to one."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from django.apps import apps
from django.contrib import messages
from django.contrib.admin.models import CHANGE, DELETION, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, QueryDict
from django.utils import timezone
from django.utils.functional import cached_property
from django.utils.translation import gettext as _
from django.views.generic.base import TemplateResponseMixin

from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.dashboard import access, customized
from powercrud_dashboard.dashboard.listing import WIDE_COLUMNS
from powercrud_dashboard.dashboard.views.base import DashboardView, RefreshingPageView
from powercrud_dashboard.engine import messages as queued
from powercrud_dashboard.engine import registry
from powercrud_dashboard.exceptions import MessageNotMovable, TaskBusy
from powercrud_dashboard.models import ActiveTask, TaskRecord, TaskStatus
from powercrud_dashboard.q2 import messages as q2_messages
from powercrud_dashboard.q2.messages import Message, MessageQueue
from powercrud_dashboard.text import SHORT, clean_text, translated

logger = logging.getLogger(__name__)

#: No broker skips more messages than this.
MAX_PAGE = 100_000


@dataclass(frozen=True)
class MessageRow:
    """A message, the task that it is for, and its buttons."""

    message: Message
    active: ActiveTask | None
    record: TaskRecord | None
    url: str
    waited: timedelta | None
    delete_url: str
    run_next_url: str

    @property
    def label(self) -> str:
        """The name that people read; "" for a message that can't be read and is for no known task."""
        known = self.record or self.active
        return translated(str(known)) if known else self.message.func

    @property
    def func(self) -> str:
        """The function, where the label is another text."""
        func = self.record.func if self.record else self.message.func
        return func if func != self.label else ""

    @property
    def name(self) -> str:
        """django-q2's name of the task, or the one that its launch gave, of a task of no manager."""
        return "" if self.active or queued.task_name_of(self.message) else self.message.name

    @property
    def person(self) -> str:
        if self.record is not None:
            return customized.user_text(self.record)
        return str(self.active.user or "") if self.active else ""

    @property
    def is_delivered_again(self) -> bool:
        """Whether its task has failed, and the message was not acknowledged: ``ack_failures`` is off by default."""
        has_failed = self.record is not None and self.record.status == TaskStatus.FAILED
        return has_failed and self.message.is_taken

    @property
    def is_left_over(self) -> bool:
        """Whether no task waits for the message, although it was one of a manager's: a worker would run nothing."""
        if self.active is not None:
            return not (self.message.is_taken or queued.is_awaited(self.message, self.active))
        return bool(queued.task_name_of(self.message))


class QueueView(RefreshingPageView):
    """The messages in one queue, those that are delivered first at the top."""

    page_name = "cluster"
    required_permission = "view_taskrecord"
    template_name = "powercrud_dashboard/queue/page.html"
    partial_template_name = "powercrud_dashboard/queue/_queue.html"

    @cached_property
    def number(self) -> int:
        """The number of the page, from 1."""
        given = self.request.GET.get("page", "")
        return min(max(int(given), 1), MAX_PAGE) if given.isdecimal() and len(given) < 10 else 1

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        names = q2_messages.queue_names()
        name = self.request.GET.get("queue") or names[0]
        rows, problem = self._rows(name)
        size = app_settings.DASHBOARD_PAGE_SIZE
        return super().get_context_data(
            title=_("Queue “%(name)s”") % {"name": clean_text(name, SHORT)},
            queue_name=name,
            queue_names=names,
            rows=rows[:size],
            has_delivered_again=any(row.is_delivered_again for row in rows[:size]),
            problem=problem,
            number=self.number,
            previous_page=self.number - 1,
            next_page=self.number + 1 if len(rows) > size else 0,
            cluster_url=self.url("cluster"),
            **kwargs,
        )

    def _rows(self, name: str) -> tuple[list[MessageRow], str]:
        """Return the rows of this page and one more, if there is one, or the reason why there are none."""
        size = app_settings.DASHBOARD_PAGE_SIZE
        start = (self.number - 1) * size
        try:
            if not q2_messages.is_queue(name):
                return [], ""
            queue = q2_messages.open_queue(name)
            found = queue.slice(start, start + size + 1) if queue else []
        except Exception:
            logger.warning("The queue %s can't be read", clean_text(name, SHORT), exc_info=True)
            return [], _("The broker can't be reached. Check that it is running, and its settings in Q_CLUSTER.")
        if queue is None:
            return [], _("The broker of this queue does not let anybody look into it. The ORM broker and Redis do.")
        running = queued.run_by_workers(found)
        found = [replace(message, is_taken=message.is_taken or message.key in running) for message in found]
        active = queued.active_tasks_of(found)
        names = [
            active[message.key].task_name if message.key in active else queued.record_name_of(message)
            for message in found
        ]
        visible = TaskRecord.objects.visible_to(self.request.user).filter(task_name__in=set(names))
        records = {record.task_name: record for record in visible.defer(*WIDE_COLUMNS)}
        return [
            self._row(name, message, active.get(message.key), records.get(task_name))
            for message, task_name in zip(found, names, strict=True)
        ], ""

    def _row(self, name: str, message: Message, active: ActiveTask | None, record: TaskRecord | None) -> MessageRow:
        since = message.enqueued_at or (active.queued_at if active else None)
        user = self.request.user
        is_free = not message.is_taken
        may_delete = is_free and may_delete_message(user, message, active, record)
        may_move = is_free and not message.problem and may_move_message(user, message, active, record)
        return MessageRow(
            message,
            active,
            record,
            self.url("change", record.pk) if record else "",
            max(timezone.now() - since, timedelta()) if since else None,
            self.url("delete_message", name, message.key) if may_delete else "",
            self.url("run_next", name, message.key) if may_move else "",
        )


def may_delete_message(user: Any, message: Message, active: ActiveTask | None, record: TaskRecord | None) -> bool:
    """Return whether the user may delete a message: who may cancel its task, or delete django-q2's own messages."""
    if active is not None and queued.is_awaited(message, active):
        # Without a history there is no record.
        return access.may_cancel(user, record) if record else access.has_permission(user, "cancel_taskrecord")
    return access.may_change_messages(user, "delete")


def may_move_message(user: Any, message: Message, active: ActiveTask | None, record: TaskRecord | None) -> bool:
    """Return whether the user may have a message delivered before the others."""
    if active is not None:
        may_run = access.may_run_now(user, record) if record else access.has_permission(user, "retry_taskrecord")
        return may_run and queued.is_awaited(message, active)
    return not queued.task_name_of(message) and access.may_change_messages(user, "change")


class _MessageActionView(DashboardView):
    """Base class of actions on a message. The admin log or the timeline of its task records the user."""

    page_name = "cluster"
    required_permission = "view_taskrecord"
    #: Returns whether the user may do it.
    may: Any = None
    log_flag = CHANGE

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        self._queue_name = kwargs["queue"]
        return super().dispatch(request, *args, **kwargs)

    @property
    def queue_url(self) -> str:
        query = QueryDict(mutable=True)
        query["queue"] = self._queue_name
        return f"{self.url('queue')}?{query.urlencode()}"

    def find(self, queue: str, key: str) -> tuple[MessageQueue, Message, ActiveTask | None] | None:
        """Return the message with its queue and its task, or None after adding a message that it is gone.

        Raises:
            PermissionDenied: if the user may not do this to it.
        """
        try:
            opened = q2_messages.open_queue(queue) if q2_messages.is_queue(queue) else None
            message = opened.find(key) if opened else None
        except Exception:
            logger.warning("The queue %s can't be read", clean_text(queue, SHORT), exc_info=True)
            messages.error(self.request, _("The broker can't be reached."))
            return None
        if opened is None or message is None:
            messages.info(self.request, _("The message is not in the queue any more."))
            return None
        active = queued.active_tasks_of([message]).get(message.key)
        if not type(self).may(self.request.user, message, active, self.record_of(active)):
            raise PermissionDenied
        return opened, message, active

    @staticmethod
    def record_of(active: ActiveTask | None) -> TaskRecord | None:
        if active is None:
            return None
        return TaskRecord.objects.filter(task_name=active.task_name).defer(*WIDE_COLUMNS).first()

    def post(self, request: HttpRequest, queue: str, key: str) -> HttpResponse:
        if (found := self.find(queue, key)) is not None:
            opened, message, active = found
            try:
                is_done = self.act(opened, message)
            except (MessageNotMovable, TaskBusy) as error:
                messages.error(request, str(error))
            except Exception:
                logger.exception("A message in the queue %s could not be changed", clean_text(queue, SHORT))
                messages.error(request, _("The message could not be changed: the broker does not answer."))
            else:
                self._tell(message, active, is_done)
        return HttpResponseRedirect(self.queue_url)

    def act(self, queue: MessageQueue, message: Message) -> bool:
        """Perform the action. Return False if a cluster has taken the message."""
        raise NotImplementedError

    def success_message(self, message: Message, active: ActiveTask | None) -> str:
        raise NotImplementedError

    def _tell(self, message: Message, active: ActiveTask | None, is_done: bool) -> None:
        if not is_done:
            messages.warning(self.request, _("A cluster has taken the message meanwhile."))
            return
        if active is None:
            # What is done to a task is in its timeline.
            log_message(self.request.user, message, self.log_flag, self._queue_name)
        messages.success(self.request, self.success_message(message, active))


def log_message(user: Any, message: Message, flag: int, queue: str) -> None:
    """Write into the admin log that somebody has changed or deleted a message."""
    LogEntry.objects.create(
        user_id=user.pk,
        content_type=ContentType.objects.get_for_model(apps.get_model("django_q", "OrmQ")),
        object_id=message.receipt or message.key,
        object_repr=name_of(message)[:200],
        action_flag=flag,
        change_message=_("Queue “%(queue)s”") % {"queue": clean_text(queue, SHORT)},
    )


def name_of(message: Message) -> str:
    """Return the name by which people know a message."""
    if message.problem:
        return _("unreadable message")
    return f"{message.func} ({message.name})"


class DeleteMessageView(TemplateResponseMixin, _MessageActionView):
    """Delete a message, after a question. The task of a manager that waits for it is cancelled."""

    template_name = "powercrud_dashboard/queue/delete.html"
    may = staticmethod(may_delete_message)
    log_flag = DELETION

    def get(self, request: HttpRequest, queue: str, key: str) -> HttpResponse:
        if (found := self.find(queue, key)) is None:
            return HttpResponseRedirect(self.queue_url)
        __, message, active = found
        cancels = active is not None and queued.is_awaited(message, active)
        return self.render_to_response(
            self.get_context_data(
                title=_("Cancel this task?") if cancels else _("Delete this message?"),
                message=message,
                active=active if cancels else None,
                is_left_over=bool(queued.task_name_of(message)),
                queue_name=queue,
                queue_url=self.queue_url,
            )
        )

    def act(self, queue: MessageQueue, message: Message) -> bool:
        return queued.delete(queue, message, self.request.user, registry.manager_of)

    def success_message(self, message: Message, active: ActiveTask | None) -> str:
        if active is not None:
            return _("“%(task)s” was cancelled.") % {"task": translated(str(active))}
        return _("The message was deleted: %(message)s") % {"message": name_of(message)}


class RunNextView(_MessageActionView):
    """Have a message delivered before all others of its queue."""

    http_method_names = ["post", "options"]
    may = staticmethod(may_move_message)

    def act(self, queue: MessageQueue, message: Message) -> bool:
        return queued.run_next(queue, message, self.request.user, registry.manager_of)

    def success_message(self, message: Message, active: ActiveTask | None) -> str:
        name = translated(str(active)) if active else name_of(message)
        return _("“%(message)s” is the next that a cluster takes.") % {"message": name}
