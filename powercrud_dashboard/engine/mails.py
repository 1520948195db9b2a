"""Mails about tasks that took long, sent apart from the tasks: by a thread of the workers, and by the cleanup."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import django
from django.apps import apps
from django.conf import settings
from django.core import mail
from django.core.mail import EmailMessage
from django.template.loader import render_to_string
from django.urls import get_script_prefix, set_script_prefix
from django.utils import timezone, translation

from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.models import NoticePreference, TaskNotice, TaskObject, TaskRecord, TaskStatus
from powercrud_dashboard.models.notices import MAILED_WITHIN
from powercrud_dashboard.models.objects import Outcome

logger = logging.getLogger(__name__)

SUBJECT = "powercrud_dashboard/mail/subject.txt"
BODY = "powercrud_dashboard/mail/body.txt"
SITE = ("sites", "Site")
#: Mails that one pass sends.
MAILS_AT_ONCE = 50
#: Seconds after which a pass begins no other mail.
PASS_TAKES = 30
#: Seconds for which a mail server may say nothing, unless the project's settings say how long.
SERVER_TIMEOUT = 10
#: Failed objects that a mail names.
NAMED_OBJECTS = 10


def send_due() -> int:
    """Send the mails that are due, and return how many were sent. One that can't be sent is tried again later."""
    if app_settings.DASHBOARD_MAIL_AFTER is None:
        return 0
    sent = 0
    until = time.monotonic() + PASS_TAKES
    for _number in range(MAILS_AT_ONCE):
        if time.monotonic() > until:
            break
        due = TaskNotice.objects.all().to_mail().select_related("record").prefetch_related("user")
        notice = due.order_by("mail_due_at").first()
        if notice is None:
            break
        sent += _send(notice)
    return sent


def send(message: EmailMessage) -> None:
    """Send a mail, without waiting for ever for a server that says nothing."""
    backend: Any = mail.mailers.default if django.VERSION >= (6, 1) else mail.get_connection()
    # That of SMTP has this attribute; None is Django's default.
    if getattr(backend, "timeout", SERVER_TIMEOUT) is None:
        backend.timeout = SERVER_TIMEOUT
    backend.send_messages([message])


def _send(notice: TaskNotice) -> bool:
    record = notice.record
    mine = TaskNotice.objects.filter(user=notice.user_id)
    of_group = mine.filter(record__group=record.group) if record.group else mine.filter(record=record.pk)
    due = TaskNotice.objects.filter(pk__in=list(of_group.exclude(mail_due_at=None).values_list("pk", flat=True)))
    if not due.claim_mail():
        # Another process was faster.
        return False
    try:
        is_sent = _Mail(notice).send()
    except Exception:
        # The server may be away, or a template of the project be broken.
        logger.exception(
            "The mail about task %s can't be sent now", record.task_name, extra={"task_name": record.task_name}
        )
        if notice.created_at < timezone.now() - MAILED_WITHIN:
            due.end_mail()
        return False
    due.end_mail()
    return is_sent


@dataclass(frozen=True)
class _Click:
    """What is known of the request in which the task was launched; only for actions of the admin."""

    language: str = ""
    origin: str = ""
    script_name: str = ""

    @classmethod
    def of(cls, record: TaskRecord) -> _Click:
        arguments = record.task_kwargs
        known = arguments.get("surroundings") if isinstance(arguments, Mapping) and "action_name" in arguments else None
        if not isinstance(known, Mapping):
            return cls()
        host = known.get("host")
        origin = f"{known.get('scheme') or 'http'}://{host}" if host else ""
        return cls(str(known.get("language") or ""), origin, str(known.get("script_name") or ""))


class _Mail:
    """The mail about a task, or about all tasks of its group."""

    def __init__(self, notice: TaskNotice) -> None:
        self._user: Any = notice.user
        self._record = notice.record

    def send(self) -> bool:
        """Send it, if the person wants it and has an address. Return whether it was sent."""
        user = self._user
        address = getattr(user, user.get_email_field_name(), "")
        if not (address and user.is_active and NoticePreference.objects.wants_mail(user)):
            return False
        click = _Click.of(self._record)
        with translation.override(click.language or settings.LANGUAGE_CODE), self._prefix(click):
            context = self._context(click)
            subject = " ".join(render_to_string(SUBJECT, context).split())
            body = render_to_string(BODY, context)
        send(EmailMessage(subject, body, to=[address], headers={"Auto-Submitted": "auto-generated"}))
        return True

    @contextmanager
    def _prefix(self, click: _Click) -> Iterator[None]:
        before = get_script_prefix()
        # A base URL of the settings has it already.
        set_script_prefix("/" if app_settings.DASHBOARD_BASE_URL else f"{click.script_name}/")
        try:
            yield
        finally:
            set_script_prefix(before)

    def _context(self, click: _Click) -> dict[str, Any]:
        record = self._record
        tasks = TaskRecord.objects.filter(group=record.group, user=record.user_id) if record.group else [record]
        tasks = list(tasks[:1_000] if record.group else tasks)
        failed = TaskObject.objects.filter(record=record.pk, outcome=Outcome.FAILED).order_by("pk")
        return {
            "user": self._user,
            "record": record,
            "tasks": tasks,
            "ended_at": max((task.finished_at for task in tasks if task.finished_at), default=None),
            "failed_tasks": [task for task in tasks if task.status == TaskStatus.FAILED],
            "failed_object_count": sum(task.failed_count for task in tasks),
            "failed_objects": list(failed[:NAMED_OBJECTS]),
            "base_url": _base_url(click),
            "site_name": record.task_kwargs.get("site_name", "") if click.origin else "",
        }


def _base_url(click: _Click) -> str:
    """Return where the site is, as far as that is known; "" otherwise."""
    if chosen := app_settings.DASHBOARD_BASE_URL:
        return chosen.rstrip("/")
    if click.origin:
        return click.origin
    if apps.is_installed("django.contrib.sites") and getattr(settings, "SITE_ID", None):
        sites: Any = apps.get_model(*SITE)
        domain = sites.objects.get_current().domain
        return f"{'https' if settings.SECURE_SSL_REDIRECT else 'http'}://{domain}"
    return ""
