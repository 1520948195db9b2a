"""Hosts of the fault suite are cut off and connected as networks are, and nothing is left of them."""

from __future__ import annotations

import os
import socket
import socketserver
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.faults.hosts import KIND, NAMESPACES, SERVERS, isolated, kill_what_is_left, kind_of_this_machine
from tests.faults.proxy import Proxy
from tests.services import DEADLINE, running, serving, wait_until

ROOT = Path(__file__).parents[2]

needs_namespaces = pytest.mark.skipif(kind_of_this_machine() != NAMESPACES, reason="needs network namespaces")


@pytest.fixture
def echo(tmp_path):
    """A server that sends back what it gets."""

    class Echo(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while data := self.request.recv(100):
                self.request.sendall(data)

    server = socketserver.ThreadingUnixStreamServer(str(tmp_path / "echo"), Echo)
    server.daemon_threads = True
    with serving(server):
        yield tmp_path / "echo"


def test_a_proxy_holds_what_it_gets_and_passes_it_on_later(echo):
    proxy = Proxy(echo)
    with closing(proxy), socket.create_connection(proxy.address, timeout=DEADLINE) as client:
        client.sendall(b"one")
        assert client.recv(100) == b"one"
        proxy.hold()
        client.settimeout(0.2)
        client.sendall(b"two")
        with pytest.raises(TimeoutError):
            client.recv(100)
        proxy.let_pass()
        client.settimeout(DEADLINE)
        assert client.recv(100) == b"two"


#: Runs as a lane's process does: two hosts, one of which is cut off and connected again.
LANE = f"""
import socket, subprocess, sys
from pathlib import Path
from tests.faults.hosts import make_bridge, make_hosts
from tests.services import wait_until

CONNECT = "import socket; socket.create_connection(('{SERVERS}', 5432), 1); print(socket.gethostname())"

def reaches(host):
    command = host.command([sys.executable, "-c", CONNECT])
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "nothing"

def reaches_soon(host):
    # A link that is up passes packets some moments later.
    said = []
    wait_until(lambda: said.append(reaches(host)) or said[-1] != "nothing", "the servers are reached")
    return said[-1]

make_bridge()
server = socket.create_server(("{SERVERS}", 5432))
alpha, beta = make_hosts(["alpha", "beta"], Path(), Path())
said = [reaches_soon(alpha), reaches_soon(beta)]
alpha.cut_off()
said += [reaches(alpha), reaches_soon(beta)]
alpha.connect()
said += [reaches_soon(alpha), socket.gethostname()]
print(*said, flush=True)
sys.stdin.read()
"""


@needs_namespaces
def test_hosts_have_names_are_cut_off_and_end_with_their_lane(tmp_path):
    marker = f"PCRUD_TEST_STATE={tmp_path}".encode()

    def is_left() -> bool:
        return any(marker in _environment(path) for path in Path("/proc").glob("[0-9]*/environ"))

    with running(
        isolated(NAMESPACES, [sys.executable, "-c", LANE]),
        env={**os.environ, KIND: NAMESPACES, "PCRUD_TEST_STATE": str(tmp_path), "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as lane:
        assert lane.stdout.readline().split() == ["alpha", "beta", "nothing", "beta", "alpha", "web"]
        assert is_left()
    wait_until(lambda: not is_left(), "no process of the lane is left")


def _environment(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().split(b"\0")
    except OSError:
        return []


def test_processes_that_a_lane_has_left_are_ended(tmp_path):
    with (
        running(["sleep", "600"], env={**os.environ, "PCRUD_TEST_STATE": str(tmp_path / "state")}) as process,
        running(["sleep", "600"], env={**os.environ, "PCRUD_TEST_STATE": str(tmp_path)}) as another,
    ):
        kill_what_is_left(tmp_path / "state")
        assert process.wait(DEADLINE) == -9
        assert another.poll() is None
