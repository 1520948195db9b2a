"""What the benchmarks' tasks do."""

from __future__ import annotations

import time
from typing import Any

from django.utils.module_loading import import_string

from powercrud_dashboard.async_context import track


def nothing(*args: Any, **kwargs: Any) -> None:
    """Return at once."""


def report(manager_class: str, times: int, task_key: str = "", **kwargs: Any) -> float:
    """Return the seconds that one report of progress takes a task in its worker."""
    manager = import_string(manager_class)()
    start = time.perf_counter()
    for number in range(times):
        manager.update_progress(task_key, f"item {number}")
    return (time.perf_counter() - start) / times


def loops(items: int) -> dict[str, float]:
    """Return the seconds of a bare loop, one that a generator feeds, and a tracked one, each at its best of five."""
    numbers = range(items)

    def fed() -> Any:
        yield from numbers

    variants = {"bare": lambda: numbers, "generator": fed, "tracked": lambda: track(numbers)}
    best = dict.fromkeys(variants, float("inf"))
    for _ in range(5):
        for name, make in variants.items():
            start = time.perf_counter()
            for _item in make():
                pass
            best[name] = min(best[name], time.perf_counter() - start)
    return best
