"""Each fault: where it can happen, what it changes before a round, and what it does in the middle of one."""

from __future__ import annotations

import random
import sqlite3
import time
from contextlib import closing, suppress

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.cache import cache
from django.db import connection, transaction
from django_q.models import OrmQ

from powercrud_dashboard.engine.pruning import delete_records
from powercrud_dashboard.exceptions import EnqueueError
from powercrud_dashboard.models import TaskRecord
from tests.faults import work
from tests.faults.clock import set_clock
from tests.faults.crashes import WORKER_STAGES, crash_once
from tests.faults.deploys import DEPLOYS
from tests.faults.fault import ORM, POSTGRESQL, REDIS, SQLITE, Act, Fault, launching, option
from tests.faults.host_faults import HOST_FAULTS
from tests.faults.rounds import Round


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


# People


def _delete_record(around: Round) -> None:
    record = TaskRecord.objects.filter(status="in_progress").first()
    if record is not None:
        around.deleted.add(record.task_name)
        delete_records([record.pk])


def _delete_user(around: Round) -> None:
    get_user_model().objects.filter(pk=around.user.pk).delete()
    around.user = get_user_model().objects.create_superuser(f"boss {around.number} b")


class _RolledBack(Exception):
    """Raised to undo a transaction."""


def _launch_in_long_transaction(around: Round) -> None:
    """Launch tasks in a transaction that is committed, or rolled back, after the limits of the cleanup."""

    def launch() -> None:
        names: list[str] = []
        is_undone = random.random() < 0.4
        try:
            with transaction.atomic():
                names += [around.launch(note=False), around.launch(note=False)]
                time.sleep(random.uniform(4, 6.5))
                if is_undone:
                    raise _RolledBack
            around.launched.update(filter(None, names))
        except _RolledBack:
            around.undone.update(filter(None, names))
        finally:
            connection.close()

    around.in_background(launch, is_awaited=True)


def _act_on_objects(around: Round) -> None:
    """Launch actions per object, which the other faults of the round meet, and kill a worker of one."""
    around.launch_action()
    around.launch_action()
    around.later(random.uniform(0.5, 3), lambda: _kill_part(0)(around))


def _pause_and_resume(around: Round) -> None:
    """Pause and resume tasks at random for a while."""
    around.launch_action()

    def act() -> None:
        try:
            for _ in range(12):
                around.is_over.wait(random.uniform(0.1, 0.6))
                around.pause_one() if random.random() < 0.6 else around.resume_all()
        finally:
            connection.close()

    around.in_background(act, is_awaited=True)


def _deliver_twice(around: Round) -> None:
    """Put messages into the queue once more."""
    for message in OrmQ.objects.all()[:5]:
        message.pk = None
        message.save()


FAULTS = [
    *(Fault(f"worker killed {stage}", _crash(stage), loses=REDIS) for stage in WORKER_STAGES),
    Fault("monitor killed", _kill_part(-2)),
    Fault("monitor killed before it saves", _crash("in the monitor")),
    Fault("pusher killed", _kill_part(-1), loses=REDIS),
    Fault("sentinel killed", _kill_sentinel, loses=REDIS),
    Fault("cluster killed", lambda around: around.world.cluster.kill_all(), loses=REDIS),
    Fault("out of memory", launching("runs out of memory", seconds=0.1)),
    Fault("killed for its memory", _die_of_memory),
    Fault("time limit", launching("done", seconds=20, timeout=1)),
    Fault("time limit ignored", lambda around: around.launch_stubborn()),
    Fault("delivered again while it runs", launching("done", seconds=4), option(retry=2), ORM),
    Fault("message twice in the queue", _deliver_twice, lanes=ORM),
    Fault("connections cut", _cut_connections, lanes=POSTGRESQL),
    Fault("database restarted", _restart_database, lanes=POSTGRESQL, loses=REDIS),
    Fault("table locked", _lock_postgresql, lanes=POSTGRESQL),
    Fault("database is locked", _lock_sqlite, lanes=SQLITE),
    Fault("disk full", _free_disk, _fill_disk, lanes=SQLITE, loses=REDIS),
    Fault("redis restarted", _restart_redis, lanes=REDIS, loses=REDIS),
    Fault("redis flushed", _flush_redis, lanes=REDIS, loses=REDIS),
    Fault("redis away at the launch", _launch_without_redis, lanes=REDIS, loses=REDIS),
    Fault("cache flushed", _flush_cache),
    Fault("clock set back by an hour", _set_clock(-1)),
    Fault("clock set forward by an hour", _set_clock(1)),
    Fault("hook raises", lambda around: around.launch(manager=work.RaisingManager())),
    Fault("hook hangs", lambda around: around.launch(manager=work.HangingManager())),
    Fault("result can't be pickled", launching("returns what can't be pickled")),
    Fault("result of 100 MB", launching("returns very much")),
    Fault("result with NUL bytes", launching("returns NUL")),
    Fault("record deleted while its task runs", _delete_record),
    Fault("user deleted while their task runs", _delete_user),
    Fault("result not saved", launching("done", "fails", q_options={"save": False})),
    Fault("result cached", launching("done", "fails", q_options={"cached": True})),
    Fault("run in the caller's process", launching("done", "fails", sync=True, seconds=0.1)),
    Fault("negative save_limit", prepare=option(save_limit=-1)),
    Fault("cleanup at any moment", _clean_up_all_the_time),
    Fault("launch in a long transaction", _launch_in_long_transaction),
    Fault("actions per object", _act_on_objects, loses=REDIS),
    Fault("paused and resumed", _pause_and_resume),
    *HOST_FAULTS,
    *DEPLOYS,
]
assert len({fault.name for fault in FAULTS}) == len(FAULTS)
