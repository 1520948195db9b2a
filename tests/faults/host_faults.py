"""Faults of hosts and of what runs on them: frozen, cut off, clocks apart, process ids used again."""

from __future__ import annotations

import random

from tests.faults.clock import set_clock
from tests.faults.fault import REDIS, SEVERAL_HOSTS, Act, Fault, launching, option
from tests.faults.rounds import Round

#: Seconds for which a host is away: longer than it takes to declare its processes lost.
AWAY_FOR = (10, 16)


def _freeze(around: Round) -> None:
    """Stop all processes of a host, some of them in the middle of a transaction, and let them go on later."""
    _launch_long_ones(around)
    around.world.freeze(around.world.cluster.host)
    around.later(random.uniform(*AWAY_FOR), around.world.thaw)


def _cut_off(around: Round) -> None:
    """Cut a host off from the servers, some of its processes in the middle of a transaction, and connect it again."""
    _launch_long_ones(around)
    around.world.cut_off(around.world.cluster.host)
    around.later(random.uniform(*AWAY_FOR), around.world.connect)


def _launch_long_ones(around: Round) -> None:
    for way in ("", "locks more"):
        around.launch(seconds=random.uniform(2, 6), way=way)
    around.wait_for_runs()


def _set_clocks_apart(around: Round) -> None:
    """Let one host's clock be behind and another's ahead, by seconds as by a lot."""
    for host, direction in zip(around.world.hosts, (-1, 1), strict=False):
        set_clock(direction * random.choice([3, 30, 3600]), host.name)


def _use_pids_again(around: Round) -> None:
    """Kill a container and start another under the same host name: its processes get the same ids."""
    _launch_long_ones(around)
    around.world.replace(around.world.cluster)


def _start_on_another_host(around: Round) -> None:
    world = around.world
    world.start_cluster(world.other_host(world.cluster.host))


def _stop_one(*, of_all: bool) -> Act:
    """Stop a cluster that is in the middle of tasks, as a deploy or systemd does."""

    def stop(around: Round) -> None:
        _launch_long_ones(around)
        around.world.begin_stop(around.world.cluster, of_all=of_all)

    return stop


HOST_FAULTS = [
    Fault("host frozen", _freeze, loses=REDIS),
    Fault("host cut off", _cut_off, lanes=SEVERAL_HOSTS, loses=REDIS),
    Fault("clocks apart", _set_clocks_apart, lanes=SEVERAL_HOSTS),
    Fault("process ids used again", _use_pids_again, option(contained=True), in_namespaces=True, loses=REDIS),
    Fault("two clusters on one queue", _start_on_another_host),
    Fault("cluster stopped with work in hand", _stop_one(of_all=False)),
    Fault("all processes of the cluster terminated", _stop_one(of_all=True)),
    *(
        Fault(f"task {way}", launching("done", "fails", way=way))
        for way in ("locks more", "forks", "starts programs", "starts threads")
    ),
]
