"""How the project's ``Dashboard`` shows things. An error in its code is logged, and the default is shown."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from django.utils.formats import localize
from django.utils.html import conditional_escape

from powercrud_dashboard.extension import Column, dashboard
from powercrud_dashboard.models import TaskRecord

if TYPE_CHECKING:
    from django.http import HttpRequest

logger = logging.getLogger(__name__)

T = TypeVar("T")


def _guarded(default: T, show: Callable[..., T], *args: Any) -> T:
    try:
        return show(*args)
    except Exception:
        # The project's code: one text that can't be made is no reason for a page not to be shown.
        logger.exception("%s.%s failed", type(dashboard()).__qualname__, getattr(show, "__name__", "value"))
        return default


def user_text(record: TaskRecord) -> str:
    return _guarded(record.user_label, dashboard().user_text, record)


def object_text(model_label: str, object_id: str, text: str) -> str:
    return _guarded(text, dashboard().object_text, model_label, object_id, text)


def arguments_text(record: TaskRecord) -> str | None:
    return _guarded(None, dashboard().arguments_text, record)


def result_text(record: TaskRecord) -> str | None:
    return _guarded(None, dashboard().result_text, record)


def cells(record: TaskRecord) -> list[tuple[str, Any, str]]:
    """Return the name, the label and the HTML of each further column of the task list."""
    return [(column.name, column.label, _guarded("", _cell, column, record)) for column in dashboard().columns]


def _cell(column: Column, record: TaskRecord) -> str:
    value: Any = column.value(record)
    return "" if value is None else conditional_escape(localize(value))


def task_panel(record: TaskRecord, request: HttpRequest) -> str:
    return _guarded("", dashboard().task_panel, record, request)


def index_panel(request: HttpRequest) -> str:
    return _guarded("", dashboard().index_panel, request)
