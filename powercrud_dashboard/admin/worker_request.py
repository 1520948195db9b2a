"""The request that an admin action gets in a worker, where no browser waits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django.conf import settings
from django.contrib.messages import constants
from django.contrib.messages.storage.base import BaseStorage, Message
from django.http import HttpRequest, QueryDict

from powercrud_dashboard.async_context import get_current_task


class TaskMessages(BaseStorage):
    """Messages framework storage that keeps messages as lines of the running task."""

    def add(self, level: int, message: str, extra_tags: str | None = "") -> None:
        task = get_current_task()
        if task is not None and message and int(level) >= self.level:
            task.log(str(message), _LEVEL_NAMES.get(int(level), "info"))

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


def worker_request(user: Any, path: str, post: Mapping[str, Any]) -> HttpRequest:
    """Return a POST request with this user, path and data, whose messages go to the task's page."""
    request = HttpRequest()
    request.method = "POST"
    request.path, __, query = path.partition("?")
    request.path_info = request.path
    request.META = {"REQUEST_METHOD": "POST", "SERVER_NAME": _host(), "SERVER_PORT": "80", "QUERY_STRING": query}
    request.GET = QueryDict(query)
    data = QueryDict(mutable=True)
    for name, value in post.items():
        data.setlist(name, [str(item) for item in value] if isinstance(value, list) else [str(value)])
    request.POST = data  # type: ignore[assignment]
    request.user = user
    request.session = {}  # type: ignore[assignment]
    request._messages = TaskMessages(request)  # type: ignore[attr-defined]
    return request


def _host() -> str:
    for host in settings.ALLOWED_HOSTS:
        if "*" not in host:
            return host.lstrip(".")
    return "localhost"
