"""What the tasks of a period add up to, as on the Insights page."""

from __future__ import annotations

import argparse
from datetime import datetime, timedelta
from typing import Any

from powercrud_dashboard.dashboard.formatting import precise_duration, relative_time
from powercrud_dashboard.dashboard.insights import (
    DEFAULT_PERIOD,
    PERIODS,
    FunctionFigures,
    Insights,
    failure_rate,
    percent,
    run_times,
    wait_times,
)
from powercrud_dashboard.engine.statistics import Figures
from powercrud_dashboard.management.pcrud.base import Subcommand
from powercrud_dashboard.management.pcrud.console import Column, Console, counted
from powercrud_dashboard.q2 import queue


class Stats(Subcommand):
    name = "stats"
    help = "Show how many tasks ended and failed, how long they waited and ran, by function."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--period", choices=list(PERIODS), default=DEFAULT_PERIOD, help="The time that ends now.")
        parser.add_argument("--queue", metavar="NAME", help="One queue (cluster) only.")
        parser.add_argument("--function", metavar="PATH", help="One function only.")

    def handle(self, console: Console, options: dict[str, Any]) -> None:
        name = options["queue"]
        # Tasks that name no queue are in the default one.
        cluster = "" if name is not None and name == queue.main_cluster() else name
        insights = Insights(options["period"], cluster=cluster, func=options["function"])
        insights.load()
        functions = insights.largest_functions
        console.document(
            {
                "period": insights.name,
                "since": insights.since,
                "is_incomplete": insights.is_incomplete,
                "busy_workers": round(insights.busy_workers, 3),
                "total": _as_data(insights.total),
                "functions": [
                    {"function": its.func, **_as_data(its.figures), "last_failed_at": its.last_failed_at}
                    for its in functions
                ],
                "queues": {
                    name or queue.main_cluster(): _as_data(figures) for name, figures in insights.queues.items()
                },
            }
        )
        self._print(console, insights, functions)

    @staticmethod
    def _print(console: Console, insights: Insights, functions: list[FunctionFigures]) -> None:
        total = insights.total
        console.line(
            f"{insights.period.label}: {counted(total.ended, 'task')} ended, {total.failed} failed "
            f"({percent(failure_rate(total))}), {insights.busy_workers:.1f} workers busy on average"
        )
        if not functions:
            return
        columns = [
            Column("Function", gives_way=True, keeps_end=True),
            *(
                Column(title, is_number=True)
                for title in ("Ended", "Failed", "Wait p50", "p95", "Run p50", "p95", "max")
            ),
            Column("Last failure", is_number=True),
        ]
        console.table(columns, [_row(its, insights.now) for its in functions])
        if insights.has_more_functions:
            console.note(f"The {len(functions)} functions of which most tasks ended.")
        if insights.is_incomplete:
            console.note("Tasks that ended lately are missing: the next cleanup counts them.")


def _row(its: FunctionFigures, now: datetime) -> tuple[object, ...]:
    waits, runs = wait_times(its.figures), run_times(its.figures)
    return (
        its.func,
        its.ended,
        f"{its.figures.failed} {percent(its.failure_rate)}" if its.figures.failed else "0",
        *(precise_duration(time) or "–" for time in (*waits[:2], *runs)),
        relative_time(its.last_failed_at, now) if its.last_failed_at else "never",
    )


def _as_data(figures: Figures) -> dict[str, Any]:
    waits, runs = wait_times(figures), run_times(figures)
    return {
        "ended": figures.ended,
        "completed": figures.completed,
        "failed": figures.failed,
        "cancelled": figures.cancelled,
        "failure_rate": round(failure_rate(figures), 4),
        **{f"wait_{name}_seconds": _seconds(time) for name, time in zip(("p50", "p95", "max"), waits, strict=True)},
        **{f"run_{name}_seconds": _seconds(time) for name, time in zip(("p50", "p95", "max"), runs, strict=True)},
    }


def _seconds(time: timedelta | None) -> float | None:
    return None if time is None else time.total_seconds()
