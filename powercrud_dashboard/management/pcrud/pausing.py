"""Pause and resume tasks, queues, and functions on all queues."""

from __future__ import annotations

import argparse
from typing import Any

from powercrud_dashboard.dashboard.operations import Answer, Operations
from powercrud_dashboard.engine import pauses
from powercrud_dashboard.engine.status import status_of
from powercrud_dashboard.management.pcrud.base import Operator, failed, misused, operator
from powercrud_dashboard.management.pcrud.bulk import BulkSubcommand
from powercrud_dashboard.management.pcrud.choosing import filters_given, unfinished_named
from powercrud_dashboard.management.pcrud.console import Console
from powercrud_dashboard.models import TaskRecord, TaskStatus
from powercrud_dashboard.models.pausing import PauseKind


class _Pausing(BulkSubcommand):
    """What pausing and resuming share: tasks, or a queue, or a function."""

    details = (
        "Name the tasks, or give filters: then all tasks that match are meant. Or name a queue (--queue) or a function "
        "(--func): nothing new of it starts while it is paused."
    )
    #: What is said of a queue or function that is as it is wanted already.
    nothing_to_do = ""
    #: Whether it is done to a queue or function that is paused.
    is_for_paused = False

    def add_own_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--queue", metavar="NAME", help="The queue (cluster) itself, and no single tasks.")
        parser.add_argument("--func", metavar="PATH", help="The function itself, on all queues, and no single tasks.")

    def named(self, name: str) -> TaskRecord:
        return unfinished_named(name)

    def handle(self, console: Console, options: dict[str, Any]) -> None:
        wanted = {PauseKind.QUEUE: options["queue"], PauseKind.FUNCTION: options["func"]}
        named = {kind: name for kind, name in wanted.items() if name}
        if not named:
            super().handle(console, options)
            return
        if options["tasks"] or options["all"] or filters_given(options):
            raise misused("Name tasks, or a queue or function; not both.")
        is_dry = options["dry_run"]
        act = self._is_applicable if is_dry else self._of_pause
        results = {(kind, name): act(console, kind, name, options) for kind, name in named.items()}
        done_word = self._would_be if is_dry else self.done_word
        said = {named: done_word if is_done else self.nothing_to_do for named, is_done in results.items()}
        console.document(
            {
                "results": [
                    {kind.value: name, "done": is_done and not is_dry, "result": said[kind, name]}
                    for (kind, name), is_done in results.items()
                ]
            }
        )
        for (kind, name), text in said.items():
            console.line(f"{kind.value} {name}: {text}")
        if not all(results.values()):
            raise failed(
                f"Not {self.done_word}: {', '.join(name for (_kind, name), done in results.items() if not done)}"
            )

    def _is_applicable(self, console: Console, kind: PauseKind, name: str, options: dict[str, Any]) -> bool:
        """Return whether there is something to do, without doing it."""
        return pauses.is_paused(kind, name) == self.is_for_paused

    def _of_pause(self, console: Console, kind: PauseKind, name: str, options: dict[str, Any]) -> bool:
        raise NotImplementedError


class Pause(_Pausing):
    name = action_name = "pause"
    help = "Pause tasks, a queue, or a function on all queues."
    done_word = "paused"
    nothing_to_do = "is paused already"

    def add_own_arguments(self, parser: argparse.ArgumentParser) -> None:
        super().add_own_arguments(parser)
        parser.add_argument("--note", default="", help="Why the queue or function is paused; the pages show it.")
        parser.add_argument("--release-locks", action="store_true", help="Let others lock the objects of the tasks.")

    def handle(self, console: Console, options: dict[str, Any]) -> None:
        is_of_tasks = not (options["queue"] or options["func"])
        if is_of_tasks and options["note"]:
            raise misused("--note is kept with the pause of a queue or function (--queue, --func).")
        if options["release_locks"] and not is_of_tasks:
            raise misused("--release-locks is for tasks.")
        super().handle(console, options)

    def operations(self, options: dict[str, Any], who: Operator) -> Operations:
        return Operations(who.actor, keep_locks=not options["release_locks"])

    def said_of(self, record: TaskRecord, answer: Answer) -> str:
        return self.done_word if status_of(record.task_name) == TaskStatus.PAUSED else "asked to pause"

    def _of_pause(self, console: Console, kind: PauseKind, name: str, options: dict[str, Any]) -> bool:
        if not pauses.is_known(kind, name):
            console.note(str(pauses.UNKNOWN) % {"name": name})
        return pauses.pause(kind, name, operator(options).actor, options["note"])


class Resume(_Pausing):
    name = action_name = "resume"
    help = "Resume paused tasks, a queue, or a function on all queues."
    done_word = "resumed"
    nothing_to_do = "is not paused"
    is_for_paused = True

    def _of_pause(self, console: Console, kind: PauseKind, name: str, options: dict[str, Any]) -> bool:
        return pauses.resume(kind, name, operator(options).actor)
