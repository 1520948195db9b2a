"""What a bulk operation stores, and what its record says of that."""

from __future__ import annotations

from contextlib import suppress

import pytest
from django.db import IntegrityError, connection, transaction
from powercrud.bulk_persistence import DefaultBulkUpdatePersistenceBackend

from powercrud_dashboard.contrib.powercrud import BulkOperationFailed, PowerCrudManager
from tests.conftest import POSTGRESQL
from tests.powercrud.conftest import launched
from tests.powercrud.models import Book, Genre
from tests.workers import run_queue

pytestmark = pytest.mark.django_db(transaction=True)

ROLLED_BACK = "The changes were rolled back: a database error was caught inside of their transaction."


def create_again(pk):
    """Have the database refuse an object whose key is in use, in a way that spoils the transaction around it."""
    with transaction.atomic(savepoint=False):
        Genre.objects.create(pk=pk)


def insert_again(pk):
    """Do the same without Django's ORM."""
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO library_genre (id, name) VALUES (%s, '')", [pk])


class CatchesErrors(DefaultBulkUpdatePersistenceBackend):
    """Leaves an entry for its work, and goes on without one."""

    insert = staticmethod(create_again)

    def persist_bulk_update(self, **options):
        result = super().persist_bulk_update(**options)
        with suppress(IntegrityError):
            self.insert(self.config["pk"])
        return result


class CatchesRawErrors(CatchesErrors):
    insert = staticmethod(insert_again)


class FailsAfterCommit(DefaultBulkUpdatePersistenceBackend):
    def persist_bulk_update(self, **options):
        transaction.on_commit(lambda: {}["mail server"])
        return super().persist_bulk_update(**options)


class Refuses(DefaultBulkUpdatePersistenceBackend):
    def persist_bulk_update(self, **options):
        return {"success": False, "errors": ["The warehouse is closed."]}


@pytest.fixture
def update_with(pages, make_books, monkeypatch, genre, record_of):
    """Update books with a backend in the worker, and return the record."""

    def update(backend):
        monkeypatch.setattr("tests.powercrud.views.BookView.bulk_update_persistence_backend_path", backend)
        monkeypatch.setattr("tests.powercrud.views.BookView.bulk_update_persistence_backend_config", {"pk": genre.pk})
        name = launched(pages.update(make_books(2), pages=7))
        run_queue()
        return record_of(name)

    return update


def values(name="pages"):
    return {*Book.objects.values_list(name, flat=True)}


RAW = pytest.mark.skipif(not POSTGRESQL, reason="on SQLite such an error does not spoil the transaction")


@pytest.mark.parametrize("backend", ["CatchesErrors", pytest.param("CatchesRawErrors", marks=RAW)])
def test_a_caught_error_that_spoils_the_transaction_is_a_failure(update_with, backend):
    record = update_with(f"{__name__}.{backend}")
    assert record.status == "failed"
    assert record.error.startswith(ROLLED_BACK)
    assert values() == {100}


@pytest.mark.parametrize("operation", ["save", "delete"])
def test_so_is_one_that_the_last_object_catches(pages, make_books, genre, monkeypatch, record_of, operation):
    books = [*make_books(1), *make_books(1, genre=genre)]
    original = getattr(Book, operation)

    def work(book, *args, **kwargs):
        original(book, *args, **kwargs)
        if book.genre_id:
            with suppress(IntegrityError):
                create_again(genre.pk)

    monkeypatch.setattr(Book, operation, work)
    name = launched(pages.update(books, pages=7) if operation == "save" else pages.delete(books))
    run_queue()
    record = record_of(name)
    assert record.status == "failed"
    assert record.error.startswith(ROLLED_BACK)
    assert values() == {100}
    assert Book.objects.count() == 2


def test_what_fails_after_the_commit_is_told_to_be_stored(update_with):
    record = update_with(f"{__name__}.FailsAfterCommit")
    assert record.status == "failed"
    assert record.error == "The changes are stored, but a callback after their commit failed. KeyError: 'mail server'"
    assert values() == {7}


def test_a_backend_may_give_its_reasons_as_texts(update_with):
    record = update_with(f"{__name__}.Refuses")
    assert (record.status, record.error) == ("failed", "The warehouse is closed.")


@pytest.mark.parametrize(
    ("errors", "text"),
    [
        ([(None, ["One."]), ("title", ["Two.", "Three."])], "One.; title: Two. Three."),
        ([("general", ["One."]), ("__all__", ["Two."])], "One.; Two."),
        ([("title", "One.")], "title: One."),
        ({"title": ["One."]}, "title: One."),
        ("One.", "One."),
        (ValueError("One."), "One."),
        ([(None, [])], "PowerCRUD gives no reason."),
        (None, "PowerCRUD gives no reason."),
    ],
)
def test_reasons_in_any_form_are_told(errors, text):
    assert str(BulkOperationFailed(errors)) == text


class LaggingReplica:
    """Reads books from a database that does not have them yet."""

    def db_for_read(self, model, **hints):
        return "archive" if model is Book else None

    def db_for_write(self, model, **hints):
        return "default"


@pytest.mark.parametrize("operation", ["update", "delete"])
def test_what_is_written_is_read_from_the_same_database(pages, make_books, settings, record_of, operation):
    books = make_books(2)
    name = launched(pages.update(books, pages=7) if operation == "update" else pages.delete(books))
    routers = settings.DATABASE_ROUTERS
    settings.DATABASE_ROUTERS = [f"{__name__}.LaggingReplica", *routers]
    run_queue()
    settings.DATABASE_ROUTERS = routers
    assert (record_of(name).status, record_of(name).result) == ("success", 2)
    assert values() == ({7} if operation == "update" else set())


class TestLaunch:
    DELETE, UPDATE = "powercrud.tasks.bulk_delete_task", "powercrud.tasks.bulk_update_task"

    def test_arguments_by_keyword(self, make_books, record_of):
        keys = [book.pk for book in make_books(2)]
        of_books = {"model_path": "library.Book", "selected_ids": keys, "user_id": None}
        fields = {"bulk_fields": ["pages"], "fields_to_update": ["pages"]}
        # As the view makes it, with what can't be sent to a worker.
        info = {"type": "PositiveIntegerField", "verbose_name": "Pages", "control": lambda: None}
        data = [{"field": "pages", "value": "7", "info": info}]
        update = PowerCrudManager().launch_async_task(self.UPDATE, **of_books, **fields, field_data=data)
        run_queue()
        assert values() == {7}
        delete = PowerCrudManager().launch_async_task(self.DELETE, **of_books)
        run_queue()
        assert not Book.objects.exists()
        assert [record_of(name).label for name in (update, delete)] == ["Update library.Book", "Delete library.Book"]

    def test_a_missing_argument_is_named(self):
        with pytest.raises(TypeError, match="model_path"):
            PowerCrudManager().launch_async_task(self.DELETE)

    def test_objects_that_are_named_stay_named(self, make_books, record_of):
        books = make_books(2)
        keys = [book.pk for book in books]
        name = PowerCrudManager().launch_async_task(self.DELETE, "library.Book", keys, None, affected_objects=books)
        assert record_of(name).affected_objects == ["book 0", "book 1"]

    def test_a_generator_function_is_refused(self):
        with pytest.raises(TypeError, match="generator function"):
            PowerCrudManager().launch_async_task(f"{__name__}.generate")


def generate():
    yield 1
