"""Where the rows of each model live, for tests of projects with more than one database."""

from __future__ import annotations

from typing import Any

#: The other database.
ARCHIVE = "archive"


class ReplicaRouter:
    """Has a database to read from that lags behind for ever: it has not even got the tables yet."""

    def db_for_read(self, model: Any, **hints: Any) -> str | None:
        return ARCHIVE if model._meta.label_lower.startswith("powercrud_dashboard.") else None


class ArchiveRouter:
    """Keeps shelves in a database of their own, and nothing else there."""

    def db_for_read(self, model: Any, **hints: Any) -> str | None:
        return ARCHIVE if getattr(model._meta, "label_lower", "") == "testapp.shelf" else None

    db_for_write = db_for_read

    def allow_migrate(self, db: str, app_label: str, model_name: str | None = None, **hints: Any) -> bool | None:
        if app_label == "testapp" and model_name == "shelf":
            return db == ARCHIVE
        return False if db == ARCHIVE else None
