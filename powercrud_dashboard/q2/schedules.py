"""django-q2's schedules: declare, list with their last runs, run one now, pause and resume it, run it under a lock."""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.core.exceptions import ValidationError
from django.db import connections, router, transaction
from django.utils import timezone
from django.utils.translation import gettext_noop
from django_q import conf
from django_q.models import Schedule, Task, validate_cron
from django_q.signals import pre_enqueue, pre_execute
from django_q.tasks import async_task

from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.models.database import coordination_db, take_turn, write_transaction

#: A cluster looks for due schedules about twice a minute. One that is due for longer than this is missed.
MISSED_AFTER = timedelta(minutes=2)

#: django-q2's kinds of schedules by the words for ``every``.
WORDS = {
    "hourly": Schedule.HOURLY,
    "daily": Schedule.DAILY,
    "weekly": Schedule.WEEKLY,
    "biweekly": Schedule.BIWEEKLY,
    "monthly": Schedule.MONTHLY,
    "bimonthly": Schedule.BIMONTHLY,
    "quarterly": Schedule.QUARTERLY,
    "yearly": Schedule.YEARLY,
}
#: By which the pages show these kinds: django-q2's words, in our catalogues for languages that it has not.
SHOWN_KINDS = (
    gettext_noop("Once"),
    gettext_noop("Hourly"),
    gettext_noop("Daily"),
    gettext_noop("Weekly"),
    gettext_noop("Biweekly"),
    gettext_noop("Monthly"),
    gettext_noop("Bimonthly"),
    gettext_noop("Quarterly"),
    gettext_noop("Yearly"),
)
#: Those that are a length of time.
LENGTHS = {
    timedelta(hours=1): Schedule.HOURLY,
    timedelta(days=1): Schedule.DAILY,
    timedelta(weeks=1): Schedule.WEEKLY,
    timedelta(weeks=2): Schedule.BIWEEKLY,
}
#: The largest value of the column.
MAX_MINUTES = 32_767


@dataclass(frozen=True)
class Timing:
    """When a schedule runs, in django-q2's columns."""

    schedule_type: str
    minutes: int | None = None
    cron: str | None = None

    @classmethod
    def of(cls, cron: str | None, every: timedelta | str | None) -> Timing:
        """Return the timing of a cron expression, or of an interval.

        Raises:
            TypeError: if neither or both are given, or one has a wrong type.
            ValueError: if the interval is not one that django-q2 has.
        """
        if (cron is None) == (every is None):
            raise TypeError("Give a cron expression or every=, not both.")
        if cron is not None:
            if not isinstance(cron, str):
                raise TypeError(f"The cron expression is a {type(cron).__name__}; use a text, such as '0 2 * * *'.")
            return cls(Schedule.CRON, cron=" ".join(cron.split()))
        if isinstance(every, str):
            if every not in WORDS:
                raise ValueError(f"every is {every!r}; use a timedelta, or one of {', '.join(WORDS)}.")
            return cls(WORDS[every])
        if not isinstance(every, timedelta):
            raise TypeError(f"every is a {type(every).__name__}; use a timedelta, or one of {', '.join(WORDS)}.")
        if every in LENGTHS:
            return cls(LENGTHS[every])
        minutes, rest = divmod(every, timedelta(minutes=1))
        if rest or not 1 <= minutes <= MAX_MINUTES:
            raise ValueError(f"every is {every}; use whole minutes, from 1 to {MAX_MINUTES:,}.")
        return cls(Schedule.MINUTES, minutes=minutes)

    @property
    def columns(self) -> dict[str, Any]:
        return {"schedule_type": self.schedule_type, "minutes": self.minutes, "cron": self.cron}

    def problem(self) -> str:
        """Return why no cluster could run a schedule with this timing; "" if one could."""
        if self.cron is None:
            return ""
        longest = Schedule._meta.get_field("cron").max_length or 0
        if len(self.cron) > longest:
            return f"its cron expression has more than {longest} characters"
        try:
            validate_cron(self.cron)
            Schedule(**self.columns).calculate_next_run(timezone.now())
        except ImportError:
            return "django-q2 needs the package 'croniter' for cron expressions"
        except ValidationError as error:
            return " ".join(error.messages).rstrip(".")
        except ValueError as error:
            # Such as the 30th of February.
            return f"the cron expression {self.cron!r} has no next run ({error})"
        return ""


@dataclass(frozen=True)
class ScheduleState:
    """A schedule, and django-q2's own row of its last run, if that is kept."""

    schedule: Schedule
    last: Task | None = None

    @property
    def is_paused(self) -> bool:
        return self._recurs and self.schedule.next_run is None

    @property
    def can_pause(self) -> bool:
        return self._recurs and self.schedule.next_run is not None

    @property
    def has_further_runs(self) -> bool:
        return bool(self.schedule.repeats)

    @property
    def _recurs(self) -> bool:
        """Whether it has a next run: not a single run, nor one whose number of runs is used up."""
        return bool(self.schedule.repeats) and self.schedule.schedule_type != Schedule.ONCE

    @property
    def is_due(self) -> bool:
        """Whether a cluster will take it as soon as it looks."""
        return self.has_further_runs and self.schedule.next_run is not None and self.schedule.next_run <= timezone.now()

    @property
    def missed_since(self) -> datetime | None:
        """When it was due, if that is so long ago that a running cluster would have taken it."""
        due: datetime | None = self.schedule.next_run
        if not self.has_further_runs or due is None or due >= timezone.now() - MISSED_AFTER:
            return None
        return due

    @property
    def cluster(self) -> str:
        """The name of the cluster that is to run it."""
        return str(self.schedule.cluster or conf.Conf.PREFIX)

    @property
    def group(self) -> str:
        """The group that its tasks have in django-q2."""
        try:
            given = _arguments(self.schedule)[1].get("q_options", {}).get("group")
        except (ValueError, AttributeError):
            given = None
        return str(given or self.schedule.name or self.schedule.pk)


def ensure_schedule(func: str, *, name: str, seconds: int) -> bool:
    """Schedule ``func`` every so many seconds, at least a minute. Return whether the schedule is new."""
    interval = {"schedule_type": Schedule.MINUTES, "minutes": max(1, round(seconds / 60))}
    schedules = Schedule.objects.filter(name=name)
    if is_new := not schedules.update(func=func, **interval):
        Schedule.objects.create(name=name, func=func, repeats=-1, **interval)
    # Names are not unique: two hosts that are set up at the same moment both make one.
    if (first := schedules.order_by("pk").first()) is not None:
        schedules.filter(pk__gt=first.pk).delete()
    return is_new


def runs(func: str) -> bool:
    """Return whether a schedule that is not used up runs this function."""
    return bool(Schedule.objects.filter(func=func).exclude(repeats=0).exists())


def schedule_states() -> list[ScheduleState]:
    """Return the state of each schedule, the next to run first, in two queries."""
    schedules = list(Schedule.objects.order_by("next_run", "pk"))
    ids = [schedule.task for schedule in schedules if schedule.task]
    last = Task.objects.filter(pk__in=ids).only("pk", "success", "started", "stopped").in_bulk() if ids else {}
    return [ScheduleState(schedule, last.get(schedule.task)) for schedule in schedules]


def count() -> tuple[int, int]:
    """Return how many schedules there are, and how many of them are missed."""
    states = [ScheduleState(schedule) for schedule in Schedule.objects.only("next_run", "repeats")]
    return len(states), sum(state.missed_since is not None for state in states)


def missed() -> list[tuple[str, datetime]]:
    """Return the names of the schedules that are missed, and when they were due."""
    states = [ScheduleState(schedule) for schedule in Schedule.objects.only("name", "next_run", "repeats")]
    return [(it.schedule.name or str(it.schedule.pk), due) for it in states if (due := it.missed_since) is not None]


def find(pk: int) -> Schedule | None:
    """Return the schedule with this key, if there is one."""
    return Schedule.objects.filter(pk=pk).first()


def unknown_names(names: Iterable[str]) -> list[str]:
    """Return those of the names, or keys of schedules without a name, by which no schedule's tasks are known."""
    known = {ScheduleState(schedule).group for schedule in Schedule.objects.only("name", "args", "kwargs")}
    return sorted(set(names) - known)


def without_croniter() -> list[str]:
    """Return the names of the schedules whose cron expression django-q2 can't read, as croniter is not installed."""
    if conf.croniter is not None:
        return []
    rows = Schedule.objects.filter(schedule_type=Schedule.CRON, next_run__isnull=False).exclude(repeats=0)
    return [str(name or pk) for name, pk in rows.order_by("pk").values_list("name", "pk")]


def run_now(schedule: Schedule) -> None:
    """Hand the scheduled call to the broker now. The time of its next run does not change.

    Raises:
        ValueError: if its arguments can't be read.
        Exception: whatever the broker raises.
    """
    args, kwargs = _arguments(schedule)
    options = dict(kwargs.pop("q_options", {}))
    if schedule.intended_date_kwarg:
        kwargs[schedule.intended_date_kwarg] = timezone.now().isoformat()
    if schedule.hook:
        options["hook"] = schedule.hook
    options["cluster"] = schedule.cluster or options.get("cluster") or options.pop("broker_name", None)
    options.setdefault("group", schedule.name or schedule.pk)
    task_id = async_task(schedule.func, *args, q_options=options, **kwargs)
    # No row if somebody has deleted the schedule meanwhile; the call is queued all the same.
    Schedule.objects.filter(pk=schedule.pk).update(task=task_id)


def pause(schedule: Schedule) -> bool:
    """Clear the time of its next run. Return False for a schedule that can't be paused."""
    if not ScheduleState(schedule).can_pause:
        return False
    # Not if the scheduler has put its next run off meanwhile, for the last time.
    return bool(Schedule.objects.filter(pk=schedule.pk).exclude(repeats=0).update(next_run=None))


def resume(schedule: Schedule) -> bool:
    """Let a paused schedule run again, for the first time one interval from now. Return False if it isn't paused."""
    if not ScheduleState(schedule).is_paused:
        return False
    next_run = schedule.calculate_next_run(timezone.now())
    timing = {"schedule_type": schedule.schedule_type, "minutes": schedule.minutes, "cron": schedule.cron}
    if Schedule.objects.filter(pk=schedule.pk, next_run=None, **timing).update(next_run=next_run):
        return True
    # Somebody has changed it meanwhile.
    changed = find(schedule.pk)
    return changed is not None and resume(changed)


def _arguments(schedule: Schedule) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Read the arguments as the scheduler does: literals, keyword arguments also in the form of a call."""
    try:
        args = ast.literal_eval(schedule.args) if schedule.args else ()
        kwargs = _keywords(schedule.kwargs) if schedule.kwargs else {}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        # All that literal_eval raises.
        raise ValueError(f"The arguments of {schedule} can't be read ({error})") from error
    return (args if isinstance(args, tuple) else (args,)), kwargs


def _keywords(text: str) -> dict[str, Any]:
    try:
        found = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        call = ast.parse(f"f({text})", mode="eval").body
        if not isinstance(call, ast.Call):
            raise
        found = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    if not isinstance(found, dict):
        raise ValueError(f"{text!r} names no arguments")
    return found


# Declared schedules


@dataclass
class Changes:
    """The names of schedules that were made, changed and deleted, or would be, and of those that are as declared."""

    created: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        return not (self.created or self.updated or self.deleted)


@dataclass(frozen=True)
class Wanted:
    """A declared schedule: when it runs, and in which cluster."""

    timing: Timing
    cluster: str | None = None

    def columns(self, name: str) -> dict[str, Any]:
        return {
            **self.timing.columns,
            "repeats": -1,
            "hook": None,
            "intended_date_kwarg": None,
            "args": repr(name),
            # A failed call is not delivered again: a record tells of it.
            "kwargs": repr({"q_options": {"ack_failure": True}}),
            "cluster": self.cluster or None,
        }


def sync(
    func: str, wanted: Mapping[str, Wanted], *, keeps: Callable[[str], bool] = lambda name: False, dry_run: bool = False
) -> Changes:
    """Make, change and delete the schedules that call ``func``, so that there is one for each wanted name.

    Those of other names are left as they are if ``keeps`` returns True for the name. What people have paused stays
    paused, and the time of the next run changes only with the timing. Other schedules are left alone. Two hosts that do
    this at once make each schedule once.
    """
    changes = _Sync(func, wanted, keeps).run(dry_run=True)
    if dry_run or changes.is_empty:
        return changes
    with write_transaction():
        take_turn("schedules")
        with transaction.atomic(using=_schedule_db()):
            return _Sync(func, wanted, keeps).run(dry_run=False)


def can_sync(using: str) -> bool:
    """Return whether this is one of the databases that :func:`sync` writes to, and both are migrated so far."""
    if using not in {_schedule_db(), coordination_db()}:
        return False
    if "powercrud_dashboard_activetask" not in connections[coordination_db()].introspection.table_names():
        return False
    needed = {column.column for column in Schedule._meta.concrete_fields}
    return needed <= _columns(_schedule_db(), Schedule._meta.db_table)


def _columns(using: str, table: str) -> set[str]:
    """Return the columns that a table has in the database; none if there is no such table."""
    inspection = connections[using].introspection
    with connections[using].cursor() as cursor:
        if table not in inspection.table_names(cursor):
            return set()
        return {column.name for column in inspection.get_table_description(cursor, table)}


def _schedule_db() -> str:
    return str(router.db_for_write(Schedule))


class _Sync:
    def __init__(self, func: str, wanted: Mapping[str, Wanted], keeps: Callable[[str], bool]) -> None:
        self._func = func
        self._wanted = wanted
        self._keeps = keeps
        self._schedules = Schedule.objects.using(_schedule_db())
        self._changes = Changes()

    def run(self, *, dry_run: bool) -> Changes:
        found: dict[str, Schedule] = {}
        for schedule in self._schedules.filter(func=self._func).order_by("pk"):
            name = schedule.name or ""
            if name in self._wanted and name not in found:
                found[name] = schedule
                continue
            if name not in self._wanted and self._keeps(name):
                self._changes.unchanged.append(name)
                continue
            self._changes.deleted.append(name)
            if not dry_run:
                self._schedules.filter(pk=schedule.pk, func=self._func).delete()
        for name, wanted in self._wanted.items():
            if name not in found:
                self._changes.created.append(name)
                if not dry_run:
                    self._create(name, wanted)
            elif different := _different(found[name], wanted.columns(name)):
                self._changes.updated.append(name)
                if not dry_run:
                    self._update(found[name], wanted, different)
            else:
                self._changes.unchanged.append(name)
        return self._changes

    def _create(self, name: str, wanted: Wanted) -> None:
        schedule = Schedule(name=name, func=self._func, **wanted.columns(name))
        schedule.next_run = schedule.calculate_next_run(timezone.now())
        schedule.save(using=self._schedules.db)

    def _update(self, schedule: Schedule, wanted: Wanted, different: dict[str, Any]) -> None:
        row = self._schedules.filter(pk=schedule.pk, func=self._func)
        row.update(**different)
        # The next run of one that was used up is long past.
        if different.keys() & wanted.timing.columns.keys() or not schedule.repeats:
            for column, value in different.items():
                setattr(schedule, column, value)
            # One that is paused has no next run, and gets none.
            row.filter(next_run__isnull=False).update(next_run=schedule.calculate_next_run(timezone.now()))


def _different(schedule: Schedule, columns: Mapping[str, Any]) -> dict[str, Any]:
    return {column: value for column, value in columns.items() if getattr(schedule, column) != value}


# Schedules under a lock

_PACKAGE = "powercrud_dashboard."

#: What a task of a locked schedule takes with it, from the message of the call that launches it.
_OPTIONS = ("hook", "timeout", "save", "cached", "cluster", "sync")
#: Of a chain or an iteration, whose parts django-q2 joins by the results of these very messages.
_PART_OF_MORE = {"chain", "iter_count"}


def lock_scheduled(launcher: str, path_of: Callable[[Any], str]) -> None:
    """From now on have ``launcher`` called in the place of the functions of ``DASHBOARD_SCHEDULE_LOCKS``.

    It gets the name of the schedule, the path of the function, its arguments and keyword arguments, and django-q2's
    options. ``path_of`` returns the path of a function; "" if a worker can't import it.
    """

    def replace(sender: Any, task: dict[str, Any], **kwargs: Any) -> None:
        name = str(task.get("group") or "")
        if name not in app_settings.DASHBOARD_SCHEDULE_LOCKS or task.keys() & _PART_OF_MORE:
            return
        func = task["func"] if isinstance(task["func"], str) else path_of(task["func"])
        # Not what a manager launches; and a declared schedule has the lock that its declaration names.
        if not func or func.startswith(_PACKAGE):
            return
        options = {option: task[option] for option in _OPTIONS if option in task}
        task.pop("hook", None)
        task["args"] = (name, func, task["args"], task["kwargs"], options)
        task.update(func=launcher, kwargs={}, ack_failure=True)

    pre_enqueue.connect(replace, sender="django_q", weak=False, dispatch_uid="powercrud_dashboard.lock_scheduled")


# The message of a call that launches a run

_launching: ContextVar[str] = ContextVar("powercrud_dashboard_launching", default="")


def note_launches(launchers: Collection[str]) -> None:
    """From now on note the id of the message by which a worker calls one of these functions."""

    def note(sender: Any, task: dict[str, Any], **kwargs: Any) -> None:
        func = task["func"]
        _launching.set(str(task["id"]) if isinstance(func, str) and func in launchers else "")

    pre_execute.connect(note, sender="django_q", weak=False, dispatch_uid="powercrud_dashboard.note_launches")


def take_launch_id() -> str:
    """Return, once, the id of the message that is the reason of this call; "" if it is called without one."""
    launch_id = _launching.get()
    _launching.set("")
    return launch_id
