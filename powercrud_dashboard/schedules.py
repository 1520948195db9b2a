"""What a django-q2 schedule calls by its dotted path."""

from __future__ import annotations

from typing import Any

from powercrud_dashboard.async_manager import AsyncManager

CLEANUP_PATH = "powercrud_dashboard.schedules.cleanup_async_artifacts"
CLEANUP_NAME = "powercrud_dashboard cleanup"


def cleanup_async_artifacts() -> dict[str, Any]:
    """Clean up once and return the summary of ``AsyncManager.cleanup_completed_tasks``."""
    return AsyncManager.resolve_manager().cleanup_completed_tasks()
