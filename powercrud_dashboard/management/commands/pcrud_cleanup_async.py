from __future__ import annotations

import json
from typing import Any

from django.apps import apps
from django.core.management.base import BaseCommand, CommandParser

from powercrud_dashboard.async_manager import AsyncManager


class Command(BaseCommand):
    help = "Cleans up lost workers, lost tasks, expired reservations and orphaned locks, and prunes old records."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="Print the summary as JSON.")
        parser.add_argument("--dry-run", action="store_true", help="Report what would be done, without changes.")

    def handle(self, *args: Any, **options: Any) -> None:
        # PowerCRUD has a command of this name too, which is hidden if this app comes first: its manager cleans up both.
        path = "powercrud_dashboard.contrib.powercrud.PowerCrudManager" if apps.is_installed("powercrud") else None
        summary = AsyncManager.resolve_manager(path).cleanup_completed_tasks(dry_run=options["dry_run"])
        if options["json"]:
            self.stdout.write(json.dumps(summary, indent=2, sort_keys=True))
            return
        self._print(summary, "Would clean up" if options["dry_run"] else "Cleaned up")

    def _print(self, summary: dict[str, Any], title: str) -> None:
        self.stdout.write(f"Active tasks: {summary['active_tasks']}")
        self.stdout.write(f"{title}: {summary['cleaned_count']}")
        for task_name, item in summary["cleaned"].items():
            self.stdout.write(f"  {task_name}: {item['reason']}, {item['conflict_lock_keys']} lock(s)")
        self._print_rest(summary["cleaned_count"] - len(summary["cleaned"]))
        self.stdout.write(f"Skipped: {summary['skipped_count']}")
        for task_name, reason in summary["skipped"].items():
            self.stdout.write(f"  {task_name}: {reason}")
        self._print_rest(summary["skipped_count"] - len(summary["skipped"]))
        self.stdout.write(f"Orphaned locks: {summary['orphaned_locks']}")
        self.stdout.write(f"Old records: {summary['pruned_records']}")

    def _print_rest(self, number: int) -> None:
        if number:
            self.stdout.write(f"  and {number} more")
