from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.db.models import Case, Q, When
from django.http import Http404, HttpRequest, HttpResponse
from django.utils.translation import gettext as _
from django_htmx.http import HTMX_STOP_POLLING

from powercrud_dashboard import access
from powercrud_dashboard.dashboard.listing import WIDE
from powercrud_dashboard.dashboard.live import live_tasks
from powercrud_dashboard.dashboard.objects import ObjectLinks
from powercrud_dashboard.dashboard.views.base import RefreshingPageView
from powercrud_dashboard.models import TaskFile, TaskObject, TaskRecord
from powercrud_dashboard.models.history import Outcome

#: Events and objects shown at once; the page says how many there are beyond.
SHOWN_EVENTS = 200
SHOWN_OBJECTS = 100
SHOWN_TRIES = 50


#: The order of objects by how much they ask for attention.
NOT_DONE_FIRST = Case(
    When(outcome=Outcome.FAILED, then=0),
    When(outcome=Outcome.NOT_REACHED, then=1),
    When(outcome=Outcome.SKIPPED, then=2),
    default=3,
)


@dataclass(frozen=True)
class ShownObject:
    text: str
    #: Of its admin page, if this person may open that.
    url: str = ""
    entry: TaskObject | None = None


class TaskView(RefreshingPageView):
    """Everything about one task; refreshes itself until the task has ended."""

    page_name = "changelist"
    template_name = "powercrud_dashboard/task/page.html"
    partial_template_name = "powercrud_dashboard/task/_task.html"

    record: TaskRecord

    def get(self, request: HttpRequest, pk: int) -> HttpResponse:
        record = TaskRecord.objects.visible_to(request.user).filter(pk=pk).first()
        if record is None:
            raise Http404(_("There is no such task."))
        status = HTMX_STOP_POLLING if self.is_partial_request and record.is_finished else None
        self.record = record
        return self.render_to_response(self.get_context_data(), status=status)

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        user, record = self.request.user, self.record
        objects = self._objects()
        live = live_tasks([record]).get(record.task_name)
        events = record.events.order_by("-timestamp", "-pk")[: SHOWN_EVENTS + 1]
        return super().get_context_data(
            title=record.label,
            record=record,
            live=live,
            events=list(reversed(events[:SHOWN_EVENTS])),
            has_earlier_events=len(events) > SHOWN_EVENTS,
            objects=objects,
            objects_beyond=max(0, record.affected_count - len(objects)),
            tries=self._tries(),
            files=[(kept, self.url("download", record.pk, kept.pk)) for kept in self._files()],
            group_url=self.url("group", record.group) if record.group else "",
            retry_objects_url=self._retry_objects_url(),
            raw_url=self.url("raw", record.pk),
            edit_url=self.url("edit", record.pk) if access.may_edit_and_retry(user, record) else "",
            bulk_url=self.url("bulk") if access.may_delete(user, record) else "",
            retry_url=self.url("retry", record.pk) if access.may_retry(user, record) else "",
            run_now_url=self.url("run_now", record.pk)
            if live and live.waits_for_retry and access.may_run_now(user, record)
            else "",
            cancel_url=self.url("cancel", record.pk) if access.may_cancel(user, record) else "",
            **kwargs,
        )

    def _files(self) -> list[TaskFile]:
        return list(TaskFile.objects.results_of(self.record.task_name)) if self.record.is_finished else []

    def _retry_objects_url(self) -> str:
        record = self.record
        if not (record.by_object and access.may_retry(self.request.user, record)):
            return ""
        not_done = record.objects_worked_on.filter(outcome__in=[Outcome.FAILED, Outcome.NOT_REACHED])
        return self.url("retry_objects", record.pk) if not_done.exists() else ""

    def _objects(self) -> list[ShownObject]:
        """Return the first objects: those that did not go well, then the others."""
        entries = self.record.objects_worked_on.order_by(NOT_DONE_FIRST, "pk")
        keyed = list(entries[:SHOWN_OBJECTS])
        described = self.record.affected_objects[:SHOWN_OBJECTS]
        if described and not any(item.text or item.outcome not in ("", Outcome.DONE) for item in keyed):
            # Which words belong to which key is not known.
            return [ShownObject(text) for text in described]
        links = ObjectLinks(self.admin_site, self.request)
        return [ShownObject(str(item), links.url(item.model_label, item.object_id), item) for item in keyed]

    def _tries(self) -> list[tuple[TaskRecord, str]]:
        """Return the chain of retries that this task is in, oldest first, each with its address; [] for none."""
        record = self.record
        first = record.first_try_id or record.pk
        # The neighbours by themselves as well: where the first try was deleted, they are what is known.
        chain = Q(pk=first) | Q(first_try=first) | Q(pk=record.retry_of_id) | Q(retry_of=record)
        newest = TaskRecord.objects.visible_to(self.request.user).filter(chain).defer(*WIDE).order_by("-pk")
        tries = list(reversed(newest[:SHOWN_TRIES]))
        return [(item, self.url("change", item.pk)) for item in tries] if len(tries) > 1 else []
