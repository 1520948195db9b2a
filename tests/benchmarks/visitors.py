"""People who have the task list open, against a real web server: how many it takes before they notice."""

from __future__ import annotations

import http.client
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

from tests.benchmarks.clock import Timing, percentile
from tests.benchmarks.parts import LIST, WORK, line
from tests.services import wait_until

#: Seconds that the slowest one in twenty waits at most.
SOON = 0.3
INTERVAL = 2.0
#: Seconds, once everybody has the page.
WATCHED_FOR = 22.0
#: Seconds between two tasks that end, which have every page made anew.
NEWS_EVERY = 10.0
#: Seconds after which a page is made anew even though nothing has happened.
ANEW_AFTER = 60.0


def visitors(crowds: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The wait for a refresh every two seconds, from gunicorn with two workers.

    Ever smaller crowds are tried until it is short enough. News only make it longer.
    """
    crowds = list(crowds)
    for what, has_news in (("with nothing new", False), (f"as a task ends every {NEWS_EVERY:.0f} s", True)):
        for crowd in crowds:
            with _server() as port:
                waits = _watch(port, crowd, has_news=has_news)
            worst = percentile(waits, 0.95)
            timings = {"95th percentile": Timing(worst, min(waits), max(waits), len(waits))}
            yield line(f"{crowd} people refresh every {INTERVAL:.0f} s {what}", "ms", timings)
            if worst < SOON:
                crowds = crowds[crowds.index(crowd) :]
                break


@contextmanager
def _server() -> Iterator[int]:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "gunicorn", "--workers", "2", "--bind", f"127.0.0.1:{port}"]
    command += ["--log-level", "critical", "--backlog", "512", "django.core.wsgi:get_wsgi_application()"]
    # As a site with many visitors is set.
    process = subprocess.Popen(command, env={**os.environ, "PCRUD_BENCH_CONN_MAX_AGE": "60"})
    try:
        wait_until(lambda: _answers(port), "the web server answers")
        yield port
    finally:
        process.terminate()
        process.wait(30)


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


class Visitor(threading.Thread):
    """One person's browser with the list open; who has to wait asks less often, as htmx does."""

    def __init__(self, port: int, session: str, all_have_it: threading.Barrier) -> None:
        super().__init__(daemon=True)
        self.waits: list[float] = []
        self.went_well = False
        self._port, self._all_have_it = port, all_have_it
        self._cookie = f"sessionid={session}"
        self._state = ""

    def run(self) -> None:
        self._get({})
        # People don't all come at once: the crowd at the door is no part of it.
        self._all_have_it.wait()
        until = time.perf_counter() + WATCHED_FOR
        time.sleep(random.uniform(0, INTERVAL))
        while (due := time.perf_counter() + INTERVAL) < until:
            state = "" if random.random() < INTERVAL / ANEW_AFTER else self._state
            start = time.perf_counter()
            self._get({"HX-Request": "true", "X-Pcrud-State": state})
            self.waits.append(time.perf_counter() - start)
            time.sleep(max(0.0, due - time.perf_counter()))
        self.went_well = True

    def _get(self, headers: dict[str, str]) -> None:
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)) as connection:
            connection.request("GET", LIST, headers={"Cookie": self._cookie, **headers})
            answer = connection.getresponse()
            page = answer.read().decode()
        assert answer.status in (200, 204), answer.status
        if found := re.search(r'data-pcrud-state="([^"]*)"', page):
            self._state = found[1]


def _watch(port: int, crowd: int, *, has_news: bool) -> list[float]:
    """Return the seconds of each refresh."""
    all_have_it = threading.Barrier(crowd + 1, timeout=120)
    people = [Visitor(port, session, all_have_it) for session in _sessions(crowd)]
    for person in people:
        person.start()
    all_have_it.wait()
    if has_news:
        _make_news(time.perf_counter() + WATCHED_FOR)
    for person in people:
        person.join()
    assert all(person.went_well and person.waits for person in people), "everybody got every answer"
    return [wait for person in people for wait in person.waits]


def _sessions(count: int) -> list[str]:
    from django.contrib.auth.models import User
    from django.test import Client

    user = User.objects.get()
    clients = [Client() for _ in range(count)]
    for client in clients:
        client.force_login(user)
    return [client.cookies["sessionid"].value for client in clients]


def _make_news(until: float) -> None:
    from powercrud_dashboard.dashboard_manager import DashboardAsyncManager

    while time.perf_counter() + NEWS_EVERY < until:
        time.sleep(NEWS_EVERY)
        DashboardAsyncManager().launch_async_task(f"{WORK}.nothing", sync=True)
