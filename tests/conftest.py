from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import Permission, User
from django.core.cache import cache
from django.test import Client
from django_q.brokers import get_broker

from powercrud_dashboard.dashboard.estimates import forget_run_times
from powercrud_dashboard.dashboard.snapshots import snapshots
from powercrud_dashboard.dashboard_manager import DashboardAsyncManager
from powercrud_dashboard.models import TaskRecord
from powercrud_dashboard.q2 import queue
from tests import services
from tests.fork_server import Forked, ForkServer
from tests.services import wait_until
from tests.testapp.models import Project
from tests.webhooks import Receiver

POSTGRESQL = "postgresql" in settings.DATABASES["default"]["ENGINE"]
#: Read now: while a test overrides a setting, Django does not tell it.
SETTINGS_MODULE = settings.SETTINGS_MODULE
REDIS = "redis" in settings.Q_CLUSTER
#: Seconds. Before a cluster stops, django-q2's monitor writes the results that it is behind with, about 30 a second
#: on PostgreSQL; after 800 tasks it was 300 behind.
STOPS_WITHIN = 90


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest tests, so that one of them is not all that is left in the end."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(scope="session")
def django_db_modify_db_settings() -> Iterator[None]:
    """Start the servers that the chosen settings name, before the test database is made."""
    with ExitStack() as servers:
        if POSTGRESQL:
            servers.enter_context(services.postgresql(Path(settings.DATABASES["default"]["HOST"])))
        if REDIS:
            servers.enter_context(services.redis(Path(settings.Q_CLUSTER["redis"].removeprefix("unix://"))))
        yield


@pytest.fixture(autouse=True)
def _empty_caches() -> None:
    empty_caches()


def empty_caches() -> None:
    """Forget what was kept of the database."""
    cache.clear()
    snapshots.clear()
    forget_run_times()


@pytest.fixture
def manager() -> DashboardAsyncManager:
    return DashboardAsyncManager()


@pytest.fixture
def at_once(settings: Any) -> None:
    """Run tasks in the process that launches them."""
    settings.POWERCRUD_SETTINGS = {"ASYNC_ENABLED": False}


@pytest.fixture
def make_projects(db: None) -> Callable[[int], list[Project]]:
    def make(count: int) -> list[Project]:
        return Project.objects.bulk_create([Project(name=f"project {number}") for number in range(count)])

    return make


@pytest.fixture(scope="session")
def django_db_keepdb() -> bool:
    """Leave a database on a server of our own, which ends with the tests: sessions of threads may still be open."""
    return POSTGRESQL


@pytest.fixture
def make_user(db: None) -> Callable[..., User]:
    """Make a member of staff with these permissions (codenames)."""

    def make(username: str, *permissions: str, **fields: Any) -> User:
        user = User.objects.create_user(username, password="secret", **{"is_staff": True, **fields})
        user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
        return user

    return make


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A server for webhooks."""
    receiver = Receiver()
    with services.serving(receiver.server):
        yield receiver


@pytest.fixture
def superuser(db: None) -> User:
    return User.objects.create_superuser("boss", password="secret")


@pytest.fixture
def client_of() -> Callable[[User], Client]:
    def log_in(user: User) -> Client:
        client = Client()
        client.force_login(user)
        return client

    return log_in


@pytest.fixture
def boss(client_of: Callable[[User], Client], superuser: User) -> Client:
    """The browser of somebody who may do everything."""
    return client_of(superuser)


@pytest.fixture
def record_of() -> Callable[[str], TaskRecord]:
    return lambda task_name: TaskRecord.objects.get(task_name=task_name)


class Cluster:
    """A real qcluster process, which the test may stop, kill or look into."""

    def __init__(self, process: subprocess.Popen[bytes] | Forked) -> None:
        self.process = process
        try:
            wait_until(lambda: len(self.worker_pids) == settings.Q_CLUSTER["workers"], "the cluster runs")
        except BaseException:
            self.kill()
            raise

    @property
    def worker_pids(self) -> list[int]:
        """The process ids of its workers, as django-q2 tells them."""
        # The sentinel's parent is the main process, or its fork server.
        own = [self.process.pid, *services.children_of(self.process.pid)]
        return [pid for state in queue.clusters() if state.pid in own for pid in state.workers]

    def stop(self) -> int:
        """Stop it as an init system does; return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOPS_WITHIN)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        """Kill all of its processes at once, as a lost host does."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def _empty_queue(transactional_db: None) -> None:
    """Redis keeps what a killed cluster or a test without one has left in it."""
    get_broker().delete_queue()


def cluster_environment() -> dict[str, str]:
    # The error lines of tasks that are meant to fail help nobody.
    return {**os.environ, "DJANGO_SETTINGS_MODULE": SETTINGS_MODULE, "PYTHONWARNINGS": "ignore"}


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    server = ForkServer(cluster_environment())
    yield server
    server.close()


@pytest.fixture
def cluster_later(_empty_queue: None, fork_server: ForkServer) -> Iterator[Callable[..., Cluster]]:
    """Starts a cluster when the test calls it, with these variables in its environment."""
    with ExitStack() as stops:

        def start(**environment: str) -> Cluster:
            if not environment:
                running = Cluster(fork_server.start("qcluster"))
            else:
                command = [sys.executable, "-m", "django", "qcluster"]
                options = {"stderr": subprocess.DEVNULL, "start_new_session": True}
                running = Cluster(subprocess.Popen(command, env={**cluster_environment(), **environment}, **options))
            stops.callback(running.stop)
            return running

        yield start


@pytest.fixture
def cluster(cluster_later: Callable[..., Cluster]) -> Cluster:
    return cluster_later()


@pytest.fixture
def until_started(tmp_path: Path) -> Callable[[Path], int]:
    """Wait until a task function has made its sign beside ``path``; return the worker's process id."""

    def wait(path: Path) -> int:
        signs: list[Path] = []
        wait_until(lambda: signs.extend(path.parent.glob(f"{path.name}.started-*")) or signs, "the task has begun")
        return int(signs[0].name.rpartition("-")[2])

    return wait
