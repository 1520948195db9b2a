"""What a worker process of a cluster gets beside django-q2's own loop."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

from django_q.cluster import Sentinel
from django_q.signals import post_spawn

from powercrud_dashboard.worker import hooks, kept_connection, stopping, watch


def _equip(**kwargs: Any) -> None:
    stop_event = None
    for frame in _callers():
        if frame.f_globals.get("__name__") == "django_q.tasks":
            # django-q2 runs a synchronous task by the same loop, in the process of its caller.
            return
        # Workers are forked from the sentinel, so that it is on the stack below them.
        if isinstance(sentinel := frame.f_locals.get("self"), Sentinel):
            stop_event = sentinel.stop_event
            break
    stopping.heed(stop_event)
    hooks.install()
    kept_connection.install()
    watch.start()


def _callers() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        yield frame
        frame = frame.f_back


post_spawn.connect(_equip, dispatch_uid="powercrud_dashboard.worker_process")
