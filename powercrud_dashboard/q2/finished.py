"""django-q2's table of finished tasks, in parts. A value that can't be unpickled harms no other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.db.models import Exists, ExpressionWrapper, F, OuterRef, QuerySet, TextField
from django_q.models import Task
from picklefield.fields import PickledObject

from powercrud_dashboard.models import TaskRecord
from powercrud_dashboard.text import SHORT, error_summary

#: The columns that hold pickles.
PICKLED = ("args", "kwargs", "result")
#: Characters of a pickled value that is read.
MAX_LENGTH = 50_000_000

_PLAIN = ("id", "name", "func", "group", "cluster", "started", "stopped", "success", "attempt_count", "hook")


class Unreadable:
    """Stands for a value that can't be unpickled. It can't be pickled either, so that nothing is run with it."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def __repr__(self) -> str:
        return f"<unreadable: {self._reason}>"

    def __reduce__(self) -> Any:
        raise TypeError(repr(self))


@dataclass(frozen=True)
class FinishedTask:
    """A row of the table."""

    id: str
    name: str
    func: str
    group: str
    cluster: str
    enqueued_at: datetime
    stopped_at: datetime
    success: bool
    attempts: int
    hook: str
    args: Any = field(repr=False)
    kwargs: Any = field(repr=False)
    result: Any = field(repr=False)
    #: The columns that can't be read, with the reason.
    unreadable: dict[str, str]

    @property
    def arguments(self) -> Sequence[Any]:
        """The positional arguments. Those that can't be read are one, with which nothing is run."""
        if self.args is None:
            return ()
        return self.args if isinstance(self.args, list | tuple) else (self.args,)

    @property
    def keywords(self) -> dict[str, Any]:
        if self.kwargs is None:
            return {}
        return self.kwargs if isinstance(self.kwargs, dict) else {"": self.kwargs}


def rows_since(moment: datetime | None) -> QuerySet[Task]:
    """Return the rows of tasks that ended at this time or later; all of them, if it is None."""
    rows: QuerySet[Task] = Task.objects.order_by()
    return rows if moment is None else rows.filter(stopped__gte=moment)


def kept_since(rows: QuerySet[Task], *, success: datetime | None, failed: datetime | None) -> QuerySet[Task]:
    """Leave out the rows of tasks that have succeeded or failed before these times; None for no limit."""
    for is_success, moment in ((True, success), (False, failed)):
        if moment is not None:
            rows = rows.exclude(success=is_success, stopped__lt=moment)
    return rows


def newest(rows: QuerySet[Task], count: int) -> QuerySet[Task]:
    """Return only the newest so many rows, and those that ended at the same time as the oldest of them."""
    if count <= 0:
        return rows.none()
    ended = list(rows.order_by("-stopped").values_list("stopped", flat=True)[count - 1 : count + 1])
    return rows.filter(stopped__gte=ended[0]) if len(ended) > 1 else rows


def without_record(rows: QuerySet[Task]) -> QuerySet[Task]:
    """Leave out the rows whose tasks are recorded, where one database has both."""
    records = TaskRecord.objects.all()
    if records.db != rows.db:
        return rows
    known = [records.filter(task_name=OuterRef(column)) for column in ("id", "name")]
    return rows.filter(~Exists(known[0]), ~Exists(known[1]))


def in_parts(rows: QuerySet[Task], size: int) -> Iterator[list[FinishedTask]]:
    """Yield the rows, so many at a time, in the order in which they ended."""
    # Unpickled here, one by one.
    raw = {f"raw_{name}": ExpressionWrapper(F(name), output_field=TextField()) for name in PICKLED}
    values = Task.objects.using(rows.db).order_by("stopped").annotate(**raw).values(*_PLAIN, *raw)
    # Read once, as there is no index for the order. New entries of the history's own indexes are then next to each
    # other, so that fewer of their pages are written.
    keys = list(rows.order_by("stopped").values_list("pk", flat=True))
    for start in range(0, len(keys), size):
        yield [_read(row) for row in values.filter(pk__in=keys[start : start + size])]


def _read(row: dict[str, Any]) -> FinishedTask:
    unreadable: dict[str, str] = {}
    values = {name: _unpickled(name, row[f"raw_{name}"], unreadable) for name in PICKLED}
    return FinishedTask(
        id=row["id"],
        name=row["name"],
        func=row["func"],
        group=row["group"] or "",
        cluster=row["cluster"] or "",
        enqueued_at=row["started"],
        stopped_at=row["stopped"],
        success=row["success"],
        attempts=max(1, row["attempt_count"]),
        hook=row["hook"] or "",
        unreadable=unreadable,
        **values,
    )


def _unpickled(name: str, text: str | None, unreadable: dict[str, str]) -> Any:
    if text is None:
        return None
    if len(text) > MAX_LENGTH:
        unreadable[name] = f"{len(text)} characters"
        return Unreadable(unreadable[name])
    try:
        # What a column holds is a pickle for certain: otherwise the field would return the text as it is.
        return Task._meta.get_field(name).to_python(PickledObject(text))
    except (Exception, SystemExit) as error:
        # Its classes may be gone, and importing the module of one runs that.
        unreadable[name] = error_summary(error, SHORT)
        return Unreadable(unreadable[name])
