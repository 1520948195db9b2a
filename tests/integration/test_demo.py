"""The README's commands, as a newcomer runs them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import POSTGRESQL, STOPS_WITHIN
from tests.services import wait_until

pytestmark = pytest.mark.skipif(POSTGRESQL, reason="the demo brings its own settings")

ROOT = Path(__file__).resolve().parents[2]
#: Seconds, on a machine that is busy with other tests.
SETS_UP_WITHIN = 180


def environment(data: Path) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    return {**inherited, "PCRUD_DEMO_DATA": str(data)}


def processes_with(data: Path) -> list[int]:
    """The processes that work on this data, found by their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(data).encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


def test_the_check_runs_through(tmp_path):
    command = [sys.executable, "-m", "tests.demo.check"]
    done = subprocess.run(command, cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All as expected" in done.stdout
    assert "FAIL" not in done.stdout


@pytest.fixture
def start_demo(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the demo as a shell does in the background: with SIGINT ignored."""
    started: list[subprocess.Popen[str]] = []

    def start(**more: str) -> subprocess.Popen[str]:
        demo = subprocess.Popen(
            [sys.executable, "-m", "tests.demo.run"],
            cwd=ROOT,
            env={**environment(tmp_path), **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        )
        started.append(demo)
        return demo

    yield start
    # All of them: whoever is left where a test has failed keeps the pipe open that the demo spoke into.
    for pid in processes_with(tmp_path):
        os.kill(pid, signal.SIGKILL)
    for demo in started:
        demo.communicate()


needs_proc = pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes through /proc")


@needs_proc
def test_the_demo_serves_until_ctrl_c_and_leaves_no_process(tmp_path, start_demo):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    demo = start_demo(PORT=port)
    wait_until(lambda: login_page(port), "the login page is served", SETS_UP_WITHIN)
    wait_until(lambda: len(processes_with(tmp_path)) > 5, "the cluster has its processes")
    said = interrupted(demo)
    assert f"http://127.0.0.1:{port}/admin/inventory/sourcefile/" in said
    assert "Log in as demo with the password demo." in said
    assert processes_with(tmp_path) == []


@needs_proc
def test_ctrl_c_ends_the_demo_also_while_it_is_set_up(tmp_path, start_demo):
    demo = start_demo()
    wait_until(lambda: any(tmp_path.iterdir()), "its database is being made", SETS_UP_WITHIN)
    said = interrupted(demo)
    assert "Stopping" in said
    assert "Open http" not in said
    assert processes_with(tmp_path) == []


def interrupted(demo: subprocess.Popen[str]) -> str:
    """Press Ctrl-C and wait for its end; return what it has said."""
    demo.send_signal(signal.SIGINT)
    said = demo.communicate(timeout=STOPS_WITHIN)[0]
    assert demo.returncode == 0
    return said


def login_page(port: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/admin/login/", timeout=10) as response:
            return b"username" in response.read()
    except OSError:
        return False
