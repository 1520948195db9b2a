"""What must hold after a round, read from the database and from the ledger; it knows nothing of how it comes about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import combinations

from powercrud_dashboard.models import ActiveTask, ConflictLock, FailureReason, TaskEvent, TaskObject, TaskRecord
from tests.faults.ledger import RETURNED, Book, Deed, Run
from tests.testapp.models import Visit

#: What an event makes of a task's status.
SAYS = {
    "create": "pending",
    "start": "in_progress",
    "retry": "pending",
    "complete": "success",
    "fail": "failed",
    "cancel": "cancelled",
    "pause": "paused",
    "slice": "pending",
    "resume": "pending",
}
#: Events that a person causes.
BY_A_PERSON = ("cancel_requested", "run_now", "release", "pause_requested", "pause", "resume")
ACTIVE = {"pending": "pending", "in_progress": "in_progress", "paused": "paused"}

#: The action that leaves a row for each object.
ACTION = "Count visits"

#: Tasks whose functions end as they are told to.
OBEDIENT = "tests.faults.work.work"

#: A SIGTERM to the cluster's main process, and one to each of its processes.
STOPS = ("stopped", "terminated")

#: Seconds that a process which was frozen may go on for until it finds out what has passed to others.
NOTICES_WITHIN = 2.0
#: Seconds in which a worker may still begin what it had taken when its cluster's stop began.
TAKEN_BEFORE = 1.5


def check(
    launched: Iterable[str],
    deleted: Iterable[str],
    book: Book,
    *,
    undone: Iterable[str] = (),
    may_lose: bool = True,
) -> list[str]:
    """Return what does not hold, each in words; nothing if all is well.

    Args:
        launched: the tasks that were accepted.
        deleted: those whose records were deleted since.
        book: the ledger.
        undone: those whose launches were rolled back.
        may_lose: whether something happened at which a broker loses messages that no worker has begun.
    """
    runs = book.runs
    return [
        *_each_task_is_somewhere(set(launched), set(deleted)),
        *_what_is_undone_is_gone(undone),
        *_records_say_what_their_events_say(),
        *_locks_have_holders(),
        *_people_are_named(),
        *_runs_agree(runs),
        *_records_say_how_runs_ended(runs),
        *([] if may_lose else _nothing_is_lost()),
        *_nothing_ran_at_the_same_time(book),
        *_stops_are_heeded(book),
        *([] if deleted else _objects_are_done_once()),
        *(deed.text for deed in book.deeds if deed.what == "wrong"),
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


def _what_is_undone_is_gone(undone: Iterable[str]) -> Iterator[str]:
    for name in TaskRecord.objects.filter(task_name__in=undone).values_list("task_name", flat=True):
        yield f"the launch of {name} was rolled back, and it has a record"


def _records_say_what_their_events_say() -> Iterator[str]:
    for record in TaskRecord.objects.prefetch_related("events"):
        events = sorted(record.events.all(), key=lambda event: event.pk)
        said = [
            SAYS[event.event]
            for event in events
            if event.event in SAYS
            and not event.message.startswith("Arrived after")
            and (event.event != "retry" or event.payload.get("postponed"))
            and (event.event != "resume" or event.payload.get("requeued"))
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


def _by_task(runs: list[Run]) -> dict[str, list[Run]]:
    by_task: dict[str, list[Run]] = {}
    for run in runs:
        by_task.setdefault(run.task, []).append(run)
    return by_task


def _runs_agree(runs: list[Run]) -> Iterator[str]:
    begun = Counter(
        TaskEvent.objects.filter(event="start")
        .exclude(message__startswith="Arrived after")
        .values_list("record__task_name", flat=True)
    )
    recorded = set(TaskRecord.objects.values_list("task_name", flat=True))
    for name, its_runs in _by_task(runs).items():
        # Nobody can begin a task that has ended, so a run that nobody began is one after the end.
        if name in recorded and len(its_runs) > begun[name]:
            yield f"{name} was begun {begun[name]} times, and ran {len(its_runs)} times"


def _records_say_how_runs_ended(runs: list[Run]) -> Iterator[str]:
    by_task = _by_task(runs)
    records = TaskRecord.objects.filter(func=OBEDIENT, status__in=["success", "failed"])
    tried_again = set(TaskEvent.objects.filter(event="retry").values_list("record__task_name", flat=True))
    for name, status, reason in records.values_list("task_name", "status", "failure_reason"):
        its_runs = by_task.get(name, [])
        if status == "success" and not any(run.outcome == RETURNED for run in its_runs):
            last = its_runs[-1].outcome if its_runs else "no run"
            yield f"{name} is recorded as completed, and no run of it has returned (the last: {last or 'no end'})"
        # A process may end between the function's end and its recording, and is lost then.
        if reason == FailureReason.ERROR and its_runs and its_runs[-1].outcome == RETURNED:
            yield f"{name} is recorded as failed with an error, and its last run has returned"
        if reason == FailureReason.NEVER_STARTED and its_runs and name not in tried_again:
            yield f"{name} is recorded as never started, and has run {len(its_runs)} times"


def _nothing_is_lost() -> Iterator[str]:
    for record in TaskRecord.objects.filter(failure_reason=FailureReason.NEVER_STARTED):
        yield f"{record.task_name} is recorded as never started, and nothing has lost its message"


def _objects_are_done_once() -> Iterator[str]:
    """Compare the ledger of the actions per object with the rows that they have stored with each object."""
    entries = TaskObject.objects.filter(record__label=ACTION, outcome="done")
    told = Counter(entries.values_list("record__task_name", "object_id"))
    stored = Counter((visit.task, str(visit.project)) for visit in Visit.objects.all())
    for task, key in told.keys() | stored.keys():
        if told[task, key] != stored[task, key] or stored[task, key] > 1:
            yield f"{task} says of {key} that it is done {told[task, key]} times, and has stored {stored[task, key]}"


# Side by side

Span = tuple[float, float]


def _nothing_ran_at_the_same_time(book: Book) -> Iterator[str]:
    frozen = _frozen(book.deeds)
    for one, other in combinations(book.runs, 2):
        if one.task == other.task:
            if _meet(_spans(one, frozen), _spans(other, frozen)):
                yield (f"{one.task} ran twice at the same time ({_where(one)}, {_where(other)})")
            continue
        shared = {
            key
            for key in _objects(one) & _objects(other)
            if _meet(_spans(one, frozen, key), _spans(other, frozen, key))
        }
        if shared:
            yield (
                f"{one.task} and {other.task} worked on {', '.join(sorted(shared))} at the same time"
                f" ({_where(one)}, {_where(other)})"
            )


def _where(run: Run) -> str:
    return f"process {run.pid} on {run.host}, from {run.began:.2f} to {run.last_seen:.2f}"


def _objects(run: Run) -> set[str]:
    return set().union(*(entry.objects for entry in run.entries))


def _frozen(deeds: list[Deed]) -> dict[str, list[Span]]:
    """Return from when to when each cluster was frozen, or had not yet noticed that it was."""
    spans: dict[str, list[Span]] = {}
    for deed in deeds:
        if deed.what == "frozen":
            spans.setdefault(deed.cluster, []).append((deed.at, float("inf")))
        elif deed.what == "thawed":
            began, _ = spans[deed.cluster].pop()
            spans[deed.cluster].append((began, deed.at + NOTICES_WITHIN))
    return spans


def _spans(run: Run, frozen: dict[str, list[Span]], key: str | None = None) -> list[Span]:
    """Return from when to when the run worked (on that object), but for the time for which it was frozen."""
    pauses = frozen.get(run.cluster, [])
    spans: list[list[float]] = []
    last: float | None = None
    for entry in run.entries:
        at = entry.at
        # A run that begins in the pause has been begun by a process that goes on already.
        is_pause = any(start < at < end and run.began < start for start, end in pauses)
        if is_pause or (key is not None and key not in entry.objects):
            last = None
        elif last is not None and not any(last <= start < at for start, _ in pauses):
            spans[-1][1] = last = at
        else:
            spans.append([at, at])
            last = at
    return [(start, end) for start, end in spans]


def _meet(spans: list[Span], others: list[Span]) -> bool:
    return any(max(one[0], other[0]) < min(one[1], other[1]) for one in spans for other in others)


# Stops


def _stops_are_heeded(book: Book) -> Iterator[str]:
    killed = {deed.cluster for deed in book.deeds if deed.what in ("killed", "frozen", "cut off")}
    for deed in book.deeds:
        if deed.what in STOPS:
            for run in (run for run in book.runs if run.cluster == deed.cluster):
                late = run.began - deed.at
                if late > TAKEN_BEFORE and deed.cluster not in killed:
                    yield f"{run.task} began on the cluster {deed.cluster} {late:.2f} s after the beginning of its stop"
                if late < 0 and run.last_seen >= deed.at and not run.outcome and deed.cluster not in killed:
                    yield f"{run.task} did not come to its end, as the cluster {deed.cluster} was {deed.what}"
        if deed.what == "still there" and deed.cluster not in killed:
            yield f"the cluster {deed.cluster} does not stop: {deed.text}"
