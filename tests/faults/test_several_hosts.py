"""Two web hosts and two worker hosts keep what is promised: cut off, with clocks apart, and with two releases."""

from __future__ import annotations

import subprocess
import sys

import pytest
from django.conf import settings

from tests.conftest import POSTGRESQL, REDIS
from tests.services import program

pytestmark = [pytest.mark.cluster, pytest.mark.faults, pytest.mark.long]


@pytest.mark.skipif(not POSTGRESQL or REDIS, reason="it has servers of its own: once is enough")
def test_several_hosts_keep_what_is_promised():
    program("redis-server")
    command = [sys.executable, "-m", "tests.faults.several_hosts"]
    done = subprocess.run(command, cwd=settings.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All as promised" in done.stdout
