"""What narrows the task list down. Everything is in the address, so that a view can be shared."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import django_filters
from django import forms
from django.db.models import Exists, F, OuterRef, Q, QuerySet
from django.http import QueryDict
from django.utils.translation import gettext_lazy as _
from django_filters.widgets import DateRangeWidget

from powercrud_dashboard.models import TaskObject, TaskRecord, TaskStatus

#: What free text is looked for in.
SEARCHED = ("label", "func", "message", "error", "task_name")


@dataclass(frozen=True)
class Chip:
    """A filter that is in force, and the address of the list without it."""

    label: str
    value: str
    url: str


class DateRangeInput(DateRangeWidget):  # type: ignore[misc]
    """Two date inputs that say which is which."""

    def __init__(self) -> None:
        super().__init__()
        self.widgets = [
            forms.DateInput(attrs={"type": "date", "aria-label": _("from")}, format="%Y-%m-%d"),
            forms.DateInput(attrs={"type": "date", "aria-label": _("to")}, format="%Y-%m-%d"),
        ]


class TaskFilter(django_filters.FilterSet):  # type: ignore[misc]
    """Filters of the task list; the status is chosen by the tabs."""

    q = django_filters.CharFilter(label=_("Search"), method="search", widget=forms.TextInput(attrs={"type": "search"}))
    task = django_filters.CharFilter(label=_("Task or function"), method="filter_task")
    user = django_filters.CharFilter(label=_("Launched by"), field_name="user_label", lookup_expr="icontains")
    model = django_filters.CharFilter(
        label=_("Model"), method="filter_object", widget=forms.TextInput(attrs={"placeholder": "app.model"})
    )
    object_id = django_filters.CharFilter(label=_("Object's key"), method="filter_object")
    group = django_filters.CharFilter(label=_("Group"), field_name="group", lookup_expr="exact")
    cluster = django_filters.CharFilter(label=_("Cluster"), field_name="cluster", lookup_expr="exact")
    created = django_filters.DateFromToRangeFilter(label=_("Created"), field_name="created_at", widget=DateRangeInput)
    finished = django_filters.DateFromToRangeFilter(label=_("Ended"), field_name="finished_at", widget=DateRangeInput)
    longer_than = django_filters.NumberFilter(
        label=_("Ran longer than (seconds)"), method="filter_duration", min_value=0
    )

    class Meta:
        model = TaskRecord
        fields: list[str] = []

    def search(self, queryset: QuerySet[TaskRecord], name: str, value: str) -> QuerySet[TaskRecord]:
        condition = Q()
        for field in SEARCHED:
            condition |= Q(**{f"{field}__icontains": value})
        return queryset.filter(condition)

    def filter_task(self, queryset: QuerySet[TaskRecord], name: str, value: str) -> QuerySet[TaskRecord]:
        return queryset.filter(Q(label__icontains=value) | Q(func__icontains=value))

    def filter_object(self, queryset: QuerySet[TaskRecord], name: str, value: str) -> QuerySet[TaskRecord]:
        """Model and key are looked for together, once, when the first of them is filtered by."""
        if name == "object_id" and self.form.cleaned_data.get("model"):
            return queryset
        wanted = {
            "model_label": self.form.cleaned_data.get("model", "").lower(),
            "object_id": self.form.cleaned_data.get("object_id", ""),
        }
        conditions = {field: text for field, text in wanted.items() if text}
        return queryset.filter(Exists(TaskObject.objects.filter(record=OuterRef("pk"), **conditions)))

    def filter_duration(self, queryset: QuerySet[TaskRecord], name: str, value: Any) -> QuerySet[TaskRecord]:
        return queryset.filter(finished_at__gt=F("started_at") + timedelta(seconds=float(value)))

    @property
    def found(self) -> QuerySet[TaskRecord]:
        """The records that pass; none as long as a filter was filled in wrongly, rather than too many."""
        passed: QuerySet[TaskRecord] = self.qs
        return passed if self.form.is_valid() else passed.none()

    @property
    def has_details(self) -> bool:
        """Whether a filter other than the free text is in force, or was filled in wrongly."""
        return bool(self.form.errors) or any(name != "q" for name in self._given())

    def chips(self) -> list[Chip]:
        """Return the filters in force, each with the way to take it off."""
        return [
            Chip(str(self._labels()[name]), value, f"?{self._without(name).urlencode()}")
            for name, value in self._given().items()
        ]

    def without_filters(self) -> str:
        """Return the address of the list with no filter; the tab stays."""
        return f"?{self._without(*self._labels()).urlencode()}"

    def _given(self) -> dict[str, str]:
        return {name: self.data[name] for name in self._labels() if self.data.get(name)}

    def _without(self, *names: str) -> QueryDict:
        left: QueryDict = self.data.copy()
        for name in (*names, "page"):
            left.pop(name, None)
        return left

    def _labels(self) -> dict[str, Any]:
        """Return what each parameter in the address is called."""
        labels: dict[str, Any] = {}
        for name, item in self.filters.items():
            if isinstance(item, django_filters.DateFromToRangeFilter):
                labels[f"{name}_after"] = f"{item.label} ≥"
                labels[f"{name}_before"] = f"{item.label} ≤"
            else:
                labels[name] = item.label
        return labels


def matching_records(parameters: QueryDict, visible: QuerySet[TaskRecord]) -> QuerySet[TaskRecord]:
    """Return those of the records that the list at this address shows: tab and filters."""
    matching = TaskFilter(parameters, queryset=visible).found
    status = parameters.get("status", "")
    return matching.filter(status=status) if status in TaskStatus.values else matching
