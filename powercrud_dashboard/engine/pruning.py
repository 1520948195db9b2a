"""Deletes records, in small parts, with everything that belongs to them."""

from __future__ import annotations

import logging
import time
from typing import Any

from django.db import InterfaceError, OperationalError, models
from django.db.models import Exists, OuterRef, Q

from powercrud_dashboard.engine import statistics
from powercrud_dashboard.exceptions import TaskBusy
from powercrud_dashboard.models import TaskEvent, TaskFile, TaskLogLine, TaskNotice, TaskObject, TaskRecord
from powercrud_dashboard.models.database import give_way, impatient_transaction, in_chunks

logger = logging.getLogger(__name__)

#: Records deleted in one transaction, so that a launch never waits long for it.
DELETED_AT_ONCE = 250


def prune(expired: models.QuerySet[TaskRecord]) -> int:
    """Delete ended records, a part of them in each transaction. Return how many were deleted.

    Those that the project's own data protects are kept.
    """
    pruned = 0
    # In the order of the index that finds them; otherwise all that are left would be sorted for each batch.
    oldest = _without_protected(expired).order_by("finished_at", "pk").values_list("finished_at", "pk")
    batch = list(oldest[:DELETED_AT_ONCE])
    while batch:
        began = time.monotonic()
        try:
            pruned += len(batch) - len(delete_records([pk for _finished_at, pk in batch]))
        except TaskBusy:
            logger.warning("Some old records can't be deleted now: another session has them locked", exc_info=True)
        give_way(time.monotonic() - began)
        # After this batch, as some of its records may have been kept.
        finished_at, pk = batch[-1]
        later = Q(finished_at__gt=finished_at) | Q(pk__gt=pk)
        batch = list(oldest.filter(later, finished_at__gte=finished_at)[:DELETED_AT_ONCE])
    return pruned


def delete_records(pks: list[int]) -> list[int]:
    """Delete these records with everything that belongs to them, a part of them in each transaction.

    Rows of the project's own models that refer to a record are treated as their foreign keys say. Returns the keys of
    the records that are kept, as the project's data does not allow their deletion.

    Raises:
        TaskBusy: if another session has rows of a part locked in the database and does not finish.
    """
    using = TaskRecord.objects.all().db
    return [pk for chunk in in_chunks(pks, using=using) for pk in _delete(chunk)]


def _delete(pks: list[int]) -> list[int]:
    try:
        with impatient_transaction():
            statistics.take_turn()
            records = TaskRecord.objects.filter(pk__in=pks)
            failed_retries = records.exclude(resolution="").exclude(chain=None)
            chains = list(failed_retries.order_by().values_list("chain", flat=True).distinct())
            # Others may retry or settle them, or a try of the same task, at this moment. What ends has locked itself
            # before it locks the earlier tries.
            TaskRecord.objects.unfinished().filter(Q(retry_of__in=pks) | Q(first_try__in=pks)).lock()
            tries = TaskRecord.objects.finished().filter(Q(pk__in=chains) | Q(chain__in=chains))
            (records | tries).lock()
            statistics.count_records(pks)
            TaskEvent.objects.filter(record__in=pks).delete()
            TaskObject.objects.filter(record__in=pks).delete()
            TaskLogLine.objects.filter(record__in=pks).delete()
            TaskNotice.objects.filter(record__in=pks).delete()
            names = TaskRecord.objects.filter(pk__in=pks).values_list("task_name", flat=True)
            TaskFile.objects.filter(owner__in=list(names)).delete()
            with records.leaving_chains():
                TaskRecord.objects.filter(retry_of__in=pks).update(retry_of=None)
                TaskRecord.objects.filter(first_try__in=pks).update(first_try=None)
                if _references():
                    records.only("pk").delete()
                else:
                    records._raw_delete(records.db)
    except (OperationalError, InterfaceError):
        # The database does not answer, whatever the records are.
        raise
    except Exception:
        # A constraint, a trigger or a receiver of the project.
        if len(pks) == 1:
            logger.warning("The record with the key %s is kept, as it can't be deleted", pks[0], exc_info=True)
            return pks
        # One of them must not keep the others.
        middle = len(pks) // 2
        return [*_delete(pks[:middle]), *_delete(pks[middle:])]
    return []


def _references() -> list[Any]:
    """Return the relations by which the project's own models refer to records."""
    own = TaskRecord._meta.app_label
    return [
        relation
        for relation in TaskRecord._meta.get_fields(include_hidden=True)
        if isinstance(relation, models.ManyToOneRel) and relation.related_model._meta.app_label != own
    ]


def _without_protected(records: models.QuerySet[TaskRecord]) -> models.QuerySet[TaskRecord]:
    """Leave out the records that rows of the project protect from deletion."""
    for relation in _references():
        if relation.on_delete in (models.PROTECT, models.RESTRICT, models.DO_NOTHING):
            rows = relation.related_model._base_manager.using(records.db)
            records = records.filter(~Exists(rows.filter(**{relation.field.name: OuterRef("pk")})))
    return records
