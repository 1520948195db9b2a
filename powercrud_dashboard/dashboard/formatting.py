"""Words for amounts, shared by tables and templates."""

from __future__ import annotations

from datetime import timedelta

from django.utils.translation import gettext as _


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
    shown = [f"{number} {unit}" for number, unit in parts if number]
    return " ".join(shown[:2])
