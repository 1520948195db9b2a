"""Values as people read them, shared by tables, templates and views."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from django.core.serializers.json import DjangoJSONEncoder
from django.utils.translation import gettext as _
from django.views.debug import SafeExceptionReporterFilter, get_default_exception_reporter_filter


def duration(value: timedelta | None) -> str:
    """Return a length of time in its two largest units."""
    if value is None:
        return ""
    seconds = max(0, int(value.total_seconds()))
    if seconds < 1:
        return _("under 1 s")
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, _("d")), (hours, _("h")), (minutes, _("min")), (seconds, _("s"))]
    # A number and its unit stay on one line.
    shown = [f"{number}\N{NO-BREAK SPACE}{unit}" for number, unit in parts if number]
    return " ".join(shown[:2])


def _filter() -> SafeExceptionReporterFilter:
    """Return the filter of Django's own error pages, so that what a project hides there is hidden here."""
    chosen: object = get_default_exception_reporter_filter()
    return chosen if isinstance(chosen, SafeExceptionReporterFilter) else SafeExceptionReporterFilter()


def masked(value: Any) -> Any:
    """Return plain data with the values under names such as ``password`` or ``token`` masked."""
    return _filter().cleanse_setting("", value)


def mask() -> str:
    """Return what stands in the place of a masked value."""
    return str(_filter().cleansed_substitute)


def readable_json(value: Any) -> str:
    """Return plain data as JSON for people to read, with secrets masked."""
    return json.dumps(masked(value), indent=2, ensure_ascii=False, cls=DjangoJSONEncoder)
