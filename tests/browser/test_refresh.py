"""A refresh that fails, and a page that is not ours alone."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from powercrud_dashboard.models import Alert
from powercrud_dashboard.templatetags import powercrud_dashboard
from tests.testapp import tasks
from tests.testapp.models import Country

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

LIST = "/admin/powercrud_dashboard/taskrecord/"
PROJECTS = "/admin/testapp/project/"
STRIP = f"{PROJECTS}background-tasks/"
#: Pages that refresh themselves while a task is queued, and the address of their refreshes.
PAGES = {
    "list": (LIST, LIST),
    "task": (f"{LIST}{{pk}}/change/", f"{LIST}{{pk}}/change/"),
    "group": (f"{LIST}groups/trio/", f"{LIST}groups/trio/"),
    "failures": (f"{LIST}failures/", f"{LIST}failures/"),
    "locks": (f"{LIST}locks/", f"{LIST}locks/"),
    "schedules": (f"{LIST}schedules/", f"{LIST}schedules/"),
    "cluster": (f"{LIST}cluster/", f"{LIST}cluster/"),
    "changelist": (PROJECTS, STRIP),
}
#: Milliseconds for a refresh or two.
SOON = 60_000

ANSWERS = {
    "server down": lambda route: route.abort("connectionrefused"),
    "bad gateway": lambda route: route.fulfill(status=502, body="<h1>Bad gateway</h1>"),
    "server error": lambda route: route.fulfill(status=500, body="<h1>Server Error (500)</h1>"),
    "forbidden": lambda route: route.fulfill(status=403, body="<h1>403 Forbidden</h1>"),
    "another page": lambda route: route.fulfill(status=200, body="<h1>Down for maintenance</h1>"),
    "another origin": lambda route: route.fulfill(status=302, headers={"Location": "https://sso.example/login"}),
}


@pytest.fixture
def queued(manager, record_of, make_projects) -> int:
    """A task that waits for a cluster, with objects, locks and a group."""
    projects = make_projects(3)
    conflict_ids = {"testapp.Project": projects}
    name = manager.launch_async_task(
        tasks.add, 1, label="Add up", conflict_ids=conflict_ids, affected_objects=projects, group="trio"
    )
    return record_of(name).pk


@pytest.fixture
def failing(tolerated, page, live_server):
    """A page whose console may complain of requests that fail."""
    tolerated += ["Failed to load resource", "htmx:", "Response Status Error Code", "connect-src"]
    page.context.add_cookies([{"name": "pcrud_refresh", "value": "1", "url": live_server.url}])
    return page


def notice(page: Page):
    return page.get_by_text("can't be refreshed")


def answer_refreshes(page: Page, address: str, answer) -> None:
    """Have refreshes answered so, and nothing else."""
    is_refresh = lambda route: route.request.headers.get("hx-request") == "true"  # noqa: E731
    page.route(f"**{address}*", lambda route: answer(route) if is_refresh(route) else route.fallback())


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
@pytest.mark.parametrize(("address", "refresh_address"), [PAGES["list"], PAGES["changelist"]], ids=["list", "strip"])
def test_a_refresh_that_fails_says_so_until_one_succeeds(failing, queued, address, refresh_address, answer):
    failing.goto(address)
    expect(notice(failing)).to_be_hidden()
    part = failing.locator("[data-pcrud-refresh]")
    shown = part.inner_text()
    failing.evaluate("window.notReloaded = true")
    answer_refreshes(failing, refresh_address, answer)
    expect(notice(failing)).to_be_visible(timeout=SOON)
    assert part.inner_text() == shown
    failing.unroute_all()
    expect(notice(failing)).to_be_hidden(timeout=SOON)
    assert failing.evaluate("window.notReloaded === true")


@pytest.mark.parametrize(("address", "refresh_address"), PAGES.values(), ids=PAGES)
def test_every_page_that_refreshes_itself_offers_to_reload(failing, queued, address, refresh_address):
    address = f"{address.format(pk=queued)}?e=1"
    failing.goto(address)
    answer_refreshes(failing, refresh_address.format(pk=queued), ANSWERS["server down"])
    link = notice(failing).get_by_role("link", name="Reload")
    expect(link).to_be_visible(timeout=SOON)
    # Screen readers announce it.
    assert notice(failing).evaluate("element => element.closest('[aria-live=polite]') !== null")
    # The notice is there as long as refreshes fail.
    with failing.expect_event("load"):
        link.click()
    assert failing.url.endswith(address)
    failing.unroute_all()
    expect(notice(failing)).to_be_hidden()


def test_a_server_that_does_not_answer_in_time_is_a_failure(failing, queued):
    failing.goto(LIST)
    # Soon, instead of after half a minute.
    failing.evaluate("document.addEventListener('htmx:configRequest', ({detail}) => { detail.timeout = 50; })")
    answer_refreshes(failing, LIST, lambda route: None)
    expect(notice(failing)).to_be_visible(timeout=SOON)


def test_the_open_alerts_keep_the_focus_and_their_place(failing, queued, monkeypatch):
    monkeypatch.setattr(powercrud_dashboard, "ALERT_INTERVAL", 1)
    Alert.objects.open_one("queue_depth", "mails", {"tasks": 5})
    failing.goto(LIST)
    button = failing.get_by_role("button", name="Acknowledge")
    button.focus()
    strip = f"{LIST}alerts/strip/"
    answer_refreshes(failing, strip, ANSWERS["another page"])
    for _refresh in range(2):
        failing.wait_for_event("requestfinished", lambda request: strip in request.url)
    expect(button).to_be_focused()
    failing.unroute_all()
    Alert.objects.update(details={"tasks": 6})
    expect(failing.get_by_text("6 tasks wait in the queue mails")).to_be_visible(timeout=SOON)
    expect(button).to_be_focused()


def test_refreshing_by_key_fails_as_every_refresh_does(failing, queued):
    failing.goto(LIST)
    with failing.expect_event("load"):
        failing.get_by_label("Refresh").select_option("0")
    answer_refreshes(failing, LIST, ANSWERS["server down"])
    failing.keyboard.press("r")
    expect(notice(failing)).to_be_visible()


def test_a_login_on_another_origin_is_reached(page, queued, settings):
    settings.LOGIN_URL = "https://sso.example/login"
    page.route("https://sso.example/**", lambda route: route.fulfill(body="<h1>Single sign-on</h1>"))
    page.goto("/tasks/")
    expect(page.get_by_role("link", name="Add up")).to_be_visible()
    page.context.clear_cookies()
    expect(page.get_by_role("heading", name="Single sign-on")).to_be_visible(timeout=SOON)


def test_a_changelist_is_not_left_when_the_session_ends(failing, queued):
    """Somebody may have typed something there."""
    page = failing
    page.goto(PROJECTS)
    page.locator("input.action-select").first.check()
    page.context.clear_cookies()
    expect(notice(page)).to_be_visible(timeout=SOON)
    expect(page.locator("input.action-select").first).to_be_checked()
    page.get_by_role("link", name="Reload").click()
    expect(page.get_by_label("Password")).to_be_visible()


OTHER_REQUEST = """
    const place = document.createElement("div");
    place.innerHTML = `
      <button id="other" hx-get="/admin/jsi18n/" hx-target="#answer">Other</button><p id="answer">nothing</p>`;
    document.querySelector("%s").append(place);
    htmx.process(place);
    document.addEventListener("htmx:configRequest", (event) => {
      if (event.target.id === "other") {
        window.sentHeaders = Object.keys(event.detail.headers);
      }
    });
"""


@pytest.mark.parametrize("within", ["#content", "#pcrud-tasks", "#pcrud-strip"])
def test_other_requests_of_htmx_are_left_alone(page, queued, within):
    page.goto(PROJECTS if "strip" in within else LIST)
    if "strip" not in within:
        # With a refresh now and then, the list would be replaced and the button with it.
        with page.expect_event("load"):
            page.get_by_label("Refresh").select_option("0")
    else:
        page.route(f"**{STRIP}*", lambda route: None)
    page.evaluate(OTHER_REQUEST % within)
    page.evaluate("window.notReloaded = true")
    page.locator("#other").click()
    expect(page.locator("#answer")).to_contain_text("gettext")
    assert page.evaluate("window.notReloaded === true")
    assert not [header for header in page.evaluate("window.sentHeaders") if header.lower().startswith("x-pcrud")]


def test_another_request_does_not_undo_a_selection(page, queued):
    page.goto(LIST)
    with page.expect_event("load"):
        page.get_by_label("Refresh").select_option("0")
    page.evaluate(OTHER_REQUEST % "#content")
    page.evaluate("document.querySelector('#other').setAttribute('hx-swap', 'innerHTML swap:300ms')")
    box = page.get_by_label("Select Add up")
    with page.expect_response("**/jsi18n/"):
        page.locator("#other").click()
    box.check()
    expect(page.locator("#answer")).to_contain_text("gettext")
    expect(box).to_be_checked()


ODD_KEYS = [
    "New Zealand",
    "Côte d'Ivoire",
    'the "other" one',
    "a/b?c=d&e#f",
    "100 %",
    "日本",
    "<b>",
    "back\\slash",
    "a,b",
    "%20",
]


def test_lock_marks_know_any_key(page, manager):
    for key in [*ODD_KEYS, "free one"]:
        Country.objects.create(name=key)
    manager.add_conflict_ids("nightly", {"testapp.Country": set(ODD_KEYS)})
    marked = page.locator("#result_list tr").filter(has=page.locator(".pcrud-lock:visible"))
    page.goto("/admin/testapp/country/")
    expect(marked).to_have_count(len(ODD_KEYS))
    with page.expect_response("**/background-tasks/**"):
        pass
    manager.remove_conflict_ids("nightly", {"testapp.Country": {"New Zealand"}})
    expect(marked).to_have_count(len(ODD_KEYS) - 1, timeout=SOON)
    expect(marked.filter(has_text="New Zealand")).to_have_count(0)
    expect(marked.filter(has_text="free one")).to_have_count(0)


def test_of_very_many_rows_the_last_marks_stay_as_they_are(page, manager):
    Country.objects.create(name="New Zealand")
    manager.add_conflict_ids("nightly", {"testapp.Country": {"New Zealand"}})
    page.goto("/admin/testapp/country/")
    # More rows than a refresh asks for, and more than Django takes from a form.
    page.evaluate("""() => {
      const [mark] = document.querySelectorAll("[data-pcrud-lock]");
      for (let number = 0; number < 1_100; number++) {
        const copy = mark.cloneNode();
        copy.dataset.pcrudLock = `row ${number}`;
        copy.hidden = false;
        mark.parentElement.append(copy);
      }
    }""")
    visible = page.locator("[data-pcrud-lock]:visible")
    expect(visible).to_have_count(601 + 1, timeout=SOON)
    expect(notice(page)).to_be_hidden()
    expect(visible.last).to_have_attribute("data-pcrud-lock", "row 1099")
