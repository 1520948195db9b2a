"""What only the second release can do."""

from __future__ import annotations

from django.conf import settings

from tests.faults.shop.tasks import work

if settings.OPTIONS.get("release") != "2":
    raise ImportError("The first release has no such module.")


def work_differently(*, pks: list[int], model: str, task_key: str = "") -> str:
    return work(pks, task_key, is_held=False)
