"""What is kept of a task of plain django-q2: the columns of its record, and the lines of its timeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any

from django.utils.translation import gettext_lazy as _

from powercrud_dashboard.engine import history, release
from powercrud_dashboard.engine.arguments import NAME_LENGTH
from powercrud_dashboard.engine.failure_texts import outcome
from powercrud_dashboard.engine.spec import TaskSpec, argument_names, resolve_function
from powercrud_dashboard.engine.values import to_json
from powercrud_dashboard.exceptions import UnimportableCallable
from powercrud_dashboard.models import Resolution, Source, TaskStatus
from powercrud_dashboard.models.changes import RecordChange
from powercrud_dashboard.text import MESSAGE, SHORT, KeptText, clean_text, error_text

#: A lifecycle event and its payload.
Event = tuple[str, dict[str, Any]]

#: Characters of signed arguments that are kept for a retry.
PAYLOAD_AT_MOST = 10_000_000

_OBSERVED = KeptText(_("Observed in django-q2 as %(name)s"))


@dataclass(frozen=True)
class PlainTask:
    """A task that django-q2's own functions have launched, as its message or its row tells of it.

    Its record has django-q2's id as ``task_name``, as django-q2's names need not be unique.
    """

    #: django-q2's id, the name of the record.
    id: str
    #: django-q2's name: made of four words, or the one that the launch gave.
    name: str
    #: The dotted path of the function.
    func: str
    args: Sequence[Any] = field(default=(), repr=False)
    kwargs: Mapping[str, Any] = field(default_factory=dict, repr=False)
    #: When it was enqueued.
    created_at: datetime = field(kw_only=True)
    group: str = ""
    cluster: str = ""
    #: The label of the record; the path of the function by default.
    label: str = ""
    #: django-q2's own options of the launch, for a retry: ``hook``, ``timeout``, ...
    options: Mapping[str, Any] = field(default_factory=dict)
    #: The project's release at the launch; None for the one that runs now.
    release: str | None = None
    #: The ORM broker's key of the message that a worker has begun; "" if there is none.
    receipt: str = ""
    #: Whether the arguments are those of the launch, so that a retry can have them.
    has_whole_arguments: bool = True


@dataclass(frozen=True)
class EndedTask(PlainTask):
    """Such a task that has ended."""

    success: bool = field(kw_only=True)
    #: What the function has returned, or django-q2's text of the failure: the error and its traceback.
    result: Any = field(default=None, kw_only=True, repr=False)
    stopped_at: datetime = field(kw_only=True)
    #: When a worker began it; None if that is not known, as in django-q2's rows.
    started_at: datetime | None = None
    attempts: int = 1
    worker_host: str = ""
    worker_pid: int | None = None


def new_columns(task: PlainTask) -> dict[str, Any]:
    """Return the columns of the record of a queued task, but for its name and those that have their defaults."""
    func = clean_text(task.func, SHORT)
    return {
        "label": clean_text(task.label or func, SHORT),
        "func": func,
        "task_args": to_json(list(task.args)),
        "argument_names": _argument_names(task.func, len(task.args)),
        "task_kwargs": to_json(dict(task.kwargs)),
        "payload": _signed(task),
        "group": clean_text(task.group, NAME_LENGTH),
        "cluster": clean_text(task.cluster, NAME_LENGTH),
        "release": release.current() if task.release is None else task.release,
        "source": Source.DJANGO_Q,
        "created_at": task.created_at,
    }


def ended_columns(task: EndedTask) -> dict[str, Any]:
    end = change_of(task).columns
    resolution = Resolution.OPEN if end["status"] == TaskStatus.FAILED else ""
    ran = {"attempts": task.attempts, "started_at": task.started_at, **place_of(task)}
    return {**new_columns(task), **ran, **end, "resolution": resolution}


def place_of(task: EndedTask) -> dict[str, Any]:
    return {"worker_host": clean_text(task.worker_host, SHORT), "worker_pid": task.worker_pid}


def change_of(task: EndedTask) -> RecordChange:
    times: dict[str, Any] = {"at": task.stopped_at, "started_at": task.started_at}
    event, facts = outcome(task.func, task.success, task.result)
    if event == "complete":
        return RecordChange.succeeded(**times, result=to_json(facts["result"]))
    if event == "cancel":
        return RecordChange.cancelled(**times)
    failure: dict[str, Any] = history.failure_facts(facts)
    return RecordChange.failed(**times, **failure)


def end_of(task: EndedTask, started_at: datetime | None) -> Event:
    event, facts = outcome(task.func, task.success, task.result)
    return event, {"started_at": started_at, "timestamp": task.stopped_at, **facts}


def start_of(task: EndedTask, started_at: datetime) -> dict[str, Any]:
    return {"timestamp": started_at, **_start_details(task)}


def lines_of(task: PlainTask) -> list[dict[str, Any]]:
    """Return the lines of the timeline, by the fields of the events."""
    lines = [_line("create", task.created_at, _OBSERVED(name=task.name))]
    if not isinstance(task, EndedTask):
        return lines
    if task.started_at is not None:
        lines.append(_line("start", task.started_at, payload=_start_details(task)))
    event, facts = outcome(task.func, task.success, task.result)
    details: dict[str, Any] = {name: facts[name] for name in ("exception_class", "reason") if name in facts}
    return [*lines, _line(event, task.stopped_at, facts.get("error", ""), payload=details)]


def _start_details(task: EndedTask) -> dict[str, Any]:
    worker = {"worker_host": task.worker_host, "worker_pid": task.worker_pid}
    details = {"attempt": task.attempts, **worker, "receipt": task.receipt}
    return {name: value for name, value in details.items() if value}


def _line(event: str, at: datetime, message: str = "", payload: Mapping[str, Any] | None = None) -> dict[str, Any]:
    text = error_text(message, MESSAGE) if message else ""
    who = {"actor": None, "actor_label": ""}
    return {"event": event, "timestamp": at, **who, "message": text, "payload": payload or {}}


def _signed(task: PlainTask) -> str:
    """Return the signed spec for a retry; "" if its arguments can't be pickled, are not all there, or take too much."""
    if not task.has_whole_arguments:
        return ""
    spec = TaskSpec(
        task.func,
        tuple(task.args),
        task.kwargs,
        options=task.options,
        label=task.label,
        group=task.group,
        cluster=task.cluster,
    )
    try:
        signed = spec.to_signed()
    except (Exception, SystemExit):
        # Other people's objects.
        return ""
    return signed if len(signed) <= PAYLOAD_AT_MOST else ""


def _argument_names(path: str, count: int) -> list[str]:
    return list(argument_names(func, count)) if count and (func := _function(path)) is not None else []


@lru_cache(maxsize=500)
def _function(path: str) -> Any:
    try:
        return resolve_function(path)[1]
    except UnimportableCallable:
        return None
