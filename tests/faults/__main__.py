"""Break things for many rounds, and say what held.

python -m tests.faults --rounds 200           all lanes, as ``make faults`` does
python -m tests.faults --lane sqlite-orm --rounds 4 --seed 7
python -m tests.faults --fault "host frozen" --fault "host cut off" --rounds 4
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.faults.fault import LANES
from tests.faults.hosts import KIND as HOSTS
from tests.faults.hosts import KINDS, in_namespaces, isolated, kill_what_is_left, kind_of_this_machine

#: Faults that come together in one round.
AT_ONCE = 4


def main() -> int:
    parser = argparse.ArgumentParser(description="Break things for many rounds, and say what held.")
    parser.add_argument("--rounds", type=int, default=200, help="in all, over the lanes")
    parser.add_argument("--seed", type=int, default=None, help="for the same choices again")
    parser.add_argument("--lane", choices=LANES, help="only this one")
    parser.add_argument("--fault", action="append", default=[], help="only this one, and those named beside it")
    parser.add_argument("--hosts", choices=KINDS, help="how hosts are made; by default as this machine allows it")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--markdown", type=Path, help="write the table here as well")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    if options.inside:
        return run_lane(options.lane, options.rounds, seed, options.fault)
    hosts = options.hosts or kind_of_this_machine()
    return run_lanes([options.lane] if options.lane else list(LANES), options.rounds, seed, hosts, options)


def run_lanes(lanes: list[str], rounds: int, seed: int, hosts: str, options: argparse.Namespace) -> int:
    print(f"{rounds} rounds on {', '.join(lanes)}; hosts by {hosts}; seed {seed}", flush=True)
    # Rounds wait more than they compute.
    with ThreadPoolExecutor(max_workers=len(lanes)) as pool:
        shares = [rounds // len(lanes) + (number < rounds % len(lanes)) for number in range(len(lanes))]
        reports = list(
            pool.map(lambda lane, share: _in_its_own_process(lane, share, seed, hosts, options.fault), lanes, shares)
        )
    table = summary([line for report in reports for line in report])
    print(table)
    if options.markdown:
        options.markdown.write_text(table)
    done = sum(1 for report in reports for line in report)
    broken = [line for report in reports for line in report if line["broken"]]
    for line in broken:
        print(
            f"BROKEN in round {line['round']} of {line['lane']} with {', '.join(line['faults'])}:",
            *line["broken"],
            sep="\n  ",
        )
    print(f"{done} rounds, {len(broken)} of them with something broken; seed {seed}")
    return 1 if broken or done != rounds else 0


def _in_its_own_process(lane: str, rounds: int, seed: int, hosts: str, faults: list[str]) -> list[dict]:
    with tempfile.TemporaryDirectory(prefix="pcrud-faults-", ignore_cleanup_errors=True) as state:
        Path(state).chmod(0o755)
        environment = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.settings.faults",
            "PCRUD_FAULTS_LANE": lane,
            "PCRUD_TEST_STATE": state,
            # It would have another directory.
            "PYTEST_XDIST_WORKER": "",
            HOSTS: hosts,
            "PYTHONPATH": os.pathsep.join([os.getcwd(), f"{state}/modules"]),
        }
        command = [sys.executable, "-W", "ignore", "-m", "tests.faults", "--inside", "--lane", lane]
        command += ["--rounds", str(rounds), "--seed", str(seed)]
        command += [f"--fault={name}" for name in faults]
        with subprocess.Popen(isolated(hosts, command), env=environment, stdout=subprocess.PIPE, text=True) as process:
            report = []
            for text in process.stdout:
                line = json.loads(text)
                report.append(line)
                mark = "BROKEN" if line["broken"] else "held"
                print(f"{lane} {line['round']}: {mark} in {line['seconds']} s: {', '.join(line['faults'])}", flush=True)
                print(*line["broken"], sep="\n", flush=True)
        kill_what_is_left(Path(state))
        if process.returncode:
            print(f"{lane} ended with exit code {process.returncode} after {len(report)} rounds", flush=True)
        return report


def run_lane(lane: str, rounds: int, seed: int, only: list[str]) -> int:
    import django

    django.setup()
    from django.conf import settings
    from django.core.management import call_command

    from tests.faults.crashes import spare_this_process
    from tests.faults.kinds import FAULTS
    from tests.faults.rounds import Round
    from tests.faults.world import servers

    # What is logged of errors that are made on purpose helps nobody.
    logging.disable(logging.CRITICAL)
    spare_this_process()
    random.seed(f"{seed} {lane}")
    sys.path.append(f"{settings.STATE_DIR}/modules")
    deck: list = []
    with servers(lane) as world:
        if world.database:
            _create_database(settings.DATABASES["default"])
        call_command("migrate", verbosity=0)
        possible = [fault for fault in FAULTS if lane in fault.lanes and fault.in_namespaces <= in_namespaces()]
        if only:
            possible = [fault for fault in possible if fault.name in only]
        for number in range(1, rounds + 1):
            if len(deck) < AT_ONCE:
                deck += random.sample(possible, len(possible))
            faults = [deck.pop(0) for _ in range(min(AT_ONCE, len(deck)))]
            began = time.monotonic()
            this_round = Round(world, number, faults)
            broken = this_round.run()
            line = {
                "lane": lane,
                "round": number,
                "faults": [fault.name for fault in faults],
                "broken": broken,
                "ended": _ends(),
                "restarted": this_round.was_restarted,
            }
            print(json.dumps({**line, "seconds": round(time.monotonic() - began, 1)}), flush=True)
    return 0


def _create_database(database: dict) -> None:
    import psycopg

    with psycopg.connect(host=database["HOST"], user="postgres", dbname="postgres", autocommit=True) as server:
        server.execute(f'CREATE DATABASE "{database["NAME"]}"')


def _ends() -> dict[str, int]:
    """How the round's tasks have ended."""
    from powercrud_dashboard.models import TaskRecord

    records = TaskRecord.objects.values_list("status", "failure_reason")
    return Counter(reason or status for status, reason in records)


def summary(lines: list[dict]) -> str:
    """Return the table: each fault, in how many rounds it was, how their tasks ended, what was broken."""
    rounds: Counter[str] = Counter()
    broken: Counter[str] = Counter()
    restarted: Counter[str] = Counter()
    ends: dict[str, Counter[str]] = {}
    for line in lines:
        for fault in line["faults"]:
            rounds[fault] += 1
            broken[fault] += len(line["broken"])
            restarted[fault] += line["restarted"]
            ends.setdefault(fault, Counter()).update(line["ended"])
    rows = [
        "| fault | rounds | how the tasks of these rounds ended | clusters restarted by hand | invariants broken |",
        "| --- | --- | --- | --- | --- |",
    ]
    for fault in sorted(rounds):
        seen = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in ends[fault].most_common())
        rows.append(f"| {fault} | {rounds[fault]} | {seen} | {restarted[fault]} | {broken[fault]} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.exit(main())
