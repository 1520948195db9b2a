"""What a person is told about a launch: what was launched or has run, or why it was refused."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from django.contrib import messages
from django.http import HttpRequest
from django.utils.html import format_html, format_html_join
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from powercrud_dashboard.admin.pages import task_url
from powercrud_dashboard.admin.selection import SelectedRows, locked_rows
from powercrud_dashboard.dashboard.links import dashboard_url
from powercrud_dashboard.dashboard.listing import WIDE_COLUMNS, Count
from powercrud_dashboard.exceptions import EnqueueError, FileTooLarge, TaskAlreadyActive, TaskBusy, TaskConflict
from powercrud_dashboard.models import TaskRecord, TaskStatus

if TYPE_CHECKING:
    from powercrud_dashboard.admin.actions import Admin, BackgroundAction


@dataclass
class Launch:
    """The result of a launch: a task, or a group of tasks."""

    task_name: str
    group: str
    count: int
    skipped: int
    #: Whether it ran in the request.
    has_run: bool


class LaunchMessages:
    """Adds the messages about the launch of one action to the request."""

    def __init__(self, action: BackgroundAction, model_admin: Admin, request: HttpRequest) -> None:
        self._action = action
        self._model_admin = model_admin
        self._request = request

    def report(self, launch: Launch) -> None:
        """Say what was launched, or what has become of it if it ran in the request."""
        message = partial(self._model_admin.message_user, self._request)
        label = self._label
        if not launch.count:
            all_locked = _("“%(action)s” was not launched: all selected objects are locked.") % label
            all_gone = _("The selected objects no longer exist, or you may not view them.")
            message(all_locked if launch.skipped else all_gone, messages.ERROR)
            return
        count, failed = self._outcome(launch) if launch.has_run else (launch.count, 0)
        if launch.has_run:
            text = ngettext(
                "“%(action)s” has finished for %(count)s object.",
                "“%(action)s” has finished for %(count)s objects.",
                count,
            )
            link_text = _("View the result")
        else:
            text = ngettext(
                "“%(action)s” runs in the background for %(count)s object.",
                "“%(action)s” runs in the background for %(count)s objects.",
                count,
            )
            link_text = _("View progress")
        url = self._group_url(launch.group) if launch.group else self._task_url(launch.task_name)
        if count or not failed:
            message(_with_link(text % {**label, "count": Count(count)}, url, link_text), messages.SUCCESS)
        if failed:
            text = ngettext(
                "“%(action)s” failed for %(count)s object.", "“%(action)s” failed for %(count)s objects.", failed
            )
            message(_with_link(text % {**label, "count": Count(failed)}, url, _("View the errors")), messages.ERROR)
        if launch.skipped:
            text = ngettext(
                "%(count)s locked object was skipped.", "%(count)s locked objects were skipped.", launch.skipped
            )
            message(text % {"count": Count(launch.skipped)}, messages.WARNING)
        if launch.has_run and launch.task_name:
            self._show_task_messages(launch.task_name)

    def _outcome(self, launch: Launch) -> tuple[int, int]:
        """Return for how many objects the tasks of this request have finished, and for how many they failed."""
        which = {"group": launch.group} if launch.group else {"task_name": launch.task_name}
        records = list(TaskRecord.objects.filter(**which).defer(*WIDE_COLUMNS))
        if not records:
            # No history is kept.
            return launch.count, 0
        finished = failed = 0
        for record in records:
            has_failed = record.status == TaskStatus.FAILED
            done = record.done_count if record.by_object or has_failed else record.affected_count
            finished += done
            failed += record.affected_count - done if has_failed else record.failed_count
        return finished, failed

    def _show_task_messages(self, task_name: str) -> None:
        """Show the messages of the action, which are also in the events of the task."""
        record = TaskRecord.objects.filter(task_name=task_name).first()
        for event in record.events.filter(event="log") if record else ():
            level = messages.DEFAULT_LEVELS.get(str(event.payload.get("level", "")).upper(), messages.INFO)
            self._model_admin.message_user(self._request, event.message, level)

    def _conflict(self, conflict: TaskConflict, selected: SelectedRows) -> str:
        label = self._label
        if self._action.conflict == "model":
            text = _("“%(action)s” was not launched: it locks all objects of the model, and some are locked by") % label
        else:
            # The error may be about the first task of a group.
            count = len(locked_rows(self._model_admin.opts.label_lower, selected.pks or [])) or conflict.total
            text = ngettext(
                "“%(action)s” was not launched: %(count)s selected object is locked by",
                "“%(action)s” was not launched: %(count)s selected objects are locked by",
                count,
            ) % {**label, "count": Count(count)}
        labels = {item.holder: item.holder_label or item.holder for item in conflict.held}
        visible = TaskRecord.objects.visible_to(self._request.user)
        keys = dict(visible.filter(task_name__in=labels).values_list("task_name", "pk"))
        site_name = self._model_admin.admin_site.name
        urls = {holder: dashboard_url(site_name, "change", keys[holder]) if holder in keys else "" for holder in labels}
        linked = format_html_join(", ", "{}", ((_linked(text, urls[holder]),) for holder, text in labels.items()))
        return format_html(
            "{} {}. {}", text, linked, _("Wait until the locks are released, or cancel the task, then try again.")
        )

    def _already_active(self, task_name: str) -> str:
        text = _("“%(action)s” is already queued or running for this selection.") % self._label
        visible = TaskRecord.objects.visible_to(self._request.user)
        group = visible.filter(task_name=task_name).values_list("group", flat=True).first()
        if group is None:
            return text
        url = self._group_url(group) if group else self._task_url(task_name)
        return _with_link(text, url, _("View progress"))

    def refuse(self, error: Exception, selected: SelectedRows) -> bool:
        """Say why a launch was refused. Return False, with nothing said, for an error that is no refusal."""
        if (refusal := self._refusal(error, selected)) is None:
            return False
        self._model_admin.message_user(self._request, *refusal)
        return True

    def _refusal(self, error: Exception, selected: SelectedRows) -> tuple[str, int] | None:
        match error:
            case TaskConflict():
                return self._conflict(error, selected), messages.ERROR
            case TaskAlreadyActive():
                return self._already_active(error.task_name), messages.WARNING
            case EnqueueError():
                return self._not_queued(error), messages.ERROR
            case FileTooLarge() | TaskBusy():
                return str(error), messages.ERROR
        return None

    def _not_queued(self, error: EnqueueError) -> str:
        if TaskRecord.objects.filter(task_name=error.task_name).exists():
            return str(error)
        text = _("“%(action)s” was not launched: %(reason)s. Check that the broker is running, then try again.")
        return text % {**self._label, "reason": error.reason}

    def fail(self, error: Exception, task_name: str) -> None:
        """Say that the action failed in the request, or can't be run at all."""
        text = _("“%(action)s” failed: %(error)s") % {**self._label, "error": error}
        text = _with_link(text, self._task_url(task_name), _("View the error"))
        self._model_admin.message_user(self._request, text, messages.ERROR)

    @property
    def _label(self) -> dict[str, str]:
        return {"action": self._action.label_for(self._model_admin)}

    def _task_url(self, task_name: str) -> str:
        return task_url(self._model_admin.admin_site.name, task_name)

    def _group_url(self, group: str) -> str:
        return dashboard_url(self._model_admin.admin_site.name, "group", group)


def _with_link(text: str, url: str, link_text: str) -> str:
    return format_html('{} <a href="{}">{}</a>', text, url, link_text) if url else text


def _linked(text: str, url: str) -> str:
    return format_html('<a href="{}">{}</a>', url, text) if url else text
