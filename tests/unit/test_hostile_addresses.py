"""No address is a server error, whatever its key, its parameters or its fields."""

from __future__ import annotations

from itertools import chain, product
from urllib.parse import quote

import pytest
from django.test import Client
from django.urls import reverse

from powercrud_dashboard.dashboard.urls import URL_NAME, dashboard_urls
from powercrud_dashboard.models import TaskRecord
from tests.alerting import worker
from tests.clicks import CHANGELIST, TASKS
from tests.testapp import tasks

pytestmark = pytest.mark.django_db

HOSTILE = {
    "empty": "",
    "nul inside": "a\x00b",
    "lone surrogate": b"\xed\xa0\x80",
    "huge number": "9" * 400,
    "beyond 64 bits": str(2**64),
    "not a number": "nan",
    "infinite": "1e999",
    "other digits": "\u0661\u0662\N{SUPERSCRIPT TWO}",
    "many words": " ".join(f"w{number}" for number in range(1_500)),
    "long word": "x" * 5_000,
    "operators": "\"' ) OR * NEAR( : ^ -- ; & | ! <-> \\ %",
    "quoted": "_5F_ _00 _",
    "dots": "../../..",
    "markup": "<script>alert(1)</script>",
    "wildcards": "%_\\",
}
#: Every parameter that a page reads.
PARAMETERS = (
    *("q", "task", "user", "model", "object_id", "group", "cluster", "within", "longer_than", "function", "pattern"),
    *("created_after", "created_before", "finished_after", "finished_before", "since", "period", "queue", "func"),
    *("status", "sort", "from", "before", "page", "per_page", "window", "next", "filter"),
)
#: One of them at a time, on the pages that read it; elsewhere all at once are enough.
READ_BY = {
    "": PARAMETERS,
    "failures/": ("within", "function", "sort"),
    "insights/": ("period", "queue", "sort"),
    "function/": ("func", "pattern", "period"),
    "function/?func=tests.testapp.tasks.add&": ("pattern", "period"),
    "locks/": ("q", "page", "per_page", "sort"),
    "cluster/queue/": ("queue", "page"),
}
#: Every field that an action reads.
FIELDS = ("action", "selected", "all", "filter", "next", "confirmed", "interval", "seconds", "args", "kwargs", "total")
REFRESH = {"HX-Request": "true", "X-Pcrud-State": "x", "X-Pcrud-Newest": "x", "X-Pcrud-Hold": "1"}
READ_ONLY = (
    "taskrecord/",
    "csv/",
    "failures/",
    "locks/",
    "cluster/",
    "queue/",
    "report/",
    "insights/",
    "function/",
    "trio/",
    "files/1/",
    "change/",
    "raw/",
    "alerts/",
    "strip/",
    "health/",
)
PAGES = [str(pattern.name) for pattern in dashboard_urls()]
#: 286 ends the polling of an ended task.
ALLOWED = {200, 204, 286, 302, 400, 403, 404, 405, 414}


def encoded(value: str | bytes) -> str:
    return quote(value, safe="")


class Crawl:
    """Asks for addresses, and keeps those that are a server error."""

    def __init__(self, client: Client) -> None:
        self._client = client
        client.raise_request_exception = False
        self.errors: list[str] = []

    def ask(self, method: str, address: str, *args: object, **kwargs: object) -> None:
        if getattr(self._client, method)(address, *args, **kwargs).status_code not in ALLOWED:
            self.errors.append(f"{method} {address[:200]} {str(args)[:100]}")


@pytest.fixture
def crawl(boss, caplog) -> Crawl:
    caplog.set_level("CRITICAL")
    return Crawl(boss)


@pytest.fixture
def addresses(boss, manager, record_of, settings) -> list[str]:
    """The address of each page, of a real task where it needs one."""
    # The worker lives as long as the test.
    settings.POWERCRUD_SETTINGS = {**settings.POWERCRUD_SETTINGS, "DASHBOARD_HEARTBEAT_TIMEOUT": 3600}
    manager.launch_async_task(tasks.add, 1, task_key="ended", sync=True)
    manager.launch_async_task(tasks.add, 1, task_key="queued", group="trio", conflict_ids={"testapp.Project": {1}})
    # Without one the health address tells of an error.
    worker(1)
    pk = record_of("ended").pk
    arguments = {
        URL_NAME.format("export"): ["csv"],
        URL_NAME.format("group"): ["trio"],
        URL_NAME.format("group_action"): ["trio", "retry"],
        URL_NAME.format("download"): [pk, 1],
        URL_NAME.format("release"): [1],
        URL_NAME.format("delete_message"): ["default", "1.a"],
        URL_NAME.format("run_next"): ["default", "1.a"],
        URL_NAME.format("acknowledge"): [1],
        URL_NAME.format("start_test"): ["default"],
        URL_NAME.format("schedule"): [1, "run"],
    }
    with_a_task = {str(pattern.name) for pattern in dashboard_urls() if "pk" in pattern.pattern.converters}
    return [reverse(f"admin:{name}", args=arguments.get(name, [pk] if name in with_a_task else [])) for name in PAGES]


# django-tables2's own warning about a dot in "sort".
@pytest.mark.filterwarnings("ignore:Use '__':DeprecationWarning")
@pytest.mark.parametrize("hostile", HOSTILE)
def test_no_parameter_is_a_server_error(crawl, addresses, hostile):
    value = encoded(HOSTILE[hostile])
    for page, names in READ_BY.items():
        for name in names:
            crawl.ask("get", f"{TASKS}{page}{'' if '?' in page else '?'}{name}={value}")
    everything = "&".join(f"{name}={value}" for name in PARAMETERS)
    for address, headers in product(addresses, ({}, REFRESH)):
        crawl.ask("get", f"{address}?{everything}", headers=headers)
    assert crawl.errors == []


@pytest.mark.parametrize("hostile", HOSTILE)
def test_no_key_is_a_server_error(crawl, addresses, hostile):
    value = encoded(HOSTILE[hostile])
    tails = ("", "change/", "raw/", "edit/", "files/1/", "delete/", "history/")
    for address in chain(
        (f"{TASKS}{value}/{tail}" for tail in tails),
        (f"{TASKS}{place}/{value}/" for place in ("groups", "export", "locks", "schedules", "cluster")),
        (f"{TASKS}groups/{value}/retry/", f"{TASKS}groups/trio/{value}/", f"{TASKS}locks/{value}/release/"),
        (
            f"{TASKS}cluster/queue/{place}/run-next/"
            for place in (f"{value}/1.a", f"default/{value}", f"default/1.{value}")
        ),
        (f"{TASKS}1/files/{value}/", f"{CHANGELIST}background-tasks/?key={value}"),
        (f"{CHANGELIST}{value}/change/", f"/powercrud/async-progress/{value}/"),
    ):
        for method in ("get", "post"):
            crawl.ask(method, address)
    assert crawl.errors == []


@pytest.mark.parametrize("hostile", HOSTILE)
def test_no_field_is_a_server_error(crawl, addresses, hostile):
    value = HOSTILE[hostile]
    actions = [address for address in addresses if not address.endswith(READ_ONLY)]
    for address in actions:
        for name in FIELDS:
            body = f"{name}={encoded(value)}"
            crawl.ask("post", address, body, content_type="application/x-www-form-urlencoded")
    assert crawl.errors == []
    assert TaskRecord.objects.filter(task_name="ended").exists()


def surrogate() -> object:
    return "\ud800"


def huge_integer() -> object:
    return 10**5000


def cyclic_list() -> object:
    cycle: list[object] = []
    cycle.append(cycle)
    return cycle


def deeply_nested() -> object:
    nested: object = []
    for _level in range(300):
        nested = [nested]
    return nested


@pytest.mark.parametrize("argument", [surrogate, huge_integer, cyclic_list, deeply_nested])
def test_no_argument_is_a_server_error(crawl, manager, record_of, argument):
    manager.launch_async_task(tasks.echo, argument=argument(), task_key="odd", sync=True)
    pk = record_of("odd").pk
    for page in ("", "export/csv/", "export/json/", f"{pk}/change/", f"{pk}/raw/", f"{pk}/edit/"):
        crawl.ask("get", f"{TASKS}{page}")
    for page in (f"{pk}/edit/", f"{pk}/retry/"):
        crawl.ask("post", f"{TASKS}{page}", {"args": "[1]", "kwargs": "{}"})
    assert crawl.errors == []


@pytest.mark.parametrize("cookie", ["\x00", "9" * 400, "-1", "nan", "<b>"])
def test_no_cookie_is_a_server_error(boss, cookie):
    boss.cookies["pcrud_refresh"] = cookie
    assert boss.get(TASKS).status_code == 200
