"""The rows of the task list. Those that have been rendered are kept."""

from __future__ import annotations

import hashlib
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.template.loader import get_template
from django.utils.html import conditional_escape
from django.utils.safestring import mark_safe
from django.utils.timezone import get_current_timezone_name
from django.utils.translation import get_language

from powercrud_dashboard.dashboard import customized
from powercrud_dashboard.dashboard.formatting import Marked, Moment, counted_objects, duration, relative_time
from powercrud_dashboard.dashboard.selection import BulkAction, RowAction
from powercrud_dashboard.extension import Dashboard, dashboard
from powercrud_dashboard.models.labels import name_of_row

if TYPE_CHECKING:
    from powercrud_dashboard.dashboard.access import User
    from powercrud_dashboard.dashboard.live import LiveTask
    from powercrud_dashboard.models import TaskRecord

TEMPLATE = "powercrud_dashboard/tasks/_row.html"

#: The size of the rows that each process caches, about 1,000 of them. Most users see the same rows.
MAX_CACHED_BYTES = 5_000_000


@dataclass(frozen=True)
class TaskRow:
    """One row of the task list."""

    record: TaskRecord
    #: None once the task has ended.
    live: LiveTask | None
    url: str
    #: The name of the objects' model, such as "480 products"; "" for no objects.
    counted_objects: str
    #: The text and the URL, or "", of the first objects.
    objects: Sequence[tuple[str, str]]
    actions: Sequence[RowAction]
    #: When the record was read, by the database's clock.
    read_at: datetime
    #: The URL of the retry of a failure that is queued or running; "" if there is none.
    retry_url: str = ""
    #: Who has launched the task, and the name, label and HTML of each column of the project.
    person: str = ""
    cells: Sequence[tuple[str, Any, str]] = ()

    @property
    def hidden_object_count(self) -> int:
        """The number of objects that the row does not show."""
        return max(0, self.record.affected_count - len(self.objects))

    @property
    def times(self) -> dict[str, datetime]:
        """When the task was created and when it ended, if it has."""
        times = {"created": self.record.created_at, "ended": self.record.finished_at}
        return {name: at for name, at in times.items() if at}

    @property
    def passing_texts(self) -> dict[str, str]:
        """What the row shows that changes as time passes, by name: a cached row has a mark in the place of each."""
        texts = {name: relative_time(at, self.read_at) for name, at in self.times.items()}
        if not self.record.is_finished:
            run_time = self.live.duration if self.live and self.live.duration else self.record.duration
            texts["run_time"] = duration(run_time)
            texts |= self.live.passing_texts if self.live else {}
        return texts

    def cache_key(self, *options: object) -> bytes:
        """Return a digest of everything the row shows but for the passing texts, with the options of the page."""
        columns = {name: value for name, value in self.record.__dict__.items() if name not in ("_state", "read_at")}
        buttons = [(action.name, action.url, action.value) for action in self.actions]
        objects = (self.counted_objects, self.objects)
        added = self.person, [(name, html) for name, _label, html in self.cells]
        shown = repr((options, columns, self.live and self.live.shown, self.url, objects, buttons, added))
        return hashlib.blake2b(shown.encode(errors="surrogatepass"), digest_size=20).digest()


class _RowCache:
    """Rendered rows, of which the oldest are dropped to keep within ``MAX_CACHED_BYTES``."""

    def __init__(self) -> None:
        self._rows: dict[bytes, str] = {}
        self._size = 0
        self._lock = threading.Lock()

    def get(self, key: bytes) -> str | None:
        return self._rows.get(key)

    def add(self, key: bytes, html: str) -> None:
        with self._lock:
            if key in self._rows:
                return
            self._rows[key] = html
            self._size += sys.getsizeof(html)
            while self._size > MAX_CACHED_BYTES:
                self._size -= sys.getsizeof(self._rows.pop(next(iter(self._rows))))


_row_cache = _RowCache()


def _mark(name: str) -> str:
    """Return what stands in a cached row for a text that changes as time passes."""
    return f"\ue000{name}\ue000"


class _MarkedLive:
    """A live state with marks in the place of the texts that change as time passes."""

    def __init__(self, live: LiveTask) -> None:
        self._live = live
        self._marks = {name: Marked(_mark(name)) for name in live.passing_texts}

    def __getattr__(self, name: str) -> Any:
        return self._marks[name] if name in self._marks else getattr(self._live, name)


def render_rows(rows: Iterable[TaskRow], *, labels: Mapping[str, str], is_actionable: bool) -> list[str]:
    """Return the HTML of each row; ``labels`` are the column headers by column name."""
    template = get_template(TEMPLATE)
    options = (is_actionable, get_language(), get_current_timezone_name())
    rendered: list[str] = []
    for row in rows:
        key = row.cache_key(*options)
        html = _row_cache.get(key)
        texts = row.passing_texts
        if html is None:
            moments = {
                name: replace(Moment.of(at, row.read_at), relative=_mark(name)) for name, at in row.times.items()
            }
            html = template.render(
                {
                    "row": row,
                    "record": row.record,
                    "live": row.live and _MarkedLive(row.live),
                    **moments,
                    "run_time": _mark("run_time"),
                    "labels": labels,
                    "is_actionable": is_actionable,
                }
            )
            if not settings.DEBUG:
                _row_cache.add(key, html)
        for name, text in texts.items():
            html = html.replace(_mark(name), conditional_escape(text))
        rendered.append(mark_safe(html))  # noqa: S308 - the template has escaped it
    return rendered


#: Stands in a URL for the key of a record.
ANY_KEY = 10**17


class RowMaker:
    """Makes the rows of one page for one user."""

    def __init__(
        self,
        user: User,
        actions: Sequence[BulkAction],
        *,
        url: Callable[..., str],
        object_url: Callable[[str, str], str],
    ) -> None:
        """Choose what the rows are made with.

        Args:
            user: who looks at them.
            actions: those that the user may use on some of the records.
            url: returns the URL of a page for its name and the key of a record.
            object_url: returns the URL of an object for its model and key; "" for none.
        """
        self._user = user
        self._actions = actions
        self._find_url = url
        self._object_url = object_url
        self._urls: dict[str, str] = {}
        self._possible: dict[tuple[object, ...], list[BulkAction]] = {}

    def make(self, record: Any, live: LiveTask | None) -> TaskRow:
        """Return the row of a record with what :class:`Listing` has added."""
        return TaskRow(
            record,
            live,
            self._url("change", record.pk),
            counted_objects(record),
            [self._object(item["model"], item["id"], item.get("text")) for item in record.first_objects],
            self._buttons(record),
            record.read_at,
            retry_url=self._url("change", record.retry_pk) if record.retry_pk else "",
            person=customized.user_text(record),
            cells=customized.cells(record),
        )

    def _object(self, model_label: str, object_id: str, text: str | None) -> tuple[str, str]:
        text = customized.object_text(model_label, object_id, text or name_of_row(model_label, object_id))
        return text, self._object_url(model_label, object_id)

    def _buttons(self, record: Any) -> list[RowAction]:
        bulk_url = self._url("bulk")
        # The page of the retry asks before completed work is done again.
        pages = {"run_again": "retry"}
        return [
            RowAction(action.name, action.label, bulk_url, f"{action.name}:{record.pk}")
            if action.name in ("dismiss", "delete")
            else RowAction(action.name, action.label, self._url(pages.get(action.name, action.name), record.pk))
            for action in self._possible_for(record)
            if not (record.retry_pk and action.name == "retry")
        ]

    @staticmethod
    def _rules_of(record: TaskRecord) -> int | None:
        """Return what the rules of the project may depend on: any task may be another case."""
        return None if type(dashboard()) is Dashboard else record.pk

    def _possible_for(self, record: TaskRecord) -> list[BulkAction]:
        # All that a refusal depends on. Most of the rows have it in common.
        kind = record.status, record.resolution, record.source, record.user_id == self._user.pk, self._rules_of(record)
        if kind not in self._possible:
            self._possible[kind] = [action for action in self._actions if not action.refusal(self._user, record)]
        return self._possible[kind]

    def _url(self, name: str, key: int | None = None) -> str:
        """Return a URL, which is looked up once for all rows."""
        if name not in self._urls:
            self._urls[name] = self._find_url(name, *([] if key is None else [ANY_KEY]))
        return self._urls[name].replace(str(ANY_KEY), str(key))
