"""A set-up of two web hosts and two worker hosts: what it consists of, and what people do with it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from django.conf import settings
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connection

from powercrud_dashboard.models import ActiveTask, TaskEvent, TaskRecord
from tests import services
from tests.faults import hosts
from tests.faults.cluster import Cluster
from tests.faults.hosts import Host
from tests.faults.shop.tasks import hold
from tests.faults.web import Person, WebServer
from tests.testapp.models import Project

WEB_HOSTS = ("web-1", "web-2")
WORKER_HOSTS = ("worker-1", "worker-2")
PASSWORD = "secret"
#: Seconds for one step, on a machine that has much else to do; all of it takes far less.
DEADLINE = 90
PROJECTS = 400

PAGES = "/admin/powercrud_dashboard/taskrecord/"


@dataclass(frozen=True)
class Release:
    """A release of the project and of this package, as a host may run it."""

    name: str
    #: How many releases after this package's own its format of queued tasks is.
    releases_later: int = 0
    #: Where the package is imported from, if not from the checkout.
    directory: Path | None = None

    @property
    def options(self) -> dict[str, Any]:
        return {"release": self.name, "releases_later": self.releases_later}


@dataclass
class Fleet:
    hosts: dict[str, Host]
    #: The releases before and after the deploy.
    old: Release
    new: Release
    ledger: Path
    person: Person = field(default_factory=Person)
    webs: dict[str, WebServer] = field(default_factory=dict)
    clusters: dict[str, Cluster] = field(default_factory=dict)
    launched: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    is_deployed: bool = False
    _used: int = 0
    _started: int = 0
    _began: float = field(default_factory=time.monotonic)

    # What runs where

    def start_webs(self, release: Release, *names: str) -> None:
        """Start web servers on these hosts, in the place of those that run there."""
        for name in names:
            if name in self.webs:
                self.webs[name].stop()
            self.webs[name] = WebServer(self.hosts[name], release.options, release.directory)
        for name in names:
            self.webs[name].wait_until_it_answers()

    def start_workers(self, name: str, release: Release) -> Cluster:
        self._started += 1
        cluster = Cluster(
            f"{self._started} on {name}", self.hosts[name], release.options, self.ledger, release.directory
        )
        self.clusters[name] = cluster
        return cluster

    def stop(self) -> None:
        for cluster in self.clusters.values():
            cluster.begin_stop()
        for cluster in self.clusters.values():
            cluster.stop()
        for web in self.webs.values():
            web.stop()

    def manage(self, host: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the project on a host, to its end; of the old release unless all hosts have the new one."""
        release = self.new if self.is_deployed else self.old
        options = {**self.hosts[host].options(), **release.options}
        return subprocess.run(
            self.hosts[host].command([sys.executable, "-W", "ignore", "-m", "django", *arguments]),
            cwd=release.directory,
            env={**os.environ, "PCRUD_FAULTS_OPTIONS": json.dumps(options)},
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )

    def clean_up(self, *names: str) -> None:
        """Run the cleanup on these hosts at the same time."""
        with ThreadPoolExecutor() as pool:
            for done in pool.map(lambda name: self.manage(name, "pcrud_cleanup_async"), names):
                if done.returncode:
                    self.expect(f"the cleanup runs: {done.stderr}", False)

    # What people do

    def launch(self, web: str, action: str, count: int = 1, *, on: Iterable[int] = ()) -> str:
        """Click on an action for some projects, by default for some that nobody has worked on; "" if it is refused."""
        before = set(TaskRecord.objects.values_list("pk", flat=True))
        pks = list(on) or self._fresh(count)
        status, _text = self.person.post(
            self.webs[web], "/admin/testapp/project/", {"action": action, "_selected_action": pks}
        )
        new = list(TaskRecord.objects.exclude(pk__in=before).values_list("task_name", flat=True))
        if status != 302 or len(new) > 1:
            self.expect(f"{action} is launched by {web} ({status}, {len(new)} tasks)", False)
        self.launched += new
        return new[0] if new else ""

    def _fresh(self, count: int) -> list[int]:
        keys = Project.objects.values_list("pk", flat=True)[self._used : self._used + count]
        self._used += count
        return list(keys)

    def page(self, web: str, path: str = "") -> str:
        """Return the text of a page of the dashboard."""
        status, text = self.person.get(self.webs[web], PAGES + path)
        if status != 200:
            self.expect(f"{web} shows {PAGES}{path} ({status})", False)
        return text

    def health(self, web: str) -> dict[str, Any]:
        """Return what a monitor is told by a web host."""
        authorization = f"Bearer {settings.POWERCRUD_SETTINGS['DASHBOARD_HEALTH_TOKEN']}"
        status, text = Person().get(self.webs[web], f"{PAGES}health/", Authorization=authorization)
        found: dict[str, Any] = json.loads(text)
        return {**found, "http": status}

    # What is seen

    def say(self, what: str) -> None:
        """Print it, with the seconds since the beginning."""
        sys.stdout.write(f"{time.monotonic() - self._began:5.1f} {what}\n")
        sys.stdout.flush()

    def expect(self, what: str, holds: object) -> None:
        self.say(f"  {'ok  ' if holds else 'FAIL'} {what}")
        if not holds:
            self.failures.append(what)

    def expect_soon(self, what: str, condition: Callable[[], object], seconds: float = DEADLINE) -> None:
        """Expect that something becomes true."""
        self.expect(what, self.becomes_true(condition, seconds))

    @staticmethod
    def becomes_true(condition: Callable[[], object], seconds: float = DEADLINE) -> bool:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def expect_completed(self, what: str, names: Iterable[str]) -> None:
        wanted = set(names)
        done = TaskRecord.objects.filter(task_name__in=wanted, status="success")
        self.becomes_true(lambda: done.count() == len(wanted))
        left = TaskRecord.objects.filter(task_name__in=wanted).exclude(status="success")
        self.expect(f"{what}{told_of(left)}", done.count() == len(wanted) and "" not in wanted)


def told_of(records: Iterable[TaskRecord]) -> str:
    """Return what has become of tasks that were to end otherwise; "" if there are none."""
    told = [f"{it.label} ({it.status} {it.failure_reason}, {where(it.task_name)}: {it.error[-200:]})" for it in records]
    return f"; but {', '.join(told)}" if told else ""


def where(task_name: str) -> list[str]:
    """Return the hosts that have begun a task, in this order."""
    started = TaskEvent.objects.filter(record__task_name=task_name, event="start").order_by("pk")
    return [event.payload["worker_host"] for event in started]


def record_of(task_name: str) -> TaskRecord:
    return TaskRecord.objects.get(task_name=task_name)


def runs_on(task_name: str) -> str:
    """Return the host on which a task runs now; "" if it runs nowhere."""
    active = ActiveTask.objects.running().filter(task_name=task_name).select_related("worker").first()
    return active.worker.host if active is not None and active.worker is not None else ""


@contextmanager
def held() -> Iterator[None]:
    """Hold tasks up in the block, those that can be held."""
    hold().touch()
    try:
        yield
    finally:
        hold().unlink(missing_ok=True)


@contextmanager
def running_fleet(previous: Path | None) -> Iterator[Fleet]:
    """Run the servers and the hosts; web servers and clusters are started later, and all stopped in the end."""
    state = Path(settings.STATE_DIR)
    database, redis = state / "postgresql", state / "redis" / "redis.sock"
    address = hosts.SERVERS if hosts.in_namespaces() else ""
    with ExitStack() as running:
        if address:
            hosts.make_bridge()
        running.enter_context(services.postgresql(database, address))
        running.enter_context(services.redis(redis, address))
        _make_database()
        names = [*WEB_HOSTS, *WORKER_HOSTS]
        made = hosts.make_hosts(names, database / f".s.PGSQL.{hosts.POSTGRESQL_PORT}", redis)
        for host in made:
            running.callback(host.close)
        # Without an earlier release, the later one is that which writes a newer format.
        old, new = Release("1", directory=previous), Release("2", releases_later=int(previous is None))
        fleet = Fleet(dict(zip(names, made, strict=True)), old, new, state / "ledger")
        running.callback(fleet.stop)
        yield fleet


def _make_database() -> None:
    name = settings.DATABASES["default"]["NAME"]
    with psycopg.connect(host=settings.DATABASES["default"]["HOST"], user="postgres", dbname="postgres") as server:
        server.autocommit = True
        server.execute(f'CREATE DATABASE "{name}"')
        for limit, value in _limits():
            server.execute(f"ALTER ROLE postgres SET {limit} = '{value}'")
    call_command("migrate", verbosity=0)
    User.objects.create_superuser("boss", password=PASSWORD)
    Project.objects.bulk_create(Project(name=f"project {number}") for number in range(PROJECTS))
    connection.close()


def _limits() -> list[tuple[str, str]]:
    """Return PostgreSQL's limits for connections of dead hosts, as the documentation has them."""
    page = (settings.ROOT / "docs" / "databases.md").read_text()
    block = page.partition("### Connections of dead hosts")[2].split("```")[1]
    return re.findall(r"^(\w+) = '?(\w+)", block, re.MULTILINE)
