"""Two web hosts and two worker hosts on PostgreSQL and Redis, as docs/several-hosts.md sets them up.

One host is cut off, the clocks are set apart, and a release is deployed on one host after the other. What is promised
is looked at from outside: on the pages of both web hosts, in the database, and in a ledger of what really ran.

python -m tests.faults.several_hosts
python -m tests.faults.several_hosts --previous v0.1.0   the release to begin with: a commit, or where one is installed
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.faults.hosts import KIND as HOSTS
from tests.faults.hosts import KINDS, isolated, kill_what_is_left, kind_of_this_machine

ROOT = Path(__file__).parents[2]


def main() -> int:
    parser = argparse.ArgumentParser(description="Break a set-up of two web hosts and two worker hosts.")
    parser.add_argument("--previous", default="", help="the release to begin with: a commit, or where one is installed")
    parser.add_argument("--hosts", choices=KINDS, help="how hosts are made; by default as this machine allows it")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        return run(Path(options.previous) if options.previous else None)
    hosts = options.hosts or kind_of_this_machine()
    with tempfile.TemporaryDirectory(prefix="pcrud-hosts-", ignore_cleanup_errors=True) as state:
        Path(state).chmod(0o755)
        command = [sys.executable, "-W", "ignore", "-m", "tests.faults.several_hosts", "--inside"]
        if options.previous:
            command += ["--previous", str(release_tree(options.previous, Path(state) / "previous"))]
        environment = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.settings.several_hosts",
            "PCRUD_TEST_STATE": state,
            # It would have another directory.
            "PYTEST_XDIST_WORKER": "",
            HOSTS: hosts,
            "PYTHONPATH": str(ROOT),
        }
        code = subprocess.run(isolated(hosts, command), env=environment, check=False).returncode
        kill_what_is_left(Path(state))
        return code


def release_tree(previous: str, directory: Path) -> Path:
    """Return a directory from which this release of the package is imported."""
    if Path(previous).is_dir():
        return Path(previous).resolve()
    directory.mkdir()
    parts = ["powercrud_dashboard", "templates", "static"]
    archive = subprocess.run(["git", "archive", previous, *parts], cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x", "-C", str(directory)], input=archive, check=True)
    for part in parts[1:]:
        # As in a wheel.
        shutil.move(directory / part, directory / "powercrud_dashboard" / part)
    return directory


def run(previous: Path | None) -> int:
    import django

    django.setup()
    from tests.faults.acts import cut_a_host_off, deploy, look_back, set_clocks_apart, work
    from tests.faults.fleet import running_fleet

    with running_fleet(previous) as fleet:
        for act in (work, cut_a_host_off, set_clocks_apart, deploy, look_back):
            fleet.say(act.__doc__ or "")
            act(fleet)
    fleet.say("FAILED" if fleet.failures else "All as promised")
    return 1 if fleet.failures else 0


if __name__ == "__main__":
    sys.exit(main())
