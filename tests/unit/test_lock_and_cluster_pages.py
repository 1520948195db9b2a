from __future__ import annotations

import html
import re
import socket
from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.core.cache import cache
from django.core.cache.backends.locmem import LocMemCache
from django.db.models import F
from django.db.models.functions import Now
from django.utils import timezone
from django_q.brokers import get_broker
from django_q.signing import SignedPackage
from django_q.status import Stat, Status

from powercrud_dashboard.models import ActiveTask, Alert, ConflictLock, TaskRecord, WorkerProcess
from powercrud_dashboard.q2 import queue
from tests.services import wait_until
from tests.testapp import tasks
from tests.workers import claimed_elsewhere, deliver, meanwhile, silence

pytestmark = pytest.mark.django_db

BASE = "/admin/powercrud_dashboard/taskrecord/"
LOCKS = f"{BASE}locks/"
CLUSTER = f"{BASE}cluster/"


@pytest.fixture
def held(manager, make_projects, record_of):
    """A task that holds a project; its record."""
    (project,) = make_projects(1)
    name = manager.launch_async_task(tasks.add, 1, label="Holder", conflict_ids={"testapp.Project": [project.pk]})
    return record_of(name)


def release_page() -> str:
    return f"{LOCKS}{ConflictLock.objects.get().pk}/release/"


def test_every_lock_is_shown_with_its_object_and_holder(boss, held):
    page = boss.get(LOCKS).content.decode()
    pk = ConflictLock.objects.get().object_id
    assert f'<a href="/admin/testapp/project/{pk}/change/">Project {pk}</a>' in page
    assert f'<a href="{BASE}{held.pk}/change/" data-pcrud-row>Holder</a>' in page
    assert "when the task ends" in page


def test_a_lock_is_released_by_the_name_that_the_list_shows(client_of, make_user, boss, manager, make_projects):
    (project,) = make_projects(1)
    chosen = {"conflict_ids": {"testapp.Project": [project.pk]}, "affected_objects": [project]}
    manager.launch_async_task(tasks.add, 1, label="Holder", **chosen)
    question = boss.get(release_page()).content.decode()
    assert f"{project} is locked by “<a " in question
    assert ">Holder</a>”." in question
    # Who may not see the task gets no link to it.
    other = client_of(make_user("releaser", "view_conflictlock", "release_conflictlock"))
    assert f"{project} is locked by “Holder”." in other.get(release_page()).content.decode()
    answer = boss.post(release_page(), follow=True).content.decode()
    assert f"The lock on {project} was released." in answer


def test_reservations_are_shown_with_their_expiry(boss, manager):
    manager.add_conflict_ids("my-reservation", {"no.such_model": {"a"}})
    page = boss.get(LOCKS).content.decode()
    assert "my-reservation" in page
    assert "no.such_model a" in page
    assert "when the task ends" not in page


@pytest.mark.parametrize(
    ("words", "is_found"), [("holder", True), ("testapp", True), ("somebody", False), ("testapp holder", True)]
)
def test_locks_can_be_searched(boss, held, words, is_found):
    page = boss.get(LOCKS, {"q": words}).content.decode()
    assert (">Holder</a>" in page) is is_found
    assert ("No lock matches the search." in page) is not is_found
    assert "There are no locks." not in page


@pytest.mark.parametrize(
    "parameters",
    [{"q": "\x00"}, {"page": "99999999999999999999"}, {"page": "0"}, {"page": "x"}, {"per_page": "9" * 20}],
)
def test_locks_that_can_not_be_there_are_no_error(boss, held, parameters):
    assert boss.get(LOCKS, parameters).status_code == 200


def test_one_row_for_each_holder_names_its_objects_and_when_they_are_free(boss, manager, make_projects, make_user):
    projects = make_projects(6)
    conflict_ids = {"testapp.Project": projects}
    name = manager.launch_async_task(tasks.add, 1, label="Re-price", user=make_user("anna"), conflict_ids=conflict_ids)
    record = TaskRecord.objects.get(task_name=name)
    for entry in record.objects_worked_on.all():
        entry.text = f"Anvil no. {entry.object_id}"
        entry.save()
    claimed_elsewhere(name)
    TaskRecord.objects.filter(pk=record.pk).update(status="in_progress", started_at=timezone.now())
    ActiveTask.objects.update(started_at=Now() - timedelta(minutes=30))
    manager.update_progress(name, current=3, total=4)
    page = boss.get(LOCKS).content.decode().replace("\xa0", " ")
    assert page.count("data-pcrud-row") == 1
    assert re.search(r"about 10 min (\d s )?left", page)
    assert "anna" in page
    assert page.count("Anvil no. ") >= 6
    assert page.index("Anvil no.") < page.index("All objects")
    for words in ("anvil", f"{projects[4].pk}", "re-price", "anna", "project"):
        assert boss.get(LOCKS, {"q": words}).content.decode().count("data-pcrud-row") == 1
    found = boss.get(LOCKS, {"q": f"no. {projects[4].pk}"}).content.decode()
    assert f"Anvil no. {projects[4].pk}" in found
    assert f"Anvil no. {projects[0].pk}<" not in found


@pytest.mark.parametrize("sort", ["object_id", "-object_id", "holder", "-locked_at", "expires_at"])
def test_locks_can_be_sorted(boss, held, sort):
    assert boss.get(LOCKS, {"sort": sort}).status_code == 200


def test_releasing_asks_first_and_says_what_it_means(boss, held):
    page = boss.get(release_page()).content.decode()
    assert f'locked by “<a href="{BASE}{held.pk}/change/">Holder</a>”' in page
    assert "This task is queued" in page
    claimed_elsewhere(held.task_name, host="x", pid=1)
    assert "This task is running" in boss.get(release_page()).content.decode()
    assert ConflictLock.objects.exists()


def test_a_released_lock_is_gone_and_recorded_with_who_did_it_and_why(boss, superuser, held):
    assert 'name="note"' in boss.get(release_page()).content.decode()
    response = boss.post(release_page(), {"note": " the host is gone "}, follow=True)
    assert "was released" in response.content.decode()
    assert not ConflictLock.objects.exists()
    assert ActiveTask.objects.filter(task_name=held.task_name).exists()
    event = held.events.get(event="release")
    assert event.actor == superuser
    assert event.message.startswith("Project ")
    assert event.message.endswith(": the host is gone")


def test_a_released_reservation_is_gone_with_its_last_lock(boss, manager):
    manager.add_conflict_ids("forgotten", {"testapp.Project": {1}})
    # A reservation has no timeline that would keep a note.
    assert 'name="note"' not in boss.get(release_page()).content.decode()
    boss.post(release_page())
    assert not ActiveTask.objects.exists()


def test_a_lock_that_is_gone_already_is_said(boss):
    response = boss.post(f"{LOCKS}999/release/", follow=True)
    assert "The lock was already released." in response.content.decode()
    assert response.redirect_chain[-1][0] == LOCKS


def test_a_lock_that_has_passed_to_another_is_not_released(manager, held):
    seen = ConflictLock.objects.select_related("active_task").get()
    manager.cancel_task(held.task_name)
    manager.add_conflict_ids("other", {"testapp.Project": {seen.object_id}})
    assert not manager.release_conflict_lock(seen)
    assert ConflictLock.objects.exists()


def test_locks_are_for_who_may_view_and_released_by_who_may(client_of, make_user, held):
    nobody, viewer, releaser = (
        client_of(make_user("nobody")),
        client_of(make_user("viewer", "view_conflictlock")),
        client_of(make_user("releaser", "view_conflictlock", "release_conflictlock")),
    )
    assert nobody.get(LOCKS).status_code == 403
    page = viewer.get(LOCKS).content.decode()
    assert "/release/" not in page
    # Neither the object's nor the task's page is open to this person, so there is no link.
    assert "<a href" not in page[page.index("<tbody>") : page.index("</tbody>")]
    assert viewer.get(release_page()).status_code == viewer.post(release_page()).status_code == 403
    assert "/release/" in releaser.get(LOCKS).content.decode()
    assert releaser.post(release_page()).status_code == 302


def test_the_pages_link_to_those_that_one_may_open(client_of, make_user, superuser):
    def linked(user: User) -> set[str]:
        page = client_of(user).get(BASE).content.decode()
        return {address for address in (LOCKS, CLUSTER) if f'href="{address}"' in page}

    assert linked(superuser) == {LOCKS, CLUSTER}
    assert linked(make_user("viewer", "view_taskrecord")) == {CLUSTER}
    assert linked(make_user("nobody")) == set()


def test_the_cluster_page_shows_queues_and_schedules(boss, held):
    page = boss.get(CLUSTER).content.decode()
    assert "1 waiting, 0 unacknowledged" in page
    assert "pcrud_schedule_cleanup" in page
    assert client_gets_part(boss, CLUSTER)


def client_gets_part(client, address: str) -> bool:
    part = client.get(address, headers={"hx-request": "true"}).content.decode()
    return part.lstrip().startswith("<div") and "<html" not in part


def test_the_cluster_page_is_for_who_may_view_tasks(client_of, make_user):
    assert client_of(make_user("nobody")).get(CLUSTER).status_code == 403
    assert client_of(make_user("viewer", "view_taskrecord")).get(CLUSTER).status_code == 200


def test_without_worker_processes_the_page_says_so(boss):
    assert "There are no worker processes." in boss.get(CLUSTER).content.decode()


@pytest.mark.parametrize("page", [BASE, CLUSTER])
def test_without_a_cluster_the_pages_say_how_to_start_one(boss, page):
    cache.clear()
    assert "python manage.py qcluster" in boss.get(page).content.decode()


def test_a_task_in_a_queue_without_a_worker_says_so_wherever_it_is_shown(
    client_of, make_user, manager, held, record_of
):
    """It is the next one there, and would never start."""
    WorkerProcess.objects.create(identity="a", host="there", pid=17, cluster=queue.current_cluster())
    owner = make_user("owner", "view_project")
    objects = {"testapp.Project": ["17"]}
    lonely = manager.launch_async_task(
        tasks.add, 1, cluster="lonely", group="some", user=owner, label="Lonely", object_ids=objects
    )
    client = client_of(owner)
    for address in (BASE, f"{BASE}{record_of(lonely).pk}/change/", f"{BASE}groups/some/", "/admin/testapp/project/"):
        page = client.get(address).content.decode()
        assert "Lonely" in page
        assert "No worker runs for the queue lonely" in page
        assert "Next in the queue" not in page
    page = client_of(make_user("viewer", "view_taskrecord")).get(f"{BASE}{held.pk}/change/").content.decode()
    assert "Next in the queue" in page


def test_the_cluster_page_shows_a_queue_without_a_worker(boss, manager):
    WorkerProcess.objects.create(identity="a", host="there", pid=17, cluster=queue.current_cluster())
    manager.launch_async_task(tasks.add, 1)
    assert "No worker runs for the queue" not in boss.get(CLUSTER).content.decode()
    manager.launch_async_task(tasks.add, 1, cluster="lonely")
    ActiveTask.objects.filter(cluster="lonely").update(queued_at=timezone.now() - timedelta(hours=5))
    page = boss.get(CLUSTER).content.decode().replace("\xa0", " ")
    name = queue.current_cluster()
    own, lonely = re.findall(rf"<dt>(?:{name}|lonely)</dt>.*?</dd>", page, re.S)
    assert ("1 waiting" in own, "5 h" in own, "No worker runs for" in own) == (True, False, False)
    assert ("1 waiting" in lonely, "oldest 5 h" in lonely) == (True, True)
    assert "No worker runs for the queue lonely" in lonely


def test_a_task_that_waits_for_its_retry_does_not_wait_in_the_queue(boss, manager):
    manager.launch_async_task(tasks.add, 1)
    ActiveTask.objects.update(queued_at=timezone.now() - timedelta(hours=5))
    assert "5 h" in boss.get(CLUSTER).content.decode().replace("\xa0", " ")
    ActiveTask.objects.update(next_run_at=timezone.now() + timedelta(hours=1))
    assert "5 h" not in boss.get(CLUSTER).content.decode().replace("\xa0", " ")


def test_a_worker_that_sends_heartbeats_is_a_running_cluster_whatever_the_cache_says(boss):
    cache.clear()
    worker = WorkerProcess.objects.create(identity="a", host="there", pid=17, cluster="default")
    assert "No cluster is running" not in boss.get(BASE).content.decode()
    page = boss.get(CLUSTER).content.decode()
    assert "No cluster is running" not in page
    assert "Process 17 on there (default):" in page
    assert "idle" in page
    silence(pk=worker.pk)
    page = boss.get(CLUSTER).content.decode()
    assert "No cluster is running" in page
    assert "No heartbeat" in page
    assert "idle" not in page


@pytest.fixture
def wrong_clock(monkeypatch) -> None:
    """Let the clock of this host be an hour ahead of the database's."""
    right = timezone.now
    monkeypatch.setattr(timezone, "now", lambda: right() + timedelta(hours=1))


@pytest.mark.django_db(transaction=True)
def test_pages_tell_times_by_the_databases_clock(boss, manager, wrong_clock):
    name = manager.launch_async_task(tasks.add, 1, label="Running", conflict_ids={"testapp.Project": {1}})
    claimed_elsewhere(name)
    manager.launch_async_task(tasks.add, 2, label="Queued")
    record = TaskRecord.objects.get(task_name=name)
    for address in (CLUSTER, LOCKS, BASE, f"{BASE}{record.pk}/change/"):
        page = boss.get(address).content.decode()
        assert "under 1 s" in page or re.search(r"\b\d+\xa0s\b", page), address
        told = re.sub(r"<p class=.pcrud-notice.*?</p>", "", page, flags=re.S)
        assert "1\xa0h" not in told, address


@pytest.mark.django_db(transaction=True)
def test_nothing_is_still_to_come_for_a_web_host_whose_clock_is_late(boss, manager, make_projects, monkeypatch):
    (project,) = make_projects(1)
    with pytest.raises(ValueError, match="no good"):
        manager.launch_async_task(
            tasks.fail_if, "no good", fails=True, sync=True, conflict_ids={"testapp.Project": [project]}
        )
    Alert.objects.create(kind="oldest_wait", subject="reports", details={"seconds": 1_200})
    boss.post(f"{BASE}cluster/pause/", {"kind": "queue", "name": "reports"})
    right = timezone.now
    monkeypatch.setattr(timezone, "now", lambda: right() - timedelta(hours=1))
    pages = [
        boss.get(CLUSTER),
        boss.get(f"/admin/testapp/project/{project.pk}/change/"),
        boss.get(f"{BASE}function/", {"func": "tests.testapp.tasks.fail_if"}),
        boss.post(f"{BASE}bulk/", {"action": "retry", "selected": [TaskRecord.objects.get().pk]}),
    ]
    for page in pages:
        times = re.findall(r"<time [^>]*>([^<]*)</time>", page.content.decode())
        assert times
        assert not [time for time in times if time.startswith("in ")], page.request["PATH_INFO"]


def test_hosts_whose_clock_is_wrong_are_named(boss, wrong_clock):
    for host, seconds in (("behind", -8), ("ahead", 7), ("right", 4)):
        WorkerProcess.objects.create(identity=host, host=host, pid=1, cluster="default")
        WorkerProcess.objects.filter(pk=host).update(clock_at=F("heartbeat_at") + timedelta(seconds=seconds))
    page = boss.get(CLUSTER).content.decode().replace("\xa0", " ")
    assert "The clock of behind is 8 s behind the database’s." in page
    assert "The clock of ahead is 7 s ahead of the database’s." in page
    assert "The clock of right is" not in page
    assert f"The clock of {socket.gethostname()} is 1 h ahead of the database’s." in page


def test_a_heartbeat_tells_the_clock_of_its_host(wrong_clock):
    WorkerProcess.objects.create(identity="a", host="there", pid=1)
    assert WorkerProcess.objects.beat("a")
    assert abs(WorkerProcess.objects.get().clock_offset - timedelta(hours=1)) < timedelta(minutes=1)


@pytest.mark.django_db(transaction=True)
def test_records_are_dated_by_the_databases_clock(manager, monkeypatch):
    right = timezone.now
    began = right() - timedelta(seconds=1)
    monkeypatch.setattr(timezone, "now", lambda: right() - timedelta(hours=1))
    name = manager.launch_async_task(tasks.log_lines)
    monkeypatch.setattr(timezone, "now", lambda: right() + timedelta(hours=1))
    deliver()
    record = TaskRecord.objects.get(task_name=name)
    times = [record.created_at, record.started_at, record.finished_at]
    times += record.events.order_by("pk").values_list("timestamp", flat=True)
    assert began < min(times)
    assert max(times) < right() + timedelta(minutes=1)
    assert record.created_at <= record.started_at <= record.finished_at
    assert record.run_time == record.finished_at - record.started_at


@pytest.mark.django_db(transaction=True)
def test_a_clock_that_is_set_while_a_task_runs_changes_no_time(manager, monkeypatch, record_of):
    right, hours = timezone.now, [0]
    monkeypatch.setattr(timezone, "now", lambda: right() - timedelta(hours=sum(hours)))
    name = manager.launch_async_task(tasks.touch_projects, pks=[1], model="testapp.project")
    with meanwhile(lambda: hours.append(1), before='UPDATE "testapp_project"'):
        deliver()
    record = record_of(name)
    times = [record.created_at, *record.events.order_by("pk").values_list("timestamp", flat=True)]
    assert record.started_at <= record.finished_at
    assert max(times) - min(times) < timedelta(minutes=1)


def test_lost_processes_are_shown_with_their_tasks(boss, manager):
    name = manager.launch_async_task(tasks.add, 1, 2, label="Half done")
    worker = claimed_elsewhere(name, host="there", pid=17)
    WorkerProcess.objects.filter(pk=worker.pk).update(lost_at=Now())
    page = boss.get(CLUSTER).content.decode()
    assert re.search(r"Process 17 on there:\s*<a [^>]*>Half done</a>\s*<span [^>]*>.*?Lost</span>", page, re.S)


def test_a_cluster_whose_workers_run_tasks_is_not_idle(boss, manager):
    cluster = Status(pid=1, cluster_id="one")
    cluster.host, cluster.status, cluster.workers, cluster.tob = "vm", "Idle", [17, 18], timezone.now()
    get_broker().set_stat(Stat.get_key(cluster.cluster_id), SignedPackage.dumps(cluster, True), 60)
    assert "<h2>vm: Idle</h2>" in boss.get(CLUSTER).content.decode()
    for host in ("vm", "elsewhere"):
        claimed_elsewhere(manager.launch_async_task(tasks.add, 1), host=host, pid=17)
    assert "<h2>vm: 1 of 2 workers busy</h2>" in boss.get(CLUSTER).content.decode()


def test_where_clusters_can_not_be_listed_the_page_says_why(boss, settings):
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
    page = boss.get(CLUSTER).content.decode()
    assert "Clusters are not listed, as the cache “default” is not shared between processes." in page
    # Workers send their heartbeats to the database.
    assert "No cluster is running" in page
    WorkerProcess.objects.create(identity="a", host="there", pid=1, cluster="mine")
    assert "No cluster is running" not in boss.get(CLUSTER).content.decode()


class BrokenCache(LocMemCache):
    def get_many(self, *args, **kwargs):
        raise ConnectionError("the server is down")

    get = get_many


def test_where_their_state_can_not_be_read_the_page_says_so(boss, settings):
    settings.CACHES = {"default": {"BACKEND": f"{__name__}.BrokenCache"}}
    assert "The clusters can't be listed" in html.unescape(boss.get(CLUSTER).content.decode())


@pytest.mark.django_db(transaction=True)
@pytest.mark.cluster
def test_a_running_cluster_is_shown_with_what_its_workers_do(
    cluster, boss, manager, tmp_path, until_started, record_of
):
    path = tmp_path / "go on"
    name = manager.launch_async_task(tasks.wait_for_file, str(path), label="Busy work")
    worker = until_started(path)
    wait_until(lambda: WorkerProcess.objects.count() == len(cluster.worker_pids) > 1, "all workers have a row")
    page = boss.get(CLUSTER).content.decode()
    assert "No cluster is running" not in page
    assert f"Process {worker} on {socket.gethostname()}" in page
    assert f'<a href="{BASE}{record_of(name).pk}/change/">Busy work</a>' in page
    assert "idle" in page
    path.touch()
    assert manager.get_task_status(name, wait=20_000) == "success"
