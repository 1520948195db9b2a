"""Fill the database with task records such as a few busy years leave behind.

    python -m tests.benchmarks.seed 1000000

fills the database of ``DJANGO_SETTINGS_MODULE`` (by default the tests' SQLite file in ``PCRUD_TEST_STATE``).
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta

import django

BATCH = 5_000

#: What one in so many tasks is.
FUNCTIONS = {
    "inventory.tasks.recompute_checksums": 60,
    "inventory.tasks.import_catalogue": 25,
    "billing.tasks.send_invoices": 14,
    "billing.tasks.close_year": 1,
}
PEOPLE = ("anna.arnold", "bert.berger", "carla.cohn", "doris.dietz")
ERRORS = (
    ("builtins.ValueError", "row {} of catalogue {} has no price"),
    ("requests.exceptions.ConnectionError", "HTTPSConnectionPool(host='shop-{}.example'): timed out after {} s"),
    ("builtins.KeyError", "'article-{}'"),
)


def fill(count: int, *, seed: int = 1, report: Callable[[int], None] = lambda done: None) -> None:
    """Add so many records, with their objects, spread over the time before now."""
    from powercrud_dashboard.models import TaskObject, TaskRecord

    made = 0
    for batch in _batches(count, random.Random(seed)):
        records = TaskRecord.objects.bulk_create(batch)
        TaskObject.objects.bulk_create(
            TaskObject(record=record, model_label="inventory.article", object_id=item["id"], text=item["text"])
            for record in records
            for item in record.first_objects
        )
        made += len(records)
        report(made)


def _batches(count: int, chance: random.Random) -> Iterator[list]:
    from django.utils import timezone

    now = timezone.now()
    functions, weights = list(FUNCTIONS), list(FUNCTIONS.values())
    for first in range(0, count, BATCH):
        yield [
            _record(number, now - timedelta(minutes=2) * (count - number), chance, functions, weights)
            for number in range(first, min(first + BATCH, count))
        ]


def _record(number: int, created_at, chance: random.Random, functions: list[str], weights: list[int]):
    from powercrud_dashboard.models import FailureReason, TaskRecord, TaskStatus
    from powercrud_dashboard.models.text import message_pattern

    func = chance.choices(functions, weights)[0]
    status = chance.choices(list(TaskStatus), [0.2, 0.1, 92, 6, 2])[0]
    objects = [chance.randrange(200_000) for __ in range(chance.choice([0, 1, 1, 2, 3]))]
    record = TaskRecord(
        task_name=f"seeded-{number}",
        label=func.rpartition(".")[2].replace("_", " ").capitalize(),
        func=func,
        status=status,
        user_label=chance.choice(PEOPLE),
        affected_count=len(objects),
        first_objects=[{"model": "inventory.article", "id": str(pk), "text": f"Article {pk}"} for pk in objects],
        model_labels="inventory.article" if objects else "",
        group=f"nightly-{number // 500}" if number % 20 == 0 else "",
        cluster="slow" if number % 10 == 0 else "",
        manager_class="powercrud_dashboard.dashboard_manager.DashboardAsyncManager",
        created_at=created_at,
    )
    if status in (TaskStatus.SUCCESS, TaskStatus.FAILED, TaskStatus.CANCELLED):
        record.started_at = created_at + timedelta(seconds=chance.expovariate(1 / 5))
        record.run_time = timedelta(seconds=chance.expovariate(1 / 30))
        record.finished_at = record.started_at + record.run_time
        record.message = f"Step {number % 97}/97"
    if status == TaskStatus.FAILED:
        record.exception_class, text = chance.choice(ERRORS)
        record.error = text.format(chance.randrange(10_000), chance.randrange(100))
        record.error_pattern = message_pattern(record.exception_class, record.error, 255)
        record.failure_reason = FailureReason.ERROR
        record.traceback = "Traceback (most recent call last):\n" * 20
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=int)
    wanted = parser.parse_args().records
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings.sqlite")
    django.setup()
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    fill(wanted, report=lambda done: print(f"\r{done:,}", end="", file=sys.stderr))


if __name__ == "__main__":
    main()
