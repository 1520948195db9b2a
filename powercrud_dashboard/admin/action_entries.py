"""The entries of ``ModelAdmin.get_actions()``: tuples up to Django 6.0, objects from 6.1 on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any


def function_of(entry: Any) -> Callable[..., Any]:
    """Return the function that an entry stands for."""
    function: Callable[..., Any] = entry[0] if isinstance(entry, tuple) else entry.func
    return function


def description_of(entry: Any) -> Any:
    """Return what the menu of the changelist says of it, before the model's names are put in."""
    return entry[2] if isinstance(entry, tuple) else entry.plural_description


def with_function(entry: Any, function: Callable[..., Any], description: Any) -> Any:
    """Return the same entry for another function."""
    if isinstance(entry, tuple):
        return (function, entry[1], description)
    return dataclasses.replace(entry, func=function, description=description, plural_description=description)
