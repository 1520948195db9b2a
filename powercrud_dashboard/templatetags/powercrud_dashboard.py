"""Template filters of the pages, and the panel for the index page of the admin."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from django import template
from django.contrib import admin
from django.contrib.admin.sites import all_sites
from django.http import QueryDict
from django.template import Context
from django.templatetags.static import static
from django.urls import reverse
from django.utils import timezone
from django.utils.formats import number_format
from django.utils.html import format_html_join
from django.utils.safestring import mark_safe
from django.utils.translation import gettext, gettext_lazy, pgettext_lazy
from django_htmx.middleware import HtmxDetails

from powercrud_dashboard.dashboard import access, customized, formatting
from powercrud_dashboard.dashboard.embedded import embedded
from powercrud_dashboard.dashboard.formatting import Moment
from powercrud_dashboard.dashboard.links import URL_NAME, dashboard_url
from powercrud_dashboard.dashboard.listing import Count, Listing, capped_counts
from powercrud_dashboard.dashboard.notices import outcome_of, subject_of
from powercrud_dashboard.dashboard.pulse import Pulse
from powercrud_dashboard.dashboard.statuses import WAITING, WITH_ERRORS, ShownStatus, shown_status
from powercrud_dashboard.dashboard.tray import Tray
from powercrud_dashboard.dashboard.views.base import refresh_interval
from powercrud_dashboard.engine import alert_messages
from powercrud_dashboard.exceptions import ClusterStopping
from powercrud_dashboard.models import Alert, AlertKind, TaskStatus
from powercrud_dashboard.models.coordination import ActiveTaskState
from powercrud_dashboard.models.database import Now
from powercrud_dashboard.text import translated

if TYPE_CHECKING:
    from collections.abc import Sequence

    from django.http import HttpRequest
    from django.utils.safestring import SafeString

    from powercrud_dashboard.dashboard.access import User
    from powercrud_dashboard.dashboard.live import LiveTask
    from powercrud_dashboard.dashboard.views.log import ShownLog
    from powercrud_dashboard.models import TaskEvent, TaskLogLine, TaskRecord

register = template.Library()

#: Alerts that the strip shows, and the seconds after which it refreshes itself.
SHOWN_ALERTS = 3
ALERT_INTERVAL = 30

EVENT_LABELS = {
    "create": pgettext_lazy("an event", "Queued"),
    "start": gettext_lazy("Started"),
    "progress": gettext_lazy("Progress"),
    "log": gettext_lazy("Log"),
    "complete": gettext_lazy("Completed"),
    "fail": gettext_lazy("Failed"),
    "cancel": gettext_lazy("Cancelled"),
    "cancel_requested": gettext_lazy("Cancellation requested"),
    "pause_requested": gettext_lazy("Pause requested"),
    "pause": gettext_lazy("Paused"),
    "resume": gettext_lazy("Resumed"),
    "slice": gettext_lazy("Slice ended, queued again"),
    "retry": gettext_lazy("Retried"),
    "resolve": gettext_lazy("Resolved by a retry"),
    "dismiss": gettext_lazy("Dismissed"),
    "reopen": gettext_lazy("Reopened"),
    "run_now": gettext_lazy("Queued now"),
    "run_next": gettext_lazy("Moved to the front of the queue"),
    "missing": gettext_lazy("Not in the queue any more"),
    "send_again": gettext_lazy("Sent again"),
    "cleanup": gettext_lazy("Locks released"),
    "release": gettext_lazy("Lock released"),
    "hook_error": gettext_lazy("A hook failed"),
}

#: Kept with the event of a task that was queued again because its cluster stopped, which is no failure.
CLUSTER_STOPPING = f"{ClusterStopping.__module__}.{ClusterStopping.__qualname__}"

LEVEL_LABELS = {
    "debug": gettext_lazy("Debug"),
    "info": gettext_lazy("Info"),
    "success": gettext_lazy("Success"),
    "warning": gettext_lazy("Warning"),
    "error": gettext_lazy("Error"),
    "critical": gettext_lazy("Critical"),
}


@dataclass(frozen=True)
class PanelLine:
    label: Any
    status: str
    #: Query string of the task list for these tasks.
    query: str
    count: Count


LINES = (
    (gettext_lazy("Running"), TaskStatus.IN_PROGRESS, f"status={TaskStatus.IN_PROGRESS}"),
    (pgettext_lazy("of a task", "Queued"), TaskStatus.PENDING, f"status={TaskStatus.PENDING}"),
    (gettext_lazy("Failed in the last 24 hours"), TaskStatus.FAILED, f"status={TaskStatus.FAILED}&within=24h"),
)


def panel_lines(user: User) -> list[PanelLine]:
    """Count the running, queued and recently failed tasks that the user may see, in one query."""
    waiting = f"status={WAITING.name}"
    listings = {query: (Listing(QueryDict(query), user), str(status)) for _label, status, query in LINES}
    listings[waiting] = (Listing(QueryDict(waiting), user), WAITING.name)
    counts = capped_counts(list(listings), lambda query: listings[query][0].countable(listings[query][1]))
    queued = f"status={TaskStatus.PENDING}"
    # Among the queued ones are those that wait for a retry.
    counts[queued] = Count(max(0, counts[queued].number - counts[waiting].number), counts[queued].is_capped)
    return [PanelLine(label, str(status), query, counts[query]) for label, status, query in LINES]


@register.filter
def event_label(event: TaskEvent, record: TaskRecord) -> str:
    """Return the label of an event of the timeline of this task."""
    if event.event == "complete" and record.has_failed_objects:
        return str(WITH_ERRORS.label)
    if not event.payload.get("postponed"):
        return str(EVENT_LABELS.get(event.event, event.event))
    if event.payload.get("exception_class") == CLUSTER_STOPPING:
        return gettext("Interrupted, and queued again")
    return gettext("Attempt %(number)s failed") % {"number": event.payload.get("attempt")}


@register.filter
def level_label(level: str) -> str:
    """Return the name of a log line's level for users; one of a project's own as it is."""
    return str(LEVEL_LABELS.get(level, level))


register.filter("with_colon", formatting.with_colon)


@register.filter("translated")
def translated_filter(text: object) -> str:
    """Return a text that is kept without translation, such as a message of a task, in the active language."""
    return translated(str(text)) if text else ""


@register.filter
def grouped(value: int) -> str:
    """Return a number with separators of thousands."""
    return number_format(value, force_grouping=True)


@register.filter
def rate(value: float) -> str:
    """Return tasks a minute, with a digit after the point where it matters."""
    return formatting.figure(value, 1 if 0 < value < 10 else 0)


register.filter("readable_json", formatting.readable_json)
register.filter("duration", formatting.duration)
register.filter("percentage", formatting.percentage)
register.filter("precise_duration", formatting.precise_duration)


@register.filter
def state_label(state: str) -> str:
    """Return the name of the state of a task that has not ended."""
    return str(dict(ActiveTaskState.choices).get(state, state))


register.filter("outcome_text", outcome_of)
register.filter("task_subject", subject_of)


@register.simple_tag
def task_path(record: TaskRecord, site_name: str = "", is_group: bool = False) -> str:
    """Return the path of the page of a task, or of its group, for a mail."""
    page, key = ("group", record.group) if is_group else ("change", record.pk)
    return dashboard_url(site_name or admin.site.name, page, key)


@register.simple_tag
def notifications_path(site_name: str = "") -> str:
    """Return the path of the page on which a person chooses their mails."""
    return dashboard_url(site_name or admin.site.name, "notifications")


register.filter("alert_text", alert_messages.text_of)


@register.simple_tag
def alerts_path() -> str:
    """Return the path of the page of alerts, for a mail."""
    return dashboard_url(admin.site.name, "alerts")


@register.simple_tag(takes_context=True)
def alert_url(context: Context, alert: Alert) -> str:
    """Return the address at which an alert is acknowledged."""
    return _url_here(context["request"], "acknowledge", alert.pk)


def _url_here(request: HttpRequest, page: str, *args: object) -> str:
    """Return the address of a page where the current one is: in an admin site, or outside of it."""
    match = request.resolver_match
    if match and match.app_name == "powercrud_dashboard":
        return reverse(f"{match.namespace}:{URL_NAME.format(page)}", args=args)
    return dashboard_url(getattr(request, "current_app", None) or (match.namespace if match else None), page, *args)


@register.filter
def last_part(path: str) -> str:
    """Return what is behind the last dot of a dotted path."""
    return path.rpartition(".")[2]


@register.filter
def breakable(path: str) -> str:
    """Return a dotted path as HTML whose lines may end after each dot."""
    return format_html_join(mark_safe(".<wbr>"), "{}", ((part,) for part in path.split(".")))


@register.simple_tag(takes_context=True)
def alert_place(context: Context, alert: Alert) -> str:
    """Return the address of the page that shows what an alert is about; "" if only the project knows."""
    subject, queue = alert.subject, alert.details.get("queue")
    by_function = ("failures", {"function": subject})
    # A newer release may have opened it: then the kind may be one that this release does not know.
    places: dict[str, tuple[str, dict[str, Any]]] = {
        AlertKind.FAILURE_RATE: ("changelist", {"status": "failed", "cluster": queue}) if queue else by_function,
        AlertKind.OLDEST_WAIT: ("queue", {"queue": subject}),
        AlertKind.QUEUE_DEPTH: ("queue", {"queue": subject}),
        AlertKind.WORKERS_LOST: ("cluster", {}),
        AlertKind.NO_WORKERS: ("cluster", {}),
        AlertKind.MISSED_SCHEDULE: ("schedules", {}),
    }
    page, filters = places.get(alert.kind, ("", {}))
    if not page:
        return ""
    query = QueryDict(mutable=True)
    query.update(filters)
    return f"{_url_here(context['request'], page)}{'?' if filters else ''}{query.urlencode()}"


@register.inclusion_tag("powercrud_dashboard/alerts/_strip.html", takes_context=True)
def alert_strip(context: Context) -> dict[str, Any]:
    """Show the open alerts that nobody has acknowledged, to those who may view all tasks."""
    request = context["request"]
    if "open_alerts" in context or not access.has_permission(request.user, "view_taskrecord"):
        # Their own page has them.
        return {}
    found = Alert.objects.all().open().unacknowledged().causes_first().annotate(read_at=Now())
    pulse = context.get("pulse")
    # Where the pulse is shown, it knows whether there are any.
    shown = list(found[: SHOWN_ALERTS + 1]) if pulse is None or pulse.has_alerts else []
    return {
        "request": request,
        "csrf_token": context.get("csrf_token"),
        "alerts": shown[:SHOWN_ALERTS],
        "has_more": len(shown) > SHOWN_ALERTS,
        "alerts_url": _url_here(request, "alerts"),
        "strip_url": _url_here(request, "alert_strip"),
        # Only pages that refresh themselves have htmx.
        "strip_interval": ALERT_INTERVAL if refresh_interval(request) and "pages" in context else 0,
        "may_acknowledge": access.may_acknowledge_alerts(request.user),
        "next": HtmxDetails(request).current_url_abs_path or request.get_full_path(),
    }


def _rendered(context: Context, name: str, values: dict[str, Any]) -> SafeString:
    """Render a template as an inclusion tag does."""
    return context.template.engine.get_template(name).render(context.new(values))  # type: ignore[union-attr]


@register.simple_tag(takes_context=True)
def task_tray(context: Context) -> str:
    """Show the user's running tasks, and those that have ended and were not seen, in the header of the admin."""
    return embedded(lambda: _rendered(context, "powercrud_dashboard/tray/header.html", _tray_values(context)), "")


def _tray_values(context: Context) -> dict[str, Any]:
    request = context["request"]
    site_name = getattr(request, "current_app", None)
    site = next((site for site in all_sites if site.name == site_name), admin.site)
    if not site.has_permission(request):
        return {}
    return {
        "request": request,
        "csrf_token": context.get("csrf_token"),
        "tray": Tray(request.user, site_name, refresh_interval(request)),
        "tray_next": request.get_full_path(),
        "htmx_url": static("django_htmx/htmx-2.min.js"),
    }


@register.filter
def person(record: TaskRecord) -> str:
    """Return who launched the task; "" for nobody."""
    return customized.user_text(record)


@register.filter
def last_key(lines: Sequence[TaskLogLine]) -> int:
    """Return the key of the last of these lines; 0 if there is none."""
    return lines[-1].pk if lines else 0


@register.simple_tag
def log_tail_url(log: ShownLog, newest: int) -> str:
    """Return the address of the lines of a log after the newest one."""
    return log.tail_url(newest)


@register.simple_tag
def status_of(record: TaskRecord, live: LiveTask | None = None) -> ShownStatus:
    """Return the status to show of a record; of an unfinished one with its live state."""
    return shown_status(record, live or None)


@register.inclusion_tag("powercrud_dashboard/shared/_time.html", takes_context=True)
def when(
    context: Context, at: datetime | None, *, now: datetime | None = None, is_exact: bool = False
) -> dict[str, Any]:
    """Show a time: how long ago it was or how far ahead it is, and the exact time as a title, or beside it.

    It is seen from ``now``, by default the time of this name in the context, which is the database's on pages that
    have read it.
    """
    now = now or context.get("now") or timezone.now()
    return {"moment": Moment.of(at, now) if at else None, "is_exact": is_exact}


@register.simple_tag(takes_context=True)
def task_panel(context: Context) -> str:
    """Show the number of running, queued and recently failed tasks, with links."""
    return embedded(lambda: _rendered(context, "powercrud_dashboard/admin/_panel.html", _panel_values(context)), "")


def _panel_values(context: Context) -> dict[str, Any]:
    request = context["request"]
    site = getattr(request, "current_app", None)
    return {
        "request": request,
        "csrf_token": context.get("csrf_token"),
        "lines": panel_lines(request.user),
        "pulse": Pulse.now() if access.has_permission(request.user, "view_taskrecord") else None,
        "list_url": reverse("admin:powercrud_dashboard_taskrecord_changelist", current_app=site),
        "locks_url": reverse("admin:powercrud_dashboard_taskrecord_locks", current_app=site)
        if access.has_permission(request.user, "view_conflictlock")
        else "",
        "index_panel": customized.index_panel(request),
        "failures_url": reverse("admin:powercrud_dashboard_taskrecord_failures", current_app=site),
    }
