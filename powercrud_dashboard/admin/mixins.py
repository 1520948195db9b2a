"""The mixin that gives a ``ModelAdmin`` background actions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from django.contrib.admin import AdminSite
from django.db.models import Model
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

    def __init__(self, model: type[Model], admin_site: AdminSite) -> None:
        super().__init__(model, admin_site)
        if self.actions is not None:
            # From here on they are Django's own kind of action: checked, filtered and shown as any other.
            self.actions = [*self.actions, *(launcher(_declared(item)) for item in self.background_actions)]


def _declared(item: str | BackgroundAction) -> BackgroundAction:
    if isinstance(item, BackgroundAction):
        return item
    name = item.rpartition(".")[2]
    return BackgroundAction(
        name=name,
        description=capfirst(name.replace("_", " ")),
        permissions=("change",),
        task=item,
    )
