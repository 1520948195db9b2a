from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.conf import settings
from playwright.sync_api import Browser, Page, sync_playwright

from tests import services

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]


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
def page(browser: Browser, live_server: Any, superuser: Any, client_of: Any) -> Iterator[Page]:
    """A page of a logged-in superuser; what the browser complains of fails the test."""
    context = browser.new_context(base_url=live_server.url)
    session = client_of(superuser).cookies[settings.SESSION_COOKIE_NAME].value
    context.add_cookies([{"name": settings.SESSION_COOKIE_NAME, "value": session, "url": live_server.url}])
    opened = context.new_page()
    complaints: list[str] = []
    opened.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    yield opened
    context.close()
    # Browsers ask every site for its icon, which the tests have none of.
    assert [complaint for complaint in complaints if "404" not in complaint] == []
