"""Screenshots of each page, with the demo's own tasks: those of the documentation, or of every state and look.

    python -m tests.demo.screenshots                    docs/images, as the documentation shows them
    python -m tests.demo.screenshots --only insights    docs/images, this one
    python -m tests.demo.screenshots --theme unfold     docs/images, those in a theme
    python -m tests.demo.screenshots --all DIRECTORY    1280 and 390 pixels wide, light and dark

Runs on a fresh database with a real cluster and web server. Needs Chromium and the ``test`` dependency group.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.demo.login import PASSWORD, USERNAME
from tests.demo.processes import Processes, manage
from tests.demo.run import free_port

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
WIDTHS = {"wide": (1280, 800), "phone": (390, 844)}
SCHEMES = ("light", "dark")
#: In the documentation: each page wide and light, and these as well.
ALSO_IN_DOCS = (
    *(("tasks-busy", "wide", "dark"), ("tasks-busy", "phone", "light")),
    *(("insights", "wide", "dark"), ("insights", "phone", "light")),
    ("schedules", "wide", "dark"),
)
#: In the documentation in a theme: what fits into the window.
IN_DOCS_IN_THEMES = {
    "unfold": (("tasks-busy", "wide", "dark"), ("changelist", "wide", "light")),
    "jazzmin": (("task-running", "wide", "light"),),
}
#: States that differ from a page's usual one, for reviews only.
NOT_IN_DOCS = ("confirm-error", "tasks-empty", "failures-empty", "edit-error", "task-queued", "tasks-filtered")
DEADLINE = 60
TASKS = "/admin/powercrud_dashboard/taskrecord/"
FUNCTIONS = "tests.demo.inventory.tasks."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--theme", choices=["unfold", "jazzmin"], default="", help="in this theme, if it is installed")
    parser.add_argument("--only", nargs="*", default=[], help="names of pages, such as insights")
    parser.add_argument("--all", action="store_true", help="every state, width and colour scheme")
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pcrud-shots-") as data, Processes() as processes:
        os.environ["PCRUD_DEMO_DATA"] = data
        os.environ["PCRUD_DEMO_THEME"] = options.theme
        os.environ["DJANGO_SETTINGS_MODULE"] = "tests.demo.settings"
        # Playwright's synchronous API runs an event loop in this thread, from which Django keeps its ORM.
        os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"
        manage("migrate", "--verbosity", "0")
        manage("load_inventory")
        manage("pcrud_schedule_cleanup")
        port = free_port()
        processes.start("runserver", f"127.0.0.1:{port}", "--noreload", quiet=True)
        wait_until(lambda: _answers(port), "the web server runs")
        with pages(f"http://127.0.0.1:{port}", everything=options.all) as opened:
            Tour(opened, options.directory, options.all, options.theme, options.only).take(
                lambda: processes.start("qcluster", quiet=True)
            )


def wait_until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"Not within {DEADLINE} s: {what}")
        time.sleep(0.05)


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/admin/login/"):
            return True
    except OSError:
        return False


@contextmanager
def pages(address: str, *, everything: bool) -> Iterator[dict[tuple[str, str], Page]]:
    """Open one logged-in page for each look, by width and colour scheme."""
    from playwright.sync_api import sync_playwright

    from tests.services import program

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program("chromium"), args=FLAGS)
        looks = {(width, scheme) for width in WIDTHS for scheme in SCHEMES} if everything else {("wide", "light")}
        looks |= {(width, scheme) for __, width, scheme in ALSO_IN_DOCS}
        yield {look: _logged_in(browser, address, *look) for look in sorted(looks)}
        browser.close()


def _logged_in(browser: Browser, address: str, width: str, scheme: Any) -> Page:
    wide, high = WIDTHS[width]
    context = browser.new_context(
        base_url=address, viewport={"width": wide, "height": high}, color_scheme=scheme, is_mobile=width == "phone"
    )
    # Nothing moves while it is looked at.
    context.add_cookies([{"name": "pcrud_refresh", "value": "0", "url": address}])
    page = context.new_page()
    page.goto("/admin/")
    page.locator("[name=username]").fill(USERNAME)
    page.locator("[name=password]").fill(PASSWORD)
    page.locator("[name=password]").press("Enter")
    page.wait_for_url("**/admin/")
    return page


def _without_paths_of_this_machine(record: Any) -> None:
    """Replace them in the tracebacks of the task and of its objects, and in its log."""
    from django.db.models import Value
    from django.db.models.functions import Replace

    for path, shown in ((str(ROOT), "/srv/inventory"), (sys.base_prefix, "/usr")):
        for rows, column in (
            (type(record).objects.filter(pk=record.pk), "traceback"),
            (record.objects_worked_on.all(), "traceback"),
            (record.log_lines.all(), "message"),
        ):
            rows.update(**{column: Replace(column, Value(path), Value(shown))})


class Tour:
    """Goes through the pages while the demo's tasks run, and takes a picture of each."""

    def __init__(
        self,
        opened: dict[tuple[str, str], Page],
        directory: Path,
        everything: bool,
        theme: str,
        only: list[str],
    ) -> None:
        self.opened = opened
        self.directory = directory
        self.everything = everything
        self.theme = theme
        self.only = only

    def take(self, start_cluster: Callable[[], object]) -> None:
        import django

        django.setup()
        from django.contrib.auth import get_user_model
        from django_q.tasks import async_task

        from powercrud_dashboard.dashboard_manager import DashboardAsyncManager
        from powercrud_dashboard.models import Alert, AlertKind, ConflictLock, TaskRecord
        from tests.demo.inventory.models import SourceFile

        self.shoot("tasks-empty", TASKS)
        self.shoot("failures-empty", f"{TASKS}failures/")
        self.shoot("cluster-test-stopped", f"{TASKS}cluster/", self._test_cluster("No cluster is running"))
        self._forget_tests()
        manager = DashboardAsyncManager()
        user = get_user_model().objects.get(username=USERNAME)
        files = list(SourceFile.objects.order_by("pk"))
        unparsable = [file for file in files if "bad" in file.path or "lib2to3/tests/data" in file.path]

        def launch(name: str, label: str, chosen: list[Any], **more: Any) -> Any:
            task_name = manager.launch_async_task(
                f"{FUNCTIONS}{name}",
                pks=[file.pk for file in chosen],
                model="inventory.sourcefile",
                conflict_ids={"inventory.SourceFile": [file.pk for file in chosen]},
                affected_objects=chosen,
                user=user,
                label=label,
                **more,
            )
            return TaskRecord.objects.get(task_name=task_name)

        def ended(record: Any) -> bool:
            record.refresh_from_db()
            return bool(record.is_finished)

        parsable = [file for file in files[300:420] if file.path.endswith(".py")]
        done = launch("parse_and_count", "Parse and count definitions", parsable[:24])
        failed = [launch("parse_and_count", "Parse and count definitions", [file]) for file in unparsable[:3]]
        self.shoot("task-queued", f"{TASKS}{done.pk}/change/")
        start_cluster()
        wait_until(lambda: all(ended(record) for record in [done, *failed]), "the first tasks end")
        again = TaskRecord.objects.get(task_name=manager.retry_task(failed[0].task_name, user=user))
        wait_until(lambda: ended(again), "the retry ends")
        for record in (*failed, again):
            _without_paths_of_this_machine(record)
        async_task(f"{FUNCTIONS}refresh_checksums", 5, task_name="refresh checksums at night")
        self.click("recompute_checksums", files[440:465])
        recomputed = TaskRecord.objects.latest("pk")
        self.click("count_each", [*files[420:440], *unparsable[:2]])
        counted = TaskRecord.objects.latest("pk")
        self.click("list_as_csv", files[:40], **{"pcrud-confirmed": "1", "pcrud-separator": ";", "pcrud-order": "path"})
        listed = TaskRecord.objects.latest("pk")
        wait_until(lambda: all(ended(record) for record in (recomputed, counted, listed)), "the actions end")
        _without_paths_of_this_machine(counted)
        wait_until(lambda: TaskRecord.objects.finished().filter(source="django_q"), "the plain task is recorded")
        stopped = launch("stretch_checksums", "Stretch checksums (80 objects)", files[200:280])
        manager.cancel_task(stopped.task_name, user=user)
        slow = [
            launch("stretch_checksums", f"Stretch checksums ({len(part)} objects)", part)
            for part in (files[:90], files[100:150], files[150:199])
        ]

        def has_progress(record: Any, least: int = 1) -> bool:
            return int(manager.describe_progress(record.task_name)["current"] or 0) >= least

        wait_until(lambda: has_progress(slow[0], 15), "the slow task has come some way")
        self.shoot("index", "/admin/")
        self._see_what_has_ended()
        self.shoot("tasks-busy", TASKS)
        self.shoot("tasks-filtered", f"{TASKS}?status=failed&q=parsed&within=24h")
        self.shoot("changelist", "/admin/inventory/sourcefile/", self._choose_action)
        self.shoot("confirm", "/admin/inventory/sourcefile/", self._choose_action_with_form)
        self.shoot("confirm-error", "/admin/inventory/sourcefile/", self._send_bad_parameters)
        self.shoot("locked-object", f"/admin/inventory/sourcefile/{files[0].pk}/change/")
        self.shoot("task-running", f"{TASKS}{slow[0].pk}/change/")
        self.shoot("task-queued-busy", f"{TASKS}{slow[2].pk}/change/")
        self.shoot("locks", f"{TASKS}locks/")
        lock = ConflictLock.objects.filter(active_task__task_name=slow[0].task_name).first()
        if lock is not None:
            self.shoot("release", f"{TASKS}locks/{lock.pk}/release/")
        self.shoot("cluster", f"{TASKS}cluster/")
        for hour in ("two", "three", "four"):
            async_task(f"{FUNCTIONS}refresh_checksums", 30, task_name=f"refresh at {hour}", group="nightly")
        self.shoot("queue", f"{TASKS}cluster/queue/")
        self.shoot("failures", f"{TASKS}failures/")
        self.shoot("task-failed", f"{TASKS}{again.pk}/change/")
        self.shoot("task-completed", f"{TASKS}{done.pk}/change/")
        self.shoot("task-with-errors", f"{TASKS}{counted.pk}/change/")
        self.shoot("task-with-file", f"{TASKS}{listed.pk}/change/")
        self.shoot("edit", f"{TASKS}{failed[1].pk}/edit/")
        self.shoot("edit-error", f"{TASKS}{failed[1].pk}/edit/", self._send_bad_arguments)
        self.shoot("bulk", f"{TASKS}?status=failed", self._ask_to_retry_all)
        for record in slow:
            manager.cancel_task(record.task_name, user=user)
        wait_until(lambda: not any(manager.is_active_task(record.task_name) for record in slow), "the slow ones end")
        self.click("stretch_in_parallel", files[:125])
        group = TaskRecord.objects.latest("pk")
        wait_until(lambda: any(map(has_progress, TaskRecord.objects.running())), "the group runs")
        self._see_what_has_ended()
        self.shoot("group", f"{TASKS}groups/{group.group}/")
        for record in TaskRecord.objects.unfinished():
            manager.cancel_task(record.task_name, user=user)
        self._see_what_has_ended()
        self.shoot("cluster-test", f"{TASKS}cluster/", self._test_cluster("Passed"))
        self._forget_tests()
        manage("load_history")
        self.shoot("insights", f"{TASKS}insights/")
        self.shoot("function", f"{TASKS}function/?func={FUNCTIONS}mail_report")
        self._run_schedules()
        self.shoot("schedules", f"{TASKS}schedules/")
        for file in (unparsable * 10)[:10]:
            failing = launch("parse_and_count", "Parse and count definitions", [file])
            wait_until(lambda record=failing: ended(record), "it fails")
        wait_until(lambda: Alert.objects.all().open().count() == 2, "the alerts are opened")
        Alert.objects.filter(kind=AlertKind.FAILURE_RATE).acknowledge(user, USERNAME)
        self._see_what_has_ended()
        self.shoot("alerts", f"{TASKS}alerts/")

    def _see_what_has_ended(self) -> None:
        """Open a page in each look that no picture is taken of: it has the messages."""
        for page in self.opened.values():
            page.goto(TASKS)

    @staticmethod
    def _test_cluster(words: str) -> Callable[[Page], None]:
        """Return what starts a test of the cluster, and waits for the words in its report."""

        def test(page: Page) -> None:
            page.get_by_role("button", name="Test the cluster").click()
            page.wait_for_url("**/report/**")
            wait_until(lambda: page.reload() and page.get_by_text(words).count(), words)

        return test

    @staticmethod
    def _forget_tests() -> None:
        from powercrud_dashboard.engine import smoke
        from powercrud_dashboard.models import TaskRecord

        for record in TaskRecord.objects.tests_of_the_cluster():
            smoke.forget(record.task_name)

    @staticmethod
    def _run_schedules() -> None:
        """Run one some times, skip a run of it, pause one, and let one be missed that belongs to no cluster."""
        from datetime import timedelta

        from django.utils import timezone
        from django_q.models import Schedule

        from powercrud_dashboard.models import TaskRecord
        from powercrud_dashboard.schedules import declared_schedules, run_scheduled

        declared = declared_schedules()["refresh checksums"]
        for _ in range(4):
            record = TaskRecord.objects.get(task_name=declared.launch())
            run_scheduled(declared.name)
            wait_until(lambda name=record.task_name: TaskRecord.objects.finished().filter(task_name=name), "it ends")
        func = f"{FUNCTIONS}refresh_checksums"
        Schedule.objects.create(name="refresh all", func=func, cluster="nightly", schedule_type=Schedule.WEEKLY)
        Schedule.objects.filter(name="refresh all").update(next_run=timezone.now() - timedelta(hours=5))
        Schedule.objects.create(name="old report", func=func, schedule_type=Schedule.MONTHLY, next_run=None)

    def click(self, action: str, rows: list[Any], **more: str) -> None:
        """Run an action of the admin as a click does."""
        from django.contrib.auth import get_user_model
        from django.test import Client

        client = Client(headers={"host": "localhost"})
        client.force_login(get_user_model().objects.get(username=USERNAME))
        chosen = {"action": action, "_selected_action": [row.pk for row in rows]}
        client.post("/admin/inventory/sourcefile/", {**chosen, **more})

    def shoot(self, name: str, address: str, act: Callable[[Page], None] | None = None) -> None:
        """Take the picture, in each look that is wanted of it."""
        if self.only and name not in self.only:
            return
        for (width, scheme), page in self.opened.items():
            in_docs = not self.theme and name not in NOT_IN_DOCS and (width, scheme) == ("wide", "light")
            more = IN_DOCS_IN_THEMES[self.theme] if self.theme else ALSO_IN_DOCS
            if not (self.everything or in_docs or (name, width, scheme) in more):
                continue
            page.goto(address)
            if act is not None:
                act(page)
            prefix = f"{self.theme}-" if self.theme else ""
            suffix = "" if in_docs and not self.everything else f"-{width}-{scheme}"
            is_whole = self.everything or not self.theme
            page.screenshot(path=self.directory / f"{prefix}{name}{suffix}.png", full_page=is_whole)

    @staticmethod
    def _choose_action(page: Page) -> None:
        for box in page.locator("input.action-select").all()[:3]:
            box.check()
        page.locator("select[name=action]").first.select_option("recompute_checksums")

    @staticmethod
    def _choose_action_with_form(page: Page) -> None:
        for box in page.locator("input.action-select").all()[:3]:
            box.check()
        page.locator("select[name=action]").first.select_option("list_as_csv")
        page.locator("button[name=index]").first.click()

    @classmethod
    def _send_bad_parameters(cls, page: Page) -> None:
        cls._choose_action_with_form(page)
        page.locator("select[name=pcrud-order]").evaluate("it => { it.innerHTML = '<option value=x>?</option>' }")
        page.get_by_role("button", name="Run").click()

    @staticmethod
    def _send_bad_arguments(page: Page) -> None:
        page.get_by_label("Arguments:", exact=True).fill('{"no": "list"}')
        page.get_by_role("button", name="Retry with these arguments").click()

    @staticmethod
    def _ask_to_retry_all(page: Page) -> None:
        page.locator("#pcrud-select-all").check()
        page.locator("#pcrud-bulk-retry").click()


if __name__ == "__main__":
    main()
