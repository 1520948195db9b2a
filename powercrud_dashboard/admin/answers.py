"""What an action answers: kept as a file of its task, or returned to the browser if it ran in the request."""

from __future__ import annotations

import mimetypes
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from http import HTTPStatus
from typing import Any

from django.http import FileResponse, HttpRequest
from django.http.response import HttpResponseBase, HttpResponseRedirectBase
from django.utils.http import parse_header_parameters
from django.utils.translation import gettext_lazy as _

from powercrud_dashboard.engine import files
from powercrud_dashboard.exceptions import BrowserAnswer, ErrorAnswer
from powercrud_dashboard.text import MESSAGE, KeptText, clean_text

#: The request that an action runs in, and its answers; None in a worker.
_returned: ContextVar[tuple[HttpRequest, list[HttpResponseBase]] | None] = ContextVar(
    "powercrud_dashboard_answers", default=None
)


_REDIRECT = KeptText(_("a redirect to %(url)s"))
_PAGE = KeptText(_("the page “%(title)s”"))


@contextmanager
def returned_answers(request: HttpRequest) -> Iterator[list[HttpResponseBase]]:
    """Collect what actions answer in this block, to return it to the browser."""
    answers: list[HttpResponseBase] = []
    token = _returned.set((request, answers))
    try:
        yield answers
    finally:
        _returned.reset(token)


def share_csrf_token(request: HttpRequest) -> None:
    """Give the request of an action the token of the browser that its page is returned to."""
    if (returned := _returned.get()) is not None and "CSRF_COOKIE" in returned[0].META:
        request.META["CSRF_COOKIE"] = returned[0].META["CSRF_COOKIE"]


def result_of(response: HttpResponseBase, task_name: str) -> dict[str, Any] | None:
    """Return what is recorded as the result of an action that has answered with a response.

    The response is kept as a file of the task, unless it is returned to the browser.

    Returns:
        The name and size of the file; None for an empty response, or one that is returned to the browser.

    Raises:
        BrowserAnswer: if only a browser could use it, and there is none.
        ErrorAnswer: if its status is that of an error.
        FileTooLarge: if the file is larger than ``DASHBOARD_FILE_LIMIT``.
    """
    if (returned := _returned.get()) is not None:
        returned[1].append(response)
        return None
    if response.status_code >= HTTPStatus.BAD_REQUEST:
        text = (_content_of(response) or b"").decode(response.charset or "utf-8", "replace")
        raise ErrorAnswer(response.status_code, clean_text(text, MESSAGE))
    if isinstance(response, HttpResponseRedirectBase):
        raise BrowserAnswer(_REDIRECT(url=response.url))
    if _content_of(response) == b"":
        return None
    content_type = response.headers.get("Content-Type", "")
    if parse_header_parameters(content_type)[0] == "text/html" and not response.headers.get("Content-Disposition"):
        title = (getattr(response, "context_data", None) or {}).get("title")
        raise BrowserAnswer(_PAGE(title=title) if title else _("a page"))
    return _stored(response, task_name, content_type)


def _content_of(response: HttpResponseBase) -> bytes | None:
    """Return the content; None for one that is not known before it is rendered or streamed."""
    is_known = not response.streaming and getattr(response, "is_rendered", True)
    return response.content if is_known else None  # type: ignore[attr-defined]


def _stored(response: HttpResponseBase, task_name: str, content_type: str) -> dict[str, Any] | None:
    render = getattr(response, "render", None)
    if callable(render):
        render()
    parts: Iterable[bytes] = response if getattr(response, "streaming", False) else [response.content]  # type: ignore[attr-defined]
    try:
        file = files.keep_result(task_name, _name_of(response, content_type), content_type, parts)
    finally:
        # response.close() would send request_finished, which closes the database connections of the worker.
        if isinstance(response, FileResponse) and response.file_to_stream is not None:
            response.file_to_stream.close()
    if not file.size:
        file.delete()
        return None
    return {"file": file.name, "size": file.size}


def _name_of(response: HttpResponseBase, content_type: str) -> str:
    try:
        _disposition, parameters = parse_header_parameters(response.headers.get("Content-Disposition", ""))
    except ValueError:
        # An unknown encoding.
        parameters = {}
    filename = parameters.get("filename", "").replace("\\", "/").rpartition("/")[2]
    if filename:
        return str(filename)
    kind, _parameters = parse_header_parameters(content_type)
    return f"result{mimetypes.guess_extension(kind) or '.bin'}"
