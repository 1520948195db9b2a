"""Schedules that are declared in code, and what django-q2's schedules call by its dotted path."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from importlib import import_module
from typing import Any, Literal, TypeVar

from django.apps import apps
from django.db import InterfaceError, OperationalError, close_old_connections
from django.utils import timezone
from django.utils.module_loading import module_has_submodule
from django.utils.translation import gettext_lazy as _

from powercrud_dashboard.async_manager import AsyncManager, RetryPolicy
from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.engine import observed
from powercrud_dashboard.engine.arguments import NAME_LENGTH, as_name, as_time_limit
from powercrud_dashboard.engine.locks import ConflictIds
from powercrud_dashboard.engine.spec import INJECTED, accepted_arguments, check_arguments, resolve_function
from powercrud_dashboard.exceptions import (
    ScheduleNotDeclared,
    TaskAlreadyActive,
    TaskBusy,
    TaskConflict,
    TaskNameTaken,
    UnimportableCallable,
)
from powercrud_dashboard.models import FailureReason, Source, TaskRecord
from powercrud_dashboard.models.database import is_in_transaction
from powercrud_dashboard.q2 import schedules
from powercrud_dashboard.q2.schedules import Timing, Wanted
from powercrud_dashboard.text import (
    LONG,
    MESSAGE,
    SHORT,
    KeptText,
    clean_text,
    error_summary,
    error_text,
    traceback_text,
)

__all__ = ["cleanup_async_artifacts", "declared_schedules", "scheduled", "sync_schedules"]

logger = logging.getLogger(__name__)

CLEANUP_PATH = "powercrud_dashboard.schedules.cleanup_async_artifacts"
CLEANUP_NAME = "powercrud_dashboard cleanup"

#: What the schedules of declared tasks call. It is kept in django-q2's table.
RUN_PATH = "powercrud_dashboard.schedules.run_scheduled"
#: What is called in the place of the function of a schedule under a lock. It is in queue messages.
LOCKED_PATH = "powercrud_dashboard.schedules.run_locked"

#: Modules of the installed apps that are searched for declared schedules.
MODULES = ("tasks", "schedules")

#: The unique key of a schedule's tasks.
_KEY = "schedule:{}"
#: The namespace of the names of runs, which are made from the ids of the messages that launch them.
_RUNS = uuid.UUID("1d6d1f8e-5a40-4be1-9d0c-3d6a5a1c8f57")
MAX_NAME = NAME_LENGTH - len(_KEY.format(""))
#: Seconds for which a launch is tried while the database is away or locked, and between two tries.
TRIES_FOR, TRIES_AGAIN_AFTER = 60.0, 1.0

_LAUNCHED = KeptText(_("Launched by the schedule “%(schedule)s”"))
_STILL_RUNNING = KeptText(_("Skipped, as the run before has not ended (%(task)s)."))
_LOCKED = KeptText(_("Skipped. %(reason)s"), inner=["reason"])

Function = TypeVar("Function", bound=Callable[..., Any])
Overlap = Literal["skip", "allow"]


def cleanup_async_artifacts() -> dict[str, Any]:
    """Clean up once and return the summary of ``AsyncManager.cleanup_completed_tasks``."""
    return AsyncManager.resolve_manager().cleanup_completed_tasks()


# Declaring


@dataclass(frozen=True)
class ScheduledTask:
    """A schedule that is declared in code."""

    name: str
    #: The dotted path of the function.
    func: str
    timing: Timing
    args: tuple[Any, ...] = field(default=(), repr=False)
    kwargs: Mapping[str, Any] = field(default_factory=dict, repr=False)
    conflict_ids: ConflictIds | Callable[[], ConflictIds] | None = None
    label: str = ""
    timeout: int | None = None
    retry: RetryPolicy | int | None = None
    cluster: str = ""
    overlap: Overlap = "skip"

    def problem(self) -> str:
        """Return why no worker could run it; "" if one could."""
        try:
            path, func = resolve_function(self.func)
            check_arguments(path, func, self.args, {**accepted_arguments(func, INJECTED), **self.kwargs})
        except (UnimportableCallable, TypeError) as error:
            return str(error).rstrip(".")
        return self.timing.problem()

    def launch(self, user: Any = None, *, task_key: str | None = None) -> str:
        """Launch a run now and return the task's name.

        Raises:
            TaskAlreadyActive: if the run before has not ended, unless runs may overlap.
            TaskConflict: if somebody else holds one of the objects.
            Exception: as ``AsyncManager.launch_async_task``, and what ``conflict_ids`` raises.
        """
        return AsyncManager.resolve_manager().launch_async_task(
            self.func,
            task_key=task_key,
            user=user,
            task_args=self.args,
            task_kwargs=self.kwargs,
            conflict_ids=self.conflict_ids() if callable(self.conflict_ids) else self.conflict_ids,
            label=self.label or None,
            group=self.name,
            timeout=self.timeout,
            cluster=self.cluster or None,
            retry=self.retry,
            unique_key=_KEY.format(self.name) if self.overlap == "skip" else "",
        )


#: All declarations of the modules that have been imported, in their order.
registry: list[ScheduledTask] = []


def scheduled(
    cron: str | None = None,
    *,
    every: timedelta | str | None = None,
    name: str | None = None,
    args: Iterable[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    conflict_ids: ConflictIds | Callable[[], ConflictIds] | None = None,
    label: str = "",
    timeout: float | timedelta | None = None,
    retry: RetryPolicy | int | None = None,
    cluster: str | None = None,
    overlap: Overlap = "skip",
) -> Callable[[Function], Function]:
    """Declare that a task function runs at certain times. The function itself is not changed.

    ``manage.py migrate`` and ``manage.py pcrud_sync_schedules`` bring django-q2's schedules up to date with what the
    modules ``tasks`` and ``schedules`` of the installed apps declare.

    Args:
        cron: a cron expression, in the time zone of the clusters. It needs the package ``croniter``.
        every: in its place an interval: a ``timedelta`` of whole minutes, or ``"hourly"``, ``"daily"``, ``"weekly"``,
            ``"biweekly"``, ``"monthly"``, ``"bimonthly"``, ``"quarterly"`` or ``"yearly"``. It begins when the schedule
            is made.
        name: the name of the schedule, and the group of its tasks; by default the dotted path of the function.
        args: positional arguments for the function.
        kwargs: keyword arguments for the function.
        conflict_ids: the objects that each run locks, ``{"app_label.Model": {pk, ...}}``, or a function without
            arguments that returns them when a run is launched.
        label: the name of the tasks that people read; by default the dotted path of the function.
        timeout: seconds after which the worker stops a run; -1 for no limit.
        retry: a ``RetryPolicy``, or a number of retries.
        cluster: name of the django-q2 cluster that schedules and runs it.
        overlap: ``"skip"`` leaves a run out, and records that, while the run before has not ended; ``"allow"`` runs
            both.

    Raises:
        TypeError, ValueError: if an option has no possible value, or what is decorated is no function.
    """
    timing = Timing.of(cron, every)
    RetryPolicy.of(retry)
    if overlap not in ("skip", "allow"):
        raise ValueError(f'overlap is {overlap!r}; use "skip" or "allow".')
    if conflict_ids is not None and not (callable(conflict_ids) or isinstance(conflict_ids, Mapping)):
        raise TypeError(
            f"conflict_ids is a {type(conflict_ids).__name__}; use a mapping of model labels to keys, or a function."
        )

    def declare(func: Function) -> Function:
        if not hasattr(func, "__qualname__"):
            raise TypeError(
                f"@scheduled is put on a {type(func).__name__}; put it on a function: below @task and other decorators."
            )
        path = f"{func.__module__}.{func.__qualname__}"
        own_name = as_name("name", name or path)
        if len(own_name) > MAX_NAME:
            raise ValueError(
                f"The name of the schedule is {own_name!r}; pass name= with at most {MAX_NAME} characters."
            )
        registry.append(
            ScheduledTask(
                name=own_name,
                func=path,
                timing=timing,
                args=tuple(args),
                kwargs=dict(kwargs or {}),
                conflict_ids=conflict_ids,
                label=label,
                timeout=as_time_limit(timeout),
                retry=retry,
                cluster=as_name("cluster", cluster),
                overlap=overlap,
            )
        )
        return func

    return declare


def declarations() -> list[ScheduledTask]:
    """Return all declarations, also those of the same name."""
    undiscovered()
    return list(registry)


def declared_schedules() -> dict[str, ScheduledTask]:
    """Return the declared schedules by their names; of several with one name the first."""
    found: dict[str, ScheduledTask] = {}
    for declared in declarations():
        found.setdefault(declared.name, declared)
    return found


@cache
def undiscovered() -> dict[str, str]:
    """Import the modules that may declare schedules. Return those that can't be imported, each with its error.

    Many apps have a module ``tasks`` for another task queue, which need not be installed.
    """
    failed: dict[str, str] = {}
    for config in apps.get_app_configs():
        for path in (f"{config.name}.{name}" for name in MODULES if module_has_submodule(config.module, name)):
            try:
                import_module(path)
            except (Exception, SystemExit) as error:
                # A system check warns of it, with the error.
                logger.info("The schedules of %s are unknown, as it can't be imported", path, exc_info=True)
                failed[path] = error_summary(error)
                registry[:] = [declared for declared in registry if not declared.func.startswith(f"{path}.")]
    return failed


def sync_schedules(*, dry_run: bool = False) -> dict[str, list[str]]:
    """Make, change and delete django-q2's schedules, so that they are as declared. Others are left alone.

    A declaration whose timing is not possible is logged as an error, and its schedule is left as it is. While a module
    that may declare schedules can't be imported, no schedule is deleted.

    Returns:
        The names of those ``created``, ``updated``, ``deleted`` and ``unchanged``; with ``dry_run`` nothing is changed.
    """
    wanted: dict[str, Wanted] = {}
    impossible: set[str] = set()
    for name, declared in declared_schedules().items():
        if problem := declared.timing.problem():
            logger.error("The schedule %s can't run: %s", name, problem)
            impossible.add(name)
        else:
            wanted[name] = Wanted(declared.timing, declared.cluster)

    def keeps(name: str) -> bool:
        return name in impossible or bool(undiscovered())

    return vars(schedules.sync(RUN_PATH, wanted, keeps=keeps, dry_run=dry_run))


def sync_after_migrate(*, using: str, **kwargs: Any) -> None:
    """Do so after ``migrate``, once the tables are there."""
    if schedules.can_sync(using):
        sync_schedules()


# Running


def run_scheduled(name: str) -> str:
    """Launch a run of a declared schedule. The schedule calls this in a worker of django-q2.

    Returns the task's name, or the reason why the run is skipped, which is recorded.

    Raises:
        ScheduleNotDeclared: if no schedule of this name is declared (any more).
        Exception: if the run can't be launched. That is recorded.
    """

    def launch(task_key: str) -> str:
        if declared is None:
            raise ScheduleNotDeclared(name)
        return declared.launch(task_key=task_key)

    declared = declared_schedules().get(name)
    func, label, cluster = (declared.func, declared.label, declared.cluster) if declared else ("", "", "")
    return _launched(launch, name, func=func, label=label, cluster=cluster)


def run_locked(
    name: str, func: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: Mapping[str, Any]
) -> str:
    """Launch the function of a schedule in ``DASHBOARD_SCHEDULE_LOCKS`` under its lock; see :func:`run_scheduled`."""

    def launch(task_key: str) -> str:
        lock = app_settings.DASHBOARD_SCHEDULE_LOCKS.get(name)
        return AsyncManager.resolve_manager().launch_async_task(
            func,
            task_key=task_key,
            task_args=args,
            task_kwargs=kwargs,
            conflict_ids=lock if isinstance(lock, Mapping) else None,
            group=name,
            q_options=options,
            unique_key=_KEY.format(name)[:NAME_LENGTH],
        )

    return _launched(launch, name, func=func, cluster=options.get("cluster") or "")


def connect() -> None:
    """Have the messages that launch runs known, and the schedules in ``DASHBOARD_SCHEDULE_LOCKS`` under their locks."""
    schedules.note_launches({RUN_PATH, LOCKED_PATH})
    if app_settings.DASHBOARD_SCHEDULE_LOCKS:
        schedules.lock_scheduled(LOCKED_PATH, _path_of)


def _path_of(func: Any) -> str:
    try:
        return resolve_function(func)[0]
    except UnimportableCallable:
        return ""


def _launched(launch: Callable[[str], str], name: str, **facts: str) -> str:
    launch_id = schedules.take_launch_id()
    # A broker may deliver one message twice: both times it launches the same task.
    task_key = str(uuid.uuid5(_RUNS, launch_id) if launch_id else uuid.uuid4())
    try:
        return _patiently(launch, task_key)
    except (Exception, SystemExit) as error:
        # SystemExit: its time limit, and functions of conflict_ids that leave.
        if isinstance(error, TaskNameTaken | TaskAlreadyActive) and error.task_name == task_key:
            # The first delivery has launched it, or has recorded why not.
            return task_key
        if TaskRecord.objects.filter(task_name=task_key).exists():
            # It is on record already: the broker is away, or the function has run here and failed.
            raise
        creation = {
            **facts,
            "source": Source.SCHEDULE.value,
            "label": facts.get("label") or facts["func"] or name,
            "group": name,
            "message": error_text(_LAUNCHED(schedule=name), MESSAGE),
            "timestamp": timezone.now(),
        }
        if isinstance(error, TaskAlreadyActive):
            text = error_text(_STILL_RUNNING(task=error.task_name), MESSAGE)
        elif isinstance(error, TaskConflict):
            text = error_text(_LOCKED(reason=error), MESSAGE)
        else:
            observed.record(task_key, creation, [("fail", _failure(error))])
            raise
        logger.warning("Schedule %s: %s", name, text)
        observed.record(task_key, creation, [("cancel", {"message": text})])
        return text


def _patiently(launch: Callable[[str], str], task_key: str) -> str:
    """Launch it, also if the database can't be written for a while: nobody would launch this run later."""
    until = time.monotonic() + TRIES_FOR
    while True:
        try:
            return launch(task_key)
        except (OperationalError, InterfaceError, TaskBusy) as error:
            if is_in_transaction() or time.monotonic() >= until:
                raise
            logger.warning("The task %s of a schedule can't be launched now, and is tried again: %s", task_key, error)
        time.sleep(TRIES_AGAIN_AFTER)
        close_old_connections()


def _failure(error: BaseException) -> dict[str, Any]:
    kind = type(error)
    return {
        "reason": FailureReason.NOT_QUEUED.value,
        "error": error_text(error, LONG),
        "exception_class": clean_text(f"{kind.__module__}.{kind.__qualname__}", SHORT),
        "traceback": traceback_text(error, error.__traceback__),
    }
