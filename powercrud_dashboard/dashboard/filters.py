"""Filters of the task list. All of them are query parameters, so a filtered list can be shared by its URL."""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import django_filters
from django import forms
from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.db.models import QuerySet
from django.http import QueryDict
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.functional import cached_property
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy
from django_filters.fields import RangeField
from django_filters.widgets import DateRangeWidget

from powercrud_dashboard.dashboard.formatting import local
from powercrud_dashboard.dashboard.keyset import Order
from powercrud_dashboard.dashboard.statuses import on_tab, stored_status
from powercrud_dashboard.extension import dashboard
from powercrud_dashboard.models import FailureReason, Resolution, TaskObject, TaskRecord, TaskStatus, search
from powercrud_dashboard.models.history import TaskRecordQuerySet
from powercrud_dashboard.models.labels import label_of_rows

if TYPE_CHECKING:
    from powercrud_dashboard.dashboard.access import User

#: About thirty years; every database accepts a duration of this length.
MAX_SECONDS = 1_000_000_000


@dataclass(frozen=True)
class Window:
    """A time window that ends now."""

    label: Any
    length: timedelta


WINDOWS = {
    "1h": Window(_("the last hour"), timedelta(hours=1)),
    "24h": Window(_("the last 24 hours"), timedelta(hours=24)),
    "7d": Window(_("the last 7 days"), timedelta(days=7)),
    "30d": Window(_("the last 30 days"), timedelta(days=30)),
}


#: The parameter of a form that was submitted with all of its fields shown.
UNFOLDED = "unfolded"

#: The value of the ``resolution`` parameter for all failures. Without one, only open ones are listed as failed.
ALL_FAILURES = "all"


@dataclass(frozen=True)
class Chip:
    """An active filter, and the URL of the list without it."""

    label: str
    value: str
    url: str


_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


def _with_time(value: Any, time: str) -> Any:
    """Return a date with this time, as a text; anything else as it is."""
    return f"{value}T{time}" if isinstance(value, str) and _DATE.fullmatch(value) else value


class _MomentInput(forms.DateTimeInput):
    """An input for a local date and time, which is given a date too."""

    input_type = "datetime-local"

    def __init__(self, label: Any, time: str) -> None:
        super().__init__(attrs={"aria-label": label}, format="%Y-%m-%dT%H:%M")
        self._time = time

    def format_value(self, value: Any) -> str | None:
        return super().format_value(_with_time(value, self._time))


class _MomentField(forms.DateTimeField):
    def __init__(self, time: str, **options: Any) -> None:
        super().__init__(**options)
        self._time = time

    def to_python(self, value: Any) -> Any:
        try:
            return super().to_python(_with_time(value, self._time))
        except OverflowError as error:
            raise ValidationError(self.error_messages["invalid"], code="invalid") from error


class MomentRangeInput(DateRangeWidget):  # type: ignore[misc]
    """Two inputs for dates and times, with accessible labels."""

    def __init__(self) -> None:
        super().__init__()
        self.widgets = [_MomentInput(_("from"), "00:00"), _MomentInput(_("to"), "23:59")]


class MomentRangeField(RangeField):  # type: ignore[misc]
    """A range of times. An end that is a date is the end of that day."""

    widget = MomentRangeInput

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__((_MomentField("00:00"), _MomentField("23:59:59.999999")), *args, **options)


class MomentRangeFilter(django_filters.RangeFilter):  # type: ignore[misc]
    field_class = MomentRangeField


class SwitchFilter(django_filters.BooleanFilter):  # type: ignore[misc]
    """A checkbox that narrows the list if it is ticked."""

    field_class = forms.BooleanField


def _suggested(datalist: str, **attributes: str) -> forms.TextInput:
    """Return an input with the suggestions of a ``<datalist>``."""
    return forms.TextInput(attrs={"list": datalist, "autocomplete": "off", **attributes})


class TaskFilter(django_filters.FilterSet):  # type: ignore[misc]
    """Filters of the task list, except for the status, which the tabs select.

    Every filter uses a database index. Text filters are combined into one query of the search index.
    """

    q = django_filters.CharFilter(
        label=_("Search"),
        method="filter_text",
        widget=forms.TextInput(attrs={"type": "search", "placeholder": _("Task, message, error or object")}),
    )
    task = django_filters.CharFilter(label=_("Task or function"), method="filter_text")
    user = django_filters.CharFilter(label=_("Launched by"), method="filter_text")
    model = django_filters.CharFilter(
        label=_("Model"),
        method="filter_text",
        widget=_suggested("pcrud-models", placeholder="app.model"),
    )
    object_id = django_filters.CharFilter(label=_("Object's key"), method="filter_object")
    group = django_filters.CharFilter(label=_("Group"), field_name="group", method="filter_name")
    cluster = django_filters.CharFilter(label=_("Cluster"), field_name="cluster", method="filter_name")
    created = MomentRangeFilter(label=_("Created"), field_name="created_at")
    finished = MomentRangeFilter(label=_("Ended"), field_name="finished_at")
    within = django_filters.ChoiceFilter(
        label=_("Ended within"),
        method="filter_within",
        choices=[(name, window.label) for name, window in WINDOWS.items()],
        empty_label=_("any time"),
    )
    longer_than = django_filters.NumberFilter(
        label=_("Ran longer than (seconds)"), method="filter_duration", min_value=0, max_value=MAX_SECONDS
    )
    resolution = django_filters.ChoiceFilter(
        label=pgettext_lazy("of tasks", "Failures"),
        method="filter_text",
        choices=[*Resolution.choices, (ALL_FAILURES, _("All failures"))],
        empty_label=_("open ones under Failed"),
    )
    #: The start of a period that the Insights page shows.
    since = django_filters.IsoDateTimeFilter(label=_("Ended since"), method="filter_since", widget=forms.HiddenInput)
    function = django_filters.CharFilter(label=_("Function"), field_name="func", widget=_suggested("pcrud-functions"))
    error_class = django_filters.CharFilter(
        label=_("Error class"), method="filter_error_class", widget=_suggested("pcrud-error-classes")
    )
    reason = django_filters.ChoiceFilter(
        label=_("Failure reason"),
        field_name="failure_reason",
        method="filter_name",
        choices=FailureReason.choices,
        empty_label=_("any reason"),
    )
    with_errors = SwitchFilter(label=_("Completed with errors"), method="filter_with_errors")
    mine = SwitchFilter(label=_("Launched by me"), method="filter_mine")
    pattern = django_filters.CharFilter(
        label=_("Error"), field_name="error_pattern", method="filter_name", widget=forms.HiddenInput
    )

    class Meta:
        model = TaskRecord
        fields: list[str] = []

    def __init__(self, data: QueryDict, *, queryset: QuerySet[TaskRecord], user: User) -> None:
        super().__init__(data, queryset=queryset)
        for name, added in added_filters().items():
            # As FilterSet does with those of the class.
            self.filters[name] = own = deepcopy(added)
            own.parent, own.model = self, TaskRecord
        self._visible, self._user = queryset, user

    def filter_text(self, queryset: QuerySet[TaskRecord], name: str, value: str) -> QuerySet[TaskRecord]:
        """Return the queryset unchanged: :meth:`matching` applies all text filters in one search, and others."""
        return queryset

    def filter_name(self, queryset: QuerySet[TaskRecord], name: str, value: str) -> QuerySet[TaskRecord]:
        # The second condition is redundant, but SQLite uses a partial index only if the query repeats its condition.
        return queryset.filter((self.column(name), value)).exclude((name, ""))

    def filter_object(self, queryset: QuerySet[TaskRecord], name: str, value: str) -> QuerySet[TaskRecord]:
        entries = TaskObject.objects.filter(object_id=value)
        if model_label := self.form.cleaned_data.get("model"):
            entries = entries.filter(model_label=label_of_rows(model_label))
        return queryset.filter(pk__in=entries.values("record"))

    def filter_error_class(self, queryset: QuerySet[TaskRecord], name: str, value: str) -> QuerySet[TaskRecord]:
        """Filter by the path of a class, or by the name of one that is built in or was raised lately."""
        found = [path for path in recent_error_classes(self._visible) if value in (path, path.rpartition(".")[2])]
        paths = found or ([value] if "." in value else [f"builtins.{value}"])
        lookup = (self.column("exception_class"), paths[0])
        if len(paths) > 1:
            lookup = (f"{self.column('exception_class')}__in", paths)  # type: ignore[assignment]
        return queryset.filter(lookup).exclude(exception_class="")

    def filter_with_errors(self, queryset: QuerySet[TaskRecord], name: str, value: bool) -> QuerySet[TaskRecord]:
        # The index of the status would be chosen, which leads to many more rows.
        status = search.beside_words("status")
        return queryset.filter((status, TaskStatus.SUCCESS), failed_count__gt=0) if value else queryset

    def filter_mine(self, queryset: QuerySet[TaskRecord], name: str, value: bool) -> QuerySet[TaskRecord]:
        return queryset.filter(user=self._user.pk) if value else queryset

    def filter_within(self, queryset: QuerySet[TaskRecord], name: str, value: str) -> QuerySet[TaskRecord]:
        return queryset.filter((f"{self.column('finished_at')}__gte", timezone.now() - WINDOWS[value].length))

    def filter_since(self, queryset: QuerySet[TaskRecord], name: str, value: Any) -> QuerySet[TaskRecord]:
        return queryset.filter((f"{self.column('finished_at')}__gte", value))

    def filter_duration(self, queryset: QuerySet[TaskRecord], name: str, value: Any) -> QuerySet[TaskRecord]:
        return queryset.filter((f"{self.column('run_time')}__gt", timedelta(seconds=float(value))))

    def matching(
        self,
        status: str = "",
        *,
        resolution: str = "",
        is_complete: bool = False,
        is_separate: bool = True,
        count_order: Order | None = None,
    ) -> TaskRecordQuerySet:
        """Return the records that match the filters and are on a tab, if one is given.

        Args:
            status: the name of the tab; empty for all.
            resolution: the resolution, if the filters have none; empty for open failures on the tab of failed tasks.
            is_complete: whether a text search considers all matches, even if that is slow.
            is_separate: whether queued tasks that wait for a retry are left out of the tab of queued ones.
            count_order: set if the records are only counted. They are in this order, or unordered if that is faster.

        Returns:
            The matching records; none if the form is invalid.
        """
        if not self.form.is_valid():
            return self.queryset.none()  # type: ignore[no-any-return]
        resolution = self.chosen_resolution or resolution
        records = self._with_status(status, resolution, is_separate=is_separate)
        if count_order:
            records = count_order.apply(records)
        if not self._search_terms:
            return records
        return search.matching(
            records,
            self._search_terms,
            status=self._searched_status(status, resolution),
            considers_all=is_complete,
            to_count=count_order is not None,
        )

    def matching_newest(self, status: str) -> QuerySet[TaskRecord] | None:
        """Return the matches among the newest records only, or None if this is not faster than :meth:`matching`."""
        if not self._search_terms:
            return None
        records = self._with_status(status, self.chosen_resolution)
        searched = self._searched_status(status, self.chosen_resolution)
        return search.matching_newest(records, self._search_terms, status=searched)

    @cached_property
    def chosen_resolution(self) -> str:
        """What the failures are filtered by: a resolution, ``ALL_FAILURES``, or empty."""
        return str(self.form.cleaned_data.get("resolution") or "") if self.form.is_valid() else ""

    def _with_status(self, status: str, resolution: str, *, is_separate: bool = True) -> TaskRecordQuerySet:
        records: TaskRecordQuerySet = self.qs
        if not (wanted := self._listed_resolution(status, resolution)):
            return on_tab(records, status, self.column("status"), is_separate=is_separate)
        if status not in ("", TaskStatus.FAILED):
            return records.none()
        if self._search_terms:
            records = records.filter((self.column("resolution"), wanted))
        else:
            records = records.of_resolution(wanted)
        return records.filter(superseded=False) if wanted == Resolution.OPEN else records

    @staticmethod
    def _listed_resolution(status: str, resolution: str) -> str:
        """Return the resolution that the listed tasks have; "" if they may be others than failures."""
        wanted = resolution or (Resolution.OPEN if status == TaskStatus.FAILED else "")
        return wanted if wanted in Resolution.values else ""

    def _searched_status(self, status: str, resolution: str) -> str:
        """Return the status, or rather the resolution, that all of the listed tasks have."""
        return self._listed_resolution(status, resolution) or stored_status(status)

    def is_bounded(self, status: str) -> bool:
        """Return whether :meth:`matching` omits records because there are too many matches."""
        return bool(self._search_terms) and search.is_bounded(
            self._search_terms, status=self._searched_status(status, self.chosen_resolution), using=self.qs.db
        )

    @property
    def uses_search_index(self) -> bool:
        return bool(self._search_terms)

    @property
    def is_indexed_by_status(self) -> bool:
        """Whether the active filters can be combined with an index for each status."""
        return not any(
            self.data.get(name) for name in self.filters if name not in ("within", "since", "longer_than", "resolution")
        )

    def filter_queryset(self, queryset: QuerySet[TaskRecord]) -> QuerySet[TaskRecord]:
        for name in ("created", "finished"):
            self.filters[name].field_name = self.column(f"{name}_at")
        return super().filter_queryset(queryset)  # type: ignore[no-any-return]

    def column(self, name: str) -> str:
        """Return the lookup of a column that has an index of its own."""
        return search.beside_words(name) if self._search_terms else name

    @property
    def filters_end_time(self) -> bool:
        return any(self.data.get(name) for name in ("finished_after", "finished_before", "within", "since"))

    @property
    def filters_run_time(self) -> bool:
        return bool(self.data.get("longer_than"))

    @cached_property
    def _search_terms(self) -> list[search.Words]:
        """The terms to look up in the search index."""
        if not self.form.is_valid():
            return []
        values = self.form.cleaned_data
        terms = {
            "q": search.Words.of(values.get("q") or "", "task", "text"),
            "task": search.Words.of(values.get("task") or "", "task"),
            "user": search.Words.of(values.get("user") or "", "person"),
            "model": search.Words.of(label_of_rows(values.get("model") or ""), "model", is_phrase=True),
            # Approximate: most module names in between are too common to be useful search terms.
            "function": search.Words.of(_first_and_last_part(values.get("function") or ""), "task", are_whole=True),
        }
        if values.get("object_id"):
            # filter_object() looks up the model together with the key.
            del terms["model"]
        return [term for name, term in terms.items() if values.get(name)]

    @property
    def is_unfolded(self) -> bool:
        """Whether all fields are shown: if one is invalid, or the last change was made there."""
        return bool(self.form.errors) or UNFOLDED in self.data

    @property
    def is_active(self) -> bool:
        return bool(self._active())

    def chips(self) -> list[Chip]:
        """Return the active filters, each with the URL that removes it."""
        return [
            Chip(
                str(self._labels()[name]),
                self._text_of(name, value),
                f"?{self._without(name).urlencode()}",
            )
            for name, value in self._active().items()
        ]

    def _text_of(self, name: str, value: str) -> str:
        """Return the text of a choice, or the value itself; "" for a switch, whose label says it all."""
        if name == "since" and self.form.is_valid() and (since := self.form.cleaned_data["since"]):
            return date_format(local(since), "SHORT_DATETIME_FORMAT")
        item = self.filters.get(name)
        if isinstance(item, SwitchFilter):
            return ""
        if item is None:
            # An end of a range.
            return value.replace("T", " ")
        # Those of a filter of the project may be a callable, or rows.
        choices = item.extra.get("choices", ())
        return str(dict(choices() if callable(choices) else choices).get(value, value))

    def without_filters(self) -> str:
        """Return the URL of the list without filters, on the same tab."""
        return f"?{self._without(*self._labels(), UNFOLDED).urlencode()}"

    def _active(self) -> dict[str, str]:
        return {name: self.data[name] for name in self._labels() if self.data.get(name)}

    def _without(self, *names: str) -> QueryDict:
        parameters: QueryDict = self.data.copy()
        for name in (*names, "from", "before"):
            parameters.pop(name, None)
        return parameters

    def _labels(self) -> dict[str, Any]:
        """Return the label of each query parameter."""
        labels: dict[str, Any] = {}
        for name, item in self.filters.items():
            if isinstance(item, MomentRangeFilter):
                labels[f"{name}_after"] = f"{item.label} ≥"
                labels[f"{name}_before"] = f"{item.label} ≤"
            else:
                labels[name] = item.label
        return labels


#: Parameters of the list that are no filters.
_TAKEN = {"status", "sort", "from", "before", "page"}


def added_filters() -> Mapping[str, django_filters.Filter]:
    """Return the filters of the project.

    Raises:
        ImproperlyConfigured: if one has the name of a parameter that the list has itself.
    """
    added = dashboard().filters
    if taken := sorted(added.keys() & (TaskFilter.base_filters.keys() | _TAKEN)):
        raise ImproperlyConfigured(f"Dashboard.filters has the name {taken[0]!r}, which the task list uses itself")
    return added


#: The newest records whose functions, and failures whose error classes, are suggested.
LOOKED_THROUGH = 500


def recent_error_classes(visible: QuerySet[TaskRecord]) -> list[str]:
    """Return the classes of the newest errors, in alphabetical order."""
    failed = visible.filter(status=TaskStatus.FAILED).order_by("-created_at", "-pk")
    return sorted(set(failed.values_list("exception_class", flat=True)[:LOOKED_THROUGH]) - {""})


def recent_functions(visible: QuerySet[TaskRecord]) -> list[str]:
    """Return the functions of the newest tasks, in alphabetical order."""
    newest = visible.order_by("-created_at", "-pk")
    return sorted(set(newest.values_list("func", flat=True)[:LOOKED_THROUGH]))


def _first_and_last_part(dotted_path: str) -> str:
    return f"{dotted_path.partition('.')[0]} {dotted_path.rpartition('.')[2]}"
