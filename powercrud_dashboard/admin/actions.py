"""Declaration of background actions, and their lookup by name in a worker."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, cast

from django.conf import settings
from django.contrib.admin import ModelAdmin
from django.contrib.admin.sites import all_sites
from django.contrib.admin.utils import model_format_dict
from django.core.exceptions import PermissionDenied
from django.forms import BaseForm, Form
from django.http import HttpRequest, QueryDict
from django.utils.datastructures import MultiValueDict
from django.utils.text import capfirst
from django.utils.translation import gettext_lazy as _

from powercrud_dashboard.async_context import get_current_task
from powercrud_dashboard.async_manager import RetryPolicy
from powercrud_dashboard.engine.pace import Limit, is_number
from powercrud_dashboard.engine.spec import INJECTED, accepted_arguments, check_arguments, resolve_function
from powercrud_dashboard.text import SHORT, KeptText, clean_text, describe, lazy_text

_NO_ACTION = KeptText(_("%(admin)s has no background action “%(action)s”."))
_NO_ADMIN = KeptText(_("The admin site “%(site)s” has no admin for %(model)s."))
_NO_PERMISSION = KeptText(_("%(user)s does not have permission for “%(action)s”."))


def function_of(entry: Any) -> Callable[..., Any]:
    """Return the function of an entry of ``ModelAdmin.get_actions()``."""
    function: Callable[..., Any] = entry[0] if isinstance(entry, tuple) else entry.func
    return function


def description_of(entry: Any) -> Any:
    """Return the description of an entry, with placeholders for the names of the model."""
    return entry[2] if isinstance(entry, tuple) else entry.plural_description


def with_function(entry: Any, function: Callable[..., Any], description: Any) -> Any:
    """Return a copy of the entry with another function and description."""
    if isinstance(entry, tuple):
        return (function, entry[1], description)
    return dataclasses.replace(entry, func=function, description=description, plural_description=description)


if TYPE_CHECKING:
    Admin = ModelAdmin[Any]
else:
    Admin = ModelAdmin

ActionFunction = Callable[..., Any]


@dataclass(frozen=True)
class BackgroundAction:
    """One background action of a ``ModelAdmin``.

    Raises:
        TypeError: if ``retry`` is neither a policy nor a whole number.
        ValueError: if options are invalid or contradict each other.
    """

    #: Name of the admin action.
    name: str
    #: Description in the action menu and in the task list.
    description: Any
    #: The user needs one of these (``"change"``, ``"delete"``, ...). Checked on launch and again in the worker.
    permissions: Sequence[str] = ()
    #: What the task locks: the selected objects (True), nothing (False), or the whole model.
    conflict: bool | Literal["model"] = True
    #: What to do if selected objects are locked: refuse the launch, or skip those objects.
    on_conflict: Literal["abort", "skip"] = "abort"
    #: Whether to call the function once for each object and record each outcome. A failure does not stop the task.
    per_object: bool = False
    #: A form for parameters, shown before the launch. The function gets its ``cleaned_data`` if it accepts that.
    form: type[BaseForm] | None = None
    #: Whether to ask for confirmation, also without a form.
    confirm: bool = False
    #: Maximum number of objects in a task. Larger selections are split into a group of tasks that run in parallel.
    chunk_size: int | None = None
    #: Run selections of at most this many objects in the request. None uses the threshold of the admin.
    background_threshold: int | None = None
    #: For an action that first shows a page of its own: the POST field that this page submits, or a callable that takes
    #: the request. Until the field is there, or the callable returns true, the action runs in the request.
    background_when: str | Callable[[HttpRequest], bool] | None = None
    #: A :class:`RetryPolicy`, or a number of retries.
    retry: RetryPolicy | int | None = None
    #: Seconds after which a task gives its worker back at its next object, and is queued again for the objects that are
    #: left. A task function that is not called per object goes on if it takes ``resume_at``.
    slice: float | None = None
    #: Objects a second, or a callable that returns the seconds to wait before the next object, 0 to go on. It applies
    #: to each task, at each item of its ``track()``.
    throttle: Limit | None = None
    #: The body of an admin action; None for a task function.
    body: ActionFunction | None = None
    #: Dotted path of a task function with the arguments ``pks`` and ``model``; "" for an admin action.
    task: str = ""

    def __post_init__(self) -> None:
        if self.on_conflict not in ("abort", "skip"):
            raise ValueError(f"on_conflict is {self.on_conflict!r}; use 'abort' or 'skip'.")
        if self.conflict not in (True, False, "model"):
            raise ValueError(f"conflict is {self.conflict!r}; use True, False or 'model'.")
        if self.conflict == "model" and self.on_conflict == "skip":
            raise ValueError("conflict='model' can't be combined with on_conflict='skip'.")
        if self.conflict == "model" and self.chunk_size:
            raise ValueError(
                "conflict='model' can't be combined with chunk_size, because only one task can lock a whole model. "
                "Use conflict=True, or remove chunk_size."
            )
        # Options of a wrong type are errors of the system checks.
        if isinstance(self.chunk_size, int) and self.chunk_size < 1:
            raise ValueError(f"chunk_size is {self.chunk_size}; use a number of at least 1.")
        if self.background_when is not None and (self.task or self.needs_confirmation):
            raise ValueError("background_when is for an admin action with a page of its own, without form and confirm.")
        RetryPolicy.of(self.retry)
        if isinstance(self.slice, int | float) and self.slice <= 0:
            raise ValueError(f"slice is {self.slice}; use a number of seconds that is greater than 0.")
        if is_number(self.throttle) and not 0 < cast(float, self.throttle) < math.inf:
            raise ValueError(f"throttle is {self.throttle}; use a number of objects a second that is greater than 0.")

    def goes_to_background(self, request: HttpRequest) -> bool:
        """Return whether this request launches the action; if not, the action runs in it, to show its own page."""
        if callable(self.background_when):
            return self.background_when(request)
        return self.background_when is None or self.background_when in request.POST

    @property
    def needs_confirmation(self) -> bool:
        return self.confirm or self.form is not None

    @property
    def function_name(self) -> str:
        """The dotted path of the function, for display."""
        return self.task or (f"{self.body.__module__}.{self.body.__qualname__}" if self.body else "")

    def check_function(self) -> None:
        """Check that a worker can call the task function, if there is one.

        Raises:
            UnimportableCallable: if it can't be imported.
            TypeError: if it does not take the arguments, or is a generator function.
        """
        if not self.task:
            return
        path, function = resolve_function(self.task)
        args, kwargs = ((None,), {}) if self.per_object else ((), {"pks": [], "model": ""})
        check_arguments(path, function, args, {**kwargs, **self._options_for(function)})

    def check_body(self) -> None:
        """Check that the body, if there is one, takes the admin, the request and the rows.

        Raises:
            TypeError: if it does not, going by its signature, which a decorator may hide.
        """
        if self.body is not None:
            check_arguments(self.function_name, self.body, (None,) * 3, self._options_for(self.body))

    def _options_for(self, function: ActionFunction) -> dict[str, Any]:
        available = {**INJECTED, **({"cleaned_data": {}} if self.form else {})}
        return accepted_arguments(function, available)

    def is_allowed(self, model_admin: Admin, request: HttpRequest) -> bool:
        """Return whether the user has one of the permissions, as for Django's admin actions."""
        if not self.permissions:
            return True
        return any(getattr(model_admin, f"has_{name}_permission")(request) for name in self.permissions)

    def is_allowed_for_object(self, model_admin: Admin, request: HttpRequest, obj: Any) -> bool:
        """Return whether the user has one of the permissions for this object."""
        if not self.permissions:
            return True
        return any(_has_object_permission(model_admin, name, request, obj) for name in self.permissions)

    def label_for(self, model_admin: Admin) -> str:
        """Return the description with the names of the model filled in, as a lazy translation."""
        return lazy_text(self.description, **model_format_dict(model_admin.opts))


#: Well-known actions with a page of their own, and the field that it submits.
OWN_PAGES = {"delete_selected": "post"}


def declared_action(item: str | BackgroundAction) -> BackgroundAction:
    """Return the background action that an item of ``background_actions`` stands for.

    Raises:
        TypeError: if it is neither.
    """
    if isinstance(item, BackgroundAction):
        return item
    if not isinstance(item, str):
        raise TypeError(
            f"background_actions has {describe(item, SHORT)}; use the dotted path of a task function, the name of an "
            "existing action, or a BackgroundAction."
        )
    if "." not in item:
        return BackgroundAction(name=item, description="", background_when=OWN_PAGES.get(item))
    name = item.rpartition(".")[2]
    return BackgroundAction(
        name=name,
        description=capfirst(name.replace("_", " ")),
        permissions=("change",),
        task=item,
    )


def _has_object_permission(model_admin: Admin, name: str, request: HttpRequest, obj: Any) -> bool:
    check = getattr(model_admin, f"has_{name}_permission")
    # Custom permission methods, such as has_archive_permission, take only the request.
    takes_object = len(inspect.signature(check).parameters) > 1
    return bool(check(request, obj) if takes_object else check(request))


#: Separates the fields of the form from those of the changelist.
FORM_PREFIX = "pcrud"


def bound_form(action: BackgroundAction, data: QueryDict, files: MultiValueDict[str, Any]) -> BaseForm:
    return (action.form or Form)(data, files, prefix=FORM_PREFIX)


def action_of(function: object) -> BackgroundAction | None:
    """Return the background action of an admin action; None for other admin actions."""
    action = getattr(function, "background_action", None)
    if not isinstance(action, BackgroundAction):
        return None
    # These may have been set after the decorator, as Django's own decorator does.
    description = getattr(function, "short_description", None) or action.description
    permissions = tuple(getattr(function, "allowed_permissions", action.permissions))
    return dataclasses.replace(action, description=description, permissions=permissions)


def chosen_name(request: HttpRequest) -> str:
    """Return the name of the action that was chosen in a changelist, "" for none.

    With an action bar above the list and one below it, ``index`` names the one whose button was pressed, as for Django.
    """
    names = request.POST.getlist("action")
    try:
        index = int(request.POST.get("index", 0))
    except ValueError:
        index = 0
    try:
        return names[index]
    except IndexError:
        return names[-1] if names else ""


def is_click(action: BackgroundAction, model_admin: Admin, request: HttpRequest) -> bool:
    """Return whether the action was chosen in a changelist, and is not called by other code."""
    name = chosen_name(request)
    if get_current_task() is not None or not name:
        return False
    entry = model_admin.get_actions(request).get(name)
    chosen = getattr(function_of(entry), "background_action", None) if entry else None
    if chosen is None:
        # Another package has wrapped the function.
        return name == action.name
    # By name, as get_actions() may make the functions anew.
    return bool(chosen.function_name == action.function_name)


def find_action(model_admin: Admin, request: HttpRequest, name: str) -> BackgroundAction:
    """Return the background action with this name, without checking its permissions.

    Raises:
        LookupError: if there is none.
        PermissionDenied: if it wraps an action of another package that the user may not use.
    """
    entry = model_admin.get_actions(request).get(name)
    candidates = [
        function_of(entry) if entry else None,
        getattr(type(model_admin), name, None),
        *(item for item in model_admin.actions or () if getattr(item, "__name__", "") == name),
        *(function for action_name, function in model_admin.admin_site.actions if action_name == name),
    ]
    for function in candidates:
        if action := action_of(function):
            return action
    if name in getattr(model_admin, "wrapped_actions", {}):
        # get_actions() omits actions without permission.
        entry = model_admin.get_action(name)
        described = lazy_text(description_of(entry), **model_format_dict(model_admin.opts)) if entry else name
        # In the site's own language, as the labels of tasks.
        label = clean_text(described, SHORT)
        raise PermissionDenied(_NO_PERMISSION(user=clean_text(request.user, SHORT), action=label))
    raise LookupError(_NO_ACTION(admin=type(model_admin).__name__, action=name))


def find_model_admin(site_name: str, model_label: str) -> Admin:
    """Return the ``ModelAdmin`` of the model in the admin site with this name.

    Raises:
        LookupError: if there is none.
    """
    if all(site.name != site_name for site in all_sites):
        # Custom admin sites are often created by the URLconf, which a worker does not import.
        import_module(settings.ROOT_URLCONF)
    for site in all_sites:
        if site.name == site_name:
            for registered, model_admin in site._registry.items():
                if registered._meta.label_lower == model_label:
                    return model_admin
    raise LookupError(_NO_ADMIN(site=site_name, model=model_label))
