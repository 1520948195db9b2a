"""Alerts are told by mail, to callables and to a webhook: each once, or some times if it does not work."""

from __future__ import annotations

import json
import re
from datetime import timedelta

import pytest
from django.core import mail
from django.utils import timezone

from powercrud_dashboard.engine.alert_messages import SIGNATURE_HEADER, TIMESTAMP_HEADER, send_due, signature
from powercrud_dashboard.engine.cleanup import Cleanup
from powercrud_dashboard.models import Alert, AlertMessage
from powercrud_dashboard.models.alerts import MAX_TRIES
from tests import alerting
from tests.alerting import evaluate, worker
from tests.unit.test_mails import send_by
from tests.workers import meanwhile

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def nothing_told():
    alerting.told.clear()


@pytest.fixture
def told_to(settings):
    """Open an alert of which these are told."""

    def open_one(**channels: object) -> None:
        settings.POWERCRUD_SETTINGS = {"DASHBOARD_BASE_URL": "https://example.com/", "DASHBOARD_ALERTS": channels}
        evaluate()

    return open_one


def make_due() -> None:
    AlertMessage.objects.exclude(due_at=None).update(due_at=timezone.now() - timedelta(seconds=1))


def test_without_a_channel_nobody_is_told(told_to):
    told_to()
    assert Alert.objects.exists()
    assert send_due() == 0
    assert mail.outbox == []


def test_admins_get_one_mail_when_it_begins_and_one_when_it_ends(told_to, settings):
    settings.ADMINS = [("Ann", "ann@example.com")]
    told_to(mail=True)
    assert (send_due(), send_due()) == (1, 0)
    (sent,) = mail.outbox
    assert (sent.to, sent.subject) == (["ann@example.com"], "[Django] No worker runs")
    assert "https://example.com/admin/powercrud_dashboard/taskrecord/alerts/" in sent.body
    assert sent.extra_headers["Auto-Submitted"] == "auto-generated"
    worker(1)
    evaluate()
    assert send_due() == 1
    assert mail.outbox[1].subject == "[Django] Resolved: No worker runs"
    assert re.findall(r"^(Opened|Ended): .+ [A-Z]{3}$", mail.outbox[1].body, re.M) == ["Opened", "Ended"]


def test_named_people_get_the_mails(told_to):
    told_to(mail=["ops@example.com", "boss@example.com"])
    send_due()
    assert mail.outbox[0].to == ["ops@example.com", "boss@example.com"]


def test_admins_may_be_addresses_alone(told_to, settings):
    """As Django has it since 6.0."""
    settings.ADMINS = ["ann@example.com"]
    told_to(mail=True)
    send_due()
    assert mail.outbox[0].to == ["ann@example.com"]


def test_several_alerts_are_one_mail(told_to, manager):
    worker(1)
    for pid in (2, 3):
        worker(pid, silent=300)
    told_to(mail=["ops@example.com"])
    assert send_due() == 2
    (sent,) = mail.outbox
    assert sent.subject.startswith("[Django] 2 alerts: The worker process")
    assert "process 2 on web1" in sent.body
    assert "process 3 on web1" in sent.body


def test_a_callable_is_told(told_to):
    told_to(call="tests.alerting.tell")
    assert send_due() == 1
    (alert,) = alerting.told
    assert (alert["event"], alert["kind"], alert["text"]) == ("opened", "no_workers", "No worker runs")
    assert alert["id"] == Alert.objects.get().pk


def test_an_async_callable_is_awaited_and_a_generator_is_no_success(told_to):
    told_to(call=["tests.alerting.tell_later", "tests.alerting.tell_step_by_step"])
    assert send_due() == 1
    assert [alert["kind"] for alert in alerting.told] == ["no_workers"]
    left = AlertMessage.objects.get()
    assert left.channel == "tests.alerting.tell_step_by_step"
    assert "generator function" in left.error


def test_a_webhook_gets_signed_json(told_to, receiver):
    told_to(webhook={"url": receiver.url, "secret": "s3cret"})
    assert send_due() == 1
    headers, body = receiver.received[0]
    assert headers[SIGNATURE_HEADER] == signature("s3cret", headers[TIMESTAMP_HEADER], body)
    assert headers[SIGNATURE_HEADER] != signature("another", headers[TIMESTAMP_HEADER], body)
    content = json.loads(body)
    assert content["version"] == 1
    assert [(alert["event"], alert["kind"]) for alert in content["alerts"]] == [("opened", "no_workers")]


@pytest.mark.parametrize("status", [500, 404, 302])
def test_a_webhook_that_does_not_take_it_gets_it_again_a_few_times(told_to, receiver, status):
    receiver.status = status
    told_to(webhook={"url": receiver.url, "secret": "s3cret"})
    for tries in range(1, MAX_TRIES + 3):
        assert send_due() == 0
        # Not before its time.
        assert send_due() == 0
        assert len(receiver.received) == min(tries, MAX_TRIES)
        make_due()
    message = AlertMessage.objects.get()
    assert (message.due_at, message.tries) == (None, MAX_TRIES)
    assert str(status) in message.error


def test_once_it_takes_it_nothing_is_left(told_to, receiver):
    receiver.status = 500
    told_to(webhook={"url": receiver.url, "secret": "s3cret"})
    send_due()
    receiver.status = 200
    make_due()
    assert send_due() == 1
    assert not AlertMessage.objects.exists()


def test_one_channel_that_is_away_holds_up_no_other(told_to, settings):
    send_by(settings, "tests.unit.test_mails.BrokenBackend")
    told_to(mail=["ops@example.com"], call=["tests.alerting.refuse", "tests.alerting.tell"])
    assert send_due() == 1
    assert len(alerting.told) == 1
    assert {message.channel for message in AlertMessage.objects.all()} == {"mail", "tests.alerting.refuse"}


def test_what_a_process_has_left_that_died_while_it_sent_is_sent_again(told_to):
    told_to(call="tests.alerting.tell")
    # It had claimed the message.
    AlertMessage.objects.all().claim(0)
    assert send_due() == 0
    make_due()
    assert send_due() == 1


def test_of_two_processes_one_sends(told_to):
    told_to(call="tests.alerting.tell")
    with meanwhile(send_due, before='UPDATE "powercrud_dashboard_alertmessage"'):
        assert send_due() == 0
    assert len(alerting.told) == 1


def test_a_channel_that_is_not_in_the_settings_any_more_is_forgotten(told_to, settings):
    told_to(call="tests.alerting.tell")
    settings.POWERCRUD_SETTINGS = {}
    assert send_due() == 0
    assert not AlertMessage.objects.exists()
    assert alerting.told == []


def test_without_any_channel_the_cleanup_forgets_what_was_still_to_be_told(told_to, settings):
    told_to(call="tests.alerting.refuse")
    assert send_due() == 0
    # The threads of a worker send nothing where nobody is to be told.
    worker(1)
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_ALERTS": {}}
    Cleanup().run()
    assert not AlertMessage.objects.exists()


def test_the_signature_stays_as_receivers_know_it():
    recorded = "b8569b78799ff9e3cbff0fc2d63a33a2b57f3282abd07c37ae5e8e7d79a5f163"
    assert signature("secret", "1700000000", b"{}") == recorded
