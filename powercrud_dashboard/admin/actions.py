"""Background actions: how they are declared, launched from a changelist, and run in a worker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from django.contrib import messages
from django.contrib.admin import ModelAdmin, helpers
from django.contrib.admin.sites import all_sites
from django.contrib.auth import get_user_model
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.urls import NoReverseMatch, reverse
from django.utils.html import format_html, format_html_join
from django.utils.text import capfirst
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from powercrud_dashboard.admin.worker_request import worker_request
from powercrud_dashboard.async_manager import AsyncManager
from powercrud_dashboard.exceptions import EnqueueError, TaskConflict
from powercrud_dashboard.models import TaskRecord

if TYPE_CHECKING:
    Admin = ModelAdmin[Any]
    ActionFunction = Callable[[Any, HttpRequest, QuerySet[Any]], Any]

#: Objects described in the record; their number is exact.
DESCRIBED_OBJECTS = 100

RUN_ADMIN_ACTION = "powercrud_dashboard.admin.actions.run_admin_action"


@dataclass(frozen=True)
class BackgroundAction:
    """One background action of a ``ModelAdmin``."""

    #: Name among the admin's actions.
    name: str
    #: What people read in the menu and in the task list.
    description: str
    #: Of these (``"change"``, ``"delete"``, ...) the user needs one, at the click and again in the worker.
    permissions: Sequence[str] = ()
    #: What happens if selected objects are locked: refuse all, or run without those.
    on_conflict: Literal["abort", "skip"] = "abort"
    #: The body of an admin action; None for a task function.
    body: ActionFunction | None = None
    #: Dotted path of a task function, which is given ``pks`` and ``model``; "" for a body.
    task: str = ""

    def is_allowed(self, model_admin: Admin, request: HttpRequest) -> bool:
        """Return whether the user has one of the permissions, in the way of Django's own actions."""
        if not self.permissions:
            return True
        return any(getattr(model_admin, f"has_{name}_permission")(request) for name in self.permissions)


def background_action(
    *,
    description: str | None = None,
    permissions: Sequence[str] = (),
    on_conflict: Literal["abort", "skip"] = "abort",
) -> Callable[[ActionFunction], ActionFunction]:
    """Make an admin action run in the background.

    The action is written as ever, ``(self, request, queryset)``. A click locks the selected objects and
    launches one task; the body runs in a worker, with the real ``ModelAdmin``, a request that has the
    user, and the selected rows. ``self.message_user(...)`` becomes a line on the task's page.

    Args:
        description: what people read; by default made from the name.
        permissions: of these (``"change"``, ...) the user needs one.
        on_conflict: ``"abort"`` refuses a selection with locked objects, ``"skip"`` runs without those.
    """
    if on_conflict not in ("abort", "skip"):
        raise ValueError(f"on_conflict is {on_conflict!r}; use 'abort' or 'skip'.")

    def decorate(body: ActionFunction) -> ActionFunction:
        action = BackgroundAction(
            name=body.__name__,
            description=description or capfirst(body.__name__.replace("_", " ")),
            permissions=tuple(permissions),
            on_conflict=on_conflict,
            body=body,
        )
        return launcher(action)

    return decorate


def launcher(action: BackgroundAction) -> ActionFunction:
    """Return an admin action that launches ``action``, as Django's admin takes it."""

    def launch(model_admin: Admin, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        launch_action(action, model_admin, request, queryset)

    launch.__name__ = action.name
    launch.short_description = action.description  # type: ignore[attr-defined]
    launch.background_action = action  # type: ignore[attr-defined]
    if action.permissions:
        launch.allowed_permissions = list(action.permissions)  # type: ignore[attr-defined]
    return launch


def launch_action(
    action: BackgroundAction, model_admin: Admin, request: HttpRequest, queryset: QuerySet[Any]
) -> str | None:
    """Launch the action for the selected objects and say so to the user.

    Returns the task's name, or None if it was refused; then a message says why.
    """
    if not action.is_allowed(model_admin, request):
        raise PermissionDenied
    manager = AsyncManager.resolve_manager()
    label = model_admin.opts.label_lower
    pks = list(queryset.values_list("pk", flat=True))
    skipped: set[Any] = set()
    if action.on_conflict == "skip":
        skipped = set(manager.check_conflict({label: pks}))
        pks = [pk for pk in pks if pk not in skipped]
        if not pks:
            model_admin.message_user(request, _("All of the selected objects are locked."), messages.ERROR)
            return None
    described = queryset.filter(pk__in=pks[:DESCRIBED_OBJECTS]) if skipped else queryset[:DESCRIBED_OBJECTS]
    try:
        task_name = manager.launch_async_task(
            action.task or RUN_ADMIN_ACTION,
            conflict_ids={label: pks},
            user=request.user,
            affected_objects=described,
            label=str(action.description),
            task_kwargs=_task_arguments(action, model_admin, request, pks),
        )
    except TaskConflict as conflict:
        _say_refused(action, model_admin, request, conflict)
        return None
    except EnqueueError as error:
        model_admin.message_user(request, str(error), messages.ERROR)
        return None
    _say_launched(action, model_admin, request, task_name, len(pks), len(skipped))
    return task_name


def _task_arguments(
    action: BackgroundAction, model_admin: Admin, request: HttpRequest, pks: list[Any]
) -> dict[str, Any]:
    label = model_admin.opts.label_lower
    if action.task:
        return {"pks": pks, "model": label}
    return {
        "site_name": model_admin.admin_site.name,
        "model": label,
        "action_name": action.name,
        "pks": pks,
        "user_pk": request.user.pk,
        "path": request.get_full_path(),
    }


def _say_launched(
    action: BackgroundAction, model_admin: Admin, request: HttpRequest, task_name: str, count: int, skipped: int
) -> None:
    words = ngettext(
        "“%(action)s” runs in the background for %(count)d object.",
        "“%(action)s” runs in the background for %(count)d objects.",
        count,
    ) % {"action": action.description, "count": count}
    link = task_url(model_admin.admin_site.name, task_name)
    message = format_html('{} <a href="{}">{}</a>', words, link, _("See its progress")) if link else words
    model_admin.message_user(request, message, messages.SUCCESS)
    if skipped:
        model_admin.message_user(
            request,
            ngettext("%(count)d locked object was left out.", "%(count)d locked objects were left out.", skipped)
            % {"count": skipped},
            messages.WARNING,
        )


def _say_refused(action: BackgroundAction, model_admin: Admin, request: HttpRequest, conflict: TaskConflict) -> None:
    words = ngettext(
        "“%(action)s” was not started: %(count)d of the selected objects is in use by",
        "“%(action)s” was not started: %(count)d of the selected objects are in use by",
        conflict.total,
    ) % {"action": action.description, "count": conflict.total}
    labels = {item.holder: item.holder_label or item.holder for item in conflict.held}
    links = [(task_url(model_admin.admin_site.name, holder), label) for holder, label in labels.items()]
    linked = format_html_join(", ", "{}", ((_link(url, label),) for url, label in links))
    message = format_html("{} {}. {}", words, linked, _("Wait until it has ended, or cancel it, and try again."))
    model_admin.message_user(request, message, messages.ERROR)


def _link(url: str, label: str) -> str:
    return format_html('<a href="{}">{}</a>', url, label) if url else label


def task_url(site_name: str, task_name: str) -> str:
    """Return the address of a task's page in this admin site, or "" if it has none."""
    pk = TaskRecord.objects.filter(task_name=task_name).values_list("pk", flat=True).first()
    try:
        return reverse("admin:powercrud_dashboard_taskrecord_change", args=[pk], current_app=site_name) if pk else ""
    except NoReverseMatch:
        return ""


def run_admin_action(
    *, site_name: str, model: str, action_name: str, pks: list[Any], user_pk: Any, path: str = ""
) -> Any:
    """Run the body of a background action in a worker.

    Raises:
        PermissionDenied: if the user is gone, was deactivated or has lost the permission since the click.
        LookupError: if the admin site, the model's admin or the action does not exist any more.
    """
    model_admin = _model_admin(site_name, model)
    action, body = find_action(model_admin, action_name)
    user = get_user_model()._default_manager.filter(pk=user_pk).first()
    if user is None or not user.is_active:
        raise PermissionDenied("The user who launched this task was deleted or deactivated since.")
    request = worker_request(user, path, {"action": action_name, helpers.ACTION_CHECKBOX_NAME: pks})
    if not (model_admin.admin_site.has_permission(request) and action.is_allowed(model_admin, request)):
        raise PermissionDenied(f"{user} has lost the permission for “{action.description}” since launching it.")
    queryset = model_admin.get_queryset(request).filter(pk__in=pks)
    result = body(model_admin, request, queryset)
    return None if isinstance(result, HttpResponseBase) else result


def find_action(model_admin: Admin, name: str) -> tuple[BackgroundAction, ActionFunction]:
    """Return the action that was declared under this name on the admin class, and its body."""
    action = getattr(getattr(type(model_admin), name, None), "background_action", None)
    if not isinstance(action, BackgroundAction) or action.body is None:
        raise LookupError(f"{type(model_admin).__name__} has no background action {name!r} (any more).")
    return action, action.body


def _model_admin(site_name: str, model_label: str) -> Admin:
    for site in all_sites:
        if site.name == site_name:
            for registered, model_admin in site._registry.items():
                if registered._meta.label_lower == model_label:
                    return model_admin
    raise LookupError(f"The admin site {site_name!r} has no admin for {model_label} (any more).")
