from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect

from powercrud_dashboard.dashboard.views.base import REFRESH_COOKIE, DashboardView, refresh_choices

A_YEAR = 365 * 24 * 60 * 60


class RefreshIntervalView(DashboardView):
    """Keep how often this person's pages refresh themselves, and go back to the page."""

    http_method_names = ["post", "options"]

    def post(self, request: HttpRequest) -> HttpResponse:
        response = redirect(self.next_url(self.url("changelist")))
        seconds = request.POST.get("seconds", "")
        if seconds in {str(choice) for choice in refresh_choices()}:
            response.set_cookie(
                REFRESH_COOKIE, seconds, max_age=A_YEAR, secure=request.is_secure(), httponly=True, samesite="Lax"
            )
        return response
