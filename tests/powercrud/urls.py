from __future__ import annotations

from django.contrib import admin
from django.urls import include, path

from powercrud_dashboard.async_manager import AsyncManager
from tests.powercrud.views import BookView, ChapterView

urlpatterns = [
    path("admin/", admin.site.urls),
    # As PowerCRUD's guide has it.
    path("powercrud/", include("powercrud.urls", namespace="powercrud")),
    AsyncManager.get_urlpatterns("pages/", namespace="pages"),
    path("library/", include([*BookView.get_urls(), *ChapterView.get_urls()])),
]
