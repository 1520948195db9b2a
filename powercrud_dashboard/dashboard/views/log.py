"""The log of a task: its page, and the part of it that the page of the task shows."""

from __future__ import annotations

from typing import Any

from django.http import Http404, HttpRequest, HttpResponse, QueryDict
from django.utils.functional import cached_property
from django.utils.http import content_disposition_header
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from powercrud_dashboard.dashboard.views.base import RefreshingPageView
from powercrud_dashboard.engine.logs import LEVELS
from powercrud_dashboard.models import TaskLogLine, TaskRecord

#: Lines on the page of the log, and on that of the task.
LINES_ON_PAGE = 500
LINES_ON_TASK_PAGE = 100
#: Keys have so many digits at most; longer numbers in an address are none.
KEY_DIGITS = 18

#: The levels to filter by.
LEVEL_CHOICES = (
    ("info", gettext_lazy("Info and above")),
    ("warning", gettext_lazy("Warning and above")),
    ("error", gettext_lazy("Error and above")),
)


class ShownLog:
    """A part of a task's log: what matches the parameters, around a line, or the newest lines."""

    def __init__(self, record: TaskRecord, url: str, parameters: QueryDict, count: int = LINES_ON_PAGE) -> None:
        """Choose it.

        Args:
            record: the task's record, read before its lines: of an ended task the log is complete then.
            url: the address of the page of the log.
            parameters: ``level``, ``q``, and ``line`` or ``before``, keys of lines.
            count: the number of lines to show.
        """
        self.record = record
        self.url = url
        self._count = count
        level = parameters.get("level", "")
        self.level = level if level in dict(LEVEL_CHOICES) else ""
        # PostgreSQL stores no NUL, and finds none.
        self.text = parameters.get("q", "").replace("\0", "")
        self._parameters = parameters

    @property
    def level_choices(self) -> list[tuple[str, Any, bool]]:
        return [(value, label, value == self.level) for value, label in LEVEL_CHOICES]

    @property
    def is_filtered(self) -> bool:
        return bool(self.level or self.text)

    @property
    def line(self) -> int:
        """The key of the line to show, or 0."""
        return self._key("line")

    def _key(self, name: str) -> int:
        value = self._parameters.get(name, "")
        return int(value) if len(value) <= KEY_DIGITS and value.isascii() and value.isdecimal() else 0

    @property
    def _matching(self) -> Any:
        return TaskLogLine.objects.filter(record=self.record.pk).matching(
            level=LEVELS.get(self.level, 0), text=self.text
        )

    @cached_property
    def _newest_first(self) -> list[TaskLogLine]:
        """The lines, and one more if there are earlier ones."""
        lines = self._matching
        if self.line:
            half = self._count // 2
            later = list(lines.filter(pk__gt=self.line).order_by("pk")[:half])
            earlier = list(lines.filter(pk__lte=self.line).order_by("-pk")[: self._count - half + 1])
            return [*reversed(later), *earlier]
        if before := self._key("before"):
            lines = lines.filter(pk__lt=before)
        return list(lines.order_by("-pk")[: self._count + 1])

    @cached_property
    def lines(self) -> list[TaskLogLine]:
        return self._newest_first[: self._count][::-1]

    @property
    def after(self) -> int:
        """The key of the newest line that the page shows, of which it asks for newer ones."""
        return self._key("after")

    @property
    def newer(self) -> list[TaskLogLine]:
        """The lines that were written after that one."""
        return list(self._matching.filter(pk__gt=self.after).order_by("-pk")[: self._count])[::-1]

    @property
    def earlier_url(self) -> str:
        """The address of the lines before these; "" if there are none."""
        if len(self._newest_first) <= self._count:
            return ""
        return self.address(before=self.lines[0].pk)

    @property
    def newest_url(self) -> str:
        """The address of the newest lines, if others are shown."""
        return self.address() if self.line or self._key("before") else ""

    @property
    def download_url(self) -> str:
        return self.address(download=1)

    @property
    def follows(self) -> bool:
        """Whether new lines are to be added while the task runs."""
        return not (self.record.is_finished or self.newest_url)

    def tail_url(self, newest: int) -> str:
        """Return the address of the lines after this one."""
        return self.address(after=newest)

    def address(self, **parameters: object) -> str:
        """Return the address of the page of the log with the same filters and these parameters."""
        query = QueryDict(mutable=True)
        given = {"level": self.level, "q": self.text, **parameters}
        query.update({name: str(value) for name, value in given.items() if value})
        return f"{self.url}?{query.urlencode()}" if query else self.url

    def as_text(self) -> str:
        """Return all lines that match, as a text file has them."""
        texts = []
        for line in self._matching.order_by("pk").iterator():
            if line.left_out:
                texts.append(f"... {line.left_out} lines are left out ...\n")
            else:
                time = line.time.isoformat(timespec="milliseconds")
                texts.append(f"{time} {line.level_name.upper():8} {line.logger or '-'} {line.message}\n")
        return "".join(texts)


class LogView(RefreshingPageView):
    """The log of a task, which grows while the task runs."""

    page_name = "changelist"
    template_name = "powercrud_dashboard/log/page.html"
    partial_template_name = "powercrud_dashboard/log/_lines.html"

    log: ShownLog

    def get(self, request: HttpRequest, pk: int) -> HttpResponse:
        visible = TaskRecord.objects.visible_to(request.user).only("pk", "label", "task_name", "status")
        record = visible.filter(pk=pk).first()
        if record is None:
            raise Http404(_("Task not found."))
        self.log = ShownLog(record, self.url("log", pk), request.GET)
        if self.is_partial_request:
            return self._tail()
        if "download" in request.GET:
            return self._download()
        return self.render_to_response(self.get_context_data())

    def _tail(self) -> HttpResponse:
        lines = self.log.newer
        if not lines and not self.log.record.is_finished:
            return HttpResponse(status=204)
        newest = lines[-1].pk if lines else self.log.after
        return self.render_to_response(self.get_context_data(lines=lines, newest=newest))

    def _download(self) -> HttpResponse:
        response = HttpResponse(self.log.as_text(), content_type="text/plain; charset=utf-8")
        name = f"task-{self.log.record.pk}.log"
        response.headers["Content-Disposition"] = content_disposition_header(True, name) or "attachment"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        record = self.log.record
        context = {
            "title": _("Log: %(task)s") % {"task": _(record.label)},
            "record": record,
            "log": self.log,
            "task_url": self.url("change", record.pk),
        }
        return super().get_context_data(**context, **kwargs)
