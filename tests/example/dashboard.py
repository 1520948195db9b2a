"""What the project changes about the pages: its customers' teams see their tasks, and payments are retried by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import django_filters
from django.contrib.auth import get_user_model
from django.db.models import Q, QuerySet
from django.db.models.fields.json import KT
from django.http import HttpRequest
from django.utils.html import format_html

from powercrud_dashboard.extension import Column
from powercrud_dashboard.extension import Dashboard as BaseDashboard
from powercrud_dashboard.models import TaskRecord

if TYPE_CHECKING:
    from powercrud_dashboard.extension import User
    from powercrud_dashboard.models.history import TaskRecordQuerySet

PAYMENTS = "tests.testapp.tasks.fail"


def customer_of(record: Any) -> str:
    """Return the customer whom ``prepare_list`` has annotated."""
    return str(record.customer or "–")


class Dashboard(BaseDashboard):
    columns = [
        Column("customer", "Customer", customer_of),
        Column("attempts", "Attempts", lambda record: record.attempts),
    ]
    filters = {"customer": django_filters.CharFilter(label="Customer", field_name="task_kwargs__customer")}

    def visible_tasks(self, tasks: TaskRecordQuerySet, user: User) -> TaskRecordQuerySet:
        # A subquery and no join: each task is there once.
        team = get_user_model().objects.filter(groups__in=user.groups.all())
        return tasks.filter(Q(user=user.pk) | Q(user__in=team))

    def may_retry(self, user: User, record: TaskRecord | None = None) -> bool:
        is_payment = record is not None and record.func == PAYMENTS
        return super().may_retry(user, record) and not is_payment

    def may_cancel(self, user: User, record: TaskRecord | None = None) -> bool:
        # Whoever sees a task of the team may cancel it.
        return record is not None or super().may_cancel(user)

    def user_text(self, record: TaskRecord) -> str:
        return record.user_label.title()

    def object_text(self, model_label: str, object_id: str, text: str) -> str:
        return f"{text} (no. {object_id})" if model_label == "testapp.project" else text

    def arguments_text(self, record: TaskRecord) -> str | None:
        return f"{record.task_args[0]} and {record.task_args[1]}" if record.func == "tests.testapp.tasks.add" else None

    def result_text(self, record: TaskRecord) -> str | None:
        if record.func != "tests.testapp.tasks.add":
            return None
        return format_html("It is <strong>{}</strong>.", record.result)

    def prepare_list(self, tasks: QuerySet[TaskRecord]) -> QuerySet[TaskRecord]:
        return tasks.annotate(customer=KT("task_kwargs__customer"))

    def task_panel(self, record: TaskRecord, request: HttpRequest) -> str:
        return format_html('<p><a href="/runbooks/{}/">Runbook</a></p>', record.func)

    def index_panel(self, request: HttpRequest) -> str:
        return "Payments & loads run at night."
