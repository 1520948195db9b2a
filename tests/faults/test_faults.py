"""The short form of the fault suite: a few rounds of each lane. ``make faults`` is the long one."""

from __future__ import annotations

import subprocess
import sys

import pytest
from django.conf import settings

from tests.conftest import POSTGRESQL, REDIS

pytestmark = [pytest.mark.cluster, pytest.mark.faults]

ROUNDS = 2

LANES = ["postgresql-redis"] if REDIS else ["postgresql-orm"] if POSTGRESQL else ["sqlite-orm", "sqlite-redis"]


@pytest.mark.parametrize("lane", LANES)
def test_what_is_promised_holds_whatever_breaks(lane):
    command = [sys.executable, "-m", "tests.faults", "--lane", lane, "--rounds", str(ROUNDS)]
    done = subprocess.run(command, cwd=settings.ROOT, capture_output=True, text=True, check=False)
    # Its output has the seed.
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{ROUNDS} rounds, 0 of them with something broken" in done.stdout
