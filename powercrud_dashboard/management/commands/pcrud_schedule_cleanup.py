from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand

from powercrud_dashboard import timetable
from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.schedules import CLEANUP_NAME, CLEANUP_PATH


class Command(BaseCommand):
    help = (
        "Makes django-q2 run the cleanup every CLEANUP_SCHEDULE_INTERVAL seconds. Running it again only updates that."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        seconds = app_settings.CLEANUP_SCHEDULE_INTERVAL
        created = timetable.ensure_schedule(CLEANUP_PATH, name=CLEANUP_NAME, seconds=seconds)
        minutes = max(1, round(seconds / 60))
        state = "created" if created else "exists; updated"
        self.stdout.write(f"Schedule {CLEANUP_NAME!r} {state}: every {minutes} minute(s).")
