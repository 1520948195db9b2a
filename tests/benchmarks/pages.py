"""How long each view of the task list takes, and how much the database does for it.

    python -m tests.benchmarks.pages --records 1000000 [--settings tests.settings.postgresql]

Seeds the database unless it holds as many records already (set ``PCRUD_TEST_STATE`` to keep it), then prints, for
each address: the median time in milliseconds, the queries, and the work of the heaviest query (rows looked at on
PostgreSQL, about as much on SQLite).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import django

LIST = "/admin/powercrud_dashboard/taskrecord/"

#: Each tab, filter and search, with frequent and rare things to look for.
ADDRESSES = (
    "",
    "?status=pending",
    "?status=in_progress",
    "?status=failed",
    "?status=failed&resolution=all",
    "?status=failed&resolution=resolved",
    "?status=failed&resolution=dismissed",
    "?resolution=open",
    "?status=failed&within=24h",
    "?status=failed&sort=-duration",
    "?status=failed&function=billing.tasks.close_year",
    "?status=failed&pattern=KeyError%3A+%E2%80%A6",
    "?status=success",
    "?status=cancelled",
    "?q=recompute",
    "?q=invoices",
    "?q=close+year",
    "?q=seeded-4711",
    "?q=nothing-like-it",
    "?q=price&status=failed",
    "?q=price&status=failed&resolution=dismissed",
    "?q=price&status=success",
    "?q=recompute&status=failed",
    "?task=billing",
    "?user=anna",
    "?user=anna&status=failed",
    "?model=inventory.article",
    "?model=inventory.article&status=cancelled",
    "?object_id=4711",
    "?model=inventory.article&object_id=4711",
    "?group=nightly-3",
    "?cluster=slow",
    "?cluster=slow&status=failed",
    "?created_after=2001-01-01",
    "?created_before=2001-01-01",
    "?finished_after=2001-01-01",
    "?finished_after=2001-01-01&status=cancelled",
    "?finished_before=2001-01-01",
    "?within=24h",
    "?longer_than=1",
    "?longer_than=300",
    "?longer_than=1&status=cancelled",
    "?function=billing.tasks.close_year",
    "?error_class=builtins.KeyError",
    "?error_class=ConnectionError&q=price",
    "?reason=error",
    "?with_errors=on",
    "?mine=on",
    "?status=waiting",
    "?sort=finished_at",
    "?sort=-finished_at&status=failed",
    "?sort=created_at",
    "?sort=-duration",
    "?sort=duration&status=success",
    "?sort=label",
    "?sort=-user_label&status=failed",
    "?sort=label&finished_after=2001-01-01",
    "failures/",
    "failures/?within=7d",
    "failures/?within=7d&resolution=resolved",
    "failures/?within=7d&function=billing.tasks.close_year",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--settings", default="tests.settings.sqlite")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    os.environ["DJANGO_SETTINGS_MODULE"] = options.settings
    django.setup()
    from django.conf import settings

    from tests import services

    with ExitStack() as servers:
        if "postgresql" in settings.DATABASES["default"]["ENGINE"]:
            servers.enter_context(services.postgresql(Path(settings.DATABASES["default"]["HOST"])))
        _measure(options.records, options.rounds)


def _measure(records: int, rounds: int) -> None:
    from django.contrib.auth.models import User
    from django.core.management import call_command
    from django.db import connection
    from django.test import Client

    from powercrud_dashboard.models import TaskRecord
    from tests import work
    from tests.benchmarks import seed

    _make_database()
    call_command("migrate", verbosity=0)
    if (missing := records - TaskRecord.objects.count()) > 0:
        seed.fill(missing, report=lambda done: print(f"\rseeding: {done:,}", end="", file=sys.stderr))
        print(file=sys.stderr)
        if connection.vendor == "postgresql":
            # What autovacuum does soon after.
            with connection.cursor() as cursor:
                cursor.execute("VACUUM ANALYZE")
    client = Client()
    client.force_login(User.objects.filter(is_superuser=True).first() or User.objects.create_superuser("boss"))
    print(f"{records:,} records, {connection.vendor}, {rounds} rounds")
    print(f"{'median ms':>10} {'worst ms':>9} {'queries':>8} {'work':>8}  address")
    for address in ADDRESSES:
        client.get(LIST + address)
        times = []
        for __ in range(rounds):
            began = time.perf_counter()
            client.get(LIST + address)
            times.append((time.perf_counter() - began) * 1000)
        __, queries, heaviest, plan = work.of_request(lambda address=address: client.get(LIST + address))
        print(f"{statistics.median(times):10.1f} {max(times):9.1f} {queries:8} {heaviest:8}  {address or '(all)'}")
        if heaviest > HEAVY:
            print(f"{'':38}{' / '.join(plan)}")


#: More work than a count that stops at its cap: the plan is shown.
HEAVY = 60_000


def _make_database() -> None:
    """Make the database that the settings name, on a PostgreSQL server that has just been started."""
    from django.db import connection

    if connection.vendor != "postgresql":
        return
    name = connection.settings_dict["NAME"]
    with connection._nodb_cursor() as cursor:
        cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name])
        if cursor.fetchone() is None:
            cursor.execute(f'CREATE DATABASE "{name}"')


if __name__ == "__main__":
    main()
