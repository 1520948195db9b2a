from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.utils import timezone
from django_q.models import Schedule
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from powercrud_dashboard.models import TaskRecord
from powercrud_dashboard.models.changes import RecordChange
from tests import services
from tests.testapp import tasks
from tests.workers import claimed_elsewhere

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]

# Whatever a page is expected to show may take a busy machine longer than Playwright's 5 seconds.
expect.set_options(timeout=60_000)

#: Tells the test, from each document, of what the Content-Security-Policy has stopped.
REPORT_VIOLATIONS = """
document.addEventListener("securitypolicyviolation", (event) => {
  reportViolation(`${event.effectiveDirective}: ${event.blockedURI} ${event.sample}`);
});
"""


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    chromium = services.program("chromium")
    with pytest.MonkeyPatch.context() as patch:
        # Playwright's synchronous API runs an event loop in this thread, from which Django keeps its ORM.
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
        with sync_playwright() as playwright:
            running = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
            yield running
            running.close()


@pytest.fixture
def tolerated() -> list[str]:
    """Texts in complaints of the browser that a test provokes; browsers ask every site for its icon."""
    return ["404"]


@dataclass(frozen=True)
class Profile:
    """Somebody's cookies and windows. It is kept, as a new window takes the browser longer than many a test."""

    context: BrowserContext
    #: What the Content-Security-Policy has stopped.
    violations: list[str] = field(default_factory=list)

    @classmethod
    def start(cls, browser: Browser, url: str) -> Profile:
        profile = cls(browser.new_context(base_url=url))
        profile.context.expose_function("reportViolation", lambda violation: profile.violations.append(violation))
        profile.context.add_init_script(REPORT_VIOLATIONS)
        # Keeps its window open.
        profile.context.new_page()
        return profile

    def clear(self, url: str) -> list[str]:
        """Leave nothing of what a test has done in it. Return what the policy has stopped."""
        first, *others = self.context.pages
        for page in others:
            page.close()
        self.context.clear_cookies()
        self.context.clear_permissions()
        debugger = self.context.new_cdp_session(first)
        debugger.send("Storage.clearDataForOrigin", {"origin": url, "storageTypes": "all"})
        debugger.detach()
        violations, self.violations[:] = self.violations[:], []
        return violations


@pytest.fixture(scope="session")
def profiles() -> dict[tuple[str, int], Profile]:
    """Profiles by the address of the server, and the number of the person among those of a test."""
    return {}


@pytest.fixture
def page_of(
    browser: Browser, live_server: Any, client_of: Any, tolerated: list[str], profiles: dict[tuple[str, int], Profile]
) -> Iterator[Callable[[User], Page]]:
    """Open a page as this person; what the browser, or its policy, complains of fails the test."""
    used: list[Profile] = []
    complaints: list[str] = []

    def open_page(user: User) -> Page:
        place = (live_server.url, len(used))
        if place not in profiles:
            profiles[place] = Profile.start(browser, live_server.url)
        used.append(profiles[place])
        context = used[-1].context
        session = client_of(user).cookies[settings.SESSION_COOKIE_NAME].value
        context.add_cookies([{"name": settings.SESSION_COOKIE_NAME, "value": session, "url": live_server.url}])
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        return page

    yield open_page
    for profile in used:
        complaints += profile.clear(live_server.url)
    assert [complaint for complaint in complaints if not any(text in complaint for text in tolerated)] == []


@pytest.fixture
def busy(manager, record_of, make_projects, superuser) -> dict[str, int]:
    """Tasks in each status, with objects, locks, progress, a retry and a schedule."""
    projects = make_projects(3)
    names = {}
    with pytest.raises(ValueError, match="it broke"):
        manager.launch_async_task(tasks.fail, task_key="failed", user=superuser, sync=True)
    names["retried"] = manager.retry_task("failed", user=superuser)
    names["queued"] = manager.launch_async_task(tasks.add, 1, affected_objects=projects[:1], user=superuser)
    names["running"] = manager.launch_async_task(
        tasks.add, 2, affected_objects=projects, conflict_ids={"testapp.Project": projects}, user=superuser
    )
    claimed_elsewhere(names["running"], host="worker-1", pid=4711)
    TaskRecord.objects.change(names["running"], RecordChange.started(attempt=1))
    manager.update_progress(names["running"], "Step 2/5: cutting")
    names["completed"] = manager.launch_async_task(tasks.add, 3, group="nightly", sync=True)
    names["cancelled"] = manager.launch_async_task(tasks.add, 4)
    manager.cancel_task(names["cancelled"], user=superuser)
    manager.launch_async_task(tasks.add, 5, group="trio", affected_objects=projects, user=superuser)
    Schedule.objects.create(func="tests.testapp.tasks.add", args="1", name="nightly", next_run=timezone.now())
    missed = timezone.now() - timedelta(hours=1)
    Schedule.objects.create(func="tests.testapp.tasks.add", args="1", name="trio", next_run=missed)
    return {label: record_of(name).pk for label, name in {**names, "failed": "failed"}.items()}


@pytest.fixture
def page(page_of: Callable[[User], Page], superuser: User) -> Page:
    """A page of a superuser."""
    return page_of(superuser)
