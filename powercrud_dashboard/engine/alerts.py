"""Open alerts when something goes wrong, and end them when that is over.

The processes of an installation take turns, and each change is one conditional statement. So an alert is opened once,
also if two processes evaluate at the same time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from django.db import InterfaceError, OperationalError, connections
from django.db.models import Count, Q, Sum
from django.utils import timezone
from django.utils.module_loading import import_string

from powercrud_dashboard.engine import alert_messages, bounded, plain, statistics
from powercrud_dashboard.engine.alert_rules import Limits, Rules
from powercrud_dashboard.engine.launch import runs_in_caller
from powercrud_dashboard.engine.vitals import Waiting, Workers, waiting_by_queue
from powercrud_dashboard.exceptions import TaskBusy
from powercrud_dashboard.models import (
    Alert,
    AlertEvaluation,
    AlertEvent,
    AlertKind,
    AlertMessage,
    Resolution,
    TaskRecord,
    TaskStatistics,
    TaskStatus,
    WorkerProcess,
)
from powercrud_dashboard.models.database import impatient_transaction
from powercrud_dashboard.models.statistics import Span, floor
from powercrud_dashboard.q2 import queue, schedules
from powercrud_dashboard.text import MESSAGE, SHORT, clean_text

logger = logging.getLogger(__name__)

#: Seconds of waiting for SQLite's write lock after which no worker is judged: its heartbeat may have waited as well.
WAITED = 0.5


#: Characters of a host that a subject has, so that the process id is in it too.
HOST = 200

#: The share of its limit from which a number keeps an alert open, so that one that goes up and down is one alert.
STAYS_OPEN = 0.8

#: Seconds that a check of the project may take.
CHECK_TAKES = 10
#: Problems that one check may find.
FOUND_AT_MOST = 1_000

#: How long no worker may run after all have said that they stop.
DEPLOY_MAY_TAKE = timedelta(seconds=25)


@dataclass(frozen=True)
class Problem:
    """Something that is wrong now."""

    kind: AlertKind
    subject: str
    details: dict[str, Any] = field(default_factory=dict)
    #: The lost workers that it is about.
    workers: tuple[WorkerProcess, ...] = ()

    #: Whether it opens an alert; else it keeps one open only.
    may_open: bool = True

    @property
    def key(self) -> tuple[str, str]:
        """The kind and the subject, as they are stored."""
        return self.kind, clean_text(self.subject, SHORT)

    def tell_losses(self) -> bool:
        """Note that the losses of these workers are told. Return whether some were not."""
        untold = [worker.pk for worker in self.workers if not worker.is_loss_told]
        return bool(untold) and WorkerProcess.objects.filter(pk__in=untold).tell_loss()


def evaluate() -> bool:
    """Open and end alerts, if it is time. Return whether this process did that.

    Raises:
        TaskBusy: if another session has the rows locked and does not finish.
    """
    if not AlertEvaluation.objects.is_due():
        return False
    began = time.monotonic()
    with impatient_transaction():
        if not AlertEvaluation.objects.claim():
            return False
    may_judge_workers = time.monotonic() - began < WAITED
    rules = Rules()
    # Before it is judged what is wrong: an alert that another process opens meanwhile is not one to end.
    open_alerts = {(alert.kind, alert.subject): alert for alert in Alert.objects.all().open()}
    found, judged = _judge(rules, judges_workers=may_judge_workers)
    for key, problem in found.items():
        if key in open_alerts:
            _apart(problem.tell_losses)
        elif problem.may_open:
            _apart(_open, problem, rules.channels)
    for key, alert in open_alerts.items():
        # A check that the settings name no more finds nothing.
        is_unused = alert.kind == AlertKind.CHECK and alert.details["check"] not in rules.checks
        if key not in found and (is_unused or alert.details.get("check", alert.kind) in judged):
            _apart(_resolve, alert, rules.channels)
    return True


def _apart(change: Callable[..., object], *args: object) -> None:
    """Change one alert. What goes wrong with it does not stop the others, unless the database is away."""
    try:
        change(*args)
    except (TaskBusy, OperationalError, InterfaceError):
        raise
    except Exception:
        logger.exception("An alert can't be changed now")


def look_after_alerts() -> None:
    """Evaluate, delete the alerts that have ended long ago, and the messages to whom the settings name no more."""
    evaluate()
    with impatient_transaction():
        Alert.objects.all().outdated().delete()
        # Without any channel no thread sends, and forgets, them.
        AlertMessage.objects.exclude(channel__in=Rules().channels).delete()


class _InBackground:
    """Something that a thread of a web process does when it is asked to, unless one is at it."""

    def __init__(self, name: str, do: Callable[[], object]) -> None:
        self._name = name
        self._do = do
        self._is_running = threading.Lock()

    def start(self) -> None:
        if not self._is_running.acquire(blocking=False):
            return
        try:
            threading.Thread(target=self._run, name=f"powercrud-dashboard-{self._name}", daemon=True).start()
        except RuntimeError:
            # The system lets this process have no more threads for now.
            self._is_running.release()
            logger.warning("The thread %s can't be started", self._name, exc_info=True)

    def _run(self) -> None:
        try:
            self._do()
        except Exception:
            # The database may be away for a while.
            logger.warning("The thread %s failed", self._name, exc_info=True)
        finally:
            connections.close_all()
            self._is_running.release()


#: A mail server that does not answer holds up no evaluation.
_sending = _InBackground("alert-messages", alert_messages.send_due)


def _evaluate_and_send() -> None:
    has_turn = evaluate()
    _sending.start()
    if has_turn:
        # Who has the turn counts too: a health address that is asked often leaves the workers few turns.
        statistics.count_ended()


_evaluating = _InBackground("alerts", _evaluate_and_send)


def evaluate_in_background() -> None:
    """Evaluate and count in a thread, and send what is due in another one: the caller waits for neither."""
    _evaluating.start()


def _judge(rules: Rules, *, judges_workers: bool) -> tuple[dict[tuple[str, str], Problem], set[str]]:
    """Return what is wrong, and the kinds of alerts, and the checks, that could be judged."""
    parts: list[tuple[Callable[[Rules], Iterable[Problem]], set[str]]] = [
        (_of_queues, {AlertKind.OLDEST_WAIT, AlertKind.QUEUE_DEPTH, AlertKind.NO_WORKERS, AlertKind.WORKERS_LOST}),
        (_of_failures, {AlertKind.FAILURE_RATE}),
        (_of_schedules, {AlertKind.MISSED_SCHEDULE}),
    ]
    found: dict[tuple[str, str], Problem] = {}
    judged: set[str] = set()
    for part, kinds in parts:
        try:
            found.update({problem.key: problem for problem in part(rules)})
        except Exception:
            # django-q2's tables may be in another database, for instance, which is away.
            logger.exception("Alerts of the kinds %s can't be judged now", ", ".join(sorted(kinds)))
        else:
            judged |= kinds
    for path in rules.checks:
        try:
            found.update({problem.key: problem for problem in _of_check(path)})
        except Exception:
            logger.exception("The check %s failed: its alerts can't be judged now", path)
        else:
            judged.add(path)
    if not judges_workers:
        of_workers = {AlertKind.NO_WORKERS, AlertKind.WORKERS_LOST}
        return {key: problem for key, problem in found.items() if problem.kind not in of_workers}, judged - of_workers
    return found, judged


def _open(problem: Problem, channels: list[str]) -> None:
    with impatient_transaction():
        if not problem.tell_losses() and problem.kind == AlertKind.WORKERS_LOST:
            return
        alert = Alert.objects.open_one(*problem.key, problem.details)
        if alert is None:
            return
        AlertMessage.objects.add(alert.pk, AlertEvent.OPENED, channels)
    logger.warning("Alert: %s", alert_messages.text_of(alert))


def _resolve(alert: Alert, channels: list[str]) -> None:
    with impatient_transaction():
        if not Alert.objects.filter(pk=alert.pk).resolve():
            return
        AlertMessage.objects.add(alert.pk, AlertEvent.RESOLVED, channels)
    logger.info("Alert resolved: %s", alert_messages.text_of(alert))


# What is wrong


def _of_queues(rules: Rules) -> Iterator[Problem]:
    waiting, workers = waiting_by_queue(), Workers.now()
    for name, its in waiting.items():
        seconds = its.oldest_wait.total_seconds()
        wait = rules.limits(AlertKind.OLDEST_WAIT, "queues", name)
        if wait is not None and seconds >= wait["seconds"] * STAYS_OPEN:
            yield Problem(AlertKind.OLDEST_WAIT, name, {"seconds": int(seconds)}, may_open=seconds >= wait["seconds"])
        depth = rules.limits(AlertKind.QUEUE_DEPTH, "queues", name)
        if depth is not None and its.tasks >= depth["tasks"] * STAYS_OPEN:
            yield Problem(AlertKind.QUEUE_DEPTH, name, {"tasks": its.tasks}, may_open=its.tasks >= depth["tasks"])
    if runs_in_caller():
        return
    if rules.limits(AlertKind.NO_WORKERS) is not None:
        yield from _without_workers(waiting, workers)
    if rules.limits(AlertKind.WORKERS_LOST) is not None:
        yield from _lost_workers(workers)


def _of_check(path: str) -> list[Problem]:
    """Return what a callable of the project finds: pairs of what it is about and a sentence.

    Raises:
        Exception: what it raises, and a ``TimeoutError`` if it does not finish in time.
    """
    name = f"alert-check-{path}"
    if name in bounded.late():
        raise TimeoutError("It has not finished since an earlier time")
    found: list[Problem] = []

    def check() -> None:
        for subject, text in islice(import_string(path)(), FOUND_AT_MOST):
            details = {"check": path, "about": clean_text(subject, SHORT), "text": clean_text(text, MESSAGE)}
            found.append(Problem(AlertKind.CHECK, f"{path} {subject}".strip(), details))

    error = bounded.run_within(CHECK_TAKES, name, check)
    if error is not None:
        raise error if isinstance(error, Exception) else RuntimeError(f"It has raised {error!r}") from error
    return found


def _without_workers(waiting: dict[str, Waiting], workers: Workers) -> Iterator[Problem]:
    """Nothing runs, or tasks have waited for a while in a queue for which nothing does.

    A deploy stops all workers, which say so, and starts others after a few seconds: that is no alert.
    """
    kind = AlertKind.NO_WORKERS
    if workers.alive:
        AlertEvaluation.objects.with_workers()
        missed = (name for name in set(waiting) - workers.queues if waiting[name].oldest_wait >= DEPLOY_MAY_TAKE)
        yield from (Problem(kind, name) for name in missed)
        return
    absent_for = AlertEvaluation.objects.without_workers()
    is_lasting = absent_for is not None and absent_for >= DEPLOY_MAY_TAKE
    # A heartbeat in the future is from before the clock was set back: its worker may be about to send the next one.
    is_loss = not all(worker.is_loss_told or worker.heartbeat_at > workers.read_at for worker in workers.gone)
    # If all are lost, that is one alert.
    yield Problem(kind, "", workers=tuple(workers.gone), may_open=is_lasting or is_loss)


def _lost_workers(workers: Workers) -> Iterator[Problem]:
    missing = {worker.pk for worker in workers.not_replaced}
    for worker in workers.lost:
        # Without any worker alive it is not one that is lost.
        if worker.pk in missing if worker.is_loss_told else workers.alive:
            details = {"host": worker.host, "pid": worker.pid, "queue": worker.cluster, "identity": worker.pk}
            # Each loss is told once.
            may_open = not worker.is_loss_told
            yield Problem(
                AlertKind.WORKERS_LOST, f"{clean_text(worker.host, HOST)} {worker.pid}", details, (worker,), may_open
            )


def _of_failures(rules: Rules) -> Iterator[Problem]:
    """Functions, and queues that have limits of their own, of whose ended tasks too many failed for good.

    A task that succeeded in a later attempt has not failed. A failure that is settled by a later try, or dismissed, is
    none either.
    """
    kind = AlertKind.FAILURE_RATE
    named = [rules.limits(kind, scope, name) for scope in ("functions", "queues") for name in rules.names(kind, scope)]
    windows = {int(limits["minutes"]) for limits in (rules.limits(kind), *named) if limits is not None}
    if not windows:
        return
    now = timezone.now()
    completed = Q(status=TaskStatus.SUCCESS)
    failed = Q(status=TaskStatus.FAILED, resolution=Resolution.OPEN, superseded=False)
    ended = TaskRecord.objects.filter(completed | failed, finished_at__gt=now - timedelta(minutes=max(windows)))
    counts: dict[str, Any] = {}
    for minutes in windows:
        within = Q(finished_at__gt=now - timedelta(minutes=minutes))
        counts[f"ended_{minutes}"] = Count("pk", filter=within)
        counts[f"failed_{minutes}"] = Count("pk", filter=within & failed)
    groups: Iterable[Any] = ended.order_by().values("func", "cluster").annotate(**counts)
    rows: dict[tuple[str, str], Any] = {(row["func"], row["cluster"]): row for row in groups}
    if plain.takes_samples():
        for minutes in windows:
            _add_unrecorded(rows, minutes, now)
    by_function: dict[str, list[dict[str, Any]]] = {}
    for (func, _cluster), row in rows.items():
        by_function.setdefault(func, []).append(row)
    for func, of_function in by_function.items():
        yield from _too_many(rules.limits(kind, "functions", func), func, {"function": func}, of_function)
    for name in rules.names(kind, "queues"):
        limits = rules.limits(kind, "queues", name)
        of_queue = [row for (_func, cluster), row in rows.items() if (cluster or queue.main_cluster()) == name]
        yield from _too_many(limits, f"queue:{name}", {"queue": name}, of_queue)


def _add_unrecorded(rows: dict[tuple[str, str], Any], minutes: int, now: datetime) -> None:
    """Take the completed tasks of sampled functions from the statistics: only their failures are all recorded."""
    # Older rows of the statistics are whole hours.
    whole = Span.HOUR if timedelta(minutes=minutes) > timedelta(hours=1) else Span.MINUTE
    since = TaskStatistics.objects.all().since(floor(now - timedelta(minutes=minutes), whole))
    for func, cluster, completed in since.values_list("func", "cluster").annotate(Sum("completed")):
        if plain.is_sampled(func):
            row = rows.setdefault((func, cluster), {})
            failed = row.setdefault(f"failed_{minutes}", 0)
            row[f"ended_{minutes}"] = max(row.get(f"ended_{minutes}", 0), failed + completed)


def _too_many(
    limits: Limits | None, subject: str, details: dict[str, Any], rows: list[dict[str, Any]]
) -> Iterator[Problem]:
    if limits is None:
        return
    minutes = int(limits["minutes"])
    ended, failed = (sum(row.get(f"{name}_{minutes}", 0) for row in rows) for name in ("ended", "failed"))
    enough, many = limits["at_least"], limits["share"] * ended
    if ended >= enough * STAYS_OPEN and failed >= many * STAYS_OPEN:
        figures = {"failed": failed, "ended": ended, "minutes": minutes}
        may_open = ended >= enough and failed >= many
        yield Problem(AlertKind.FAILURE_RATE, subject, {**details, **figures}, may_open=may_open)


def _of_schedules(rules: Rules) -> Iterator[Problem]:
    now = timezone.now()
    kind = AlertKind.MISSED_SCHEDULE
    if rules.limits(kind) is None and not rules.names(kind, "schedules"):
        return
    for name, due in schedules.missed():
        limits = rules.limits(kind, "schedules", name)
        if limits is not None and now - due >= timedelta(seconds=limits["seconds"]):
            yield Problem(kind, name, {"due_at": due.isoformat()})
