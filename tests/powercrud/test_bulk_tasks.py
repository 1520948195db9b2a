"""Bulk operations from PowerCRUD's pages, run in this process as a worker does."""

from __future__ import annotations

import json

import pytest
from django.db import transaction
from django.db.models.signals import post_save
from django.urls import reverse
from django_q.models import OrmQ
from powercrud import async_context as peer_context
from powercrud.async_manager import AsyncManager as PeerManager
from powercrud.schedules import cleanup_async_artifacts

from powercrud_dashboard.contrib.powercrud import PowerCrudManager
from powercrud_dashboard.models import ActiveTask, ConflictLock, TaskRecord
from tests.powercrud.conftest import Pages, launched
from tests.powercrud.models import Book, Chapter
from tests.unit.conftest import _without_the_loop_of_a_browser  # noqa: F401
from tests.workers import claimed_elsewhere, run_queue, silence

pytestmark = pytest.mark.django_db(transaction=True)

UPDATE, DELETE = "powercrud.tasks.bulk_update_task", "powercrud.tasks.bulk_delete_task"


def test_a_bulk_update_is_a_task_with_a_record(pages, make_books, superuser, genre, record_of):
    books = make_books(3)
    name = launched(pages.update(books, pages=7, genre=genre.pk, is_read="true", shelf="high"))
    assert ConflictLock.objects.count() == 3
    record = record_of(name)
    assert (record.func, record.label, record.user) == (UPDATE, "Update 3 books", superuser)
    assert record.affected_objects == []
    assert set(record.objects_worked_on.values_list("model_label", "object_id")) == {
        ("library.book", str(b.pk)) for b in books
    }
    # Plain values, without the controls of the form.
    assert record.task_args[5][0] == {
        "field": "pages",
        "value": "7",
        "info": {
            "type": "PositiveIntegerField",
            "is_relation": False,
            "is_m2m": False,
            "bulk_choices": None,
            "verbose_name": "Pages",
            "null": False,
            "blank": False,
            "choices": None,
            "searchable_select": False,
        },
        "m2m_action": None,
        "m2m_values": [],
    }
    run_queue()
    record.refresh_from_db()
    assert (record.status, record.result, record.message) == ("success", 3, "completed update: 3 processed")
    assert (record.progress_current, record.progress_total) == (3, 3)
    assert set(Book.objects.values_list("pages", "genre", "is_read", "shelf")) == {(7, genre.pk, True, "high")}
    assert not ConflictLock.objects.exists()


def test_null_choices_and_many_to_many(pages, make_books, genre):
    books = make_books(2, genre=genre, shelf="low")
    pages.update(books, genre="null", shelf="null", tags=[genre.pk])
    run_queue()
    assert [(book.genre, book.shelf, [*book.tags.all()]) for book in Book.objects.all()] == [(None, "", [genre])] * 2
    pages.bulk(books, fields_to_update=["tags"], tags=[genre.pk], tags_action="remove")
    run_queue()
    assert not genre.tagged.exists()


def test_a_bulk_deletion_is_a_task_with_a_record(pages, make_books, record_of):
    books = make_books(4)
    name = launched(pages.delete(books[:3]))
    run_queue()
    record = record_of(name)
    assert (record.func, record.label, record.status, record.result) == (DELETE, "Delete 3 books", "success", 3)
    assert [*Book.objects.all()] == books[3:]


def test_a_manager_that_is_not_found_in_the_worker_keeps_nothing_from_being_done(pages, make_books, record_of):
    name = launched(pages.update(make_books(2), pages=7))
    bad = launched(pages.update(make_books(2, title="bad"), pages=300))
    ActiveTask.objects.update(manager_class="no.such.Manager")
    run_queue()
    assert (record_of(name).status, record_of(bad).status) == ("success", "failed")
    assert set(Book.objects.values_list("title", "pages")) == {("book 0", 7), ("book 1", 7), ("bad", 100)}


def test_few_objects_are_updated_in_the_request(pages, make_books):
    pages.update(make_books(1), pages=7)
    assert Book.objects.get().pages == 7
    assert not TaskRecord.objects.exists()


def test_what_returns_false_in_powercrud_is_a_failure_that_can_be_retried(pages, make_books, record_of, manager):
    books = [*make_books(2), *make_books(1, title="bad")]
    name = launched(pages.update(books, pages=300))
    run_queue()
    record = record_of(name)
    assert (record.status, record.error) == ("failed", "title: It is a bad book.")
    assert record.exception_class == "powercrud_dashboard.contrib.powercrud.BulkOperationFailed"
    assert set(Book.objects.values_list("pages", flat=True)) == {100}
    answer = pages.poll(name)
    assert (answer.status_code, answer.json()["status"]) == (286, "failed")
    assert answer.json()["progress"] == "title: It is a bad book."
    Book.objects.filter(title="bad").update(title="good")
    again = manager.retry_task(name)
    assert ConflictLock.objects.count() == 3
    run_queue()
    assert record_of(again).status == "success"
    assert set(Book.objects.values_list("pages", flat=True)) == {300}


def test_a_second_operation_on_the_same_books_is_refused(pages, make_books):
    books = make_books(3)
    launched(pages.update(books, pages=7))
    for refused in (pages.update(books[2:] + make_books(1), pages=8), pages.delete(books[:2])):
        assert "Bulk Operation Conflict" in refused.content.decode()
    assert ActiveTask.objects.count() == OrmQ.objects.count() == 1


def test_a_conflict_that_the_page_did_not_see_leaves_nothing_behind(pages, make_books, settings, monkeypatch):
    books = make_books(2)
    launched(pages.update(books, pages=7))
    # As if the other task had been launched between the page's look and its launch.
    monkeypatch.setattr("tests.powercrud.views.BookView.bulk_async_conflict_checking", False)
    assert "Failed to queue background task" in pages.update(books, pages=8).content.decode()
    assert ActiveTask.objects.count() == TaskRecord.objects.count() == 1


def test_forms_and_deletions_of_single_books_are_blocked(pages, make_books):
    [book, *others] = make_books(3)
    launched(pages.update([book, *others], pages=7))
    data = {"title": "other", "pages": 5}
    assert "Cannot update" in pages.get("book-update", book.pk).content.decode()
    assert "Cannot update" in pages.post("book-update", book.pk, **data).content.decode()
    assert "Cannot delete" in pages.get("book-delete", book.pk).content.decode()
    assert "Cannot delete" in pages.post("book-delete", book.pk).content.decode()
    assert pages.client.post(reverse("book-update", args=[book.pk]), data).status_code == 409
    assert Book.objects.get(pk=book.pk).title == book.title
    run_queue()
    pages.post("book-update", book.pk, **data)
    assert Book.objects.get(pk=book.pk).title == "other"


def test_inline_editing_says_who_has_locked_the_row(pages, make_books, superuser):
    [book, *others] = make_books(3)
    name = launched(pages.update([book, *others], pages=7))
    for blocked in (pages.get("book-inline-row", book.pk), pages.post("book-inline-row", book.pk, title="other")):
        assert blocked.status_code == 423
        lock = json.loads(blocked.headers["HX-Trigger"])["inline-row-locked"]["lock"]
        assert lock["task"] == name
        assert lock["label"].startswith(f"Locked by {superuser.username} at ")
    run_queue()
    assert pages.get("book-inline-row", book.pk).status_code == 200


def test_the_list_shows_locked_rows_whoever_holds_them(pages, make_books, manager):
    [book, free] = make_books(2)
    assert manager.add_conflict_ids("stocktaking", {"library.Book": [book.pk]})
    assert pages.get("book-list").content.decode().count('data-inline-status="locked"') == 1
    lock = json.loads(pages.get("book-inline-row", book.pk).headers["HX-Trigger"])["inline-row-locked"]["lock"]
    assert lock["task"] == "stocktaking"
    assert pages.get("book-inline-row", free.pk).status_code == 200


def test_a_queued_task_is_polled_to_its_end(pages, make_books):
    name = launched(pages.update(make_books(2), pages=7))
    answer = pages.poll(name)
    assert (answer.status_code, answer.json()["status"]) == (200, "pending")
    run_queue()
    answer = pages.poll(name)
    assert (answer.status_code, answer.json()["status"]) == (286, "success")


def test_a_cancelled_task_is_told_in_words_that_the_page_knows(pages, make_books, manager, record_of):
    name = launched(pages.update(make_books(2), pages=7))
    assert manager.cancel_task(name)
    answer = pages.poll(name)
    assert (answer.status_code, answer.json()["status"], answer.json()["progress"]) == (286, "failed", "Cancelled.")
    assert record_of(name).status == "cancelled"
    run_queue()
    assert set(Book.objects.values_list("pages", flat=True)) == {100}


def test_the_reason_of_a_failure_is_no_html(pages, make_books):
    # PowerCRUD's script makes it a part of the page.
    name = launched(pages.update(make_books(2, shelf="<img>"), pages=7))
    run_queue()
    assert pages.poll(name).json()["progress"] == "shelf: Value &#x27;&lt;img&gt;&#x27; is not a valid choice."


def test_a_paused_task_is_told_so(pages, make_books, manager):
    name = launched(pages.update(make_books(2), pages=7))
    assert manager.pause_task(name)
    answer = pages.poll(name)
    assert (answer.status_code, answer.json()["status"], answer.json()["progress"]) == (200, "pending", "Paused.")


def test_only_those_who_may_see_the_task_can_poll_it(pages, visitor, make_books, client_of, make_user):
    name = launched(pages.update(make_books(2), pages=7))
    assert visitor.poll(name).status_code == 401
    assert Pages(client_of(make_user("other"))).poll(name).status_code == 404


def test_a_task_of_somebody_who_was_deleted_is_not_open_to_all(make_books, visitor, client_of, make_user):
    user = make_user("leaver")
    name = launched(Pages(client_of(user)).update(make_books(2), pages=7))
    user.delete()
    assert visitor.poll(name).status_code == 401


def test_a_task_that_a_program_retries_is_not_open_to_all(pages, visitor, make_books, manager):
    name = launched(pages.update(make_books(2, title="bad"), pages=300))
    run_queue()
    assert visitor.poll(manager.retry_task(name)).status_code == 401


def test_who_launches_a_task_without_a_login_can_follow_it(visitor, make_books, record_of, client_of, make_user):
    name = launched(visitor.update(make_books(2), pages=7))
    assert visitor.poll(name).json()["status"] == "pending"
    run_queue()
    assert (visitor.poll(name).status_code, visitor.poll(name).json()["status"]) == (286, "success")
    assert record_of(name).user is None
    assert Pages(client_of(make_user("who has logged in since"))).poll(name).status_code == 286
    # Only at PowerCRUD's endpoint, and only its own tasks.
    assert visitor.get("pages:async_progress", task_name=name).status_code == 401
    other = PowerCrudManager().launch_async_task("tests.testapp.tasks.add", 1)
    assert visitor.poll(other).status_code == 401
    assert visitor.get("powercrud:async_progress").status_code == 401


def test_a_view_may_want_a_login(visitor, make_books):
    [book] = make_books(1)
    chapters = Chapter.objects.bulk_create([Chapter(book=book), Chapter(book=book)])
    assert visitor.bulk(chapters, "chapter", fields_to_update=["book"], book=book.pk).status_code == 403
    assert not TaskRecord.objects.exists()


def test_a_persistence_backend_runs_in_the_worker(pages, make_books, superuser, record_of):
    old, new = make_books(2)
    chapters = Chapter.objects.bulk_create([Chapter(book=old), Chapter(book=old)])
    name = launched(pages.bulk(chapters, "chapter", fields_to_update=["book"], book=new.pk))
    run_queue()
    assert record_of(name).status == "success"
    assert Book.objects.filter(title=f"stocktaking async {superuser.pk} 2").exists()
    assert new.chapter_set.count() == 2


def test_a_persistence_backend_that_fails_leaves_nothing_and_its_traceback(pages, make_books, monkeypatch, record_of):
    old, new = make_books(2)
    chapters = Chapter.objects.bulk_create([Chapter(book=old)])
    monkeypatch.setattr("tests.powercrud.views.ChapterView.bulk_update_persistence_backend_config", {})
    name = launched(pages.bulk(chapters, "chapter", fields_to_update=["book"], book=new.pk))
    run_queue()
    record = record_of(name)
    assert (record.status, record.exception_class) == ("failed", "builtins.KeyError")
    assert "persist_bulk_update" in record.traceback
    assert not new.chapter_set.exists()


def test_objects_that_were_deleted_meanwhile_are_left_out(pages, make_books, record_of):
    books = make_books(3)
    name = launched(pages.update(books, pages=7))
    books[0].delete()
    run_queue()
    assert (record_of(name).status, record_of(name).result) == ("success", 2)


def test_descendants_are_locked_by_what_powercrud_calls(pages, make_books, manager, settings):
    [book, other] = make_books(2)
    chapter = Chapter.objects.create(book=book)
    held = []

    def note(*args, **kwargs):
        held.append(manager.check_conflict({"library.Chapter": [chapter.pk]}))

    post_save.connect(note, sender=Book, weak=False, dispatch_uid="note")
    try:
        launched(pages.update([book, other], pages=7))
        run_queue()
    finally:
        post_save.disconnect(sender=Book, dispatch_uid="note")
    # They are locked after the first book was saved, and free again in the end.
    assert held == [set(), {chapter.pk}]
    assert not ConflictLock.objects.exists()


def test_functions_of_the_project_have_powercruds_context(record_of):
    name = PowerCrudManager().launch_async_task("tests.powercrud.test_bulk_tasks.current_task", 5)
    run_queue()
    path = "powercrud_dashboard.contrib.powercrud.PowerCrudManager"
    assert record_of(name).result == [5, name, path, True]
    assert peer_context.get_current_task() is None


def test_a_coroutine_has_it_too(record_of):
    name = PowerCrudManager().launch_async_task("tests.powercrud.test_bulk_tasks.current_name")
    run_queue()
    assert record_of(name).result == name


async def current_name():
    return peer_context.get_current_task().task_name


def current_task(number, *, task_key):
    context = peer_context.get_current_task()
    return [number, context.task_name, context.manager_class_path, peer_context.skip_nested_async()]


class TestLaunch:
    def test_a_uuid_that_the_function_has_no_parameter_for_is_the_name(self, record_of):
        manager = PowerCrudManager()
        name = manager.generate_task_name()
        options = {"manager_class": "no.such.Manager", "manager_config": {"key": object()}}
        assert manager.launch_async_task("tests.powercrud.test_bulk_tasks.current_task", 5, name, **options) == name
        assert record_of(name).task_args == [5]
        assert record_of(name).task_kwargs == {}

    def test_a_uuid_that_it_has_a_parameter_for_is_an_argument(self, record_of):
        value = PowerCrudManager().generate_task_name()
        name = PowerCrudManager().launch_async_task("tests.testapp.tasks.add", value, value)
        assert name != value
        assert record_of(name).task_args == [value, value]

    def test_powercruds_own_function_may_be_given_itself(self, make_books, record_of):
        from powercrud import tasks

        [book] = make_books(1)
        name = PowerCrudManager().launch_async_task(tasks.bulk_delete_task, "library.Book", [book.pk], None)
        run_queue()
        assert record_of(name).result == 1

    def test_what_powercruds_function_does_not_take_is_refused(self):
        with pytest.raises(TypeError, match="bulk_delete"):
            PowerCrudManager().launch_async_task(DELETE, "library.Book", [1], None, [], surprise=1)

    def test_a_status_of_the_cache_is_the_status(self):
        manager = PowerCrudManager()
        name = manager.launch_async_task("tests.testapp.tasks.add", 1)
        assert manager.get_task_status_cache_only(name) == "pending"
        assert not manager.is_task_complete_cache_only(name)
        run_queue()
        assert manager.is_task_complete_cache_only(name)

    def test_a_task_is_registered_as_in_powercrud(self):
        manager = PowerCrudManager()
        assert manager.add_active_task("stocktaking", {"library.Book": {1}})
        assert manager.check_conflict({"library.Book": [1, 2]}) == {1}
        assert not PowerCrudManager().add_active_task("other", {"library.Book": {1}})


def test_where_powercrud_makes_its_base_manager_it_gets_ours(settings):
    assert type(PeerManager()) is PowerCrudManager
    assert type(PeerManager.resolve_manager("no.such.Manager")) is PowerCrudManager
    settings.POWERCRUD_SETTINGS = {"CACHE_NAME": "default"}
    assert type(PeerManager()) is PeerManager


def test_powercruds_scheduled_cleanup_is_ours(pages, make_books, record_of):
    name = launched(pages.update(make_books(2), pages=7))
    claimed_elsewhere(name)
    silence()
    cleanup_async_artifacts()
    assert record_of(name).failure_reason == "worker_lost"
    assert not ConflictLock.objects.exists()


def test_a_launch_in_a_transaction_that_is_rolled_back_leaves_nothing(make_books):
    [book] = make_books(1)
    with transaction.atomic():
        PowerCrudManager().launch_async_task(
            DELETE, "library.Book", [book.pk], None, conflict_ids={"library.Book": [book]}
        )
        transaction.set_rollback(True)
    assert not TaskRecord.objects.exists()
    assert not OrmQ.objects.exists()
