"""When the end of a task is told to the person who launched it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.utils import timezone

from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.models import TaskNotice, TaskRecord

#: Its place in MIDDLEWARE turns the notices on.
MIDDLEWARE = "powercrud_dashboard.middleware.TaskNoticesMiddleware"


def are_on() -> bool:
    """Return whether the pages of the project tell of ended tasks."""
    chosen = app_settings.DASHBOARD_NOTICES
    return MIDDLEWARE in settings.MIDDLEWARE if chosen is None else chosen


def add(record: TaskRecord, event: str, payload: Mapping[str, Any]) -> None:
    """Note, with the end of a task, that a person is to be told of it. A task of nobody costs nothing."""
    if record.user_id is None or payload.get("in_caller"):
        # Who waits for the answer of the request in which the task has run sees it there.
        return
    is_for_pages, mails = are_on(), _is_mailed(record, event, payload)
    if is_for_pages or mails:
        TaskNotice.objects.add(record, is_for_pages=is_for_pages, mails=mails)


def _is_mailed(record: TaskRecord, event: str, payload: Mapping[str, Any]) -> bool:
    after = app_settings.DASHBOARD_MAIL_AFTER
    if after is None or event == "cancel":
        return False
    ended = payload.get("timestamp") or timezone.now()
    return bool(ended - record.created_at >= timedelta(seconds=after))
