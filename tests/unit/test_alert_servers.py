"""Servers and callables that fail in the worst ways hold up neither other channels nor the workers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta

import pytest
from django.utils import timezone

from powercrud_dashboard.engine import mails
from powercrud_dashboard.engine.alert_messages import send_due
from powercrud_dashboard.engine.cleanup import Cleanup
from powercrud_dashboard.models import Alert, AlertEvent, AlertMessage
from powercrud_dashboard.models.alerts import MAX_TRIES
from tests import alerting
from tests.alerting import is_quiet, worker
from tests.services import wait_until
from tests.unit.test_mails import send_by_silent_server, timeouts

pytestmark = pytest.mark.django_db(transaction=True)

TELL = "tests.alerting.tell"
HERE = "tests.unit.test_alert_servers"

#: What ``tell_once_it_is_there`` was told, and whether it is there.
heard: list[str] = []
is_there = threading.Event()


def tell_once_it_is_there(alert: dict) -> None:
    if not is_there.is_set():
        raise ConnectionError("away")
    heard.append(alert["event"])


def fail_slowly(alert: dict) -> None:
    threading.Event().wait(1.1)
    raise ConnectionError("away")


def leave(alert: dict) -> None:
    raise SystemExit(1)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    for calls in (heard, alerting.told):
        calls.clear()
    is_there.clear()
    yield
    wait_until(is_quiet, "nothing is sent any more")


class Dripping:
    """A server that answers one byte after the other, and never ends."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.settimeout(0.1)
        self._is_closed = threading.Event()
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}/"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._is_closed.is_set():
            # Nobody has come yet, or has gone.
            with suppress(OSError):
                connected, _address = self._listening.accept()
                with connected:
                    connected.recv(65_536)
                    connected.sendall(b"HTTP/1.1 200 OK\r\nX-A: ")
                    while not self._is_closed.wait(0.1):
                        connected.sendall(b"a")

    def close(self) -> None:
        self._is_closed.set()
        self._thread.join()
        self._listening.close()


@pytest.fixture
def dripping() -> Iterator[Dripping]:
    server = Dripping()
    yield server
    server.close()


@pytest.fixture
def told_to(settings):
    def use(**channels: object) -> None:
        settings.POWERCRUD_SETTINGS = {"DASHBOARD_ALERTS": channels}

    return use


def add(*channels: str, event: str = AlertEvent.OPENED, alert: Alert | None = None) -> Alert:
    found = alert or Alert.objects.create(kind="no_workers", subject=str(Alert.objects.count()))
    AlertMessage.objects.add(found.pk, event, channels)
    return found


def make_due() -> None:
    AlertMessage.objects.exclude(due_at=None).update(due_at=timezone.now() - timedelta(seconds=1))


@pytest.mark.parametrize("own", [None, 3])
def test_a_mail_server_may_not_be_silent_for_ever(told_to, settings, own):
    send_by_silent_server(settings, own)
    told_to(mail=["ops@example.com"])
    add("mail")
    assert send_due() == 1
    assert timeouts == [own or mails.SERVER_TIMEOUT]


def test_a_webhook_has_its_time_for_the_whole_exchange(told_to, dripping):
    told_to(webhook={"url": dripping.url, "secret": "s", "timeout": 1}, call=TELL)
    add("webhook", TELL)
    assert send_due() == 1
    message = AlertMessage.objects.get()
    assert (message.channel, message.tries, message.error) == (
        "webhook",
        1,
        "TimeoutError: Not finished within 1 seconds",
    )
    # As long as it goes on, this process does not begin another one.
    make_due()
    add(TELL)
    assert send_due() == 1
    assert AlertMessage.objects.get().tries == 1
    dripping.close()
    wait_until(is_quiet, "the exchange has ended")
    assert send_due() == 0
    assert AlertMessage.objects.get().tries == 2


def test_a_channel_that_fails_slowly_is_tried_once_in_a_pass(told_to):
    told_to(call=[f"{HERE}.fail_slowly", TELL])
    for _number in range(3):
        add(f"{HERE}.fail_slowly", TELL)
    assert send_due() == 3
    assert sorted(AlertMessage.objects.values_list("tries", flat=True)) == [0, 0, 1]


def test_a_callable_may_raise_anything(told_to):
    told_to(call=[f"{HERE}.leave", TELL])
    add(f"{HERE}.leave", TELL)
    assert send_due() == 1
    assert AlertMessage.objects.get().error == "SystemExit: 1"


def test_a_message_whose_sender_died_at_the_last_try_is_given_up(told_to):
    told_to(call=TELL)
    add(TELL)
    for tries in range(MAX_TRIES):
        AlertMessage.objects.all().claim(tries)
        assert send_due() == 0
        make_due()
    assert send_due() == 0
    message = AlertMessage.objects.get()
    assert (message.tries, message.due_at) == (MAX_TRIES, None)
    assert "has died" in message.error
    assert alerting.told == []


def test_nobody_hears_of_an_end_before_the_beginning(told_to):
    path = f"{HERE}.tell_once_it_is_there"
    told_to(call=[path, TELL])
    alert = add(path, TELL)
    send_due()
    add(path, TELL, event=AlertEvent.RESOLVED, alert=alert)
    is_there.set()
    assert send_due() == 1
    assert ([told["event"] for told in alerting.told], heard) == (["opened", "resolved"], [])
    make_due()
    assert send_due() == 2
    assert heard == ["opened", "resolved"]


def test_an_end_is_told_also_if_the_beginning_was_given_up(told_to):
    told_to(call=TELL)
    alert = add(TELL)
    AlertMessage.objects.update(due_at=None)
    add(TELL, event=AlertEvent.RESOLVED, alert=alert)
    assert send_due() == 1
    assert [told["event"] for told in alerting.told] == ["resolved"]


def test_the_cleanup_sends_messages_only_if_no_worker_does(told_to):
    told_to(call=TELL, no_workers=None)
    add(TELL)
    living = worker(1)
    Cleanup().run()
    assert alerting.told == []
    living.delete()
    Cleanup().run()
    assert [told["event"] for told in alerting.told].count("opened") == 1
