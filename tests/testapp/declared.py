"""The schedules that :mod:`tests.testapp.schedules` imports for the tests that want them."""

from __future__ import annotations

import os

from powercrud_dashboard.schedules import scheduled
from tests.testapp import tasks

#: The file that the slow run waits for.
FILE = "PCRUD_TEST_SCHEDULES"


@scheduled(every="daily", name="adds", kwargs={"left": 2, "right": 3})
def add(left: int, right: int) -> int:
    return tasks.add(left, right)


@scheduled(every="daily", name="fails", conflict_ids={"testapp.Project": ["*"]})
def fail() -> None:
    tasks.fail("nothing to report")


@scheduled(every="daily", name="waits", timeout=120)
def wait() -> str:
    return tasks.wait_for_file(os.environ[FILE])
