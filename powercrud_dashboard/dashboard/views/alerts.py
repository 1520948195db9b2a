"""Alerts: the open and the past ones, the strip on the other pages, and how a person takes note of one."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.translation import gettext as _

from powercrud_dashboard.dashboard import access
from powercrud_dashboard.dashboard.views.base import DashboardView, RefreshingPageView
from powercrud_dashboard.engine.alert_messages import text_of
from powercrud_dashboard.models import Alert
from powercrud_dashboard.models.database import database_now
from powercrud_dashboard.text import SHORT, clean_text

#: Open and past alerts that the page shows.
SHOWN_OPEN = 200
SHOWN_PAST = 100


class AlertsView(RefreshingPageView):
    """The open alerts, and those that have ended last."""

    page_name = "alerts"
    required_permission = "view_taskrecord"
    template_name = "powercrud_dashboard/alerts/page.html"
    partial_template_name = "powercrud_dashboard/alerts/_list.html"

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        alerts = Alert.objects.prefetch_related("messages")
        past = list(alerts.past().order_by("-resolved_at", "-pk")[: SHOWN_PAST + 1])
        return super().get_context_data(
            title=_("Alerts"),
            now=database_now(),
            open_alerts=alerts.open().causes_first()[:SHOWN_OPEN],
            more_open=max(0, Alert.objects.all().open().count() - SHOWN_OPEN),
            past_alerts=past[:SHOWN_PAST],
            has_more=len(past) > SHOWN_PAST,
            may_acknowledge=access.may_acknowledge_alerts(self.request.user),
            **kwargs,
        )


class AlertStripView(RefreshingPageView):
    """The strip, as it refreshes itself. It is no page of its own."""

    required_permission = "view_taskrecord"
    partial_template_name = "powercrud_dashboard/alerts/_refreshed_strip.html"

    def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if not self.is_partial_request:
            return HttpResponseRedirect(self.url("alerts"))
        return super().get(request, *args, **kwargs)


class AcknowledgeView(DashboardView):
    """Note that a person deals with an open alert. The admin log records the user."""

    http_method_names = ["post", "options"]
    page_name = "alerts"
    required_permission = "acknowledge_alert"

    def post(self, request: HttpRequest, pk: int) -> HttpResponse:
        alert = Alert.objects.filter(pk=pk)
        if alert.acknowledge(request.user, clean_text(request.user, SHORT)):
            LogEntry.objects.log_actions(
                request.user.pk,  # type: ignore[arg-type]
                alert,
                CHANGE,
                _("Acknowledged"),
            )
            messages.success(request, _("“%(alert)s” was acknowledged.") % {"alert": text_of(alert.get())})
        else:
            messages.info(request, _("The alert has ended, or somebody has acknowledged it already."))
        may_view = access.has_permission(request.user, "view_taskrecord")
        return HttpResponseRedirect(self.next_url(self.url("alerts" if may_view else "changelist")))
