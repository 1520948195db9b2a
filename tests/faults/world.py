"""The processes of a lane: its servers, and the clusters that a round starts, breaks and stops."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from django.conf import settings

from tests import services
from tests.services import Server, wait_until

#: Seconds that a cluster gets to stop by itself.
STOP_PATIENCE = 25


class Cluster:
    """A real qcluster in a process group of its own."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "django", "qcluster"],
            env={**os.environ, "PCRUD_FAULTS_OPTIONS": json.dumps(options)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_until(lambda: len(self.parts) >= settings.Q_CLUSTER["workers"] + 2, "the cluster has its processes")

    @property
    def sentinel(self) -> int | None:
        return next(iter(_children(self.process.pid)), None)

    @property
    def parts(self) -> list[int]:
        """The sentinel's children in the order of their start: the workers, the monitor, the pusher, as a rule."""
        return _children(self.sentinel) if self.sentinel is not None else []

    def kill(self, pid: int | None) -> None:
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def kill_all(self) -> None:
        self._signal_all(signal.SIGKILL)
        self.process.wait()

    def terminate(self) -> None:
        self.process.terminate()

    def terminate_all(self) -> None:
        self._signal_all(signal.SIGTERM)

    def stop(self) -> None:
        """Stop it in order; what is left of it after that is killed."""
        if self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_PATIENCE)
        self.kill_all()

    @property
    def is_whole(self) -> bool:
        return self.process.poll() is None and len(self.parts) >= settings.Q_CLUSTER["workers"] + 2

    def _signal_all(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


def _children(pid: int) -> list[int]:
    """Return the children of a process that are no zombies, oldest first."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, state, parent = _read(status)
        except (OSError, IndexError):
            continue
        if parent == pid and state != "Z":
            found.append(name)
    return sorted(found)


def _read(status: Path) -> tuple[int, str, int]:
    after_name = status.read_text().rpartition(")")[2].split()
    return int(status.parent.name), after_name[0], int(after_name[1])


class World:
    """What a fault can get at."""

    def __init__(self) -> None:
        self.database: Server | None = None
        self.redis: Server | None = None
        self.clusters: list[Cluster] = []
        self.options: dict[str, Any] = {}

    def start_cluster(self) -> None:
        self.clusters.append(Cluster(self.options))

    @property
    def cluster(self) -> Cluster:
        return self.clusters[0]

    def see_to_it_that_one_runs(self) -> None:
        """Replace clusters of which something is missing for good, as a service manager does."""
        for cluster in [*self.clusters]:
            if cluster.process.poll() is not None or cluster.sentinel is None:
                cluster.kill_all()
                self.clusters.remove(cluster)
        if not self.clusters:
            self.start_cluster()

    def start_servers(self) -> None:
        """Start those servers that a fault has left stopped."""
        for server in (self.database, self.redis):
            if server is not None:
                server.start()

    def kill_clusters(self) -> None:
        while self.clusters:
            self.clusters.pop().kill_all()

    def stop_clusters(self) -> None:
        while self.clusters:
            self.clusters.pop().stop()


@contextmanager
def servers(lane: str) -> Iterator[World]:
    """Run the servers of a lane."""
    database, _, broker = lane.partition("-")
    with ExitStack() as running:
        world = World()
        if database == "postgresql":
            world.database = running.enter_context(services.postgresql(Path(settings.DATABASES["default"]["HOST"])))
        if broker == "redis":
            socket = Path(settings.STATE_DIR) / "redis" / "redis.sock"
            world.redis = running.enter_context(services.redis(socket))
        try:
            yield world
        finally:
            world.stop_clusters()
