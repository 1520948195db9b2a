"""What the project does when tasks start and end, and what its settings name."""

from __future__ import annotations

import logging
from typing import Any

from django.dispatch import Signal
from django.http import HttpRequest

from powercrud_dashboard.log_records import TaskContextFilter
from powercrud_dashboard.middleware import TaskNoticesMiddleware
from powercrud_dashboard.signals import (
    task_cancelled,
    task_cleaned,
    task_completed,
    task_created,
    task_dismissed,
    task_event,
    task_failed,
    task_finished,
    task_paused,
    task_progress,
    task_reopened,
    task_resumed,
    task_retried,
    task_started,
)

FOLLOWED: list[Signal] = [
    task_cancelled,
    task_cleaned,
    task_completed,
    task_created,
    task_dismissed,
    task_event,
    task_failed,
    task_finished,
    task_paused,
    task_progress,
    task_reopened,
    task_resumed,
    task_retried,
    task_started,
]


def note(sender: type, *, task_name: str, event: str, payload: dict[str, Any], **kwargs: Any) -> None:
    logging.getLogger(__name__).info("%s: %s of %s", sender.__name__, event, task_name)


def connect() -> None:
    for signal in FOLLOWED:
        signal.connect(note, dispatch_uid="example")


class Notices(TaskNoticesMiddleware):
    """Tells nobody on the public pages."""

    def is_page(self, request: HttpRequest) -> bool:
        return super().is_page(request) and not request.path.startswith("/public/")


def log_filter() -> TaskContextFilter:
    return TaskContextFilter(default="-")
