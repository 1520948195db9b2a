from __future__ import annotations

from django.contrib import admin
from django.urls import path

from tests.neighbours.admin import more, otp

urlpatterns = [
    path("admin/", admin.site.urls),
    path("more/", more.urls),
    path("otp/", otp.urls),
]
