"""Private PostgreSQL and Redis servers for the tests, as long as a block runs."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from socketserver import BaseServer
from typing import Any

import psycopg
import pytest

#: Set where a missing program is a failure and not a reason to skip.
REQUIRED = "PCRUD_REQUIRE_SERVICES"
DEADLINE = 60


def program(name: str) -> str:
    """Return the path of a server program; without it the test is skipped, or fails where it is required."""
    found = shutil.which(name)
    if found is None:
        places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
        found = str(places[-1]) if places else None
    if found is None:
        message = f"{name} is not installed"
        if os.environ.get(REQUIRED):
            pytest.exit(f"{message}, and {REQUIRED} is set", returncode=1)
        pytest.skip(message, allow_module_level=True)
    return found


def wait_until(condition: Callable[[], object], what: str, deadline: float = DEADLINE) -> None:
    """Wait until ``condition()`` is true, at most ``deadline`` seconds."""
    end = time.monotonic() + deadline
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"Not within {deadline} s: {what}")
        time.sleep(0.02)


def children_of(pid: int) -> list[int]:
    """Return the process ids of a process's children."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


@contextmanager
def serving(server: BaseServer) -> Iterator[None]:
    """Let a server answer as long as a block runs, however that ends."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    with server:
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def running(command: list[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """Run a process as long as a block runs, however that ends."""
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            process.kill()


class Server:
    """A server process that tests may stop and start again."""

    def __init__(self, command: list[str], is_up: Callable[[], object], stop_signal: int, **run: Any) -> None:
        self._command = command
        self._is_up = is_up
        self._stop_signal = stop_signal
        self._run = run
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, if it does not run, and wait until it answers."""
        if self._process is not None and self._process.poll() is None:
            return
        self._process = subprocess.Popen(self._command, **self._run)
        wait_until(self._is_up, f"{self._command[0]} is up")

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(self._stop_signal)
            self._process.wait(DEADLINE)
            self._process = None


@contextmanager
def postgresql(socket_dir: Path, address: str = "") -> Iterator[Server]:
    """Run a fresh PostgreSQL server that listens on a socket in ``socket_dir``, and on an address if one is given."""
    initdb, postgres = program("initdb"), program("postgres")
    # PostgreSQL refuses to run as root.
    user = "postgres" if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="pcrud-pg-") as home:
        data = Path(home) / "data"
        for directory in (Path(home), socket_dir):
            directory.mkdir(parents=True, exist_ok=True)
            if user:
                account = pwd.getpwnam(user)
                os.chown(directory, account.pw_uid, account.pw_gid)
        # The directory above the sockets must let the server through.
        socket_dir.parent.chmod(0o755)
        run = {"user": user, "cwd": home, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run([initdb, "-D", data, "-U", "postgres", "--auth=trust", "-E", "UTF8"], check=True, **run)
        if address:
            with (data / "pg_hba.conf").open("a") as rules:
                rules.write("host all all samenet trust\n")
        options = ["-c", f"listen_addresses={address}", "-c", "fsync=off", "-c", "max_connections=200"]
        # SIGINT: disconnect everybody and stop.
        server = Server(
            [postgres, "-D", str(data), "-k", str(socket_dir), *options],
            lambda: _takes_connections(socket_dir),
            signal.SIGINT,
            **run,
        )
        try:
            server.start()
            yield server
        finally:
            server.stop()


def _takes_connections(socket_dir: Path) -> bool:
    """Whether the server is past its start, at which it listens already and refuses everybody."""
    try:
        psycopg.connect(host=str(socket_dir), user="postgres", dbname="postgres").close()
    except psycopg.OperationalError:
        return False
    return True


@contextmanager
def redis(socket: Path, address: str = "") -> Iterator[Server]:
    """Run a fresh Redis server that listens on this socket, and on an address if one is given."""
    socket.parent.mkdir(parents=True, exist_ok=True)
    listening = ["--bind", address, "--protected-mode", "no"] if address else ["--port", "0"]
    arguments = [*listening, "--unixsocket", str(socket), "--save", "", "--appendonly", "no"]
    server = Server([program("redis-server"), *arguments], socket.exists, signal.SIGTERM, stdout=subprocess.DEVNULL)
    try:
        server.start()
        yield server
    finally:
        server.stop()
