"""Processes of a race: all obey the lines on the standard input at once; their answers to each are one line."""

from __future__ import annotations

import os
import sys
from multiprocessing import get_context
from multiprocessing.connection import Connection

import django


def main(number: int) -> None:
    django.setup()
    # Forked, as each would take longer to start Django than to run.
    context = get_context("fork")
    racers = []
    for _racer in range(number):
        racer, commands = context.Pipe()
        # As daemons they end with this process.
        context.Process(target=race, args=(commands,), daemon=True).start()
        racers.append(racer)
    print("ready", flush=True)
    for line in sys.stdin:
        for place, racer in enumerate(racers):
            racer.send(line.strip().replace("#", str(place)))
        print(*[racer.recv() for racer in racers], flush=True)
        # Others are first the next time.
        racers.reverse()


def race(commands: Connection) -> None:
    """Obey these commands, and answer each."""
    from powercrud_dashboard.async_manager import AsyncManager
    from powercrud_dashboard.dashboard_manager import DashboardAsyncManager
    from powercrud_dashboard.engine.locks import ALL_OBJECTS

    name = f"racer-{os.getpid()}"
    while True:
        command, __, number = commands.recv().partition(" ")
        if command == "reserve":
            won = AsyncManager().add_conflict_ids(name, {"testapp.Project": range(int(number))})
            commands.send("won" if won else "lost")
        elif command == "reserve-one-or-all":
            # Of all racers every second one wants the whole model, the others one object each of their own.
            wants = ALL_OBJECTS if int(number) % 2 else {os.getpid()}
            won = AsyncManager().add_conflict_ids(name, {"testapp.Project": wants})
            commands.send(("all" if int(number) % 2 else "one") if won else "lost")
        elif command == "release":
            commands.send(AsyncManager().remove_conflict_ids(name))
        elif command == "launch":
            manager = DashboardAsyncManager()
            names = [
                manager.launch_async_task("tests.testapp.tasks.add", i, conflict_ids={"race.Own": {f"{name}-{i}"}})
                for i in range(int(number))
            ]
            ended = [manager.get_task_status(task_name, wait=120_000) for task_name in names]
            commands.send(ended.count("success"))


if __name__ == "__main__":
    main(int(sys.argv[1]))
