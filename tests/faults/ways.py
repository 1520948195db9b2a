"""What task functions do beside their work: lock more objects, fork, start programs and threads."""

from __future__ import annotations

import contextvars
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from django.db import transaction

from powercrud_dashboard.async_context import get_current_task, register_descendant_conflicts
from tests.faults.ledger import Ledger

#: Seconds between two entries of a run in the ledger.
TICK = 0.03

#: Seconds within which a forked child must have ended; less than the time limit of a task.
CHILD_ENDS_WITHIN = 4.0

MODEL = "faults.object"


class _RolledBack(Exception):
    """Raised by a task to undo a transaction of its own."""


def lock_more(book: Ledger, objects: list[str], others: list[str]) -> list[str]:
    """Lock another object inside a transaction that stays open for a while; return what is held after it."""
    more: list[str] = []
    try:
        with transaction.atomic():
            if register_descendant_conflicts(MODEL, [wanted := random.choice(others)]):
                more = [wanted]
            tick_for(random.uniform(0.3, 2.0), book, [*objects, *more])
            if random.random() < 0.3:
                raise _RolledBack
    except _RolledBack:
        more = []
    return [*objects, *more]


def fork(book: Ledger, objects: list[str], others: list[str]) -> list[str]:
    """Fork a child that exits, in either way in which one does."""
    child = os.fork()
    if child == 0:
        if random.random() < 0.5:
            os._exit(0)
        sys.exit(0)
    deadline = time.monotonic() + CHILD_ENDS_WITHIN
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        book.tick(objects)
        if time.monotonic() > deadline:
            book.note("wrong", text=f"a child that was forked still runs {CHILD_ENDS_WITHIN} s after its exit")
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            break
        time.sleep(TICK)
    return objects


def start_programs(book: Ledger, objects: list[str], others: list[str]) -> list[str]:
    """Start a program that ends, and one that a SIGTERM must end."""
    subprocess.run(["true"], check=True)
    ended = subprocess.run(["sh", "-c", "kill -TERM $$; exit 3"], check=False)
    if ended.returncode != -signal.SIGTERM:
        book.note("wrong", text=f"a SIGTERM did not end a program that a task had started ({ended.returncode})")
    return objects


def start_threads(book: Ledger, objects: list[str], others: list[str]) -> list[str]:
    """Start threads that report the progress of the task that they belong to."""

    def report(number: int) -> None:
        for _ in range(5):
            book.tick(objects)
            if (task := get_current_task()) is None:
                book.note("wrong", text="a thread of a task has no current task")
                return
            task.update_progress(f"thread {number} is here")
            time.sleep(TICK)

    threads = [
        threading.Thread(target=contextvars.copy_context().run, args=(_quietly, report, number)) for number in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return objects


def _quietly(report: Callable[[int], None], number: int) -> None:
    """Leave it to the task's own thread to stop with an error."""
    try:
        report(number)
    except BaseException:
        return


def tick_for(seconds: float, book: Ledger, objects: list[str]) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(TICK)
        book.tick(objects)


WAYS = {"locks more": lock_more, "forks": fork, "starts programs": start_programs, "starts threads": start_threads}
