from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import reduce
from operator import or_
from typing import Any

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.db.models import Case, Q, QuerySet, When
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect, QueryDict
from django.utils.http import content_disposition_header
from django.utils.translation import gettext as _
from django.views.generic.base import TemplateResponseMixin
from django.views.generic.edit import FormMixin
from django_htmx.http import HTMX_STOP_POLLING

from powercrud_dashboard.dashboard import access, customized
from powercrud_dashboard.dashboard.document import document_of
from powercrud_dashboard.dashboard.formatting import readable_json
from powercrud_dashboard.dashboard.forms import ArgumentsForm
from powercrud_dashboard.dashboard.listing import WIDE_COLUMNS
from powercrud_dashboard.dashboard.live import LiveTask, live_tasks
from powercrud_dashboard.dashboard.operations import REFUSALS, is_done, manager_of
from powercrud_dashboard.dashboard.pulse import Pulse
from powercrud_dashboard.dashboard.views.base import DashboardView, ObjectLinks, RefreshingPageView, TaskActionView
from powercrud_dashboard.dashboard.views.log import LINES_ON_TASK_PAGE, ShownLog
from powercrud_dashboard.engine import retry
from powercrud_dashboard.exceptions import ArgumentsNotEditable, TaskNotCancellable, TaskNotRetryable
from powercrud_dashboard.models import (
    Resolution,
    TaskEvent,
    TaskFile,
    TaskNotice,
    TaskObject,
    TaskRecord,
    TaskStatus,
)
from powercrud_dashboard.models.database import Now
from powercrud_dashboard.models.objects import Outcome
from powercrud_dashboard.q2 import queue

#: Limits of the lists on the page, which shows when there are more.
SHOWN_EVENTS = 200
SHOWN_OBJECTS = 100
SHOWN_RETRIES = 50


#: Sort order of the objects: those that need attention first.
OUTCOME_ORDER = Case(
    When(outcome=Outcome.FAILED, then=0),
    When(outcome=Outcome.NOT_REACHED, then=1),
    When(outcome=Outcome.SKIPPED, then=2),
    default=3,
)


@dataclass(frozen=True)
class ShownObject:
    text: str
    #: URL of its admin page; "" if there is none or the user may not view it.
    url: str = ""
    entry: TaskObject | None = None


class TaskView(RefreshingPageView):
    """The page of a task, which refreshes itself until the task has ended."""

    page_name = "changelist"
    template_name = "powercrud_dashboard/task/page.html"
    partial_template_name = "powercrud_dashboard/task/_task.html"

    record: TaskRecord

    def get(self, request: HttpRequest, pk: int) -> HttpResponse:
        shown = TaskRecord.objects.visible_to(request.user).defer("payload", "conflict_ids")
        shown = shown.annotate(read_at=Now())
        record = shown.filter(pk=pk).first()
        if record is None:
            raise Http404(_("Task not found."))
        may_change = not record.is_finished or record.may_be_corrected
        status = None if may_change or not self.is_partial_request else HTMX_STOP_POLLING
        if record.is_finished and record.user_id == request.user.pk:
            TaskNotice.objects.of(request.user).filter(record=pk).see()
        self.record = record
        return self.render_to_response(self.get_context_data(), status=status)

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        user, record = self.request.user, self.record
        objects = self._objects()
        is_queued = record.status == TaskStatus.PENDING
        pulse = Pulse.now() if is_queued else None
        facts = (pulse.start_interval, pulse.workers_by_queue) if pulse else ()
        live = live_tasks([record], *facts).get(record.task_name)
        is_open = record.resolution == Resolution.OPEN
        retry_under_way = TaskRecord.objects.chain_of(record).unfinished().only("pk").first() if is_open else None
        events = list(record.events.order_by("-timestamp", "-pk")[: SHOWN_EVENTS + 1])
        return super().get_context_data(
            title=_(record.label),
            record=record,
            now=record.read_at,  # type: ignore[attr-defined]  # it is annotated
            live=live,
            started_at=self._started_at(),
            events=[event for event in reversed(events[:SHOWN_EVENTS]) if not _released_nothing(event)],
            has_earlier_events=len(events) > SHOWN_EVENTS,
            objects=objects[:SHOWN_OBJECTS],
            hidden_object_count=0
            if self._is_filtered
            else max(0, record.affected_count - len(objects[:SHOWN_OBJECTS])),
            has_more_objects=self._is_filtered and len(objects) > SHOWN_OBJECTS,
            outcomes=[
                (value, label, self._counts_by_outcome.get(value), value == self._outcome)
                for value, label in Outcome.choices
            ],
            object_search=self.request.GET.get("object", ""),
            is_filtered=self._is_filtered,
            retry_chain=self._retry_chain(),
            files=[(file, self.url("download", record.pk, file.pk)) for file in self._files()],
            function_url=self.function_url(record.func, record.error_pattern),
            group_url=self.url("group", record.group) if record.group else "",
            retry_objects_url=self._retry_objects_url(),
            log=self._log(),
            arguments_text=customized.arguments_text(record),
            result_text=customized.result_text(record) if record.status == TaskStatus.SUCCESS else None,
            task_panel=customized.task_panel(record, self.request),
            raw_url=self.url("raw", record.pk),
            edit_url=self.url("edit", record.pk) if access.may_edit_and_retry(user, record) else "",
            bulk_url=self.url("bulk") if access.may_delete(user, record) else "",
            retry_url=self.url("retry", record.pk) if access.may_retry(user, record) and not retry_under_way else "",
            retry_under_way=retry_under_way and self.url("change", retry_under_way.pk),
            dismiss_url=self.url("dismiss", record.pk) if access.may_dismiss(user, record) else "",
            reopen_url=self.url("reopen", record.pk) if access.may_reopen(user, record) else "",
            run_now_url=self.url("run_now", record.pk)
            if live and (live.waits or live.is_missing) and access.may_run_now(user, record)
            else "",
            cancel_url=self.url("cancel", record.pk) if access.may_cancel(user, record) else "",
            **(self.pauses(queue=record.cluster or queue.main_cluster(), func=record.func) if is_queued else {}),
            pause_url=self.url("pause", record.pk) if access.may_pause(user, record) else "",
            resume_url=self.url("resume", record.pk) if access.may_resume(user, record) else "",
            **kwargs,
        )

    def _started_at(self) -> datetime | None:
        """Return when the task started, of a paused or postponed one for the last time."""
        record = self.record
        if record.started_at is not None or not record.attempts:
            return record.started_at
        starts = record.events.filter(event="start").order_by("-timestamp", "-pk")
        return starts.values_list("timestamp", flat=True).first()

    def _log(self) -> ShownLog | None:
        """Return the newest lines of the log; None in a refresh, as the log grows by itself."""
        if self.is_partial_request:
            return None
        return ShownLog(self.record, self.url("log", self.record.pk), QueryDict(), LINES_ON_TASK_PAGE)

    def _files(self) -> list[TaskFile]:
        return list(TaskFile.objects.results_of(self.record.task_name)) if self.record.is_finished else []

    def _retry_objects_url(self) -> str:
        record = self.record
        if not (record.by_object and access.may_retry(self.request.user, record)):
            return ""
        left = TaskObject.objects.all().left_of(record)
        not_done = left.filter(outcome__in=[Outcome.FAILED, Outcome.NOT_REACHED])
        return self.url("retry_objects", record.pk) if not_done.exists() else ""

    @property
    def _counts_by_outcome(self) -> dict[str, int]:
        """The number of objects by outcome, as far as the record counts them."""
        record = self.record
        return {
            Outcome.DONE: record.done_count,
            Outcome.FAILED: record.failed_count,
            Outcome.SKIPPED: record.skipped_count,
        }

    @property
    def _outcome(self) -> str:
        """The outcome that the objects are filtered by, or ""."""
        outcome = self.request.GET.get("outcome", "")
        return outcome if outcome in Outcome.values else ""

    @property
    def _is_filtered(self) -> bool:
        return bool(self._outcome or self.request.GET.get("object"))

    def _matching_objects(self) -> QuerySet[TaskObject]:
        objects = self.record.objects_worked_on.order_by(OUTCOME_ORDER, "pk")
        if self._outcome:
            objects = objects.filter(outcome=self._outcome)
        if word := self.request.GET.get("object", ""):
            found_in = ("text__icontains", "object_id__icontains", "error__icontains", "traceback__icontains")
            objects = objects.filter(reduce(or_, (Q((lookup, word)) for lookup in found_in)))
        return objects

    def _objects(self) -> list[ShownObject]:
        """Return the first objects, failed and skipped ones first, and one more than are shown if there are more."""
        entries = list(self._matching_objects()[: SHOWN_OBJECTS + 1])
        described = self.record.affected_objects[:SHOWN_OBJECTS]
        if (
            described
            and not self._is_filtered
            and not any(item.text or item.outcome not in ("", Outcome.DONE) for item in entries)
        ):
            # The texts can't be assigned to keys.
            return [ShownObject(text) for text in described]
        links = ObjectLinks(self.site, self.request)
        return [
            ShownObject(
                customized.object_text(item.model_label, item.object_id, str(item)),
                links.url_in(self.record, item.model_label, item.object_id),
                item,
            )
            for item in entries
        ]

    def _retry_chain(self) -> list[tuple[TaskRecord, LiveTask | None, str]]:
        """Return this task and its retries, oldest first, each with its live state and its URL; [] for one only."""
        chain = TaskRecord.objects.visible_to(self.request.user).chain_of(self.record)
        newest = chain.defer(*WIDE_COLUMNS).order_by("-pk")
        records = list(reversed(newest[:SHOWN_RETRIES]))
        if len(records) < 2:
            return []
        live = live_tasks(records)
        return [(item, live.get(item.task_name), self.url("change", item.pk)) for item in records]


def _released_nothing(event: TaskEvent) -> bool:
    """Whether the event is the release of the locks of a task that had none."""
    return event.event == "cleanup" and event.payload.get("conflict_lock_keys") == 0


class RetryTaskView(TemplateResponseMixin, TaskActionView):
    """Retry a finished task and show the new task. Ask first if the work has been done."""

    task_permission = "retry_taskrecord"
    template_name = "powercrud_dashboard/task/run_again.html"

    def act(self, record: TaskRecord) -> TaskRecord | HttpResponse:
        if self.request.POST.get("confirmed") != "yes" and is_done(record):
            return self._question(record)
        try:
            new = self.retry(record)
        except REFUSALS as error:
            messages.error(self.request, self.explain(error))
            return record
        messages.success(self.request, _("The task was queued again."))
        return new

    def _question(self, record: TaskRecord) -> HttpResponse:
        posted = self.request.POST
        back_url = self.list_url(posted["filter"]) if "filter" in posted else self.url("change", record.pk)
        context = self.get_context_data(
            title=_("Run again?"),
            record=record,
            kept_fields=[(name, posted[name]) for name in ("filter", "next") if name in posted],
            back_url=self.next_url(back_url),
        )
        return self.render_to_response(context)


class DismissView(TaskActionView):
    """Dismiss an open failure."""

    task_permission = "dismiss_taskrecord"

    def act(self, record: TaskRecord) -> TaskRecord:
        note = self.request.POST.get("note", "").strip()
        if manager_of(record).dismiss_failure(record.task_name, user=self.request.user, note=note):
            messages.success(self.request, _("The failure was dismissed."))
        else:
            messages.warning(self.request, _("The task is no open failure."))
        return record


class ReopenView(TaskActionView):
    """Open a dismissed failure again."""

    task_permission = "dismiss_taskrecord"

    def act(self, record: TaskRecord) -> TaskRecord:
        if manager_of(record).reopen_failure(record.task_name, user=self.request.user):
            messages.success(self.request, _("The failure is open again."))
        else:
            messages.warning(self.request, _("The failure was not dismissed."))
        return record


class RetryObjectsView(TaskActionView):
    """Retry a finished task for the objects that failed or were not reached."""

    task_permission = "retry_taskrecord"

    def act(self, record: TaskRecord) -> TaskRecord:
        try:
            options = retry.for_objects_not_done(record)
            new = self.retry(record, **options)
        except REFUSALS as error:
            messages.error(self.request, self.explain(error))
            return record
        messages.success(self.request, _("The task was queued again for the unfinished objects."))
        kept = record.objects_worked_on.count()
        retried = sum(len(keys) for keys in options["only"].values())
        if kept < record.affected_count and record.done_count + retried < record.affected_count:
            text = _(
                "Only %(kept)d of the %(count)d objects are kept by name (DASHBOARD_OBJECT_LIMIT). Others that failed "
                "or were not reached are not retried: retry the whole task for them."
            )
            messages.warning(self.request, text % {"kept": kept, "count": record.affected_count})
        return new


class RunNowView(TaskActionView):
    """Queue a task that waits for its next attempt, or that the broker has lost."""

    task_permission = "retry_taskrecord"

    def act(self, record: TaskRecord) -> TaskRecord:
        if manager_of(record).run_task_now(record.task_name, user=self.request.user):
            messages.success(self.request, _("The task was queued."))
        else:
            messages.warning(self.request, _("The task is not waiting for its next attempt."))
        return record


class CancelTaskView(TaskActionView):
    """Cancel a queued task, or request the cancellation of a running one."""

    task_permission = "cancel_taskrecord"

    def act(self, record: TaskRecord) -> TaskRecord:
        try:
            is_cancelled = manager_of(record).cancel_task(record.task_name, user=self.request.user)
        except TaskNotCancellable as error:
            messages.error(self.request, str(error))
            return record
        if not is_cancelled:
            messages.warning(self.request, _("The task has already ended or is being cancelled."))
            return record
        record.refresh_from_db(fields=["status"])
        if record.is_finished:
            messages.success(self.request, _("The task was cancelled."))
        elif record.is_plain and record.status == TaskStatus.PENDING:
            # A cluster has taken it from the queue. The start of other tasks is recorded a little later.
            messages.success(self.request, _("Cancellation was requested. The task is stopped soon after it begins."))
        else:
            messages.success(self.request, _("Cancellation was requested. The task stops within a few seconds."))
        return record


class EditAndRetryView(TemplateResponseMixin, FormMixin, DashboardView):  # type: ignore[type-arg]
    """Retry a finished task with edited arguments."""

    page_name = "changelist"
    template_name = "powercrud_dashboard/task/edit.html"
    form_class = ArgumentsForm

    record: TaskRecord
    arguments: dict[str, Any]

    def get(self, request: HttpRequest, pk: int) -> HttpResponse:
        return self._load(pk) or self.render_to_response(self.get_context_data())

    def post(self, request: HttpRequest, pk: int) -> HttpResponse:
        if refusal := self._load(pk):
            return refusal
        form = self.get_form()
        if form.is_valid() and (new := self._retry(form)):
            messages.success(request, _("The task was queued again."))
            return HttpResponseRedirect(self.url("change", new.pk))
        return self.render_to_response(self.get_context_data(form=form))

    def _load(self, pk: int) -> HttpResponse | None:
        """Load the record and its arguments; return a redirect if they can't be edited."""
        record = TaskRecord.objects.visible_to(self.request.user).filter(pk=pk).first()
        if record is None:
            raise Http404(_("Task not found."))
        if record.is_finished and not access.may_edit_and_retry(self.request.user, record):
            raise PermissionDenied
        try:
            if not record.is_finished:
                raise TaskNotRetryable(record.task_name, retry.NOT_ENDED)
            args, kwargs = retry.editable_arguments(record)
        except (TaskNotRetryable, ArgumentsNotEditable) as error:
            messages.error(self.request, str(error))
            return HttpResponseRedirect(self.url("change", record.pk))
        self.record, self.arguments = record, {"task_args": args, "task_kwargs": kwargs}
        return None

    def _retry(self, form: ArgumentsForm) -> TaskRecord | None:
        try:
            with retry.in_session(access.kept_session(self.request)):
                return self.retry(self.record, **form.cleaned_data)
        except REFUSALS as error:
            form.add_error(None, self.explain(error))
            return None

    def get_initial(self) -> dict[str, Any]:
        return self.arguments

    def get_form_kwargs(self) -> dict[str, Any]:
        return {**super().get_form_kwargs(), "argument_names": self.record.argument_names}

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        return super().get_context_data(
            title=_("Edit and retry"),
            record=self.record,
            task_url=self.url("change", self.record.pk),
            **kwargs,
        )


class DownloadView(DashboardView):
    """Download a file that a task has created."""

    http_method_names = ["get", "head", "options"]

    def get(self, request: HttpRequest, pk: int, file_pk: int) -> HttpResponse:
        record = TaskRecord.objects.visible_to(request.user).filter(pk=pk).values_list("task_name").first()
        if record is None:
            raise Http404(_("Task not found."))
        file = TaskFile.objects.results_of(*record).filter(pk=file_pk).defer(None).first()
        if file is None:
            raise Http404(_("File not found."))
        response = HttpResponse(bytes(file.content), content_type=file.content_type)
        # The file may contain untrusted input, so browsers must not render it as a page of this site.
        response.headers["Content-Disposition"] = content_disposition_header(True, file.name) or "attachment"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response


class RawTaskView(DashboardView):
    """All data of a task as JSON, with secrets masked."""

    http_method_names = ["get", "head", "options"]

    def get(self, request: HttpRequest, pk: int) -> HttpResponse:
        record = TaskRecord.objects.visible_to(request.user).filter(pk=pk).defer("payload").first()
        if record is None:
            raise Http404(_("Task not found."))
        return HttpResponse(readable_json(document_of(record)), content_type="application/json; charset=utf-8")
