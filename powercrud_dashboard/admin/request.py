"""The request of a click, as far as an action needs it in a worker: what is kept of it, and how it is made again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from io import BytesIO
from typing import Any

from django.conf import settings
from django.contrib.messages import constants
from django.contrib.messages.storage.base import BaseStorage, Message
from django.core.exceptions import MiddlewareNotUsed
from django.http import HttpRequest, HttpResponse, QueryDict
from django.http.response import HttpResponseBase
from django.urls import Resolver404, get_script_prefix, resolve, set_script_prefix
from django.utils import timezone, translation
from django.utils.module_loading import import_string
from django_htmx.middleware import HtmxDetails

from powercrud_dashboard.async_context import get_current_task
from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.dashboard import access
from powercrud_dashboard.exceptions import MiddlewareAnswered

logger = logging.getLogger(__name__)


class TaskMessages(BaseStorage):
    """A messages storage that adds messages to the log of the running task."""

    def add(self, level: int, message: str, extra_tags: str | None = "") -> None:
        task = get_current_task()
        if task is not None and message and int(level) >= self.level:
            task.log(message, _LEVEL_NAMES.get(int(level), "info"))

    def _get(self, *args: Any, **kwargs: Any) -> tuple[list[Message], bool]:
        return [], True

    def _store(self, messages: Sequence[Any], response: Any, *args: Any, **kwargs: Any) -> list[Any]:
        return []


_LEVEL_NAMES = {
    constants.DEBUG: "debug",
    constants.INFO: "info",
    constants.SUCCESS: "success",
    constants.WARNING: "warning",
    constants.ERROR: "error",
}


class WorkerRequest(HttpRequest):
    """A POST request that no server has received."""

    # Of a request that was received these are computed.
    scheme: str = "http"
    body: bytes = b""


def surroundings_of(request: HttpRequest) -> dict[str, Any]:
    """Return what is kept of a click's request beside its path and data, as plain JSON."""
    time_zone = timezone.get_current_timezone()
    return {
        "scheme": request.scheme,
        "host": request.get_host(),
        "script_name": request.path.removesuffix(request.path_info),
        "remote_addr": request.META.get("REMOTE_ADDR", ""),
        "language": translation.get_language() or "",
        # Only zones with a name can be kept.
        "time_zone": getattr(time_zone, "key", ""),
        # Under a name that the pages mask.
        "session_keys": access.kept_session(request),
    }


@contextmanager
def as_at_click(surroundings: Mapping[str, Any]) -> Iterator[None]:
    """Activate the language, the time zone and the script prefix of a click."""
    prefix = get_script_prefix()
    language, time_zone = surroundings.get("language"), surroundings.get("time_zone")
    if "script_name" in surroundings:
        set_script_prefix(f"{surroundings['script_name']}/")
    try:
        with (
            translation.override(language or translation.get_language()),
            timezone.override(time_zone or timezone.get_current_timezone()),
        ):
            yield
    finally:
        set_script_prefix(prefix)


def worker_request(
    user: Any, path: str, post: Mapping[str, Any], surroundings: Mapping[str, Any] | None = None
) -> HttpRequest:
    """Return a POST request as that of a click, whose messages are logged by the task.

    Args:
        user: the user who clicked.
        path: the path, with its query string.
        post: the submitted data; a value may be a list.
        surroundings: what :func:`surroundings_of` has returned at the click.
    """
    click = surroundings or {}
    request = WorkerRequest()
    request.method = "POST"
    request.scheme = click.get("scheme", "http")
    request.path, __, query = path.partition("?")
    script_name = click.get("script_name", "")
    request.path_info = request.path.removeprefix(script_name) or "/"
    data = QueryDict(mutable=True)
    for name, value in post.items():
        data.setlist(name, [str(item) for item in value] if isinstance(value, list) else [str(value)])
    data._mutable = False
    request.GET = QueryDict(query)
    request.POST = data  # type: ignore[assignment]
    request.body = data.urlencode().encode()
    request._stream = BytesIO(request.body)
    request.content_type, request.content_params = "application/x-www-form-urlencoded", {}
    host = click.get("host") or _default_host()
    name, __, port = host.rpartition(":") if host.rpartition(":")[2].isdecimal() else (host, "", "")
    request.META = {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": script_name,
        "PATH_INFO": request.path_info,
        "QUERY_STRING": query,
        "CONTENT_TYPE": request.content_type,
        "CONTENT_LENGTH": str(len(request.body)),
        "HTTP_HOST": host,
        "SERVER_NAME": name,
        "SERVER_PORT": port or ("443" if request.is_secure() else "80"),
        "REMOTE_ADDR": click.get("remote_addr", ""),
        "HTTP_ACCEPT_LANGUAGE": translation.get_language() or "",
    }
    request.user = user
    request.auser = _returning(user)
    request.LANGUAGE_CODE = translation.get_language() or settings.LANGUAGE_CODE
    request.session = _session(click.get("session_keys", {}))
    request.htmx = HtmxDetails(request)  # type: ignore[attr-defined]
    request._messages = TaskMessages(request)  # type: ignore[attr-defined]
    try:
        request.resolver_match = resolve(request.path_info)
    except Resolver404:
        # The URLs have changed since the click.
        request.resolver_match = None
    return request


def call_in_middleware(request: HttpRequest, call: Callable[[HttpRequest], Any]) -> Any:
    """Return ``call(request)``, called within the middleware in ``DASHBOARD_WORKER_MIDDLEWARE``.

    Raises:
        MiddlewareAnswered: if a middleware answers the request itself.
        BaseException: whatever ``call`` raises. As in a request, the middleware gets an answer and runs to its end.
    """
    results: list[Any] = []
    errors: list[BaseException] = []
    view_hooks: list[Callable[..., Any]] = []

    def respond(request: HttpRequest) -> HttpResponseBase:
        if match := request.resolver_match:
            for hook in view_hooks:
                if (answer := hook(request, match.func, match.args, match.kwargs)) is not None:
                    return answer  # type: ignore[no-any-return]
        try:
            results.append(call(request))
        except BaseException as error:
            # A middleware without "finally" must not leave its user or tenant to the next task of this process.
            errors.append(error)
            return HttpResponse(status=500)
        return results[0] if isinstance(results[0], HttpResponseBase) else HttpResponse()

    handler = respond
    for path in reversed(app_settings.DASHBOARD_WORKER_MIDDLEWARE):
        try:
            middleware = import_string(path)(handler)
        except MiddlewareNotUsed:
            continue
        if hasattr(middleware, "process_view"):
            view_hooks.insert(0, middleware.process_view)
        handler = middleware
    try:
        answer = handler(request)
    except Exception:
        if not errors:
            raise
        logger.exception("A middleware failed after the action had failed")
    if errors:
        raise errors[0]
    if not results:
        raise MiddlewareAnswered(answer.status_code, answer.headers.get("Location", ""))
    return results[0]


def _returning(user: Any) -> Callable[[], Any]:
    async def auser() -> Any:
        return user

    return auser


def _session(values: Mapping[str, Any]) -> Any:
    """Return a session that was never saved, with these values."""
    session = import_module(settings.SESSION_ENGINE).SessionStore()
    session.update(values)
    session.accessed = session.modified = False
    return session


def _default_host() -> str:
    for host in settings.ALLOWED_HOSTS:
        if "*" not in host:
            return host.lstrip(".")
    return "localhost"
