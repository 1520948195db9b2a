from __future__ import annotations

import pytest
from django.contrib.auth.models import User
from django.core.cache import cache

from powercrud_dashboard.models import ActiveTask, ConflictLock
from tests.testapp import tasks

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
    assert f'<a href="/admin/testapp/project/{pk}/change/">testapp.project {pk}</a>' in page
    assert f'<a href="{BASE}{held.pk}/change/">Holder</a>' in page
    assert "when its task ends" in page


def test_reservations_are_shown_with_their_expiry(boss, manager):
    manager.add_conflict_ids("my-reservation", {"no.such_model": {"a"}})
    page = boss.get(LOCKS).content.decode()
    assert "my-reservation" in page
    assert "no.such_model a" in page
    assert "when its task ends" not in page


@pytest.mark.parametrize(
    ("words", "is_found"), [("holder", True), ("testapp", True), ("somebody", False), ("testapp holder", True)]
)
def test_locks_can_be_searched(boss, held, words, is_found):
    assert (">Holder</a>" in boss.get(LOCKS, {"q": words}).content.decode()) is is_found


@pytest.mark.parametrize("sort", ["object_id", "-object_id", "holder", "-locked_at", "expires_at"])
def test_locks_can_be_sorted(boss, held, sort):
    assert boss.get(LOCKS, {"sort": sort}).status_code == 200


def test_releasing_asks_first_and_says_what_it_means(boss, held):
    page = boss.get(release_page()).content.decode()
    assert "held by “Holder”" in page
    assert "This task is queued" in page
    ActiveTask.objects.claim_pending(held.task_name, host="x", pid=1)
    assert "This task is running" in boss.get(release_page()).content.decode()
    assert ConflictLock.objects.exists()


def test_a_released_lock_is_gone_and_recorded_with_who_did_it(boss, superuser, held):
    response = boss.post(release_page(), follow=True)
    assert "was released" in response.content.decode()
    assert not ConflictLock.objects.exists()
    assert ActiveTask.objects.filter(task_name=held.task_name).exists()
    event = held.events.get(event="release")
    assert event.actor == superuser
    assert event.message.startswith("testapp.project ")


def test_a_released_reservation_is_gone_with_its_last_lock(boss, manager):
    manager.add_conflict_ids("forgotten", {"testapp.Project": {1}})
    boss.post(release_page())
    assert not ActiveTask.objects.exists()


def test_a_lock_that_is_gone_already_is_said(boss):
    response = boss.post(f"{LOCKS}999/release/", follow=True)
    assert "The lock is gone already." in response.content.decode()
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
    assert "1 waiting, 0 taken and not acknowledged" in page
    assert "pcrud_schedule_cleanup" in page
    assert client_gets_part(boss, CLUSTER)


def client_gets_part(client, address: str) -> bool:
    part = client.get(address, headers={"hx-request": "true"}).content.decode()
    return part.lstrip().startswith("<div") and "<html" not in part


def test_the_cluster_page_is_for_who_may_view_tasks(client_of, make_user):
    assert client_of(make_user("nobody")).get(CLUSTER).status_code == 403
    assert client_of(make_user("viewer", "view_taskrecord")).get(CLUSTER).status_code == 200


@pytest.mark.parametrize("page", [BASE, CLUSTER])
def test_without_a_cluster_the_pages_say_how_to_start_one(boss, page):
    cache.clear()
    assert "python manage.py qcluster" in boss.get(page).content.decode()


def test_where_nothing_can_be_known_nothing_is_claimed(boss, settings):
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
    assert "No cluster is running" not in boss.get(BASE).content.decode()


@pytest.mark.django_db(transaction=True)
@pytest.mark.cluster
def test_a_running_cluster_is_shown_with_what_its_workers_do(
    cluster, boss, manager, tmp_path, until_started, record_of
):
    path = tmp_path / "go on"
    name = manager.launch_async_task(tasks.wait_for_file, str(path), label="Busy work")
    worker = until_started(path)
    page = boss.get(CLUSTER).content.decode()
    assert "No cluster is running" not in page
    assert f"Worker {worker}:" in page
    assert f'<a href="{BASE}{record_of(name).pk}/change/">Busy work</a>' in page
    assert "idle" in page
    path.touch()
    assert manager.get_task_status(name, wait=20_000) == "success"
