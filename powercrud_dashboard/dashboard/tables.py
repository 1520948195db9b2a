from __future__ import annotations

from typing import TYPE_CHECKING, Any

import django_tables2 as tables
from django.db.models import F, QuerySet
from django.template.loader import render_to_string
from django.utils.translation import gettext_lazy as _

from powercrud_dashboard.models import TaskRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from powercrud_dashboard.dashboard.live import LiveTask


class TaskTable(tables.Table):  # type: ignore[misc]
    """The rows of the task list. Cells that say more than a value are partials."""

    status = tables.Column(verbose_name=_("Status"))
    label = tables.Column(verbose_name=_("Task"), attrs={"td": {"class": "pcrud-label"}})
    affected_count = tables.Column(verbose_name=_("Objects"), attrs={"td": {"class": "pcrud-number"}})
    user_label = tables.Column(verbose_name=_("Launched by"), default="–")
    progress = tables.Column(verbose_name=_("Progress"), empty_values=(), orderable=False)
    created_at = tables.DateTimeColumn(verbose_name=_("Created"), short=True, attrs={"td": {"class": "pcrud-time"}})
    duration = tables.Column(verbose_name=_("Duration"), empty_values=(), attrs={"td": {"class": "pcrud-time"}})

    class Meta:
        model = TaskRecord
        fields = ("status", "label", "affected_count", "user_label", "progress", "created_at", "duration")
        order_by = ("-created_at",)
        template_name = "powercrud_dashboard/tasks/_table.html"
        empty_text = _("No tasks here.")

    def __init__(
        self, *args: Any, live: Mapping[str, LiveTask], task_url: Callable[[TaskRecord], str], **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.live = live
        self.task_url = task_url

    def render_status(self, record: TaskRecord) -> str:
        return self._partial("shared/_status.html", record)

    def render_label(self, record: TaskRecord) -> str:
        return self._partial("tasks/_label.html", record)

    def render_progress(self, record: TaskRecord) -> str:
        return self._partial("shared/_progress.html", record)

    def render_duration(self, record: TaskRecord) -> str:
        return self._partial("shared/_duration.html", record)

    def order_duration(self, queryset: QuerySet[TaskRecord], is_descending: bool) -> tuple[QuerySet[TaskRecord], bool]:
        length = F("finished_at") - F("started_at")
        order = length.desc(nulls_last=True) if is_descending else length.asc(nulls_last=True)
        return queryset.order_by(order, "-pk"), True

    def _partial(self, name: str, record: TaskRecord) -> str:
        live = self.live.get(record.task_name)
        context = {"record": record, "live": live, "task_url": self.task_url(record)}
        return render_to_string(f"powercrud_dashboard/{name}", context)
