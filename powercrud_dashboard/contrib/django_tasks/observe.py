"""Tasks of the framework's other backends, as its signals tell of them. What fails here never touches a task."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from importlib import import_module
from typing import Any

from django.apps import apps
from django.db import connections
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.contrib.django_tasks import framework
from powercrud_dashboard.contrib.django_tasks.backend import DjangoQ2Backend
from powercrud_dashboard.contrib.django_tasks.framework import DEFAULT_TASK_QUEUE_NAME, TaskResultStatus
from powercrud_dashboard.engine import observed
from powercrud_dashboard.engine.observed_rows import Event
from powercrud_dashboard.engine.spec import argument_names
from powercrud_dashboard.models import FailureReason, Source
from powercrud_dashboard.text import MESSAGE, SHORT, KeptText, clean_text, error_text

logger = logging.getLogger(__name__)

_ENQUEUED = KeptText(_("Observed on the backend %(alias)s (%(path)s)"))


def connect() -> None:
    """Have the tasks of other backends recorded from now on."""
    signals: list[Any] = [framework]
    if apps.is_installed("django_tasks"):
        # Beside Django's own framework.
        signals.append(import_module("django_tasks.signals"))
    for module in signals:
        module.task_enqueued.connect(_enqueued, dispatch_uid="powercrud_dashboard.observe")
        module.task_started.connect(_started, dispatch_uid="powercrud_dashboard.observe")
        module.task_finished.connect(_finished, dispatch_uid="powercrud_dashboard.observe")


def _enqueued(sender: Any, task_result: Any, **kwargs: Any) -> None:
    _observe(sender, task_result, lambda: [])


def _started(sender: Any, task_result: Any, **kwargs: Any) -> None:
    _observe(sender, task_result, lambda: [("start", _start_of(task_result))])


def _finished(sender: Any, task_result: Any, **kwargs: Any) -> None:
    _observe(sender, task_result, lambda: [("start", _start_of(task_result)), _end_of(task_result)])


def _observe(sender: Any, result: Any, events: Callable[[], list[Event]]) -> None:
    is_ours = isinstance(sender, type) and issubclass(sender, DjangoQ2Backend)
    if is_ours or app_settings.DASHBOARD_TRACK != "all":
        return
    try:
        # Now, as the backend may change the result later.
        write = partial(observed.record, result.id, _creation_of(sender, result), events())
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            write()
        else:
            # Here the database can't be asked.
            _executor().submit(_write_in_thread, write)
    except Exception:
        logger.warning("Task %s could not be observed", getattr(result, "id", ""), exc_info=True)


@cache
def _executor() -> ThreadPoolExecutor:
    # One thread, so that the events of a task stay in their order.
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="powercrud-dashboard-observe")


if hasattr(os, "register_at_fork"):
    # Its thread stays with the parent.
    os.register_at_fork(after_in_child=_executor.cache_clear)


def _write_in_thread(write: Callable[[], None]) -> None:
    try:
        write()
    except Exception:
        logger.warning("A task could not be observed", exc_info=True)
    finally:
        connections.close_all()


def _creation_of(sender: Any, result: Any) -> dict[str, Any]:
    task = result.task
    path = f"{sender.__module__}.{sender.__qualname__}" if isinstance(sender, type) else ""
    names = argument_names(task.func, len(result.args) + task.takes_context)
    return {
        "source": Source.DJANGO_TASKS.value,
        "func": task.module_path,
        "label": task.name,
        "message": error_text(_ENQUEUED(alias=result.backend, path=path), MESSAGE),
        "task_args": result.args,
        # Without the context.
        "argument_names": names[1:] if task.takes_context else names,
        "task_kwargs": result.kwargs,
        "cluster": "" if task.queue_name == DEFAULT_TASK_QUEUE_NAME else clean_text(task.queue_name, SHORT),
        "run_after": task.run_after,
        "timestamp": result.enqueued_at or timezone.now(),
    }


def _start_of(result: Any) -> dict[str, Any]:
    return {
        "attempt": max(1, len(result.worker_ids)),
        "timestamp": result.last_attempted_at or timezone.now(),
        "worker_host": result.worker_ids[-1] if result.worker_ids else "",
    }


def _end_of(result: Any) -> Event:
    times = {"started_at": result.last_attempted_at, "timestamp": result.finished_at or timezone.now()}
    if result.status == TaskResultStatus.SUCCESSFUL:
        return "complete", {**times, "result": result.return_value}
    path, traceback = "", ""
    if result.errors:
        path, traceback = result.errors[-1].exception_class_path, result.errors[-1].traceback
    reason = FailureReason.ERROR.value
    facts = {"error": _error_in(traceback, path), "exception_class": path, "traceback": traceback}
    return "fail", {**times, **facts, "reason": reason}


def _error_in(traceback: str, path: str) -> str:
    """Return the text of the error that a traceback ends with: the framework does not keep it by itself."""
    # Before it may be errors that led to this one. Python prints no module before its own classes.
    __, __, last = traceback.rpartition("Traceback (most recent call last)")
    match = re.search(rf"^(?:  \| )?{re.escape(path.removeprefix('builtins.'))}: ", last, re.MULTILINE)
    error = last[match.end() :].strip() if match else ""
    return error or traceback.strip().rpartition("\n")[2]
