"""The rows of the task list, as HTML: those of tasks that have ended are rendered once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from django.conf import settings
from django.template.loader import get_template
from django.utils.timezone import get_current_timezone_name
from django.utils.translation import get_language

from powercrud_dashboard.models import TaskRecord

if TYPE_CHECKING:
    from powercrud_dashboard.dashboard.live import LiveTask
    from powercrud_dashboard.dashboard.selection import RowAction

TEMPLATE = "powercrud_dashboard/tasks/_row.html"

#: Rows that a process keeps, of about 5 KB each; people who have the list open mostly see the same.
KEPT_AT_MOST = 1_000


@dataclass(frozen=True)
class TaskRow:
    """A task as the list shows it."""

    record: TaskRecord
    #: None once the task has ended.
    live: LiveTask | None
    url: str
    #: The words of its first objects, and the addresses of their pages, as far as there are any.
    objects: Sequence[tuple[str, str]]
    actions: Sequence[RowAction]

    @property
    def objects_beyond(self) -> int:
        """How many objects there are beside those that are shown."""
        return max(0, self.record.affected_count - len(self.objects))

    @property
    def is_settled(self) -> bool:
        """Whether it looks the same tomorrow, unless one of its parts changes."""
        return self.live is None and self.record.is_finished

    def parts(self) -> str:
        """Return all that it is made of as one text: each loaded column, the links, the buttons."""
        columns = {name: value for name, value in self.record.__dict__.items() if name != "_state"}
        buttons = [(action.name, action.url, action.value) for action in self.actions]
        return repr((columns, self.url, self.objects, buttons))


_kept: dict[tuple[object, ...], str] = {}


def rendered(rows: Iterable[TaskRow], *, labels: Mapping[str, str], is_actionable: bool) -> list[str]:
    """Return the HTML of each row; ``labels`` are the columns' headings by their names."""
    template = get_template(TEMPLATE)
    surroundings = (is_actionable, get_language(), get_current_timezone_name())
    found = []
    for row in rows:
        key = (*surroundings, row.parts()) if row.is_settled else None
        html = _kept.get(key) if key else None
        if html is None:
            context = {"row": row, "record": row.record, "live": row.live}
            html = template.render({**context, "labels": labels, "is_actionable": is_actionable})
            if key and not settings.DEBUG:
                _keep(key, html)
        found.append(html)
    return found


def _keep(key: tuple[object, ...], html: str) -> None:
    if len(_kept) >= KEPT_AT_MOST:
        _kept.clear()
    _kept[key] = html
