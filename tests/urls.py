from __future__ import annotations

from django.contrib import admin
from django.urls import include, path

from powercrud_dashboard.dashboard_manager import DashboardAsyncManager
from tests import backoffice

urlpatterns = [
    path("admin/", admin.site.urls),
    path("backoffice/", backoffice.site.urls),
    path("tasks/", include("powercrud_dashboard.urls")),
    DashboardAsyncManager.get_urlpatterns(),
]
