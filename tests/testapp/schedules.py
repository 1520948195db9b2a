"""Schedules that a cluster of a test has, if the test asks for them: others expect a database without schedules."""

from __future__ import annotations

import os

if os.environ.get("PCRUD_TEST_SCHEDULES"):
    from tests.testapp import declared  # noqa: F401
