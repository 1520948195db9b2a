"""Manage tasks from the command line; each subcommand is a class in ``SUBCOMMANDS``."""

from __future__ import annotations

import argparse
import getpass
import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from powercrud_dashboard.async_manager import AsyncManager
from powercrud_dashboard.engine import pauses
from powercrud_dashboard.exceptions import TaskBusy, TaskConflict, TaskNotPausable
from powercrud_dashboard.models.pausing import PauseKind

#: Exit codes beside 0: an error, and nothing to do. argparse uses 2 for arguments that it does not understand.
FAILED, NOTHING_DONE = 1, 3


def actor() -> str:
    """Return the name under which the history records who has used the command."""
    try:
        return f"{getpass.getuser()} (command line)"
    except (OSError, KeyError, ImportError):
        # A container may run under a user id without a name.
        return "command line"


class _Pausing:
    """What pausing and resuming share: tasks, or a queue, or a function."""

    name = ""
    help = ""
    #: What is said of what was done, and of what was not.
    done = not_done = ""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("tasks", nargs="*", metavar="task", help="Names of tasks.")
        parser.add_argument("--queue", help="A queue (cluster), of which nothing new starts while it is paused.")
        parser.add_argument("--func", help="The dotted path of a function, on all queues.")

    def handle(self, options: dict[str, Any]) -> dict[str, str]:
        """Return the result for each thing that was named: "paused", "nothing to do", or an error."""
        if not (options["tasks"] or options["queue"] or options["func"]):
            raise CommandError("Name a task, --queue or --func.", returncode=2)
        results = {task: self._of_task(task, options) for task in options["tasks"]}
        for kind, option in ((PauseKind.QUEUE, "queue"), (PauseKind.FUNCTION, "func")):
            if name := options[option]:
                results[f"{kind.value} {name}"] = self._said(self._of_pause(kind, name, options))
        return results

    def _of_task(self, task: str, options: dict[str, Any]) -> str:
        try:
            return self._said(self._act(task, options))
        except (TaskBusy, TaskConflict, TaskNotPausable) as error:
            return f"error: {error}"

    def _said(self, is_done: bool) -> str:
        return self.done if is_done else self.not_done

    def _act(self, task: str, options: dict[str, Any]) -> bool:
        raise NotImplementedError

    def _of_pause(self, kind: PauseKind, name: str, options: dict[str, Any]) -> bool:
        raise NotImplementedError


class Pause(_Pausing):
    name = "pause"
    help = "Pause tasks, a queue, or a function on all queues."
    done, not_done = "paused", "nothing to pause"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--note", default="", help="Why the queue or function is paused; the pages show it.")
        parser.add_argument("--release-locks", action="store_true", help="Let others lock the objects of the tasks.")

    def _act(self, task: str, options: dict[str, Any]) -> bool:
        manager = AsyncManager.resolve_manager()
        return manager.pause_task(task, user=actor(), keep_locks=not options["release_locks"])

    def _of_pause(self, kind: PauseKind, name: str, options: dict[str, Any]) -> bool:
        return pauses.pause(kind, name, actor(), options["note"])


class Resume(_Pausing):
    name = "resume"
    help = "Resume paused tasks, a queue, or a function on all queues."
    done, not_done = "resumed", "not paused"

    def _act(self, task: str, options: dict[str, Any]) -> bool:
        return AsyncManager.resolve_manager().resume_task(task, user=actor())

    def _of_pause(self, kind: PauseKind, name: str, options: dict[str, Any]) -> bool:
        return pauses.resume(kind, name, actor())


SUBCOMMANDS = {subcommand.name: subcommand for subcommand in (Pause(), Resume())}


class Command(BaseCommand):
    help = "Manages background tasks. Exit codes: 0 done, 1 error, 2 wrong arguments, 3 nothing to do."

    def add_arguments(self, parser: CommandParser) -> None:
        subparsers = parser.add_subparsers(dest="subcommand", metavar="subcommand", required=True)
        for name, subcommand in SUBCOMMANDS.items():
            subparser = subparsers.add_parser(name, help=subcommand.help, description=subcommand.help)
            subparser.add_argument("--json", action="store_true", help="Print the results as JSON.")
            subcommand.add_arguments(subparser)

    def handle(self, *args: Any, **options: Any) -> None:
        subcommand = SUBCOMMANDS[options["subcommand"]]
        results = subcommand.handle(options)
        if options["json"]:
            self.stdout.write(json.dumps(results, indent=2))
        else:
            for name, result in results.items():
                self.stdout.write(f"{name}: {result}")
        if errors := [name for name, result in results.items() if result.startswith("error")]:
            raise CommandError(f"Not {subcommand.done}: {', '.join(errors)}", returncode=FAILED)
        if not any(result == subcommand.done for result in results.values()):
            raise CommandError("Nothing was done.", returncode=NOTHING_DONE)
