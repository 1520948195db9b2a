"""Mistakes in ``DASHBOARD_ALERTS`` are reported, and what is wrong has its default."""

from __future__ import annotations

import pytest
from django.core.checks import run_checks

from powercrud_dashboard.engine.alert_rules import Rules

# Checks of models ask the database what it can do.
pytestmark = pytest.mark.django_db

ID = "powercrud_dashboard.E014"
HOOK = {"url": "https://example.com/", "secret": "s"}


def found() -> list[tuple[str, str]]:
    return [(message.msg, message.hint) for message in run_checks() if message.id == ID]


@pytest.fixture
def given(settings):
    def give(alerts: object) -> Rules:
        settings.POWERCRUD_SETTINGS = {"DASHBOARD_ALERTS": alerts}
        return Rules()

    return give


@pytest.mark.parametrize(
    ("alerts", "key", "words"),
    [
        ({"no_worker": True}, "no_worker", "Did you mean no_workers?"),
        ({"zzz": True}, "zzz", "one of failure_rate"),
        ({"oldest_wait": 300}, "oldest_wait", "a dict with some of seconds, queues"),
        ({"oldest_wait": {"second": 5}}, "oldest_wait.second", "Did you mean seconds?"),
        ({"oldest_wait": {"seconds": 0}}, "oldest_wait.seconds", "a whole number, 1 to"),
        ({"oldest_wait": {"seconds": True}}, "oldest_wait.seconds", "a whole number, 1 to"),
        ({"oldest_wait": {"seconds": 1.5}}, "oldest_wait.seconds", "a whole number, 1 to"),
        ({"oldest_wait": {"queues": ["a"]}}, "oldest_wait.queues", "a dict of limits by name"),
        ({"oldest_wait": {"queues": {"a": 5}}}, "oldest_wait.queues.a", "a dict with some of seconds"),
        ({"oldest_wait": {"functions": {}}}, "oldest_wait.functions", "one of seconds, queues"),
        ({"failure_rate": {"share": 50}}, "failure_rate.share", "up to 1"),
        ({"failure_rate": {"functions": {"a.b": {"minutes": 9_999}}}}, "failure_rate.functions.a.b.minutes", "1,440"),
        ({"mail": "ops@example.com"}, "mail", "a list of addresses"),
        ({"mail": [5]}, "mail", "a list of addresses"),
        ({"mail": True}, "mail", "somebody in ADMINS"),
        ({"webhook": "https://example.com/"}, "webhook", "a dict with url and secret"),
        ({"webhook": {**HOOK, "url": "file:///etc/passwd"}}, "webhook.url", "http:// or https://"),
        ({"webhook": {**HOOK, "url": "https://"}}, "webhook.url", "http:// or https://"),
        ({"webhook": {**HOOK, "url": "http://[bad/"}}, "webhook.url", "http:// or https://"),
        ({"webhook": {**HOOK, "url": "http://host:99999/"}}, "webhook.url", "http:// or https://"),
        ({"webhook": {**HOOK, "url": "https://h\u00f6st/"}}, "webhook.url", "ASCII"),
        ({"webhook": {**HOOK, "url": "https://example.com/a b"}}, "webhook.url", "http:// or https://"),
        ({"webhook": {**HOOK, "url": "https://me:word@example.com/"}}, "webhook.url", "without a user or password"),
        ({"webhook": {"url": "https://example.com/"}}, "webhook.secret", "a text with which"),
        ({"webhook": {**HOOK, "timeout": 90}}, "webhook.timeout", "1 to 60"),
        ({"webhook": {**HOOK, "header": "x"}}, "webhook.header", "one of url, secret, timeout"),
        ({"call": 5}, "call", "the dotted path of a callable"),
        ({"call": "no.such.function"}, "call", "can't be imported"),
        ({"call": ["tests.alerting.told"]}, "call", "it is not callable"),
    ],
)
def test_a_mistake_is_said(given, alerts, key, words):
    given(alerts)
    ((text, hint),) = found()
    assert repr(key) in text
    assert words in hint


def test_what_is_right_is_not_reported(given, settings):
    settings.ADMINS = [("Ann", "ann@example.com")]
    given(
        {
            "failure_rate": {"share": 1, "functions": {"a.b": None, "a.c": {"at_least": 3}}},
            "oldest_wait": False,
            "queue_depth": None,
            "no_workers": True,
            "mail": True,
            "webhook": HOOK,
            "call": ["tests.alerting.tell"],
        }
    )
    assert found() == []


def test_a_secret_is_not_shown(given):
    given({"webhook": {"url": "https://me:hunter2@example.com/", "secret": 12_345}})
    assert len(found()) == 2
    assert "12345" not in str(found())
    assert "hunter2" not in str(found())


@pytest.mark.parametrize(
    "alerts",
    [
        {"webhook": {"url": "https://example.com/", "secrets": "hunter2"}},
        {"web_hook": {"url": "https://example.com/", "secret": "hunter2"}},
        {"webhook": "https://me:hunter2@example.com/"},
    ],
)
def test_nor_is_one_with_a_misspelt_key(given, alerts):
    given(alerts)
    assert found()
    assert "hunter2" not in str(found())


@pytest.mark.parametrize("name", ["DASHBOARD_ALERTS", "DASHBOARD_HEALTH_TOKEN"])
def test_nor_is_one_of_another_type(settings, name):
    settings.POWERCRUD_SETTINGS = {name: [{"secret": "hunter2"}]}
    (message,) = (message for message in run_checks() if name in message.msg)
    assert "hunter2" not in f"{message.msg} {message.hint}"


def test_another_type_than_a_dict_is_reported_as_for_all_settings(given):
    rules = given(["no_workers"])
    assert {message.id for message in run_checks() if "DASHBOARD_ALERTS" in message.msg} == {"powercrud_dashboard.E002"}
    assert rules.limits("oldest_wait") == {"seconds": 900}


def test_a_limit_that_is_none_has_its_default(given):
    rules = given({"failure_rate": {"share": 7, "minutes": 5, "zzz": 1}, "oldest_wait": "soon"})
    assert rules.limits("failure_rate") == {"share": 0.5, "minutes": 5, "at_least": 10}
    assert rules.limits("oldest_wait") == {"seconds": 900}


def test_what_has_limits_of_its_own_takes_the_others_from_its_kind(given):
    rules = given({"failure_rate": {"minutes": 5, "functions": {"a.b": {"share": 0.1}, "a.c": None}}})
    assert rules.limits("failure_rate", "functions", "a.b") == {"share": 0.1, "minutes": 5, "at_least": 10}
    assert rules.limits("failure_rate", "functions", "a.c") is None
    assert rules.limits("failure_rate", "functions", "a.d") == {"share": 0.5, "minutes": 5, "at_least": 10}


@pytest.mark.parametrize("url", ["ftp://example.com/", "http://[bad/", "https://me:word@example.com/"])
def test_a_webhook_with_a_mistake_is_none(given, url):
    rules = given({"webhook": {"url": url, "secret": "s"}, "call": "tests.alerting.tell"})
    assert (rules.webhook, rules.channels) == (None, ["tests.alerting.tell"])
