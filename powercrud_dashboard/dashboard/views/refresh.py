from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.utils.http import url_has_allowed_host_and_scheme

from powercrud_dashboard.dashboard.views.base import REFRESH_COOKIE, DashboardView, refresh_choices

A_YEAR = 365 * 24 * 60 * 60


class RefreshIntervalView(DashboardView):
    """Keep how often this person's pages refresh themselves, and go back to the page."""

    http_method_names = ["post", "options"]

    def post(self, request: HttpRequest) -> HttpResponse:
        address = request.POST.get("next", "")
        is_ours = url_has_allowed_host_and_scheme(
            address, allowed_hosts={request.get_host()}, require_https=request.is_secure()
        )
        response = redirect(address if is_ours else self.url("changelist"))
        seconds = request.POST.get("seconds", "")
        if seconds in {str(choice) for choice in refresh_choices()}:
            response.set_cookie(
                REFRESH_COOKIE, seconds, max_age=A_YEAR, secure=request.is_secure(), httponly=True, samesite="Lax"
            )
        return response
