from __future__ import annotations

from typing import Any

from django.db.models import Q, QuerySet
from django.utils.translation import gettext_lazy as _

from powercrud_dashboard import access
from powercrud_dashboard.dashboard.objects import ObjectLinks
from powercrud_dashboard.dashboard.tables import LockTable, show_page
from powercrud_dashboard.dashboard.views.base import RefreshingPageView
from powercrud_dashboard.models import ConflictLock, TaskRecord


class LockListView(RefreshingPageView):
    """Who holds what since when, for who may view locks."""

    page_name = "locks"
    required_permission = "view_conflictlock"
    template_name = "powercrud_dashboard/locks/page.html"
    partial_template_name = "powercrud_dashboard/locks/_list.html"

    def get_queryset(self) -> QuerySet[ConflictLock]:
        locks: QuerySet[ConflictLock] = ConflictLock.objects.select_related("active_task")
        for word in self.request.GET.get("q", "").split():
            locks = locks.filter(
                Q(model_label__icontains=word)
                | Q(object_id=word)
                | Q(active_task__label__icontains=word)
                | Q(active_task__task_name=word)
            )
        return locks

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        return super().get_context_data(
            title=_("Locks"),
            table=self._table(),
            search=self.request.GET.get("q", ""),
            **kwargs,
        )

    def _table(self) -> LockTable:
        holder_urls: dict[str, str] = {}
        links = ObjectLinks(self.admin_site, self.request)
        table = LockTable(
            self.get_queryset(),
            holder_urls=holder_urls,
            object_url=lambda lock: links.url(lock.model_label, lock.object_id),
            release_url=self._release_url if access.may_release_locks(self.request.user) else None,
        )
        show_page(table, self.request)
        names = {row.record.active_task.task_name for row in table.page.object_list}
        visible = TaskRecord.objects.visible_to(self.request.user).filter(task_name__in=names)
        holder_urls.update((name, self.url("change", pk)) for name, pk in visible.values_list("task_name", "pk"))
        return table

    def _release_url(self, lock: ConflictLock) -> str:
        return self.url("release", lock.pk)
