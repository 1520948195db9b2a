"""The hosts of a lane: where clusters run, under which name, and by which way they reach the servers.

Where the machine allows it a lane runs in namespaces of its own: its hosts are network namespaces on a bridge, each
with a host name. They have no names on the machine and end with the lane's first process, however that ends.
Elsewhere a host is a name, and a TCP proxy that can stop passing bytes.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults.proxy import Proxy

#: Set by the process that starts a lane: how the lane's hosts are made.
KIND = "PCRUD_FAULTS_HOSTS"
KINDS = NAMESPACES, PROXY = "namespaces", "proxy"

#: The servers' address on the bridge of a lane, which no other lane sees.
SERVERS = "10.77.0.1"
POSTGRESQL_PORT, REDIS_PORT = 5432, 6379
WEB_PORT = 8000

#: In namespaces of its own, which end with the process that starts them; a shell as their first process collects what
#: others leave behind.
_ISOLATED = ["setpriv", "--pdeathsig", "KILL"]
_ISOLATED += ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
_ISOLATED += ["sh", "-c", '"$@"; exit $?', "lane"]


def kind_of_this_machine() -> str:
    """Return how hosts can be made here."""
    needed = ("ip", "unshare", "nsenter", "setpriv", "hostname")
    if sys.platform != "linux" or os.geteuid() != 0 or not all(map(shutil.which, needed)):
        return PROXY
    bridge = ["ip", "link", "add", "br0", "type", "bridge"]
    tried = subprocess.run([*_ISOLATED, *bridge], capture_output=True, check=False)
    return PROXY if tried.returncode else NAMESPACES


def isolated(kind: str, command: list[str]) -> list[str]:
    """Return the command that runs a lane's command in namespaces of its own, if its hosts are such."""
    return [*_ISOLATED, *command] if kind == NAMESPACES else command


def in_namespaces() -> bool:
    return os.environ[KIND] == NAMESPACES


class Host:
    """The host that the lane itself runs on."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_cut_off = False

    def command(self, command: list[str]) -> list[str]:
        """Return the command that runs this one on the host."""
        return command

    def options(self) -> dict[str, Any]:
        """Return what the settings of a cluster on this host have different."""
        return {}

    def web_address(self) -> tuple[str, int]:
        """Return an address for a web server on the host, which the lane's own host reaches."""
        raise NotImplementedError

    def cut_off(self) -> None:
        """Let no packet pass to or from the host, and break no connection."""
        raise NotImplementedError

    def connect(self) -> None:
        """Undo :meth:`cut_off`."""

    def close(self) -> None:
        """Take the host down."""


class NamespaceHost(Host):
    """A network namespace on the lane's bridge, with a host name of its own, held by a process."""

    def __init__(self, name: str, number: int) -> None:
        super().__init__(name)
        self._link = f"to{number}"
        self._address = f"10.77.0.{number + 1}"
        waiting = ["unshare", "--net", "--uts", "sh", "-c", f"hostname {name} && echo up && exec sleep infinity"]
        self._holder = subprocess.Popen(waiting, stdout=subprocess.PIPE, text=True)
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "up\n":
            raise RuntimeError(f"There is no namespace for the host {name}.")
        peer = ["peer", "name", "eth0", "netns", str(self._holder.pid)]
        _run("ip", "link", "add", self._link, "type", "veth", *peer)
        _run("ip", "link", "set", self._link, "master", "br0", "up")
        for settings in (f"addr add {self._address}/24 dev eth0", "link set eth0 up", "link set lo up"):
            _run(*self.command(["ip", *settings.split()]))

    def command(self, command: list[str]) -> list[str]:
        return ["nsenter", "--target", str(self._holder.pid), "--net", "--uts", "--", *command]

    def options(self) -> dict[str, Any]:
        return {"database_at": [SERVERS, POSTGRESQL_PORT], "redis_at": [SERVERS, REDIS_PORT]}

    def web_address(self) -> tuple[str, int]:
        return self._address, WEB_PORT

    def cut_off(self) -> None:
        _run("ip", "link", "set", self._link, "down")
        self.is_cut_off = True

    def connect(self) -> None:
        _run("ip", "link", "set", self._link, "up")
        self.is_cut_off = False

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()


class ProxiedHost(Host):
    """A host name, and proxies before the servers' sockets."""

    def __init__(self, name: str, database: Path, redis: Path) -> None:
        super().__init__(name)
        self._proxies = {"database_at": Proxy(database), "redis_at": Proxy(redis)}

    def options(self) -> dict[str, Any]:
        return {"host": self.name, **{name: list(proxy.address) for name, proxy in self._proxies.items()}}

    def web_address(self) -> tuple[str, int]:
        with socket.create_server(("127.0.0.1", 0)) as free:
            return "127.0.0.1", free.getsockname()[1]

    def cut_off(self) -> None:
        self._each(Proxy.hold)
        self.is_cut_off = True

    def connect(self) -> None:
        self._each(Proxy.let_pass)
        self.is_cut_off = False

    def close(self) -> None:
        self._each(Proxy.close)

    def _each(self, act: Callable[[Proxy], None]) -> None:
        for proxy in self._proxies.values():
            act(proxy)


def make_bridge() -> None:
    """Make the network that namespaces of this lane are on; before its servers start, which listen on it."""
    _run("hostname", "web")
    for settings in ("set lo up", "add br0 type bridge", "set br0 up"):
        _run("ip", "link", *settings.split())
    _run("ip", "addr", "add", f"{SERVERS}/24", "dev", "br0")


def make_hosts(names: list[str], database: Path, redis: Path) -> list[Host]:
    """Make hosts from which the servers with these sockets are reached."""
    if in_namespaces():
        return [NamespaceHost(name, number) for number, name in enumerate(names, 1)]
    return [ProxiedHost(name, database, redis) for name in names]


def own_host() -> Host:
    return Host(socket.gethostname())


def take_name(name: str) -> None:
    """Let this process think that its host has this name."""
    socket.gethostname = lambda: name


def kill_what_is_left(state: Path) -> None:
    """Kill the processes of a lane that has ended without doing so itself."""
    wanted = f"PCRUD_TEST_STATE={state}".encode()
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if wanted in environment.read_bytes().split(b"\0"):
                os.kill(int(environment.parent.name), signal.SIGKILL)
        except OSError:
            # It is gone, or another user's.
            continue


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
