"""What a worker runs for a click: the action's body with the real admin, over the selected rows."""

from __future__ import annotations

import hashlib
import json
import logging
import pkgutil
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from django.contrib.admin import helpers
from django.contrib.auth import get_user_model
from django.core.exceptions import PermissionDenied
from django.db import router, transaction
from django.db.models import QuerySet
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils.translation import gettext as _

from powercrud_dashboard import files, locks
from powercrud_dashboard.admin.actions import find_action, find_model_admin
from powercrud_dashboard.admin.confirm import form_of
from powercrud_dashboard.admin.responses import keep_response
from powercrud_dashboard.admin.selected import READ_AT_ONCE, Rows, lock_label
from powercrud_dashboard.admin.worker_request import worker_request
from powercrud_dashboard.async_context import TaskContext, get_current_task, track
from powercrud_dashboard.async_manager import AsyncManager
from powercrud_dashboard.callables import injected_arguments
from powercrud_dashboard.exceptions import AllObjectsFailed, TaskAlreadyActive, TaskConflict
from powercrud_dashboard.models.history import Outcome
from powercrud_dashboard.models.text import MESSAGE, clean_text

if TYPE_CHECKING:
    from powercrud_dashboard.admin.actions import Admin, BackgroundAction

logger = logging.getLogger(__name__)

RUN_ACTION = "powercrud_dashboard.admin.running.run_action"
SPLIT_SELECTION = "powercrud_dashboard.admin.running.split_selection"


def run_action(
    *,
    site_name: str,
    model: str,
    action_name: str,
    user_pk: Any,
    pks: list[Any] | None = None,
    rows: Rows | None = None,
    path: str = "",
    post: Mapping[str, list[str]] | None = None,
    files_of: str = "",
    only: list[str] | None = None,
) -> Any:
    """Run a background action in a worker and return what it returned, or its counts, or the file it made.

    ``only`` leaves of the selected rows those with these keys, as text: a retry of what was not done.

    Raises:
        PermissionDenied: if the user is gone, was deactivated or has lost the permission since the click.
        LookupError: if the admin site, the model's admin or the action does not exist any more.
        TaskConflict: if rows that are resolved only now are locked.
        AllObjectsFailed: if the action takes one object at a time and none went well.
        FileTooLarge: if what it answered with is more than is kept.
    """
    selected = rows or Rows(pks=pks or [])
    if only is not None:
        selected = Rows(pks=_keys_of(find_model_admin(site_name, model), only))
    run = _Run(site_name, model, action_name, user_pk, selected, path, post or {}, files_of)
    result = run.go()
    if files_of:
        # Not after a failure: a retry reads them again.
        files.forget_parameters(files_of)
    return result


def split_selection(
    *, rows: Rows, group: str, task_key: str = "", manager_class: str = "", **arguments: Any
) -> dict[str, int]:
    """Launch one task for each chunk of a large selection, all in the group of this one.

    A chunk of which objects are locked is not launched, if the action is to abort, nor one that is under way already;
    the others are.

    Raises:
        TaskConflict: if no chunk could be launched.
    """
    run = _Run(
        arguments["site_name"],
        arguments["model"],
        arguments["action_name"],
        arguments["user_pk"],
        rows,
        arguments["path"],
        arguments["post"],
        "",
    )
    return run.split(group, arguments)


def click_key(
    site_name: str, model: str, action_name: str, chosen: list[Any] | str, post: Mapping[str, list[str]]
) -> str:
    """Return what is the same for the same action on the same selection with the same parameters, and else not.

    ``chosen`` are keys, or the text of a query.
    """
    keys = chosen if isinstance(chosen, str) else [str(pk) for pk in chosen]
    what = [site_name, model, action_name, keys, sorted(post.items())]
    return hashlib.blake2s(json.dumps(what).encode()).hexdigest()


class _Run:
    """One run of an action: who, what, over which rows."""

    def __init__(
        self,
        site_name: str,
        model: str,
        action_name: str,
        user_pk: Any,
        rows: Rows,
        path: str,
        post: Mapping[str, list[str]],
        files_of: str,
    ) -> None:
        self.rows = rows
        self.model_admin: Admin = find_model_admin(site_name, model)
        self.lock_label = lock_label(self.model_admin)
        self.user = _active_user(user_pk)
        selected = {} if rows.pks is None else {helpers.ACTION_CHECKBOX_NAME: rows.pks}
        self.request: HttpRequest = worker_request(self.user, path, {"action": action_name, **selected, **post})
        self.action: BackgroundAction = find_action(self.model_admin, self.request, action_name)
        self._check_permission()
        form = form_of(self.action, post, files.parameters(files_of) if files_of else {})
        self.given = injected_arguments(self._function, {"cleaned_data": form.cleaned_data} if form else {})
        self.task: TaskContext | None = get_current_task()

    @property
    def _function(self) -> Any:
        return self.action.body or pkgutil.resolve_name(self.action.task)

    def _check_permission(self) -> None:
        site, request = self.model_admin.admin_site, self.request
        if not (site.has_permission(request) and self.action.is_allowed(self.model_admin, request)):
            words = _("%(user)s has lost the permission for “%(action)s” since launching it.")
            raise PermissionDenied(words % {"user": self.user, "action": self.action.label_for(self.model_admin)})

    @property
    def _reachable(self) -> QuerySet[Any]:
        """All rows that the admin shows this person, whatever was selected."""
        return self.model_admin.get_queryset(self.request)

    def go(self) -> Any:
        if self.rows.pks is None and self.action.conflict is True:
            self._lock_what_the_query_finds()
        if self.action.per_object:
            return self._one_by_one()
        if self.action.body is None:
            pks = [pk for chunk in self.rows.chunks(self._reachable, READ_AT_ONCE) for pk in chunk]
            return self._function(pks=pks, model=self.model_admin.opts.label_lower, **self.given)
        result = self._function(self.model_admin, self.request, self.rows.filter(self._reachable), **self.given)
        if isinstance(result, HttpResponseBase):
            return keep_response(self.task.task_name, result, self.request) if self.task else None
        return result

    # One object at a time

    def _one_by_one(self) -> dict[str, int]:
        total = self.rows.count_in(self._reachable)
        first_error = ""
        for pk, obj in track(self._objects(), total=total, description=str(self.action.label_for(self.model_admin))):
            if obj is None:
                self._note(pk, Outcome.SKIPPED, _("Gone, or out of this person's reach"))
            elif not self.action.is_allowed_on(self.model_admin, self.request, obj):
                self._note(pk, Outcome.SKIPPED, _("No permission"))
            else:
                first_error = self._work_on(obj) or first_error
        outcomes = self.task.outcomes if self.task else {}
        done, failed = outcomes.get(Outcome.DONE, 0), outcomes.get(Outcome.FAILED, 0)
        if failed and not done:
            raise AllObjectsFailed(failed, first_error)
        return {"done": done, "failed": failed, "skipped": outcomes.get(Outcome.SKIPPED, 0)}

    def _work_on(self, obj: Any) -> str:
        """Run the body for one object, all or nothing. Return what went wrong, if anything did."""
        # The body may take it away, as deleting it does.
        pk = obj.pk
        try:
            with transaction.atomic(using=router.db_for_write(type(obj), instance=obj)):
                if self.action.body is None:
                    self._function(obj, **self.given)
                else:
                    self._function(self.model_admin, self.request, obj, **self.given)
                self._note(pk, Outcome.DONE, text=str(obj))
        except Exception as error:
            # One object's failure is its own: it is recorded, and the next one's turn comes.
            logger.exception("The action %s failed for %s %s", self.action.name, self.lock_label, pk)
            words = clean_text(f"{type(error).__name__}: {error}", MESSAGE)
            self._note(pk, Outcome.FAILED, words, text=str(obj))
            return words
        return ""

    def _objects(self) -> Iterator[tuple[Any, Any]]:
        """Yield the selected keys, each with its object as it is now, or None if it can't be reached."""
        for chunk in self._chunks_of_keys():
            found = self._reachable.in_bulk(chunk)
            for pk in chunk:
                yield pk, found.get(pk)

    def _chunks_of_keys(self) -> Iterator[list[Any]]:
        if (pks := self.rows.pks) is None:
            yield from self.rows.chunks(self._reachable, READ_AT_ONCE)
        else:
            yield from (pks[start : start + READ_AT_ONCE] for start in range(0, len(pks), READ_AT_ONCE))

    def _note(self, pk: Any, outcome: Outcome, error: str = "", *, text: str = "") -> None:
        if self.task is not None:
            self.task.note_outcome(self.lock_label, pk, outcome, error, text)

    # Rows that are resolved here

    def _lock_what_the_query_finds(self) -> None:
        """Lock the rows before any is worked on; go on without the locked ones if the action is to.

        Raises:
            TaskConflict: if one is locked and the action is to abort.
        """
        task = self.task
        if task is None:
            return
        free: list[Any] = []
        for chunk in self.rows.chunks(self._reachable, READ_AT_ONCE):
            task.check_cancelled()
            free += chunk if task.take_locks(self.lock_label, chunk) else self._lock_the_free_ones(task, chunk)
        if self.action.on_conflict == "skip":
            self.rows = Rows(pks=free)

    def _lock_the_free_ones(self, task: TaskContext, chunk: list[Any]) -> list[Any]:
        keys = locks.normalise({self.lock_label: chunk})
        if self.action.on_conflict == "abort":
            raise locks.conflict_on(keys, except_for=task.task_name)
        free = []
        for pk in chunk:
            if task.take_locks(self.lock_label, [pk]):
                free.append(pk)
            else:
                self._note(pk, Outcome.SKIPPED, _("Locked"))
        return free

    def split(self, group: str, arguments: dict[str, Any]) -> dict[str, int]:
        """Launch a task for each chunk of the rows."""
        manager = AsyncManager.resolve_manager(self.task.manager_class if self.task else None)
        action, launched, refused = self.action, 0, 0
        last_refusal: TaskConflict | None = None
        total = self.rows.count_in(self._reachable)
        size = action.chunk_size or total or 1
        chunks = self.rows.chunks(self._reachable, size)
        for chunk in track(chunks, total=-(-total // size), description=_("Launching")):
            objects = {self.lock_label: chunk}
            try:
                manager.launch_async_task(
                    RUN_ACTION,
                    group=group,
                    conflict_ids=objects if action.conflict else None,
                    object_ids=objects,
                    object_count=len(chunk),
                    by_object=action.per_object,
                    func_name=action.function_name,
                    unique_key=click_key(
                        arguments["site_name"], arguments["model"], action.name, chunk, arguments["post"]
                    ),
                    user=self.user,
                    affected_objects=self._reachable.filter(pk__in=chunk[:100]),
                    label=action.label_for(self.model_admin),
                    task_kwargs={**arguments, "pks": chunk},
                    **action.retry_options,
                )
                launched += 1
            except TaskAlreadyActive as same:
                refused += 1
                if self.task is not None:
                    self.task.log(str(same), "warning")
            except TaskConflict as conflict:
                refused, last_refusal = refused + 1, conflict
                if self.task is not None:
                    self.task.log(str(conflict), "warning")
        if last_refusal is not None and not launched:
            raise last_refusal
        return {"launched": launched, "refused": refused}


def _keys_of(model_admin: Admin, texts: list[str]) -> list[Any]:
    to_python = model_admin.opts.pk.to_python
    return [to_python(text) for text in texts]


def _active_user(pk: Any) -> Any:
    user = get_user_model()._default_manager.filter(pk=pk).first()
    if user is None or not user.is_active:
        raise PermissionDenied(_("The user who launched this task was deleted or deactivated since."))
    return user
