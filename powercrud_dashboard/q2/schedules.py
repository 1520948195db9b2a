"""django-q2's schedules: create one, list them with their last runs, run one now, pause and resume it."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.utils import timezone
from django_q.models import Schedule, Task
from django_q.tasks import async_task


@dataclass(frozen=True)
class ScheduleState:
    """A schedule and how its last run went, as far as django-q2 keeps that."""

    schedule: Schedule
    last_succeeded: bool | None
    last_ended: datetime | None

    @property
    def is_paused(self) -> bool:
        return self._recurs and self.schedule.next_run is None

    @property
    def can_pause(self) -> bool:
        return self._recurs and self.schedule.next_run is not None

    @property
    def _recurs(self) -> bool:
        """Whether it has a next run: not a single run, nor one whose number of runs is used up."""
        return bool(self.schedule.repeats) and self.schedule.schedule_type != Schedule.ONCE


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
    last = {
        task.pk: task
        for task in Task.objects.filter(pk__in=[schedule.task for schedule in schedules]).only(
            "pk", "success", "stopped"
        )
    }
    return [
        ScheduleState(
            schedule,
            last_succeeded=last[schedule.task].success if schedule.task in last else None,
            last_ended=last[schedule.task].stopped if schedule.task in last else None,
        )
        for schedule in schedules
    ]


def find(pk: int) -> Schedule | None:
    """Return the schedule with this key, if there is one."""
    return Schedule.objects.filter(pk=pk).first()


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
    schedule.task = async_task(schedule.func, *args, q_options=options, **kwargs)
    schedule.save(update_fields=["task"])


def pause(schedule: Schedule) -> bool:
    """Clear the time of its next run. Return False for a schedule that can't be paused."""
    if not ScheduleState(schedule, None, None).can_pause:
        return False
    # Not if the scheduler has put its next run off meanwhile, for the last time.
    return bool(Schedule.objects.filter(pk=schedule.pk).exclude(repeats=0).update(next_run=None))


def resume(schedule: Schedule) -> bool:
    """Let a paused schedule run again, for the first time one interval from now. Return False if it isn't paused."""
    if not ScheduleState(schedule, None, None).is_paused:
        return False
    next_run = schedule.calculate_next_run(timezone.now())
    return bool(Schedule.objects.filter(pk=schedule.pk, next_run=None).update(next_run=next_run))


def _arguments(schedule: Schedule) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Read the arguments as the scheduler does: literals, keyword arguments also in the form of a call."""
    try:
        args = ast.literal_eval(schedule.args) if schedule.args else ()
        kwargs = _keywords(schedule.kwargs) if schedule.kwargs else {}
    except (SyntaxError, ValueError) as error:
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
