"""The health address, for monitoring."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from django.contrib.admin import AdminSite
from django.contrib.auth.decorators import login_not_required
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.utils.decorators import method_decorator
from django.utils.translation import gettext as _
from django.views import View
from django.views.decorators.cache import never_cache

from powercrud_dashboard.dashboard import access
from powercrud_dashboard.dashboard.views.base import mounted_site
from powercrud_dashboard.engine.alerts import evaluate_in_background
from powercrud_dashboard.engine.health import Health
from powercrud_dashboard.models.database import is_in_transaction


@method_decorator(never_cache, name="dispatch")
# Django's LoginRequiredMiddleware would send who has the token to the login page.
@method_decorator(login_not_required, name="dispatch")
@method_decorator(transaction.non_atomic_requests, name="dispatch")
class MonitoringView(View):
    """Base class of what programs read with the bearer token, and people with the permission to view tasks."""

    http_method_names = ["get", "head", "options"]
    admin_site: AdminSite | None = None

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        # Without the token it asks for the person, which takes queries.
        if access.has_monitoring_token(request) or self._is_permitted(request):
            return super().dispatch(request, *args, **kwargs)
        user = getattr(request, "user", None)
        if user is not None and user.is_authenticated:
            raise PermissionDenied
        return JsonResponse(
            {"error": _("Send the token of DASHBOARD_HEALTH_TOKEN: Authorization: Bearer ...")},
            status=HTTPStatus.UNAUTHORIZED,
            headers={"WWW-Authenticate": "Bearer"},
        )

    @staticmethod
    def unavailable(answer: HttpResponse) -> HttpResponse:
        """Return the answer with the status 503. Django would log each as an error, which is mailed to the admins."""
        answer.status_code = HTTPStatus.SERVICE_UNAVAILABLE
        answer._has_been_logged = True  # type: ignore[attr-defined]
        return answer

    def _is_permitted(self, request: HttpRequest) -> bool:
        user, site = getattr(request, "user", None), self.admin_site or mounted_site()
        if user is None or not (user.is_active and site.has_permission(request)):
            return False
        access.do_not_renew_session(request)
        return access.has_permission(user, "view_taskrecord")


class HealthView(MonitoringView):
    """Say whether tasks are run: 200 if all is well, 503 with the reasons otherwise."""

    def get(self, request: HttpRequest) -> HttpResponse:
        health = Health.now()
        if health.is_evaluation_due and not is_in_transaction():
            # So that it is noticed if no worker is left to notice anything.
            evaluate_in_background()
        answer = JsonResponse(health.as_dict())
        return answer if health.is_good else self.unavailable(answer)
