"""Mistakes in the declaration of background actions are found by ``manage.py check``."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from django import forms
from django.contrib import admin
from django.core.checks import run_checks

from powercrud_dashboard.admin import BackgroundAction, BackgroundActionsMixin, background_action
from powercrud_dashboard.admin.checks import OPTIONS
from powercrud_dashboard.models import TaskRecord
from tests.testapp.models import Project


def generate(*, pks, model):
    yield pks


def take_nothing():
    """It can't be given the selected objects."""


class GeneratorAction(admin.ModelAdmin):
    actions = ["odd"]

    def odd(self, request, queryset):
        yield queryset


def found(items, base: type = admin.ModelAdmin, **attributes) -> list[tuple[str, str, str]]:
    """Return the ids, messages and hints about an admin with these background actions."""
    cls = type("AnAdmin", (BackgroundActionsMixin, base), {"background_actions": items, **attributes})
    messages = cls(Project, admin.AdminSite()).check()
    return [(item.id.removeprefix("powercrud_dashboard."), item.msg, item.hint) for item in messages]


@pytest.mark.parametrize(
    "items",
    [
        ["tests.testapp.tasks.touch_projects"],
        ["delete_selected"],
        [BackgroundAction(name="each", description="Each", task="builtins.repr", per_object=True)],
    ],
)
def test_what_works_is_not_complained_about(items):
    assert found(items) == []


@pytest.mark.parametrize(
    ("item", "complaint"),
    [
        ("tests.testapp.tusks.touch_projects", "has no attribute 'tusks'"),
        ("tests.testapp.tasks.tuch_projects", "has no attribute 'tuch_projects'"),
        ("tests.testapp.tasks.os", "it is a module, not a function"),
        (f"{__name__}.take_nothing", "got an unexpected keyword argument 'pks'"),
        (f"{__name__}.generate", "is a generator function"),
        (
            BackgroundAction(name="each", description="Each", task=f"{__name__}.take_nothing", per_object=True),
            "too many",
        ),
    ],
)
def test_a_function_that_a_worker_can_not_call(item, complaint):
    ((check_id, message, hint),) = found([item])
    assert check_id == "E021"
    assert complaint in message
    assert hint.startswith("Give the dotted path of a function that takes ")


def body(self, request, queryset):
    """An action."""


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("description", 5, "a text"),
        ("permissions", "change", 'a list of permissions, such as ["change"]'),
        ("permissions", [5], 'a list of permissions, such as ["change"]'),
        ("conflict", 1, 'True, False or "model"'),
        ("per_object", "no", "True or False"),
        ("form", 1, "a form class"),
        ("form", forms.Form(), "a form class"),
        ("form", TaskRecord, "a form class"),
        ("confirm", "yes", "True or False"),
        ("chunk_size", "5", "a whole number of at least 1"),
        ("chunk_size", 1.5, "a whole number of at least 1"),
        ("chunk_size", True, "a whole number of at least 1"),
        ("background_threshold", "5", "a whole number of at least 0"),
        ("background_threshold", -1, "a whole number of at least 0"),
        ("background_when", 3, "the name of a POST field, or a callable that takes the request"),
        ("background_when", "", "the name of a POST field, or a callable that takes the request"),
        ("retry", False, "a RetryPolicy, or a number of retries"),
    ],
    ids=str,
)
def test_an_option_of_a_wrong_type_or_out_of_range(option, value, expected):
    action = background_action(**{option: value})(body)
    messages = [item for item in found([], actions=[action]) if item[0] == "E025"]
    assert messages == [
        ("E025", f"The background action 'body' has {option}={value!r}.", f"{option} takes {expected}.")
    ]


def test_options_of_declared_actions_are_checked_as_well():
    items = [BackgroundAction(name="each", description=None, task="builtins.repr", per_object=1, form=1)]
    assert [hint for check_id, _message, hint in found(items) if check_id == "E025"] == [
        "description takes a text.",
        "per_object takes True or False.",
        "form takes a form class.",
    ]


def test_options_of_the_admin_are_checked_as_well():
    assert found([], background_threshold="5", lock_blocks_edit="yes") == [
        ("E025", "AnAdmin has background_threshold='5'.", "background_threshold takes a whole number of at least 0."),
        ("E025", "AnAdmin has lock_blocks_edit='yes'.", "lock_blocks_edit takes True or False."),
    ]


def test_each_option_is_checked():
    assert set(OPTIONS) == {field.name for field in dataclasses.fields(BackgroundAction)}


@pytest.mark.parametrize("item", [5, body, None])
def test_an_item_that_is_neither_a_name_nor_an_action(item):
    with pytest.raises(TypeError, match="use the dotted path of a task function, the name of an existing action"):
        found([item])


def test_an_unknown_action():
    assert found(["delete_selectd"]) == [
        (
            "W020",
            "background_actions names 'delete_selectd', but the admin has no such action.",
            "Did you mean 'delete_selected'?",
        )
    ]
    ((_id, _message, hint),) = found([BackgroundAction(name="rebuild", description="Rebuild")])
    assert hint == "A task function is given by its dotted path."


def test_an_action_of_another_package_that_is_a_generator():
    ((check_id, message, _hint),) = found(["odd"], base=GeneratorAction)
    assert check_id == "E021"
    assert "odd is a generator function" in message


def test_actions_that_depend_on_the_request_are_not_judged():
    def get_actions(self, request):
        return {request.session["action"]: None}

    assert found(["rebuild"], base=type("SessionAdmin", (admin.ModelAdmin,), {"get_actions": get_actions})) == []


def test_an_unknown_permission():
    item = BackgroundAction(
        name="each", description="Each", task="builtins.repr", per_object=True, permissions=["chnge"]
    )
    ((check_id, message, _hint),) = [entry for entry in found([item]) if not entry[0].startswith("admin.")]
    assert check_id == "E022"
    assert "has_chnge_permission()" in message


def test_a_string_in_the_place_of_a_list():
    assert found("delete_selected") == [
        ("E020", "background_actions is the string 'delete_selected', not a list.", "Use ['delete_selected'].")
    ]


@contextmanager
def registered(cls: type) -> Iterator[None]:
    site = admin.AdminSite(name="checked")
    site.register(Project, cls)
    try:
        yield
    finally:
        site.unregister(Project)


def test_the_mixin_behind_model_admin():
    cls = type("BackwardsAdmin", (admin.ModelAdmin, BackgroundActionsMixin), {})
    with registered(cls):
        (message,) = [item for item in run_checks(tags=["admin"]) if item.id == "powercrud_dashboard.E023"]
    assert message.obj is cls
    assert message.hint == "List it first: class BackwardsAdmin(BackgroundActionsMixin, admin.ModelAdmin)."


def test_the_mixin_is_missing():
    cls = type("PlainAdmin", (admin.ModelAdmin,), {"actions": ["body"], "body": background_action(body)})
    with registered(cls):
        (message,) = [item for item in run_checks(tags=["admin"]) if item.id == "powercrud_dashboard.W024"]
    assert message.obj is cls
    assert "PlainAdmin has the background action 'body', but not BackgroundActionsMixin" in message.msg
    assert message.hint == "Add it: class PlainAdmin(BackgroundActionsMixin, admin.ModelAdmin)."


def test_an_admin_without_background_actions_of_its_own_needs_no_mixin():
    cls = type("PlainAdmin", (admin.ModelAdmin,), {"actions": ["body"], "body": body})
    with registered(cls):
        assert "powercrud_dashboard.W024" not in {item.id for item in run_checks(tags=["admin"])}


def per_object_body(self, request, obj, cleaned_data): ...


def forgets_the_request(self, queryset): ...


def wants_more(self, request, obj, more): ...


def takes_anything(*args, **kwargs): ...


@pytest.mark.parametrize(
    "action",
    [
        background_action(body),
        background_action(takes_anything),
        background_action(form=forms.Form)(per_object_body),
        background_action(per_object=True, form=forms.Form)(per_object_body),
    ],
)
def test_a_body_that_a_worker_can_call(action):
    assert found([], actions=[action]) == []


@pytest.mark.parametrize(
    ("function", "options", "complaint", "hint"),
    [
        (forgets_the_request, {}, "too many positional arguments.", "forgets_the_request(self, request, queryset)."),
        (wants_more, {"per_object": True}, "argument: 'more'.", "wants_more(self, request, obj)."),
        (per_object_body, {}, "argument: 'cleaned_data'.", "per_object_body(self, request, queryset)."),
    ],
)
def test_a_body_that_a_worker_can_not_call(function, options, complaint, hint):
    ((check_id, message, shown_hint),) = found([], actions=[background_action(**options)(function)])
    assert check_id == "W023"
    assert message.startswith(f"A worker can't call the background action '{function.__name__}': {__name__}.")
    assert message.endswith(complaint)
    assert shown_hint.startswith(f"Declare it as {hint}")


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("permission", "Did you mean 'permissions'?"),
        ("task", "It has background_threshold, background_when, "),
        ("unlike_any", "It has background_threshold, background_when, "),
    ],
)
def test_an_option_that_there_is_not(option, hint):
    with pytest.raises(TypeError, match=re.escape(f"background_action() has no option {option!r}. {hint}")):
        background_action(**{option: "change"})
