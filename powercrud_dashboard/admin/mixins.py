"""The mixin that gives a ``ModelAdmin`` background actions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from django.contrib.admin.options import IS_POPUP_VAR
from django.http import HttpRequest
from django.utils.text import capfirst

from powercrud_dashboard.admin.actions import BackgroundAction, launcher

if TYPE_CHECKING:
    from django.contrib.admin import ModelAdmin

    _Base = ModelAdmin[Any]
else:
    _Base = object


class BackgroundActionsMixin(_Base):
    """Put it before ``ModelAdmin``; declare actions with ``@background_action`` or by path below."""

    #: Task functions offered as actions: dotted paths, or :class:`BackgroundAction` for more than
    #: the defaults. They get ``pks`` and ``model`` and need the change permission.
    background_actions: Sequence[str | BackgroundAction] = ()

    def get_background_actions(self, request: HttpRequest) -> Sequence[str | BackgroundAction]:
        """Return the task functions to offer; override it to choose by request."""
        return self.background_actions

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        """Return Django's actions and, after them, the background actions that this user may run."""
        actions: dict[str, Any] = super().get_actions(request)
        if self.actions is None or IS_POPUP_VAR in request.GET:
            return actions
        for declared in self.get_background_actions(request):
            action = declared if isinstance(declared, BackgroundAction) else _from_path(declared)
            if action.is_allowed(self, request):
                actions[action.name] = (launcher(action), action.name, action.description)
        return actions


def _from_path(path: str) -> BackgroundAction:
    name = path.rpartition(".")[2]
    return BackgroundAction(
        name=name,
        description=capfirst(name.replace("_", " ")),
        permissions=("change",),
        task=path,
    )
