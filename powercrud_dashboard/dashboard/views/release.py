from __future__ import annotations

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.utils.translation import gettext as _
from django.views.generic.base import TemplateResponseMixin

from powercrud_dashboard.async_manager import AsyncManager
from powercrud_dashboard.dashboard.views.base import DashboardView
from powercrud_dashboard.models import ConflictLock


class ReleaseLockView(TemplateResponseMixin, DashboardView):
    """Release one lock, after saying what that means."""

    page_name = "locks"
    required_permission = "release_conflictlock"
    template_name = "powercrud_dashboard/locks/release.html"

    def get(self, request: HttpRequest, pk: int) -> HttpResponse:
        lock = self._lock(pk)
        if lock is None:
            return self._gone()
        return self.render_to_response(
            self.get_context_data(title=_("Release this lock?"), lock=lock, locks_url=self.url("locks"))
        )

    def post(self, request: HttpRequest, pk: int) -> HttpResponse:
        lock = self._lock(pk)
        manager = AsyncManager.resolve_manager()
        if lock is None or not manager.release_conflict_lock(lock, user=request.user):  # type: ignore[arg-type]
            return self._gone()
        messages.success(request, _("The lock on %(object)s was released.") % {"object": lock})
        return redirect(self.url("locks"))

    def _gone(self) -> HttpResponse:
        messages.info(self.request, _("The lock is gone already."))
        return redirect(self.url("locks"))

    @staticmethod
    def _lock(pk: int) -> ConflictLock | None:
        return ConflictLock.objects.select_related("active_task").filter(pk=pk).first()
