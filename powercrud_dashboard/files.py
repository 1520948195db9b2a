"""Files that go with tasks: keep those of a form until the task has ended, and what an action answered with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from io import BytesIO
from typing import Any

from django.core.files.uploadedfile import InMemoryUploadedFile, UploadedFile

from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.exceptions import FileTooLarge
from powercrud_dashboard.models.files import FilePurpose, TaskFile
from powercrud_dashboard.models.text import SHORT, clean_text


def keep_parameters(owner: str, files: Mapping[str, Iterable[UploadedFile[Any]]]) -> None:
    """Keep uploaded files, by the form's field, for the task or group of this name.

    Raises:
        FileTooLarge: if one is larger than ``DASHBOARD_FILE_LIMIT``.
    """
    for field, uploads in files.items():
        for upload in uploads:
            _keep(owner, FilePurpose.PARAMETER, upload.name or field, upload.content_type, upload.chunks(), field=field)


def parameters(owner: str) -> dict[str, list[UploadedFile[Any]]]:
    """Return the kept files, as a form takes them."""
    found: dict[str, list[UploadedFile[Any]]] = {}
    for kept in TaskFile.objects.parameters_of(owner).order_by("pk"):
        content = BytesIO(bytes(kept.content))
        upload = InMemoryUploadedFile(content, kept.field, kept.name, kept.content_type, kept.size, None)
        found.setdefault(kept.field, []).append(upload)
    return found


def forget_parameters(owner: str) -> None:
    """Delete the files that a task was launched with."""
    TaskFile.objects.parameters_of(owner).delete()


def keep_result(task_name: str, name: str, content_type: str, parts: Iterable[bytes]) -> TaskFile:
    """Keep what a task has made, for who may see the task to download.

    Raises:
        FileTooLarge: if it is larger than ``DASHBOARD_FILE_LIMIT``; then nothing of it is kept.
    """
    return _keep(task_name, FilePurpose.RESULT, name, content_type, parts)


def _keep(
    owner: str, purpose: FilePurpose, name: str, content_type: str | None, parts: Iterable[bytes], *, field: str = ""
) -> TaskFile:
    content = b"".join(_limited(name, parts))
    return TaskFile.objects.create(
        owner=owner,
        purpose=purpose,
        field=field,
        name=clean_text(name, SHORT),
        content_type=clean_text(content_type or "application/octet-stream", SHORT),
        size=len(content),
        content=content,
    )


def _limited(name: str, parts: Iterable[bytes]) -> Iterator[bytes]:
    size = 0
    for part in parts:
        size += len(part)
        if size > app_settings.DASHBOARD_FILE_LIMIT:
            raise FileTooLarge(name, app_settings.DASHBOARD_FILE_LIMIT)
        yield part
