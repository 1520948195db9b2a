"""Apply one action to the tasks that are named, or to all that match the filters."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from django.db import Error as DatabaseError

from powercrud_dashboard.dashboard.listing import WIDE_COLUMNS
from powercrud_dashboard.dashboard.operations import Answer, Operations, is_done
from powercrud_dashboard.dashboard.selection import BULK_ACTIONS, BulkAction, applicable
from powercrud_dashboard.engine.status import has_ended, status_of
from powercrud_dashboard.management.pcrud.base import (
    Interruptible,
    Operator,
    Subcommand,
    add_user_argument,
    add_yes,
    confirm,
    failed,
    misused,
    operator,
)
from powercrud_dashboard.management.pcrud.choosing import (
    add_filters,
    filters_given,
    listing,
    record_named,
    unfinished_named,
)
from powercrud_dashboard.management.pcrud.console import Console, counted, database_failed
from powercrud_dashboard.models import TaskRecord

#: Functions that a question names, with the number of tasks of each.
NAMED_FUNCTIONS = 8
#: Refusals that are printed, if the tasks were not named; the number is exact.
PRINTED_REFUSALS = 20
#: Records that are read at once.
AT_ONCE = 100


@dataclass
class Results:
    """What has come of the action on each task, in the order in which it was applied."""

    entries: list[dict[str, Any]] = field(default_factory=list)
    done: int = 0
    refused: int = 0
    #: Tasks that have changed since they were chosen, so that there is nothing to do.
    skipped: int = 0
    is_interrupted: bool = False
    #: An error of the database, after which the other tasks were not changed.
    problem: str = ""

    def add(
        self, task_name: str, result: str, *, is_done: bool = False, is_skipped: bool = False, new: str = ""
    ) -> None:
        self.done += is_done
        self.skipped += is_skipped
        self.refused += not (is_done or is_skipped)
        entry = {"task": task_name, "done": is_done, "result": result}
        self.entries.append({**entry, "new_task": new} if new else entry)


class BulkSubcommand(Subcommand):
    """Base class of the subcommands that apply an action to tasks."""

    #: The name of the action of the pages.
    action_name = ""
    #: Its past participle.
    done_word = ""
    details = "Name the tasks, or give filters: then all tasks that match are meant."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("tasks", nargs="*", metavar="task", help="Name of a task, or the beginning of it.")
        parser.add_argument("--all", action="store_true", help="All tasks that the action can be applied to.")
        add_yes(parser)
        parser.add_argument("--dry-run", action="store_true", help="Say which tasks are meant; change nothing.")
        add_user_argument(parser)
        self.add_own_arguments(parser)
        add_filters(parser)

    def add_own_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare further arguments."""

    def handle(self, console: Console, options: dict[str, Any]) -> None:
        has_filters = options["all"] or filters_given(options)
        if options["tasks"] and has_filters:
            raise misused("Name tasks or give filters, not both.")
        if not (options["tasks"] or has_filters):
            raise misused("Name tasks, give a filter, or --all.")
        who = operator(options)
        results = (
            self._on_named(console, options, who) if options["tasks"] else self._on_matching(console, options, who)
        )
        if results is None:
            return
        console.document(
            {"done": results.done, "refused": results.refused, "skipped": results.skipped, "results": results.entries}
        )
        self._print(console, results, is_named=bool(options["tasks"]) or options["dry_run"])
        if results.problem:
            raise failed(f"{results.problem}\nThe other tasks were not changed.")
        if results.is_interrupted:
            raise failed("Interrupted: the other tasks were not changed.")
        if results.refused:
            raise failed(f"{counted(results.refused, 'task')} not {self.done_word}.")

    @property
    def action(self) -> BulkAction:
        return BULK_ACTIONS[self.action_name]

    def operations(self, options: dict[str, Any], who: Operator) -> Operations:
        return Operations(who.actor)

    def includes_done(self, options: dict[str, Any]) -> bool:
        """Return whether the action is also applied to tasks whose work is done."""
        return False

    # Tasks that are named

    def _on_named(self, console: Console, options: dict[str, Any], who: Operator) -> Results:
        results, operations = Results(), self.operations(options, who)
        records = list({record.task_name: record for record in map(self.named, options["tasks"])}.values())

        def act(record: TaskRecord) -> None:
            if refusal := self._refusal(record, options, who):
                results.add(record.task_name, refusal)
            elif options["dry_run"]:
                results.add(record.task_name, self._would_be, is_skipped=True)
            else:
                self._apply(record, operations, results)

        _to_each(console.progress(records, len(records)), act, results)
        return results

    def named(self, name: str) -> TaskRecord:
        """Return the record of the task that is named."""
        return record_named(name)

    @property
    def _would_be(self) -> str:
        return f"would be {self.done_word}"

    def _refusal(self, record: TaskRecord, options: dict[str, Any], who: Operator) -> str:
        user: Any = who
        if self.includes_done(options) and record.is_done:
            return BULK_ACTIONS["run_again"].refusal(user, record)
        return self.action.refusal(user, record) or self.further_refusal(record, options)

    def further_refusal(self, record: TaskRecord, options: dict[str, Any]) -> str:
        """Return another reason why a named task is not changed, or ""."""
        return ""

    # Tasks that match

    def _on_matching(self, console: Console, options: dict[str, Any], who: Operator) -> Results | None:
        chosen = self._chosen(options, who)
        if not chosen:
            console.document({"done": 0, "refused": 0, "skipped": 0, "results": []})
            console.line("No tasks match.")
            return None
        if options["dry_run"]:
            return self._only_named(chosen)
        if not options["yes"]:
            for func, number in Counter(chosen.values()).most_common(NAMED_FUNCTIONS):
                console.note(f"{number:>8}  {func}")
        confirm(console, f"{self.action.label} {counted(len(chosen), 'task')}?", options)
        operations, results = self.operations(options, who), Results()
        user: Any = who

        def has_changed(record: TaskRecord) -> str:
            is_again = self.includes_done(options) and record.is_done
            return BULK_ACTIONS["run_again" if is_again else self.action_name].refusal(user, record)

        def act(record: TaskRecord) -> None:
            if refusal := has_changed(record):
                results.add(record.task_name, refusal, is_skipped=True)
                return
            self._apply(record, operations, results, has_changed)

        _to_each(console.progress(_records(list(chosen)), len(chosen)), act, results)
        return results

    def _chosen(self, options: dict[str, Any], who: Operator) -> dict[int, str]:
        """Return the function of each task that matches, by the key of its record, oldest first."""
        user: Any = who
        found = listing(options, who)
        actions = [self.action, *([BULK_ACTIONS["run_again"]] if self.includes_done(options) else [])]
        return dict(
            sorted(
                row
                for action in actions
                for records in applicable(found, action, user)
                for row in records.order_by().values_list("pk", "func")
            )
        )

    def _only_named(self, chosen: dict[int, str]) -> Results:
        results = Results()
        for record in _records(list(chosen)):
            results.add(record.task_name, self._would_be, is_skipped=True)
        return results

    # Both

    def _apply(
        self,
        record: TaskRecord,
        operations: Operations,
        results: Results,
        has_changed: Callable[[TaskRecord], str] = lambda record: "",
    ) -> None:
        """Apply the action. ``has_changed`` returns why there is nothing to do any more with a task, or ""."""
        answer = operations.perform(self.action_name, record)
        if not answer.refusal:
            new = answer.new.task_name if answer.new else ""
            results.add(record.task_name, self.said_of(record, answer), is_done=True, new=new)
            return
        # It was read a moment ago, together with others.
        now = TaskRecord.objects.defer(*WIDE_COLUMNS).filter(pk=record.pk).first()
        refusal = "" if now is None else has_changed(now)
        results.add(record.task_name, refusal or answer.refusal, is_skipped=bool(refusal))

    def said_of(self, record: TaskRecord, answer: Answer) -> str:
        """Return what is said of a task that was changed."""
        return self.done_word

    def _print(self, console: Console, results: Results, *, is_named: bool) -> None:
        if is_named:
            for entry in results.entries:
                console.line(f"{entry['task']}: {entry['result']}")
            return
        refused = [entry for entry in results.entries if not entry["done"]]
        for entry in refused[:PRINTED_REFUSALS]:
            console.line(f"{entry['task']}: {entry['result']}")
        if len(refused) > PRINTED_REFUSALS:
            console.line(f"and {len(refused) - PRINTED_REFUSALS} more")
        skipped = f", {results.skipped} skipped" if results.skipped else ""
        console.line(f"{counted(results.done, 'task')} {self.done_word}, {results.refused} refused{skipped}")


def _records(keys: list[int]) -> Iterator[TaskRecord]:
    """Yield the records with these keys, each as it is shortly before its turn."""
    for start in range(0, len(keys), AT_ONCE):
        records = TaskRecord.objects.filter(pk__in=keys[start : start + AT_ONCE])
        yield from records.defer(*WIDE_COLUMNS).order_by("pk")


def _to_each(records: Iterable[TaskRecord], act: Callable[[TaskRecord], None], results: Results) -> None:
    """Call ``act`` with each record until somebody presses Ctrl-C: what was done is printed nevertheless."""
    with Interruptible(records) as remaining:
        try:
            for record in remaining:
                act(record)
        except DatabaseError as error:
            results.problem = database_failed(error)
    results.is_interrupted = remaining.is_interrupted


class Retry(BulkSubcommand):
    name = action_name = "retry"
    help = "Retry failed and cancelled tasks."
    done_word = "retried"

    def add_own_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--include-completed", action="store_true", help="Run tasks again too whose work is done already."
        )

    def includes_done(self, options: dict[str, Any]) -> bool:
        return bool(options["include_completed"])

    def further_refusal(self, record: TaskRecord, options: dict[str, Any]) -> str:
        if is_done(record) and not options["include_completed"]:
            return "a later try has completed; --include-completed runs it again"
        return ""

    def said_of(self, record: TaskRecord, answer: Answer) -> str:
        return f"retried as {answer.new.task_name}" if answer.new else self.done_word


class Cancel(BulkSubcommand):
    name = action_name = "cancel"
    help = "Cancel queued, running and paused tasks."
    done_word = "cancelled"

    def named(self, name: str) -> TaskRecord:
        return unfinished_named(name)

    def said_of(self, record: TaskRecord, answer: Answer) -> str:
        return self.done_word if has_ended(status_of(record.task_name)) else "asked to stop"
