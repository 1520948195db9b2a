"""Files of tasks: store the uploads of a form as long as the task can be retried, and the file of an action."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from io import BytesIO
from typing import Any

from django.core.files.uploadedfile import InMemoryUploadedFile, UploadedFile
from django.utils.translation import gettext_lazy as _

from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.exceptions import FileTooLarge
from powercrud_dashboard.models.files import FilePurpose, TaskFile
from powercrud_dashboard.text import SHORT, clean_text


def keep_parameters(owner: str, files: Mapping[str, Iterable[UploadedFile[Any]]]) -> None:
    """Store uploaded files, by the form's field, for the task or group of this name.

    Raises:
        FileTooLarge: if one is larger than ``DASHBOARD_FILE_LIMIT``.
    """
    for field, uploads in files.items():
        for upload in uploads:
            _keep(owner, FilePurpose.PARAMETER, upload.name or field, upload.content_type, upload.chunks(), field=field)


def parameters(owner: str) -> dict[str, list[UploadedFile[Any]]]:
    """Return the stored files in the form that a form takes.

    Raises:
        LookupError: if they were deleted, with the record of their task.
    """
    found: dict[str, list[UploadedFile[Any]]] = {}
    for kept in TaskFile.objects.parameters_of(owner).order_by("pk"):
        content = BytesIO(bytes(kept.content))
        upload = InMemoryUploadedFile(content, kept.field, kept.name, kept.content_type, kept.size, None)
        found.setdefault(kept.field, []).append(upload)
    if not found:
        text = _(
            "The uploaded files no longer exist: they were deleted with the record of the task that they were uploaded "
            "for. Launch the action again with the files."
        )
        raise LookupError(text)
    return found


def keep_result(task_name: str, name: str, content_type: str, parts: Iterable[bytes]) -> TaskFile:
    """Store a file that a task made, in the place of that of an earlier attempt.

    Whoever may see the task may download it.

    Raises:
        FileTooLarge: if it is larger than ``DASHBOARD_FILE_LIMIT``; then nothing is stored.
    """
    kept = _keep(task_name, FilePurpose.RESULT, name, content_type, parts)
    TaskFile.objects.results_of(task_name).exclude(pk=kept.pk).delete()
    return kept


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
