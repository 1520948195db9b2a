"""Show who holds locks, and release them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

from django.db import Error as DatabaseError
from django.db.models import OuterRef, QuerySet

from powercrud_dashboard.async_manager import AsyncManager
from powercrud_dashboard.dashboard.formatting import relative_time
from powercrud_dashboard.dashboard.listing import CappedCount
from powercrud_dashboard.dashboard.locking import matching_locks, texts_of
from powercrud_dashboard.exceptions import TaskBusy
from powercrud_dashboard.management.pcrud.base import (
    Interruptible,
    Subcommand,
    add_limit,
    add_user_argument,
    add_yes,
    confirm,
    failed,
    misused,
    operator,
)
from powercrud_dashboard.management.pcrud.choosing import full_name
from powercrud_dashboard.management.pcrud.console import Column, Console, counted, database_failed
from powercrud_dashboard.management.pcrud.tasks import short_name
from powercrud_dashboard.models import ActiveTask, ConflictLock, TaskRecord
from powercrud_dashboard.models.coordination import ActiveTaskState
from powercrud_dashboard.models.database import Now
from powercrud_dashboard.models.labels import label_of_rows

#: Holders in the table, unless ``--limit`` says otherwise.
LIMIT = 50
#: Objects of a holder in the table, and in the JSON.
NAMED_OBJECTS, LISTED_OBJECTS = 3, 1_000


def _add_choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--holder", metavar="NAME", help="A task or a reservation: its name, or the beginning of it.")
    parser.add_argument(
        "--object",
        action="append",
        default=[],
        dest="objects",
        metavar="MODEL[:KEY]",
        help="An object, such as shop.product:17, or all objects of a model. Several times for several.",
    )


def _chosen(options: dict[str, Any], locks: QuerySet[ConflictLock]) -> QuerySet[ConflictLock]:
    """Return those of the locks that the options mean."""
    if holder := options["holder"]:
        locks = locks.filter(active_task__task_name=full_name(ActiveTask.objects.all(), holder))
    if options["objects"]:
        found = locks.none()
        for text in options["objects"]:
            label, _colon, key = text.partition(":")
            if "." not in label:
                raise misused(f"--object {text}: name the model as app_label.Model, and the key after a colon.")
            of_model = locks.filter(model_label=label_of_rows(label))
            found |= of_model.filter(object_id=key) if key else of_model
        locks = found
    return locks


class Locks(Subcommand):
    name = "locks"
    help = "Show who has locked which objects, the oldest locks first."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        _add_choice(parser)
        parser.add_argument("--search", default="", metavar="WORDS", help="Words as on the Locks page.")
        add_limit(parser, LIMIT, "Holders")

    def handle(self, console: Console, options: dict[str, Any]) -> None:
        locks = _chosen(options, matching_locks(options["search"]))
        counts = ConflictLock.objects.filter(active_task=OuterRef("pk")).values("pk")
        holders: list[Any] = list(
            ActiveTask.objects.filter(pk__in=locks.values("active_task"))
            .prefetch_related("user")
            .annotate(read_at=Now(), lock_count=CappedCount(counts))
            .order_by("created_at", "pk")[: options["limit"] + 1]
        )
        shown = holders[: options["limit"]]
        people = dict(
            TaskRecord.objects.filter(task_name__in=[active.task_name for active in shown]).values_list(
                "task_name", "user_label"
            )
        )
        entries = [(active, self._objects(active, locks, console)) for active in shown]
        console.document(
            [
                {
                    "holder": active.task_name,
                    "label": active.label,
                    "state": active.state,
                    "user": people.get(active.task_name) or str(active.user or ""),
                    "since": active.created_at,
                    "expires_at": active.expires_at,
                    "count": active.lock_count,
                    "objects": objects,
                }
                for active, objects in entries
            ]
        )
        if not shown:
            console.line("No locks match." if _is_chosen(options) or options["search"] else "Nothing is locked.")
            return
        columns = [
            Column("Holder", gives_way=True),
            Column("State"),
            Column("Since", is_number=True),
            Column("By", gives_way=True),
            Column("What", gives_way=True),
            Column("Locks", is_number=True),
            Column("Objects", gives_way=True),
        ]
        console.table(
            columns,
            [
                (
                    short_name(active.task_name),
                    active.get_state_display(),
                    relative_time(active.created_at, active.read_at),
                    people.get(active.task_name) or str(active.user or ""),
                    active.label,
                    active.lock_count,
                    ", ".join(item["text"] for item in objects) + (" …" if active.lock_count > len(objects) else ""),
                )
                for active, objects in entries
            ],
        )
        if len(holders) > len(shown):
            console.note(f"The first {len(shown)} holders. --limit shows more.")

    @staticmethod
    def _objects(active: Any, locks: QuerySet[ConflictLock], console: Console) -> list[dict[str, str]]:
        number = LISTED_OBJECTS if console.is_json else NAMED_OBJECTS
        of_holder = list(locks.filter(active_task=active.pk).order_by("pk")[:number])
        texts = texts_of(of_holder, [active.task_name])
        return [
            {
                "model": lock.model_label,
                "id": lock.object_id,
                "text": texts.get((active.task_name, lock.model_label, lock.object_id)) or str(lock),
            }
            for lock in of_holder
        ]


def _is_chosen(options: dict[str, Any]) -> bool:
    return bool(options["holder"] or options["objects"])


class Release(Subcommand):
    name = "release"
    help = "Release locks by hand. A task that runs goes on without them."
    details = "The timeline of each holder says who has released what, and the note."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        _add_choice(parser)
        parser.add_argument("--note", default="", metavar="TEXT", help="Why.")
        add_yes(parser)
        add_user_argument(parser)

    def handle(self, console: Console, options: dict[str, Any]) -> None:
        if not _is_chosen(options):
            raise misused("Name the locks with --holder or --object.")
        keys = list(_chosen(options, ConflictLock.objects.all()).order_by("pk").values_list("pk", flat=True))
        if not keys:
            raise failed("There is no such lock.")
        self._ask(console, keys, options)
        actor, manager = operator(options).actor, AsyncManager.resolve_manager()
        entries: list[dict[str, Any]] = []
        problem = ""

        def release(lock: ConflictLock) -> None:
            manager.release_conflict_lock(lock, user=actor, note=options["note"])

        with Interruptible(console.progress(keys, len(keys))) as remaining:
            try:
                for pk in remaining:
                    entries += self._release(pk, release)
            except DatabaseError as error:
                problem = f"{database_failed(error)}\n"
        done = [entry for entry in entries if entry["done"]]
        refused = [entry for entry in entries if not entry["done"]]
        console.document({"done": len(done), "refused": len(refused), "results": entries})
        for entry in refused:
            console.line(f"{entry['model']} {entry['id']}: {entry['result']}")
        console.line(f"{counted(len(done), 'lock')} released")
        if problem or remaining.is_interrupted:
            raise failed(f"{problem or 'Interrupted: '}The other locks were not released.")
        if refused:
            raise failed(f"{counted(len(refused), 'lock')} not released.")

    @staticmethod
    def _release(pk: int, release: Callable[[ConflictLock], object]) -> Iterator[dict[str, Any]]:
        """Release a lock, and yield what has come of it; nothing if its holder has ended, which is what was wanted."""
        lock = ConflictLock.objects.select_related("active_task").filter(pk=pk).first()
        if lock is None:
            return
        entry = {"holder": lock.active_task.task_name, "model": lock.model_label, "id": lock.object_id}
        try:
            release(lock)
            yield {**entry, "done": True, "result": "released"}
        except TaskBusy as error:
            yield {**entry, "done": False, "result": str(error)}

    @staticmethod
    def _ask(console: Console, keys: list[int], options: dict[str, Any]) -> None:
        if options["yes"]:
            return
        holders = ActiveTask.objects.filter(pk__in=_chosen(options, ConflictLock.objects.all()).values("active_task"))
        for active in holders.order_by("pk")[:NAMED_OBJECTS]:
            runs = ", which runs and goes on without them" if active.state == ActiveTaskState.IN_PROGRESS else ""
            console.note(f"Held by {active.label or active.task_name}{runs}.")
        confirm(console, f"Release {counted(len(keys), 'lock')}?", options)
