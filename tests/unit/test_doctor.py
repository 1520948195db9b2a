from __future__ import annotations

import json
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.core.management import CommandError, call_command
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder
from django.utils import timezone
from django_q.conf import Conf
from django_q.models import Schedule

from powercrud_dashboard.engine import pauses
from powercrud_dashboard.models import ActiveTask, TaskRecord, WorkerProcess
from powercrud_dashboard.models.database import database_now
from tests.testapp import tasks

pytestmark = pytest.mark.django_db

DEFAULT = django_settings.Q_CLUSTER["name"]


def examine(*arguments: str) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    """Return the exit code, and the findings by their examination."""
    out, code = StringIO(), 0
    try:
        call_command("pcrud", "doctor", "--no-test", "--json", *arguments, stdout=out, stderr=StringIO())
    except CommandError as error:
        code = error.returncode
    document = json.loads(out.getvalue())
    assert document["ok"] == (code == 0)
    by_name: dict[str, list[dict[str, Any]]] = {}
    for finding in document["findings"]:
        by_name.setdefault(finding.pop("examination"), []).append(finding)
    return code, by_name


def problems_of(findings: dict[str, list[dict[str, Any]]]) -> set[str]:
    return {name for name, found in findings.items() for finding in found if finding["level"] == "problem"}


def problem(name: str) -> dict[str, Any]:
    """Examine, and return the only problem of this examination."""
    code, findings = examine()
    assert code == 1
    [found] = [finding for finding in findings[name] if finding["level"] == "problem"]
    return found


def add_worker(host: str = "one", cluster: str = DEFAULT, ahead: timedelta = timedelta()) -> WorkerProcess:
    now = database_now()
    return WorkerProcess.objects.create(
        identity=f"{host}-{cluster}", host=host, pid=1, cluster=cluster, heartbeat_at=now, clock_at=now + ahead
    )


@pytest.fixture
def well(settings) -> None:
    """An installation without a problem, as far as no cluster is needed for it."""
    for name in {DEFAULT, *settings.Q_CLUSTER.get("ALT_CLUSTERS", {})}:
        add_worker(cluster=name)
    call_command("pcrud_schedule_cleanup", stdout=StringIO())


def test_all_is_well(well):
    code, findings = examine()
    assert problems_of(findings) == set()
    assert code == 0
    assert set(findings) >= {"settings", "database", "versions", "broker", "cache", "clusters", "clocks", "cleanup"}
    out = StringIO()
    call_command("pcrud", "doctor", "--no-test", stdout=out, no_color=True)
    assert out.getvalue().endswith("No problem was found.\n")


def test_findings_fit_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = StringIO()
    with pytest.raises(CommandError, match=r"problems? found"):
        call_command("pcrud", "doctor", "--no-test", stdout=out, no_color=True)
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("problem  cleanup   No schedule runs the cleanup") for line in lines)


def test_a_note_is_no_problem(well):
    pauses.pause("queue", DEFAULT, "anna", "stocktaking")
    code, findings = examine()
    assert code == 0
    [note] = [finding for finding in findings["clusters"] if finding["level"] == "note"]
    assert note["text"] == f"The queue {DEFAULT} is paused by anna: stocktaking."
    assert note["hint"] == f"Resume it: manage.py pcrud resume --queue {DEFAULT}"


def test_wrong_settings(well, settings):
    settings.POWERCRUD_SETTINGS = {"CONFLICT_TTL": "an hour"}
    found = problem("settings")
    assert "powercrud_dashboard.E002" in found["text"]
    assert found["hint"]


def test_migrations_that_are_missing(well):
    MigrationRecorder(connection).migration_qs.filter(app="django_q").order_by("-pk").first().delete()
    found = problem("database")
    assert found["text"].startswith("1 migration not applied")
    assert "migrate" in found["hint"]


def test_a_queue_without_a_worker(well, manager):
    WorkerProcess.objects.filter(cluster=DEFAULT).delete()
    manager.launch_async_task(tasks.add, 1)
    found = problem("clusters")
    assert found["text"] == f"Queue {DEFAULT}: no worker runs, and 1 task waits."
    assert found["hint"] == "Start one: python manage.py qcluster"


def test_a_task_in_a_queue_that_nobody_serves(well, manager):
    manager.launch_async_task(tasks.add, 1, cluster="forgotten")
    found = problem("clusters")
    assert found["text"] == "Queue forgotten: no worker runs, and 1 task waits."
    assert found["hint"] == "Start one: Q_CLUSTER_NAME=forgotten python manage.py qcluster"


def test_a_clock_that_is_wrong(well):
    add_worker(host="late", ahead=timedelta(seconds=-90))
    found = problem("clocks")
    text = found["text"].replace("\N{NO-BREAK SPACE}", " ")
    assert text == "The clock of late is 1 min 30 s behind that of the database."


def test_a_cache_of_one_process(well, settings):
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
    settings.POWERCRUD_SETTINGS = {"CACHE_NAME": "default"}
    assert "not shared between processes" in problem("cache")["text"]


def test_a_broker_that_is_away(well, monkeypatch, caplog):
    monkeypatch.setattr(Conf, "BROKER_CLASS", "tests.brokers.AwayBroker")
    found = problem("broker")
    assert found["text"] == "The broker can't be reached: launches fail. ConnectionError: Nobody listens."
    assert found["hint"] == "Check that it is running, and its address in Q_CLUSTER."
    # It is said once.
    assert not caplog.records


def test_a_cache_that_is_away(well, settings, caplog):
    away = {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": "unix:///nowhere/redis.sock"}
    settings.CACHES = {**settings.CACHES, "away": away}
    settings.POWERCRUD_SETTINGS = {"CACHE_NAME": "away"}
    assert problem("cache")["text"].startswith("The cache 'away' of CACHE_NAME does not work. ConnectionError: ")
    assert not caplog.records


def test_a_cleanup_that_is_not_scheduled(well):
    Schedule.objects.all().delete()
    assert problem("cleanup")["hint"] == "Run 'manage.py pcrud_schedule_cleanup' once."


def test_a_cleanup_that_is_paused_or_overdue(well):
    Schedule.objects.update(next_run=None)
    assert problem("cleanup")["text"] == "The schedule of the cleanup is paused."
    Schedule.objects.update(next_run=timezone.now() - timedelta(hours=1))
    assert problem("cleanup")["text"].startswith("The cleanup has been due for 1\N{NO-BREAK SPACE}h")


@pytest.mark.parametrize(
    ("timing", "words"),
    [
        ({"schedule_type": "I", "minutes": 1}, "every 1 minute"),
        ({"schedule_type": "H"}, "hourly"),
        ({"schedule_type": "C", "cron": "*/5 * * * *"}, "by the cron expression */5 * * * *"),
    ],
)
def test_how_often_the_cleanup_runs(well, timing, words):
    Schedule.objects.update(**{"minutes": None, **timing})
    func = Schedule.objects.get().func
    # One that is paused, and a single run, don't matter.
    Schedule.objects.create(func=func, schedule_type="D", next_run=None)
    Schedule.objects.create(func=func, schedule_type="O")
    assert examine()[1]["cleanup"][0] == {"level": "ok", "text": f"The cleanup is scheduled {words}.", "hint": ""}


def test_messages_that_are_lost(well, manager):
    manager.launch_async_task(tasks.add, 1)
    ActiveTask.objects.update(missing_since=timezone.now())
    assert problem("tasks")["text"].startswith("1 task in no queue any more")


def test_a_history_that_is_not_pruned(well, manager, settings):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_RETENTION_DAYS": {"success": 7}}
    manager.launch_async_task(tasks.add, 1, sync=True)
    code, findings = examine()
    assert code == 0
    assert "kept: success 7 d; observed tasks 7 d, at most 100,000." in findings["history"][0]["text"]
    TaskRecord.objects.update(finished_at=timezone.now() - timedelta(days=8))
    assert examine()[0] == 0
    TaskRecord.objects.update(finished_at=timezone.now() - timedelta(days=10))
    assert "longer than the 7 days" in problem("history")["text"]


def test_a_retention_that_is_none_is_a_mistake_of_the_settings_alone(well, settings):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_RETENTION_DAYS": {"success": "a week", "failed": 30}}
    assert "'success'" in problem("settings")["text"]
    assert "kept: failed 30 d;" in examine()[1]["history"][0]["text"]


def test_what_can_not_be_examined_is_a_problem_and_keeps_no_other_from_it(well, settings):
    settings.CACHES = {**settings.CACHES, "broken": {"BACKEND": "nowhere.Cache"}}
    settings.POWERCRUD_SETTINGS = {"CACHE_NAME": "broken"}
    found = problem("cache")
    assert found["text"].startswith("This can't be examined. InvalidCacheBackendError: ")
    assert "history" in examine()[1]


def test_the_test_needs_time():
    with pytest.raises(CommandError) as caught:
        call_command("pcrud", "doctor", "--timeout", "0")
    assert caught.value.returncode == 2
