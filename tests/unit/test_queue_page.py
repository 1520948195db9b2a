"""The messages in the queue: seen, deleted and moved to the front."""

from __future__ import annotations

import html
import re
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from django.conf import settings
from django.contrib.admin.models import LogEntry
from django.core.signing import Signer
from django.utils import timezone
from django_q.brokers import get_broker
from django_q.brokers.orm import ORM
from django_q.models import OrmQ
from django_q.signing import SignedPackage
from django_q.tasks import async_task

from powercrud_dashboard.engine import failure_texts
from powercrud_dashboard.engine import plain as plain_tasks
from powercrud_dashboard.models import ActiveTask, ConflictLock, TaskEvent, TaskRecord
from powercrud_dashboard.q2 import messages, observe
from tests.testapp import tasks
from tests.workers import claimed_elsewhere, meanwhile

pytestmark = pytest.mark.django_db

QUEUE = "/admin/powercrud_dashboard/taskrecord/cluster/queue/"
REDIS = "redis" in settings.Q_CLUSTER
NAME = settings.Q_CLUSTER["name"]


@pytest.fixture(autouse=True)
def _empty_queue(transactional_db) -> None:
    get_broker().delete_queue()


@pytest.fixture
def plain():
    """A message of django-q2's own."""
    async_task("tests.testapp.tasks.add", 2, task_name="plain one", group="night")


def shown(client, **parameters) -> str:
    return html.unescape(client.get(QUEUE, parameters).content.decode())


def message(position: int = 0) -> messages.Message:
    return messages.open_queue(NAME).slice(0, 50)[position]


def url(action: str, position: int = 0) -> str:
    return f"{QUEUE}{NAME}/{message(position).key}/{action}/"


def act(client, action: str, position: int = 0) -> str:
    return client.post(url(action, position), follow=True).content.decode()


def delivered_first() -> str:
    """Return the name of the message that a cluster takes now."""
    ((__, payload),) = get_broker().dequeue()
    return SignedPackage.loads(payload)["name"]


def take(position: int = 0) -> None:
    """Let a cluster have taken the message, as the ORM broker notes that."""
    OrmQ.objects.filter(pk=message(position).receipt).update(lock=timezone.now() + timedelta(seconds=60))


orm_only = pytest.mark.skipif(REDIS, reason="only the ORM broker keeps what a cluster has taken, and has receipts")


def test_messages_are_shown_with_their_task_and_who_launched_it(boss, manager, make_user, plain):
    name = manager.launch_async_task(tasks.add, 1, label="Re-price <all>", user=make_user("anna"))
    page = shown(boss)
    assert "<all>" not in boss.get(QUEUE).content.decode()
    record = TaskRecord.objects.get(task_name=name)
    assert f'/taskrecord/{record.pk}/change/" data-pcrud-row>Re-price <all></a>' in page
    assert "anna" in page
    assert page.count("tests.testapp.tasks.add") >= 2
    assert "Group: night" in page
    assert page.index("Group: night") < page.index("Re-price")
    assert page.count("Run next</button>") == 2


def test_the_page_refreshes_itself_and_is_reached_from_the_cluster_page(boss, plain):
    part = boss.get(QUEUE, headers={"hx-request": "true"}).content.decode()
    assert part.lstrip().startswith('<div id="pcrud-queue"')
    assert f'href="{QUEUE}?queue={NAME}"' in boss.get(QUEUE.removesuffix("queue/")).content.decode()


def test_an_empty_queue_says_so(boss):
    assert "No message is in this queue." in shown(boss)
    assert "There are no messages on this page any more." in shown(boss, page="7")


@pytest.mark.parametrize("page", ["0", "-1", "x", "9" * 30, "²", "\x00"])
def test_pages_that_can_not_be_are_no_error(boss, plain, page):
    assert boss.get(QUEUE, {"page": page}).status_code == 200


@pytest.mark.parametrize("name", ["no such queue", "\x00", "", "a" * 5000])
def test_queues_that_can_not_be_are_no_error(boss, name):
    assert boss.get(QUEUE, {"queue": name}).status_code == 200


def test_pages_are_bounded(boss, settings, plain):
    settings.POWERCRUD_SETTINGS = {"DASHBOARD_PAGE_SIZE": 2}
    for number in range(4):
        async_task("math.floor", number, task_name=f"floor {number}")
    first, last = shown(boss), shown(boss, page="3")
    assert first.count('<tr id="pcrud-message-') == 2
    assert 'rel="next"' in first
    assert last.count('<tr id="pcrud-message-') == 1
    assert 'rel="next"' not in last


def test_messages_that_can_not_be_read_are_shown_and_can_be_deleted(boss):
    get_broker().enqueue(Signer(key="somebody else's", salt="x").sign("abc"))
    get_broker().enqueue(SignedPackage.dumps(["no package"]))
    page = shown(boss)
    assert page.count("Unreadable message") == 2
    assert "It was not signed by this project" in page
    assert "It is no package of django-q2." in page
    assert "Run next</button>" not in page
    assert "What it was to run is lost with it." in boss.get(url("delete")).content.decode()
    assert "The message was deleted" in act(boss, "delete")
    act(boss, "delete")
    assert get_broker().queue_size() == 0


class Vanished:
    """Its class can't be imported any more where it is unpickled."""

    def __reduce__(self):
        return (_raise, ())


def _raise() -> None:
    raise ImportError("no such module")


def test_a_message_whose_arguments_can_not_be_loaded_harms_no_other(boss, plain):
    async_task("math.floor", Vanished())
    page = shown(boss)
    assert "ImportError: no such module" in page
    assert "Group: night" in page


class Unprintable:
    def __call__(self) -> None:
        """Do nothing."""

    def __repr__(self) -> str:
        raise RuntimeError("no text")


def test_a_callable_without_a_text_harms_no_other(boss, plain):
    async_task(Unprintable())
    page = shown(boss)
    assert "tests.unit.test_queue_page.Unprintable" in page
    assert "Group: night" in page
    plain_tasks.record_queued(observe.waiting(10))
    assert TaskRecord.objects.filter(func="tests.unit.test_queue_page.Unprintable").exists()


def test_a_message_of_a_queue_without_a_name_is_no_error(boss, plain):
    if not REDIS:
        OrmQ.objects.create(key="", payload="x", lock=timezone.now())
    assert "Group: night" in shown(boss, queue="")


class CreatingBroker(ORM):
    """Creates the queues that it is asked for, as that of SQS."""

    asked_for: list[str] = []

    def __init__(self, list_key: str) -> None:
        self.asked_for.append(list_key)
        super().__init__(list_key)


@orm_only
def test_looking_at_a_queue_does_not_create_it(boss, monkeypatch):
    monkeypatch.setattr("django_q.conf.Conf.BROKER_CLASS", f"{__name__}.CreatingBroker")
    assert "No message is in this queue." in shown(boss, queue="anything")
    assert "not in the queue any more" in boss.post(f"{QUEUE}anything/1.x/delete/", follow=True).content.decode()
    assert "anything" not in CreatingBroker.asked_for
    shown(boss)
    assert NAME in CreatingBroker.asked_for


def test_a_message_of_django_q2_is_deleted_after_a_question(boss, superuser, plain):
    assert "No worker runs it if its message is deleted." in boss.get(url("delete")).content.decode()
    assert get_broker().queue_size() == 1
    assert "The message was deleted: tests.testapp.tasks.add (plain one)" in act(boss, "delete")
    assert get_broker().queue_size() == 0
    entry = LogEntry.objects.get()
    assert (entry.user, entry.is_deletion(), entry.object_repr) == (
        superuser,
        True,
        "tests.testapp.tasks.add (plain one)",
    )


def test_an_observed_task_whose_message_is_deleted_is_cancelled(boss, superuser, plain):
    observed = TaskRecord.objects.create(
        task_name=message().task_id, label="Observed", source="django_q", manager_class=""
    )
    assert f'/taskrecord/{observed.pk}/change/" data-pcrud-row>Observed</a>' in shown(boss)
    act(boss, "delete")
    observed.refresh_from_db()
    assert observed.status == "cancelled"
    assert observed.events.get(event="cancel").actor == superuser


def test_deleting_the_message_of_a_task_cancels_it(boss, superuser, manager, make_projects):
    name = manager.launch_async_task(tasks.add, 1, label="Re-price", conflict_ids={"testapp.Project": make_projects(1)})
    assert "“Re-price” waits in the queue. It is cancelled" in boss.get(url("delete")).content.decode()
    assert "“Re-price” was cancelled." in act(boss, "delete")
    assert get_broker().queue_size() == 0
    assert not ActiveTask.objects.exists()
    assert not ConflictLock.objects.exists()
    record = TaskRecord.objects.get(task_name=name)
    assert record.status == "cancelled"
    assert record.events.get(event="cancel").actor == superuser


def test_the_message_of_a_running_task_is_not_deleted(boss, manager):
    name = manager.launch_async_task(tasks.add, 1)
    address = url("delete")
    claimed_elsewhere(name)
    assert "A cluster has taken the message meanwhile." in boss.post(address, follow=True).content.decode()
    assert ActiveTask.objects.get().cancel_requested_at is None
    assert get_broker().queue_size() == 1


@orm_only
def test_a_failed_task_that_django_q_runs_again_is_not_in_hand(boss, plain):
    cluster = "/admin/powercrud_dashboard/taskrecord/cluster/"
    assert "unless ack_failures is set" not in boss.get(cluster).content.decode()
    take()
    assert "unless ack_failures is set" in boss.get(cluster).content.decode()
    record = TaskRecord.objects.create(task_name=message().task_id, func="f", source="django_q", status="in_progress")
    assert "Taken</span>" in shown(boss)
    TaskRecord.objects.filter(pk=record.pk).update(status="failed")
    page = shown(boss)
    assert "Taken</span>" not in page
    assert "Is delivered again</span>" in page
    assert "after the “retry” of Q_CLUSTER" in page


def test_a_message_that_no_task_waits_for_is_left_over(boss, manager):
    name = manager.launch_async_task(tasks.add, 1)
    # The task ends without its message, as on a broker without receipts.
    ActiveTask.objects.update(queue_receipt="")
    manager.cancel_task(name)
    page = shown(boss)
    assert "Left over" in page
    assert "Run next</button>" not in page
    assert "a worker that gets it runs nothing" in boss.get(url("delete")).content.decode()
    act(boss, "delete")
    assert get_broker().queue_size() == 0
    assert TaskRecord.objects.get(task_name=name).status == "cancelled"


@orm_only
def test_a_message_that_a_cluster_has_taken_stays(boss, plain):
    delete, run_next = url("delete"), url("run-next")
    take()
    page = shown(boss)
    assert "<span>Taken</span>" in page
    assert "/delete/" not in page
    assert "Run next</button>" not in page
    for address in (delete, run_next):
        assert "A cluster has taken the message meanwhile." in boss.post(address, follow=True).content.decode()
    assert OrmQ.objects.count() == 1
    assert not LogEntry.objects.exists()


@orm_only
def test_a_message_that_is_taken_at_the_last_moment_stays(boss, plain):
    address = url("delete")
    taken = partial(OrmQ.objects.update, lock=timezone.now() + timedelta(seconds=60))
    with meanwhile(taken, before="DELETE FROM"):
        answer = boss.post(address, follow=True).content.decode()
    assert "A cluster has taken the message meanwhile." in answer
    assert OrmQ.objects.count() == 1


def _runs_long() -> dict[str, Any]:
    """Let a worker run the plain task for longer than the broker waits for its end; return its message."""
    ((__, payload),) = get_broker().dequeue()
    task = SignedPackage.loads(payload)
    plain_tasks.record_running(task, timezone.now())
    if REDIS:
        # As after a cluster that was stopped has handed it back.
        get_broker().enqueue(payload)
    OrmQ.objects.update(lock=timezone.now() - timedelta(seconds=1))
    return task


def test_the_message_of_a_plain_task_that_runs_stays(boss, plain):
    delete, run_next = url("delete"), url("run-next")
    _runs_long()
    page = shown(boss)
    assert "<span>Taken</span>" in page
    assert "/delete/" not in page
    for address in (delete, run_next):
        assert "A cluster has taken the message meanwhile." in boss.post(address, follow=True).content.decode()
    assert get_broker().queue_size() == 1
    assert TaskRecord.objects.get().status == "in_progress"


@pytest.mark.parametrize(("success", "result", "status"), [(True, 3, "success"), (False, "x : Traceback", "failed")])
def test_a_cancelled_plain_task_that_has_run_is_recorded_as_what_it_was(boss, plain, success, result, status):
    # A cluster has it in hand for so long that it seems to wait.
    task = message().content
    plain_tasks.record_queued([task])
    act(boss, "delete")
    record = TaskRecord.objects.get()
    assert record.status == "cancelled"
    ended = {**task, "success": success, "result": result, "stopped": timezone.now()}
    run = plain_tasks.Run(ended, timezone.now() - timedelta(seconds=1), "host", 1)
    assert plain_tasks.record_ends([run]) == 1
    record.refresh_from_db()
    assert (record.status, record.worker_host) == (status, "host")
    assert plain_tasks.record_ends([run]) == 0


def test_a_cancelled_plain_task_that_its_worker_has_stopped_stays_so(boss, plain):
    task = message().content
    plain_tasks.record_queued([task])
    act(boss, "delete")
    stopped = f"x : Traceback\n{failure_texts.CANCELLED}: x"
    run = plain_tasks.Run({**task, "success": False, "result": stopped, "stopped": timezone.now()})
    events = TaskEvent.objects.count()
    assert plain_tasks.record_ends([run]) == 0
    assert (TaskRecord.objects.get().status, TaskEvent.objects.count()) == ("cancelled", events)


@pytest.mark.skipif(not REDIS, reason="the ORM broker's message goes with the task")
def test_a_task_is_cancelled_also_if_the_broker_keeps_its_message(boss, manager, monkeypatch):
    name = manager.launch_async_task(tasks.add, 1, label="Re-price")
    address = url("delete")

    def away(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no broker")

    monkeypatch.setattr("redis.client.Redis.lrem", away)
    assert "“Re-price” was cancelled." in boss.post(address, follow=True).content.decode()
    assert get_broker().queue_size() == 1
    assert TaskRecord.objects.get(task_name=name).status == "cancelled"


def test_a_message_that_is_gone_is_said(boss, plain):
    address = url("delete")
    get_broker().purge_queue()
    for answer in (boss.get(address, follow=True), boss.post(address, follow=True)):
        assert "The message is not in the queue any more." in answer.content.decode()
    for key in ("0", "x", "1.abc", "9" * 40 + ".a"):
        assert boss.post(f"{QUEUE}{NAME}/{key}/delete/").status_code == 302


def test_run_next_moves_a_message_before_all_others(boss, superuser, plain):
    async_task("math.floor", 1, task_name="second")
    async_task("math.floor", 2, task_name="third")
    third = next(number for number in range(3) if message(number).name == "third")
    assert "is the next that a cluster takes." in act(boss, "run-next", third)
    assert delivered_first() == "third"
    assert LogEntry.objects.get().user == superuser


def test_run_next_keeps_a_task_true(boss, superuser, manager, plain):
    first = manager.launch_async_task(tasks.add, 1, label="First")
    name = manager.launch_async_task(tasks.add, 1, label="Urgent")
    position = next(number for number in range(3) if message(number).name == name)
    assert "“Urgent” is the next that a cluster takes." in act(boss, "run-next", position)
    event = TaskEvent.objects.get(event="run_next")
    assert (event.actor, event.record.task_name) == (superuser, name)
    assert list(ActiveTask.objects.order_by("queued_at").values_list("task_name", flat=True)) == [name, first]
    # It is neither lost in the queue nor left there when it ends.
    assert name not in manager.cleanup_completed_tasks()["cleaned"]
    assert delivered_first() == name
    manager.cancel_task(name)
    assert name not in {message(number).name for number in range(get_broker().queue_size())}


def test_several_are_moved_one_after_the_other(boss, manager):
    names = [manager.launch_async_task(tasks.add, number) for number in range(3)]
    for name in names[1:]:
        act(boss, "run-next", next(number for number in range(3) if message(number).name == name))
    assert {message(number).name for number in range(3)} == set(names)
    if not REDIS and OrmQ.objects.db == "default":
        receipts = set(ActiveTask.objects.values_list("queue_receipt", flat=True))
        assert receipts == {str(pk) for pk in OrmQ.objects.values_list("pk", flat=True)}


def test_what_waits_can_be_changed_also_right_after_another_was_moved(boss, manager):
    for number in range(3):
        async_task("math.floor", number, task_name=f"floor {number}")
    name = manager.launch_async_task(tasks.add, 1)
    positions = {message(number).name: number for number in range(4)}
    addresses = {(key, what): url(what, positions[key]) for key in positions for what in ("run-next", "delete")}
    for key in ("floor 0", "floor 1", name):
        assert "is the next that" in boss.post(addresses[key, "run-next"], follow=True).content.decode()
    # Found also at the address from before it was moved.
    assert "was deleted" in boss.post(addresses["floor 0", "delete"], follow=True).content.decode()
    assert "was deleted" in boss.post(addresses["floor 2", "delete"], follow=True).content.decode()
    assert "was cancelled" in boss.post(addresses[name, "delete"], follow=True).content.decode()
    assert [left.name for left in messages.open_queue(NAME).slice(0, 50)] == ["floor 1"]


@orm_only
def test_a_late_acknowledgement_harms_no_other_message(boss, manager):
    name = manager.launch_async_task(tasks.add, 1)
    act(boss, "run-next")
    broker = get_broker()
    ((receipt, __),) = broker.dequeue()
    manager.cancel_task(name)
    async_task("math.floor", 1, task_name="precious")
    act(boss, "run-next")
    broker.acknowledge(receipt)
    assert message().name == "precious"


def test_permissions_are_asked_for_each_message(client_of, make_user, manager, plain):
    own = make_user("own", "view_taskrecord")
    manager.launch_async_task(tasks.add, 1, user=own)
    keeper = client_of(make_user("keeper", "view_taskrecord", "delete_ormq", "change_ormq"))
    canceller = client_of(make_user("canceller", "view_taskrecord", "cancel_taskrecord"))
    assert client_of(make_user("nobody")).get(QUEUE).status_code == 403

    def allowed(client) -> list[tuple[str, bool]]:
        page = shown(client)
        return [
            (action, f'"{url(action, position)}"' in page) for position in (0, 1) for action in ("delete", "run-next")
        ]

    plain_only = [("delete", True), ("run-next", True), ("delete", False), ("run-next", False)]
    assert allowed(keeper) == plain_only
    assert allowed(canceller) == [("delete", False), ("run-next", False), ("delete", True), ("run-next", False)]
    assert [can for _action, can in allowed(client_of(own))] == [False, False, True, True]
    assert keeper.post(url("delete", 1)).status_code == 403
    assert keeper.post(url("run-next", 1)).status_code == 403
    assert canceller.post(url("delete", 0)).status_code == 403
    assert get_broker().queue_size() == 2


@orm_only
def test_queues_that_no_cluster_of_the_settings_reads_are_named(boss):
    async_task("math.floor", 1, cluster="forgotten & lost")
    page = shown(boss, queue="forgotten & lost")
    assert "math.floor" in page
    assert re.search(r'aria-current="page">forgotten & lost</a>', page)


def test_a_broker_that_is_away_is_said(boss, monkeypatch):
    def away(*args, **kwargs):
        raise ConnectionError("no broker")

    monkeypatch.setattr("django_q.brokers.orm.ORM.get_connection", staticmethod(away))
    monkeypatch.setattr("django_q.brokers.redis_broker.Redis.get_connection", staticmethod(away))
    assert "The broker can't be reached." in shown(boss)
