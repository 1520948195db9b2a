"""Who may open and do what: one row for each URL, and none without a row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import Permission
from django.db import transaction
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from django_q.brokers import get_broker
from django_q.models import Schedule

from powercrud_dashboard.dashboard.urls import URL_NAME, dashboard_urls
from powercrud_dashboard.engine import smoke
from powercrud_dashboard.engine.files import keep_result
from powercrud_dashboard.models import Alert, ConflictLock, TaskEvent, TaskRecord
from powercrud_dashboard.q2.messages import open_queue
from tests.alerting import worker
from tests.conftest import empty_caches
from tests.testapp import tasks

pytestmark = pytest.mark.django_db

PREFIX = URL_NAME.format("")
QUEUE = settings.Q_CLUSTER["name"]
ALL_PERMISSIONS = {
    "view_taskrecord",
    "change_taskrecord",
    "delete_taskrecord",
    "retry_taskrecord",
    "dismiss_taskrecord",
    "cancel_taskrecord",
    "pause_taskrecord",
    "pause_queue",
    "view_conflictlock",
    "release_conflictlock",
    "change_schedule",
    "acknowledge_alert",
}


@dataclass(frozen=True)
class Row:
    """What a URL takes: its methods, the objects in it, and the permissions that it is refused without."""

    methods: tuple[str, ...]
    needs: tuple[str, ...] = ()
    #: What the URL is about: "ended", "failed", "dismissed", "queued", "lock" or "schedule" and further arguments.
    about: tuple[str, ...] = ()
    data: tuple[tuple[str, str], ...] = ()


ACCESS = {
    "changelist": Row(("get",)),
    "failures": Row(("get",)),
    "insights": Row(("get",), needs=("view_taskrecord",)),
    "function": Row(("get",), needs=("view_taskrecord",), data=(("func", "tests.testapp.tasks.add"),)),
    "export": Row(("get",), about=("", "csv")),
    "change": Row(("get",), about=("ended",)),
    "download": Row(("get",), about=("ended", "file")),
    "group": Row(("get",), about=("", "trio")),
    "group_action": Row(("post",), needs=("cancel_taskrecord",), about=("", "trio", "cancel")),
    "retry_objects": Row(("post",), needs=("retry_taskrecord",), about=("failed",)),
    "raw": Row(("get",), about=("ended",)),
    "log": Row(("get",), about=("ended",)),
    "suggestions": Row(("get",)),
    "refresh": Row(("post",)),
    "tray": Row(("get",)),
    "seen": Row(("post",)),
    "notifications": Row(("get", "post")),
    "bulk": Row(("post",), needs=("retry_taskrecord",), data=(("action", "retry"),)),
    "retry": Row(("post",), needs=("retry_taskrecord",), about=("failed",)),
    "dismiss": Row(("post",), needs=("dismiss_taskrecord",), about=("failed",)),
    "reopen": Row(("post",), needs=("dismiss_taskrecord",), about=("dismissed",)),
    "edit": Row(("get", "post"), needs=("retry_taskrecord", "change_taskrecord"), about=("ended",)),
    "cancel": Row(("post",), needs=("cancel_taskrecord",), about=("queued",)),
    "pause": Row(("post",), needs=("pause_taskrecord",), about=("queued",)),
    "resume": Row(("post",), needs=("pause_taskrecord",), about=("paused",)),
    "pause_queue": Row(("post",), needs=("pause_queue",), data=(("kind", "queue"), ("name", "slow"))),
    "resume_queue": Row(("post",), needs=("pause_queue",), data=(("kind", "queue"), ("name", "slow"))),
    "run_now": Row(("post",), needs=("retry_taskrecord",), about=("queued",)),
    "locks": Row(("get",), needs=("view_conflictlock",)),
    "release": Row(("get", "post"), needs=("release_conflictlock",), about=("lock",)),
    "cluster": Row(("get",), needs=("view_taskrecord",)),
    "queue": Row(("get",), needs=("view_taskrecord",)),
    "delete_message": Row(
        ("get", "post"), needs=("view_taskrecord", "cancel_taskrecord"), about=("", QUEUE, "message")
    ),
    "run_next": Row(("post",), needs=("view_taskrecord", "retry_taskrecord"), about=("", QUEUE, "message")),
    "start_test": Row(("post",), needs=("view_taskrecord", "retry_taskrecord"), about=("", QUEUE)),
    "test_report": Row(("get",), needs=("view_taskrecord",), about=("smoke",)),
    "health": Row(("get",), needs=("view_taskrecord",)),
    "alerts": Row(("get",), needs=("view_taskrecord",)),
    "alert_strip": Row(("get",), needs=("view_taskrecord",)),
    "acknowledge": Row(("post",), needs=("acknowledge_alert",), about=("alert",)),
    "schedules": Row(("get",), needs=("view_taskrecord",)),
    "schedule": Row(("post",), needs=("view_taskrecord", "change_schedule"), about=("schedule", "run")),
}
#: The other rows of the bulk page: an action of its own for each permission.
BULK = {
    "retry": "retry_taskrecord",
    "dismiss": "dismiss_taskrecord",
    "reopen": "dismiss_taskrecord",
    "cancel": "cancel_taskrecord",
    "pause": "pause_taskrecord",
    "resume": "pause_taskrecord",
    "delete": "delete_taskrecord",
}
TASKS = ("ended", "failed", "dismissed", "paused", "queued")
EVERY_METHOD = [(name, method) for name, row in ACCESS.items() for method in row.methods]


@pytest.fixture
def things(manager, record_of, make_user, settings) -> dict[str, Any]:
    """One of each thing that a URL can be about; the tasks belong to somebody else."""
    # The worker lives as long as the test.
    settings.POWERCRUD_SETTINGS = {**settings.POWERCRUD_SETTINGS, "DASHBOARD_HEARTBEAT_TIMEOUT": 3600}
    get_broker().delete_queue()
    owner = make_user("owner")
    manager.launch_async_task(tasks.add, 1, user=owner, task_key="ended", sync=True)
    for name in ("failed", "dismissed"):
        with pytest.raises(ValueError, match="as ever"):
            manager.launch_async_task(tasks.fail, "as ever", user=owner, task_key=name, sync=True)
    manager.dismiss_failure("dismissed")
    manager.launch_async_task(tasks.add, 1, user=owner, task_key="paused")
    manager.pause_task("paused")
    manager.launch_async_task(tasks.add, 1, user=owner, task_key="queued", conflict_ids={"testapp.Project": {1}})
    manager.launch_async_task(tasks.add, 1, user=owner, group="trio")
    smoke.start(manager, "", "somebody")
    # Without one the health address tells of an error.
    worker(1)
    alert = Alert.objects.create(kind="oldest_wait", subject=QUEUE, details={"seconds": 60})
    kept = keep_result("ended", "names.csv", "text/csv", [b"a"])
    schedule = Schedule.objects.create(func="tests.testapp.tasks.add", args="1", next_run=timezone.now())
    return {
        "ended": record_of("ended").pk,
        **{name: record_of(name).pk for name in ("failed", "dismissed", "paused", "queued")},
        "lock": ConflictLock.objects.get().pk,
        "schedule": schedule.pk,
        "alert": alert.pk,
        "file": kept.pk,
        "smoke": TaskRecord.objects.get(group="pcrud-test").pk,
        "message": next(item.key for item in open_queue(QUEUE).slice(0, 10) if item.name == "queued"),
    }


def address(name: str, things: dict[str, Any], namespace: str = "admin") -> str:
    about = ACCESS[name].about
    args = [things.get(item, item) for item in about if item]
    return reverse(f"{namespace}:{PREFIX}{name}", args=args)


def send(client: Client, name: str, method: str, things: dict[str, Any], namespace: str = "admin") -> int:
    return getattr(client, method)(address(name, things, namespace), dict(ACCESS[name].data)).status_code


def test_each_url_has_a_row():
    assert {str(pattern.name).removeprefix(PREFIX) for pattern in dashboard_urls()} == set(ACCESS)


@contextmanager
def undone() -> Iterator[None]:
    """Undo what the block does to the database: the things of a test serve for many requests."""
    with transaction.atomic():
        yield
        transaction.set_rollback(True)
    empty_caches()


@pytest.mark.parametrize("namespace", ["admin", "powercrud_dashboard"])
def test_nobody_but_staff_comes_in(client, client_of, make_user, things, namespace):
    superuser = make_user("outsider", is_staff=False, is_superuser=True)
    before = facts()
    for name, method in EVERY_METHOD:
        for stranger in (client, client_of(superuser)):
            answer = getattr(stranger, method)(address(name, things, namespace), dict(ACCESS[name].data))
            # Programs are not sent to a login page.
            refused = (401, 403) if name == "health" else (403,)
            assert answer.status_code in (302, *refused), (name, method)
            assert answer.status_code in refused or "login" in answer["Location"], (name, method)
            assert facts() == before, (name, method)


@pytest.mark.parametrize("namespace", ["admin", "powercrud_dashboard"])
def test_the_needed_permissions_are_enough(client_of, make_user, things, namespace):
    for name, method in EVERY_METHOD:
        with undone():
            allowed = client_of(make_user("allowed", "view_taskrecord", *ACCESS[name].needs))
            assert send(allowed, name, method, things, namespace) in (200, 302), (name, method)


def test_without_one_of_them_it_is_refused(client_of, make_user, things):
    before = facts()
    for name, method in EVERY_METHOD:
        for missing in ACCESS[name].needs:
            with undone():
                almost = client_of(make_user("almost", *(ALL_PERMISSIONS - {missing})))
                assert send(almost, name, method, things) == 403, (name, method, missing)
                assert facts() == before, (name, method, missing)


@pytest.mark.parametrize("action", BULK)
def test_each_bulk_action_has_its_permission(client_of, make_user, things, action):
    fields = {"action": action, "selected": [things[name] for name in TASKS], "confirmed": "yes"}
    almost = client_of(make_user("almost", *(ALL_PERMISSIONS - {BULK[action]})))
    before = facts()
    assert almost.post(address("bulk", things), fields).status_code == 403
    assert facts() == before
    allowed = client_of(make_user("allowed", "view_taskrecord", BULK[action]))
    assert allowed.post(address("bulk", things), fields).status_code == 302
    assert facts() != before


OWN = [(name, row.about[0]) for name, row in ACCESS.items() if len(row.needs) == 1 and set(row.about) & set(TASKS)]


@pytest.mark.parametrize(("name", "about"), OWN)
def test_launchers_need_no_permission_for_their_own_tasks(client_of, make_user, things, settings, name, about):
    clerk = make_user("clerk")
    TaskRecord.objects.filter(pk=things[about]).update(user=clerk)
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_MANAGE_OWN_TASKS": False}
    assert send(client_of(clerk), name, "post", things) == 403
    settings.POWERCRUD_SETTINGS = {}
    assert send(client_of(clerk), name, "post", things) == 302


@pytest.mark.parametrize(("action", "about"), [("retry", "failed"), ("dismiss", "failed"), ("cancel", "queued")])
def test_so_do_bulk_actions_and_groups(client_of, make_user, things, settings, action, about):
    clerk = make_user("clerk", "view_taskrecord")
    TaskRecord.objects.filter(pk=things[about]).update(user=clerk)
    mine_and_others = {"action": action, "selected": [things[name] for name in TASKS], "confirmed": "yes"}
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_MANAGE_OWN_TASKS": False}
    before = facts()
    assert client_of(clerk).post(address("bulk", things), mine_and_others).status_code == 403
    assert facts() == before
    settings.POWERCRUD_SETTINGS = {}
    assert client_of(clerk).post(address("bulk", things), mine_and_others).status_code == 302
    assert facts() != before
    group = reverse(f"admin:{PREFIX}group_action", args=["trio", "cancel"])
    assert client_of(clerk).post(group).status_code == 403
    TaskRecord.objects.filter(group="trio").update(user=clerk)
    assert client_of(clerk).post(group).status_code == 302
    assert TaskRecord.objects.get(group="trio").status == "cancelled"


def test_other_peoples_tasks_are_out_of_reach_without_the_view_permission(client_of, make_user, things):
    blind = client_of(make_user("blind", *(ALL_PERMISSIONS - {"view_taskrecord"})))
    before = facts()
    for name, method in EVERY_METHOD:
        if set(ACCESS[name].about) & set(TASKS):
            answer = getattr(blind, method)(address(name, things))
            # Buttons lead back to the list, with a message; pages are not found.
            led_back = answer.status_code == 302 and answer["Location"] == address("changelist", things)
            assert answer.status_code == 404 or led_back, (name, method)
            assert facts() == before, (name, method)


@pytest.mark.parametrize(("name", "method"), [("group", "get"), ("group_action", "post")])
def test_other_peoples_groups_are_not_there(client_of, make_user, things, name, method):
    blind = client_of(make_user("blind", *(ALL_PERMISSIONS - {"view_taskrecord"})))
    before = facts()
    assert getattr(blind, method)(address(name, things)).status_code == 404
    assert facts() == before


@pytest.mark.parametrize("action", BULK)
def test_other_peoples_tasks_are_no_part_of_a_bulk_action(client_of, make_user, things, action):
    blind = client_of(make_user("blind", *(ALL_PERMISSIONS - {"view_taskrecord"})))
    before = facts()
    for chosen in ({"selected": list(things.values())}, {"all": "1"}):
        blind.post(address("bulk", things), {"action": action, "confirmed": "yes", **chosen})
    assert facts() == before


def test_pages_change_nothing(boss, things):
    before = facts()
    for name, row in ACCESS.items():
        if "post" not in row.methods:
            assert boss.post(address(name, things)).status_code == 405, name
            boss.get(address(name, things))
            assert facts() == before, name


def test_actions_are_not_done_by_a_link(boss, things):
    before = facts()
    for name, row in ACCESS.items():
        if "get" not in row.methods:
            assert boss.get(address(name, things)).status_code == 405, name
            assert facts() == before, name


def test_other_methods_are_not_known(boss, things):
    for name in ACCESS:
        for method in ("put", "patch", "delete", "trace"):
            assert getattr(boss, method)(address(name, things)).status_code == 405, (name, method)


@pytest.mark.parametrize("namespace", ["admin", "powercrud_dashboard"])
def test_actions_take_a_csrf_token(superuser, things, namespace):
    client = Client(enforce_csrf_checks=True)
    client.force_login(superuser)
    before = facts()
    for name, row in ACCESS.items():
        if "post" in row.methods:
            assert send(client, name, "post", things, namespace) == 403, name
            assert facts() == before, name


def facts() -> list[object]:
    """Return what any of these pages could change."""
    return [
        list(TaskRecord.objects.order_by("pk").values_list("pk", "status", "resolution")),
        list(TaskEvent.objects.order_by("pk").values_list("pk", "event")),
        list(ConflictLock.objects.values_list("pk", flat=True)),
        list(Schedule.objects.values_list("task", "next_run")),
        list(Alert.objects.values_list("pk", "acknowledged_at", "resolved_at")),
    ]


def test_the_permissions_exist(db):
    assert set(Permission.objects.filter(codename__in=ALL_PERMISSIONS).values_list("codename", flat=True)) == (
        ALL_PERMISSIONS
    )
