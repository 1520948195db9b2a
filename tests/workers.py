"""Workers without a cluster: this process, and processes on other hosts as their rows show them."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from itertools import count

from django.db import DEFAULT_DB_ALIAS, OperationalError, connection, connections
from django.utils import timezone
from django_q.models import OrmQ

from powercrud_dashboard.models import ActiveTask, WorkerProcess


def claimed_elsewhere(task_name: str, *, host: str = "elsewhere", pid: int = 1) -> WorkerProcess:
    """Have a process on another host claim a queued task; return the process."""
    worker = WorkerProcess.objects.create(identity=uuid.uuid4().hex, host=host, pid=pid)
    assert ActiveTask.objects.claim(task_name, worker=worker.pk)
    return worker


def silence(seconds: float = 3600, **which: object) -> None:
    """Let the last heartbeat of these processes lie so many seconds in the past, or in the future if less than 0."""
    WorkerProcess.objects.filter(**which).update(heartbeat_at=timezone.now() - timedelta(seconds=seconds))


def queued_call() -> Callable[[], object]:
    """Take the queued task, as a worker does, and return the call that runs it."""
    message = OrmQ.objects.get().task
    return partial(message["func"], *message["args"], **message["kwargs"])


def deliver() -> object:
    """Run the queued task in this process, as a worker does."""
    return queued_call()()


def run_queue(*, at_most: int | None = None) -> None:
    """Run what is queued, and what that queues, one after the other. Errors of tasks are recorded."""
    ran = 0
    while ran != at_most and (queued := OrmQ.objects.order_by("pk").first()) is not None:
        ran += 1
        queued.delete()
        message = queued.task
        with suppress(Exception):
            message["func"](*message["args"], **message["kwargs"])


@contextmanager
def database_refuses(beginning: str, times: int, *, after: int = 0, using: str = DEFAULT_DB_ALIAS) -> Iterator[None]:
    """Let so many statements that begin like this fail as when the connection is lost, the first or some later ones."""
    statements = count(-after)

    def execute(execute, sql, params, many, context):
        if sql.startswith(beginning) and 0 <= next(statements) < times:
            raise OperationalError("the server closed the connection")
        return execute(sql, params, many, context)

    with connections[using].execute_wrapper(execute):
        yield


@contextmanager
def meanwhile(act: Callable[[], object], *, before: str = "", after: str = "") -> Iterator[None]:
    """Call ``act`` once, right before or after the first statement that begins like this."""
    waiting = [act]

    def act_at(beginning: str, sql: str) -> None:
        if beginning and waiting and sql.startswith(beginning):
            waiting.pop()()

    def execute(execute, sql, params, many, context):
        act_at(before, sql)
        answer = execute(sql, params, many, context)
        act_at(after, sql)
        return answer

    with connection.execute_wrapper(execute):
        yield
    assert not waiting, f"no statement began with {before or after}"
