from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib.admin import AdminSite
from django.contrib.admin.utils import quote, unquote
from django.urls import URLPattern, path, register_converter
from django.urls.converters import StringConverter

from powercrud_dashboard.dashboard.views.bulk import BulkActionView
from powercrud_dashboard.dashboard.views.cancel import CancelTaskView
from powercrud_dashboard.dashboard.views.cluster import ClusterView
from powercrud_dashboard.dashboard.views.download import DownloadView
from powercrud_dashboard.dashboard.views.edit import EditAndRetryView
from powercrud_dashboard.dashboard.views.export import ExportView
from powercrud_dashboard.dashboard.views.failures import FailuresView
from powercrud_dashboard.dashboard.views.group import GroupActionView, GroupView
from powercrud_dashboard.dashboard.views.locks import LockListView
from powercrud_dashboard.dashboard.views.raw import RawTaskView
from powercrud_dashboard.dashboard.views.refresh import RefreshIntervalView
from powercrud_dashboard.dashboard.views.release import ReleaseLockView
from powercrud_dashboard.dashboard.views.retry import RetryTaskView
from powercrud_dashboard.dashboard.views.retry_objects import RetryObjectsView
from powercrud_dashboard.dashboard.views.run_now import RunNowView
from powercrud_dashboard.dashboard.views.schedule import ScheduleActionView
from powercrud_dashboard.dashboard.views.task import TaskView
from powercrud_dashboard.dashboard.views.tasks import TaskListView


class NameConverter(StringConverter):
    """A name that people have given, with slashes and all, in the way of the admin's own keys."""

    def to_python(self, value: str) -> str:
        return unquote(value)

    def to_url(self, value: str) -> str:
        return quote(value)


register_converter(NameConverter, "pcrud_name")

#: The names are those of a ``ModelAdmin``, so that the admin's own links lead to these pages.
URL_NAME = "powercrud_dashboard_taskrecord_{}"


def dashboard_urls(
    admin_site: AdminSite | None = None, wrap: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None
) -> list[URLPattern]:
    """Return the pages' URL patterns.

    Args:
        admin_site: the site whose look and links the pages have; by default the default site.
        wrap: decorator for each view, such as ``admin_site.admin_view``.
    """
    options: dict[str, Any] = {} if admin_site is None else {"admin_site": admin_site}
    pages = [
        ("", TaskListView, "changelist"),
        ("bulk/", BulkActionView, "bulk"),
        ("export/<str:file_format>/", ExportView, "export"),
        ("failures/", FailuresView, "failures"),
        ("refresh/", RefreshIntervalView, "refresh"),
        ("locks/", LockListView, "locks"),
        ("locks/<int:pk>/release/", ReleaseLockView, "release"),
        ("cluster/", ClusterView, "cluster"),
        ("schedules/<int:pk>/<slug:action>/", ScheduleActionView, "schedule"),
        ("groups/<pcrud_name:group>/", GroupView, "group"),
        ("groups/<pcrud_name:group>/<slug:action>/", GroupActionView, "group_action"),
        ("<int:pk>/files/<int:file_pk>/", DownloadView, "download"),
        ("<int:pk>/retry-objects/", RetryObjectsView, "retry_objects"),
        ("<int:pk>/change/", TaskView, "change"),
        ("<int:pk>/raw/", RawTaskView, "raw"),
        ("<int:pk>/edit/", EditAndRetryView, "edit"),
        ("<int:pk>/retry/", RetryTaskView, "retry"),
        ("<int:pk>/cancel/", CancelTaskView, "cancel"),
        ("<int:pk>/run-now/", RunNowView, "run_now"),
    ]
    patterns = []
    for route, page, name in pages:
        view = page.as_view(**options)
        patterns.append(path(route, wrap(view) if wrap else view, name=URL_NAME.format(name)))
    return patterns
