from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.utils.translation import gettext as _
from django.views.generic.base import TemplateResponseMixin
from django.views.generic.edit import FormMixin

from powercrud_dashboard import access, retrying
from powercrud_dashboard.dashboard.forms import ArgumentsForm
from powercrud_dashboard.dashboard.views.base import DashboardView
from powercrud_dashboard.dashboard.views.retry import REFUSALS
from powercrud_dashboard.exceptions import TaskNotRetryable
from powercrud_dashboard.models import TaskRecord


class EditAndRetryView(TemplateResponseMixin, FormMixin, DashboardView):  # type: ignore[type-arg]
    """Change the arguments of an ended task and launch it again with them."""

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
            return redirect(self.url("change", new.pk))
        return self.render_to_response(self.get_context_data(form=form))

    def _load(self, pk: int) -> HttpResponse | None:
        """Find the record and what it was launched with; return the answer if that can't be edited."""
        record = TaskRecord.objects.visible_to(self.request.user).filter(pk=pk).first()
        if record is None:
            raise Http404(_("There is no such task."))
        if record.is_finished and not access.may_edit_and_retry(self.request.user, record):
            raise PermissionDenied
        try:
            if not record.is_finished:
                raise TaskNotRetryable(record.task_name, retrying.NOT_ENDED)
            args, kwargs = retrying.editable_arguments(record)
        except TaskNotRetryable as error:
            messages.error(self.request, str(error))
            return redirect(self.url("change", record.pk))
        self.record, self.arguments = record, {"task_args": args, "task_kwargs": kwargs}
        return None

    def _retry(self, form: ArgumentsForm) -> TaskRecord | None:
        manager = self.manager_of(self.record)
        try:
            new_name = manager.retry_task(self.record.task_name, user=self.request.user, **form.cleaned_data)  # type: ignore[arg-type]
        except REFUSALS as error:
            form.add_error(None, str(error))
            return None
        return TaskRecord.objects.filter(task_name=new_name).first() or self.record

    def get_initial(self) -> dict[str, Any]:
        return self.arguments

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        return super().get_context_data(
            title=_("Edit and retry"),
            record=self.record,
            task_url=self.url("change", self.record.pk),
            **kwargs,
        )
