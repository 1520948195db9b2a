"""A broker elsewhere that nobody listens at; its settings are read at import, so in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from django.conf import settings

from tests.conftest import POSTGRESQL

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(POSTGRESQL, reason="runs on its own settings"),
]

SCRIPT = """
import django, json
django.setup()
from django.db import transaction
from powercrud_dashboard.dashboard_manager import DashboardAsyncManager
from powercrud_dashboard.engine.health import Health
from powercrud_dashboard.exceptions import EnqueueError
from powercrud_dashboard.models import ActiveTask, ConflictLock, TaskRecord

def launch(name):
    DashboardAsyncManager().launch_async_task(
        "tests.testapp.tasks.add", 1, task_key=name, conflict_ids={"testapp.Project": {name}}
    )

seen = {}
try:
    launch("1")
except EnqueueError as error:
    seen["error"] = str(error)
with transaction.atomic():
    launch("2")
    transaction.set_rollback(True)
seen["rolled back"] = TaskRecord.objects.filter(task_name="2").exists()
try:
    with transaction.atomic():
        launch("3")
        seen["queued before commit"] = TaskRecord.objects.get(task_name="3").status
except EnqueueError as error:
    seen["error at commit"] = str(error)
ran = []
try:
    with transaction.atomic():
        transaction.on_commit(lambda: ran.append("before"))
        launch("4")
        transaction.on_commit(lambda: ran.append("between"))
        launch("5")
        transaction.on_commit(lambda: ran.append("after"))
except EnqueueError as error:
    seen["error of several"] = error.task_name
with transaction.atomic():
    launch("6")
    with transaction.atomic():
        launch("7")
        transaction.set_rollback(True)
    transaction.on_commit(lambda: ran.append("after a rollback"))
seen["callbacks"] = ran
try:
    DashboardAsyncManager().retry_task("5")
except EnqueueError as error:
    seen["error of a retry"] = error.task_name
seen["retries"] = list(TaskRecord.objects.filter(retry_of__task_name="5").values_list("task_name", "status"))
seen["retry is recorded"] = TaskRecord.objects.get(task_name="5").events.filter(event="retry").exists()
for name in ("1", "3", "4", "5", "6"):
    record = TaskRecord.objects.get(task_name=name)
    seen[name] = [record.status, record.failure_reason, record.error.partition(".")[0]]
seen["health"] = [reason["code"] for reason in Health.now().reasons]
seen["left"] = ActiveTask.objects.count() + ConflictLock.objects.count()
print(json.dumps(seen))
"""


def test_a_broker_that_is_down_leaves_a_failed_record_no_lock_and_an_error():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT],
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings.dead_broker"},
        capture_output=True,
        text=True,
        check=False,
        cwd=settings.ROOT,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert "Task 1 could not be queued: ConnectionError" in seen["error"]
    assert "Check that the broker is running" in seen["error"]
    assert seen["rolled back"] is False
    assert seen["queued before commit"] == "pending"
    assert "Task 3 could not be queued" in seen["error at commit"]
    assert all(seen[name] == ["failed", "not_queued", "Could not be queued"] for name in ("1", "3", "4", "5", "6"))
    # An error at commit keeps nobody's hooks from being called.
    assert seen["error of several"] == "4"
    assert seen["callbacks"] == ["before", "between", "after", "after a rollback"]
    assert seen["retries"] == [[seen["error of a retry"], "failed"]]
    assert seen["retry is recorded"]
    assert seen["health"] == ["no_workers", "broker"]
    assert seen["left"] == 0
