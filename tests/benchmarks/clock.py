"""Measure in turn: A B A B, so that what changes on the machine meets all alike."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Timing:
    """Seconds of a call: the median, and the quickest and the slowest."""

    median: float
    least: float
    most: float
    rounds: int

    def as_json(self) -> dict[str, float]:
        return asdict(self)


def in_turn(
    variants: dict[str, Callable[[], object]],
    *,
    rounds: int,
    before: Callable[[], object] = lambda: None,
    warm_up: bool = True,
    per: int = 1,
) -> dict[str, Timing]:
    """Time each variant ``rounds`` times, in turn; ``before`` runs ahead of each, outside of the clock.

    The times are divided by ``per``, the number of things that one call does.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(-1 if warm_up else 0, rounds):
        for name, call in variants.items():
            before()
            gc.collect()
            start = time.perf_counter()
            call()
            if number >= 0:
                times[name].append((time.perf_counter() - start) / per)
    return {name: of(taken) for name, taken in times.items()}


def of(times: list[float]) -> Timing:
    return Timing(statistics.median(times), min(times), max(times), len(times))


def percentile(times: list[float], share: float) -> float:
    with suppress(statistics.StatisticsError):
        return statistics.quantiles(times, n=100)[int(share * 100) - 1]
    return max(times)
