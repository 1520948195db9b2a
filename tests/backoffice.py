"""An admin site beside Django's own, which only the URL configuration imports."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from powercrud_dashboard.admin import BackgroundActionsMixin, background_action
from tests.testapp.models import Project

site = admin.AdminSite("backoffice")

#: Names of projects that this site does not show begin so.
HIDDEN = "hidden"


@admin.register(Project, site=site)
class BackofficeProjectAdmin(BackgroundActionsMixin, admin.ModelAdmin):
    actions = ["archive"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Project]:
        return super().get_queryset(request).exclude(name__startswith=HIDDEN)

    @background_action(permissions=["change"])
    def archive(self, request: HttpRequest, queryset: QuerySet[Project]) -> dict[str, Any]:
        return {"site": self.admin_site.name, "archived": queryset.update(archived=True)}
