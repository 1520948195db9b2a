"""The filtered task list as a file."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from typing import Any

from django.core.serializers.json import DjangoJSONEncoder
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.utils import timezone
from django.utils.translation import gettext as _

from powercrud_dashboard.dashboard.listing import Listing
from powercrud_dashboard.dashboard.views.base import DashboardView
from powercrud_dashboard.models import TaskRecord

COLUMNS = (
    "task_name",
    "label",
    "func",
    "status",
    "failure_reason",
    "message",
    "error",
    "user_label",
    "affected_count",
    "attempts",
    "group",
    "cluster",
    "source",
    "created_at",
    "started_at",
    "finished_at",
)

#: Rows read from the database at a time.
CHUNK = 1_000

#: Spreadsheets treat a cell that starts with one of these as a formula.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


class ExportView(DashboardView):
    """The filtered list as a file, streamed row by row."""

    http_method_names = ["get", "head", "options"]

    def get(self, request: HttpRequest, file_format: str) -> HttpResponseBase:
        writers = {"csv": (_csv_lines, "text/csv; charset=utf-8"), "json": (_json_lines, "application/json")}
        if file_format not in writers:
            raise Http404(_("Tasks can be exported as csv or json."))
        write, content_type = writers[file_format]
        records = Listing(request.GET, request.user).matching(is_complete=True)
        name = f"tasks-{timezone.now():%Y%m%d-%H%M%S}.{file_format}"
        return StreamingHttpResponse(
            write(_rows(records)),
            content_type=content_type,
            headers={"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"},
        )


def _rows(records: QuerySet[TaskRecord]) -> Iterator[dict[str, Any]]:
    yield from records.values(*COLUMNS).iterator(chunk_size=CHUNK)


class _Line:
    """A file-like object for ``csv.writer`` that returns each line."""

    def write(self, line: str) -> str:
        return line


def _csv_lines(rows: Iterator[dict[str, Any]]) -> Iterator[str]:
    writer = csv.writer(_Line())
    yield writer.writerow(COLUMNS)
    for row in rows:
        yield writer.writerow([_cell(row[column]) for column in COLUMNS])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = value.isoformat() if hasattr(value, "isoformat") else str(value)
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text


def _json_lines(rows: Iterator[dict[str, Any]]) -> Iterator[str]:
    separator = "[\n"
    for row in rows:
        yield separator + json.dumps(row, cls=DjangoJSONEncoder, ensure_ascii=False)
        separator = ",\n"
    yield "[]\n" if separator == "[\n" else "\n]\n"
