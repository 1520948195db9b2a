"""Text columns that take any text, alike on every database, in values as in lookups; and columns with a user."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.db import models

from powercrud_dashboard.models.statuses import Resolution, TaskStatus
from powercrud_dashboard.text import storable

if TYPE_CHECKING:
    _CharField = models.CharField[str, str]
    _TextField = models.TextField[str, str]
else:
    _CharField, _TextField = models.CharField, models.TextField


class _AnyText:
    """Replaces what PostgreSQL does not store: NUL characters and halves of surrogate pairs."""

    def get_prep_value(self, value: Any) -> Any:
        prepared = super().get_prep_value(value)  # type: ignore[misc]
        return storable(prepared) if isinstance(prepared, str) else prepared

    def deconstruct(self) -> Any:
        # The column is Django's own.
        name, _path, args, kwargs = super().deconstruct()  # type: ignore[misc]
        return name, f"django.db.models.{type(self).__name__}", args, kwargs


class CharField(_AnyText, _CharField):
    pass


class TextField(_AnyText, _TextField):
    pass


class ResolutionField(CharField):
    """A failed record that is made without a resolution is an open failure."""

    def pre_save(self, model_instance: models.Model, add: bool) -> Any:
        if getattr(model_instance, "status", "") == TaskStatus.FAILED and not getattr(model_instance, self.attname):
            setattr(model_instance, self.attname, Resolution.OPEN)
        return super().pre_save(model_instance, add)

    def deconstruct(self) -> Any:
        name, _path, args, kwargs = super().deconstruct()
        return name, "django.db.models.CharField", args, kwargs


def user_key(verbose_name: Any, **options: Any) -> Any:
    """Return a foreign key to a user, empty once the user is deleted unless ``options`` say otherwise.

    It has no constraint: a user who is deleted meanwhile must not undo the change of state at the commit.
    """
    kept = {} if options.get("on_delete") is models.CASCADE else {"null": True, "blank": True}
    usual = {"on_delete": models.SET_NULL, "db_constraint": False, "related_name": "+", "db_index": False, **kept}
    return models.ForeignKey(settings.AUTH_USER_MODEL, verbose_name=verbose_name, **{**usual, **options})
