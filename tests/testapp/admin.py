from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from powercrud_dashboard.admin import BackgroundActionsMixin, background_action
from powercrud_dashboard.async_context import track
from tests.testapp.models import Project


@admin.register(Project)
class ProjectAdmin(BackgroundActionsMixin, admin.ModelAdmin):
    list_display = ["name", "archived"]
    actions = ["archive", "archive_free_ones"]
    background_actions = ["tests.testapp.tasks.touch_projects"]

    @background_action(description="Archive selected projects", permissions=["change"])
    def archive(self, request: HttpRequest, queryset: QuerySet[Project]) -> None:
        for project in track(queryset, description="Archiving"):
            project.archived = True
            project.save()
        self.message_user(request, f"Archived by {request.user}.")

    @background_action(permissions=["change"], on_conflict="skip")
    def archive_free_ones(self, request: HttpRequest, queryset: QuerySet[Project]) -> dict[str, Any]:
        return {"archived": queryset.update(archived=True)}
