"""The manager that keeps history: lifecycle events become records, events and objects."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from django.core.serializers.json import DjangoJSONEncoder
from django.db import models
from django.db.models import F, Q

from powercrud_dashboard.async_manager import AsyncManager
from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.models import FailureReason, TaskEvent, TaskObject, TaskRecord
from powercrud_dashboard.models.coordination import WHOLE_MODEL
from powercrud_dashboard.models.history import ObjectOutcome, Outcome
from powercrud_dashboard.models.text import LONG, MESSAGE, SHORT, clean_text, describe, message_pattern

__all__ = ["DashboardAsyncManager"]

logger = logging.getLogger(__name__)

#: Events that a task can produce without limit, so that they are.
LIMITED_EVENTS = ("progress", "log")

#: Objects that a row of the task list names.
SHOWN_IN_LISTS = 3


class DashboardAsyncManager(AsyncManager):
    """An :class:`AsyncManager` whose tasks are recorded for the dashboard.

    A subclass may override :meth:`async_task_lifecycle`; the history is kept in any case.
    """

    def async_task_lifecycle(self, event: str, task_name: str, *, recorded: bool = False, **payload: Any) -> None:
        """Write the event into the history, unless that is done."""
        if not recorded:
            record_event(event, task_name, payload)

    @property
    def has_lifecycle_hook(self) -> bool:
        """Whether a subclass wants to hear of events."""
        return type(self).async_task_lifecycle is not DashboardAsyncManager.async_task_lifecycle

    def record_lifecycle_event(self, event: str, task_name: str, payload: dict[str, Any]) -> None:
        """Write the event into the history."""
        record_event(event, task_name, payload)

    def lifecycle_hook_failed(self, event: str, task_name: str, payload: dict[str, Any], error: Exception) -> None:
        """Write the subclass's error into the history."""
        trace = clean_text("".join(traceback.format_exception(error)), LONG)
        message = f"The {event} hook of {self.manager_class_path} failed: {type(error).__name__}: {error}"
        add_event("hook_error", task_name, message=message, payload={"traceback": trace})


def record_event(event: str, task_name: str, payload: Mapping[str, Any]) -> None:
    """Write one lifecycle event: the record's change, if any, and a line in its timeline."""
    if event == "objects":
        _record_outcomes(task_name, payload)
        return
    change = _CHANGES.get(event)
    changed = change is None or change(task_name, payload)
    if not changed:
        # The task had ended before: this is news of the past.
        add_event(event, task_name, message="Arrived after the task had ended; the record stays as it is.")
        return
    if event == "progress" and _continues_last_progress(task_name, payload):
        return
    if event in LIMITED_EVENTS and not _has_room(task_name):
        return
    for message, level in payload.get("log_lines", ()):
        if not _has_room(task_name):
            break
        add_event("log", task_name, message=message, payload={"level": level})
    add_event(
        event,
        task_name,
        actor=payload.get("actor") or (payload.get("user") if event == "create" else None),
        message=str((event == "fail" and payload.get("error")) or payload.get("message") or ""),
        payload=_details(payload),
        timestamp=payload.get("timestamp"),
    )


def _has_room(task_name: str) -> bool:
    """Return whether the timeline takes one more event of those without limit; its last one says that it is full."""
    limit = app_settings.DASHBOARD_EVENT_LIMIT
    count = TaskEvent.objects.of_task(task_name).count()
    if count == limit:
        add_event("log", task_name, message=f"There are {limit} events: further progress and log lines are not kept.")
    return count < limit


def _record_outcomes(task_name: str, payload: Mapping[str, Any]) -> None:
    """Write what became of objects; it is no line of the timeline."""
    record = TaskRecord.objects.filter(task_name=task_name).values_list("pk", "affected_count").first()
    if record is None:
        return
    pk, affected_count = record
    outcomes = payload["outcomes"]
    if affected_count > app_settings.DASHBOARD_OBJECT_LIMIT:
        outcomes = _within_limit(pk, outcomes)
    TaskObject.objects.all().record_outcomes(pk, outcomes)
    if added := payload.get("skipped_before"):
        # These were never handed to the task: they are no part of what it counts itself.
        TaskRecord.objects.filter(pk=pk).update(skipped_count=F("skipped_count") + added)


def _within_limit(record_pk: int, outcomes: Sequence[ObjectOutcome]) -> list[ObjectOutcome]:
    """Return those outcomes that are kept by name: of objects that are there already, or as long as there is room."""
    there = TaskObject.objects.filter(record=record_pk)
    room = app_settings.DASHBOARD_OBJECT_LIMIT - there.count()
    if room > 0:
        return list(outcomes[:room])
    return [item for item in outcomes if there.filter(model_label=item.model_label, object_id=item.object_id).exists()]


def _continues_last_progress(task_name: str, payload: Mapping[str, Any]) -> bool:
    """Bring the timeline's last line up to date, if it is progress with the same message; say whether it was.

    A loop over a million objects is one line that counts, not thousands that repeat themselves.
    """
    last = TaskEvent.objects.of_task(task_name).order_by("-timestamp", "-pk").first()
    if last is None or last.event != "progress" or last.message != (payload.get("message") or ""):
        return False
    last.payload, last.timestamp = _details(payload), payload.get("timestamp") or last.timestamp
    last.save(update_fields=["payload", "timestamp"])
    return True


def _details(payload: Mapping[str, Any]) -> dict[str, Any]:
    # The record has the traceback of the end only.
    kept = (*_KEPT_DETAILS, "traceback") if payload.get("postponed") else _KEPT_DETAILS
    return {name: to_json(payload[name]) for name in kept if payload.get(name) is not None}


def add_event(
    event: str,
    task_name: str,
    *,
    actor: Any = None,
    message: str = "",
    payload: Mapping[str, Any] | None = None,
    timestamp: Any = None,
) -> None:
    """Add a line to a task's timeline. A task without a record has none."""
    record_id = TaskRecord.objects.filter(task_name=task_name).values_list("pk", flat=True).first()
    if record_id is None:
        logger.warning("There is no record of task %s for its %r event", task_name, event)
        return
    TaskEvent.objects.create(
        record_id=record_id,
        event=event,
        actor=actor,
        actor_label=clean_text(actor, SHORT) if actor else "",
        message=clean_text(message, MESSAGE),
        payload=dict(payload or {}),
        **({"timestamp": timestamp} if timestamp else {}),
    )


#: Facts of an event that the timeline keeps beside its message.
_KEPT_DETAILS = (
    "attempt",
    "changed_arguments",
    "conflict_lock_keys",
    "current",
    "exception_class",
    "late",
    "level",
    "new_task_name",
    "next_run_at",
    "postponed",
    "reason",
    "total",
    "worker_host",
    "worker_pid",
)


def _create(task_name: str, payload: Mapping[str, Any]) -> bool:
    limit = app_settings.DASHBOARD_OBJECT_LIMIT
    user = payload.get("user")
    affected = payload.get("affected_objects") or []
    conflict_ids = payload.get("conflict_ids") or {}
    touched = payload.get("object_ids") or _without_whole_models(conflict_ids)
    named = sum(len(ids) for ids in touched.values())
    texts = payload.get("object_texts") or {}
    original = _original(payload.get("retry_of"))
    record = TaskRecord.objects.create(
        task_name=task_name,
        label=payload.get("label") or payload.get("func") or task_name,
        func=clean_text(payload.get("func") or "", SHORT),
        user=user,
        user_label=clean_text(user, SHORT) if user else "",
        affected_objects=[clean_text(item, SHORT) for item in islice(affected, limit)],
        affected_count=max(len(affected), named, payload.get("object_count") or 0),
        first_objects=_first_objects(affected, touched, texts),
        model_labels=" ".join(dict.fromkeys((*touched, *conflict_ids))),
        by_object=payload.get("by_object") or False,
        conflict_ids=_first_keys(conflict_ids, limit),
        task_args=[to_json(value) for value in payload.get("task_args", ())],
        task_kwargs={name: to_json(value) for name, value in payload.get("task_kwargs", {}).items()},
        payload=payload.get("payload") or "",
        retry_of=original,
        first_try_id=(original.first_try_id or original.pk) if original else None,
        group=payload.get("group") or "",
        cluster=payload.get("cluster") or "",
        manager_class=payload.get("manager_class") or "",
    )
    TaskObject.objects.create_for(record, islice(_keys(touched), limit), texts)
    return True


def _without_whole_models(keys: Mapping[str, list[str]]) -> dict[str, list[str]]:
    return {label: ids for label, ids in keys.items() if WHOLE_MODEL not in ids}


def _original(task_name: str | None) -> TaskRecord | None:
    """Return the record of the task that is being retried, without its wide columns."""
    if not task_name:
        return None
    return TaskRecord.objects.filter(task_name=task_name).only("pk", "first_try").first()


def _keys(conflict_ids: Mapping[str, list[str]]) -> Iterator[tuple[str, str]]:
    return ((label, object_id) for label, ids in conflict_ids.items() for object_id in ids)


def _first_objects(
    affected: Sequence[str], conflict_ids: Mapping[str, list[str]], texts: Mapping[tuple[str, str], str]
) -> list[dict[str, str]]:
    """Return the first objects in the order of their descriptions, as far as it is known which is which."""
    if texts or not affected:
        shown = islice(texts or _keys(conflict_ids), SHOWN_IN_LISTS)
        return [{"model": key[0], "id": key[1], "text": texts.get(key, "")} for key in shown]
    return [{"model": "", "id": "", "text": clean_text(item, SHORT)} for item in affected[:SHOWN_IN_LISTS]]


def _first_keys(conflict_ids: Mapping[str, list[str]], limit: int) -> dict[str, list[str]]:
    kept: dict[str, list[str]] = {}
    for label, ids in conflict_ids.items():
        kept[label] = list(ids[:limit])
        limit -= len(kept[label])
    return kept


def _start(task_name: str, payload: Mapping[str, Any]) -> bool:
    return TaskRecord.objects.all().record_start(task_name, attempt=payload.get("attempt", 1))


def _complete(task_name: str, payload: Mapping[str, Any]) -> bool:
    changed = TaskRecord.objects.all().record_success(
        task_name, result=to_json(payload.get("result")), **_last_progress(payload), **_counts(payload)
    )
    if changed:
        # A task that says of each object what became of it has said so of all that it came to.
        TaskObject.objects.all().close(task_name, Outcome.NOT_REACHED if _reports(task_name) else Outcome.DONE)
    return changed


def _reports(task_name: str) -> bool:
    return TaskRecord.objects.filter(task_name=task_name, by_object=True).exists()


def _counts(payload: Mapping[str, Any]) -> dict[str, Any]:
    counts = payload.get("outcome_counts") or {}
    return {
        "done_count": counts.get(Outcome.DONE, 0),
        "failed_count": counts.get(Outcome.FAILED, 0),
        "skipped_count": F("skipped_count") + counts.get(Outcome.SKIPPED, 0),
    }


def _fail(task_name: str, payload: Mapping[str, Any]) -> bool:
    changed = TaskRecord.objects.all().record_failure(
        task_name, **_error(payload), **_last_progress(payload), **_counts(payload)
    )
    _leave_unreached(task_name, changed)
    return changed


def _error(payload: Mapping[str, Any]) -> dict[str, str]:
    reason = payload.get("reason") or FailureReason.ERROR
    error = clean_text(payload.get("error") or payload.get("result") or "", LONG)
    return {
        "reason": reason,
        "error": error,
        # Never empty, so that failures without a word are a group as well.
        "error_pattern": message_pattern(payload.get("exception_class") or "", error, SHORT) or reason,
        "exception_class": clean_text(payload.get("exception_class") or "", SHORT),
        "traceback": clean_text(payload.get("traceback") or "", LONG),
    }


def _retry(task_name: str, payload: Mapping[str, Any]) -> bool:
    if not payload.get("postponed"):
        # A person has launched an ended task again, as a new one: this one stays as it is.
        return True
    return TaskRecord.objects.all().record_postponed(task_name, **_error(payload))


def _cancel(task_name: str, payload: Mapping[str, Any]) -> bool:
    changed = TaskRecord.objects.all().record_cancel(task_name, **_last_progress(payload), **_counts(payload))
    _leave_unreached(task_name, changed)
    return changed


def _leave_unreached(task_name: str, changed: bool) -> None:
    """Say so of the objects that a task can't have come to: none if it never began, else those that it reports not."""
    never_began = Q(started_at=None)
    if changed and TaskRecord.objects.filter(never_began | Q(by_object=True), task_name=task_name).exists():
        TaskObject.objects.all().close(task_name, Outcome.NOT_REACHED)


def _last_progress(payload: Mapping[str, Any]) -> dict[str, Any]:
    names = {"message": "message", "current": "progress_current", "total": "progress_total"}
    return {column: payload[name] for name, column in names.items() if name in payload}


_CHANGES: dict[str, Callable[[str, Mapping[str, Any]], bool]] = {
    "create": _create,
    "start": _start,
    "complete": _complete,
    "fail": _fail,
    "cancel": _cancel,
    "retry": _retry,
}


def to_json(value: Any) -> Any:
    """Return ``value`` as JSON can keep it: plain data as it is, anything else as its description."""
    if isinstance(value, models.QuerySet):
        # Its description would run the query.
        return f"<QuerySet of {value.model._meta.label}>"
    try:
        text = json.dumps(value, cls=_DescribingEncoder, ensure_ascii=False, allow_nan=False)
        if len(text) <= LONG:
            # PostgreSQL's jsonb takes neither NUL characters nor halves of surrogate pairs.
            return json.loads(clean_text(text.replace("\\u0000", "\N{REPLACEMENT CHARACTER}"), LONG))
    except (TypeError, ValueError, RecursionError):
        return describe(value, MESSAGE)
    return clean_text(text, MESSAGE)


class _DescribingEncoder(DjangoJSONEncoder):
    def default(self, o: Any) -> Any:
        try:
            return super().default(o)
        except TypeError:
            if isinstance(o, set | frozenset):
                return sorted(o, key=str)
            return describe(o, MESSAGE)
