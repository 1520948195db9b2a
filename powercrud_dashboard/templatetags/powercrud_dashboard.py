"""Formatting for the pages' templates; nothing here decides anything."""

from __future__ import annotations

from typing import Any

from django import template
from django.template import Context
from django.urls import reverse
from django.utils.translation import gettext_lazy

from powercrud_dashboard.dashboard import formatting
from powercrud_dashboard.dashboard.panel import panel_lines

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
    "run_now": gettext_lazy("Queued without waiting"),
    "cleanup": gettext_lazy("Locks released"),
    "release": gettext_lazy("Lock released"),
    "hook_error": gettext_lazy("A hook failed"),
}


@register.filter
def event_label(event: str) -> str:
    """Return what people call a lifecycle event."""
    return str(EVENT_LABELS.get(event, event))


register.filter("readable_json", formatting.readable_json)
register.filter("duration", formatting.duration)


@register.inclusion_tag("powercrud_dashboard/admin/_panel.html", takes_context=True)
def task_panel(context: Context) -> dict[str, Any]:
    """Show how many tasks run, wait and have failed of late, with links to them; for the admin's index."""
    request = context["request"]
    site = getattr(request, "current_app", None)
    return {
        "lines": panel_lines(request.user),
        "list_url": reverse("admin:powercrud_dashboard_taskrecord_changelist", current_app=site),
    }
