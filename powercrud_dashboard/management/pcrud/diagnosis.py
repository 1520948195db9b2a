"""What the doctor looks at. Each examination yields findings, and says what to do about them."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import django
from django.core import checks
from django.db import connections
from django.db.migrations.executor import MigrationExecutor
from django.utils import timezone

from powercrud_dashboard import __version__
from powercrud_dashboard.conf import app_settings, is_retention
from powercrud_dashboard.dashboard.formatting import precise_duration
from powercrud_dashboard.engine import health
from powercrud_dashboard.engine.launch import runs_in_caller
from powercrud_dashboard.engine.vitals import Workers, waiting_by_queue
from powercrud_dashboard.management.pcrud.console import counted
from powercrud_dashboard.management.pcrud.smoke import NOT_LAUNCHED, DeletedMeanwhile, run_test, told, why_not_launched
from powercrud_dashboard.models import ActiveTask, ConflictLock, Pause, TaskRecord
from powercrud_dashboard.models.database import coordination_db
from powercrud_dashboard.q2 import queue, schedules
from powercrud_dashboard.schedules import CLEANUP_PATH
from powercrud_dashboard.text import error_summary

OK, NOTE, PROBLEM = "ok", "note", "problem"

#: Records from which a history without a limit is worth a note.
MANY_RECORDS = 100_000
#: Days after the end of their retention for which records may wait to be deleted.
PRUNED_WITHIN = 2
#: Apps whose tables are used.
MIGRATED_APPS = ("powercrud_dashboard", "django_q")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: str
    text: str
    #: What to do about it.
    hint: str = ""


@dataclass(frozen=True)
class Context:
    """What examinations are told."""

    #: Who asks.
    actor: Any
    #: Seconds to wait for the test task of each queue; 0 for no test.
    timeout: float


Examination = Callable[[Context], Iterator[Finding]]


def versions(context: Context) -> Iterator[Finding]:
    connection = connections[coordination_db()]
    yield Finding(
        OK,
        f"powercrud_dashboard {__version__}, django-q2 {queue.version()}, Django {django.get_version()}, "
        f"Python {platform.python_version()}, {connection.display_name}",
    )


def settings(context: Context) -> Iterator[Finding]:
    """Run Django's system checks: those of this package one by one, the others as a number."""
    found = checks.run_checks(include_deployment_checks=False, databases=[coordination_db()])
    heard = [message for message in found if not message.is_silenced()]
    own = [message for message in heard if str(message.id).startswith("powercrud_dashboard.")]
    for message in own:
        # The schedule has an examination of its own.
        if message.id != "powercrud_dashboard.W008":
            level = PROBLEM if message.level >= checks.ERROR else NOTE
            yield Finding(level, f"{message.msg} ({message.id})", str(message.hint or ""))
    errors = [message for message in heard if message not in own and message.level >= checks.ERROR]
    if errors:
        hint = "Run 'manage.py check' for all of them."
        yield Finding(PROBLEM, f"Django's checks find {counted(len(errors), 'error')}: {errors[0].msg}", hint)
    if not any(message.level >= checks.WARNING for message in own) and not errors:
        yield Finding(OK, "The system checks find nothing.")
    if runs_in_caller():
        hint = "Remove ASYNC_ENABLED and Q_CLUSTER['sync'] where tasks are to run in workers."
        yield Finding(NOTE, "Tasks run in the process that launches them: no cluster is used.", hint)


def database(context: Context) -> Iterator[Finding]:
    alias = coordination_db()
    connection = connections[alias]
    connection.ensure_connection()
    executor = MigrationExecutor(connection)
    targets = [key for key in executor.loader.graph.leaf_nodes() if key[0] in MIGRATED_APPS]
    if missing := [migration for migration, _backwards in executor.migration_plan(targets)]:
        text = f"{counted(len(missing), 'migration')} not applied, the first is {missing[0]}."
        yield Finding(PROBLEM, text, f"Run 'manage.py migrate --database {alias}'.")
    else:
        yield Finding(OK, f"{connection.display_name}, database {alias!r}: all migrations are applied.")
    if connection.vendor == "sqlite":
        with connection.cursor() as cursor:
            (mode,) = cursor.execute("PRAGMA journal_mode").fetchone()
        # A database in memory has no journal, but no other process sees it either.
        if mode == "wal":
            yield Finding(OK, "SQLite uses WAL.")
        else:
            hint = 'Add "init_command": "PRAGMA journal_mode=WAL;" to its OPTIONS. It needs a local disk.'
            yield Finding(PROBLEM, f"SQLite's journal mode is {mode}: readers and writers wait for each other.", hint)


def cache(context: Context) -> Iterator[Finding]:
    name = app_settings.CACHE_NAME
    if not name:
        yield Finding(OK, "Progress is in the database alone.")
    elif not queue.is_shared_cache(name):
        hint = "Set CACHE_NAME to a cache of Redis, Memcached or the database, or to None."
        yield Finding(PROBLEM, f"The cache {name!r} of CACHE_NAME is not shared between processes.", hint)
    else:
        try:
            problem = "" if health.cache_keeps_values(name) else "does not keep values."
        except Exception as error:
            problem = f"does not work. {error_summary(error)}"
        if problem:
            hint = "Check that its server is running, and its LOCATION."
            yield Finding(PROBLEM, f"The cache {name!r} of CACHE_NAME {problem}", hint)
        else:
            yield Finding(OK, f"The cache {name!r} for progress works.")


def broker(context: Context) -> Iterator[Finding]:
    if not queue.names_a_broker():
        hint = 'Name one in Q_CLUSTER, such as "orm": "default".'
        yield Finding(NOTE, "Q_CLUSTER names no broker: django-q2 uses Redis on this host.", hint)
    try:
        queue.ask_broker()
    except Exception as error:
        hint = "Check that it is running, and its address in Q_CLUSTER."
        yield Finding(PROBLEM, f"The broker can't be reached: launches fail. {error_summary(error)}", hint)
    else:
        yield Finding(OK, "The broker answers.")


def clusters(context: Context) -> Iterator[Finding]:
    workers = Workers.now()
    waiting = waiting_by_queue()
    by_queue: dict[str, int] = {}
    for worker in workers.alive:
        by_queue[worker.cluster] = by_queue.get(worker.cluster, 0) + 1
    for name, number in sorted(by_queue.items()):
        hosts = ", ".join(sorted({worker.host for worker in workers.alive if worker.cluster == name}))
        yield Finding(OK, f"Queue {name}: {counted(number, 'worker')} on {hosts}.")
    configured = {queue.current_cluster(), *queue.cluster_settings()}
    if not runs_in_caller():
        for name in sorted((configured | set(waiting)) - set(by_queue)):
            tasks = waiting[name].tasks if name in waiting else 0
            waits = f", and {counted(tasks, 'task')} wait" + ("s" if tasks == 1 else "") if tasks else ""
            yield Finding(PROBLEM, f"Queue {name}: no worker runs{waits}.", f"Start one: {command_for(name)}")
    for worker in workers.not_replaced:
        silence = precise_duration(workers.read_at - worker.heartbeat_at)
        text = f"The worker {worker} of the queue {worker.cluster} has sent no heartbeat for {silence}."
        yield Finding(NOTE, text, "If it should run, look into the log of its qcluster.")
    for name, its in sorted(waiting.items()):
        if name in by_queue and its.oldest_wait > timedelta(hours=1):
            waited = precise_duration(its.oldest_wait)
            text = f"Queue {name}: the oldest of {counted(its.tasks, 'task')} has waited {waited}."
            yield Finding(NOTE, text, "Start more workers, or see what keeps them busy: manage.py pcrud tasks")
    for pause in Pause.objects.order_by("since"):
        note = f": {pause.note}" if pause.note else ""
        text = f"The {pause.kind} {pause.name} is paused by {pause.user_label or 'somebody'}{note}."
        option = "--queue" if pause.kind == "queue" else "--func"
        yield Finding(NOTE, text, f"Resume it: manage.py pcrud resume {option} {pause.name}")


def command_for(cluster: str) -> str:
    """Return the command that starts a cluster of this queue."""
    command = "python manage.py qcluster"
    return command if cluster == queue.main_cluster() else f"Q_CLUSTER_NAME={cluster} {command}"


def test_task(context: Context) -> Iterator[Finding]:
    """Run a real task in each queue that has a worker."""
    if not context.timeout or runs_in_caller():
        return
    paused = set(Pause.objects.filter(kind="queue").values_list("name", flat=True))
    for name in sorted(Workers.now().queues - paused):
        try:
            report = run_test(name, context.actor, context.timeout)
        except NOT_LAUNCHED as error:
            yield Finding(PROBLEM, f"Queue {name}: the test task can't be launched: {why_not_launched(error)}")
            continue
        except DeletedMeanwhile as error:
            yield Finding(PROBLEM, f"Queue {name}: {error}")
            continue
        if (stopped := report.next_step) is not None:
            text = f"Queue {name}: the test task has not passed within {context.timeout:g} s: {told(stopped)}"
            yield Finding(PROBLEM, text, str(report.advice))
        else:
            took = sum(step.milliseconds or 0 for step in report.steps)
            yield Finding(OK, f"Queue {name}: a test task took {took:.0f} ms ({report.place}).")


def clocks(context: Context) -> Iterator[Finding]:
    workers = Workers.now()
    for host, offset in sorted(workers.wrong_clocks.items()):
        where = "ahead of" if offset > timedelta() else "behind"
        text = f"The clock of {host} is {precise_duration(abs(offset))} {where} that of the database."
        yield Finding(PROBLEM, text, "Synchronise the clocks, with NTP for instance: schedules run at wrong times.")
    if not workers.wrong_clocks:
        yield Finding(OK, "The clocks agree.")


def cleanup(context: Context) -> Iterator[Finding]:
    of_cleanup = (state for state in schedules.schedule_states() if state.schedule.func == CLEANUP_PATH)
    # Others are single runs, or used up.
    states = [state for state in of_cleanup if state.can_pause or state.is_paused]
    if not states:
        text = "No schedule runs the cleanup: tasks of lost workers keep their locks, and the history grows."
        yield Finding(PROBLEM, text, "Run 'manage.py pcrud_schedule_cleanup' once.")
        return
    state = min(states, key=lambda state: state.is_paused)
    if state.is_paused:
        yield Finding(PROBLEM, "The schedule of the cleanup is paused.", "Resume it on the Schedules page.")
    elif (due := state.missed_since) is not None:
        text = f"The cleanup has been due for {precise_duration(timezone.now() - due)}."
        hint = "The scheduler of a cluster runs it: start a cluster, without 'scheduler': False in Q_CLUSTER."
        yield Finding(PROBLEM, text, hint)
    elif state.last is not None and not state.last.success:
        hint = "Run 'manage.py pcrud_cleanup_async' and see what it says."
        yield Finding(PROBLEM, "The last cleanup has failed.", hint)
    else:
        yield Finding(OK, f"The cleanup is scheduled {_how_often(state.schedule)}.")
    total, missed = schedules.count()
    if missed:
        text = f"{missed} of {counted(total, 'schedule')} should have run and have not."
        yield Finding(NOTE, text, "See the Schedules page.")


def _how_often(schedule: Any) -> str:
    """Return how often a schedule of django-q2 runs."""
    if schedule.schedule_type == schedule.MINUTES:
        return f"every {counted(schedule.minutes or 1, 'minute')}"
    if schedule.schedule_type == schedule.CRON:
        return f"by the cron expression {schedule.cron}"
    return str(schedule.get_schedule_type_display()).lower()


def tasks(context: Context) -> Iterator[Finding]:
    """Look for what only a cleanup mends."""
    if lost := ActiveTask.objects.missing().count():
        text = f"{counted(lost, 'task')} in no queue any more: the broker has lost the messages."
        yield Finding(PROBLEM, text, "The next cleanups end them; or use Run now on their pages.")
    if orphaned := ConflictLock.objects.all().orphaned().count():
        text = f"{counted(orphaned, 'lock')} without a holder."
        yield Finding(PROBLEM, text, "Run 'manage.py pcrud_cleanup_async'.")
    running, queued = ActiveTask.objects.running().count(), ActiveTask.objects.pending().count()
    failures = TaskRecord.objects.open_failures().count()
    yield Finding(OK, f"{queued} queued, {running} running, {counted(failures, 'open failure')}.")


def history(context: Context) -> Iterator[Finding]:
    if app_settings.DASHBOARD_RECORDER is None:
        yield Finding(NOTE, "No history is kept (DASHBOARD_RECORDER is None): the pages are empty.")
        return
    given = app_settings.DASHBOARD_RETENTION_DAYS.items()
    retention = {status: days for status, days in given if days is not None and is_retention(days)}
    records = TaskRecord.objects.count()
    kept = ", ".join(f"{status} {days} d" for status, days in sorted(retention.items())) or "for good"
    yield Finding(OK, f"{counted(records, 'record')}, {_size()}; kept: {kept}{_observed_are_kept()}.")
    if not retention and TaskRecord.objects.all().own().count() >= MANY_RECORDS:
        hint = 'Set DASHBOARD_RETENTION_DAYS, such as {"success": 30, "failed": 180, "cancelled": 30}.'
        yield Finding(NOTE, "Nothing limits the history.", hint)
    for status, days in sorted(retention.items()):
        if TaskRecord.objects.all().expired(status, days + PRUNED_WITHIN).exists():
            text = f"Records of the status {status} are kept for longer than the {days} days of their retention."
            yield Finding(PROBLEM, text, "Run 'manage.py pcrud_cleanup_async', and see whether its schedule runs.")


def _observed_are_kept() -> str:
    """Return for how long the tasks of plain django-q2 are kept, which have limits of their own."""
    if app_settings.DASHBOARD_TRACK != "all":
        return ""
    days, most = app_settings.DASHBOARD_TRACK_RETENTION_DAYS, app_settings.DASHBOARD_TRACK_MAX_RECORDS
    limits = [f"{days} d" if days is not None else "for good", f"at most {most:,}" if most is not None else ""]
    return f"; observed tasks {', '.join(filter(None, limits))}"


def _size() -> str:
    """Return how much room the history takes: its table with indexes, or the whole file of SQLite."""
    connection = connections[TaskRecord.objects.all().db]
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            (size,) = cursor.execute(
                "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
            ).fetchone()
            return f"the database has {size / 1_000_000:,.1f} MB"
        cursor.execute("SELECT pg_total_relation_size(%s)", [TaskRecord._meta.db_table])
        return f"their table has {cursor.fetchone()[0] / 1_000_000:,.1f} MB with its indexes"


#: In the order in which they are done: those that need less come first.
EXAMINATIONS: dict[str, Examination] = {
    "settings": settings,
    "database": database,
    "versions": versions,
    "broker": broker,
    "cache": cache,
    "clusters": clusters,
    "test": test_task,
    "clocks": clocks,
    "cleanup": cleanup,
    "tasks": tasks,
    "history": history,
}
#: Those that the others can't do without.
NEEDED = ("database",)
