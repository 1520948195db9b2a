"""``make demo-check``: the demo's main job without a person, on a fresh database, with a real cluster."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.demo.processes import Processes, manage

if TYPE_CHECKING:
    from django.test import Client

#: Seconds for one step; all of it takes far less.
DEADLINE = 60

failures: list[str] = []


def expect(what: str, holds: bool) -> None:
    print(f"  {'ok  ' if holds else 'FAIL'} {what}", flush=True)
    if not holds:
        failures.append(what)


def wait_until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > deadline:
            expect(f"{what} within {DEADLINE} s", False)
            return
        time.sleep(0.05)


def main() -> int:
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pcrud-demo-") as data:
        os.environ["PCRUD_DEMO_DATA"] = data
        os.environ["DJANGO_SETTINGS_MODULE"] = "tests.demo.settings"
        manage("migrate", "--verbosity", "0")
        manage("load_inventory")
        with Processes() as processes:
            cluster = processes.start("qcluster", quiet=True)
            run_the_main_job()
        expect("the cluster stopped cleanly", cluster.returncode == 0)
    print(f"{'FAILED' if failures else 'All as expected'}, {time.monotonic() - started:.0f} s")
    return 1 if failures else 0


def run_the_main_job() -> None:
    import django

    django.setup()
    from django.contrib.auth import get_user_model
    from django.test import Client

    from powercrud_dashboard.dashboard_manager import DashboardAsyncManager

    client = Client(headers={"host": "localhost"})
    client.force_login(get_user_model().objects.get(username="demo"))
    print("A cluster answers")
    expect("validate_async_system()", DashboardAsyncManager().validate_async_system())
    succeed_and_fail(client)
    conflict_and_cancel(client)
    nothing_left()


def click(client: Client, action: str, pks: list[int]) -> Any:
    """Run a changelist action as a person does; return the newest record."""
    from powercrud_dashboard.models import TaskRecord

    client.post("/admin/inventory/sourcefile/", {"action": action, "_selected_action": pks})
    return TaskRecord.objects.latest("pk")


def finish(record: Any) -> Any:
    wait_until(lambda: (record.refresh_from_db(), record.is_finished)[1], f"{record.label} ends")
    last_line = record.error.splitlines()[-1] if record.error else record.message
    print(f"  {record.label}: {record.get_status_display()}, {record.affected_count} objects. {last_line}")
    return record


def succeed_and_fail(client: Client) -> None:
    from powercrud_dashboard.models import TaskRecord
    from tests.demo.inventory import library
    from tests.demo.inventory.models import SourceFile

    print("Recompute checksums of 200 files")
    pks = list(SourceFile.objects.values_list("pk", flat=True)[:200])
    record = finish(click(client, "recompute_checksums", pks))
    expect("completed", record.status == "success")
    expect("all 200 have a checksum", SourceFile.objects.filter(pk__in=pks).exclude(sha256="").count() == 200)
    sample = SourceFile.objects.get(pk=pks[0])
    expect("the checksum is the file's", sample.sha256 == library.checksum(sample.path))
    expect("the progress reached its end", (record.progress_current, record.progress_total) == (200, 200))
    expect("the timeline tells who", record.events.get(event="create").actor_label == "demo")

    print("Parse files of which some do not parse")
    files = SourceFile.objects.filter(path__endswith=".py")
    bad = files.filter(path__contains="bad") | files.filter(path__contains="lib2to3/tests/data")
    record = finish(click(client, "parse_and_count", list(bad.values_list("pk", flat=True))))
    expect("failed", record.status == "failed")
    expect("with the traceback of the task", "parse_and_count" in record.traceback)

    print("Retry it from its page")
    client.post(f"/admin/powercrud_dashboard/taskrecord/{record.pk}/retry/")
    again = finish(TaskRecord.objects.latest("pk"))
    expect("a new task, linked to the first", again.retry_of == record)
    expect("failed again, for the same reason", again.error == record.error)


def conflict_and_cancel(client: Client) -> None:
    from powercrud_dashboard.models import TaskRecord
    from tests.demo.inventory.models import SourceFile

    print("Start a slow task and get in its way")
    pks = list(SourceFile.objects.values_list("pk", flat=True)[:500])
    slow = click(client, "stretch_checksums", pks)
    wait_until(lambda: (slow.refresh_from_db(), slow.status == "in_progress")[1], "it runs")
    answer = client.post(
        "/admin/inventory/sourcefile/", {"action": "recompute_checksums", "_selected_action": pks[:3]}, follow=True
    )
    expect("a second action on its files is refused", "was not launched" in answer.content.decode())
    expect("and leaves no record", TaskRecord.objects.latest("pk") == slow)
    url = f"/powercrud/async/progress/?task_name={slow.task_name}"
    wait_until(lambda: client.get(url).json()["current"], "progress shows")
    print(f"  the progress endpoint says {client.get(url).json()}")

    print("Cancel it")
    client.post(f"/admin/powercrud_dashboard/taskrecord/{slow.pk}/cancel/")
    finish(slow)
    expect("cancelled", slow.status == "cancelled")
    expect("by somebody", slow.events.get(event="cancel").actor_label == "demo")
    expect("the endpoint ends the polling", client.get(url).status_code == 286)


def nothing_left() -> None:
    from powercrud_dashboard.models import ActiveTask, ConflictLock

    print("Nothing is left behind")
    expect("no active task", not ActiveTask.objects.exists())
    expect("no lock", not ConflictLock.objects.exists())


if __name__ == "__main__":
    sys.exit(main())
