"""One of many processes of a race: obeys lines on its standard input, answers each with one line."""

from __future__ import annotations

import os
import sys

import django


def main() -> None:
    django.setup()
    from powercrud_dashboard.async_manager import AsyncManager
    from powercrud_dashboard.dashboard_manager import DashboardAsyncManager
    from powercrud_dashboard.engine.locks import ALL_OBJECTS

    name = f"racer-{os.getpid()}"
    print("ready", flush=True)
    for line in sys.stdin:
        command, __, number = line.strip().partition(" ")
        if command == "reserve":
            won = AsyncManager().add_conflict_ids(name, {"testapp.Project": range(int(number))})
            print("won" if won else "lost", flush=True)
        elif command == "reserve-one-or-all":
            # Of all racers every second one wants the whole model, the others one object each of their own.
            wants = ALL_OBJECTS if int(number) % 2 else {os.getpid()}
            won = AsyncManager().add_conflict_ids(name, {"testapp.Project": wants})
            print(("all" if int(number) % 2 else "one") if won else "lost", flush=True)
        elif command == "release":
            print(AsyncManager().remove_conflict_ids(name), flush=True)
        elif command == "launch":
            manager = DashboardAsyncManager()
            names = [
                manager.launch_async_task("tests.testapp.tasks.add", i, conflict_ids={"race.Own": {f"{name}-{i}"}})
                for i in range(int(number))
            ]
            ended = [manager.get_task_status(task_name, wait=120_000) for task_name in names]
            print(ended.count("success"), flush=True)


if __name__ == "__main__":
    main()
