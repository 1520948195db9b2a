from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand

from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.management.pcrud.console import counted
from powercrud_dashboard.q2 import schedules
from powercrud_dashboard.schedules import CLEANUP_NAME, CLEANUP_PATH


class Command(BaseCommand):
    help = "Creates or updates a django-q2 schedule that runs the cleanup every CLEANUP_SCHEDULE_INTERVAL seconds."

    def handle(self, *args: Any, **options: Any) -> None:
        seconds = app_settings.CLEANUP_SCHEDULE_INTERVAL
        created = schedules.ensure_schedule(CLEANUP_PATH, name=CLEANUP_NAME, seconds=seconds)
        minutes = max(1, round(seconds / 60))
        state = "created" if created else "updated"
        self.stdout.write(f"Schedule {CLEANUP_NAME!r} {state}: every {counted(minutes, 'minute')}.")
