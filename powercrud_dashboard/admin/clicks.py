"""Launch of background actions from a changelist."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, TypeVar, overload

from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils.text import capfirst

from powercrud_dashboard.admin.actions import (
    ActionFunction,
    Admin,
    BackgroundAction,
    action_of,
    chosen_name,
    is_click,
)
from powercrud_dashboard.admin.answers import returned_answers
from powercrud_dashboard.admin.confirmation import CONFIRMED, EDITABLE_PREFIX, confirmation_page, submitted_form
from powercrud_dashboard.admin.launch_messages import Launch, LaunchMessages
from powercrud_dashboard.admin.request import surroundings_of
from powercrud_dashboard.admin.running import RUN_ACTION, SPLIT_SELECTION, click_key
from powercrud_dashboard.admin.selection import (
    SelectedRows,
    changelist_path,
    filters_of,
    lock_label,
    locked_rows,
    outcomes_of_locked,
)
from powercrud_dashboard.async_manager import AsyncManager
from powercrud_dashboard.engine import files, lifecycle, locks
from powercrud_dashboard.engine.calls import call, generator_refusal, is_generator_function
from powercrud_dashboard.engine.launch import runs_in_caller
from powercrud_dashboard.exceptions import (
    EnqueueError,
    TaskConflict,
    UnimportableCallable,
)
from powercrud_dashboard.models import TaskRecord
from powercrud_dashboard.models.database import write_transaction

logger = logging.getLogger(__name__)

#: Fields of the changelist form that are not parameters of the action.
CHANGELIST_FIELDS = ("csrfmiddlewaretoken", "_selected_action", "select_across", "index", "action", CONFIRMED)


def handle_click(
    action: BackgroundAction, model_admin: Admin, request: HttpRequest, queryset: QuerySet[Any]
) -> HttpResponseBase | None:
    """Launch the action for the selected rows.

    Returns:
        The confirmation page, the answer of an action that ran in the request, or None to return to the list.
    """
    if not action.is_allowed(model_admin, request):
        raise PermissionDenied
    if action.body is not None and not action.goes_to_background(request):
        return call(action.body, model_admin, request, queryset)  # type: ignore[no-any-return]
    if action.needs_confirmation:
        form = submitted_form(action, request)
        if form is None or not form.is_valid():
            return confirmation_page(action, model_admin, request, queryset, form)
    return Click(action, model_admin, request, queryset).launch()


class Click:
    """A launch from a changelist."""

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
        self.selected = SelectedRows(queryset, None)
        #: The key in get_actions(), by which the worker finds the action.
        self.action_name = chosen_name(request) or action.name
        self.name = str(uuid.uuid4())
        self.runs_in_request = False
        #: What the action has answered, if it ran in the request.
        self.answers: list[HttpResponseBase] = []

    def launch(self) -> HttpResponseBase | None:
        """Launch the task or tasks, all or none, and add a message.

        Returns:
            What an action that ran in the request has answered.
        """
        said = LaunchMessages(self.action, self.model_admin, self.request)
        try:
            self.action.check_function()
        except (UnimportableCallable, TypeError) as error:
            said.fail(error, self.name)
            return None
        try:
            launch = self._launch()
        except Exception as error:
            # What the action itself raises in the request is no refusal, whatever its class. It is recorded.
            locked_at_launch = self.runs_in_request and self.selected.pks is not None
            has_run = locked_at_launch and TaskRecord.objects.filter(task_name=self.name).exists()
            if has_run or not said.refuse(error, self.selected):
                if not self.runs_in_request:
                    raise
                logger.exception("Background action %s failed in the request", self.action.name)
                said.fail(error, self.name)
        else:
            said.report(launch)
        return self.answers[0] if self.answers else None

    def _launch(self) -> Launch:
        self.selected = SelectedRows.of_click(self.model_admin, self.request, self.queryset)
        for _attempt in range(locks.TAKE_ATTEMPTS - 1):
            rows, skipped = self._without_locked(self.selected)
            try:
                return self._launch_rows(rows, skipped)
            except TaskConflict:
                # With "skip" another task was faster: leave out its objects as well.
                if self.action.on_conflict != "skip" or self.runs_in_request:
                    raise
        return self._launch_rows(*self._without_locked(self.selected))

    def _launch_rows(self, rows: SelectedRows, skipped: dict[Any, str]) -> Launch:
        if rows.pks == []:
            return Launch("", "", 0, len(skipped), has_run=False)
        count = rows.count()
        chunk_size = self.action.chunk_size or 0
        is_small = count <= self._threshold
        self.runs_in_request = is_small or runs_in_caller()
        group = self.name if chunk_size and count > chunk_size and not is_small else ""
        # No transaction for tasks that run in the request: it would hold SQLite's write lock until they end. A single
        # launch is atomic, and keeps the record of a task that could not be queued.
        needs_transaction = bool(group or self.request.FILES or skipped) and not self.runs_in_request
        not_queued: EnqueueError | None = None
        with write_transaction() if needs_transaction else nullcontext():
            if self.request.FILES:
                files.keep_parameters(self.name, dict(self.request.FILES.lists()))
            try:
                if not group:
                    with returned_answers(self.request) as self.answers:
                        self._launch_one(rows, count, task_name=self.name, skipped=skipped)
                elif rows.pks is None:
                    self._launch_one(rows, count, group=group, path=SPLIT_SELECTION, skipped=skipped)
                else:
                    self._launch_chunks(rows, rows.pks, group, skipped)
            except EnqueueError as error:
                if group and rows.pks is not None:
                    # All or none.
                    raise
                # Its record and its files are kept, for a retry.
                not_queued = error
        if not_queued is not None:
            raise not_queued
        return Launch("" if group else self.name, group, count, len(skipped), has_run=self.runs_in_request)

    def _launch_chunks(self, rows: SelectedRows, pks: list[Any], group: str, skipped: dict[Any, str]) -> None:
        objects = {self.model_label: pks}
        reserves = self.runs_in_request and bool(self.action.conflict)
        # All or none, although the first task of the group has ended before the next one is launched. The launches
        # take over what this manager has reserved.
        if reserves and not self.manager.add_conflict_ids(group, objects):
            raise locks.conflict_on(locks.lock_keys(objects))
        try:
            size = self.action.chunk_size or len(pks)
            for number in range(0, len(pks), size):
                part = rows.restricted_to(pks[number : number + size])
                self._launch_chunk(part, group, {} if number else skipped)
        finally:
            if reserves:
                self.manager.remove_conflict_ids(group)

    def _launch_chunk(self, rows: SelectedRows, group: str, skipped: dict[Any, str]) -> None:
        name = str(uuid.uuid4())
        try:
            self._launch_one(rows, rows.count(), task_name=name, group=group, skipped=skipped)
        except Exception:
            if not (self.runs_in_request and TaskRecord.objects.filter(task_name=name).exists()):
                raise
            # It ran here and failed, which its own record says. The other tasks of the group follow.
            logger.exception("A task of the background action %s failed in the request", self.action.name)

    @property
    def _threshold(self) -> int:
        threshold = self.action.background_threshold
        return threshold if threshold is not None else int(getattr(self.model_admin, "background_threshold", 0))

    def _without_locked(self, rows: SelectedRows) -> tuple[SelectedRows, dict[Any, str]]:
        """Return the rows without those to skip, and the holders of the skipped rows by key."""
        if self.action.conflict is not True or self.action.on_conflict != "skip" or rows.pks is None:
            return rows, {}
        skipped = locked_rows(self.model_label, rows.pks)
        return rows.restricted_to([pk for pk in rows.pks if pk not in skipped]), skipped

    def _launch_one(
        self,
        rows: SelectedRows,
        count: int,
        *,
        skipped: dict[Any, str],
        task_name: str | None = None,
        group: str = "",
        path: str = RUN_ACTION,
    ) -> None:
        action = self.action
        objects = {self.model_label: rows.pks or []}
        splits = path == SPLIT_SELECTION
        name = task_name or str(uuid.uuid4())
        is_recorded = self.runs_in_request
        try:
            self.manager.launch_async_task(
                path,
                task_key=name,
                group=group or None,
                conflict_ids=self._conflict_ids(objects),
                object_ids={self.model_label: []} if splits else objects,
                object_count=0 if splits else count,
                by_object=action.per_object or splits,
                shown_func=action.function_name,
                unique_key=self._unique_key(rows),
                user=self.request.user,
                affected_objects=None if splits else rows.described(),
                label=action.label_for(self.model_admin),
                task_kwargs=self._arguments(rows, group if splits else ""),
                sync=self.runs_in_request,
                retry=action.retry,
            )
            is_recorded = True
        except EnqueueError:
            is_recorded = True
            raise
        finally:
            # Also if the task has failed in the request, or was not queued.
            if skipped and is_recorded:
                outcomes = outcomes_of_locked(self.lock_label, skipped, self.queryset)
                lifecycle.emit(self.manager, "objects", name, outcomes=outcomes, skipped_before=len(outcomes))

    def _conflict_ids(self, objects: dict[str, list[Any]]) -> locks.ConflictIds | None:
        if self.action.conflict == "model":
            return {self.model_label: locks.ALL_OBJECTS}
        # For "Select all" of many rows, the worker looks up and locks the rows.
        return objects if self.action.conflict else None

    def _arguments(self, rows: SelectedRows, group_to_launch: str = "") -> dict[str, Any]:
        # Only JSON-serializable values, so that the record can show the arguments.
        selected = {} if rows.pks is None else {"pks": [str(pk) for pk in rows.pks]}
        return {
            "site_name": self.model_admin.admin_site.name,
            "model": self.model_label,
            "action_name": self.action_name,
            **selected,
            "user_pk": str(self.request.user.pk),
            "path": changelist_path(self.request),
            "surroundings": surroundings_of(self.request),
            "post": self._post(),
            **({"files_of": self.name} if self.request.FILES else {}),
            **({"group": group_to_launch} if group_to_launch else {}),
        }

    def _post(self) -> dict[str, list[str]]:
        # The fields of list_editable are not parameters either. A page of the action itself has none.
        is_changelist = not isinstance(self.action.background_when, str)
        editable = EDITABLE_PREFIX if self.model_admin.list_editable and is_changelist else None
        return {
            name: list(values)
            for name, values in self.request.POST.lists()
            if name not in CHANGELIST_FIELDS and not (editable and name.startswith(editable))
        }

    def _unique_key(self, rows: SelectedRows) -> str:
        """Return a key for the action, the selection and the parameters; "" for a click with files."""
        # The same query string may mean other rows for another user.
        selected = rows.pks if rows.pks is not None else f"{filters_of(self.request)} {self.request.user.pk}"
        if self.request.FILES:
            return ""
        site_name = self.model_admin.admin_site.name
        return click_key(site_name, self.model_label, self.action_name, selected, self._post())


Action = TypeVar("Action", bound=ActionFunction)

#: The function of an action is the decorated one.
DECORATOR_OPTIONS = {field.name for field in fields(BackgroundAction)} - {"body", "task"}


@overload
def background_action(function: Action) -> Action: ...


@overload
def background_action(function: None = None, **options: Any) -> Callable[[Action], Action]: ...


def background_action(function: ActionFunction | None = None, **options: Any) -> Any:
    """Run an admin action in the background.

    The action has the usual signature, ``(self, request, queryset)``, as a method or a function. Running it from the
    changelist locks the selected objects and launches a task. A worker calls the function with the ``ModelAdmin``, a
    request with the user, and the selected rows.

    Args:
        function: the action, if the decorator is used without arguments.
        **options: the fields of :class:`BackgroundAction` but ``body`` and ``task``. ``description`` and
            ``permissions`` default to those of the action; without a description, its name is used.

    Raises:
        TypeError: if an option is unknown, or the action is a generator function.
        ValueError: if options are invalid or contradict each other.
    """

    if unknown := sorted(options.keys() - DECORATOR_OPTIONS):
        similar = get_close_matches(unknown[0], DECORATOR_OPTIONS, n=1)
        hint = f"Did you mean {similar[0]!r}?" if similar else f"It has {', '.join(sorted(DECORATOR_OPTIONS))}."
        raise TypeError(f"background_action() has no option {unknown[0]!r}. {hint}")

    def decorate(body: ActionFunction) -> ActionFunction:
        if is_generator_function(body):
            raise TypeError(generator_refusal(body.__qualname__))
        defaults = {
            "name": body.__name__,
            "description": getattr(body, "short_description", None) or capfirst(body.__name__.replace("_", " ")),
            "permissions": tuple(getattr(body, "allowed_permissions", ())),
        }
        overrides = {name: value for name, value in options.items() if value is not None}
        return launcher(BackgroundAction(**{**defaults, **overrides, "body": body}))

    return decorate if function is None else decorate(function)


def launcher(action: BackgroundAction) -> ActionFunction:
    """Return an admin action that launches the background action if it is chosen in a changelist.

    Called by other code, it runs in place.
    """

    def launch(model_admin: Admin, request: HttpRequest, rows: Any, *args: Any, **kwargs: Any) -> Any:
        if action.body is not None and not is_click(action, model_admin, request):
            return call(action.body, model_admin, request, rows, *args, **kwargs)
        return handle_click(action_of(launch) or action, model_admin, request, rows)

    launch.__name__ = action.name
    launch.short_description = action.description  # type: ignore[attr-defined]
    launch.background_action = action  # type: ignore[attr-defined]
    if action.permissions:
        launch.allowed_permissions = list(action.permissions)  # type: ignore[attr-defined]
    for name in ("locations", "plural_description"):
        # Set by Django's action decorator since Django 6.1.
        if hasattr(action.body, name):
            setattr(launch, name, getattr(action.body, name))
    return launch
