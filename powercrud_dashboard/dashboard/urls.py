from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib.admin import AdminSite
from django.contrib.admin.utils import quote, unquote
from django.urls import URLPattern, path, register_converter
from django.urls.converters import StringConverter

from powercrud_dashboard.dashboard.links import URL_NAME
from powercrud_dashboard.dashboard.views.alerts import AcknowledgeView, AlertStripView, AlertsView
from powercrud_dashboard.dashboard.views.base import refreshable
from powercrud_dashboard.dashboard.views.cluster import ClusterView
from powercrud_dashboard.dashboard.views.export import ExportView
from powercrud_dashboard.dashboard.views.failures import FailuresView
from powercrud_dashboard.dashboard.views.function import FunctionView
from powercrud_dashboard.dashboard.views.groups import GroupActionView, GroupView
from powercrud_dashboard.dashboard.views.health import HealthView
from powercrud_dashboard.dashboard.views.insights import InsightsView
from powercrud_dashboard.dashboard.views.locks import LockListView, ReleaseLockView
from powercrud_dashboard.dashboard.views.log import LogView
from powercrud_dashboard.dashboard.views.notices import NotificationsView, SeenView, TrayView
from powercrud_dashboard.dashboard.views.pauses import PauseQueueView, PauseTaskView, ResumeQueueView, ResumeTaskView
from powercrud_dashboard.dashboard.views.queue import DeleteMessageView, QueueView, RunNextView
from powercrud_dashboard.dashboard.views.schedules import ScheduleActionView, ScheduleListView
from powercrud_dashboard.dashboard.views.smoke import StartTestView, TestReportView
from powercrud_dashboard.dashboard.views.task import (
    CancelTaskView,
    DismissView,
    DownloadView,
    EditAndRetryView,
    RawTaskView,
    ReopenView,
    RetryObjectsView,
    RetryTaskView,
    RunNowView,
    TaskView,
)
from powercrud_dashboard.dashboard.views.tasks import BulkActionView, RefreshIntervalView, SuggestionsView, TaskListView


class NameConverter(StringConverter):
    """A name with any characters, quoted as the admin quotes primary keys."""

    def to_python(self, value: str) -> str:
        return unquote(value)

    def to_url(self, value: str) -> str:
        return quote(value)


register_converter(NameConverter, "pcrud_name")


def dashboard_urls(
    admin_site: AdminSite | None = None, wrap: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None
) -> list[URLPattern]:
    """Return the URL patterns of the pages.

    Args:
        admin_site: the admin site that the pages belong to; None outside of the admin.
        wrap: a decorator for the views, such as ``admin_site.admin_view``.
    """
    pages = [
        ("", TaskListView, "changelist"),
        ("bulk/", BulkActionView, "bulk"),
        ("export/<str:file_format>/", ExportView, "export"),
        ("failures/", FailuresView, "failures"),
        ("insights/", InsightsView, "insights"),
        ("function/", FunctionView, "function"),
        ("suggestions/", SuggestionsView, "suggestions"),
        ("refresh/", RefreshIntervalView, "refresh"),
        ("tray/", TrayView, "tray"),
        ("tray/seen/", SeenView, "seen"),
        ("notifications/", NotificationsView, "notifications"),
        ("locks/", LockListView, "locks"),
        ("locks/<int:pk>/release/", ReleaseLockView, "release"),
        ("cluster/", ClusterView, "cluster"),
        ("cluster/queue/", QueueView, "queue"),
        ("cluster/queue/<pcrud_name:queue>/<str:key>/delete/", DeleteMessageView, "delete_message"),
        ("cluster/queue/<pcrud_name:queue>/<str:key>/run-next/", RunNextView, "run_next"),
        ("cluster/test/<pcrud_name:queue>/", StartTestView, "start_test"),
        ("cluster/test/<int:pk>/report/", TestReportView, "test_report"),
        ("cluster/pause/", PauseQueueView, "pause_queue"),
        ("cluster/resume/", ResumeQueueView, "resume_queue"),
        ("schedules/", ScheduleListView, "schedules"),
        ("alerts/", AlertsView, "alerts"),
        ("alerts/strip/", AlertStripView, "alert_strip"),
        ("alerts/<int:pk>/acknowledge/", AcknowledgeView, "acknowledge"),
        ("schedules/<int:pk>/<slug:action>/", ScheduleActionView, "schedule"),
        ("groups/<pcrud_name:group>/", GroupView, "group"),
        ("groups/<pcrud_name:group>/<slug:action>/", GroupActionView, "group_action"),
        ("<int:pk>/files/<int:file_pk>/", DownloadView, "download"),
        ("<int:pk>/retry-objects/", RetryObjectsView, "retry_objects"),
        ("<int:pk>/change/", TaskView, "change"),
        ("<int:pk>/log/", LogView, "log"),
        ("<int:pk>/raw/", RawTaskView, "raw"),
        ("<int:pk>/edit/", EditAndRetryView, "edit"),
        ("<int:pk>/retry/", RetryTaskView, "retry"),
        ("<int:pk>/dismiss/", DismissView, "dismiss"),
        ("<int:pk>/reopen/", ReopenView, "reopen"),
        ("<int:pk>/cancel/", CancelTaskView, "cancel"),
        ("<int:pk>/pause/", PauseTaskView, "pause"),
        ("<int:pk>/resume/", ResumeTaskView, "resume"),
        ("<int:pk>/run-now/", RunNowView, "run_now"),
    ]
    # Programs that read it have no session.
    patterns = [path("health/", HealthView.as_view(admin_site=admin_site), name=URL_NAME.format("health"))]
    for route, page, name in pages:
        view = page.as_view(admin_site=admin_site)
        patterns.append(path(route, refreshable(wrap(view) if wrap else view), name=URL_NAME.format(name)))
    return patterns
