from __future__ import annotations

from django.contrib import admin
from django.urls import path
from django.views.generic import RedirectView

from powercrud_dashboard.async_manager import AsyncManager

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="admin:index")),
    path("admin/", admin.site.urls),
    AsyncManager.get_urlpatterns(),
]
