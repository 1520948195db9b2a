"""Fill the database with task records such as a few busy years leave behind.

    python -m tests.benchmarks.seed 1000000

fills the database of ``DJANGO_SETTINGS_MODULE`` (by default the tests' SQLite file in ``PCRUD_TEST_STATE``).
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import django

BATCH = 5_000
#: Records that are made one by one; what is wanted beyond them are their copies at later times, which the database
#: makes ten times as fast.
ORIGINALS = 20_000
#: Between two records.
APART = timedelta(minutes=2)

#: What one in so many tasks is.
FUNCTIONS = {
    "inventory.tasks.recompute_checksums": 60,
    "inventory.tasks.import_catalogue": 25,
    "billing.tasks.send_invoices": 14,
    "billing.tasks.close_year": 1,
}
#: How many of a hundred tasks have which status.
STATUSES = {"pending": 0.2, "in_progress": 0.1, "success": 92, "failed": 6, "cancelled": 2}
PEOPLE = ("anna.arnold", "bert.berger", "carla.cohn", "doris.dietz")
ERRORS = (
    ("builtins.ValueError", "row {} of catalogue {} has no price"),
    ("requests.exceptions.ConnectionError", "HTTPSConnectionPool(host='shop-{}.example'): timed out after {} s"),
    ("builtins.KeyError", "'article-{}'"),
)


def fill(count: int, *, seed: int = 1, report: Callable[[int], None] = lambda done: None) -> None:
    """Add so many records, with their objects, spread over the time before now."""
    from powercrud_dashboard.models import TaskObject, TaskRecord

    made, first = 0, 0
    for batch in _batches(count, random.Random(seed)):
        records = TaskRecord.objects.bulk_create(batch)
        TaskObject.objects.bulk_create(
            TaskObject(record=record, model_label="inventory.article", object_id=item["id"], text=item["text"])
            for record in records
            for item in record.first_objects
        )
        made += len(records)
        first = first or records[0].pk
        report(made)
    if (originals := made) < count:
        with _indexed_afterwards(TaskRecord, TaskObject):
            for shift in range(originals, count, originals):
                _copy(first, min(originals, count - shift), shift)
                report(shift + originals)
    _continue_keys_after_copies()


@contextmanager
def _indexed_afterwards(*models: Any) -> Iterator[None]:
    """Have the tables without indexes meanwhile: to make one of a full table takes less time than to keep it."""
    from django.db import connection

    from powercrud_dashboard.models.search import ensure_index

    tables = [model._meta.db_table for model in models]
    these = ", ".join(["%s"] * len(tables))
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            # What holds a constraint up stays.
            cursor.execute(
                f"""SELECT 'index', indexname, indexdef FROM pg_indexes WHERE tablename IN ({these})
                    AND indexname NOT IN (SELECT conname FROM pg_constraint)""",
                tables,
            )
        else:
            cursor.execute(
                f"""SELECT type, name, sql FROM sqlite_master WHERE tbl_name IN ({these})
                    AND type IN ('index', 'trigger') AND sql IS NOT NULL""",
                tables,
            )
        dropped = cursor.fetchall()
        for kind, name, _definition in dropped:
            cursor.execute(f'DROP {kind} "{name}"')
        try:
            yield
        finally:
            for kind, _name, definition in dropped:
                if kind == "index":
                    cursor.execute(definition)
            # The triggers belong to the index of words.
            ensure_index(connection)


def _copy(first: int, number: int, shift: int) -> None:
    """Copy so many records from the one with the key ``first`` on, with their objects, ``shift`` records later."""
    from powercrud_dashboard.models import TaskObject, TaskRecord

    place = f"(id - {first} + {shift})"
    changed = {
        "id": f"id + {shift}",
        "task_name": f"'seeded-' || {place}",
        "group": f"CASE WHEN \"group\" = '' THEN '' ELSE 'nightly-' || {place} / 500 END",
        **{column: _later(column, shift * APART) for column in ("created_at", "started_at", "finished_at")},
    }
    copy_rows(TaskRecord, changed, f"id >= {first} AND id < {first + number}")
    changed = {"record_id": f"record_id + {shift}"}
    copy_rows(TaskObject, changed, f"record_id >= {first} AND record_id < {first + number}")


def _later(column: str, by: timedelta) -> str:
    from django.db import connection

    if connection.vendor == "postgresql":
        return f"{column} + INTERVAL '{by.total_seconds()} seconds'"
    # To the thousandth of a second, as SQLite's own functions are.
    return f"strftime('%Y-%m-%d %H:%M:%f', {column}, '{by.total_seconds()} seconds')"


def copy_rows(model: Any, changed: Mapping[str, str], which: str) -> None:
    """Insert rows of a table into it once more, with some of their columns as other SQL expressions.

    The key is made anew unless it is among the columns that change.
    """
    from django.db import connection

    columns = [field.column for field in model._meta.concrete_fields if not field.primary_key or "id" in changed]
    names = ", ".join(f'"{column}"' for column in columns)
    values = ", ".join(changed.get(column, f'"{column}"') for column in columns)
    table = model._meta.db_table
    with connection.cursor() as cursor:
        cursor.execute(f"INSERT INTO {table} ({names}) SELECT {values} FROM {table} WHERE {which}")


def _continue_keys_after_copies() -> None:
    from django.core.management.color import no_style
    from django.db import connection

    from powercrud_dashboard.models import TaskRecord

    with connection.cursor() as cursor:
        for statement in connection.ops.sequence_reset_sql(no_style(), [TaskRecord]):
            cursor.execute(statement)


def _batches(count: int, chance: random.Random) -> Iterator[list]:
    from django.utils import timezone

    now = timezone.now()
    functions, weights = list(FUNCTIONS), list(FUNCTIONS.values())
    for first in range(0, min(count, ORIGINALS), BATCH):
        yield [
            _record(number, now - APART * (count - number), chance, functions, weights)
            for number in range(first, min(first + BATCH, count, ORIGINALS))
        ]


def _record(number: int, created_at, chance: random.Random, functions: list[str], weights: list[int]):
    from powercrud_dashboard.models import FailureReason, Resolution, TaskRecord, TaskStatus
    from powercrud_dashboard.text import message_pattern

    func = chance.choices(functions, weights)[0]
    status = TaskStatus(chance.choices(list(STATUSES), list(STATUSES.values()))[0])
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
        record.resolution = chance.choices(list(Resolution), [15, 80, 5])[0]
        record.superseded = record.resolution == Resolution.OPEN and chance.random() < 0.1
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
