"""List tasks."""

from __future__ import annotations

import argparse
import uuid
from collections.abc import Iterator
from typing import Any

from powercrud_dashboard.dashboard.formatting import precise_duration, relative_time
from powercrud_dashboard.dashboard.listing import SORTABLE
from powercrud_dashboard.dashboard.live import LiveTask, live_tasks
from powercrud_dashboard.dashboard.statuses import shown_status
from powercrud_dashboard.management.pcrud.base import Operator, Subcommand, add_limit
from powercrud_dashboard.management.pcrud.choosing import add_filters, listing
from powercrud_dashboard.management.pcrud.console import Column, Console
from powercrud_dashboard.models import TaskRecord

#: Tasks in the table, unless ``--limit`` says otherwise.
LIMIT = 20
#: Columns of a terminal from which the table also has the messages.
WIDE = 110


class Tasks(Subcommand):
    name = "tasks"
    help = "List tasks, the newest first."
    details = "The beginning of a name is enough for the other subcommands."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add_limit(parser, LIMIT, "Tasks")
        parser.add_argument(
            "--sort",
            metavar="COLUMN",
            choices=[f"{sign}{column}" for column in SORTABLE for sign in ("", "-")],
            help=f"One of {', '.join(SORTABLE)}; with - before it in descending order (--sort=-duration).",
        )
        add_filters(parser)

    def handle(self, console: Console, options: dict[str, Any]) -> None:
        found = listing(options, Operator(None), **({"sort": options["sort"]} if options["sort"] else {}))
        records: list[Any] = found.page(options["limit"]).records
        total = found.counts[found.status]
        if console.is_json:
            console.document(
                {"total": total.number, "total_is_capped": total.is_capped, "tasks": list(_entries(records))}
            )
            return
        if not records:
            console.line("No tasks match.")
            return
        print_tasks(console, records)
        if total.is_capped or total.number > len(records):
            console.note(f"The first {len(records)} of {total} tasks. --limit shows more.")


def print_tasks(console: Console, records: list[Any]) -> None:
    """Print a table of records that a listing has read."""
    live = live_tasks(records)
    is_wide = console.width >= WIDE
    columns = [
        Column("Task"),
        Column("Status"),
        Column("Created", is_number=True),
        Column("Ran", is_number=True),
        Column("By", gives_way=True),
        Column("What", gives_way=True),
        *([Column("Message", gives_way=True)] if is_wide else []),
    ]
    rows = []
    for record in records:
        its = live.get(record.task_name)
        message = its.progress.message if its else record.error or record.message
        rows.append(
            (
                short_name(record.task_name),
                _status_of(record, its),
                relative_time(record.created_at, record.read_at),
                precise_duration(its.duration if its and its.duration else record.duration),
                record.user_label,
                record.label,
                *([message] if is_wide else []),
            )
        )
    console.table(columns, rows)


def short_name(task_name: str) -> str:
    """Return a name as a table shows it: the first part of one that the manager has made."""
    try:
        uuid.UUID(task_name)
    except ValueError:
        return task_name
    return task_name[:8]


def _status_of(record: TaskRecord, live: LiveTask | None) -> str:
    label = str(shown_status(record, live).label)
    if live is None or not live.progress.total or live.progress.current is None:
        return label
    return f"{label} {100 * live.progress.current // live.progress.total} %"


def _entries(records: list[TaskRecord]) -> Iterator[dict[str, Any]]:
    live = live_tasks(records)
    for record in records:
        its = live.get(record.task_name)
        yield {
            **{column: getattr(record, column) for column in COLUMNS},
            "run_seconds": _seconds(its.duration if its and its.duration else record.duration),
            "progress": {
                "message": its.progress.message if its else record.message,
                "current": its.progress.current if its else record.progress_current,
                "total": its.progress.total if its else record.progress_total,
            },
        }


def _seconds(value: Any) -> float | None:
    return None if value is None else value.total_seconds()


#: Columns of the records in the JSON.
COLUMNS = (
    *("task_name", "label", "func", "status", "failure_reason", "resolution", "error", "exception_class"),
    *("user_label", "affected_count", "failed_count", "attempts", "group", "cluster", "source", "release"),
    *("created_at", "started_at", "finished_at"),
)
