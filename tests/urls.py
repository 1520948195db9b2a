from __future__ import annotations

from django.contrib import admin
from django.urls import include, path

from powercrud_dashboard.async_manager import AsyncManager
from tests import backoffice

urlpatterns = [
    path("admin/", admin.site.urls),
    path("backoffice/", backoffice.site.urls),
    path("tasks/", include("powercrud_dashboard.urls")),
    AsyncManager.get_urlpatterns(),
]
