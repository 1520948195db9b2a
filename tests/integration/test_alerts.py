"""Real workers are killed and come back: the health address and the alerts say so."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
from django.core import mail
from django.test import Client
from django.utils import timezone

from powercrud_dashboard.models import Alert, AlertEvaluation
from tests.alerting import is_quiet
from tests.services import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.django_db(transaction=True)]


def health(*, evaluates: bool = False) -> int:
    """Ask the health address, as if half a minute had passed if it ``evaluates``. Return the status."""
    if evaluates:
        AlertEvaluation.objects.update(due_at=timezone.now())
    return Client().get("/tasks/health/", headers={"Authorization": "Bearer t0ken"}).status_code


def until(condition: Callable[[], bool], what: str) -> None:
    """Evaluate until the condition is true, and wait until nothing more is sent."""

    def evaluated() -> bool:
        health(evaluates=True)
        wait_until(is_quiet, "nothing more is sent")
        return condition()

    wait_until(evaluated, what)


def test_killed_workers_are_told_of_and_so_is_their_return(cluster_later, receiver, settings):
    settings.POWERCRUD_SETTINGS = {
        **settings.POWERCRUD_SETTINGS,
        "DASHBOARD_HEALTH_TOKEN": "t0ken",
        "DASHBOARD_ALERTS": {"webhook": {"url": receiver.url, "secret": "s3cret"}, "mail": ["ops@example.com"]},
    }

    def told() -> list[tuple[str, str]]:
        return [(alert["event"], alert["kind"]) for alert in receiver.alerts]

    first = cluster_later(PCRUD_TEST_WEBHOOK=receiver.url)
    wait_until(lambda: health() == 200, "a worker lives")
    until(lambda: not Alert.objects.all().open().exists(), "there is no alert")
    earlier = len(told())

    # One of two: the cluster starts another in its place.
    os.kill(first.worker_pids[0], signal.SIGKILL)
    until(lambda: {("opened", "workers_lost"), ("resolved", "workers_lost")} <= {*told()[earlier:]}, "its loss is told")
    wait_until(lambda: health() == 200, "the others go on")
    until(lambda: not Alert.objects.all().open().exists(), "that is over")

    # All at once, as a lost host.
    mail.outbox.clear()
    earlier = len(told())
    first.kill()
    wait_until(lambda: health() == 503, "no worker lives")
    until(lambda: told()[earlier:] == [("opened", "no_workers")], "that is told")
    # Once.
    until(lambda: told()[earlier:] == [("opened", "no_workers")], "that is all")
    assert [sent.subject for sent in mail.outbox] == ["[Django] No worker runs"]

    cluster_later(PCRUD_TEST_WEBHOOK=receiver.url)
    wait_until(lambda: health() == 200, "a worker is back")
    until(lambda: told()[earlier:][:2] == [("opened", "no_workers"), ("resolved", "no_workers")], "so is its return")
    assert not Alert.objects.all().open().exists()
