"""Measure this package, the peer and bare django-q2 in one run, on each environment, and print the table.

python -m tests.benchmarks.bench                      all of it, as ``make bench`` does
python -m tests.benchmarks.bench --on sqlite --only locks
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ENVIRONMENTS = ("sqlite", "postgresql", "postgresql-redis")
SCALE = {"ms": 1_000, "µs": 1_000_000, "MB": 1e-6}


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure this package beside its peer and bare django-q2.")
    parser.add_argument("--records", type=int, default=1_000_000, help="in the task list")
    parser.add_argument("--on", nargs="*", choices=ENVIRONMENTS, default=list(ENVIRONMENTS))
    parser.add_argument("--only", nargs="*", default=[], help="names of measurements, such as locks")
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = parser.parse_args()
    began = time.monotonic()
    lines = []
    for name in options.on:
        for line in _measure(name, options.records, options.only):
            print(_row(line), file=sys.stderr, flush=True)
            lines.append(line)
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {time.monotonic() - began:.0f} s\n")
    print(table(lines))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(lines, indent=1))
    return 0


def _measure(environment: str, records: int, only: list[str]) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="pcrud-bench-", ignore_cleanup_errors=True) as state:
        # The directory above a PostgreSQL socket lets the server through.
        Path(state).chmod(0o755)
        own = {
            "PCRUD_BENCH_ON": environment,
            "PCRUD_TEST_STATE": state,
            "DJANGO_SETTINGS_MODULE": "tests.settings.benchmark",
        }
        command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.measure", "--records", str(records)]
        command += ["--only", *only] if only else []
        with subprocess.Popen(command, env={**os.environ, **own}, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            yield from map(json.loads, process.stdout)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)


def table(lines: list[dict[str, Any]]) -> str:
    """Return the medians, each with its spread, and how ours compares, as Markdown."""
    head = ["| work | on | medians (least to most) | ratios |", "| --- | --- | --- | --- |"]
    return "\n".join([*head, *map(_row, lines)]) + "\n"


def _row(line: dict[str, Any]) -> str:
    scale, unit = SCALE[line["unit"]], line["unit"]
    medians = "; ".join(f"{name} {_spread(it, scale, unit)}" for name, it in line["timings"].items())
    queries = ", ".join(f"{name} {count}" for name, count in line.get("queries", {}).items())
    more = f"; queries: {queries}" if queries else ""
    more += f"; at most {line['peak_megabytes']} MB" if "peak_megabytes" in line else ""
    return f"| {line['what']} | {line['environment']} | {medians}{more} | {_ratios(line['timings'])} |"


def _spread(timing: dict[str, float], scale: float, unit: str) -> str:
    median, least, most = (_number(timing[name] * scale) for name in ("median", "least", "most"))
    return f"{median} {unit} ({least} to {most})"


def _ratios(timings: dict[str, dict[str, float]]) -> str:
    """Say how many times the first of a pair takes as long as the other."""
    if (best := timings.get("all prepared")) is not None:
        gains = {name: it["median"] / best["median"] for name, it in timings.items() if it is not best}
        return ", ".join(f"{name} {_number(gain)}" for name, gain in gains.items())
    pairs = (
        ("ours", "bare"),
        ("peer", "bare"),
        ("peer", "ours"),
        ("tracked", "generator"),
        ("tracked", "bare"),
        ("ours", "ours, 1,000"),
        ("ours, 100,000", "ours, 10,000"),
        ("full page", "unchanged refresh"),
        ("beside it", "alone"),
    )
    return ", ".join(
        f"{one} / {other} {_number(timings[one]['median'] / timings[other]['median'])}"
        for one, other in pairs
        if one in timings and other in timings
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


if __name__ == "__main__":
    sys.exit(main())
