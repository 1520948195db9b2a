"""Show everything about one task."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from powercrud_dashboard.dashboard.document import document_of
from powercrud_dashboard.dashboard.formatting import (
    counted_objects,
    local,
    precise_duration,
    readable_json,
    relative_time,
)
from powercrud_dashboard.dashboard.live import LiveTask, live_tasks
from powercrud_dashboard.dashboard.statuses import shown_status
from powercrud_dashboard.management.pcrud.base import Subcommand, add_limit
from powercrud_dashboard.management.pcrud.choosing import record_named
from powercrud_dashboard.management.pcrud.console import Column, Console, counted
from powercrud_dashboard.models import TaskRecord
from powercrud_dashboard.models.database import database_now
from powercrud_dashboard.models.labels import name_of_row
from powercrud_dashboard.models.logs import LEVEL_NAMES
from powercrud_dashboard.q2 import queue

#: Lines of each list, unless ``--limit`` says otherwise.
LIMIT = 20
#: Characters of the names of the facts.
NAMES = 13


class Show(Subcommand):
    name = "show"
    help = "Show everything about a task. Secrets are masked as on its page."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("task", help="Its name, or the beginning of it.")
        add_limit(parser, LIMIT, "Objects, events and log lines")

    def handle(self, console: Console, options: dict[str, Any]) -> None:
        record = record_named(options["task"])
        # As text and back, since the masks are applied to the text.
        document = json.loads(readable_json({**document_of(record), "tries": _tries(record)}))
        console.document(document)
        if not console.is_json:
            _Printed(console, record, document, options["limit"]).print()


def _tries(record: TaskRecord) -> list[dict[str, Any]]:
    rows: Any = TaskRecord.objects.chain_of(record).order_by("pk")
    rows = rows.values("task_name", "status", "created_at", "error")
    return list(rows) if len(rows) > 1 else []


class _Printed:
    """The task as text, in sections. What is long is cut to the newest, or the most important, lines."""

    def __init__(self, console: Console, record: TaskRecord, document: dict[str, Any], limit: int) -> None:
        self._console = console
        self._record = record
        self._document = document
        self._limit = limit
        self._now = database_now()
        self._live = live_tasks([record]).get(record.task_name)

    def print(self) -> None:
        self._console.line(self._document["record"]["label"], self._console.style.MIGRATE_HEADING)
        for name, value in self._facts():
            if value:
                self._console.line(f"  {name:<{NAMES}} {value}")
        masked = self._document["record"]
        self._text("Arguments", _arguments(masked))
        self._text("Result", masked["result"] if masked["result"] is None else _as_json(masked["result"]))
        self._text("Error", masked["error"])
        self._text("Traceback", masked["traceback"])
        self._tries()
        self._objects()
        self._locks()
        self._list("Files", [f"{file['name']} ({file['size']} bytes)" for file in self._document["files"]])
        self._list("Timeline", [self._event(event) for event in self._document["events"]])
        self._list("Log", [_log_line(line) for line in self._document["log"]])

    def _facts(self) -> Iterator[tuple[str, str]]:
        record, live = self._record, self._live
        yield "Task", record.task_name
        yield "Function", record.func
        yield "Status", self._status()
        yield "Progress", self._progress()
        yield "Launched", self._moment(record.created_at) + (f" by {record.user_label}" if record.user_label else "")
        yield "Not before", self._moment(record.run_after)
        yield "Started", self._moment(record.started_at)
        yield "Ended", self._moment(record.finished_at)
        yield "Waited", precise_duration(record.waiting_time)
        yield "Ran", precise_duration(live.duration if live and live.duration else record.duration)
        yield "Objects", counted_objects(record)
        yield "Queue", record.cluster or queue.main_cluster()
        yield "Position", str(live.position or "") if live else ""
        yield "Group", record.group
        yield "Attempts", str(record.attempts)
        yield "Worker", f"{record.worker_host} {record.worker_pid or ''}".strip()
        yield "Release", record.release
        yield "Manager", record.manager_class
        yield "Observed", record.get_source_display() if record.source else ""

    def _status(self) -> str:
        record = self._record
        reason = f" ({record.get_failure_reason_display()})" if record.failure_reason else ""
        parts = [f"{shown_status(record, self._live).label}{reason}"]
        if record.resolution:
            by = f" by {record.resolution_by}" if record.resolution_by else ""
            note = f": {record.resolution_note}" if record.resolution_note else ""
            parts.append(f"{record.get_resolution_display()}{by}{note}")
        parts += _requests(self._live) if self._live else []
        return ", ".join(parts)

    def _progress(self) -> str:
        record, live = self._record, self._live
        message, current, total = (
            (live.progress.message, live.progress.current, live.progress.total)
            if live
            else (record.message, record.progress_current, record.progress_total)
        )
        numbers = f"{current} of {total}" if current is not None and total else ""
        return ", ".join(filter(None, (numbers, message)))

    def _moment(self, at: datetime | None) -> str:
        return f"{local(at):%Y-%m-%d %H:%M:%S %Z}".strip() + f" ({relative_time(at, self._now)})" if at else ""

    def _heading(self, title: str) -> None:
        self._console.line()
        self._console.line(title, self._console.style.MIGRATE_LABEL)

    def _text(self, title: str, text: str | None) -> None:
        if text:
            self._heading(title)
            self._console.line("\n".join(f"  {line}" for line in text.splitlines()))

    def _list(self, title: str, lines: list[str]) -> None:
        if not lines:
            return
        newest = lines[-self._limit :]
        self._heading(title if len(newest) == len(lines) else f"{title}, the last {len(newest)} of {len(lines)}")
        for line in newest:
            self._console.line(f"  {line}")

    def _event(self, event: dict[str, Any]) -> str:
        by = f" by {event['actor_label']}" if event["actor_label"] else ""
        message = f": {event['message']}" if event["message"] else ""
        return f"{_clock(event['timestamp'])}  {event['event']}{by}{message}"

    def _tries(self) -> None:
        if not (tries := self._document["tries"]):
            return
        self._heading("Tries")
        columns = [Column("Task"), Column("Status"), Column("Created"), Column("Error", gives_way=True)]
        self._console.table(
            columns, [(item["task_name"], item["status"], _clock(item["created_at"]), item["error"]) for item in tries]
        )

    def _objects(self) -> None:
        objects = self._document["objects"]
        if not objects:
            self._list("Objects", [str(text) for text in self._document["record"]["affected_objects"]])
            return
        # As on the page: those that need attention first.
        order = {"failed": 0, "not_reached": 1, "skipped": 2}
        first = sorted(objects, key=lambda item: order.get(item["outcome"], 3))[: self._limit]
        count = max(self._record.affected_count, len(objects))
        self._heading("Objects" if count == len(first) else f"Objects, {len(first)} of {count}")
        columns = [Column("Object", gives_way=True), Column("Outcome"), Column("Error", gives_way=True)]
        rows = [
            (item["text"] or name_of_row(item["model_label"], item["object_id"]), item["outcome"], item["error"])
            for item in first
        ]
        self._console.table(columns, rows)

    def _locks(self) -> None:
        locks = self._document["locks"]
        if locks:
            names = [name_of_row(lock["model_label"], lock["object_id"]) for lock in locks[: self._limit]]
            more = " …" if len(locks) > len(names) else ""
            self._text(f"Holds {counted(len(locks), 'lock')}", ", ".join(names) + more)


def _requests(live: LiveTask) -> Iterator[str]:
    if live.is_being_cancelled:
        yield "is being cancelled"
    if live.is_pausing:
        yield "is about to pause"
    if live.is_missing:
        yield "is in no queue any more"
    if live.has_released_locks:
        yield "has released its locks"
    if live.time_to_retry is not None:
        yield f"starts in {precise_duration(live.time_to_retry)}"
    if live.heartbeat_age is not None:
        yield f"last heartbeat {precise_duration(live.heartbeat_age)} ago"


def _arguments(record: dict[str, Any]) -> str:
    names = record["argument_names"]
    positional = [
        f"{names[number] if number < len(names) else number} = {_as_json(value)}"
        for number, value in enumerate(record["task_args"])
    ]
    return "\n".join([*positional, *(f"{name} = {_as_json(value)}" for name, value in record["task_kwargs"].items())])


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2)


def _clock(text: str) -> str:
    return f"{local(datetime.fromisoformat(text)):%Y-%m-%d %H:%M:%S}"


def _log_line(line: dict[str, Any]) -> str:
    if line["left_out"]:
        return f"… {counted(line['left_out'], 'line')} left out"
    level = next((name for number, name in LEVEL_NAMES if line["level"] >= number), "debug")
    logger = f" {line['logger']}" if line["logger"] else ""
    return f"{_clock(line['time'])}  {level}{logger}: {line['message']}"
