"""What must hold after a round, read from the database and from the ledger; it knows nothing of how it comes about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import combinations

from powercrud_dashboard.models import ActiveTask, ConflictLock, TaskEvent, TaskRecord
from tests.faults.ledger import Run

#: What an event makes of a task's status.
SAYS = {
    "create": "pending",
    "start": "in_progress",
    "retry": "pending",
    "complete": "success",
    "fail": "failed",
    "cancel": "cancelled",
}
#: Events that a person causes.
BY_A_PERSON = ("cancel_requested", "run_now", "release")
ACTIVE = {"pending": "pending", "in_progress": "in_progress"}


def check(launched: Iterable[str], deleted: Iterable[str], runs: list[Run]) -> list[str]:
    """Return what does not hold, each in words; nothing if all is well.

    ``launched`` are the tasks that were accepted, ``deleted`` those whose records were deleted since.
    """
    return [
        *_each_task_is_somewhere(set(launched), set(deleted)),
        *_records_say_what_their_events_say(),
        *_locks_have_holders(),
        *_people_are_named(),
        *_runs_agree(runs),
        *_nothing_ran_at_the_same_time(runs),
    ]


def _each_task_is_somewhere(launched: set[str], deleted: set[str]) -> Iterator[str]:
    active = dict(ActiveTask.objects.tasks().values_list("task_name", "state"))
    statuses = dict(TaskRecord.objects.values_list("task_name", "status"))
    for name in launched - deleted - statuses.keys():
        yield f"{name} was launched and has no record"
    for name, status in statuses.items():
        if active.get(name) != ACTIVE.get(status):
            yield f"{name} is recorded as {status}, and is {active.get(name) or 'not there'}"
    for name in active.keys() - statuses.keys() - deleted:
        yield f"{name} is {active[name]} and has no record"


def _records_say_what_their_events_say() -> Iterator[str]:
    for record in TaskRecord.objects.prefetch_related("events"):
        events = sorted(record.events.all(), key=lambda event: event.pk)
        said = [
            SAYS[event.event]
            for event in events
            if event.event in SAYS
            and not event.message.startswith("Arrived after")
            and (event.event != "retry" or event.payload.get("postponed"))
        ]
        if not said or events[0].event != "create":
            yield f"{record.task_name} does not begin with its creation"
        elif said[-1] != record.status:
            yield f"{record.task_name} is recorded as {record.status}; its events say {', '.join(said)}"


def _locks_have_holders() -> Iterator[str]:
    names = set(ActiveTask.objects.values_list("pk", flat=True))
    for lock in ConflictLock.objects.all():
        if lock.active_task_id not in names:
            yield f"the lock on {lock.object_id} has outlived its holder"


def _people_are_named() -> Iterator[str]:
    for record in TaskRecord.objects.prefetch_related("events"):
        for event in record.events.all():
            by_hand = event.event in BY_A_PERSON or (event.event == "retry" and not event.payload.get("postponed"))
            # Of accounts that are gone the name stays.
            if by_hand and not event.actor_label:
                yield f"nobody is named for {event.event} of {record.task_name}"


def _runs_agree(runs: list[Run]) -> Iterator[str]:
    by_task: dict[str, list[Run]] = {}
    for run in runs:
        by_task.setdefault(run.task, []).append(run)
    begun = Counter(
        TaskEvent.objects.filter(event="start")
        .exclude(message__startswith="Arrived after")
        .values_list("record__task_name", flat=True)
    )
    recorded = set(TaskRecord.objects.values_list("task_name", flat=True))
    for name, its_runs in by_task.items():
        # Nobody can begin a task that has ended, so a run that nobody began is one after the end.
        if name in recorded and len(its_runs) > begun[name]:
            yield f"{name} was begun {begun[name]} times, and ran {len(its_runs)} times"
    completed = TaskRecord.objects.filter(status="success", func="tests.faults.work.work")
    for name in completed.values_list("task_name", flat=True):
        if not any(run.ended for run in by_task.get(name, ())):
            yield f"{name} is recorded as completed, and never came to its end"


def _nothing_ran_at_the_same_time(runs: list[Run]) -> Iterator[str]:
    for one, other in combinations(runs, 2):
        if min(one.last_seen, other.last_seen) <= max(one.began, other.began):
            continue
        if one.task == other.task:
            yield f"{one.task} ran twice at the same time (processes {one.pid}, {other.pid})"
        elif shared := set(one.objects) & set(other.objects):
            yield f"{one.task} and {other.task} worked on {', '.join(sorted(shared))} at the same time"
