"""The label under which a row is known, whichever of its models it was given by, and its name for people."""

from __future__ import annotations

from django.apps import apps
from django.db import models
from django.utils.text import capfirst


def row_label(model: type[models.Model]) -> str:
    """Return the label under which the rows of a model are locked and recorded.

    One row has one label: of a proxy model that of its concrete model, and of a model that inherits its primary key
    from a parent's table that of the parent.
    """
    options = model._meta
    while True:
        options = (options.concrete_model or model)._meta
        parent_link = options.pk.remote_field
        if parent_link is None or not getattr(parent_link, "parent_link", False):
            return options.label_lower
        options = parent_link.model._meta


def further_labels(model: type[models.Model]) -> dict[str, str]:
    """Return the labels of the other rows of an object whose model has several parents, with the field for their keys.

    A model with multi-table inheritance has the primary key of one of its parents; the others have keys of their own.
    """
    options = (model._meta.concrete_model or model)._meta
    found = {row_label(parent): parent._meta.pk.attname for parent in options.get_parent_list()}
    found.pop(row_label(model), None)
    return found


def label_of_rows(label: str) -> str:
    """Return the label under which the rows of the model with this label are locked and recorded."""
    try:
        return row_label(apps.get_model(label))
    except (LookupError, ValueError):
        return label.lower()


def label_given(model_labels: str, own: str) -> str:
    """Return the label by which a task was given its rows with the label ``own``.

    That may be one of a proxy or child model. If it was given such rows by several, it is ``own``.

    Args:
        model_labels: all labels of the task, separated by spaces.
        own: the label under which the rows are recorded.
    """
    others = [label for label in model_labels.split() if label != own and label_of_rows(label) == own]
    return others[0] if len(others) == 1 else own


def name_of_row(label: str, object_id: str) -> str:
    """Return a name for people of a row of which only the key is known: the model's name and the key."""
    try:
        kind = str(capfirst(apps.get_model(label)._meta.verbose_name))
    except (LookupError, ValueError):
        kind = label
    return f"{kind} {object_id}"


def name_of_rows(label: str, count: int) -> str:
    """Return what so many rows of a model are called, such as "projects"; "" if there is no such model."""
    try:
        options = apps.get_model(label)._meta
    except (LookupError, ValueError):
        return ""
    return str(options.verbose_name if count == 1 else options.verbose_name_plural)
