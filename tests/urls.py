from __future__ import annotations

from django.contrib import admin
from django.urls import include, path

from powercrud_dashboard.dashboard_manager import DashboardAsyncManager

urlpatterns = [
    path("admin/", admin.site.urls),
    path("tasks/", include("powercrud_dashboard.urls")),
    DashboardAsyncManager.get_urlpatterns(),
]
