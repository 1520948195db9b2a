"""The failure rate of functions of whose tasks a share is recorded."""

from __future__ import annotations

import pytest
from django.utils import timezone

from powercrud_dashboard.engine import statistics
from powercrud_dashboard.engine.alert_messages import text_of
from powercrud_dashboard.models import Alert
from powercrud_dashboard.q2 import queue
from tests.alerting import ended, evaluate, open_alerts

pytestmark = pytest.mark.django_db(transaction=True)

QUEUE = queue.current_cluster()


def count_completed(count: int, func: str = "app.work") -> None:
    """Count tasks of plain django-q2 that have completed, without records."""
    now = timezone.now()
    end = statistics.End(func, "", "success", now, 0, 0, "web1", "")
    statistics.count_ends([end] * count)


@pytest.mark.parametrize("minutes", [15, 120])
@pytest.mark.parametrize("scope", ["function", "queue"])
def test_of_sampled_functions_those_that_are_only_counted_have_ended_too(settings, scope, minutes):
    limits = {"minutes": minutes, "queues": {QUEUE: {}}} if scope == "queue" else {"minutes": minutes}
    settings.POWERCRUD_SETTINGS = {
        "DASHBOARD_ALERTS": {"failure_rate": limits, "no_workers": None},
        "DASHBOARD_TRACK_SAMPLE": {"app.*": 0},
    }
    ended(10, "failed")
    statistics.count_ended()
    count_completed(9 if scope == "function" else 0)
    count_completed(9 if scope == "queue" else 0, func="app.other")
    evaluate()
    assert ("failure_rate", "app.work") in open_alerts()
    texts = {text_of(alert) for alert in Alert.objects.all()}
    assert any(text.startswith("10 of 19 tasks of") for text in texts)
    count_completed(7, func="app.work" if scope == "function" else "app.other")
    evaluate()
    assert (("failure_rate", "app.work") in open_alerts()) == (scope == "queue")
    assert ("failure_rate", f"queue:{QUEUE}") not in open_alerts()
