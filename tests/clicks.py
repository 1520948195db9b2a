"""Clicks on the actions of a project's changelist, and what they say and leave."""

from __future__ import annotations

from django.contrib.messages import get_messages

from powercrud_dashboard.models import TaskRecord

CHANGELIST = "/admin/testapp/project/"
TASKS = "/admin/powercrud_dashboard/taskrecord/"


def choose(client, action: str, rows, address: str = CHANGELIST, *, headers=None, **more):
    data = {"action": action, "_selected_action": [row.pk for row in rows], **more}
    return client.post(address, data, follow=True, headers=headers)


def said(response) -> list[str]:
    """Return the messages of an answer: those that wait for the next page, or else those that this page shows."""
    shown = response.context["messages"] if response.context else ()
    return [str(message) for message in get_messages(response.wsgi_request)] or [str(message) for message in shown]


def last() -> TaskRecord:
    return TaskRecord.objects.latest("pk")
