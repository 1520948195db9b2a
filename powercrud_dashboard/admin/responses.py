"""What an action answers a browser with, kept with its task, as in a worker no browser waits."""

from __future__ import annotations

import mimetypes
from collections.abc import Iterable
from typing import Any

from django.http import FileResponse, HttpRequest
from django.http.response import HttpResponseBase, HttpResponseRedirectBase
from django.utils.http import parse_header_parameters

from powercrud_dashboard import files


def keep_response(task_name: str, response: HttpResponseBase, request: HttpRequest) -> dict[str, Any] | None:
    """Keep a response's content as a file of the task. Return what the task's result says of it.

    None for a response without content, such as the redirect that ends many an action.

    Raises:
        FileTooLarge: if it is larger than ``DASHBOARD_FILE_LIMIT``.
    """
    if isinstance(response, HttpResponseRedirectBase):
        return None
    render = getattr(response, "render", None)
    if callable(render):
        render()
    parts: Iterable[bytes] = response if getattr(response, "streaming", False) else [response.content]  # type: ignore[attr-defined]
    try:
        content_type = response.headers.get("Content-Type", "")
        kept = files.keep_result(task_name, _name_of(response, content_type), content_type, parts)
    finally:
        # Not response.close(), which tells Django that a request has ended: then the worker's connections would go.
        if isinstance(response, FileResponse) and response.file_to_stream is not None:
            response.file_to_stream.close()
    if not kept.size:
        kept.delete()
        return None
    return {"file": kept.name, "size": kept.size}


def _name_of(response: HttpResponseBase, content_type: str) -> str:
    _disposition, parameters = parse_header_parameters(response.headers.get("Content-Disposition", ""))
    given = parameters.get("filename", "").replace("\\", "/").rpartition("/")[2]
    if given:
        return str(given)
    kind, _parameters = parse_header_parameters(content_type)
    return f"result{mimetypes.guess_extension(kind) or '.bin'}"
