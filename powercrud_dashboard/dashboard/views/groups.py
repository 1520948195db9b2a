"""Groups of tasks: progress and actions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.db.models import Case, Count, F, Q, QuerySet, Sum, When
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect, QueryDict
from django.utils.formats import number_format
from django.utils.functional import cached_property
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from powercrud_dashboard.dashboard import access
from powercrud_dashboard.dashboard.listing import WIDE_COLUMNS
from powercrud_dashboard.dashboard.live import live_tasks, served_queues
from powercrud_dashboard.dashboard.selection import MAX_SELECTED
from powercrud_dashboard.dashboard.views.base import RefreshingPageView
from powercrud_dashboard.dashboard.views.tasks import ManyTasksView
from powercrud_dashboard.engine.progress import newest
from powercrud_dashboard.models import ActiveTask, Resolution, TaskRecord, TaskStatus
from powercrud_dashboard.models.history import TaskRecordQuerySet
from powercrud_dashboard.models.statuses import FINISHED, UNFINISHED

if TYPE_CHECKING:
    from powercrud_dashboard.dashboard.access import User


@dataclass(frozen=True)
class _StatusCounts:
    """Counts for the tasks of a group with one status."""

    tasks: int
    objects: int
    failed_objects: int
    #: Objects with an outcome, or of a task that does not tell outcomes and is completed.
    processed_objects: int


#: What a finished task has processed of its objects.
PROCESSED = Case(
    When(by_object=True, then=F("done_count") + F("failed_count") + F("skipped_count")),
    When(status=TaskStatus.SUCCESS, then=F("affected_count")),
    default=0,
)


class TaskGroup:
    """The tasks of a group that the user may see, without those that were retried."""

    def __init__(self, name: str, user: User) -> None:
        self.name = name
        self._user = user
        self.tasks: TaskRecordQuerySet = TaskRecord.objects.visible_to(user).filter(group=name, retries=None)

    @cached_property
    def by_status(self) -> dict[str, _StatusCounts]:
        """The counts by status."""
        rows = (
            self.tasks.order_by()
            .values_list("status")
            .annotate(Count("pk"), Sum("affected_count"), Sum("failed_count"), processed=Sum(PROCESSED))
        )
        return {status: _StatusCounts(*(count or 0 for count in counts)) for status, *counts in rows}

    @property
    def exists(self) -> bool:
        return bool(self.by_status)

    @property
    def is_finished(self) -> bool:
        return all(status in FINISHED for status in self.by_status)

    @property
    def object_count(self) -> int:
        return sum(counts.objects for counts in self.by_status.values())

    @property
    def failed_object_count(self) -> int:
        return sum(counts.failed_objects for counts in self.by_status.values())

    @cached_property
    def processed_object_count(self) -> int:
        """The number of processed objects: those of finished tasks, and the progress of running ones."""
        ended = sum(counts.processed_objects for status, counts in self.by_status.items() if status in FINISHED)
        # The progress of a task that splits the selection counts tasks.
        running = self.tasks.running().filter(affected_count__gt=0).values("task_name")
        reports = newest(list(ActiveTask.objects.running().filter(task_name__in=running)))
        return ended + sum(report.current or 0 for report in reports.values())

    @property
    def percent(self) -> int | None:
        total = self.object_count
        return min(100, 100 * self.processed_object_count // total) if total else None

    def count(self, status: TaskStatus) -> int:
        counts = self.by_status.get(status)
        return counts.tasks if counts else 0

    def permits(self, codename: str) -> bool:
        """Return whether the user has this permission, or needs none for one of the tasks."""
        return access.has_permission(self._user, codename) or self._permitted(codename).exists()

    def cancellable(self) -> QuerySet[TaskRecord]:
        """Return the unfinished tasks that the user may cancel."""
        return self._permitted(PERMISSIONS["cancel"]).filter(status__in=UNFINISHED)

    def retryable(self) -> QuerySet[TaskRecord]:
        """Return the open failures and the cancelled tasks that the user may retry."""
        cancelled_or_open = Q(status=TaskStatus.CANCELLED) | Q(resolution=Resolution.OPEN)
        return self._permitted(PERMISSIONS["retry"]).filter(cancelled_or_open)

    def with_objects_not_done(self) -> QuerySet[TaskRecord]:
        """Return the ended tasks with objects that failed or were not reached, and that the user may retry."""
        left = F("affected_count") - F("done_count") - F("failed_count") - F("skipped_count")
        ended = self._permitted(PERMISSIONS["retry_objects"]).filter(status__in=FINISHED, by_object=True)
        # A task that splits the selection has refused objects, and none of its own.
        return ended.alias(left=left).filter(Q(failed_count__gt=0) | Q(left__gt=0))

    def _permitted(self, codename: str) -> QuerySet[TaskRecord]:
        if access.has_permission(self._user, codename):
            return self.tasks
        return (
            self.tasks.filter(user=self._user.pk)
            if access.manages_own_tasks(self._user, codename)
            else self.tasks.none()
        )


#: Tasks shown on the page; a link leads to the complete list.
SHOWN_TASKS = 50

PERMISSIONS = {
    "cancel": "cancel_taskrecord",
    "retry": "retry_taskrecord",
    "retry_objects": "retry_taskrecord",
}


class GroupView(RefreshingPageView):
    """The progress of a group and its tasks, with actions on the whole group."""

    page_name = "changelist"
    template_name = "powercrud_dashboard/group/page.html"
    partial_template_name = "powercrud_dashboard/group/_group.html"

    group: TaskGroup

    def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        self.group = TaskGroup(self.kwargs["group"], request.user)
        if not self.group.exists:
            raise Http404(_("Task group not found."))
        return super().get(request, *args, **kwargs)

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        group = self.group
        records = list(group.tasks.defer(*WIDE_COLUMNS).order_by("pk")[:SHOWN_TASKS])
        served = set() if group.is_finished else served_queues()
        live = live_tasks(records, served=served)
        query = QueryDict(mutable=True)
        query["group"] = group.name
        return super().get_context_data(
            title=_("Group: %(label)s") % {"label": _(records[0].label) if records else group.name},
            group=group,
            no_cluster_runs=not served,
            counts=[(status, status.label, group.count(status)) for status in TaskStatus if group.count(status)],
            tasks=[(record, live.get(record.task_name), self.url("change", record.pk)) for record in records],
            has_more=sum(counts.tasks for counts in group.by_status.values()) > len(records),
            list_of_group_url=self.list_url(query.urlencode()),
            actions=[(label, self.url("group_action", group.name, name)) for name, label in self._available_actions()],
            **kwargs,
        )

    def _available_actions(self) -> list[tuple[str, str]]:
        group, actions = self.group, []
        if not group.is_finished:
            actions.append(("cancel", _("Cancel unfinished tasks")))
        if group.count(TaskStatus.FAILED) or group.count(TaskStatus.CANCELLED):
            actions.append(("retry", _("Retry failed and cancelled tasks")))
        if group.with_objects_not_done().exists():
            actions.append(("retry_objects", _("Retry failed objects only")))
        return [(name, label) for name, label in actions if group.permits(PERMISSIONS[name])]


class GroupActionView(ManyTasksView):
    """Cancel the unfinished tasks of a group, retry its failed and cancelled ones, or retry what was not done."""

    http_method_names = ["post", "options"]
    page_name = "changelist"

    def post(self, request: HttpRequest, group: str, action: str) -> HttpResponse:
        if action not in PERMISSIONS:
            raise Http404
        task_group = TaskGroup(group, request.user)
        if not task_group.permits(PERMISSIONS[action]):
            raise PermissionDenied
        if not task_group.exists:
            raise Http404(_("Task group not found."))
        select = {
            "cancel": task_group.cancellable,
            "retry": task_group.retryable,
            "retry_objects": task_group.with_objects_not_done,
        }
        records = select[action]()
        selected = list(records.defer(*WIDE_COLUMNS)[:MAX_SELECTED])
        left = records.count() - MAX_SELECTED if len(selected) == MAX_SELECTED else 0
        refusals = [(record, access.refusal(request.user, PERMISSIONS[action], record)) for record in selected]
        rejected = [(record, reason) for record, reason in refusals if reason]
        rejected += self.act_on([record for record, reason in refusals if not reason], action)
        done = len(selected) - len(rejected)
        if done:
            texts = {
                "cancel": ngettext("%(count)d task is being cancelled.", "%(count)d tasks are being cancelled.", done),
                "retry": ngettext("%(count)d task was queued again.", "%(count)d tasks were queued again.", done),
                "retry_objects": ngettext(
                    "%(count)d task was queued again for its unfinished objects.",
                    "%(count)d tasks were queued again for their unfinished objects.",
                    done,
                ),
            }
            messages.success(request, texts[action] % {"count": done})
        if left > 0:
            text = ngettext(
                "%(count)s task is left, as at most %(limit)s are changed at once. Repeat the action.",
                "%(count)s tasks are left, as at most %(limit)s are changed at once. Repeat the action.",
                left,
            )
            messages.warning(request, text % {"count": number_format(left), "limit": number_format(MAX_SELECTED)})
        if rejected:
            self.report_rejected(rejected)
        elif not done:
            texts = {
                "cancel": _("No tasks were cancelled: none of them is queued or running."),
                "retry": _("There are no failed or cancelled tasks to retry."),
                "retry_objects": _("There are no objects that failed or were not reached."),
            }
            messages.warning(request, texts[action])
        return HttpResponseRedirect(self.url("group", group))
