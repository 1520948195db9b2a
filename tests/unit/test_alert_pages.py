"""Alerts on the pages, and how a person takes note of one."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.contrib.admin.models import LogEntry
from django.utils import timezone

from powercrud_dashboard.models import Alert, AlertMessage
from tests.clicks import TASKS, said

pytestmark = pytest.mark.django_db

TEXT = "The oldest task in the queue reports had waited for 20 minutes"
PARTIAL = {"HX-Request": "true"}


@pytest.fixture
def alert() -> Alert:
    return Alert.objects.create(kind="oldest_wait", subject="reports", details={"seconds": 1_200})


def page(client, address: str = "alerts/", **options) -> str:
    answer = client.get(f"{TASKS}{address}", **options)
    assert answer.status_code == 200
    return answer.content.decode()


def acknowledge(client, alert: Alert, **data: str):
    return client.post(f"{TASKS}alerts/{alert.pk}/acknowledge/", data)


def test_the_page_has_open_and_past_alerts(boss, alert):
    assert "No alert has ended so far." in page(boss)
    Alert.objects.create(kind="no_workers", resolved_at=timezone.now() - timedelta(minutes=5))
    shown = page(boss)
    assert shown.index("Open alerts") < shown.rindex(TEXT) < shown.index("Past alerts") < shown.index("No worker runs")
    assert "There are no open alerts." not in shown


def test_the_page_refreshes_itself(boss, alert):
    part = page(boss, headers=PARTIAL)
    assert TEXT in part
    assert "<html" not in part


def test_it_shows_a_limited_number_of_past_ones(boss):
    Alert.objects.bulk_create(Alert(kind="no_workers", resolved_at=timezone.now()) for _number in range(101))
    assert "Only the last 100 are shown." in page(boss)


def test_it_shows_a_limited_number_of_open_ones(boss):
    Alert.objects.bulk_create(Alert(kind="no_workers", subject=f"q{number}") for number in range(200))
    assert "more</p>" not in page(boss)
    Alert.objects.bulk_create(Alert(kind="no_workers", subject=f"r{number}") for number in range(3))
    shown = page(boss)
    assert "and 3 more</p>" in shown
    assert shown.count("<li>") - shown.count("<li><a") >= 200


def test_it_says_what_could_not_be_told(boss, alert):
    message = AlertMessage.objects.create(alert=alert, event="opened", channel="webhook", error="HTTPError: 500")
    shown = page(boss)
    assert "Could not be told to webhook so far, and is tried again: HTTPError: 500" in shown
    AlertMessage.objects.filter(pk=message.pk).update(due_at=None)
    assert "Could not be told to webhook: HTTPError: 500" in page(boss)


@pytest.mark.parametrize("address", ["", "failures/", "insights/", "locks/", "cluster/"])
def test_the_strip_is_on_each_page(boss, alert, address):
    strip = page(boss, address).partition('id="pcrud-alerts"')[2].partition('id="pcrud-')[0]
    assert TEXT in strip
    assert f"{TASKS}alerts/{alert.pk}/acknowledge/" in strip


def test_the_strip_is_on_the_index_of_the_admin(boss, alert):
    shown = boss.get("/admin/").content.decode()
    assert TEXT in shown
    assert "hx-get" not in shown  # there is no htmx


def test_the_strip_of_pages_outside_of_the_admin_leads_to_those(boss, alert):
    shown = boss.get("/tasks/").content.decode()
    assert f"/tasks/alerts/{alert.pk}/acknowledge/" in shown
    assert 'hx-get="/tasks/alerts/strip/"' in shown


def test_the_strip_shows_the_newest_ones(boss):
    for number in range(4):
        opened = timezone.now() - timedelta(minutes=number)
        Alert.objects.create(kind="queue_depth", subject=f"q{number}", details={"tasks": 5}, opened_at=opened)
    strip = page(boss, "alerts/strip/", headers=PARTIAL)
    assert [f"in the queue q{number}" in strip for number in range(4)] == [True, True, True, False]
    assert "More open alerts" in strip


def test_that_no_worker_runs_is_first_as_the_others_follow_from_it(boss, alert):
    Alert.objects.create(kind="no_workers", opened_at=timezone.now() - timedelta(hours=1))
    for shown in (page(boss), page(boss, "alerts/strip/", headers=PARTIAL)):
        assert shown.index("No worker runs") < shown.index(TEXT)


@pytest.mark.parametrize(
    ("kind", "subject", "details", "place"),
    [
        ("failure_rate", "shop.fetch", {"failed": 3, "ended": 4, "minutes": 15}, "failures/?function=shop.fetch"),
        ("failure_rate", "queue:mails", {"queue": "mails"}, "?status=failed&amp;cluster=mails"),
        ("oldest_wait", "a b", {}, "cluster/queue/?queue=a+b"),
        ("queue_depth", "mails", {}, "cluster/queue/?queue=mails"),
        ("workers_lost", "host 7", {"queue": "mails"}, "cluster/"),
        ("no_workers", "", {}, "cluster/"),
        ("missed_schedule", "nightly", {"due_at": "2026-11-27T12:00:00+00:00"}, "schedules/"),
    ],
)
def test_an_alert_leads_to_what_it_is_about(boss, kind, subject, details, place):
    Alert.objects.create(kind=kind, subject=subject, details=details)
    link = f'<a href="{TASKS}{place}">'
    assert link in page(boss).partition("Open alerts")[2]
    assert link in page(boss, "alerts/strip/", headers=PARTIAL)


def test_one_of_a_check_of_the_project_leads_to_the_alerts(boss):
    Alert.objects.create(kind="check", subject="shop.check", details={"check": "shop.check", "text": "Disk full"})
    assert "<a" not in page(boss).partition('class="pcrud-alert-text"')[2].partition("Disk full")[0]
    assert f'<a href="{TASKS}alerts/">Disk full</a>' in page(boss, "alerts/strip/", headers=PARTIAL)


def test_the_strip_refreshes_itself_unless_that_is_off(boss, alert):
    assert 'hx-get="/admin/powercrud_dashboard/taskrecord/alerts/strip/"' in page(boss, "locks/")
    boss.cookies["pcrud_refresh"] = "0"
    assert "alerts/strip/" not in page(boss, "locks/")


def test_the_address_of_the_strip_is_no_page(boss):
    assert boss.get(f"{TASKS}alerts/strip/").url == f"{TASKS}alerts/"


def test_who_sees_only_their_own_tasks_sees_no_alert(client_of, make_user, alert):
    client = client_of(make_user("ann"))
    assert TEXT not in page(client, "")
    assert TEXT not in client.get("/admin/").content.decode()
    assert client.get(f"{TASKS}alerts/").status_code == 403


def test_an_acknowledged_alert_is_only_on_its_page(boss, superuser, alert):
    answer = acknowledge(boss, alert)
    assert answer.url == f"{TASKS}alerts/"
    assert said(answer) == [f"“{TEXT}” was acknowledged."]
    alert.refresh_from_db()
    assert (alert.acknowledged_by, alert.acknowledged_label) == (superuser, "boss")
    assert page(boss, "").count(TEXT) == 1  # the message
    assert TEXT not in page(boss, "")
    shown = page(boss)
    assert "Acknowledged by boss" in shown
    assert "acknowledge/" not in shown
    entry = LogEntry.objects.get()
    assert (entry.user, entry.change_message) == (superuser, "Acknowledged")


def test_it_is_acknowledged_once(boss, client_of, make_user, alert):
    acknowledge(client_of(make_user("ann", "view_taskrecord", "acknowledge_alert")), alert)
    assert said(acknowledge(boss, alert)) == ["The alert has ended, or somebody has acknowledged it already."]
    assert Alert.objects.get().acknowledged_label == "ann"


def test_one_that_has_ended_is_not_acknowledged(boss, alert):
    Alert.objects.update(resolved_at=timezone.now())
    acknowledge(boss, alert)
    assert Alert.objects.get().acknowledged_at is None


def test_who_acknowledges_comes_back_to_where_they_were(boss, alert):
    assert acknowledge(boss, alert, next=f"{TASKS}failures/").url == f"{TASKS}failures/"


def test_it_takes_the_permission(client_of, make_user, alert):
    client = client_of(make_user("eve", "view_taskrecord"))
    assert acknowledge(client, alert).status_code == 403
    assert "acknowledge/" not in page(client)
    assert "acknowledge/" not in page(client, "")


def test_an_alert_that_a_newer_release_has_opened_breaks_no_page(boss):
    Alert.objects.create(kind="of_a_newer_release", subject="something")
    for address in ("alerts/", "", "cluster/"):
        assert "something" in page(boss, address)
