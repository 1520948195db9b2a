"""The pages outside of the admin: ``path("tasks/", include("powercrud_dashboard.urls"))``."""

from __future__ import annotations

from powercrud_dashboard.dashboard.urls import dashboard_urls

app_name = "powercrud_dashboard"
urlpatterns = dashboard_urls()
