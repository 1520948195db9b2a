from __future__ import annotations

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from powercrud_dashboard.schedules import sync_schedules


class Command(BaseCommand):
    help = "Creates, updates and deletes django-q2's schedules, so that they are as the code declares."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="Print the names as JSON.")
        parser.add_argument("--dry-run", action="store_true", help="Report what would be done, without changes.")

    def handle(self, *args: Any, **options: Any) -> None:
        changes = sync_schedules(dry_run=options["dry_run"])
        if options["json"]:
            self.stdout.write(json.dumps(changes, indent=2))
            return
        for done, names in changes.items():
            would = "would be " if options["dry_run"] and done != "unchanged" else ""
            for name in names:
                self.stdout.write(f"{name}: {would}{done}")
        if not any(changes.values()):
            self.stdout.write("No schedule is declared.")
