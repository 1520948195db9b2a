"""Tasks of plain django-q2 whose worker has told no end: killed ones, and those whose message is gone."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from datetime import timedelta

from django.db.models.functions import Coalesce
from django.utils import timezone

from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.engine import plain, policy, processes, registry
from powercrud_dashboard.engine.plain import Run
from powercrud_dashboard.models import FailureReason, TaskRecord, TaskStatus, WorkerProcess
from powercrud_dashboard.models.database import impatient_transaction
from powercrud_dashboard.models.history import TaskRecordQuerySet
from powercrud_dashboard.q2 import observe, queue
from powercrud_dashboard.q2.observe import Message

#: Seconds that a queued task stays recorded as such before it is looked for.
QUEUED_AT_LEAST = 5 * 60
#: Seconds before its last heartbeat of which a killed worker may not have written the ends of its tasks.
UNWRITTEN = 30
#: Seconds within which the others have written theirs.
WRITTEN_WITHIN = 5
#: Tasks that are looked for at once.
LOOKED_FOR_AT_ONCE = 100


def catch_up(known: set[str]) -> set[str]:
    """Record what workers of this cluster have not written that were killed, from django-q2's rows.

    Args:
        known: the identities of those for which that was done already.

    Returns:
        The identities of those for which it is done now.
    """
    of_cluster = WorkerProcess.objects.filter(cluster=queue.current_cluster())
    silent = of_cluster.silent_for(app_settings.DASHBOARD_HEARTBEAT_TIMEOUT) | of_cluster.exclude(lost_at=None)
    before, after = timedelta(seconds=UNWRITTEN), timedelta(seconds=processes.max_heartbeat_age())
    # Each is looked at once. What has just ended may still be written by its own worker, which knows more of it.
    now = timezone.now() - timedelta(seconds=WRITTEN_WITHIN)
    # By the clock of its host, as the ends of its tasks are.
    last_beat = Coalesce("clock_at", "heartbeat_at")
    beats = dict(silent.filter(heartbeat_at__lte=now - after).values_list("identity", last_beat))
    done = None
    for beat in sorted(beat for identity, beat in beats.items() if identity not in known):
        since = beat - before if done is None else max(beat - before, done)
        done = beat + after
        for names in _parts(observe.ids_ended_between(since, done)):
            succeeded = TaskRecord.objects.filter(task_name__in=names, status=TaskStatus.SUCCESS)
            recorded = set(succeeded.values_list("task_name", flat=True))
            _record_rows(observe.ended([name for name in names if name not in recorded]))
    return set(beats)


def _parts(names: Sequence[str]) -> Iterable[list[str]]:
    for start in range(0, len(names), LOOKED_FOR_AT_ONCE):
        yield list(names[start : start + LOOKED_FOR_AT_ONCE])


def _record_rows(rows: Sequence[Message]) -> int:
    """Record tasks from django-q2's rows of them."""
    collected = plain.collected_from_records(row["id"] for row in rows)
    runs = [Run(row) for row in rows if row["id"] not in collected and plain.is_observed(row)]
    return plain.record_ends([run for run in runs if not plain.is_only_counted(run)], by_rows=True)


def give_up(names: Iterable[str]) -> int:
    """Record that the workers of these running tasks are lost, or how they have ended if django-q2 tells that.

    Return how many were given up.
    """
    for part in _parts(list(names)):
        running = plain.unfinished().filter(task_name__in=part, status=TaskStatus.IN_PROGRESS)
        began = dict(running.values_list("task_name", "started_at"))
        # Others are of an earlier attempt.
        _record_rows([row for row in observe.ended(part) if (at := began.get(row["id"])) and row["stopped"] >= at])
    return plain.give_up(names)


def settle_queued() -> int:
    """End the records of queued tasks that have ended, or whose messages are gone from the queue; return how many."""
    old = timezone.now() - timedelta(seconds=QUEUED_AT_LEAST)
    waiting = plain.unfinished().filter(status=TaskStatus.PENDING, created_at__lt=old).order_by("pk")
    settled, after = 0, 0
    while part := list(waiting.filter(pk__gt=after).values_list("pk", "task_name")[:LOOKED_FOR_AT_ONCE]):
        after = part[-1][0]
        settled += _record_rows(observe.ended([name for _pk, name in part]))
    return settled + _end_those_without_message(waiting)


def _end_those_without_message(waiting: TaskRecordQuerySet) -> int:
    gone: set[str] = set()
    for cluster in set(waiting.order_by().values_list("cluster", flat=True)):
        names = waiting.filter(cluster=cluster).values_list("task_name", flat=True)
        gone |= observe.gone_from(cluster, list(names))
    recorder = registry.recorder_for(None)
    if not gone or recorder is None:
        return 0
    # The end of one that has just run is written meanwhile.
    time.sleep(processes.OBSERVATION)
    ended = 0
    for part in _parts(sorted(gone)):
        ended += _record_rows(observe.ended(part))
        for name in waiting.filter(task_name__in=part).values_list("task_name", flat=True):
            lost = {**policy.failure_payload(FailureReason.NEVER_STARTED), "started_at": None}
            with impatient_transaction():
                if waiting.filter(task_name=name).lock():
                    recorder.record_lifecycle_events(name, [("fail", lost)])
                    ended += 1
    return ended
