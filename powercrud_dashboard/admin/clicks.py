"""A click on a background action: ask first if need be, launch, and say what became of it."""

from __future__ import annotations

import logging
import uuid
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils.html import format_html, format_html_join
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from powercrud_dashboard import files, lifecycle, locks
from powercrud_dashboard.admin.addresses import dashboard_url, task_url
from powercrud_dashboard.admin.confirm import ask, sent_form
from powercrud_dashboard.admin.running import RUN_ACTION, SPLIT_SELECTION, click_key
from powercrud_dashboard.admin.selected import Rows, lock_label
from powercrud_dashboard.async_manager import AsyncManager
from powercrud_dashboard.exceptions import EnqueueError, FileTooLarge, TaskAlreadyActive, TaskConflict
from powercrud_dashboard.launching import runs_in_caller
from powercrud_dashboard.models import TaskRecord
from powercrud_dashboard.models.coordination import WHOLE_MODEL, write_transaction
from powercrud_dashboard.models.history import ObjectOutcome, Outcome

if TYPE_CHECKING:
    from powercrud_dashboard.admin.actions import Admin, BackgroundAction

logger = logging.getLogger(__name__)

#: Objects described in the record; their number is exact.
DESCRIBED_OBJECTS = 100

#: What of the form on the changelist is no parameter of the action.
NOT_PASSED_ON = ("csrfmiddlewaretoken", "_selected_action", "select_across", "index", "action", "pcrud-confirmed")


def click(
    action: BackgroundAction, model_admin: Admin, request: HttpRequest, queryset: QuerySet[Any]
) -> HttpResponseBase | None:
    """Launch the action for the selected rows and say so to the user, or ask first.

    Returns the page that asks, or None to go back to the list.
    """
    if not action.is_allowed(model_admin, request):
        raise PermissionDenied
    if action.asks_first:
        form = sent_form(action, request)
        if form is None or not form.is_valid():
            return ask(action, model_admin, request, queryset, form)
    Click(action, model_admin, request, queryset).launch()
    return None


@dataclass
class _Launched:
    """What one click has led to: a task, or a group of them."""

    task_name: str
    group: str
    count: int
    skipped: int


class Click:
    """One launch from a changelist."""

    def __init__(
        self, action: BackgroundAction, model_admin: Admin, request: HttpRequest, queryset: QuerySet[Any]
    ) -> None:
        self.action = action
        self.model_admin = model_admin
        self.request = request
        self.queryset = queryset
        self.manager = AsyncManager.resolve_manager()
        self.model_label = model_admin.opts.label_lower
        self.lock_label = lock_label(model_admin)
        self.name = str(uuid.uuid4())
        self.runs_now = False

    def launch(self) -> None:
        """Launch the task or tasks, all or none; a message says what became of it."""
        say = partial(self.model_admin.message_user, self.request)
        try:
            launched = self._launch()
        except TaskConflict as conflict:
            say(self._words_of(conflict), messages.ERROR)
        except TaskAlreadyActive as same:
            say(self._already_active(same.task_name), messages.WARNING)
        except (EnqueueError, FileTooLarge) as error:
            say(str(error), messages.ERROR)
        except Exception as error:
            if not self.runs_now:
                raise
            # The action's own error, in the request: it is recorded, as a worker would have done.
            logger.exception("The action %s failed in the request", self.action.name)
            say(self._failed(error), messages.ERROR)
        else:
            self._say_launched(launched)

    def _launch(self) -> _Launched:
        rows = Rows.of(self.queryset)
        rows, left_out = self._without_locked(rows)
        if rows.pks == []:
            return _Launched("", "", 0, len(left_out))
        count = rows.count_in(self.queryset)
        chunk_size = self.action.chunk_size or 0
        is_small = count <= self._threshold
        self.runs_now = is_small or runs_in_caller()
        group = self.name if chunk_size and count > chunk_size and not is_small else ""
        # What runs now must not keep the database's only writer waiting until its end; and one launch is all or
        # nothing by itself, but for the record of a failure to queue it, which is to stay.
        needs_more = bool(group or self.request.FILES or left_out) and not self.runs_now
        with write_transaction() if needs_more else nullcontext():
            if self.request.FILES:
                files.keep_parameters(self.name, dict(self.request.FILES.lists()))
            if not group:
                self._launch_one(rows, count, task_name=self.name, left_out=left_out)
            elif rows.pks is None:
                self._launch_one(rows, count, group=group, path=SPLIT_SELECTION, left_out=left_out)
            else:
                for number in range(0, count, chunk_size):
                    part = Rows(pks=rows.pks[number : number + chunk_size])
                    self._launch_one(part, len(part.pks or ()), group=group, left_out=left_out if not number else {})
        return _Launched("" if group else self.name, group, count, len(left_out))

    @property
    def _threshold(self) -> int:
        own = self.action.background_threshold
        return own if own is not None else int(getattr(self.model_admin, "background_threshold", 0))

    def _without_locked(self, rows: Rows) -> tuple[Rows, dict[Any, str]]:
        """Leave out what is locked, if the action is to; the reasons are given by key."""
        if self.action.conflict is not True or self.action.on_conflict != "skip" or rows.pks is None:
            return rows, {}
        held = locks.normalise({self.lock_label: rows.pks})
        holders = {lock.object_id: str(lock.active_task) for lock in locks.locks_on(held)}
        everything = holders.get(WHOLE_MODEL)
        left_out = {pk: holder for pk in rows.pks if (holder := everything or holders.get(str(pk)))}
        return Rows(pks=[pk for pk in rows.pks if pk not in left_out]), left_out

    def _launch_one(
        self,
        rows: Rows,
        count: int,
        *,
        left_out: dict[Any, str],
        task_name: str | None = None,
        group: str = "",
        path: str = RUN_ACTION,
    ) -> None:
        action = self.action
        objects = {self.lock_label: rows.pks or []}
        splits = path == SPLIT_SELECTION
        is_plain_task = bool(action.task) and not (action.per_object or action.form or rows.pks is None)
        name = self.manager.launch_async_task(
            action.task if is_plain_task else path,
            task_key=task_name,
            group=group or None,
            conflict_ids=self._to_lock(objects),
            object_ids=None if splits else objects,
            object_count=count,
            by_object=action.per_object and not splits,
            func_name=action.function_name,
            unique_key=self._unique_key(rows),
            user=self.request.user,
            affected_objects=self._described(rows),
            label=action.label_for(self.model_admin),
            task_kwargs=self._plain_arguments(rows)
            if is_plain_task
            else self._arguments(rows, group if splits else ""),
            sync=self.runs_now,
            **action.retry_options,
        )
        if left_out:
            outcomes = [
                ObjectOutcome(self.lock_label, str(pk), Outcome.SKIPPED, _("Locked by %(holder)s") % {"holder": holder})
                for pk, holder in left_out.items()
            ]
            lifecycle.emit(self.manager, "objects", name, outcomes=outcomes, skipped_before=len(outcomes))

    def _to_lock(self, objects: dict[str, list[Any]]) -> locks.ConflictIds | None:
        if self.action.conflict == "model":
            return {self.lock_label: locks.ALL_OBJECTS}
        # The rows of a query are locked in the worker, where they are resolved.
        return objects if self.action.conflict else None

    def _described(self, rows: Rows) -> QuerySet[Any]:
        if rows.pks is None:
            return self.queryset[:DESCRIBED_OBJECTS]
        return self.queryset.filter(pk__in=rows.pks[:DESCRIBED_OBJECTS])

    def _plain_arguments(self, rows: Rows) -> dict[str, Any]:
        return {"pks": rows.pks, "model": self.model_label}

    def _arguments(self, rows: Rows, group_to_launch: str = "") -> dict[str, Any]:
        chosen: dict[str, Any] = {"pks": rows.pks} if rows.pks is not None else {"rows": rows}
        return {
            "site_name": self.model_admin.admin_site.name,
            "model": self.model_label,
            "action_name": self.action.name,
            **chosen,
            "user_pk": self.request.user.pk,
            "path": self.request.get_full_path(),
            "post": self._post(),
            **({"files_of": self.name} if self.request.FILES else {}),
            **({"group": group_to_launch} if group_to_launch else {}),
        }

    def _post(self) -> dict[str, list[str]]:
        return {name: list(values) for name, values in self.request.POST.lists() if name not in NOT_PASSED_ON}

    def _unique_key(self, rows: Rows) -> str:
        """Return what is the same for the same action on the same selection with the same parameters."""
        chosen = rows.pks if rows.pks is not None else str(self.queryset.order_by().query)
        if self.request.FILES:
            # Whether two files are the same would take reading them.
            return ""
        site_name = self.model_admin.admin_site.name
        return click_key(site_name, self.model_label, self.action.name, chosen, self._post())

    # What is said

    def _say_launched(self, launched: _Launched) -> None:
        say = partial(self.model_admin.message_user, self.request)
        label = {"action": self.action.label_for(self.model_admin)}
        if not launched.count:
            say(_("All of the selected objects are locked."), messages.ERROR)
            return
        if self.runs_now:
            words = ngettext(
                "“%(action)s” is done for %(count)d object.",
                "“%(action)s” is done for %(count)d objects.",
                launched.count,
            )
            link_words = _("See what it did")
        else:
            words = ngettext(
                "“%(action)s” runs in the background for %(count)d object.",
                "“%(action)s” runs in the background for %(count)d objects.",
                launched.count,
            )
            link_words = _("See its progress")
        link = self._group_url(launched.group) if launched.group else self._task_url(launched.task_name)
        text = words % {**label, "count": launched.count}
        say(format_html('{} <a href="{}">{}</a>', text, link, link_words) if link else text, messages.SUCCESS)
        if launched.skipped:
            text = ngettext(
                "%(count)d locked object was left out.", "%(count)d locked objects were left out.", launched.skipped
            )
            say(text % {"count": launched.skipped}, messages.WARNING)
        if self.runs_now and launched.task_name:
            self._pass_messages_on(launched.task_name)

    def _pass_messages_on(self, task_name: str) -> None:
        """Show what the action had to say, which is kept with the task as well."""
        record = TaskRecord.objects.filter(task_name=task_name).first()
        for event in record.events.filter(event="log") if record else ():
            level = messages.DEFAULT_LEVELS.get(str(event.payload.get("level", "")).upper(), messages.INFO)
            self.model_admin.message_user(self.request, event.message, level)

    def _words_of(self, conflict: TaskConflict) -> str:
        words = ngettext(
            "“%(action)s” was not started: %(count)d of the selected objects is in use by",
            "“%(action)s” was not started: %(count)d of the selected objects are in use by",
            conflict.total,
        ) % {"action": self.action.label_for(self.model_admin), "count": conflict.total}
        labels = {item.holder: item.holder_label or item.holder for item in conflict.held}
        linked = format_html_join(", ", "{}", ((self._linked(holder, label),) for holder, label in labels.items()))
        return format_html("{} {}. {}", words, linked, _("Wait until it has ended, or cancel it, and try again."))

    def _already_active(self, task_name: str) -> str:
        words = _("“%(action)s” is already under way for this selection.") % {
            "action": self.action.label_for(self.model_admin)
        }
        group = TaskRecord.objects.filter(task_name=task_name).values_list("group", flat=True).first()
        url = self._group_url(group) if group else self._task_url(task_name)
        return format_html('{} <a href="{}">{}</a>', words, url, _("See its progress")) if url else words

    def _failed(self, error: Exception) -> str:
        words = _("“%(action)s” failed: %(error)s") % {
            "action": self.action.label_for(self.model_admin),
            "error": error,
        }
        url = self._task_url(self.name)
        return format_html('{} <a href="{}">{}</a>', words, url, _("See what happened")) if url else words

    def _linked(self, task_name: str, label: str) -> str:
        url = self._task_url(task_name)
        return format_html('<a href="{}">{}</a>', url, label) if url else label

    def _task_url(self, task_name: str) -> str:
        return task_url(self.model_admin.admin_site.name, task_name)

    def _group_url(self, group: str) -> str:
        return dashboard_url(self.model_admin.admin_site.name, "group", group)
