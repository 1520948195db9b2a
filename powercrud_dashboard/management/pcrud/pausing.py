"""Pause and resume tasks, queues, and functions on all queues."""

from __future__ import annotations

import argparse
from typing import Any

from powercrud_dashboard.async_manager import AsyncManager
from powercrud_dashboard.engine import pauses
from powercrud_dashboard.exceptions import TaskBusy, TaskConflict, TaskNotPausable
from powercrud_dashboard.management.pcrud.base import Subcommand, add_user_argument, failed, misused, operator
from powercrud_dashboard.management.pcrud.console import Console
from powercrud_dashboard.models.pausing import PauseKind


class _Pausing(Subcommand):
    """What pausing and resuming share: tasks, or a queue, or a function."""

    #: What is said of what was done, and of what was not.
    done = not_done = ""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("tasks", nargs="*", metavar="task", help="Names of tasks.")
        parser.add_argument("--queue", help="A queue (cluster), of which nothing new starts while it is paused.")
        parser.add_argument("--func", help="The dotted path of a function, on all queues.")
        add_user_argument(parser)

    def handle(self, console: Console, options: dict[str, Any]) -> None:
        if not (options["tasks"] or options["queue"] or options["func"]):
            raise misused("Name a task, --queue or --func.")
        actor = operator(options).actor
        results = {task: self._of_task(task, actor, options) for task in options["tasks"]}
        for kind, option in ((PauseKind.QUEUE, "queue"), (PauseKind.FUNCTION, "func")):
            if name := options[option]:
                results[f"{kind.value} {name}"] = self._said(self._of_pause(kind, name, actor, options))
        console.document(results)
        for name, result in results.items():
            console.line(f"{name}: {result}")
        if refused := [name for name, result in results.items() if result != self.done]:
            raise failed(f"Not {self.done}: {', '.join(refused)}")

    def _of_task(self, task: str, actor: Any, options: dict[str, Any]) -> str:
        try:
            return self._said(self._act(task, actor, options))
        except (TaskBusy, TaskConflict, TaskNotPausable) as error:
            return f"error: {error}"

    def _said(self, is_done: bool) -> str:
        return self.done if is_done else self.not_done

    def _act(self, task: str, actor: Any, options: dict[str, Any]) -> bool:
        raise NotImplementedError

    def _of_pause(self, kind: PauseKind, name: str, actor: Any, options: dict[str, Any]) -> bool:
        raise NotImplementedError


class Pause(_Pausing):
    name = "pause"
    help = "Pause tasks, a queue, or a function on all queues."
    done, not_done = "paused", "nothing to pause"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--note", default="", help="Why the queue or function is paused; the pages show it.")
        parser.add_argument("--release-locks", action="store_true", help="Let others lock the objects of the tasks.")

    def _act(self, task: str, actor: Any, options: dict[str, Any]) -> bool:
        manager = AsyncManager.resolve_manager()
        return manager.pause_task(task, user=actor, keep_locks=not options["release_locks"])

    def _of_pause(self, kind: PauseKind, name: str, actor: Any, options: dict[str, Any]) -> bool:
        return pauses.pause(kind, name, actor, options["note"])


class Resume(_Pausing):
    name = "resume"
    help = "Resume paused tasks, a queue, or a function on all queues."
    done, not_done = "resumed", "not paused"

    def _act(self, task: str, actor: Any, options: dict[str, Any]) -> bool:
        return AsyncManager.resolve_manager().resume_task(task, user=actor)

    def _of_pause(self, kind: PauseKind, name: str, actor: Any, options: dict[str, Any]) -> bool:
        return pauses.resume(kind, name, actor)
