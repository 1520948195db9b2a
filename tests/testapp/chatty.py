"""Task functions that log and print."""

from __future__ import annotations

import contextvars
import logging
import os
import sys
import threading
import time
from pathlib import Path

from django.db import connection

from powercrud_dashboard.async_context import get_current_task

logger = logging.getLogger(__name__)
#: As many projects configure their loggers: what they log does not come to the root logger.
own = logging.getLogger("chatty.own")
own.propagate = False


def log_in_levels() -> None:
    logger.debug("of no interest")
    logger.info("invoice %s sent", 12)
    own.warning("a warning of its own")
    get_current_task().log("Sent.", "success")
    try:
        raise LookupError("no such invoice")
    except LookupError:
        logger.exception("invoice %s failed", 13)


def log_and_fail() -> None:
    logger.info("about to fail")
    raise ValueError("it broke")


def log_many(count: int, text: str = "line") -> None:
    for number in range(count):
        logger.info("%s %s", text, number)


def log_nothing() -> None:
    pass


def log_oddly() -> None:
    logger.info("\x1b[31mred\x1b[0m\x07 and \x00 more")
    logger.info("%d pieces", "no number")
    logger.info("x" * 50_000)


class Talkative:
    def __str__(self) -> str:
        logger.info("I am being printed")
        return "an object"


def log_while_logging() -> None:
    logger.info("%s", Talkative())


def log_in_threads() -> None:
    context = contextvars.copy_context()
    for thread in (
        threading.Thread(target=context.run, args=(logger.info, "from a thread of the task")),
        threading.Thread(target=logger.info, args=("from a thread of somebody",)),
    ):
        thread.start()
        thread.join()


def log_queries() -> None:
    logger.info("before")
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    get_current_task().update_progress("half", current=1, total=2)
    logger.info("after")


def print_lines() -> None:
    print("first", "line")
    sys.stdout.write("10 %\r20 %\r")
    sys.stderr.write("to the other stream\n")
    print("without an end", end="")


def log_until(path: str) -> None:
    """Log a line every few milliseconds until there is a file at this path."""
    Path(f"{path}.started-{os.getpid()}").touch()
    number = 0
    while not Path(path).exists():
        logger.info("step %s", number)
        number += 1
        time.sleep(0.02)
    logger.warning("the last line")
