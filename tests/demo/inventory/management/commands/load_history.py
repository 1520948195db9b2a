from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand
from django.utils import timezone

from powercrud_dashboard.dashboard_manager import DashboardAsyncManager
from powercrud_dashboard.models import Alert, AlertKind, FailureReason, TaskRecord, TaskStatus
from powercrud_dashboard.models.statuses import Resolution
from powercrud_dashboard.text import message_pattern
from tests.demo.login import USERNAME

DAYS = 32
TASKS = "tests.demo.inventory.tasks."
#: Function, label, tasks an hour at noon, seconds that one takes, one in so many fails.
KINDS = (
    (f"{TASKS}parse_and_count", "Parse and count definitions", 4.0, 6.0, 40),
    (f"{TASKS}stretch_checksums", "Stretch checksums", 1.2, 95.0, 300),
    (f"{TASKS}mirror_index", "Mirror the index of packages", 2.5, 1.4, 25),
    (f"{TASKS}mail_report", "Mail the report", 0.3, 0.4, 60),
)
#: Since when the reports fail, and the releases before and after.
BROKEN_FOR = timedelta(days=2, hours=3)
BEFORE, AFTER = "v2.3", "v2.4"
ERRORS = {
    "mirror_index": ("requests.exceptions.ConnectTimeout", "pypi.example:443: timed out after 10 s"),
    "mail_report": ("builtins.KeyError", "'recipients'"),
    "": ("builtins.ValueError", "lib2to3/tests/data/bad_order.py can't be parsed: invalid syntax (line 4)"),
}


class Command(BaseCommand):
    help = "Adds records of tasks as a month of use leaves them, unless there are some."

    def handle(self, *args: Any, **options: Any) -> None:
        if TaskRecord.objects.filter(task_name__startswith="history-").exists():
            return
        user = get_user_model().objects.get(username=USERNAME)
        chance, now = random.Random(7), timezone.now()
        records = [_record(number, *what, chance, now, user) for number, what in enumerate(_ends(chance, now))]
        # As they were launched, which is the order of the list.
        TaskRecord.objects.bulk_create(sorted(records, key=lambda record: record.created_at), batch_size=500)
        Alert.objects.bulk_create(_alerts(now, user))
        DashboardAsyncManager().cleanup_completed_tasks()
        self.stdout.write(f"{len(records)} tasks of the last {DAYS} days")


def _alerts(now: datetime, user: Any) -> list[Alert]:
    """Return alerts that have ended: of a morning with much work, and of a night with a broken host."""
    busy, broken = now - timedelta(days=4, hours=2), now - timedelta(days=11, hours=7)
    return [
        Alert(
            kind=AlertKind.OLDEST_WAIT,
            subject="demo",
            details={"seconds": 925},
            opened_at=busy,
            resolved_at=busy + timedelta(minutes=12),
        ),
        Alert(
            kind=AlertKind.NO_WORKERS,
            opened_at=broken,
            acknowledged_at=broken + timedelta(minutes=4),
            acknowledged_by=user,
            acknowledged_label=USERNAME,
            resolved_at=broken + timedelta(minutes=31),
        ),
    ]


def _ends(chance: random.Random, now: datetime) -> Iterator[tuple[tuple[Any, ...], datetime]]:
    """Return what ended when: more in the middle of the day than at night, and at weekends little."""
    for hours in range(DAYS * 24):
        at = now - timedelta(hours=hours)
        busy = (0.25 if at.weekday() >= 5 else 1.0) * max(0.1, 1 - abs(at.hour - 12) / 9)
        for kind in KINDS:
            for _ in range(chance.randrange(2) + int(kind[2] * busy * chance.uniform(0.6, 1.5))):
                yield kind, at - timedelta(seconds=chance.uniform(30, 3_600))


def _record(
    number: int, kind: tuple[Any, ...], ended: datetime, chance: random.Random, now: datetime, user: Any
) -> TaskRecord:
    func, label, _rate, seconds, one_in = kind
    name = func.rpartition(".")[2]
    is_new = now - ended < BROKEN_FOR
    fails = is_new if name == "mail_report" else chance.randrange(one_in) == 0
    run = timedelta(seconds=seconds * chance.lognormvariate(0, 0.5))
    wait = timedelta(seconds=chance.expovariate(1 / (9 if 8 <= ended.hour <= 10 else 1.5)))
    files = chance.randrange(1, 300)
    is_scheduled = name == "mail_report"
    record = TaskRecord(
        task_name=f"history-{number}",
        label=label,
        func=func,
        status=TaskStatus.FAILED if fails else TaskStatus.SUCCESS,
        user=None if is_scheduled else user,
        user_label="" if is_scheduled else USERNAME,
        group="mail report" if is_scheduled else "",
        manager_class="powercrud_dashboard.dashboard_manager.DashboardAsyncManager",
        task_kwargs={"files": files, "format": "html" if is_new and name == "mail_report" else "text"},
        message="" if fails else f"{files} files",
        attempts=1,
        release=AFTER if is_new else BEFORE,
        worker_host=chance.choice(["worker-1", "worker-2"]),
        worker_pid=chance.choice([4711, 4712]),
        created_at=ended - run - wait,
        started_at=ended - run,
        finished_at=ended,
        run_time=run,
    )
    if fails:
        record.exception_class, record.error = ERRORS.get(name, ERRORS[""])
        record.error_pattern = message_pattern(record.exception_class, record.error, 255)
        record.failure_reason = FailureReason.ERROR
        record.resolution = Resolution.OPEN if is_new else Resolution.DISMISSED
        record.traceback = (
            f'Traceback (most recent call last):\n  File "tasks.py", line 31, in {name}\n{record.error}\n'
        )
    return record
