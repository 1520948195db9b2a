"""The pages in the admin: they take the place of the changelist and the change form of ``TaskRecord``."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import URLPattern

from powercrud_dashboard import access
from powercrud_dashboard.dashboard.urls import dashboard_urls
from powercrud_dashboard.models import TaskRecord


@admin.register(TaskRecord)
class TaskRecordAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Puts the task pages where the admin looks for them; deletion and its history stay the admin's."""

    def __init__(self, model: type[TaskRecord], admin_site: admin.AdminSite) -> None:
        super().__init__(model, admin_site)
        if admin_site.index_template is None:
            admin_site.index_template = "powercrud_dashboard/admin/index.html"

    def get_urls(self) -> list[URLPattern]:
        own = dashboard_urls(self.admin_site, self.admin_site.admin_view)
        replaced = {pattern.name for pattern in own}
        return [*own, *(pattern for pattern in super().get_urls() if pattern.name not in replaced)]

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.has_view_permission(request)

    def has_view_permission(self, request: HttpRequest, obj: TaskRecord | None = None) -> bool:
        # Every member of staff sees the tasks that they launched; the pages show no others.
        is_staff = bool(request.user.is_active and request.user.is_staff)
        return is_staff and (obj is None or access.may_see(request.user, obj.task_name))

    def get_queryset(self, request: HttpRequest) -> QuerySet[TaskRecord]:
        return TaskRecord.objects.visible_to(request.user)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: TaskRecord | None = None) -> bool:
        return super().has_delete_permission(request, obj) and (obj is None or obj.is_finished)
