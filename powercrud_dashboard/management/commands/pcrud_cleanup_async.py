from __future__ import annotations

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from powercrud_dashboard.async_manager import AsyncManager


class Command(BaseCommand):
    help = "Finds lost workers, tasks lost in the queue, expired reservations and orphaned locks; prunes old history."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="Print the summary as JSON.")
        parser.add_argument("--dry-run", action="store_true", help="Only say what would be done.")

    def handle(self, *args: Any, **options: Any) -> None:
        summary = AsyncManager.resolve_manager().cleanup_completed_tasks(dry_run=options["dry_run"])
        if options["json"]:
            self.stdout.write(json.dumps(summary, indent=2, sort_keys=True))
            return
        self._print(summary, "Would clean up" if options["dry_run"] else "Cleaned up")

    def _print(self, summary: dict[str, Any], done: str) -> None:
        self.stdout.write(f"Active tasks: {summary['active_tasks']}")
        self.stdout.write(f"{done}: {len(summary['cleaned'])}")
        for task_name, found in summary["cleaned"].items():
            self.stdout.write(f"  {task_name}: {found['reason']}, {found['conflict_lock_keys']} lock(s)")
        self.stdout.write(f"Left alone: {len(summary['skipped'])}")
        for task_name, reason in summary["skipped"].items():
            self.stdout.write(f"  {task_name}: {reason}")
        self.stdout.write(f"Orphaned locks: {summary['orphaned_locks']}")
        self.stdout.write(f"Old records: {summary['pruned_records']}")
