from __future__ import annotations

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse


def content_security_policy(
    get_response: Callable[[HttpRequest], HttpResponse],
) -> Callable[[HttpRequest], HttpResponse]:
    """Allow what comes from the site itself and nothing else; for Django 5.2, which has no middleware for it."""

    def respond(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        response["Content-Security-Policy"] = "default-src 'self'"
        return response

    return respond


def count_visits(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Change the session in each request."""

    def respond(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        request.session["visits"] = request.session.get("visits", 0) + 1
        return response

    return respond
