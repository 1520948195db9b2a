"""Task functions that run background actions in a worker."""

from __future__ import annotations

import hashlib
import json
import logging
import pkgutil
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from django.contrib.admin import helpers
from django.contrib.admin.actions import delete_selected
from django.contrib.auth import get_user_model
from django.core.exceptions import PermissionDenied
from django.core.files.uploadedfile import UploadedFile
from django.db.models import CharField, QuerySet, TextField
from django.forms import BaseForm
from django.http import HttpRequest, QueryDict
from django.http.response import HttpResponseBase
from django.utils import translation
from django.utils.datastructures import MultiValueDict
from django.utils.translation import gettext_lazy as _
from django.utils.translation import gettext_noop

from powercrud_dashboard.admin import deletion
from powercrud_dashboard.admin.actions import bound_form, find_action, find_model_admin
from powercrud_dashboard.admin.answers import result_of, share_csrf_token
from powercrud_dashboard.admin.launched import LaunchedObjects
from powercrud_dashboard.admin.per_object import PerObjectRun
from powercrud_dashboard.admin.request import as_at_click, call_in_middleware, worker_request
from powercrud_dashboard.admin.selection import (
    READ_CHUNK_SIZE,
    SelectedRows,
    lock_label,
    locked_rows,
    names_of,
    outcomes_of_locked,
)
from powercrud_dashboard.async_context import TaskContext, get_current_task, track
from powercrud_dashboard.async_manager import AsyncManager
from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.engine import files, locks
from powercrud_dashboard.engine.calls import call
from powercrud_dashboard.engine.launch import runs_in_caller
from powercrud_dashboard.engine.spec import accepted_arguments
from powercrud_dashboard.exceptions import EnqueueError, InvalidParameters, TaskAlreadyActive, TaskConflict
from powercrud_dashboard.models import ConflictLock, TaskCursor, TaskRecord
from powercrud_dashboard.models.objects import ObjectOutcome, Outcome
from powercrud_dashboard.text import MESSAGE, SHORT, KeptText, clean_text, error_text

if TYPE_CHECKING:
    from powercrud_dashboard.admin.actions import Admin, BackgroundAction


logger = logging.getLogger(__name__)

# Texts that are kept: the pages translate them.
_LOST_PERMISSION = KeptText(_("%(user)s has lost the permission for “%(action)s” since the launch."))

LAUNCHING = gettext_noop("Launching")

RUN_ACTION = "powercrud_dashboard.admin.running.run_action"
SPLIT_SELECTION = "powercrud_dashboard.admin.running.split_selection"


def run_action(
    *,
    files_of: str = "",
    only: list[str] | None = None,
    after: str = "",
    task_key: str = "",
    manager_class: str = "",
    **click: Any,
) -> Any:
    """Run a background action in a worker.

    Args:
        files_of: name of the task or group that the uploaded files are stored for.
        only: keys, as text, to restrict the selection to, for a retry of unfinished objects.
        after: the key, as text, after which the rows of the changelist are unfinished as well.
        task_key: name of the task; set by the worker.
        manager_class: dotted path of its manager; set by the worker.
        **click: the arguments of :class:`_Run`, and ``user_pk``, ``path`` and ``surroundings`` of the request.

    Returns:
        The return value of the action, the counts of outcomes, or the name and size of the returned file.

    Raises:
        PermissionDenied: if the user was deleted or deactivated, or no longer has the permission.
        LookupError: if the admin site, the ``ModelAdmin`` or the action no longer exists.
        TaskConflict: if rows that the worker looks up are locked.
        AllObjectsFailed: if the action runs per object and all objects failed.
        DeletionRefused: if "Delete selected" meets protected objects.
        BrowserAnswer: if the action answers with a page or a redirect.
        ErrorAnswer: if the action answers with the status of an error.
        FileTooLarge: if the returned file is larger than ``DASHBOARD_FILE_LIMIT``.
    """
    injected = {"task_key": task_key, "manager_class": manager_class}
    return _in_request(
        click,
        lambda request: _Run(request, **click, files_of=files_of, only=only, after=after, injected=injected).run(),
    )


def split_selection(*, group: str, task_key: str = "", manager_class: str = "", **click: Any) -> dict[str, int]:
    """Launch one task for each chunk of a large selection, in the group of this task.

    A chunk is refused if its objects are locked, or if the same task is already queued or running. Its objects are
    recorded as failed or skipped objects of this task.

    Raises:
        TaskConflict: if no chunk is launched, and objects of at least one are locked.
        EnqueueError: if no chunk is launched, and the broker did not take at least one.
    """
    return _in_request(click, lambda request: _Run(request, **click).split(group, click))  # type: ignore[no-any-return]


def _acting_as(click: Mapping[str, Any], user: Any, session: Mapping[str, Any]) -> dict[str, Any]:
    """Return the click as one of this user, whom a site may have let in by what their session says."""
    surroundings = {**(click.get("surroundings") or {}), "session_keys": dict(session)}
    return {**click, "user_pk": str(user.pk), "surroundings": surroundings}


_functions: tuple[Any, ...] = (run_action, split_selection)
for _function in _functions:
    # Who does what with which objects is not to be edited for a retry, and who edits the parameters acts themselves.
    _function.editable_arguments = ("post",)
    _function.acting_as = _acting_as
    # The cursor of a task, and the chunks that have a task already.
    _function.goes_on = True


def left_of(click: Mapping[str, Any], not_done: Collection[str], position: str) -> dict[str, Any]:
    """Return the arguments of :func:`run_action` for what a task has left of its selection.

    Args:
        click: the arguments of the task.
        not_done: keys of objects that were not done, as far as they are known.
        position: the key up to which all objects have an outcome.
    """
    model_admin = find_model_admin(click["site_name"], click["model"])
    to_python = model_admin.opts.pk.to_python
    only, last = click.get("only"), to_python(position) if position else None

    def after_last(keys: Iterable[str]) -> list[str]:
        return [key for key in keys if last is None or to_python(key) > last]

    if click.get("after"):
        earlier = to_python(click["after"])
        furthest = earlier if last is None else max(earlier, last)
        return {"only": [*dict.fromkeys((*not_done, *after_last(only or ())))], "after": str(furthest)}
    if (keys := only if only is not None else click.get("pks")) is not None:
        return {"only": [*dict.fromkeys((*not_done, *after_last(keys)))]}
    return {"only": [*not_done], "after": position} if position else {}


_run_action: Any = run_action
_run_action.left_of = left_of


def click_key(
    site_name: str, model: str, action_name: str, selection: list[Any] | str, post: Mapping[str, list[str]]
) -> str:
    """Return a unique key for an action, a selection and its parameters.

    ``selection`` are the keys of the rows, or the query string of the changelist.
    """
    keys = selection if isinstance(selection, str) else [str(pk) for pk in selection]
    parts = [site_name, model, action_name, keys, sorted(post.items())]
    return hashlib.blake2s(json.dumps(parts).encode()).hexdigest()


def validated_form(
    action: BackgroundAction, post: Mapping[str, list[str]], files: Mapping[str, Iterable[UploadedFile[Any]]]
) -> BaseForm | None:
    """Return the submitted form, validated again; None for an action without a form.

    Raises:
        InvalidParameters: if the form is no longer valid.
    """
    if action.form is None:
        return None
    data = QueryDict(mutable=True)
    for name, values in post.items():
        data.setlist(name, list(values))
    form = bound_form(action, data, MultiValueDict({name: list(uploads) for name, uploads in files.items()}))
    if not form.is_valid():
        with translation.override(None):
            problems = "; ".join(f"{name}: {' '.join(map(str, errors))}" for name, errors in form.errors.items())
        raise InvalidParameters(problems)
    return form


def _in_request(click: Mapping[str, Any], run: Callable[[HttpRequest], Any]) -> Any:
    """Return ``run(request)`` for the request of the click, in its language and time zone and within middleware."""
    surroundings = click.get("surroundings") or {}
    pks, post = click.get("pks"), click.get("post") or {}
    selected = {} if pks is None else {helpers.ACTION_CHECKBOX_NAME: pks}
    with as_at_click(surroundings):
        request = worker_request(
            _active_user(click["user_pk"]),
            click.get("path", ""),
            {"action": click["action_name"], **selected, **post},
            surroundings,
        )
        share_csrf_token(request)
        return call_in_middleware(request, run)


class _Run:
    """One run of an action: the user, the action and the rows."""

    def __init__(
        self,
        request: HttpRequest,
        *,
        site_name: str,
        model: str,
        action_name: str,
        pks: list[str] | None = None,
        post: Mapping[str, list[str]] | None = None,
        files_of: str = "",
        only: list[str] | None = None,
        after: str = "",
        injected: Mapping[str, str] | None = None,
        **of_request: Any,
    ) -> None:
        """Load the action and the rows.

        Args:
            request: the request of the click, as far as it is kept.
            site_name: name of the admin site.
            model: label of the model.
            action_name: name of the action.
            pks: keys of the selected rows, as text; None for all rows of the changelist at the path of the request.
            post: the submitted parameters.
            files_of: name of the task or group that the uploaded files are stored for.
            only: keys to restrict the selection to.
            after: the key after which all rows of the changelist are selected, beside those of ``only``.
            injected: more arguments, for a function that accepts them.
        """
        self.model_admin: Admin = find_model_admin(site_name, model)
        self.model_label = self.model_admin.opts.label_lower
        self.lock_label = lock_label(self.model_admin)
        self.request = request
        if prepare := getattr(self.model_admin, "prepare_background_request", None):
            prepare(request)
        self.user: Any = request.user
        parameters = post or {}
        self.action: BackgroundAction = find_action(self.model_admin, request, action_name)
        self._check_permission()
        self.rows = self._rows(pks, only, after)
        #: Whether the launch has not locked the rows, as it did not read their keys.
        self._locks_in_worker = pks is None and self.action.conflict is True
        form = validated_form(self.action, parameters, files.parameters(files_of) if files_of else {})
        self.task: TaskContext | None = get_current_task()
        resume_at = {"resume_at": self.task.resume_at if self.task else 0}
        available = {**(injected or {}), **resume_at, **({"cleaned_data": form.cleaned_data} if form else {})}
        self.extra_kwargs = accepted_arguments(self._function, available)

    def _rows(self, pks: list[str] | None, only: list[str] | None, after: str) -> SelectedRows:
        if after:
            later = self._rows_of_changelist().after(self._key(after))
            later_keys = chain.from_iterable(later.chunks(READ_CHUNK_SIZE))
            return self._rows_with_keys(chain(map(self._key, only or ()), later_keys))
        if (keys := pks if only is None else only) is not None:
            return self._rows_with_keys(map(self._key, keys))
        return self._rows_of_changelist()

    def _rows_of_changelist(self) -> SelectedRows:
        rows = SelectedRows.of_changelist(self.model_admin, self.request)
        if not isinstance(self.model_admin.opts.pk, CharField | TextField):
            return rows
        # The database may order texts in another way than Python does: all attempts go by the latter.
        return rows.restricted_to(chain.from_iterable(rows.chunks(READ_CHUNK_SIZE)))

    def _rows_with_keys(self, keys: Iterable[Any]) -> SelectedRows:
        return SelectedRows(self._queryset, None).restricted_to(keys)

    def _key(self, text: str) -> Any:
        return self.model_admin.opts.pk.to_python(text)

    @property
    def _function(self) -> Any:
        return self.action.body or pkgutil.resolve_name(self.action.task)

    def _check_permission(self) -> None:
        site, request = self.model_admin.admin_site, self.request
        if not (site.has_permission(request) and self.action.is_allowed(self.model_admin, request)):
            # In the site's own language, as the label of the task.
            label = clean_text(self.action.label_for(self.model_admin), SHORT)
            raise PermissionDenied(_LOST_PERMISSION(user=clean_text(self.user, SHORT), action=label))

    @property
    def _queryset(self) -> QuerySet[Any]:
        """All rows that the admin shows to the user."""
        return self.model_admin.get_queryset(self.request)

    def run(self) -> Any:
        if self.task is not None:
            self.task.limit_pace(throttle=self.action.throttle, slice_of=self.action.slice)
        cursor = self.task.take_cursor() if self.task and self.action.per_object else None
        if self._locks_in_worker and cursor is not None and cursor.has_locked_all:
            self.rows = self._rows_with_keys(map(self._key, self._locked_keys()))
        elif self._locks_in_worker:
            self._lock_selected_rows()
            if self.task is not None and cursor is not None:
                keys = map(str, self.rows.pks or ())
                cursor.note_locked(self.lock_label, keys, skipped=self.task.outcomes[Outcome.SKIPPED])
        if self.action.per_object:
            return self._run_per_object(cursor)
        if self.action.body is None:
            pks = [pk for chunk in self.rows.chunks(READ_CHUNK_SIZE) for pk in chunk]
            return call(self._function, pks=pks, model=self.model_admin.opts.label_lower, **self.extra_kwargs)
        result = self._answer()
        if isinstance(result, HttpResponseBase):
            return result_of(result, self.task.task_name) if self.task else None
        return result

    def _answer(self) -> Any:
        """Return what the body of the action returns for the selected rows."""
        rows = self.rows.selected()
        try:
            answer = call(self._function, self.model_admin, self.request, rows, **self.extra_kwargs)
        except PermissionDenied as error:
            # Django's "Delete selected" does not say what for.
            if error.args or self._function is not delete_selected:
                raise
            raise (deletion.refusal(self.model_admin, self.request, rows) or error) from error
        if deletion.is_refusal(answer) and (refusal := deletion.refusal(self.model_admin, self.request, rows)):
            raise refusal
        return answer

    def _run_per_object(self, cursor: TaskCursor | None) -> dict[str, int]:
        def process(obj: Any) -> None:
            surroundings = () if self.action.body is None else (self.model_admin, self.request)
            call(self._function, *surroundings, obj, **self.extra_kwargs)

        return PerObjectRun(
            process,
            self.rows,
            self._queryset,
            is_allowed=partial(self.action.is_allowed_for_object, self.model_admin, self.request),
            lock_label=self.lock_label,
            label=self.action.label_for(self.model_admin),
            task=self.task,
            cursor=cursor,
        ).run()

    # Rows that the worker looks up

    def _locked_keys(self) -> list[str]:
        """Return the keys of the rows that an earlier attempt has looked up and locked."""
        name = self.task.task_name if self.task else ""
        own = ConflictLock.objects.filter(active_task__task_name=name, model_label=self.lock_label, is_selected=True)
        return list(own.values_list("object_id", flat=True))

    def _lock_selected_rows(self) -> None:
        """Lock the rows, and restrict the selection to them. An action that skips locked rows leaves them out.

        Raises:
            TaskConflict: if a row is already locked and the action aborts.
        """
        task = self.task
        if task is None:
            return
        available: list[Any] = []
        for chunk in self.rows.chunks(READ_CHUNK_SIZE):
            task.check_cancelled()
            available += chunk if task.take_locks(self.model_label, chunk) else self._lock_available(task, chunk)
        # Rows that match the filters only from now on are not locked.
        self.rows = self.rows.restricted_to(available)

    def _lock_available(self, task: TaskContext, chunk: list[Any]) -> list[Any]:
        if self.action.on_conflict == "abort":
            first = locks.conflict_on(locks.lock_keys({self.model_label: chunk}), except_for=task.task_name)
            total = sum(
                len(locked_rows(self.model_label, keys, except_for=task.task_name))
                for keys in self.rows.chunks(READ_CHUNK_SIZE)
            )
            raise TaskConflict(first.held, total)
        available = self._without_locked(chunk)
        while available and not task.take_locks(self.model_label, available):
            # Another task was faster.
            task.check_cancelled()
            available = self._without_locked(available)
        return available

    def split(self, group: str, click: dict[str, Any]) -> dict[str, int]:
        """Launch a task for each chunk of the rows; the rows that an earlier try has launched a task for are left."""
        chunk_click = {name: value for name, value in click.items() if name != "only"}
        launched_before = LaunchedObjects.before(self.task.task_name if self.task else "", group, self.lock_label)
        total = self.rows.count()
        # The ledger of a chunk names all of its objects, so that no later try launches one of them again.
        size = min(self.action.chunk_size or total or 1, app_settings.DASHBOARD_OBJECT_LIMIT)
        launched, refused = 0, 0
        last_refusal: TaskConflict | EnqueueError | None = None
        for keys in track(self.rows.chunks(size), total=-(-total // size), description=LAUNCHING):
            if not (chunk := launched_before.left_of(keys)):
                continue
            try:
                launched += self._launch_chunk(group, chunk_click, chunk)
            except TaskAlreadyActive as error:
                refused += 1
                self._record_refusal(chunk, Outcome.SKIPPED, error)
            except (TaskConflict, EnqueueError) as error:
                refused, last_refusal = refused + 1, error
                self._record_refusal(chunk, Outcome.FAILED, error)
        if last_refusal is not None and not launched:
            raise last_refusal
        return {"launched": launched, "refused": refused}

    def _launch_chunk(self, group: str, click: dict[str, Any], chunk: list[Any]) -> bool:
        """Launch the task of one chunk. Return False if all of its rows are skipped.

        Raises:
            TaskAlreadyActive, TaskConflict, EnqueueError: if it is not launched.
        """
        action = self.action
        manager = self.task.manager if self.task else AsyncManager.resolve_manager()
        skips = action.conflict is True and action.on_conflict == "skip"
        while not skips or (chunk := self._without_locked(chunk)):
            objects = {self.model_label: chunk}
            name = str(uuid.uuid4())
            try:
                manager.launch_async_task(
                    RUN_ACTION,
                    task_key=name,
                    group=group,
                    conflict_ids=objects if action.conflict else None,
                    object_ids=objects,
                    object_count=len(chunk),
                    by_object=action.per_object,
                    shown_func=action.function_name,
                    # As at the click: files are not compared.
                    unique_key="" if click.get("files_of") else self._chunk_key(click, chunk),
                    user=self.user,
                    affected_objects=SelectedRows(self._queryset, chunk).described(),
                    label=action.label_for(self.model_admin),
                    task_kwargs={**click, "pks": [str(pk) for pk in chunk]},
                    retry=action.retry,
                )
            except Exception as error:
                if runs_in_caller() and TaskRecord.objects.filter(task_name=name).exists():
                    # The task ran here and failed, which its own record says. The other chunks follow.
                    return True
                if not (skips and isinstance(error, TaskConflict)):
                    raise
                # Another task was faster: leave out its objects as well.
                if self.task is not None:
                    self.task.check_cancelled()
            else:
                return True
        return False

    def _chunk_key(self, click: dict[str, Any], chunk: list[Any]) -> str:
        return click_key(click["site_name"], click["model"], click["action_name"], chunk, click["post"])

    def _without_locked(self, chunk: list[Any]) -> list[Any]:
        skipped = locked_rows(self.model_label, chunk, except_for=self.task.task_name if self.task else "")
        self._record_outcomes(outcomes_of_locked(self.lock_label, skipped, self._queryset))
        return [pk for pk in chunk if pk not in skipped]

    def _record_refusal(self, chunk: list[Any], outcome: Outcome, error: Exception) -> None:
        """Record that no task was launched for these rows, so that a retry can launch it."""
        text = error_text(error, MESSAGE)
        names = names_of(self._queryset, chunk)
        self._record_outcomes(
            [ObjectOutcome(self.lock_label, str(pk), outcome.value, text, names.get(str(pk), "")) for pk in chunk]
        )
        if self.task is not None:
            self.task.log(text, "warning")

    def _record_outcomes(self, outcomes: list[ObjectOutcome]) -> None:
        if self.task is not None and outcomes:
            self.task.note_outcomes(outcomes)


def _active_user(pk: Any) -> Any:
    user = get_user_model()._default_manager.filter(pk=pk).first()
    if user is None or not user.is_active:
        raise PermissionDenied(_("The user who launched this task has since been deleted or deactivated."))
    return user
