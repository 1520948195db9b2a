"""Which tasks a subcommand is about: those that it names, or those that match its filters, as on the pages."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import django_filters
from django.db.models import QuerySet

from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.dashboard.filters import MomentRangeFilter, SwitchFilter, TaskFilter
from powercrud_dashboard.dashboard.listing import Listing
from powercrud_dashboard.dashboard.statuses import TABS, WORDS, tab_of
from powercrud_dashboard.management.pcrud.base import Operator, failed, misused
from powercrud_dashboard.models import ActiveTask, TaskRecord
from powercrud_dashboard.text import storable

#: Filters that only links of the pages set, and the one for tasks of the person at the page.
_WITHOUT_OPTION = ("since", "pattern", "mine")
#: Options whose filters have other names.
_OPTION_NAMES = {"q": "search", "user": "launched-by"}
#: Characters of a name that are enough to look for the task, if only one has them.
LEAST_PREFIX = 4


def add_filters(parser: argparse.ArgumentParser) -> None:
    """Add an option for each filter of the pages."""
    group = parser.add_argument_group("filters", "A task is meant if all of them match.")
    group.add_argument(
        "--status",
        type=_status,
        metavar="STATUS",
        help="queued, running, waiting (for a retry), paused, failed (open failures), completed or cancelled.",
    )
    for name, parameter, item in _options():
        options: dict[str, Any] = {"dest": f"filter_{parameter}", "help": _help_of(parameter, item)}
        if isinstance(item, SwitchFilter):
            options.update(action="store_const", const="on")
        elif isinstance(item, django_filters.ChoiceFilter):
            options["choices"] = [str(value) for value, _label in item.extra["choices"]]
        else:
            options["metavar"] = "TIME" if isinstance(item, MomentRangeFilter) else "VALUE"
        group.add_argument(f"--{name}", **options)


def _options() -> Iterator[tuple[str, str, Any]]:
    """Yield the name of each option, the parameter of the pages that it stands for, and the filter."""
    for name, item in TaskFilter.base_filters.items():
        option = _OPTION_NAMES.get(name, name.replace("_", "-"))
        if name in _WITHOUT_OPTION:
            continue
        if isinstance(item, MomentRangeFilter):
            for end in ("after", "before"):
                yield f"{option}-{end}", f"{name}_{end}", item
        else:
            yield option, name, item


def _help_of(parameter: str, item: Any) -> str:
    if isinstance(item, MomentRangeFilter):
        return f"{item.label} {parameter.rpartition('_')[2]} this time, such as 2030-01-31 or 2030-01-31T14:30."
    return f"{item.label}."


def _status(text: str) -> str:
    if not (status := tab_of(text)):
        shown = {name: word for word, name in WORDS.items()}
        choices = ", ".join(shown.get(name, name) for name in TABS)
        raise argparse.ArgumentTypeError(f"invalid choice: {text!r} (choose from {choices})")
    return status


def filters_given(options: dict[str, Any]) -> bool:
    """Return whether any filter is set."""
    return any(options.get(name) for name in ("status", *(f"filter_{parameter}" for _n, parameter, _i in _options())))


def listing(options: dict[str, Any], operator: Operator, **more: str) -> Listing:
    """Return the list of the pages with these filters, and more of its parameters.

    Raises:
        CommandError: if a filter has a value that makes no sense.
    """
    given = {"status": options.get("status"), **{name: options.get(f"filter_{name}") for _o, name, _i in _options()}}
    user: Any = operator
    found = Listing.of({**{name: value for name, value in given.items() if value}, **more}, user)
    if not found.filter.form.is_valid():
        names = {parameter: name for name, parameter, _item in _options()}
        errors = found.filter.form.errors.items()
        raise misused(
            " ".join(
                f"--{names.get(name, f'{name}-after or -before')}: {' '.join(map(str, problems))}"
                for name, problems in errors
            )
        )
    return found


#: Said where a task is not found since there are no records.
NO_HISTORY = "No history is kept: DASHBOARD_RECORDER is None."


def record_named(name: str) -> TaskRecord:
    """Return the record of a task, for its name or the beginning of it.

    Raises:
        CommandError: if there is none, or several begin so.
    """
    records = TaskRecord.objects.all()
    try:
        return records.get(task_name=full_name(records, name))
    except TaskRecord.DoesNotExist:
        hint = f" {NO_HISTORY}" if app_settings.DASHBOARD_RECORDER is None else ""
        raise failed(f"There is no task {name}.{hint}") from None


def unfinished_named(name: str) -> TaskRecord:
    """Return the record of a task that may be unfinished, as :func:`record_named` does.

    Where no history is kept, an unfinished task has an unsaved record.
    """
    if app_settings.DASHBOARD_RECORDER is None:
        tasks = ActiveTask.objects.tasks()
        if (active := tasks.filter(task_name=full_name(tasks, name)).first()) is not None:
            names = ("task_name", "label", "user", "manager_class", "manager_config")
            return TaskRecord(status=active.state, **{name: getattr(active, name) for name in names})
    return record_named(name)


def full_name(rows: QuerySet[Any], name: str) -> str:
    """Return the name that is meant by it or its beginning among these rows; as it is given if none is.

    Raises:
        CommandError: if several begin so.
    """
    # What the shell gives may be no text in any encoding, which no database finds.
    name = storable(name)
    if len(name) < LEAST_PREFIX or rows.filter(task_name=name).exists():
        return name
    begin_so = rows.filter(task_name__startswith=name).order_by("task_name")
    found = list(begin_so.values_list("task_name", flat=True).distinct()[:2])
    if len(found) > 1:
        raise failed(f"The names of several tasks begin with {name}. Give more of it.")
    return str(found[0]) if found else name
