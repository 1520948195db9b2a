from __future__ import annotations

import hashlib
import logging
from datetime import timedelta
from typing import Any

from django.core.mail import mail_admins
from django.db.models import F, Sum
from django.utils import timezone

from powercrud_dashboard.async_context import track
from powercrud_dashboard.schedules import scheduled
from tests.demo.inventory import library
from tests.demo.inventory.models import SourceFile

logger = logging.getLogger(__name__)


def parse_and_count(*, pks: list[int], model: str) -> dict[str, Any]:
    """Count lines and definitions of Python files; the first one that does not parse ends the task."""
    definitions = 0
    for file in track(SourceFile.objects.filter(pk__in=pks), description="Parsing"):
        try:
            found = library.count(file.path)
        except (SyntaxError, ValueError) as error:
            raise ValueError(f"{file.path} can't be parsed: {error}") from error
        file.lines, file.definitions, file.checked_at = found.lines, found.definitions, timezone.now()
        file.save(update_fields=["lines", "definitions", "checked_at"])
        definitions += found.definitions
        logger.info("%s: %s lines, %s definitions", file.path, found.lines, found.definitions)
    return {"files": len(pks), "definitions": definitions}


def stretch_checksums(*, pks: list[int], model: str, rounds: int = 400_000) -> dict[str, Any]:
    """Derive a key from each file's checksum, which is slow by design: time to watch, and to cancel."""
    files = SourceFile.objects.filter(pk__in=pks)
    for file in track(files, description="Stretching"):
        hashlib.pbkdf2_hmac("sha256", file.path.encode(), b"demo", rounds)
        logger.info("Stretched %s", file.path)
        if file.size > 50_000:
            logger.warning("%s is large: %s bytes", file.path, file.size)
    return {"files": len(pks), "rounds": rounds}


@scheduled(every=timedelta(minutes=5), name="refresh checksums", label="Refresh checksums", timeout=120, retry=1)
def refresh_checksums(count: int = 60) -> dict[str, int]:
    """Read the files anew that nobody has looked at for longest."""
    oldest = SourceFile.objects.order_by(F("checked_at").asc(nulls_first=True), "pk")[:count]
    for file in track(oldest, description="Reading"):
        file.sha256, file.checked_at = library.checksum(file.path), timezone.now()
        file.save(update_fields=["sha256", "checked_at"])
    return {"files": count}


@scheduled(every="daily", name="mail report", label="Mail the report")
def mail_report() -> None:
    """Mail to the administrators how much there is."""
    total = SourceFile.objects.aggregate(size=Sum("size"), definitions=Sum("definitions"))
    mail_admins("Inventory", f"{SourceFile.objects.count()} files, {total['size']} bytes, {total['definitions']} names")
