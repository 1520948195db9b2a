from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from playwright.sync_api import Browser, Page, sync_playwright

from tests import services

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]

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
def page_of(browser: Browser, live_server: Any, client_of: Any) -> Iterator[Callable[[User], Page]]:
    """Open a page as this person; what the browser, or its policy, complains of fails the test."""
    contexts = []
    complaints: list[str] = []

    def open_page(user: User) -> Page:
        context = browser.new_context(base_url=live_server.url)
        contexts.append(context)
        session = client_of(user).cookies[settings.SESSION_COOKIE_NAME].value
        context.add_cookies([{"name": settings.SESSION_COOKIE_NAME, "value": session, "url": live_server.url}])
        context.expose_function("reportViolation", lambda violation: complaints.append(violation))
        context.add_init_script(REPORT_VIOLATIONS)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        return page

    yield open_page
    for context in contexts:
        context.close()
    # Browsers ask every site for its icon, which the tests have none of.
    assert [complaint for complaint in complaints if "404" not in complaint] == []


@pytest.fixture
def page(page_of: Callable[[User], Page], superuser: User) -> Page:
    """A page of a superuser."""
    return page_of(superuser)
