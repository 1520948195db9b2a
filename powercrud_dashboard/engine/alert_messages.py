"""Tell of alerts by mail, to callables of the project, and to a webhook, apart from their evaluation.

What is still to be sent is in rows that are written with the alert. So no message is lost with a process that dies, and
none is sent more than a few times.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import time
import urllib.request
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import Any

from django.conf import settings
from django.core.mail import EmailMessage
from django.core.serializers.json import DjangoJSONEncoder
from django.template.loader import render_to_string
from django.utils import timezone, translation
from django.utils.formats import date_format
from django.utils.module_loading import import_string
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from powercrud_dashboard.conf import app_settings
from powercrud_dashboard.engine import bounded, calls, mails
from powercrud_dashboard.engine.alert_rules import Rules, Webhook
from powercrud_dashboard.models import Alert, AlertKind, AlertMessage
from powercrud_dashboard.text import error_summary

logger = logging.getLogger(__name__)

SUBJECT = "powercrud_dashboard/mail/alerts_subject.txt"
BODY = "powercrud_dashboard/mail/alerts_body.txt"
#: Alerts that one message tells of, and messages that one pass sends.
ALERTS_AT_ONCE = 50
MESSAGES_AT_ONCE = 20
#: Seconds that a mail, or a callable, may take; a webhook has a timeout of its own.
SENDING_TAKES = 30
#: Seconds after which a failure shows that others of its channel would cost as much.
SLOW = 1
#: The version of a webhook's body. It is raised by a change that a receiver must not ignore.
VERSION = 1
TIMESTAMP_HEADER = "X-Powercrud-Timestamp"
SIGNATURE_HEADER = "X-Powercrud-Signature"


def send_due() -> int:
    """Send the messages that are due. Return of how many alerts was told; failed ones are sent again later."""
    AlertMessage.objects.all().give_up_abandoned()
    sent = 0
    rules = Rules()
    # Until a call there has finished, this process sends nothing to a channel.
    skipped = {channel for channel in rules.channels if _name(channel) in bounded.late()}
    for _number in range(MESSAGES_AT_ONCE):
        due = AlertMessage.objects.all().due().exclude(channel__in=skipped).order_by("pk")
        first = due.first()
        if first is None:
            break
        # A callable is called for each alert: the others of a batch must not be told again if one call fails.
        at_most = 1 if first.channel in rules.callables else ALERTS_AT_ONCE
        alike = due.filter(channel=first.channel, tries=first.tries)
        pks = list(alike.values_list("pk", flat=True)[:at_most])
        claim = AlertMessage.objects.filter(pk__in=pks).claim(first.tries)
        claimed = AlertMessage.objects.all().claimed(claim)
        messages = list(claimed.select_related("alert").order_by("pk"))
        if not messages or first.channel not in rules.channels:
            claimed.delete()
            continue
        began = time.monotonic()
        may_take = rules.webhook.timeout if first.channel == "webhook" and rules.webhook else SENDING_TAKES
        error = bounded.run_within(may_take, _name(first.channel), partial(_send, rules, first.channel, messages))
        if error is None:
            claimed.delete()
            sent += len(messages)
            continue
        logger.error("Alerts can't be told to %s now", first.channel, exc_info=error)
        claimed.note_failure(error_summary(error))
        if time.monotonic() - began > SLOW:
            skipped.add(first.channel)
    return sent


def _name(channel: str) -> str:
    return f"alert-{channel}"


def _send(rules: Rules, channel: str, messages: Sequence[AlertMessage]) -> None:
    with translation.override(settings.LANGUAGE_CODE):
        facts = [_facts(message) for message in messages]
        if channel == "mail":
            _send_mail(rules.recipients, messages)
        elif channel == "webhook" and rules.webhook is not None:
            _post(rules.webhook, {"version": VERSION, "alerts": facts})
        else:
            tell = import_string(channel)
            for alert in facts:
                calls.call(tell, alert)


def _facts(message: AlertMessage) -> dict[str, Any]:
    """Return what a webhook and callables are told of an alert."""
    alert = message.alert
    return {
        "id": alert.pk,
        "event": message.event,
        "kind": alert.kind,
        "subject": alert.subject,
        "text": text_of(alert),
        "opened_at": alert.opened_at,
        "resolved_at": alert.resolved_at,
        "details": alert.details,
    }


def _send_mail(recipients: list[str], messages: Sequence[AlertMessage]) -> None:
    base_url = app_settings.DASHBOARD_BASE_URL
    context = {"messages": messages, "base_url": base_url.rstrip("/") if base_url else ""}
    subject = " ".join(render_to_string(SUBJECT, context).split())
    message = EmailMessage(
        f"{settings.EMAIL_SUBJECT_PREFIX}{subject}",
        render_to_string(BODY, context),
        settings.SERVER_EMAIL,
        recipients,
        headers={"Auto-Submitted": "auto-generated"},
    )
    mails.send(message)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: urllib would follow it with a GET, without the body."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _post(webhook: Webhook, content: dict[str, Any]) -> None:
    body = json.dumps(content, cls=DjangoJSONEncoder).encode()
    timestamp = str(int(time.time()))
    headers = {
        "Content-Type": "application/json",
        TIMESTAMP_HEADER: timestamp,
        SIGNATURE_HEADER: signature(webhook.secret, timestamp, body),
    }
    request = urllib.request.Request(webhook.url, body, headers, method="POST")  # noqa: S310 - http or https: see Rules
    with urllib.request.build_opener(_NoRedirect).open(request, timeout=webhook.timeout):
        pass


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """Return the signature of a webhook's body: HMAC-SHA256 over the timestamp, a full stop and the body."""
    return hmac.new(secret.encode(), f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()


# Texts


def text_of(alert: Alert) -> str:
    """Return what is wrong in a sentence, in the active language."""
    facts = alert.details
    if alert.kind == AlertKind.CHECK:
        return str(facts["text"])
    named = {"name": facts.get("queue") or facts.get("function") or alert.subject}
    if alert.kind == AlertKind.FAILURE_RATE:
        texts = {
            "failed": facts.get("failed"),
            "ended": facts.get("ended"),
            "time": _time(60 * facts.get("minutes", 0)),
            **named,
        }
        if "queue" in facts:
            return _("%(failed)s of %(ended)s tasks of the queue %(name)s failed in the last %(time)s") % texts
        return _("%(failed)s of %(ended)s tasks of %(name)s failed in the last %(time)s") % texts
    if alert.kind == AlertKind.OLDEST_WAIT:
        text = _("The oldest task in the queue %(name)s had waited for %(time)s")
        return text % {"time": _time(facts.get("seconds", 0)), **named}
    if alert.kind == AlertKind.QUEUE_DEPTH:
        number = facts.get("tasks", 0)
        text = ngettext(
            "%(number)s task waits in the queue %(name)s", "%(number)s tasks wait in the queue %(name)s", number
        )
        return text % {"number": number, **named}
    if alert.kind == AlertKind.WORKERS_LOST:
        text = _("The worker process %(pid)s on %(host)s, of the queue %(name)s, is lost")
        return text % {"pid": facts.get("pid"), "host": facts.get("host"), **named}
    if alert.kind == AlertKind.NO_WORKERS:
        return _("No worker runs for the queue %(name)s") % named if alert.subject else _("No worker runs")
    if alert.kind != AlertKind.MISSED_SCHEDULE:
        # A newer release has opened it.
        return f"{alert.kind} {alert.subject}".strip()
    due = datetime.fromisoformat(facts["due_at"])
    shown = timezone.localtime(due) if timezone.is_aware(due) else due
    text = _("The schedule “%(name)s” has missed its run of %(time)s")
    return text % {"time": date_format(shown, "SHORT_DATETIME_FORMAT"), **named}


def _time(seconds: int) -> str:
    if seconds < 2 * 60:
        return ngettext("%(number)d second", "%(number)d seconds", seconds) % {"number": seconds}
    if seconds < 2 * 60 * 60:
        return ngettext("%(number)d minute", "%(number)d minutes", seconds // 60) % {"number": seconds // 60}
    return ngettext("%(number)d hour", "%(number)d hours", seconds // 3_600) % {"number": seconds // 3_600}
