"""Lifecycle events as rows of the history: changes of the record, and lines of its timeline."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from django.db.models import F
from django.utils import timezone
from django.utils.translation import gettext_lazy as _
from django.utils.translation import gettext_noop

from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.engine import failures, notices, release
from powercrud_dashboard.engine.arguments import as_person
from powercrud_dashboard.engine.progress import fitting
from powercrud_dashboard.engine.values import to_json
from powercrud_dashboard.models import FailureReason, TaskEvent, TaskLogLine, TaskObject, TaskRecord
from powercrud_dashboard.models.changes import RecordChange
from powercrud_dashboard.models.database import in_chunks
from powercrud_dashboard.models.labels import label_of_rows
from powercrud_dashboard.models.locks import WHOLE_MODEL
from powercrud_dashboard.models.objects import ObjectOutcome, Outcome
from powercrud_dashboard.text import (
    LONG,
    MESSAGE,
    SHORT,
    KeptText,
    clean_text,
    error_summary,
    error_text,
    message_pattern,
    traceback_text,
)

logger = logging.getLogger(__name__)

Payload = Mapping[str, Any]

#: Kept as the message of an event: the pages translate it.
ARRIVED_LATE = gettext_noop("Arrived after the task had ended; the record is not changed.")

_FAILED_HOOK = KeptText(_("The %(what)s of %(path)s failed: %(error)s"))
_FULL = KeptText(_("There are %(limit)s events: further progress and log lines are not kept."))

#: Events that a task can produce without limit; their number is limited.
LIMITED_EVENTS = ("progress", "log")

#: The length of the column for an event's name.
EVENT_LENGTH = 30

#: Objects that a row of the task list names.
SHOWN_IN_LISTS = 3

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
    "receipt",
    "requeued",
    "run_after",
    "total",
    "worker_host",
    "worker_pid",
)


def record_events(task_name: str, events: Sequence[tuple[str, Payload]]) -> None:
    """Write lifecycle events of one task, in their order. For a task without a record nothing is written."""
    if len(events) == 1 and events[0][0] == "objects" and _are_outcomes_updated(task_name, events[0][1]):
        return
    _Writer(task_name, events).write()


def _are_outcomes_updated(task_name: str, payload: Payload) -> bool:
    """Write the outcome of one object, as is done for each object of an action, if it has an entry already."""
    outcomes = payload["outcomes"]
    if len(outcomes) != 1 or payload.get("skipped_before"):
        return False
    return TaskObject.objects.all().update_outcome(task_name, outcomes[0])


def record_failed_hook(what: str, owner: Any, task_name: str, error: BaseException) -> None:
    """Write that a hook of this manager class, or this receiver of a signal, raised an error."""
    path = f"{owner.__module__}.{owner.__qualname__}"
    facts = {
        "message": error_text(_FAILED_HOOK(what=what, path=path, error=error_summary(error)), MESSAGE),
        "traceback": traceback_text(error, error.__traceback__),
    }
    record_events(task_name, [("hook_error", facts)])


class _Writer:
    """Writes events of one task: the record in one statement, the new lines of its timeline in another."""

    def __init__(self, task_name: str, events: Sequence[tuple[str, Payload]]) -> None:
        self._task_name = task_name
        self._events = events
        self._lines: list[dict[str, Any]] = []
        self._room: int | None = None
        #: What became of the changes of state: they were refused if the record had ended before.
        self._is_refused = False

    def write(self) -> None:
        record = self._record()
        if record is None:
            logger.warning("There is no record of task %s for its events", self._task_name)
            return
        for event, payload in self._events:
            if event in _CHANGES and self._is_refused:
                self._add(record, event, message=ARRIVED_LATE)
            elif event == "objects":
                # Not a line of the timeline.
                _record_outcomes(record, payload)
            elif event == "lines":
                TaskLogLine.objects.add(record.pk, payload.get("lines", ()), is_first=payload.get("is_first", False))
            elif not (event == "progress" and self._continues_last_progress(record, payload)):
                self._add_line(record, event, payload)
        if record.chain is not None and not self._is_refused:
            self._settle_earlier_tries(record)
        TaskEvent.objects.add(self._lines)

    def _settle_earlier_tries(self, record: TaskRecord) -> None:
        """Change the earlier failures of a retry that has ended: after all of its outcomes were written."""
        ends = [event for event, _payload in self._events]
        if "fail" in ends:
            failures.supersede_earlier(record)
        if "complete" in ends and (resolved := failures.resolve_earlier(record)):
            retried_by = TaskRecord.objects.filter(pk=record.pk).values_list("user", "user_label").get()
            line = self._line("resolve", who=retried_by, details={"new_task_name": self._task_name})
            self._lines += [{**line, "record": pk} for pk in resolved]

    def _record(self) -> TaskRecord | None:
        """Insert or change the record, as the events have it, and return it."""
        created: TaskRecord | None = None
        change: RecordChange | None = None
        for event, payload in self._events:
            if event == "create":
                created = _create(self._task_name, payload)
            elif (make := _CHANGES.get(event)) and (made := make(payload)):
                change = made if change is None else change.followed_by(made)
        if change is None:
            return created or TaskRecord.objects.known_of(self._task_name)
        changed = TaskRecord.objects.change(self._task_name, change)
        if changed is None:
            self._is_refused = True
            return TaskRecord.objects.known_of(self._task_name)
        for event, payload in self._events:
            if event in _STOPS and (counts := payload.get("outcome_counts")):
                # As far as it has got; what was skipped is added at the end.
                counted = {"done_count": counts.get(Outcome.DONE, 0), "failed_count": counts.get(Outcome.FAILED, 0)}
                TaskRecord.objects.filter(pk=changed.pk).update(**counted)
            if event in _ENDS:
                _close_objects(changed, event, payload)
                notices.add(changed, event, payload)
        return changed

    def _add_line(self, record: TaskRecord, event: str, payload: Payload) -> None:
        if event in LIMITED_EVENTS and not self._has_room(record):
            return
        self._add(
            record,
            event,
            actor=payload.get("user" if event == "create" else "actor"),
            message=(event == "fail" and payload.get("error")) or payload.get("message") or "",
            details=_details(event, payload),
            timestamp=payload.get("timestamp"),
        )

    def _add(
        self,
        record: TaskRecord,
        event: str,
        *,
        actor: Any = None,
        message: Any = "",
        details: Payload | None = None,
        timestamp: Any = None,
    ) -> None:
        line = self._line(event, who=_who(actor), message=message, details=details, timestamp=timestamp)
        self._lines.append({**line, "record": record.pk})

    @staticmethod
    def _line(
        event: str,
        *,
        who: tuple[Any, str],
        message: Any = "",
        details: Payload | None = None,
        timestamp: Any = None,
    ) -> dict[str, Any]:
        actor_pk, actor_label = who
        return {
            "event": clean_text(event, EVENT_LENGTH),
            "timestamp": timestamp or timezone.now(),
            "actor": actor_pk,
            "actor_label": actor_label,
            "message": clean_text(message, MESSAGE),
            "payload": dict(details or {}),
        }

    def _has_room(self, record: TaskRecord) -> bool:
        """Take the room for one more of the limited lines. Return whether there was any.

        The last line says that there is none left.
        """
        limit = app_settings.DASHBOARD_EVENT_LIMIT
        if self._room is None:
            self._room = limit - TaskEvent.objects.filter(record=record).count() - len(self._lines)
        if self._room == 0:
            full = error_text(_FULL(limit=limit), MESSAGE)
            self._add(record, "log", message=full)
        self._room -= 1
        return self._room >= 0

    def _continues_last_progress(self, record: TaskRecord, payload: Payload) -> bool:
        """Update the last line if it is progress with the same message. Return whether it is.

        So a loop over a million objects is one line whose numbers grow.
        """
        message = clean_text(payload.get("message") or "", MESSAGE)
        new = {"payload": _details("progress", payload), "timestamp": payload.get("timestamp") or timezone.now()}
        if self._lines:
            last = self._lines[-1]
            if (last["event"], last["message"]) != ("progress", message):
                return False
            last.update(new)
            return True
        stored = TaskEvent.objects.filter(record=record).last()
        if stored is None or (stored.event, stored.message) != ("progress", message):
            return False
        TaskEvent.objects.filter(pk=stored.pk).update(**new)
        return True


def _who(person: Any) -> tuple[Any, str]:
    """Return the key and the name of who did something. A text is a name, even if it could be a user's key."""
    known = person if isinstance(person, str) else as_person(person)
    return getattr(known, "pk", None), "" if known is None else clean_text(known, SHORT)


def _details(event: str, payload: Payload) -> dict[str, Any]:
    details = {name: to_json(payload[name]) for name in _KEPT_DETAILS if payload.get(name) is not None}
    if payload.get("postponed") or event == "hook_error":
        # The record keeps only the traceback of the task's end.
        details["traceback"] = clean_text(payload["traceback"], LONG)
    return details


# The record


def _create(task_name: str, payload: Payload) -> TaskRecord:
    limit = app_settings.DASHBOARD_OBJECT_LIMIT
    user_pk, user_label = _who(payload.get("user"))
    affected = payload.get("affected_objects") or []
    conflict_ids = payload.get("conflict_ids") or {}
    touched = payload.get("object_ids") or _without_whole_models(conflict_ids)
    named = sum(len(ids) for ids in touched.values())
    object_texts = payload.get("object_texts") or {}
    texts = _by_key(object_texts)
    original = _original(payload.get("retry_of"))
    record = TaskRecord(
        task_name=task_name,
        label=clean_text(payload.get("label") or payload.get("func") or task_name, SHORT),
        func=clean_text(payload.get("func") or "", SHORT),
        user_id=user_pk,
        user_label=user_label,
        affected_objects=[clean_text(item, SHORT) for item in islice(affected, limit)],
        affected_count=max(len(affected), named, payload.get("object_count") or 0),
        first_objects=_first_objects(affected, touched, texts),
        # Also those of proxy and child models, by which a page finds the objects' own pages.
        model_labels=" ".join(dict.fromkeys((*touched, *conflict_ids, *object_texts))),
        by_object=payload.get("by_object") or False,
        conflict_ids=_first_keys(conflict_ids, limit),
        task_args=to_json(list(payload.get("task_args", ()))),
        argument_names=to_json(payload.get("argument_names", [])),
        task_kwargs=to_json(payload.get("task_kwargs", {})),
        payload=payload.get("payload") or "",
        retry_of=original,
        first_try_id=(original.first_try_id or original.pk) if original else None,
        chain=original.chain_key if original else None,
        is_partial=payload.get("is_partial") or False,
        group=payload.get("group") or "",
        cluster=payload.get("cluster") or "",
        release=release.current(),
        source=payload.get("source") or "",
        run_after=payload.get("run_after"),
        manager_class=payload.get("manager_class") or "",
        manager_config=payload.get("manager_config") or {},
        created_at=payload.get("timestamp") or timezone.now(),
    )
    TaskRecord.objects.add(record)
    if touched:
        by_row = {(label_of_rows(label), key): text for (label, key), text in texts.items()}
        TaskObject.objects.create_for(record, islice(_keys(touched), limit), by_row)
    return record


def _without_whole_models(keys: Mapping[str, list[str]]) -> Mapping[str, list[str]]:
    return {label: ids for label, ids in keys.items() if WHOLE_MODEL not in ids}


def _original(task_name: str | None) -> TaskRecord | None:
    """Return the record of the task that is retried, without its wide columns."""
    if not task_name:
        return None
    return TaskRecord.objects.filter(task_name=task_name).only("pk", "first_try", "chain").first()


def _keys(conflict_ids: Mapping[str, list[str]]) -> Iterator[tuple[str, str]]:
    """Yield label and key of each object, in the order in which a page lists them: numbers by their value."""
    for label, ids in conflict_ids.items():
        for object_id in sorted(ids, key=int) if all(map(str.isdecimal, ids)) else ids:
            yield label, object_id


def _by_key(texts: Mapping[str, Mapping[str, str]]) -> dict[tuple[str, str], str]:
    return {(label, key): text for label, by_key in texts.items() for key, text in by_key.items()}


def _first_objects(
    affected: Sequence[str], conflict_ids: Mapping[str, list[str]], texts: Mapping[tuple[str, str], str]
) -> list[dict[str, str]]:
    """Return the first objects in the order of their descriptions, with their keys where these are known."""
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


def _started(payload: Payload) -> RecordChange:
    return RecordChange.started(
        attempt=payload.get("attempt", 1),
        at=payload.get("timestamp"),
        worker_host=clean_text(payload.get("worker_host") or "", SHORT),
        worker_pid=payload.get("worker_pid"),
    )


def _completed(payload: Payload) -> RecordChange:
    return RecordChange.succeeded(**_times(payload), result=to_json(payload.get("result")), **_last_progress(payload))


def _failed(payload: Payload) -> RecordChange:
    facts: dict[str, Any] = {**_times(payload), **failure_facts(payload), **_last_progress(payload)}
    return RecordChange.failed(**facts)


def _cancelled(payload: Payload) -> RecordChange:
    return RecordChange.cancelled(**_times(payload), **_last_progress(payload))


def _times(payload: Payload) -> dict[str, Any]:
    times = {"started_at": payload.get("started_at"), "ran_before": payload.get("ran_before")}
    return {**times, "at": payload.get("timestamp")}


def _postponed(payload: Payload) -> RecordChange | None:
    if not payload.get("postponed"):
        # A person has launched the ended task again, as a new one: this record does not change.
        return None
    return RecordChange.postponed(**failure_facts(payload))


def _paused(payload: Payload) -> RecordChange:
    return RecordChange.paused(**_last_progress(payload))


def _sliced(payload: Payload) -> RecordChange:
    return RecordChange.queued_again(**_last_progress(payload))


def _resumed(payload: Payload) -> RecordChange | None:
    # A running task that was only asked to pause goes on.
    return RecordChange.queued_again() if payload.get("requeued") else None


_ENDS = ("complete", "fail", "cancel")
_STOPS = ("pause", "slice")
_CHANGES: dict[str, Callable[[Payload], RecordChange | None]] = {
    "start": _started,
    "complete": _completed,
    "fail": _failed,
    "cancel": _cancelled,
    "retry": _postponed,
    "pause": _paused,
    "resume": _resumed,
    "slice": _sliced,
}


def failure_facts(payload: Payload) -> dict[str, str]:
    """Return what a record keeps of a failure, from the payload of its event."""
    given = payload.get("reason")
    reason = given if given in FailureReason.values else FailureReason.ERROR.value
    error = error_text(payload.get("error") or payload.get("result") or "", LONG)
    exception_class = clean_text(payload.get("exception_class") or "", SHORT)
    return {
        "reason": reason,
        "error": error,
        # Never empty, so that failures without a message are a group as well.
        "error_pattern": message_pattern(exception_class, error, SHORT) or reason,
        "exception_class": exception_class,
        "traceback": clean_text(payload.get("traceback") or "", LONG),
    }


def _last_progress(payload: Payload) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    if "position" in payload:
        columns["position"] = payload["position"]
    if "message" in payload:
        columns["message"] = clean_text(payload["message"] or "", MESSAGE)
    for name in ("current", "total"):
        if name in payload:
            columns[f"progress_{name}"] = fitting(payload[name])
    return columns


# Objects


def _close_objects(record: TaskRecord, event: str, payload: Payload) -> None:
    """Count the reported outcomes, and give an outcome to the objects without one."""
    counts = payload.get("outcome_counts")
    if (counts or record.by_object) and 0 < record.affected_count <= app_settings.DASHBOARD_OBJECT_LIMIT:
        # All objects have entries, which are right also if the worker was lost or an attempt was repeated.
        _set_counts(record, skipped_before=0, counts=TaskObject.objects.all().count_outcomes(record))
    elif counts:
        # The launch may have left some out already.
        _set_counts(record, skipped_before=F("skipped_count"), counts=counts)
    if not record.affected_count:
        return
    if record.by_object or (event != "complete" and record.started_at is None):
        TaskObject.objects.all().close(record, Outcome.NOT_REACHED)
    elif event == "complete":
        TaskObject.objects.all().close(record, Outcome.DONE)


def _set_counts(record: TaskRecord, *, skipped_before: Any, counts: Mapping[str, int]) -> None:
    TaskRecord.objects.filter(pk=record.pk).update(
        done_count=counts.get(Outcome.DONE, 0),
        failed_count=counts.get(Outcome.FAILED, 0),
        skipped_count=skipped_before + counts.get(Outcome.SKIPPED, 0),
    )


def _record_outcomes(record: TaskRecord, payload: Payload) -> None:
    outcomes = payload["outcomes"]
    if not 0 < record.affected_count <= app_settings.DASHBOARD_OBJECT_LIMIT:
        outcomes = _within_limit(record, outcomes)
    TaskObject.objects.all().record_outcomes(record.pk, outcomes)
    if added := payload.get("skipped_before"):
        # The task was never given these, so that it does not count them itself.
        TaskRecord.objects.filter(pk=record.pk).update(skipped_count=F("skipped_count") + added)


def _within_limit(record: TaskRecord, outcomes: Sequence[ObjectOutcome]) -> list[ObjectOutcome]:
    """Return the outcomes that are kept: those of objects with an entry, and others as long as there is room."""
    entries = TaskObject.objects.filter(record=record)
    known: dict[tuple[str, str], str] = {}
    for keys in in_chunks((item.object_id for item in outcomes), using=entries.db):
        found = entries.filter(object_id__in=keys).values_list("model_label", "object_id", "outcome")
        known.update({(label, key): outcome for label, key, outcome in found})
    new = [item for item in outcomes if (item.model_label, item.object_id) not in known]
    limit = app_settings.DASHBOARD_OBJECT_LIMIT
    # Not counted where the launch has filled it, as a count looks at each entry.
    room = max(0, limit - entries.count()) if new and record.affected_count < limit else 0
    left_out = set(new[room:])
    if failed := [item for item in new[room:] if item.outcome == Outcome.FAILED]:
        # Those that failed are kept beyond that, as long as there are fewer of them, so that they can be retried.
        before = entries.filter(outcome=Outcome.FAILED).count() - list(known.values()).count(Outcome.FAILED)
        named = sum(item.outcome == Outcome.FAILED for item in outcomes if item not in left_out)
        left_out.difference_update(failed[: max(0, limit - before - named)])
    return [item for item in outcomes if item not in left_out]
