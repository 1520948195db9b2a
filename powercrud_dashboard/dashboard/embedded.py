"""What this package adds to pages of the project: without it they are shown nevertheless."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeVar

from django.db import connections, transaction

from powercrud_dashboard.models.database import coordination_db

logger = logging.getLogger(__name__)

Part = TypeVar("Part")


def embedded(part: Callable[[], Part], without: Part) -> Part:
    """Return a part of a page of the project; what is there ``without`` it, if it can't be shown.

    The tables may not have been made yet, their database be away, or the project's ``Dashboard`` raise anything.
    """
    try:
        with _savepoint():
            return part()
    except Exception:
        logger.exception("A part of a page can't be shown")
        return without


def _savepoint() -> Any:
    """Return a savepoint: after an error PostgreSQL refuses everything else in the transaction of ATOMIC_REQUESTS."""
    using = coordination_db()
    return transaction.atomic(using=using) if connections[using].in_atomic_block else nullcontext()
