"""Each fault: where it can happen, what it changes before a round, and what it does in the middle of one."""

from __future__ import annotations

import importlib
import random
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.cache import cache
from django.db import connection
from django_q.models import OrmQ

from powercrud_dashboard.cleanup import delete_records
from powercrud_dashboard.exceptions import EnqueueError
from powercrud_dashboard.models import TaskRecord
from tests.faults import work
from tests.faults.clock import set_clock
from tests.faults.crashes import WORKER_STAGES, crash_once

if TYPE_CHECKING:
    from tests.faults.rounds import Round

Act = Callable[["Round"], None]


def _nothing(around: Round) -> None:
    """Leave everything as it is."""


@dataclass(frozen=True)
class Fault:
    name: str
    #: In the middle of the round.
    strike: Act = _nothing
    #: Before clusters are started, such as by other options for them.
    prepare: Act = _nothing
    #: Databases and brokers that it is for.
    lanes: tuple[str, ...] = ("sqlite-orm", "sqlite-redis", "postgresql-orm", "postgresql-redis")


SQLITE = ("sqlite-orm", "sqlite-redis")
POSTGRESQL = ("postgresql-orm", "postgresql-redis")
REDIS = ("sqlite-redis", "postgresql-redis")
ORM = ("sqlite-orm", "postgresql-orm")


def _launching(*outcomes: str, **options: Any) -> Act:
    def launch(around: Round) -> None:
        for outcome in outcomes:
            around.launch(outcome=outcome, **options)

    return launch


def _crash(stage: str) -> Act:
    return lambda around: crash_once(stage)


# Processes


def _kill_part(which: int) -> Act:
    def kill(around: Round) -> None:
        cluster = around.world.cluster
        if len(parts := cluster.parts) > abs(which):
            cluster.kill(parts[which])

    return kill


def _kill_sentinel(around: Round) -> None:
    around.world.cluster.kill(around.world.cluster.sentinel)


def _die_of_memory(around: Round) -> None:
    around.launch(outcome="dies of memory", seconds=0.1)
    crash_once("in the function")


def _start_second_cluster(around: Round) -> None:
    around.world.start_cluster()


def _option(**options: Any) -> Act:
    return lambda around: around.world.options.update(options)


# Databases


def _cut_connections(around: Round) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


def _restart_database(around: Round) -> None:
    around.world.database.stop()
    time.sleep(random.uniform(0.1, 1.5))
    around.world.database.start()
    connection.close()


def _lock_sqlite(around: Round) -> None:
    def hold() -> None:
        other = sqlite3.connect(settings.DATABASES["default"]["NAME"], timeout=5, isolation_level=None)
        with closing(other), suppress(sqlite3.OperationalError):
            other.execute("BEGIN IMMEDIATE")
            time.sleep(random.uniform(0.5, 6))
            other.execute("ROLLBACK")

    around.in_background(hold)


def _lock_postgresql(around: Round) -> None:
    def hold() -> None:
        from django.db import transaction

        try:
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute("LOCK TABLE powercrud_dashboard_activetask IN EXCLUSIVE MODE")
                time.sleep(random.uniform(0.5, 3))
        finally:
            connection.close()

    around.in_background(hold)


def _fill_disk(around: Round) -> None:
    """Let the clusters find the disk full as soon as they need a page more than there are free ones."""
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA page_count")
        pages = cursor.fetchone()[0]
    around.world.options["max_page_count"] = pages + random.randrange(0, 30)


def _free_disk(around: Round) -> None:
    """A person makes room, and starts the clusters anew."""
    time.sleep(1)
    around.world.options.pop("max_page_count", None)
    around.world.stop_clusters()
    around.world.start_cluster()


# Brokers and caches


def _restart_redis(around: Round) -> None:
    around.world.redis.stop()
    time.sleep(random.uniform(0, 0.5))
    around.world.redis.start()


def _flush_redis(around: Round) -> None:
    import redis

    redis.Redis.from_url(settings.Q_CLUSTER["redis"]).flushall()


def _launch_without_redis(around: Round) -> None:
    around.world.redis.stop()
    for _ in range(2):
        with suppress(EnqueueError):
            around.launch()
    around.world.redis.start()


def _flush_cache(around: Round) -> None:
    def flush() -> None:
        while not around.is_over.wait(0.05):
            cache.clear()

    around.in_background(flush)


def _clean_up_all_the_time(around: Round) -> None:
    def clean_up() -> None:
        try:
            while not around.is_over.wait(0.05):
                with suppress(Exception):
                    around.manager.cleanup_completed_tasks()
        finally:
            connection.close()

    around.in_background(clean_up)


# Clocks


def _set_clock(hours: int) -> Act:
    def step(around: Round) -> None:
        set_clock(hours * 3600)

    return step


# Deploys and people


def _rotate_secret(around: Round) -> None:
    """From here on clusters have a new key, and take the old one for what was signed before."""
    around.world.stop_clusters()
    around.world.options.update(secret_key="a new secret", secret_key_fallbacks=[settings.SECRET_KEY])
    around.world.start_cluster()


def _remove_module(around: Round) -> None:
    """Launch a function whose module is gone by the time that a worker looks for it."""
    module = Path(settings.STATE_DIR) / "modules" / f"gone_{around.number}.py"
    module.parent.mkdir(exist_ok=True)
    module.write_text("def function():\n    return 1\n")
    importlib.invalidate_caches()
    around.launch_path(f"{module.stem}.function")
    module.unlink()
    shutil.rmtree(module.parent / "__pycache__", ignore_errors=True)


def _delete_record(around: Round) -> None:
    record = TaskRecord.objects.filter(status="in_progress").first()
    if record is not None:
        around.deleted.add(record.task_name)
        delete_records([record.pk])


def _delete_user(around: Round) -> None:
    get_user_model().objects.filter(pk=around.user.pk).delete()
    around.user = get_user_model().objects.create_superuser(f"boss {around.number} b")


def _deliver_twice(around: Round) -> None:
    """Put messages into the queue once more."""
    for message in OrmQ.objects.all()[:5]:
        message.pk = None
        message.save()


FAULTS = [
    *(Fault(f"worker killed {stage}", _crash(stage)) for stage in WORKER_STAGES),
    Fault("monitor killed", _kill_part(-2)),
    Fault("monitor killed before it saves", _crash("in the monitor")),
    Fault("pusher killed", _kill_part(-1)),
    Fault("sentinel killed", _kill_sentinel),
    Fault("cluster killed", lambda around: around.world.cluster.kill_all()),
    Fault("cluster stopped with work in hand", lambda around: around.world.cluster.terminate()),
    Fault("all processes of the cluster terminated", lambda around: around.world.cluster.terminate_all()),
    Fault("out of memory", _launching("runs out of memory", seconds=0.1)),
    Fault("killed for its memory", _die_of_memory),
    Fault("time limit", _launching("done", seconds=20, timeout=1)),
    Fault("time limit ignored", lambda around: around.launch_stubborn()),
    Fault("delivered again while it runs", _launching("done", seconds=4), _option(retry=2), ORM),
    Fault("message twice in the queue", _deliver_twice, lanes=ORM),
    Fault("two clusters on one queue", _start_second_cluster),
    Fault("connections cut", _cut_connections, lanes=POSTGRESQL),
    Fault("database restarted", _restart_database, lanes=POSTGRESQL),
    Fault("table locked", _lock_postgresql, lanes=POSTGRESQL),
    Fault("database is locked", _lock_sqlite, lanes=SQLITE),
    Fault("disk full", _free_disk, _fill_disk, lanes=SQLITE),
    Fault("redis restarted", _restart_redis, lanes=REDIS),
    Fault("redis flushed", _flush_redis, lanes=REDIS),
    Fault("redis away at the launch", _launch_without_redis, lanes=REDIS),
    Fault("cache flushed", _flush_cache),
    Fault("clock set back by an hour", _set_clock(-1)),
    Fault("clock set forward by an hour", _set_clock(1)),
    Fault("hook raises", lambda around: around.launch(manager=work.RaisingManager())),
    Fault("hook hangs", lambda around: around.launch(manager=work.HangingManager())),
    Fault("result can't be pickled", _launching("returns what can't be pickled")),
    Fault("result of 100 MB", _launching("returns very much")),
    Fault("result with NUL bytes", _launching("returns NUL")),
    Fault("secret key rotated", _rotate_secret),
    Fault("module gone after a deploy", _remove_module),
    Fault("record deleted while its task runs", _delete_record),
    Fault("user deleted while their task runs", _delete_user),
    Fault("result not saved", _launching("done", "fails", q_options={"save": False})),
    Fault("result cached", _launching("done", "fails", q_options={"cached": True})),
    Fault("run in the caller's process", _launching("done", "fails", sync=True, seconds=0.1)),
    Fault("negative save_limit", prepare=_option(save_limit=-1)),
    Fault("cleanup at any moment", _clean_up_all_the_time),
]
assert len({fault.name for fault in FAULTS}) == len(FAULTS)
