"""Formatting of values for display, shared by tables, templates and views."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice, zip_longest
from typing import TYPE_CHECKING, Any

from django.core.serializers.json import DjangoJSONEncoder
from django.utils import timezone
from django.utils.formats import date_format, number_format
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext
from django.views.debug import SafeExceptionReporterFilter, get_default_exception_reporter_filter

from powercrud_dashboard.models.labels import label_given, name_of_rows
from powercrud_dashboard.text import MAX_DEPTH, cut_nested

if TYPE_CHECKING:
    from powercrud_dashboard.models import TaskRecord


class Marked(str):
    """A mark that stands for a text in a part of a page that is kept."""

    __slots__ = ()


def duration(value: timedelta | Marked | None) -> str:
    """Return a duration in its two largest units; a mark as it is."""
    if value is None:
        return ""
    if isinstance(value, Marked):
        return value
    seconds = max(0, int(value.total_seconds()))
    if seconds < 1:
        return _("under 1 s")
    return " ".join(islice(_units(seconds), 2))


def rough_duration(value: timedelta) -> str:
    """Return an estimated duration: from a minute on without seconds."""
    minute = timedelta(minutes=1)
    return duration(value if value < minute else round(value / minute) * minute)


_UNITS = {"d": gettext_lazy("d"), "h": gettext_lazy("h"), "min": gettext_lazy("min"), "s": gettext_lazy("s")}


def _units(seconds: int) -> Iterator[str]:
    """Yield the units that a duration consists of, the largest first."""
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s")]
    # No line break between a number and its unit.
    return (f"{number}\N{NO-BREAK SPACE}{_UNITS[unit]}" for number, unit in parts if number)


@dataclass(frozen=True)
class Moment:
    """A time as the pages show it."""

    #: Such as "4 min ago" or "in 2 h".
    relative: str
    #: The local time with seconds and time zone.
    exact: str
    #: For the ``datetime`` attribute.
    machine: str

    @classmethod
    def of(cls, at: datetime, now: datetime) -> Moment:
        """Return a time as it is seen from ``now``."""
        aware = at if timezone.is_aware(at) else timezone.make_aware(at, timezone.get_default_timezone())
        local = timezone.localtime(aware) if timezone.is_aware(at) else aware
        exact = f"{date_format(local, 'DATE_FORMAT')}, {local:%H:%M:%S} {local.tzname()}"
        return cls(relative_time(at, now), exact, aware.isoformat(timespec="seconds"))


def relative_time(at: datetime, now: datetime) -> str:
    """Return how long ago a time was in its largest unit, or how far ahead it is in its two largest units."""
    seconds = round((now - at).total_seconds())
    if not seconds:
        return _("just now")
    if seconds > 0:
        return _("%(time)s ago") % {"time": next(_units(seconds))}
    # Somebody may wait for it.
    return _("in %(time)s") % {"time": duration(timedelta(seconds=-seconds))}


def precise_duration(value: timedelta | None) -> str:
    """Return a duration with the precision of a figure: milliseconds below a second, tenths below ten seconds."""
    if value is None:
        return ""
    seconds = max(0.0, value.total_seconds())
    if seconds >= 10:
        # As the others, in the nearest second.
        return duration(timedelta(seconds=round(seconds)))
    if seconds >= 1:
        number, unit = number_format(round(seconds, 1), use_l10n=True).removesuffix(".0").removesuffix(",0"), _("s")
    else:
        number, unit = str(round(seconds * 1_000)), _("ms")
    return f"{number}\N{NO-BREAK SPACE}{unit}"


def figure(value: float, digits: int) -> str:
    """Return a number with so many digits after the point, rounded: ``number_format`` cuts the others off."""
    return number_format(round(value, digits), digits)


def percentage(number: object) -> str:
    """Return the text of a number of percent."""
    return _("%(number)s%%") % {"number": number}


def with_colon(label: object) -> str:
    """Return a label with a colon after it, before which some languages have a space."""
    return _("%(label)s:") % {"label": label}


def local(moment: datetime) -> datetime:
    """Return a time in the zone of the person who looks at the page."""
    return timezone.localtime(moment) if timezone.is_aware(moment) else moment


def counted_objects(record: TaskRecord) -> str:
    """Return how many objects of which kind a task is about, such as "480 products"; "" for none."""
    count = record.affected_count
    if not count:
        return ""
    labels = record.model_labels
    if name := name_of_rows(label_given(labels, labels.partition(" ")[0]), count):
        return f"{number_format(count, use_l10n=True, force_grouping=True)} {name}"
    return ngettext("%(count)d object", "%(count)d objects", count) % {"count": count}


def _filter() -> SafeExceptionReporterFilter:
    """Return the filter of Django's error pages, so that the same values are hidden on these pages."""
    chosen: object = get_default_exception_reporter_filter()
    return chosen if isinstance(chosen, SafeExceptionReporterFilter) else SafeExceptionReporterFilter()


def masked(value: Any, names: Sequence[str] = ()) -> Any:
    """Return plain data in which the values of keys such as ``password`` or ``token`` are masked.

    Args:
        value: the data. In texts, such as descriptions of objects, what looks like ``password='...'`` is masked.
        names: the names of the items of a list of arguments.
    """
    chosen = _filter()
    if names and isinstance(value, list):
        cleansed = [chosen.cleanse_setting(name, item) for name, item in zip_longest(names, value, fillvalue="")]
        cleansed = cleansed[: len(value)]
    else:
        cleansed = chosen.cleanse_setting("", value)
    return _without_described_secrets(cleansed, chosen)


#: A name in the description of an object, and its value if that is simple: ``name='value'``, ``'name': value``.
_DESCRIBED = re.compile(
    r"""
    (?P<name>\b\w+(?==)|(?P<quote>['"])\w+(?P=quote)(?=:\ ?))
    (?:=|:\ ?)
    (?P<value>(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^\s,;&()<>{}\[\]'"]+)?)
    """,
    re.VERBOSE,
)
#: What a value of any kind is made of. The end of a description that was cut ends a text, too.
_PARTS = re.compile(
    r"""
      (?P<text>'(?:[^'\\]|\\.)*(?:'|\\?\Z)|"(?:[^"\\]|\\.)*(?:"|\\?\Z))
    | (?P<open>[(<\[{])
    | (?P<close>[)>\]}])
    | (?P<end>[\s,;&])
    | .
    """,
    re.VERBOSE | re.DOTALL,
)


def _end_of_value(text: str, start: int) -> int:
    """Return where a value ends that may have brackets, such as ``b'...'``, ``['...', '...']`` or ``UUID('...')``."""
    depth = 0
    for part in _PARTS.finditer(text, start):
        if part.lastgroup == "open":
            depth += 1
        elif not depth and part.lastgroup in ("close", "end"):
            return part.start()
        elif part.lastgroup == "close":
            depth -= 1
    return len(text)


def _without_described_secrets(value: Any, chosen: SafeExceptionReporterFilter) -> Any:
    if isinstance(value, dict):
        return {name: _without_described_secrets(item, chosen) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_described_secrets(item, chosen) for item in value]
    if not isinstance(value, str):
        return value

    kept, position = [], 0
    while found := _DESCRIBED.search(value, position):
        shown = chosen.cleanse_setting(found["name"].strip("'\""), found["value"])
        end = found.end() if shown == found["value"] else _end_of_value(value, found.start("value"))
        kept += [value[position : found.start("value")], str(shown) if end > found.start("value") else ""]
        position = end
    return "".join([*kept, value[position:]])


def mask() -> str:
    """Return the placeholder for a masked value."""
    return str(_filter().cleansed_substitute)


def readable_json(value: Any, names: Sequence[str] = ()) -> str:
    """Return plain data as indented JSON, with secrets masked and without what is nested too deeply to be printed.

    ``names`` are those of the items of a list of arguments.
    """
    try:
        return _printed(value, names)
    except RecursionError:
        # The form does not accept this depth, so nobody can save a value without what is cut off.
        return _printed(cut_nested(value, MAX_DEPTH + 1), names)


def _printed(value: Any, names: Sequence[str]) -> str:
    return json.dumps(masked(value, names), indent=2, ensure_ascii=False, cls=DjangoJSONEncoder)
