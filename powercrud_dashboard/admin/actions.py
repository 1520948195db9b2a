"""How a background action is declared, and found again by its name in a worker."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from django.conf import settings
from django.contrib.admin import ModelAdmin
from django.contrib.admin.sites import all_sites
from django.contrib.admin.utils import model_format_dict
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.forms import BaseForm
from django.http import HttpRequest, HttpResponseBase
from django.utils.text import capfirst
from django.utils.translation import gettext as _

from powercrud_dashboard.admin.action_entries import function_of
from powercrud_dashboard.retry_policy import DEFAULT_BACKOFF, ExceptionClass, RetryPolicy

if TYPE_CHECKING:
    Admin = ModelAdmin[Any]
    ActionFunction = Callable[..., Any]


@dataclass(frozen=True)
class BackgroundAction:
    """One background action of a ``ModelAdmin``.

    Raises:
        ValueError: if the options contradict each other.
    """

    #: Name among the admin's actions.
    name: str
    #: What people read in the menu and in the task list.
    description: Any
    #: Of these (``"change"``, ``"delete"``, ...) the user needs one, at the click and again in the worker.
    permissions: Sequence[str] = ()
    #: What is locked: the selected objects, nothing, or the whole model.
    conflict: bool | Literal["model"] = True
    #: What happens if selected objects are locked: refuse all, or run without those.
    on_conflict: Literal["abort", "skip"] = "abort"
    #: Whether the function is given one object at a time, each on its own.
    per_object: bool = False
    #: Asks for parameters on a page of its own first.
    form: type[BaseForm] | None = None
    #: Asks for a confirmation first, also without a form.
    confirm: bool = False
    #: Objects of one task; a larger selection becomes a group of tasks.
    chunk_size: int | None = None
    #: Selections of up to so many objects run at once, in the request. None takes the admin's own.
    background_threshold: int | None = None
    #: How often a task runs again by itself after an error, and the further options of ``launch_async_task`` for that.
    max_retries: int = 0
    retry_backoff: float = DEFAULT_BACKOFF
    retry_on: Sequence[ExceptionClass] = ()
    give_up_on: Sequence[ExceptionClass] = ()
    requeue_on_stop: bool | None = None
    #: The body of an admin action; None for a task function.
    body: ActionFunction | None = None
    #: Dotted path of a task function, which is given ``pks`` and ``model``; "" for a body.
    task: str = ""

    def __post_init__(self) -> None:
        if self.on_conflict not in ("abort", "skip"):
            raise ValueError(f"on_conflict is {self.on_conflict!r}; use 'abort' or 'skip'.")
        if self.conflict not in (True, False, "model"):
            raise ValueError(f"conflict is {self.conflict!r}; use True, False or 'model'.")
        if self.conflict == "model" and self.on_conflict == "skip":
            raise ValueError("A whole model is locked or not: conflict='model' does not go with on_conflict='skip'.")
        if self.conflict == "model" and self.chunk_size:
            raise ValueError(
                "Only one task can lock a whole model: conflict='model' does not go with chunk_size. "
                "Use conflict=True, or leave chunk_size out."
            )
        if self.chunk_size is not None and self.chunk_size < 1:
            raise ValueError(f"chunk_size is {self.chunk_size}; use a number of objects, at least 1.")
        # Complains of what makes no sense.
        RetryPolicy.make(
            max_retries=self.max_retries,
            backoff=self.retry_backoff,
            retry_on=self.retry_on,
            give_up_on=self.give_up_on,
            requeue_on_stop=self.requeue_on_stop,
        )

    @property
    def retry_options(self) -> dict[str, Any]:
        """What ``launch_async_task`` is told of retries."""
        names = ("max_retries", "retry_backoff", "retry_on", "give_up_on", "requeue_on_stop")
        return {name: getattr(self, name) for name in names}

    @property
    def asks_first(self) -> bool:
        return self.confirm or self.form is not None

    @property
    def function_name(self) -> str:
        """The dotted path of what really runs, for people to read."""
        return self.task or (f"{self.body.__module__}.{self.body.__qualname__}" if self.body else "")

    def is_allowed(self, model_admin: Admin, request: HttpRequest) -> bool:
        """Return whether the user has one of the permissions, in the way of Django's own actions."""
        if not self.permissions:
            return True
        return any(getattr(model_admin, f"has_{name}_permission")(request) for name in self.permissions)

    def is_allowed_on(self, model_admin: Admin, request: HttpRequest, obj: Any) -> bool:
        """Return whether the user has one of the permissions for this object."""
        if not self.permissions:
            return True
        return any(_has_object_permission(model_admin, name, request, obj) for name in self.permissions)

    def label_for(self, model_admin: Admin) -> str:
        """Return the description with the model's names in their places, as Django's own actions have them."""
        return str(self.description) % model_format_dict(model_admin.opts)


def _has_object_permission(model_admin: Admin, name: str, request: HttpRequest, obj: Any) -> bool:
    check = getattr(model_admin, f"has_{name}_permission")
    # Permissions of a project's own, such as has_archive_permission, take the request alone.
    takes_object = len(inspect.signature(check).parameters) > 1
    return bool(check(request, obj) if takes_object else check(request))


def background_action(
    function: ActionFunction | None = None,
    *,
    description: Any = None,
    permissions: Sequence[str] | None = None,
    conflict: bool | Literal["model"] = True,
    on_conflict: Literal["abort", "skip"] = "abort",
    per_object: bool = False,
    form: type[BaseForm] | None = None,
    confirm: bool = False,
    chunk_size: int | None = None,
    background_threshold: int | None = None,
    max_retries: int = 0,
    retry_backoff: float = DEFAULT_BACKOFF,
    retry_on: Sequence[ExceptionClass] = (),
    give_up_on: Sequence[ExceptionClass] = (),
    requeue_on_stop: bool | None = None,
) -> Any:
    """Make an admin action run in the background.

    The action is written as ever, ``(self, request, queryset)``, as a method or a function; one that exists already
    is wrapped in place. A click locks the selected objects and launches a task; the body runs in a worker, with the
    real ``ModelAdmin``, a request that has the user, and the selected rows.

    Args:
        function: the action, for use without arguments.
        description: what people read; by default the action's own, or made from its name.
        permissions: of these (``"change"``, ...) the user needs one; by default the action's own.
        conflict: True locks the selected objects, False none, ``"model"`` the whole model.
        on_conflict: ``"abort"`` refuses a selection with locked objects, ``"skip"`` runs without those.
        per_object: the body gets one object, ``(self, request, obj)``; each is on its own, and is recorded.
        form: a form whose ``cleaned_data`` the body gets, if it takes an argument of this name.
        confirm: asks for a confirmation first.
        chunk_size: objects of one task; a larger selection becomes a group of tasks that run in parallel.
        background_threshold: selections of up to so many objects run at once.
        max_retries: how often a task runs again by itself after an error.
        retry_backoff: seconds to the first of these, give or take; each further wait is twice as long.
        retry_on: exception classes that it runs again after; by default all errors, and its time limit.
        give_up_on: exception classes that end it at once.
        requeue_on_stop: whether a cluster that stops interrupts it, to be queued again.

    Raises:
        ValueError: if the options contradict each other.
    """
    options = BackgroundAction(
        name="",
        description=description,
        conflict=conflict,
        on_conflict=on_conflict,
        per_object=per_object,
        form=form,
        confirm=confirm,
        chunk_size=chunk_size,
        background_threshold=background_threshold,
        max_retries=max_retries,
        retry_backoff=retry_backoff,
        retry_on=retry_on,
        give_up_on=give_up_on,
        requeue_on_stop=requeue_on_stop,
    )

    def decorate(body: ActionFunction) -> ActionFunction:
        name = body.__name__
        own = getattr(body, "short_description", None)
        action = replace(
            options,
            name=name,
            description=description or own or capfirst(name.replace("_", " ")),
            permissions=tuple(getattr(body, "allowed_permissions", ()) if permissions is None else permissions),
            body=body,
        )
        return launcher(action)

    return decorate if function is None else decorate(function)


def launcher(action: BackgroundAction) -> ActionFunction:
    """Return an admin action that launches ``action``, as Django's admin takes it."""

    def launch(model_admin: Admin, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponseBase | None:
        # Here, as clicks know of actions and not the other way round.
        from powercrud_dashboard.admin.clicks import click

        return click(action, model_admin, request, queryset)

    launch.__name__ = action.name
    launch.short_description = action.description  # type: ignore[attr-defined]
    launch.background_action = action  # type: ignore[attr-defined]
    if action.permissions:
        launch.allowed_permissions = list(action.permissions)  # type: ignore[attr-defined]
    for name in ("locations", "plural_description"):
        # What Django's own decorator says from 6.1 on.
        if hasattr(action.body, name):
            setattr(launch, name, getattr(action.body, name))
    return launch


def action_of(function: object) -> BackgroundAction | None:
    """Return the background action that an admin action launches, if it is one."""
    found = getattr(function, "background_action", None)
    return found if isinstance(found, BackgroundAction) else None


def find_action(model_admin: Admin, request: HttpRequest, name: str) -> BackgroundAction:
    """Return the background action of this name, whether this person may use it or not.

    Raises:
        LookupError: if there is none (any more).
        PermissionDenied: if it is one of another package that is not offered to this person (any more).
    """
    offered = model_admin.get_actions(request).get(name)
    declared = [
        function_of(offered) if offered else None,
        getattr(type(model_admin), name, None),
        *(item for item in model_admin.actions or () if getattr(item, "__name__", "") == name),
        *(function for action_name, function in model_admin.admin_site.actions if action_name == name),
    ]
    for function in declared:
        if action := action_of(function):
            return action
    if name in getattr(model_admin, "wrapped_actions", {}):
        # Django does not offer what this person may not do.
        raise PermissionDenied(
            _("%(user)s may not use “%(action)s” (any more).") % {"user": request.user, "action": name}
        )
    raise LookupError(f"{type(model_admin).__name__} has no background action {name!r} (any more).")


def find_model_admin(site_name: str, model_label: str) -> Admin:
    """Return the admin of this model in the admin site of this name.

    Raises:
        LookupError: if there is none (any more).
    """
    if all(site.name != site_name for site in all_sites):
        # A site of the project's own is often made where only its URLs import it, which a worker needs not.
        import_module(settings.ROOT_URLCONF)
    for site in all_sites:
        if site.name == site_name:
            for registered, model_admin in site._registry.items():
                if registered._meta.label_lower == model_label:
                    return model_admin
    raise LookupError(f"The admin site {site_name!r} has no admin for {model_label} (any more).")
