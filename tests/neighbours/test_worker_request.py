"""What an action sees in the worker is what it would have seen in the request."""

from __future__ import annotations

from collections.abc import Callable
from zoneinfo import ZoneInfo

import pytest
from django.conf import settings as project_settings
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.http import HttpResponseRedirect
from django.test import Client
from django.utils import timezone, translation
from django_otp import DEVICE_ID_SESSION_KEY
from django_otp.plugins.otp_static.models import StaticDevice

from powercrud_dashboard.models import TaskRecord
from tests.clicks import TASKS, choose, last
from tests.neighbours.models import Invoice
from tests.services import wait_until
from tests.workers import deliver

# A worker closes the connections that a function has left in a transaction.
pytestmark = pytest.mark.django_db(transaction=True)

INVOICES = "/admin/neighbours/invoice/"
CONFIRMED = {"pcrud-confirmed": "1"}


def in_new_york(get_response):
    """A middleware that gives each user their time zone, as many projects have one."""

    def middleware(request):
        with timezone.override(ZoneInfo("America/New_York")):
            return get_response(request)

    return middleware


def refusing(get_response):
    """A middleware that lets nobody in."""
    return lambda request: HttpResponseRedirect("/login/")


class Noting:
    """A middleware with each kind of hook."""

    seen: list[str] = []

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        self.seen.append("before")
        response = self.get_response(request)
        self.seen.append(f"after {response.status_code}")
        return response

    def process_view(self, request, view, args, kwargs):
        self.seen.append(f"view {request.resolver_match.url_name}")


@pytest.fixture
def invoice(db: None) -> Invoice:
    return Invoice.objects.create(number="1")


def run_later() -> TaskRecord:
    """Run the queued task as a worker does, which has the project's own language and time zone."""
    translation.activate(project_settings.LANGUAGE_CODE)
    timezone.deactivate()
    deliver()
    return last()


@pytest.mark.parametrize(
    ("language", "field", "entered", "value"),
    [
        ("de", "day", "03.04.2026", "2026-04-03"),
        ("en-gb", "day", "05/04/2026", "2026-04-05"),
        ("en", "due", "2026-07-01 10:00", "2026-07-01 10:00:00-04:00"),
        ("de", "amount", "1234,50", "1234.50"),
    ],
)
def test_a_form_is_read_as_at_the_click(boss, invoice, settings, language, field, entered, value):
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, f"{__name__}.in_new_york"]
    fields = {**CONFIRMED, f"pcrud-{field}": entered}
    choose(boss, "bill", [invoice], INVOICES, **fields, headers={"accept-language": language})
    record = run_later()
    assert (record.status, record.result[field]) == ("success", value)


def test_the_request_is_that_of_the_click(boss, invoice, settings):
    settings.ALLOWED_HOSTS = ["first.example", "shop.example"]
    settings.FORCE_SCRIPT_NAME = "/sub"
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, f"{__name__}.in_new_york"]
    boss.post(
        f"{INVOICES}?q=1",
        {"action": "look_around", "_selected_action": [invoice.pk], "word": "a b"},
        headers={"host": "shop.example:8443", "accept-language": "de"},
        secure=True,
        REMOTE_ADDR="10.0.0.9",
    )
    settings.FORCE_SCRIPT_NAME = None
    record = run_later()
    assert record.status == "success"
    assert record.result == {
        "url": "https://shop.example:8443/x/",
        "is_secure": True,
        "path": f"/sub{INVOICES}",
        "path_info": INVOICES,
        "script_name": "/sub",
        "reversed": "/sub/admin/",
        "address": "10.0.0.9",
        "language": "de",
        "code": "de",
        "word": "Löschen",
        "time_zone": "America/New_York",
        "view": "admin:neighbours_invoice_changelist",
        "is_htmx": False,
        "user": "boss",
        "body": f"action=look_around&_selected_action={invoice.pk}&word=a+b",
        "session": {},
        "is_modified": False,
        "search": "1",
        "hint": "prepared for boss",
    }
    # The worker is as before.
    assert translation.get_language() == project_settings.LANGUAGE_CODE
    assert timezone.get_current_timezone_name() == "UTC"


def test_middleware_runs_around_the_action(boss, invoice, settings):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_WORKER_MIDDLEWARE": [f"{__name__}.Noting"]}
    choose(boss, "save_each", [invoice], INVOICES)
    Noting.seen.clear()
    assert run_later().status == "success"
    assert Noting.seen == ["before", "view neighbours_invoice_changelist", "after 200"]


def test_a_middleware_that_answers_itself_is_no_success(boss, invoice, settings):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_WORKER_MIDDLEWARE": [f"{__name__}.refusing"]}
    choose(boss, "save_each", [invoice], INVOICES)
    with pytest.raises(RuntimeError, match=r"302 /login/"):
        run_later()
    assert last().status == "failed"
    assert invoice.history.count() == 1


def test_a_middleware_runs_to_its_end_also_if_the_action_fails(boss, invoice, settings):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_WORKER_MIDDLEWARE": [f"{__name__}.Noting"]}
    choose(boss, "fail", [invoice], INVOICES)
    Noting.seen.clear()
    with pytest.raises(LookupError, match="as it always does"):
        run_later()
    assert last().error == "as it always does"
    # Else the next task of this process would run as this user, or for this tenant.
    assert Noting.seen == ["before", "view neighbours_invoice_changelist", "after 500"]


def test_history_knows_the_person(boss, invoice, settings):
    settings.POWERCRUD_SETTINGS = {
        "DASHBOARD_WORKER_MIDDLEWARE": ["simple_history.middleware.HistoryRequestMiddleware"]
    }
    choose(boss, "save_each", [invoice], INVOICES)
    run_later()
    assert str(invoice.history.first().history_user) == "boss"


@pytest.fixture
def with_one_time_passwords(settings):
    settings.POWERCRUD_SETTINGS = {
        "DASHBOARD_WORKER_MIDDLEWARE": ["django_otp.middleware.OTPMiddleware"],
        "DASHBOARD_WORKER_SESSION_KEYS": [DEVICE_ID_SESSION_KEY],
    }


def verify(client, user) -> None:
    device = StaticDevice.objects.create(user=user, name="paper")
    session = client.session
    session[DEVICE_ID_SESSION_KEY] = device.persistent_id
    session.save()


def test_a_site_with_one_time_passwords(boss, superuser, invoice, with_one_time_passwords):
    verify(boss, superuser)
    choose(boss, "visit", [invoice], "/otp/neighbours/invoice/")
    record = run_later()
    assert (record.status, record.done_count) == ("success", 1)


@pytest.mark.parametrize("is_verified", [True, False])
def test_who_edits_a_task_of_such_a_site_is_verified_by_their_own_session(
    boss, superuser, client_of, invoice, with_one_time_passwords, is_verified
):
    verify(boss, superuser)
    choose(boss, "bill", [invoice], "/otp/neighbours/invoice/", **CONFIRMED)
    record = run_later()
    editor = User.objects.create_superuser("editor")
    client = client_of(editor)
    if is_verified:
        verify(client, editor)
    values = {"task_args": "[]", "task_kwargs": '{"post": {"pcrud-day": ["2026-04-03"]}}'}
    client.post(f"{TASKS}{record.pk}/edit/", values)
    if not is_verified:
        with pytest.raises(PermissionDenied):
            run_later()
        assert last().error.startswith("editor has lost the permission")
        return
    assert (run_later().status, last().result["day"]) == ("success", "2026-04-03")
    assert list(record.events.get(event="retry").payload["changed_arguments"]) == ["post"]


@pytest.mark.cluster
def test_in_a_real_cluster(boss: Client, invoice: Invoice, cluster: Callable[[], None]) -> None:
    fields = {**CONFIRMED, "pcrud-day": "03.04.2026"}
    choose(boss, "bill", [invoice], INVOICES, **fields, headers={"accept-language": "de"})
    wait_until(lambda: last().is_finished, "the task has ended")
    assert (last().status, last().result["day"]) == ("success", "2026-04-03")
