"""The runs of one task function: the newest ones, and where its failures began."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from django.db.models import QuerySet
from django.db.models.functions import Now
from django.utils.translation import gettext as _
from django.utils.translation import pgettext

from powercrud_dashboard.dashboard.formatting import precise_duration, readable_json
from powercrud_dashboard.dashboard.listing import WIDE_COLUMNS, Count
from powercrud_dashboard.models import TaskRecord

if TYPE_CHECKING:
    from powercrud_dashboard.dashboard.access import User

#: Runs in the chart, the newest.
SHOWN_RUNS = 200
#: Failures of a series are counted up to this number.
MAX_SERIES = 1_000
#: Arguments that are compared, and the characters of each that are shown.
MAX_ARGUMENTS = 40
MAX_SHOWN = 600


class Runs:
    """The ended tasks of a function that a user may see, apart from the cancelled ones."""

    def __init__(self, func: str, user: User) -> None:
        visible = TaskRecord.objects.visible_to(user).filter(func=func, finished_at__isnull=False)
        self._completed = visible.completed()
        self._failed = visible.failed()

    @cached_property
    def newest(self) -> list[TaskRecord]:
        """The newest runs, oldest first."""
        both = [*_newest(self._completed), *_newest(self._failed)]
        return sorted(both, key=lambda record: (record.finished_at, record.pk))[-SHOWN_RUNS:]

    @cached_property
    def series(self) -> FailureSeries | None:
        """The newest failures without a completed run between them; None if nothing has failed."""
        last = self._failed.defer(*WIDE_COLUMNS).order_by("-finished_at", "-pk").first()
        if last is None:
            return None
        before = self._completed.filter(finished_at__lt=last.finished_at)
        good = before.defer("payload", "result").order_by("-finished_at", "-pk").first()
        failures = self._failed.filter(finished_at__lte=last.finished_at)
        if good is not None:
            failures = failures.filter(finished_at__gt=good.finished_at)
        first = failures.defer("payload", "result").order_by("finished_at", "pk").first() or last
        number = len(failures.order_by("-finished_at").values_list("pk")[: MAX_SERIES + 1])
        after = self._completed.filter(finished_at__gt=last.finished_at).defer(*WIDE_COLUMNS)
        return FailureSeries(
            last_good=good,
            first_bad=first,
            last_bad=last,
            count=Count.capped(number, MAX_SERIES),
            recovered=after.order_by("finished_at", "pk").first(),
        )

    def first_with(self, pattern: str) -> TaskRecord | None:
        """Return the first failure with this error that is kept, with the time of the database as ``read_at``."""
        # Also not empty, as the index has no others.
        with_pattern = self._failed.filter(error_pattern=pattern).exclude(error_pattern="")
        return with_pattern.defer(*WIDE_COLUMNS).annotate(read_at=Now()).order_by("created_at", "pk").first()


def _newest(records: QuerySet[TaskRecord]) -> QuerySet[TaskRecord]:
    return records.defer(*WIDE_COLUMNS).order_by("-finished_at", "-pk")[:SHOWN_RUNS]


@dataclass(frozen=True)
class Difference:
    """A fact of the last good run and of the first bad one."""

    label: str
    good: str
    bad: str
    #: Whether it is a value in the form of code.
    is_code: bool = False
    #: Whether it differs in any two runs, so that this says nothing.
    always_differs: bool = False

    @property
    def differs(self) -> bool:
        return self.good != self.bad and not self.always_differs


@dataclass(frozen=True)
class FailureSeries:
    """Failures with no completed run between them, the last good run before them, and the first one after them."""

    last_good: TaskRecord | None
    first_bad: TaskRecord
    last_bad: TaskRecord
    count: Count
    recovered: TaskRecord | None

    @property
    def began_with_release(self) -> bool:
        """Whether the first failure is of another release than the last good run."""
        good, bad = self.last_good, self.first_bad
        return good is not None and bool(bad.release) and good.release != bad.release

    @property
    def differences(self) -> list[Difference]:
        """The facts of both runs, side by side."""
        return list(_differences(self.last_good, self.first_bad)) if self.last_good is not None else []


def _differences(good: TaskRecord, bad: TaskRecord) -> Iterator[Difference]:
    yield Difference(pgettext("of software", "Release"), good.release or "–", bad.release or "–")
    yield Difference(_("Worker"), _worker(good), _worker(bad), always_differs=good.worker_host == bad.worker_host)
    yield Difference(_("Queue"), good.cluster or _("default"), bad.cluster or _("default"))
    yield Difference(
        _("Waited"), precise_duration(good.waiting_time), precise_duration(bad.waiting_time), always_differs=True
    )
    yield Difference(
        _("Duration"), precise_duration(good.duration), precise_duration(bad.duration), always_differs=True
    )
    yield Difference(_("Launched by"), good.user_label or "–", bad.user_label or "–")
    yield Difference(_("Objects"), _objects(good), _objects(bad))
    yield Difference(_("Times started"), str(good.attempts), str(bad.attempts))
    of_good, of_bad = _arguments(good), _arguments(bad)
    for name in list(dict.fromkeys((*of_good, *of_bad)))[:MAX_ARGUMENTS]:
        yield Difference(
            _("Argument %(name)s") % {"name": name}, of_good.get(name, "–"), of_bad.get(name, "–"), is_code=True
        )


def _worker(record: TaskRecord) -> str:
    return f"{record.worker_host} {record.worker_pid or ''}".strip() or "–"


def _objects(record: TaskRecord) -> str:
    shown = [item.get("text") or f"{item['model']} {item['id']}" for item in record.first_objects]
    more = record.affected_count - len(shown)
    return ", ".join(shown) + (f" +{more}" if more > 0 else "") or "–"


def _arguments(record: TaskRecord) -> dict[str, str]:
    """Return each argument by its name, or its number, as on the page of the task: secrets are masked."""
    names = list(record.argument_names or [])
    values: dict[str, str] = {}
    for number, value in enumerate(record.task_args or []):
        name = names[number] if number < len(names) else str(number + 1)
        values[str(name)] = _shown(str(name), value)
    for name, value in (record.task_kwargs or {}).items():
        values[str(name)] = _shown(str(name), value)
    return values


def _shown(name: str, value: Any) -> str:
    text = readable_json([value], [name]).removeprefix("[").removesuffix("]").strip()
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]} …"
