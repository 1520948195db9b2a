"""Turn lifecycle events into the rows of the history: the record's change, and lines of its timeline."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from django.core.serializers.json import DjangoJSONEncoder
from django.db import models
from django.db.models import F

from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.models import FailureReason, TaskEvent, TaskObject, TaskRecord
from powercrud_dashboard.models.coordination import WHOLE_MODEL
from powercrud_dashboard.models.history import ObjectOutcome, Outcome
from powercrud_dashboard.models.text import LONG, MESSAGE, SHORT, clean_text, describe, message_pattern

logger = logging.getLogger(__name__)

Payload = Mapping[str, Any]

#: Events that a task can produce without limit, so that they are.
LIMITED_EVENTS = ("progress", "log")

#: Objects that a row of the task list names.
SHOWN_IN_LISTS = 3


def record_events(task_name: str, events: Sequence[tuple[str, Payload]]) -> None:
    """Write lifecycle events of one task, in their order. A task without a record has no history."""
    timeline: _Timeline | None = None
    for event, payload in events:
        if event == "create":
            timeline = _Timeline(_create(task_name, payload))
        elif timeline is None:
            record = TaskRecord.objects.known_of(task_name)
            if record is None:
                logger.warning("There is no record of task %s for its %r event", task_name, event)
                return
            timeline = _Timeline(record)
        _record(timeline, event, payload)
    if timeline is not None:
        timeline.write()


def _record(timeline: _Timeline, event: str, payload: Payload) -> None:
    record = timeline.record
    if event == "objects":
        # No line of the timeline.
        _record_outcomes(record, payload)
        return
    change = _CHANGES.get(event)
    if change is not None and not change(record, payload):
        # The task had ended before: this is news of the past.
        timeline.add(event, message="Arrived after the task had ended; the record stays as it is.")
        return
    if event == "progress" and timeline.continues_last_progress(payload):
        return
    if event in LIMITED_EVENTS and not timeline.has_room():
        return
    for message, level in payload.get("log_lines", ()):
        if not timeline.has_room():
            break
        timeline.add("log", message=message, details={"level": level})
    timeline.add(
        event,
        actor=payload.get("actor") or (payload.get("user") if event == "create" else None),
        message=str((event == "fail" and payload.get("error")) or payload.get("message") or ""),
        details=_details(event, payload),
        timestamp=payload.get("timestamp"),
    )


class _Timeline:
    """The lines of one record's timeline; new ones are written together."""

    def __init__(self, record: TaskRecord) -> None:
        self.record = record
        self._new: list[TaskEvent] = []
        self._room: int | None = None

    def add(
        self,
        event: str,
        *,
        actor: Any = None,
        message: str = "",
        details: Payload | None = None,
        timestamp: Any = None,
    ) -> None:
        self._new.append(
            TaskEvent(
                record=self.record,
                event=event,
                actor=actor,
                actor_label=clean_text(actor, SHORT) if actor else "",
                message=clean_text(message, MESSAGE),
                payload=dict(details or {}),
                **({"timestamp": timestamp} if timestamp else {}),
            )
        )

    def has_room(self) -> bool:
        """Return whether there is room for one more line of those without limit, which is then taken.

        The last line says that it is full.
        """
        limit = app_settings.DASHBOARD_EVENT_LIMIT
        if self._room is None:
            self._room = limit - TaskEvent.objects.filter(record=self.record).count() - len(self._new)
        if self._room == 0:
            self.add("log", message=f"There are {limit} events: further progress and log lines are not kept.")
        self._room -= 1
        return self._room >= 0

    def continues_last_progress(self, payload: Payload) -> bool:
        """Bring the last line up to date, if it is progress with the same message; say whether it was.

        A loop over a million objects is one line that counts, not thousands that repeat themselves.
        """
        last = self._new[-1] if self._new else TaskEvent.objects.filter(record=self.record).last()
        if last is None or last.event != "progress" or last.message != (payload.get("message") or ""):
            return False
        last.payload, last.timestamp = _details("progress", payload), payload.get("timestamp") or last.timestamp
        if last.pk is not None:
            last.save(update_fields=["payload", "timestamp"])
        return True

    def write(self) -> None:
        TaskEvent.objects.add(self._new)


def _record_outcomes(record: TaskRecord, payload: Payload) -> None:
    outcomes = payload["outcomes"]
    if record.affected_count > app_settings.DASHBOARD_OBJECT_LIMIT:
        outcomes = _within_limit(record, outcomes)
    TaskObject.objects.all().record_outcomes(record.pk, outcomes)
    if added := payload.get("skipped_before"):
        # These were never handed to the task: they are no part of what it counts itself.
        TaskRecord.objects.filter(pk=record.pk).update(skipped_count=F("skipped_count") + added)


def _within_limit(record: TaskRecord, outcomes: Sequence[ObjectOutcome]) -> list[ObjectOutcome]:
    """Return those outcomes that are kept by name: of objects that are there already, or as long as there is room."""
    there = TaskObject.objects.filter(record=record)
    room = app_settings.DASHBOARD_OBJECT_LIMIT - there.count()
    if room > 0:
        return list(outcomes[:room])
    return [item for item in outcomes if there.filter(model_label=item.model_label, object_id=item.object_id).exists()]


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


def _details(event: str, payload: Payload) -> dict[str, Any]:
    details = {name: to_json(payload[name]) for name in _KEPT_DETAILS if payload.get(name) is not None}
    if payload.get("postponed") or event == "hook_error":
        # The record has the traceback of the end only.
        details["traceback"] = clean_text(payload["traceback"], LONG)
    return details


def _create(task_name: str, payload: Payload) -> TaskRecord:
    limit = app_settings.DASHBOARD_OBJECT_LIMIT
    user = payload.get("user")
    affected = payload.get("affected_objects") or []
    conflict_ids = payload.get("conflict_ids") or {}
    touched = payload.get("object_ids") or _without_whole_models(conflict_ids)
    named = sum(len(ids) for ids in touched.values())
    texts = payload.get("object_texts") or {}
    original = _original(payload.get("retry_of"))
    record = TaskRecord(
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
    TaskRecord.objects.add(record)
    TaskObject.objects.create_for(record, islice(_keys(touched), limit), texts)
    return record


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


def _start(record: TaskRecord, payload: Payload) -> bool:
    return TaskRecord.objects.record_start(record.task_name, attempt=payload.get("attempt", 1))


def _complete(record: TaskRecord, payload: Payload) -> bool:
    changed = TaskRecord.objects.record_success(
        record, result=to_json(payload.get("result")), **_last_progress(payload)
    )
    if changed:
        _count_outcomes(record, payload)
    if changed and record.affected_count:
        # A task that says of each object what became of it has said so of all that it came to.
        TaskObject.objects.all().close(record, Outcome.NOT_REACHED if record.by_object else Outcome.DONE)
    return changed


def _count_outcomes(record: TaskRecord, payload: Payload) -> None:
    if counts := payload.get("outcome_counts"):
        TaskRecord.objects.filter(pk=record.pk).update(
            done_count=counts.get(Outcome.DONE, 0),
            failed_count=counts.get(Outcome.FAILED, 0),
            # There may be some that were left out by the launch.
            skipped_count=F("skipped_count") + counts.get(Outcome.SKIPPED, 0),
        )


def _fail(record: TaskRecord, payload: Payload) -> bool:
    changed = TaskRecord.objects.record_failure(record, **_error(payload), **_last_progress(payload))
    if changed:
        _count_outcomes(record, payload)
        _leave_unreached(record)
    return changed


def _error(payload: Payload) -> dict[str, str]:
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


def _retry(record: TaskRecord, payload: Payload) -> bool:
    if not payload.get("postponed"):
        # A person has launched an ended task again, as a new one: this one stays as it is.
        return True
    return TaskRecord.objects.record_postponed(record.task_name, **_error(payload))


def _cancel(record: TaskRecord, payload: Payload) -> bool:
    changed = TaskRecord.objects.record_cancel(record, **_last_progress(payload))
    if changed:
        _count_outcomes(record, payload)
        _leave_unreached(record)
    return changed


def _leave_unreached(record: TaskRecord) -> None:
    """Say so of the objects that a task can't have come to: none if it never began, else those that it reports not."""
    never_began = record.started_at is None
    if record.affected_count and (never_began or record.by_object):
        TaskObject.objects.all().close(record, Outcome.NOT_REACHED)


def _last_progress(payload: Payload) -> dict[str, Any]:
    names = {"message": "message", "current": "progress_current", "total": "progress_total"}
    return {column: payload[name] for name, column in names.items() if name in payload}


_CHANGES: dict[str, Callable[[TaskRecord, Payload], bool]] = {
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
