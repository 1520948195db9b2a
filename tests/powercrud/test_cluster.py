"""PowerCRUD's pages before a real cluster."""

from __future__ import annotations

from io import StringIO

import pytest
from django.core.management import call_command
from django.urls import reverse

from powercrud_dashboard.exceptions import TaskBusy
from powercrud_dashboard.models import ActiveTask, ConflictLock, TaskRecord
from tests.conftest import POSTGRESQL
from tests.powercrud.conftest import launched
from tests.powercrud.models import Book, Chapter
from tests.services import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.django_db(transaction=True)]

#: While a bulk operation runs on SQLite, nobody else can write.
WRITABLE = pytest.mark.skipif(not POSTGRESQL, reason="a bulk operation has the only write lock of SQLite")


@pytest.fixture
def ended(pages, record_of):
    """Wait until the endpoint says that a task has ended; return its record and what else the endpoint said."""

    def wait(name, status):
        answers = []
        wait_until(lambda: answers.append(pages.poll(name)) or answers[-1].status_code == 286, f"{name} has ended")
        assert answers[-1].json()["status"] == status
        return record_of(name), answers[-1].json()["progress"]

    return wait


@pytest.fixture
def gate(tmp_path):
    return tmp_path / "gate"


def values(name="pages"):
    return {*Book.objects.values_list(name, flat=True)}


def rebind(boss, books):
    """Run the background action of the admin on these books; return the page that answers."""
    data = {"action": "rebind", "_selected_action": [book.pk for book in books]}
    return boss.post(reverse("admin:library_book_changelist"), data, follow=True)


def test_a_bulk_update_from_the_page_to_its_end(cluster, pages, make_books, gate, until_started, ended, superuser):
    books = [*make_books(2), *make_books(1, gate=str(gate))]
    name = launched(pages.update(books, pages=7))
    until_started(gate)
    wait_until(lambda: pages.poll(name).json()["progress"] == "updating: 2/3", "the page shows the progress")
    answer = pages.poll(name)
    assert (answer.status_code, answer.json()["status"], answer.json()["percent"]) == (200, "in_progress", 66)
    # Others are refused while it runs.
    assert "Bulk Operation Conflict" in pages.update(books[1:], pages=8).content.decode()
    assert "Bulk Operation Conflict" in pages.delete(books[:2]).content.decode()
    assert "Cannot update" in pages.get("book-update", books[0].pk).content.decode()
    assert pages.get("book-inline-row", books[0].pk).status_code == 423
    assert pages.post("book-inline-row", books[0].pk, title="other").status_code == 423
    gate.touch()
    record, progress = ended(name, "success")
    assert progress == "completed update: 3 processed"
    assert (record.user, record.result, record.attempts) == (superuser, 3, 1)
    assert values() == {7}
    assert not ActiveTask.objects.exists()
    assert not ConflictLock.objects.exists()
    assert pages.get("book-inline-row", books[0].pk).status_code == 200


def test_a_bulk_deletion_from_the_page_to_its_end(cluster, pages, make_books, ended):
    [kept, *books] = make_books(30)
    record, progress = ended(launched(pages.delete(books)), "success")
    assert (progress, record.result) == ("completed delete: 29 processed", 29)
    assert [*Book.objects.all()] == [kept]


def test_somebody_who_is_not_logged_in_follows_their_task(cluster, visitor, make_books):
    name = launched(visitor.update(make_books(2), pages=7))
    wait_until(lambda: visitor.poll(name).status_code == 286, "the task has ended")
    assert visitor.poll(name).json()["status"] == "success"


def test_a_failure_is_recorded_and_retried_from_its_page(cluster, pages, make_books, ended, boss):
    books = [*make_books(2), *make_books(1, title="bad")]
    record, progress = ended(launched(pages.update(books, pages=300)), "failed")
    assert progress == record.error == "title: It is a bad book."
    assert values() == {100}
    Book.objects.filter(title="bad").update(title="good")
    boss.post(reverse("admin:powercrud_dashboard_taskrecord_retry", args=[record.pk]))
    again = TaskRecord.objects.get(retry_of=record)
    ended(again.task_name, "success")
    assert values() == {300}


def test_an_admin_action_and_a_bulk_operation_exclude_each_other(
    cluster_later, pages, boss, make_books, gate, until_started, ended
):
    books = make_books(3, gate=str(gate))
    name = launched(pages.update(books[:2], pages=7))
    refusal = rebind(boss, books[1:]).content.decode()
    assert "1 selected object is locked by" in refusal
    assert "Update 2 books</a>" in refusal
    gate.touch()
    cluster_later()
    ended(name, "success")
    gate.unlink()
    assert "runs in the background" in rebind(boss, books).content.decode()
    until_started(gate)
    assert "Bulk Operation Conflict" in pages.update(books[:2], pages=8).content.decode()
    assert "Bulk Operation Conflict" in pages.delete(books[:2]).content.decode()
    assert pages.get("book-inline-row", books[2].pk).status_code == 423
    gate.touch()
    wait_until(lambda: not ActiveTask.objects.exists(), "the action has ended")
    ended(launched(pages.update(books, pages=8)), "success")
    assert values() == {8}


@WRITABLE
def test_a_cancelled_update_is_undone(cluster, pages, manager, make_books, gate, until_started, ended):
    books = [*make_books(2), *make_books(1, gate=str(gate))]
    name = launched(pages.update(books, pages=7))
    until_started(gate)
    assert manager.cancel_task(name)
    record, progress = ended(name, "failed")
    assert (record.status, progress) == ("cancelled", "Cancelled.")
    assert values() == {100}
    assert not ConflictLock.objects.exists()


@WRITABLE
def test_an_update_that_is_stored_can_not_be_cancelled_any_more(
    cluster, pages, manager, make_books, gate, until_started, ended
):
    books = [*make_books(1), *make_books(1, late_gate=str(gate))]
    name = launched(pages.update(books, pages=7))
    # Its transaction is committed, and it does not end before it has seen the request.
    until_started(gate)
    assert manager.cancel_task(name)
    record, _progress = ended(name, "success")
    assert record.events.filter(event="cancel_requested").exists()
    assert values() == {7}


@WRITABLE
def test_descendants_are_locked_while_it_runs(cluster, pages, manager, make_books, gate, until_started, ended):
    books = make_books(2)
    chapter = Chapter.objects.create(book=books[0])
    books += make_books(1, gate=str(gate))
    name = launched(pages.update(books, pages=7))
    until_started(gate)
    # The lock is in the transaction of the update, which others wait for, but not for ever.
    with pytest.raises(TaskBusy):
        manager.launch_async_task("tests.testapp.tasks.add", 1, conflict_ids={"library.Chapter": [chapter.pk]})
    gate.touch()
    ended(name, "success")
    manager.launch_async_task("tests.testapp.tasks.add", 1, conflict_ids={"library.Chapter": [chapter.pk]})


def test_the_task_of_a_lost_worker_is_cleaned_up_by_either_command(
    cluster, pages, make_books, gate, until_started, record_of
):
    books = make_books(2, gate=str(gate))
    name = launched(pages.update(books, pages=7))
    until_started(gate)
    cluster.kill()

    def is_cleaned_up():
        call_command("pcrud_cleanup_async", stdout=StringIO())
        return record_of(name).status == "failed"

    wait_until(is_cleaned_up, "the worker is found to be lost")
    assert record_of(name).failure_reason == "worker_lost"
    assert not ConflictLock.objects.exists()
    assert values() == {100}
