"""Threads in each worker process that do what is due, whether the worker is busy or not: retries, mails, alerts."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable

from django.db import connections

from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.engine import alert_messages, alerts, mails, retry, statistics
from powercrud_dashboard.engine.alert_rules import Rules

logger = logging.getLogger(__name__)

#: Seconds between two passes of one worker, up to a quarter more or less, so that the workers of a cluster alternate.
INTERVAL = 4.0


#: The same between two looks at the alerts, which the whole installation evaluates twice a minute at most.
ALERT_INTERVAL = 10.0


def _run(do: Callable[[], object], failure: str, interval: float) -> None:
    while True:
        time.sleep(interval * random.uniform(0.75, 1.25))  # noqa: S311 - no secret depends on it
        try:
            do()
        except BaseException:
            # The database may be away for a while; the next pass tries again. A project's manager may raise anything,
            # and without this thread no retry would be queued by this worker.
            logger.warning(failure, exc_info=True)
        finally:
            connections.close_all()


def start() -> None:
    """Start the threads. A mail server that does not answer holds up no retry."""
    _start("due", retry.send_due, "Due retries could not be queued now")
    _start("alerts", _watch, "Alerts could not be evaluated now", ALERT_INTERVAL)
    if Rules().channels:
        _start("alert-messages", alert_messages.send_due, "Alerts could not be told now", ALERT_INTERVAL)
    if app_settings.DASHBOARD_MAIL_AFTER is not None:
        _start("mails", mails.send_due, "Due mails could not be sent now")


def _watch() -> None:
    if alerts.evaluate():
        # Whoever has the turn also keeps the figures up to date.
        statistics.count_ended()


def _start(name: str, do: Callable[[], object], failure: str, interval: float = INTERVAL) -> None:
    thread_name = f"powercrud-dashboard-{name}"
    threading.Thread(target=_run, args=(do, failure, interval), name=thread_name, daemon=True).start()
