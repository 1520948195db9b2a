"""Pause queues, and functions on all queues: nothing new of them starts, and no message is lost."""

from __future__ import annotations

import logging
from typing import Any

from django.db import IntegrityError, transaction
from django.utils.translation import gettext_lazy as _

from powercrud_dashboard.engine import retry
from powercrud_dashboard.models import ActiveTask, Pause, TaskRecord, WorkerProcess
from powercrud_dashboard.models.database import coordination_db
from powercrud_dashboard.models.pausing import PauseKind
from powercrud_dashboard.q2.messages import queue_names
from powercrud_dashboard.text import MESSAGE, SHORT, clean_text

logger = logging.getLogger(__name__)


def pause(kind: PauseKind | str, name: str, actor: Any = None, note: str = "") -> bool:
    """Let nothing new of a queue or function start. Return False if it is paused already.

    What runs goes on. A worker that gets a message of a task that must not start holds the task back, and it is queued
    again once it may. ``actor`` is a user or a text.
    """
    user = None if actor is None or isinstance(actor, str) else actor
    label = "" if actor is None else clean_text(actor, SHORT)
    try:
        with transaction.atomic(using=coordination_db()):
            Pause.objects.create(
                kind=PauseKind(kind),
                name=clean_text(name, SHORT),
                user=user,
                user_label=label,
                note=clean_text(note, MESSAGE),
            )
    except IntegrityError:
        return False
    logger.info("The %s %s was paused by %s", PauseKind(kind).value, name, label)
    return True


#: Said where something unknown is paused.
UNKNOWN = _("No task of “%(name)s” is known so far. Check the spelling.")


def is_known(kind: PauseKind | str, name: str) -> bool:
    """Return whether there is a queue of this name, or was a task of this function."""
    if PauseKind(kind) == PauseKind.FUNCTION:
        records = TaskRecord.objects.filter(func=name)
        # By an index each.
        return records.unfinished().exists() or records.filter(finished_at__isnull=False).exists()
    has_workers = WorkerProcess.objects.filter(cluster=name).exists()
    return has_workers or name in queue_names() or ActiveTask.objects.filter(cluster=name).exists()


def is_paused(kind: PauseKind | str, name: str) -> bool:
    """Return whether a queue or function is paused."""
    return Pause.objects.filter(kind=PauseKind(kind), name=clean_text(name, SHORT)).exists()


def resume(kind: PauseKind | str, name: str, actor: Any = None) -> bool:
    """Let tasks of a queue or function start again. Return False if it is not paused.

    The tasks that were held back are queued again, the first of them now and the others by the workers.
    """
    deleted, _by_model = Pause.objects.filter(kind=PauseKind(kind), name=clean_text(name, SHORT)).delete()
    if not deleted:
        return False
    logger.info("The %s %s was resumed by %s", PauseKind(kind).value, name, actor)
    retry.send_released()
    return True
