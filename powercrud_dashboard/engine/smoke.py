"""Test a cluster with a real task: how far it comes, how long each step takes, and what to do where it stops."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

from django.db.models import QuerySet
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _
from django.utils.translation import gettext_noop

from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.engine import lifecycle, pruning, registry
from powercrud_dashboard.engine.launch import runs_in_caller
from powercrud_dashboard.engine.processes import max_heartbeat_age
from powercrud_dashboard.exceptions import EnqueueError
from powercrud_dashboard.models import ActiveTask, TaskRecord, TaskStatus, WorkerProcess
from powercrud_dashboard.models.coordination import ActiveTaskState
from powercrud_dashboard.models.database import database_now
from powercrud_dashboard.models.history import TEST_GROUP
from powercrud_dashboard.models.pausing import Pause
from powercrud_dashboard.q2 import messages, queue
from powercrud_dashboard.text import SHORT, clean_text, lazy_text

FUNC = "powercrud_dashboard.engine.smoke.report_from_worker"
LABEL = gettext_noop("Test of the cluster")

#: How long a step may take before it is said why it may not come to its end.
USUAL = timedelta(seconds=3)

#: How long nobody else's test deletes one: somebody may look at it.
LOOKED_AT = timedelta(minutes=2)

LAUNCHED, TAKEN, RAN, RECORDED, SAVED = "launched", "taken", "ran", "recorded", "saved"
STEPS = {
    LAUNCHED: _("Launched: recorded, and handed to the broker"),
    TAKEN: _("Taken by a worker of the cluster"),
    RAN: _("Run by the worker"),
    RECORDED: _("Its end is recorded"),
    SAVED: _("Its result is saved by django-q2"),
}


class Launcher(Protocol):
    """The manager that launches the test, as any other task."""

    def launch_async_task(self, func: str, **options: Any) -> str: ...


class NotTestable(Exception):
    """No cluster can be tested, as no task would go through one or nothing would be recorded."""


@dataclass(frozen=True)
class Step:
    name: str
    is_done: bool
    #: How long it has taken; None if it is not done, or that is not known.
    took: timedelta | None = None

    @property
    def label(self) -> str | Promise:
        return STEPS[self.name]

    @property
    def milliseconds(self) -> float | None:
        return None if self.took is None else round(self.took.total_seconds() * 1_000, 1)


@dataclass(frozen=True)
class Report:
    """How far a test has come."""

    cluster: str
    steps: list[Step]
    #: Whether nothing more will happen by itself.
    has_ended: bool
    #: Since when the step has been waited for that is not done.
    waits: timedelta
    #: Where it was run; "" as long as that is not known.
    place: str = ""
    #: Why it does not go on, and what to do; "" as long as there is no reason to ask.
    advice: str | Promise = ""

    @property
    def has_passed(self) -> bool:
        return all(step.is_done for step in self.steps)

    @property
    def next_step(self) -> Step | None:
        """The step that is not done yet."""
        return next((step for step in self.steps if not step.is_done), None)


def report_from_worker() -> dict[str, Any]:
    """Return where this runs, and when by the database's clock. This is the function of the test."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "cluster": queue.current_cluster(),
        "at": database_now().isoformat(),
    }


def start(manager: Launcher, cluster: str, actor: Any) -> str:
    """Launch a test in this queue ("" for the default one) and return the task's name. Old tests are deleted.

    Raises:
        NotTestable: if tasks run in this process, or no history is kept.
        EnqueueError: if the broker does not take it.
    """
    if runs_in_caller():
        raise NotTestable(
            _("Tasks run in the process that launches them, as ASYNC_ENABLED is False or Q_CLUSTER has “sync”.")
        )
    if app_settings.DASHBOARD_RECORDER is None:
        raise NotTestable(_("DASHBOARD_RECORDER is None: without a history nothing tells how far a test comes."))
    old = TaskRecord.objects.tests_of_the_cluster().filter(created_at__lt=database_now() - LOOKED_AT)
    for name in old.values_list("task_name", flat=True):
        forget(name)
    # A name, not the user: nobody is notified of it.
    who = clean_text(actor, SHORT)
    options = {"save": True, "cached": False}
    try:
        return manager.launch_async_task(
            FUNC, label=LABEL, group=TEST_GROUP, cluster=cluster or None, user=who, q_options=options
        )
    except EnqueueError as error:
        # It is told now, and is no failure that somebody has to look at later.
        forget(error.task_name)
        raise


def forget(task_name: str) -> None:
    """Delete a test with all that it has left; one that has not ended is cancelled.

    Raises:
        TaskBusy: if another session keeps it locked in the database and does not finish.
    """
    active = ActiveTask.objects.tasks().filter(task_name=task_name).first()
    if active is not None:
        lifecycle.end_from_outside(registry.manager_of(active), active, "cancel")
    pruning.delete_records(list(TaskRecord.objects.filter(task_name=task_name).values_list("pk", flat=True)))
    queue.forget_finished(task_name)


def report(record: TaskRecord, launch_took: timedelta | None = None) -> Report:
    """Return how far the test of this record has come.

    Args:
        record: the record, as it is now.
        launch_took: how long its launch has taken, which only its launcher knows.
    """
    now = database_now()
    active = ActiveTask.objects.tasks().select_related("worker").filter(task_name=record.task_name).first()
    # A worker's claim is recorded a little later.
    is_claimed = active is not None and active.state == ActiveTaskState.IN_PROGRESS
    started_at = active.started_at if active is not None and is_claimed else record.started_at
    has_run = record.status == TaskStatus.SUCCESS
    told = record.result if has_run and isinstance(record.result, dict) else {}
    ran_at = _moment(told.get("at"))
    saved = queue.finished_task(record.task_name) is not None
    steps = [
        Step(LAUNCHED, True, launch_took),
        Step(TAKEN, started_at is not None, _between(record.created_at, started_at)),
        Step(RAN, has_run, _between(started_at, ran_at)),
        Step(RECORDED, has_run, _between(ran_at, record.finished_at)),
        Step(SAVED, saved),
    ]
    done_at = record.finished_at or started_at or record.created_at
    waits = max(now - done_at, timedelta())
    has_passed = has_run and saved
    is_slow = waits > USUAL
    advice: str | Promise = ""
    if record.is_finished and not has_run:
        advice = _why_ended(record)
    elif not has_passed and is_slow:
        advice = _why_not_saved() if has_run else _why_not_run(active) if active else _why_unknown()
    place = lazy_text(_("process %(pid)s on %(host)s"), pid=told["pid"], host=told["host"]) if told else ""
    cluster = record.cluster or queue.main_cluster()
    return Report(cluster, steps, has_passed or (record.is_finished and not has_run), waits, str(place), advice)


def _moment(text: Any) -> datetime | None:
    return datetime.fromisoformat(text) if isinstance(text, str) else None


def _between(start: datetime | None, end: datetime | None) -> timedelta | None:
    return None if start is None or end is None else max(end - start, timedelta())


# Why it does not go on


def _why_ended(record: TaskRecord) -> str | Promise:
    if record.status == TaskStatus.CANCELLED:
        return _("Somebody has cancelled it.")
    return lazy_text(_("It has failed: %(error)s. Its page has the traceback."), error=record.error_line)


def _why_not_saved() -> str | Promise:
    return _(
        "django-q2's monitor process has not saved the result. It may have ended, wait for its database, or hang in "
        "somebody's hook: look into the log of qcluster, and start the cluster again."
    )


def _why_unknown() -> str | Promise:
    return _("The task is not there any more, but its end is not recorded. Run pcrud_cleanup_async.")


def _why_not_run(active: ActiveTask) -> str | Promise:
    if active.state == ActiveTaskState.IN_PROGRESS:
        worker = active.worker
        return lazy_text(
            _(
                "The worker has begun it and does not end it: process %(pid)s on %(host)s. It may be frozen, or wait "
                "for its database."
            ),
            pid=worker.pid if worker else "?",
            host=worker.host if worker else "?",
        )
    cluster = active.cluster or queue.main_cluster()
    if active.held_by or Pause.objects.all().applying_to(cluster, FUNC).exists():
        return lazy_text(_("The queue “%(queue)s” is paused. Resume it."), queue=cluster)
    workers = WorkerProcess.objects.alive_workers(max_heartbeat_age())
    of_queue = workers.filter(cluster=cluster)
    try:
        is_waiting = _waits_in_queue(active, cluster)
    except Exception:
        # It was there for the launch.
        return _("The broker does not answer any more. Check that it is running.")
    if not of_queue.exists():
        return _why_no_worker(cluster, sorted(set(workers.values_list("cluster", flat=True))), is_waiting)
    is_idle = _has_idle_worker(of_queue)
    if is_waiting is False and is_idle:
        return _(
            "A cluster has taken the message, but none of its workers has begun the task: they may use another "
            "database. Compare DATABASES here and there."
        )
    if is_idle:
        return _(
            "Workers of this queue are idle and do not take the message: their broker may be another one. Compare "
            "Q_CLUSTER here and there, and look into the log of qcluster."
        )
    return _("All workers of this queue are busy. The test runs when one of them is free.")


def _has_idle_worker(workers: QuerySet[WorkerProcess]) -> bool:
    """Return whether one of these workers has had nothing to do for a while. Between two tasks none has."""
    since = database_now() - USUAL
    running = ActiveTask.objects.running().exclude(worker=None).values("worker")
    lately = TaskRecord.objects.filter(finished_at__gt=since).values_list("worker_host", "worker_pid").distinct()
    idle = set(workers.filter(started_at__lte=since).exclude(pk__in=running).values_list("host", "pid"))
    return not idle <= set(lately)


def _waits_in_queue(active: ActiveTask, cluster: str) -> bool | None:
    """Return whether no cluster has taken the message; None if the broker does not tell."""
    found = messages.open_queue(cluster)
    if found is None:
        return None
    message = found.of_task(active.task_name, active.queue_receipt)
    return message is not None and not message.is_taken


def _why_no_worker(cluster: str, others: list[str], is_waiting: bool | None) -> str | Promise:
    if is_waiting is False:
        return _(
            "A cluster has taken the message, but no worker of it is known here: it uses another database, or other "
            "settings without powercrud_dashboard in INSTALLED_APPS. Compare DATABASES and INSTALLED_APPS here and "
            "there."
        )
    command = "python manage.py qcluster"
    if cluster != queue.main_cluster():
        command = f"Q_CLUSTER_NAME={cluster} {command}"
    if others:
        text = _("The workers that run serve other queues (%(others)s). Start a cluster for this one: %(command)s")
        return lazy_text(text, others=", ".join(others), command=command)
    if queue.clusters_are_listed() and queue.clusters():
        return _(
            "A cluster runs, but its workers are not known here: it uses another database, or other settings without "
            "powercrud_dashboard in INSTALLED_APPS. Compare DATABASES and INSTALLED_APPS here and there."
        )
    return lazy_text(_("No cluster is running. Start one: %(command)s"), command=command)
