"""The pages in the admin. They replace the changelist and the change form of ``TaskRecord``."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db import IntegrityError
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import URLPattern

from powercrud_dashboard.dashboard import access
from powercrud_dashboard.dashboard.links import URL_NAME
from powercrud_dashboard.dashboard.urls import dashboard_urls
from powercrud_dashboard.engine.pruning import delete_records
from powercrud_dashboard.models import TaskRecord


@admin.register(TaskRecord)
class TaskRecordAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Registers the task pages. The delete and history views are those of the admin."""

    def __init__(self, model: type[TaskRecord], admin_site: admin.AdminSite) -> None:
        super().__init__(model, admin_site)
        if admin_site.index_template is None:
            admin_site.index_template = "powercrud_dashboard/admin/index.html"

    def get_urls(self) -> list[URLPattern]:
        own = dashboard_urls(self.admin_site, self.admin_site.admin_view)
        kept = {URL_NAME.format("delete"), URL_NAME.format("history")}
        # The admin's last URL has no name. It would redirect any other address to a task, whatever its key is.
        return [*own, *(pattern for pattern in super().get_urls() if pattern.name in kept)]

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.has_view_permission(request)

    def has_view_permission(self, request: HttpRequest, obj: TaskRecord | None = None) -> bool:
        # Whom the site lets in may see the tasks that they launched.
        is_let_in = bool(request.user.is_active and self.admin_site.has_permission(request))
        return is_let_in and (obj is None or access.may_see(request.user, obj.task_name))

    def get_queryset(self, request: HttpRequest) -> QuerySet[TaskRecord]:
        return TaskRecord.objects.visible_to(request.user)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: TaskRecord | None = None) -> bool:
        return super().has_delete_permission(request, obj) and (obj is None or access.may_delete(request.user, obj))

    def delete_model(self, request: HttpRequest, obj: TaskRecord) -> None:
        # Files belong to a task by its name, so Django's cascade does not delete them.
        self._delete([obj.pk])

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[TaskRecord]) -> None:
        self._delete(list(queryset.values_list("pk", flat=True)))

    @staticmethod
    def _delete(pks: list[int]) -> None:
        # The admin says that they were deleted.
        if kept := delete_records(pks):
            raise IntegrityError(f"Other data refers to {len(kept)} of the records.")
