"""What narrows the task list down. Everything is in the address, so that a view can be shared."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import django_filters
from django import forms
from django.db.models import QuerySet
from django.http import QueryDict
from django.utils import timezone
from django.utils.functional import cached_property
from django.utils.translation import gettext_lazy as _
from django_filters.widgets import DateRangeWidget

from powercrud_dashboard.dashboard.keyset import Order
from powercrud_dashboard.models import TaskObject, TaskRecord, search

#: A number of seconds that every database takes: some thirty years.
MAX_SECONDS = 1_000_000_000


@dataclass(frozen=True)
class Window:
    """A length of time that ends now."""

    label: Any
    length: timedelta


WINDOWS = {
    "1h": Window(_("the last hour"), timedelta(hours=1)),
    "24h": Window(_("the last 24 hours"), timedelta(hours=24)),
    "7d": Window(_("the last 7 days"), timedelta(days=7)),
}


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
    """Filters of the task list; the status is chosen by the tabs.

    Each is one that an index answers. Words are looked up in the search index, all together.
    """

    q = django_filters.CharFilter(
        label=_("Search"), method="by_words", widget=forms.TextInput(attrs={"type": "search"})
    )
    task = django_filters.CharFilter(label=_("Task or function"), method="by_words")
    user = django_filters.CharFilter(label=_("Launched by"), method="by_words")
    model = django_filters.CharFilter(
        label=_("Model"),
        method="by_words",
        widget=forms.TextInput(attrs={"placeholder": "app.model", "list": "pcrud-models"}),
    )
    object_id = django_filters.CharFilter(label=_("Object's key"), method="filter_object")
    group = django_filters.CharFilter(label=_("Group"), field_name="group", method="filter_name")
    cluster = django_filters.CharFilter(label=_("Cluster"), field_name="cluster", method="filter_name")
    created = django_filters.DateFromToRangeFilter(label=_("Created"), field_name="created_at", widget=DateRangeInput)
    finished = django_filters.DateFromToRangeFilter(label=_("Ended"), field_name="finished_at", widget=DateRangeInput)
    within = django_filters.ChoiceFilter(
        label=_("Ended within"),
        method="filter_within",
        choices=[(name, window.label) for name, window in WINDOWS.items()],
        empty_label=_("any time"),
    )
    longer_than = django_filters.NumberFilter(
        label=_("Ran longer than (seconds)"), method="filter_duration", min_value=0, max_value=MAX_SECONDS
    )
    function = django_filters.CharFilter(label=_("Function"), field_name="func", widget=forms.HiddenInput)
    pattern = django_filters.CharFilter(
        label=_("Error"), field_name="error_pattern", method="filter_name", widget=forms.HiddenInput
    )

    class Meta:
        model = TaskRecord
        fields: list[str] = []

    def by_words(self, queryset: QuerySet[TaskRecord], name: str, value: str) -> QuerySet[TaskRecord]:
        """Leave it to :meth:`found`, which looks all words up at once."""
        return queryset

    def filter_name(self, queryset: QuerySet[TaskRecord], name: str, value: str) -> QuerySet[TaskRecord]:
        # The second condition says nothing new, but SQLite takes an index of some rows only if it reads theirs.
        return queryset.filter((self._column(name), value)).exclude((name, ""))

    def filter_object(self, queryset: QuerySet[TaskRecord], name: str, value: str) -> QuerySet[TaskRecord]:
        touched = TaskObject.objects.filter(object_id=value)
        if model_label := self.form.cleaned_data.get("model"):
            touched = touched.filter(model_label=model_label.lower())
        return queryset.filter(pk__in=touched.values("record"))

    def filter_within(self, queryset: QuerySet[TaskRecord], name: str, value: str) -> QuerySet[TaskRecord]:
        return queryset.filter((f"{self._column('finished_at')}__gte", timezone.now() - WINDOWS[value].length))

    def filter_duration(self, queryset: QuerySet[TaskRecord], name: str, value: Any) -> QuerySet[TaskRecord]:
        return queryset.filter((f"{self._column('run_time')}__gt", timedelta(seconds=float(value))))

    def found(
        self, status: str = "", *, considers_all: bool = False, to_count_in: Order | None = None
    ) -> QuerySet[TaskRecord]:
        """Return the records of this status (all, if empty) that pass.

        None do as long as a filter was filled in wrongly, rather than too many. Where the
        database can't do without a bound on how many matches are looked at, ``considers_all`` takes the time.
        Those ``to_count_in`` an order are in this order, or in none where they are found sooner.
        """
        passed = self._of_status(status)
        if to_count_in:
            passed = to_count_in.apply(passed)
        if not self.form.is_valid():
            return passed.none()
        if not self._words:
            return passed
        return search.matching(
            passed, self._words, status=status, considers_all=considers_all, to_count=to_count_in is not None
        )

    def found_among_newest(self, status: str) -> QuerySet[TaskRecord] | None:
        """Return what :meth:`found` does of the newest records only, or None where that is no quicker."""
        if not self._words:
            return None
        return search.matching_newest(self._of_status(status), self._words, status=status)

    def _of_status(self, status: str) -> QuerySet[TaskRecord]:
        passed: QuerySet[TaskRecord] = self.qs
        return passed.filter((self._column("status"), status)) if status else passed

    def is_bounded(self, status: str) -> bool:
        """Return whether :meth:`found` leaves matches out, as there are so many."""
        return bool(self._words) and search.is_bounded(self._words, status=status, using=self.qs.db)

    @property
    def wants_words(self) -> bool:
        return bool(self._words)

    @property
    def is_answered_by_status(self) -> bool:
        """Whether each status has an index of its own for what is asked."""
        return not any(self.data.get(name) for name in self.filters if name not in ("within", "longer_than"))

    def filter_queryset(self, queryset: QuerySet[TaskRecord]) -> QuerySet[TaskRecord]:
        for name in ("created", "finished"):
            self.filters[name].field_name = self._column(f"{name}_at")
        return super().filter_queryset(queryset)  # type: ignore[no-any-return]

    def _column(self, name: str) -> str:
        return search.beside_words(name) if self._words else name

    @property
    def wants_end_times(self) -> bool:
        return any(self.data.get(name) for name in ("finished_after", "finished_before", "within"))

    @property
    def wants_run_times(self) -> bool:
        return bool(self.data.get("longer_than"))

    @cached_property
    def _words(self) -> list[search.Words]:
        """All that is to be looked up in the search index."""
        if not self.form.is_valid():
            return []
        given = self.form.cleaned_data
        asked = {
            "q": search.Words.of(given.get("q") or "", "task", "text"),
            "task": search.Words.of(given.get("task") or "", "task"),
            "user": search.Words.of(given.get("user") or "", "person"),
            "model": search.Words.of(given.get("model") or "", "model", is_phrase=True),
            # Not exact, but what the index can say of it: the modules between are called alike everywhere.
            "function": search.Words.of(" ".join(_ends_of(given.get("function") or "")), "task", are_whole=True),
        }
        if given.get("object_id"):
            # Its key and model together are looked up elsewhere.
            del asked["model"]
        return [words for name, words in asked.items() if given.get(name)]

    @property
    def has_details(self) -> bool:
        """Whether a filter other than the free text is in force, or was filled in wrongly."""
        return bool(self.form.errors) or any(name != "q" for name in self._given())

    def chips(self) -> list[Chip]:
        """Return the filters in force, each with the way to take it off."""
        return [
            Chip(
                str(self._labels()[name]),
                str(WINDOWS[value].label) if name == "within" and value in WINDOWS else value,
                f"?{self._without(name).urlencode()}",
            )
            for name, value in self._given().items()
        ]

    def without_filters(self) -> str:
        """Return the address of the list with no filter; the tab stays."""
        return f"?{self._without(*self._labels()).urlencode()}"

    def _given(self) -> dict[str, str]:
        return {name: self.data[name] for name in self._labels() if self.data.get(name)}

    def _without(self, *names: str) -> QueryDict:
        left: QueryDict = self.data.copy()
        for name in (*names, "from", "before"):
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


def _ends_of(dotted_path: str) -> tuple[str, str]:
    """Return the package and the name."""
    return dotted_path.partition(".")[0], dotted_path.rpartition(".")[2]
