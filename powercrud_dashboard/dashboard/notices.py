"""Tell a person of their tasks that have ended: what is said, on which pages, and once."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from django.apps import apps
from django.contrib import messages
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from powercrud_dashboard.dashboard.links import dashboard_url
from powercrud_dashboard.models import TaskNotice, TaskRecord, TaskStatus

#: Tasks, or groups of tasks, of which each gets a message of its own; more are one message.
OWN_MESSAGES = 3
#: Notices that are looked at; of more only their number is told.
LOOKED_AT = 100

#: What a text about an ended task needs of its record.
RECORD_COLUMNS = (
    *("id", "task_name", "label", "status", "group", "model_labels", "resolution"),
    *("affected_count", "done_count", "failed_count", "finished_at"),
)


def with_records(notices: Any) -> Any:
    """Have the notices loaded with what a text about them needs of their records, the newest first."""
    return notices.select_related("record").only("id", *(f"record__{name}" for name in RECORD_COLUMNS)).order_by("-pk")


def subject_of(record: TaskRecord) -> str:
    """Return the task's label with the number of its objects: “Re-price (480 products)”."""
    label = _(record.label)
    if not record.affected_count:
        return label
    objects = {"task": label, "count": record.affected_count, "objects": _name_of_objects(record)}
    return _("%(task)s (%(count)d %(objects)s)") % objects


def _name_of_objects(record: TaskRecord) -> str:
    try:
        options = apps.get_model(record.model_labels)._meta
    except (LookupError, ValueError):
        # Of several models, or of one that is gone.
        return ngettext("object", "objects", record.affected_count)
    return str(options.verbose_name if record.affected_count == 1 else options.verbose_name_plural)


def outcome_of(record: TaskRecord) -> str:
    """Return how the task ended: “completed, 3 failed”."""
    if record.status == TaskStatus.SUCCESS and record.failed_count:
        return _("completed, %(failed)d failed") % {"failed": record.failed_count}
    texts = {
        TaskStatus.SUCCESS.value: _("completed"),
        TaskStatus.FAILED.value: _("failed"),
        TaskStatus.CANCELLED.value: _("cancelled"),
    }
    return texts.get(record.status, "")


@dataclass
class Ended:
    """Tasks that have ended, to be told in one message: one task, those of a group, or all."""

    records: list[TaskRecord] = field(default_factory=list)

    @property
    def failed(self) -> list[TaskRecord]:
        return [record for record in self.records if record.status == TaskStatus.FAILED]

    @property
    def failed_objects(self) -> int:
        return sum(record.failed_count for record in self.records)

    @property
    def level(self) -> int:
        if self.failed:
            return messages.ERROR
        is_good = all(record.status == TaskStatus.SUCCESS and not record.failed_count for record in self.records)
        return messages.SUCCESS if is_good else messages.WARNING


def by_message(records: Iterable[TaskRecord]) -> list[Ended]:
    """Put the tasks of a group together, each task only once."""
    found: dict[str, Ended] = {}
    for record in {record.pk: record for record in records}.values():
        found.setdefault(record.group or record.task_name, Ended()).records.append(record)
    return list(found.values())


class Told:
    """The messages for one page."""

    def __init__(self, user: Any, site_name: str | None) -> None:
        self._user = user
        self._site_name = site_name
        self._token = ""
        #: The texts of the messages.
        self.texts: list[str] = []

    def messages(self) -> list[tuple[int, SafeString]]:
        """Return the messages, with their levels, about what no other page has told. One query if there is nothing."""
        mine = TaskNotice.objects.of(self._user)
        found = list(with_records(mine.untold())[: LOOKED_AT + 1])
        if not found:
            return []
        self._token = uuid.uuid4().hex
        # Another tab may take some of them at the same time.
        told = mine.filter(pk__lte=found[0].pk).tell(self._token)
        if told < len(found):
            taken = set(mine.filter(told_by=self._token).values_list("pk", flat=True))
            found = [notice for notice in found if notice.pk in taken]
        ended = by_message(notice.record for notice in found)
        if len(ended) <= OWN_MESSAGES and len(found) <= LOOKED_AT:
            told_now = [(item.level, self._message(item)) for item in ended]
        else:
            told_now = [self._summary(Ended([record for item in ended for record in item.records]), told)]
        self.texts = [text for _level, text in told_now]
        return told_now

    def take_back(self) -> None:
        """Let another page tell it, as this one was not shown."""
        if self._token:
            TaskNotice.objects.of(self._user).filter(told_by=self._token).update(told_by="")

    def _message(self, ended: Ended) -> SafeString:
        record = ended.records[0]
        if record.group and len(ended.records) > 1:
            count, failed = len(ended.records), len(ended.failed)
            text = _count_text(count, failed)
            if ended.failed_objects:
                text = _("%(tasks)s, %(failed)d objects failed") % {"tasks": text, "failed": ended.failed_objects}
            url = dashboard_url(self._site_name, "group", record.group)
            return _linked(url, _(record.label), text)
        url = dashboard_url(self._site_name, "change", record.pk)
        message = _linked(url, subject_of(record), outcome_of(record))
        if record.failed_count and url:
            link = f"{dashboard_url(self._site_name, 'change', record.pk, outcome='failed')}#pcrud-objects-title"
            message = format_html('{} <a href="{}">{}</a>', message, link, _("Show the failed objects"))
        return message

    def _summary(self, ended: Ended, told: int) -> tuple[int, SafeString]:
        url = dashboard_url(self._site_name, "changelist", mine="on", within="7d")
        return ended.level, _linked(url, _("Background tasks"), _count_text(told, len(ended.failed)))


def _count_text(count: int, failed: int) -> str:
    text = ngettext("%(count)d task ended", "%(count)d tasks ended", count) % {"count": count}
    return _("%(tasks)s, %(failed)d failed") % {"tasks": text, "failed": failed} if failed else text


def _linked(url: str, subject: str, text: str) -> SafeString:
    shown = format_html('<a href="{}">{}</a>', url, subject) if url else subject
    return format_html(_("{subject}: {text}."), subject=shown, text=text)
