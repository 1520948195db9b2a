"""The strip above a changelist: the unfinished tasks of its model, and those that have ended since it was opened."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from django.db.models import Case, Q, Value, When
from django.http import HttpRequest, QueryDict
from django.utils.formats import number_format
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from powercrud_dashboard.admin.selection import lock_label
from powercrud_dashboard.dashboard import access
from powercrud_dashboard.dashboard.formatting import with_colon
from powercrud_dashboard.dashboard.keyset import is_key
from powercrud_dashboard.dashboard.links import dashboard_url
from powercrud_dashboard.dashboard.listing import WIDE_COLUMNS
from powercrud_dashboard.dashboard.live import LiveTask, live_tasks, served_queues
from powercrud_dashboard.dashboard.selection import RowAction
from powercrud_dashboard.engine.launch import runs_in_caller
from powercrud_dashboard.models import TaskRecord, TaskStatus
from powercrud_dashboard.models.history import TaskRecordQuerySet
from powercrud_dashboard.text import translated

if TYPE_CHECKING:
    from powercrud_dashboard.admin.actions import Admin

#: The lines of the strip; a link leads to the complete list.
STRIP_LINES = 5

#: The unfinished tasks that are looked at: many may belong to one group, which is one line.
LOOKED_AT = 200

#: The context of the strip if it can't be shown.
WITHOUT_STRIP: dict[str, Any] = {"strip_tasks": [], "strip_more": 0, "strip_ended": [], "strip_watched": ""}

#: Tasks whose end an open changelist waits for.
MAX_WATCHED = 100


@dataclass
class StripLine:
    """A task, or the tasks of a group."""

    record: TaskRecord
    live: LiveTask | None
    url: str
    actions: list[RowAction]
    #: The tasks of the group by status, as texts; empty for a single task.
    counts: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class EndedLine:
    """What became of a task, or of a group of tasks, that the changelist showed."""

    text: str
    url: str
    is_alarming: bool


def unfinished_tasks(model_admin: Admin, user: Any) -> TaskRecordQuerySet:
    """Return the unfinished tasks on this model that the user may see: running ones first, then the newest."""
    label = lock_label(model_admin)
    uses_model = (
        Q(model_labels=label)
        | Q(model_labels__startswith=f"{label} ")
        | Q(model_labels__endswith=f" {label}")
        | Q(model_labels__contains=f" {label} ")
    )
    is_running = Case(When(status=TaskStatus.IN_PROGRESS, then=Value(0)), default=Value(1))
    found = TaskRecord.objects.visible_to(user).unfinished().filter(uses_model)
    return found.order_by(is_running, "-created_at", "-pk")


def strip_context(model_admin: Admin, request: HttpRequest) -> dict[str, Any]:
    """Return the template context of the strip."""
    site = model_admin.admin_site.name
    list_url = dashboard_url(site, "changelist")
    records = list(unfinished_tasks(model_admin, request.user).defer(*WIDE_COLUMNS)[:LOOKED_AT])
    units = _units(records)
    shown = units[:STRIP_LINES]
    served = served_queues()
    live = live_tasks([tasks[0] for tasks in shown], served=served)
    watched = _watched(request)
    unfinished = {str(record.pk) for record in records}
    ended = [key for key in watched if key not in unfinished]
    return {
        "strip_tasks": [_line(site, request, tasks, live.get(tasks[0].task_name)) for tasks in shown],
        "strip_more": sum(map(len, units[STRIP_LINES:])),
        "strip_list_url": f"{list_url}?model={lock_label(model_admin)}" if list_url else "",
        "strip_ended": _ended_lines(site, request, ended),
        "strip_watched": ",".join([*ended, *(key for key in unfinished if key not in ended)][:MAX_WATCHED]),
        "no_cluster_runs": not served and not runs_in_caller(),
    }


def _units(records: Iterable[TaskRecord]) -> list[list[TaskRecord]]:
    """Return the tasks, those of a group together."""
    units: dict[str, list[TaskRecord]] = {}
    for record in records:
        units.setdefault(f"group {record.group}" if record.group else record.task_name, []).append(record)
    return list(units.values())


def _line(site: str, request: HttpRequest, tasks: list[TaskRecord], live: LiveTask | None) -> StripLine:
    record = tasks[0]
    if len(tasks) == 1:
        return StripLine(record, live, dashboard_url(site, "change", record.pk), _actions(site, request, record, live))
    numbers: dict[str, int] = {}
    for task in tasks:
        numbers[task.get_status_display()] = numbers.get(task.get_status_display(), 0) + 1
    cancel_all = RowAction("cancel", _("Cancel all"), dashboard_url(site, "group_action", record.group, "cancel"))
    return StripLine(
        record,
        live,
        dashboard_url(site, "group", record.group),
        [cancel_all] if cancel_all.url and access.may_cancel(request.user, record) else [],
        [f"{with_colon(status)} {number_format(number, force_grouping=True)}" for status, number in numbers.items()],
    )


def _actions(site: str, request: HttpRequest, record: TaskRecord, live: LiveTask | None) -> list[RowAction]:
    user = request.user
    is_being_cancelled = live is not None and live.is_being_cancelled
    resumes = record.status == TaskStatus.PAUSED or (live is not None and live.is_pausing)
    names = {
        "resume": (_("Resume"), resumes and access.may_resume(user, record)),
        "pause": (_("Pause"), not resumes and not is_being_cancelled and access.may_pause(user, record)),
        "cancel": (_("Cancel"), not is_being_cancelled and access.may_cancel(user, record)),
    }
    actions = [
        RowAction(name, label, dashboard_url(site, name, record.pk)) for name, (label, may) in names.items() if may
    ]
    return [action for action in actions if action.url]


def _watched(request: HttpRequest) -> list[str]:
    """Return the keys of the tasks that the changelist has shown, or shows the end of."""
    keys = (request.POST or request.GET).get("watched", "").split(",")
    return [key for key in keys if is_key(key)][:MAX_WATCHED]


def _ended_lines(site: str, request: HttpRequest, keys: list[str]) -> list[EndedLine]:
    if not keys:
        return []
    visible = TaskRecord.objects.visible_to(request.user).finished().filter(pk__in=keys)
    return [_ended_line(site, tasks) for tasks in _units(visible.defer(*WIDE_COLUMNS).order_by("-finished_at", "-pk"))]


def _ended_line(site: str, tasks: list[TaskRecord]) -> EndedLine:
    record = tasks[0]
    label = translated(record.label)
    page = ("group", record.group) if len(tasks) > 1 else ("change", record.pk)
    url = dashboard_url(site, *page)
    failed_objects = sum(task.failed_count for task in tasks)
    failed_tasks = [task for task in tasks if task.status == TaskStatus.FAILED]
    if failed_objects:
        text = ngettext("“%(task)s” ended: %(count)d failed.", "“%(task)s” ended: %(count)d failed.", failed_objects)
        return EndedLine(text % {"task": label, "count": failed_objects}, url, True)
    if failed_tasks:
        error = translated(failed_tasks[0].error_line) or failed_tasks[0].get_failure_reason_display()
        return EndedLine(_("“%(task)s” failed: %(error)s") % {"task": label, "error": error}, url, True)
    if all(task.status == TaskStatus.CANCELLED for task in tasks):
        return EndedLine(_("“%(task)s” was cancelled.") % {"task": label}, url, False)
    return EndedLine(_("“%(task)s” has completed.") % {"task": label}, url, False)


def locks_url(site: str, model_label: str, object_id: str) -> str:
    """Return the URL of the locks page for one object, or "" if there is none."""
    query = QueryDict(mutable=True)
    query["q"] = f"{model_label} {object_id}"
    url = dashboard_url(site, "locks")
    return f"{url}?{query.urlencode()}" if url else ""
