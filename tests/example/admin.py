"""Background actions, and the pages in an admin site of the project's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from powercrud_dashboard.admin import (
    BackgroundAction,
    BackgroundActionsMixin,
    TaskRecordAdmin,
    background_action,
)
from powercrud_dashboard.async_context import track
from powercrud_dashboard.models import TaskRecord
from tests.testapp.models import Project

if TYPE_CHECKING:
    ProjectModelAdmin = admin.ModelAdmin[Project]
else:
    ProjectModelAdmin = admin.ModelAdmin

site = admin.AdminSite("example")
site.register(TaskRecord, TaskRecordAdmin)


@admin.register(Project, site=site)
class ProjectAdmin(BackgroundActionsMixin, ProjectModelAdmin):
    actions = ["archive"]
    background_actions = [
        "tests.testapp.tasks.rebuild_projects",
        BackgroundAction("audit", "Audit projects", permissions=["view"], task="tests.testapp.tasks.audit"),
    ]

    @background_action(description="Archive projects", permissions=["change"], conflict=True)
    def archive(self, request: HttpRequest, queryset: QuerySet[Project]) -> None:
        for project in track(queryset):
            project.archived = True
            project.save(update_fields=["archived"])
