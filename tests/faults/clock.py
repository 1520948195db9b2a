"""Clocks that a fault can set, that of a lane and that of each host: as Django reads them, and as SQLite does.

PostgreSQL's server goes on with the machine's clock, as a server of its own would.
"""

from __future__ import annotations

import socket
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db.backends.signals import connection_created
from django.utils import timezone

_real_time = time.time
_real_now = timezone.now


def _file(host: str) -> Path:
    return Path(settings.STATE_DIR) / f"clock of {host or 'all'}"


def set_clock(seconds: int, host: str = "") -> None:
    """Set the clocks of all hosts, or one host's, so far off the machine's."""
    written = _file(host).with_suffix(".new")
    written.write_text(str(seconds))
    written.replace(_file(host))


def set_clocks_right() -> None:
    for path in Path(settings.STATE_DIR).glob("clock of *"):
        path.unlink()


def _offset() -> int:
    return _read("") + _read(socket.gethostname())


def _read(host: str) -> int:
    try:
        return int(_file(host).read_text())
    except FileNotFoundError:
        return 0


def install() -> None:
    """Let this process go by its host's clock."""
    time.time = lambda: _real_time() + _offset()
    timezone.now = lambda: _real_now() + timedelta(seconds=_offset())
    connection_created.connect(_teach_sqlite, dispatch_uid="faults clock")


def _teach_sqlite(connection: Any, **kwargs: Any) -> None:
    if connection.vendor == "sqlite":
        connection.connection.create_function("strftime", 2, _strftime)


def _strftime(form: str, moment: str) -> str | None:
    if moment.lower() != "now":
        raise ValueError("Django asks for now only.")
    now = _real_now() + timedelta(seconds=_offset())
    return now.strftime(form.replace("%f", f"%S.{now.microsecond // 1000:03d}"))
