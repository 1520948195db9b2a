"""Whether the worker of a running task is still alive."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable

from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.models import ActiveTask

#: Silence after which a process on this host is looked for. A few heartbeats long, so that a
#: container with the same host name but process numbers of its own is not taken for dead.
LOOK_FOR_PROCESS_AFTER = 5

#: Seconds that a worker which seems lost is watched for; more than two heartbeats.
OBSERVATION = 2.5


def this_worker() -> tuple[str, int]:
    """Return the host name and process id under which this process claims tasks."""
    return socket.gethostname(), os.getpid()


def is_lost(active: ActiveTask) -> bool:
    """Return whether a running task's worker is gone.

    A process of this host can be asked: dead is lost within seconds, and alive is alive
    however long it can't write its heartbeat (a task that keeps SQLite's only write
    lock), up to ``MAX_TASK_DURATION``. Of other hosts only the heartbeat is known.
    """
    host, __ = this_worker()
    if active.worker_host != host:
        patience = app_settings.DASHBOARD_HEARTBEAT_TIMEOUT
    elif _process_exists(active.worker_pid):
        patience = app_settings.MAX_TASK_DURATION
    else:
        patience = LOOK_FOR_PROCESS_AFTER
    return ActiveTask.objects.all().of_attempt(active).silent_for(patience).exists()


def stay_silent(seem_lost: Iterable[ActiveTask]) -> list[ActiveTask]:
    """Return those of these tasks that show no life for two heartbeats' time.

    When a clock is set, all workers seem lost until they are next heard of.
    """
    tasks = list(seem_lost)
    if any(not _is_known_dead(active) for active in tasks):
        time.sleep(OBSERVATION)
    silent = ActiveTask.objects.all().still_silent
    return [active for active in tasks if silent(active).exists()]


def _is_known_dead(active: ActiveTask) -> bool:
    return active.worker_host == this_worker()[0] and not _process_exists(active.worker_pid)


def _process_exists(pid: int | None) -> bool:
    if not pid:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        # It is there, and another user's.
        return True
    return True
