"""Checks of the background actions of a ``ModelAdmin``, as a part of its ``check()``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, cast

from django.core.checks import CheckMessage, Error, Warning
from django.db.models import CompositePrimaryKey
from django.forms import BaseForm
from django.http import HttpRequest
from django.utils.functional import Promise

from powercrud_dashboard.admin.actions import BackgroundAction, action_of, declared_action, function_of
from powercrud_dashboard.async_manager import RetryPolicy
from powercrud_dashboard.engine.calls import generator_refusal, is_generator_function
from powercrud_dashboard.engine.pace import is_number
from powercrud_dashboard.engine.spec import accepted_arguments, resolve_function
from powercrud_dashboard.exceptions import UnimportableCallable
from powercrud_dashboard.q2 import queue
from powercrud_dashboard.text import SHORT, describe

if TYPE_CHECKING:
    from powercrud_dashboard.admin.mixins import BackgroundActionsMixin


def check_background_actions(model_admin: BackgroundActionsMixin) -> list[CheckMessage]:
    """Check the items of ``background_actions``."""
    items: Any = model_admin.background_actions
    if isinstance(items, str):
        return [
            Error(
                f"background_actions is the string {items!r}, not a list.",
                hint=f"Use [{items!r}].",
                obj=model_admin.__class__,
                id="powercrud_dashboard.E020",
            )
        ]
    actions = [declared_action(item) for item in items]
    return [
        *_invalid_options(model_admin, actions),
        *(message for action in actions for message in _invalid_function(model_admin, action)),
        *(message for action in actions for message in _unknown_permissions(model_admin, action)),
        *_wrapped_actions(model_admin, {action.name for action in actions if not action.task}),
        *_unlockable(model_admin),
        *_pages_of_their_own(model_admin),
        *_uncallable_bodies(model_admin),
    ]


def _is_whole_number(value: object, minimum: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= minimum


def _is_list_of_texts(value: object) -> bool:
    return isinstance(value, list | tuple | set | frozenset) and all(isinstance(item, str) for item in value)


#: What each option takes, and how to say that.
OPTIONS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (lambda value: isinstance(value, str) and bool(value), "the name of the action"),
    "description": (lambda value: isinstance(value, str | Promise), "a text"),
    "permissions": (_is_list_of_texts, 'a list of permissions, such as ["change"]'),
    "conflict": (lambda value: isinstance(value, bool) or value == "model", 'True, False or "model"'),
    "on_conflict": (lambda value: value in ("abort", "skip"), '"abort" or "skip"'),
    "per_object": (lambda value: isinstance(value, bool), "True or False"),
    "form": (lambda value: value is None or _is_form(value), "a form class"),
    "confirm": (lambda value: isinstance(value, bool), "True or False"),
    "chunk_size": (lambda value: value is None or _is_whole_number(value, 1), "a whole number of at least 1"),
    "background_threshold": (
        lambda value: value is None or _is_whole_number(value, 0),
        "a whole number of at least 0",
    ),
    "background_when": (
        lambda value: value is None or callable(value) or (isinstance(value, str) and bool(value)),
        "the name of a POST field, or a callable that takes the request",
    ),
    "retry": (
        lambda value: value is None or isinstance(value, RetryPolicy) or _is_whole_number(value, 0),
        "a RetryPolicy, or a number of retries",
    ),
    "slice": (lambda value: value is None or is_number(value), "a number of seconds"),
    "throttle": (
        lambda value: value is None or callable(value) or is_number(value),
        "a number of objects a second, or a callable that returns seconds to wait",
    ),
    "body": (lambda value: value is None or callable(value), "a function"),
    "task": (lambda value: isinstance(value, str), "the dotted path of a function"),
}


def _is_form(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, BaseForm)


def _invalid_options(model_admin: BackgroundActionsMixin, declared: list[BackgroundAction]) -> Iterator[CheckMessage]:
    """Check the type and range of each option of each action, and of the options of the admin."""
    # With permissions of a wrong type Django does not find out who may use an action.
    listed = [entry for item in model_admin.actions or () if (entry := model_admin.get_action(item))]
    functions = [function_of(entry) for entry in [*listed, *(_actions_of(model_admin) or {}).values()]]
    # As they were declared: Django keeps a copy of the permissions.
    decorated = (getattr(function, "background_action", None) for function in functions)
    actions = {id(action): action for action in (*declared, *decorated) if isinstance(action, BackgroundAction)}
    for action in actions.values():
        for option, (is_valid, expected) in OPTIONS.items():
            if not is_valid(value := getattr(action, option)):
                yield _invalid_option(model_admin, f"The background action {action.name!r}", option, value, expected)
        yield from _unusable_slice(model_admin, action)
    name = type(model_admin).__name__
    threshold: Any = model_admin.background_threshold
    if not _is_whole_number(threshold, 0):
        expected = OPTIONS["background_threshold"][1]
        yield _invalid_option(model_admin, name, "background_threshold", threshold, expected)
    blocks: Any = model_admin.lock_blocks_edit
    if not isinstance(blocks, bool):
        yield _invalid_option(model_admin, name, "lock_blocks_edit", blocks, "True or False")


def _invalid_option(
    model_admin: BackgroundActionsMixin, what: str, option: str, value: object, expected: str
) -> CheckMessage:
    return Error(
        f"{what} has {option}={describe(value, SHORT)}.",
        hint=f"{option} takes {expected}.",
        obj=model_admin.__class__,
        id="powercrud_dashboard.E025",
    )


def _unusable_slice(model_admin: BackgroundActionsMixin, action: BackgroundAction) -> Iterator[CheckMessage]:
    if action.slice is None or not is_number(action.slice):
        return
    what = f"The background action {action.name!r} has slice={action.slice}"
    if not (action.per_object or _takes_resume_at(action)):
        yield Error(
            f"{what}, but would begin again in each slice.",
            hint="Use per_object=True, or have the function take resume_at, the number of items that were done.",
            obj=model_admin.__class__,
            id="powercrud_dashboard.E026",
        )
    limits: list[Any] = [cluster.get("timeout") for cluster in queue.cluster_settings().values()]
    if too_short := [limit for limit in limits if is_number(limit) and limit <= action.slice]:
        yield Warning(
            f"{what} seconds, and the time limit of a cluster is {min(too_short)}: it stops the task before that.",
            hint="Use a slice that is shorter than the 'timeout' of Q_CLUSTER.",
            obj=model_admin.__class__,
            id="powercrud_dashboard.W022",
        )


def _takes_resume_at(action: BackgroundAction) -> bool:
    try:
        function = action.body or resolve_function(action.task)[1]
    except UnimportableCallable:
        # Another check tells of it.
        return True
    return bool(accepted_arguments(function, {"resume_at": 0}))


def _invalid_function(model_admin: BackgroundActionsMixin, action: BackgroundAction) -> Iterator[CheckMessage]:
    try:
        action.check_function()
    except Exception as error:
        # Importing runs the module, which may raise anything.
        arguments = "one object" if action.per_object else "pks and model"
        yield Error(
            f"background_actions has {action.task!r}, which a worker can't call: {error}",
            hint=f"Give the dotted path of a function that takes {arguments}.",
            obj=model_admin.__class__,
            id="powercrud_dashboard.E021",
        )


def _unknown_permissions(model_admin: BackgroundActionsMixin, action: BackgroundAction) -> Iterator[CheckMessage]:
    for name in action.permissions:
        if not hasattr(model_admin, f"has_{name}_permission"):
            yield Error(
                f"The background action {action.name!r} requires the permission {name!r}, but there is no method "
                f"has_{name}_permission().",
                hint="Use 'view', 'add', 'change' or 'delete', or define the method.",
                obj=model_admin.__class__,
                id="powercrud_dashboard.E022",
            )


def _wrapped_actions(model_admin: BackgroundActionsMixin, names: set[str]) -> Iterator[CheckMessage]:
    if not names or (actions := _actions_of(model_admin)) is None:
        return
    for name in sorted(names):
        if name not in actions:
            similar = get_close_matches(name, actions, n=1)
            yield Warning(
                f"background_actions names {name!r}, but the admin has no such action.",
                hint=f"Did you mean {similar[0]!r}?" if similar else "A task function is given by its dotted path.",
                obj=model_admin.__class__,
                id="powercrud_dashboard.W020",
            )
        elif (found := action_of(function_of(actions[name]))) and found.body and is_generator_function(found.body):
            yield Error(
                f"background_actions has {name!r}, which a worker can't run: {generator_refusal(name)}",
                obj=model_admin.__class__,
                id="powercrud_dashboard.E021",
            )


def _background_actions_of(model_admin: BackgroundActionsMixin) -> Iterator[tuple[str, BackgroundAction]]:
    for name, entry in (_actions_of(model_admin) or {}).items():
        if action := action_of(function_of(entry)):
            yield name, action


def _unlockable(model_admin: BackgroundActionsMixin) -> Iterator[CheckMessage]:
    if not isinstance(model_admin.opts.pk, CompositePrimaryKey):
        return
    for name, action in _background_actions_of(model_admin):
        if action.conflict:
            yield Error(
                f"The background action {name!r} locks its objects, but {model_admin.opts.label} has a composite "
                "primary key.",
                hint="Use conflict=False.",
                obj=model_admin.__class__,
                id="powercrud_dashboard.E024",
            )


#: What the body of an action calls to answer with a page or a redirect.
PAGE_FUNCTIONS = {"render", "TemplateResponse", "redirect", "HttpResponseRedirect"}


def _pages_of_their_own(model_admin: BackgroundActionsMixin) -> Iterator[CheckMessage]:
    for name, action in _background_actions_of(model_admin):
        code = getattr(inspect.unwrap(action.body), "__code__", None) if action.body else None
        called = PAGE_FUNCTIONS.intersection(code.co_names if code else ())
        # django-import-export's action shows no page with this option.
        is_export = name == "export_admin_action" and getattr(model_admin, "skip_export_form_from_action", False)
        if called and action.background_when is None and not is_export:
            yield Warning(
                f"The background action {name!r} calls {', '.join(sorted(called))}(). In a worker, an answer "
                "that needs a browser is a failure.",
                hint="If the action shows a page first, name the POST field that this page submits: "
                'background_when="apply". Or use form= or confirm=True instead of the page. Leave an action in the '
                "request that only leads to another page.",
                obj=model_admin.__class__,
                id="powercrud_dashboard.W021",
            )


def _uncallable_bodies(model_admin: BackgroundActionsMixin) -> Iterator[CheckMessage]:
    for name, action in _background_actions_of(model_admin):
        if action.body and is_generator_function(action.body):
            # Another check tells of it.
            continue
        try:
            action.check_body()
        except TypeError as error:
            rows = "obj" if action.per_object else "queryset"
            yield Warning(
                f"A worker can't call the background action {name!r}: {error}.",
                hint=f"Declare it as {name}(self, request, {rows}). With a form it may also take cleaned_data.",
                obj=model_admin.__class__,
                id="powercrud_dashboard.W023",
            )


class _Superuser:
    """A user that needs no database."""

    pk = None
    is_active = is_authenticated = is_staff = is_superuser = True
    is_anonymous = False

    def has_perm(self, *args: object) -> bool:
        return True

    has_perms = has_module_perms = has_perm


def _actions_of(model_admin: BackgroundActionsMixin) -> dict[str, Any] | None:
    """Return the actions of somebody who has all permissions; None if they depend on more."""
    request = HttpRequest()
    request.user = cast(Any, _Superuser())
    try:
        return model_admin.get_actions(request)
    except Exception:
        # The project's code may need a session, or the database.
        return None
