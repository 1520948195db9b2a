"""The code in docs/monitoring.md does what the page says."""

from __future__ import annotations

import logging
import re
import sys
from types import ModuleType

import pytest
from django.conf import settings as django_settings
from django.core import mail
from django.core.checks import run_checks
from django.test import Client
from prometheus_client import CollectorRegistry

import tests
from powercrud_dashboard.engine import statistics, tracing
from powercrud_dashboard.engine.alert_messages import send_due
from powercrud_dashboard.engine.alert_rules import Rules
from powercrud_dashboard.models import Alert
from tests.alerting import ended, evaluate, is_quiet, worker
from tests.services import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

PAGE = (django_settings.ROOT / "docs" / "monitoring.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
TOKEN, LIMITS, CHANNELS, CALLABLE, VERIFIED, METRICS, REGISTERED, TRACED = BLOCKS


def run(block: str) -> dict:
    found: dict = {}
    exec(block, found)
    return found


@pytest.fixture
def use(settings, monkeypatch):
    """Take the settings of a block, with the callable of the page in its place."""
    module = ModuleType("shop.alerts")
    exec(CALLABLE, module.__dict__)
    monkeypatch.setitem(sys.modules, "shop", ModuleType("shop"))
    monkeypatch.setitem(sys.modules, "shop.alerts", module)

    def use(block: str, **webhook: str) -> None:
        given = run(block)["POWERCRUD_SETTINGS"]
        if webhook:
            given["DASHBOARD_ALERTS"]["webhook"].update(webhook)
        settings.POWERCRUD_SETTINGS = given
        settings.ADMINS = [("Ann", "ann@example.com")]
        assert [message for message in run_checks() if "DASHBOARD_ALERTS" in message.msg] == []

    return use


def test_the_token_opens_the_health_address(use):
    use(TOKEN)
    sent = re.search(r'-H "(Authorization): ([^"]+)"', PAGE)
    headers = {sent[1]: sent[2]}
    answer = Client().get("/admin/powercrud_dashboard/taskrecord/health/", headers=headers)
    wait_until(is_quiet, "the alerts are evaluated")
    assert answer.status_code == 503
    assert answer.content.decode() == re.search(r'^\{"status": .*\}$', PAGE, re.M)[0]


def test_the_limits_are_those_of_the_page(use):
    use(LIMITS)
    rules = Rules()
    assert rules.limits("failure_rate", "functions", "shop.tasks.experiment") is None
    assert rules.limits("failure_rate", "queues", "invoices")["share"] == 0.05
    assert rules.limits("oldest_wait", "queues", "nightly") == {"seconds": 14_400}
    assert rules.limits("queue_depth") is None
    assert rules.limits("missed_schedule", "schedules", "Newsletter") == {"seconds": 3_600}


def test_each_channel_is_told_and_the_receiver_verifies_it(use, receiver, caplog):
    use(CHANNELS, url=receiver.url)
    evaluate()
    with caplog.at_level(logging.CRITICAL, "oncall"):
        assert send_due() == 3
    assert [(record.name, record.message) for record in caplog.records if record.name == "oncall"] == [
        ("oncall", "No worker runs")
    ]
    assert mail.outbox[0].to == ["ann@example.com"]
    verified = run(VERIFIED)["verified"]
    headers, body = receiver.received[0]
    secret = "another long random text"
    (alert,) = verified(body, headers, secret)
    assert (alert["event"], alert["kind"]) == ("opened", "no_workers")
    documented = {
        name for row in re.findall(r"^\| (`[a-z_`, ]+`) \|", PAGE, re.M) for name in re.findall(r"`(\w+)`", row)
    }
    assert set(alert) <= documented
    with pytest.raises(ValueError, match="wrong"):
        verified(body + b" ", headers, secret)
    with pytest.raises(ValueError, match="wrong"):
        verified(body, headers, "guessed")
    with pytest.raises(ValueError, match="old"):
        verified(body, headers, secret, max_age=-1)
    worker(1)
    evaluate()
    send_due()
    assert receiver.alerts[-1]["event"] == "resolved"
    assert not Alert.objects.all().open().exists()


def test_the_metrics_are_those_of_the_page(use, settings, monkeypatch):
    use(TOKEN)
    urls = ModuleType("urls_of_the_page")
    exec(METRICS, urls.__dict__)
    monkeypatch.setitem(sys.modules, urls.__name__, urls)
    settings.ROOT_URLCONF = urls.__name__
    ended(1, "success")
    statistics.count_ended()
    answer = Client().get("/metrics/", headers={"Authorization": "Bearer a long random text"})
    found = set(re.findall(r"^# TYPE (pcrud_\w+) ", answer.content.decode(), re.M))
    assert found == set(re.findall(r"^\| `(pcrud_\w+)`", PAGE, re.M))


def test_a_registry_of_the_project_has_them(monkeypatch):
    registry = CollectorRegistry()
    monkeypatch.setattr("prometheus_client.REGISTRY", registry)
    run(REGISTERED)
    assert registry.get_sample_value("pcrud_alerts") == 0


def test_an_app_traces_when_it_is_ready():
    app = run(TRACED)["ShopConfig"]("shop", tests)
    try:
        app.ready()
        with tracing.launching("shop.tasks.add") as carrier:
            # Without an SDK there is no trace, and no error.
            assert isinstance(carrier, dict)
    finally:
        tracing.use(None)
