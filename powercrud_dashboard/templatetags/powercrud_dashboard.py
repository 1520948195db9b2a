"""Formatting for the pages' templates; nothing here decides anything."""

from __future__ import annotations

import json
from typing import Any

from django import template
from django.utils.translation import gettext_lazy
from django.views.debug import SafeExceptionReporterFilter

from powercrud_dashboard.dashboard import formatting

register = template.Library()

EVENT_LABELS = {
    "create": gettext_lazy("Queued"),
    "start": gettext_lazy("Started"),
    "progress": gettext_lazy("Progress"),
    "log": gettext_lazy("Log"),
    "complete": gettext_lazy("Completed"),
    "fail": gettext_lazy("Failed"),
    "cancel": gettext_lazy("Cancelled"),
    "cancel_requested": gettext_lazy("Asked to stop"),
    "retry": gettext_lazy("Retried"),
    "cleanup": gettext_lazy("Locks released"),
    "release": gettext_lazy("Lock released"),
    "hook_error": gettext_lazy("A hook failed"),
}


@register.filter
def event_label(event: str) -> str:
    """Return what people call a lifecycle event."""
    return str(EVENT_LABELS.get(event, event))


@register.filter
def readable_json(value: Any) -> str:
    """Return JSON for people to read, with passwords, tokens and the like masked as Django's error pages do."""
    masked = SafeExceptionReporterFilter().cleanse_setting("", value)
    return json.dumps(masked, indent=2, ensure_ascii=False, default=str)


register.filter("duration", formatting.duration)
