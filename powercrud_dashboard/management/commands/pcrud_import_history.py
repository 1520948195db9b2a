from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

from django.core.management.base import CommandParser, no_translations
from django.db import DatabaseError
from django.utils import timezone

from powercrud_dashboard.conf import MAX_RETENTION_DAYS, app_settings
from powercrud_dashboard.engine.importing import Import, Summary
from powercrud_dashboard.management.pcrud.base import StrictCommand, failed, misused
from powercrud_dashboard.management.pcrud.console import Console

#: Rows that are read at once: with their arguments and results they may be large.
BATCH_SIZE, MAX_BATCH_SIZE = 500, 10_000

_COUNTS = {
    "imported": "imported",
    "known": "known already",
    "own": "of this package's own tasks",
    "not_tracked": "of functions that are not recorded (DASHBOARD_TRACK, DASHBOARD_TRACK_INCLUDE, _EXCLUDE)",
    "only_counted": "only counted in the statistics (DASHBOARD_TRACK_SAMPLE)",
    "before_since": "before --since",
    "past_retention": "past the retention: cleanup would delete them (DASHBOARD_TRACK_RETENTION_DAYS)",
    "over_limit": "beyond the newest that are kept (DASHBOARD_TRACK_MAX_RECORDS)",
    "failed": "not written",
}


class Command(StrictCommand):
    help = (
        "Brings the finished tasks in django-q2's own table into the history. It can be run again at any time: what is "
        "recorded already is left out, so that it goes on where it was stopped."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--since", type=float, metavar="DAYS", help="Only tasks that ended within so many days.")
        parser.add_argument(
            "--batch-size", type=int, default=BATCH_SIZE, metavar="ROWS", help=f"Rows read at once ({BATCH_SIZE})."
        )
        parser.add_argument("--dry-run", action="store_true", help="Read everything and write nothing.")
        parser.add_argument("--json", action="store_true", help="Print the summary as JSON.")

    @no_translations
    def handle(self, *args: Any, **options: Any) -> None:
        console = Console(self.stdout, self.stderr, self.style, is_json=options["json"], verbosity=options["verbosity"])
        with console.one_document():
            self._import(console, options)

    def _import(self, console: Console, options: dict[str, Any]) -> None:
        if app_settings.DASHBOARD_RECORDER is None:
            raise failed("DASHBOARD_RECORDER is None: no history is kept that they could be brought into.")
        size = options["batch_size"]
        if not 1 <= size <= MAX_BATCH_SIZE:
            raise misused(f"--batch-size is a number of rows from 1 to {MAX_BATCH_SIZE}.")
        run = Import(since=_moment(options["since"]), batch_size=size, dry_run=options["dry_run"])
        try:
            for _read in console.progress(run.run(), math.ceil(run.total / size)):
                pass
        except DatabaseError as error:
            written = run.summary.imported
            raise failed(f"Stopped after {written:,} rows ({error}). Run it again: it goes on from there.") from error
        console.document({"dry_run": options["dry_run"], **run.summary.as_dict()})
        self._print(console, run.summary, options["dry_run"])
        if run.summary.failed:
            raise failed(f"{run.summary.failed} rows could not be written.")

    @staticmethod
    def _print(console: Console, summary: Summary, dry_run: bool) -> None:
        counts = summary.as_dict()
        console.line(f"{summary.found:>9,} rows in django-q2's table, of which")
        for name, text in _COUNTS.items():
            if counts[name] or name == "imported":
                told = "would be imported" if dry_run and name == "imported" else text
                console.line(f"{counts[name]:>9,} {told}")
        if summary.unreadable:
            console.line(f"Values of {summary.unreadable:,} rows can't be read; what they are is shown in their place:")
        for rows, count in ((summary.unreadable_rows, summary.unreadable), (summary.failed_rows, 0)):
            for name, reason in rows.items():
                console.line(f"  {name}: {reason}")
            if count > len(rows):
                console.line(f"  and {count - len(rows):,} more")


def _moment(days: float | None) -> Any:
    if days is None:
        return None
    if not 0 <= days <= MAX_RETENTION_DAYS:
        raise misused(f"--since is a number of days from 0 to {MAX_RETENTION_DAYS}.")
    return timezone.now() - timedelta(days=days)
