"""What a lane consists of: its servers, its hosts, and the clusters that a round starts, breaks and stops."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from django.conf import settings

from tests import services
from tests.faults import hosts
from tests.faults.cluster import Cluster, NotStarted
from tests.faults.hosts import Host
from tests.services import Server

#: SQLite's file is on one host.
NAMES = ["alpha", "beta"]

#: Tries to start a cluster, each of which a fault may spoil.
STARTS = 3


class World:
    """What a fault can get at."""

    def __init__(self, lane: str) -> None:
        self.lane = lane
        self.database: Server | None = None
        self.redis: Server | None = None
        self.hosts: list[Host] = []
        self.clusters: list[Cluster] = []
        #: What the settings of clusters that start from now on have different.
        self.options: dict[str, Any] = {}
        #: Clusters whose stop has begun; they are no longer among the others.
        self._stopping: list[Cluster] = []
        self.ledger = Path()
        self._started = 0
        #: Faults start and stop clusters in threads; no host is cut off while a cluster starts on it.
        self._lock = threading.RLock()

    def start_cluster(self, host: Host | None = None) -> Cluster:
        """Start a cluster on this host, or another one if that is cut off."""
        with self._lock:
            connected = [host for host in self.hosts if not host.is_cut_off] or self.hosts
            for _ in range(STARTS):
                self._started += 1
                where = host if host in connected else random.choice(connected)
                with suppress(NotStarted):
                    cluster = Cluster(f"{self._started} on {where.name}", where, self.options, self.ledger)
                    self.clusters.append(cluster)
                    return cluster
        raise RuntimeError(f"No cluster starts on {where.name}.")

    def begin_stop(self, cluster: Cluster, *, of_all: bool = False) -> None:
        """Begin to stop a cluster, and see to it that there is another one."""
        with self._lock:
            if cluster in self.clusters:
                self.clusters.remove(cluster)
                self._stopping.append(cluster)
                cluster.begin_stop(of_all=of_all)
            self.see_to_it_that_one_runs()

    def replace(self, cluster: Cluster) -> None:
        """Kill a cluster and start another on its host."""
        with self._lock:
            cluster.kill_all()
            if cluster in self.clusters:
                self.clusters.remove(cluster)
            self.start_cluster(cluster.host)

    @property
    def cluster(self) -> Cluster:
        return self.clusters[0]

    @property
    def is_a_host_away(self) -> bool:
        return any(host.is_cut_off for host in self.hosts) or any(cluster.is_frozen for cluster in self._all())

    def other_host(self, host: Host) -> Host:
        """Return another host than this one if there is one."""
        return next((other for other in self.hosts if other is not host), host)

    def freeze(self, host: Host) -> None:
        for cluster in self._all(host):
            cluster.freeze()

    def thaw(self) -> None:
        for cluster in self._all():
            if cluster.is_frozen:
                cluster.thaw()

    def cut_off(self, host: Host) -> None:
        with self._lock:
            for cluster in self._all(host):
                cluster.note("cut off")
            host.cut_off()

    def connect(self) -> None:
        for host in self.hosts:
            if host.is_cut_off:
                host.connect()

    def _all(self, host: Host | None = None) -> list[Cluster]:
        return [cluster for cluster in (*self.clusters, *self._stopping) if host in (None, cluster.host)]

    def see_to_it_that_one_runs(self) -> None:
        """Replace clusters of which something is missing for good, as a service manager does."""
        with self._lock:
            for cluster in [*self.clusters]:
                if not cluster.is_running or cluster.sentinel is None:
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
        self.thaw()
        self.connect()
        for cluster in self._all():
            cluster.begin_stop()
        for cluster in self._all():
            cluster.stop()
        self.clusters.clear()
        self._stopping.clear()


@contextmanager
def servers(lane: str) -> Iterator[World]:
    """Run the servers and the hosts of a lane."""
    database, _, broker = lane.partition("-")
    socket_of_database = Path(settings.DATABASES["default"].get("HOST", "")) / f".s.PGSQL.{hosts.POSTGRESQL_PORT}"
    socket_of_redis = Path(settings.STATE_DIR) / "redis" / "redis.sock"
    address = hosts.SERVERS if hosts.in_namespaces() else ""
    with ExitStack() as running:
        if address:
            hosts.make_bridge()
        world = World(lane)
        if database == "postgresql":
            world.database = running.enter_context(services.postgresql(socket_of_database.parent, address))
        if broker == "redis":
            world.redis = running.enter_context(services.redis(socket_of_redis, address))
        if database == "postgresql":
            world.hosts = hosts.make_hosts(NAMES, socket_of_database, socket_of_redis)
        else:
            world.hosts = [hosts.own_host()]
        for host in world.hosts:
            running.callback(host.close)
        running.callback(world.stop_clusters)
        yield world
