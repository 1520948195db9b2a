"""A middleware that tells staff, on their next admin page, of their tasks that have ended."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.contrib import messages
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.template.response import SimpleTemplateResponse
from django.utils.safestring import SafeString

from powercrud_dashboard.dashboard.embedded import embedded
from powercrud_dashboard.dashboard.notices import Told

__all__ = ["TaskNoticesMiddleware"]

#: Where the request keeps what it is told.
_TOLD = "_pcrud_told"


class TaskNoticesMiddleware:
    """Adds a message for each task of the user that has ended, once, to the next page that they open.

    It comes after Django's middleware for authentication and for messages. Pages are those that a template renders, of
    an admin site or of this package; override :meth:`is_page` for others. Redirects, JSON, files and what htmx requests
    are no pages, and cost no query. A page costs one.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        if self._is_async:
            return self._respond_async(request)
        response: HttpResponseBase = self.get_response(request)
        if self._has_failed(request, response):
            self._take_back(request)
        return response

    async def _respond_async(self, request: HttpRequest) -> HttpResponseBase:
        response: HttpResponseBase = await self.get_response(request)
        if self._has_failed(request, response):
            await sync_to_async(self._take_back)(request)
        return response

    def process_template_response(
        self, request: HttpRequest, response: SimpleTemplateResponse
    ) -> SimpleTemplateResponse:
        """Add the messages before the page is rendered."""
        if self._is_shown(request, response) and self.is_page(request):
            told = Told(request.user, getattr(request, "current_app", None))
            nothing: list[tuple[int, SafeString]] = []
            for level, text in embedded(told.messages, nothing):
                messages.add_message(request, level, text)
                setattr(request, _TOLD, told)
        return response

    def is_page(self, request: HttpRequest) -> bool:
        """Return whether messages may be shown at this address: by default, on the pages of the admin and on ours."""
        match = request.resolver_match
        return match is not None and not {"admin", "powercrud_dashboard"}.isdisjoint(match.app_names)

    @staticmethod
    def _is_shown(request: HttpRequest, response: SimpleTemplateResponse) -> bool:
        headers = request.headers
        is_part = "HX-Request" in headers and "HX-Boosted" not in headers
        is_prefetch = "prefetch" in headers.get("Sec-Purpose", headers.get("Purpose", ""))
        return (
            response.status_code == 200
            and response.headers.get("Content-Type", "").startswith("text/html")
            and request.method in ("GET", "POST")
            and not (is_part or is_prefetch)
            and hasattr(request, "_messages")
            and request.user.is_authenticated
        )

    @staticmethod
    def _has_failed(request: HttpRequest, response: HttpResponseBase) -> bool:
        return hasattr(request, _TOLD) and response.status_code != 200

    @staticmethod
    def _take_back(request: HttpRequest) -> None:
        """Let another page tell it: this one could not be rendered."""
        told = getattr(request, _TOLD)
        told.take_back()
        # Django keeps them for the next page, in some of its storages, which would tell it twice.
        queued = request._messages._queued_messages  # type: ignore[attr-defined]
        queued[:] = [message for message in queued if message.message not in told.texts]
