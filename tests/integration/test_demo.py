"""The README's commands, as a newcomer runs them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.conftest import POSTGRESQL
from tests.services import wait_until

pytestmark = pytest.mark.skipif(POSTGRESQL, reason="the demo brings its own settings")

ROOT = Path(__file__).resolve().parents[2]


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


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes through /proc")
def test_the_demo_serves_until_ctrl_c_and_leaves_no_process(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    demo = subprocess.Popen(
        [sys.executable, "-m", "tests.demo.run"],
        cwd=ROOT,
        env={**environment(tmp_path), "PORT": port},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        wait_until(lambda: login_page(port), "the login page is served", 60)
        wait_until(lambda: len(processes_with(tmp_path)) > 5, "the cluster has its processes")
    finally:
        demo.send_signal(signal.SIGINT)
        said = last_words(demo)
    assert demo.returncode == 0
    assert f"http://127.0.0.1:{port}/admin/inventory/sourcefile/" in said
    assert "Log in as demo with the password demo." in said
    assert processes_with(tmp_path) == []


def last_words(demo: subprocess.Popen[str]) -> str:
    """Wait for its end; return what it has said."""
    try:
        return demo.communicate(timeout=60)[0]
    except subprocess.TimeoutExpired:
        # So that this is what is seen, and not a warning of a process that nobody has waited for.
        demo.kill()
        demo.communicate()
        raise


def login_page(port: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/admin/login/") as response:
            return b"username" in response.read()
    except OSError:
        return False
