"""The search index follows the records, and is made anew where it got lost."""

from __future__ import annotations

import pytest
from django.core.management import call_command
from django.db import DEFAULT_DB_ALIAS, connection, connections

from powercrud_dashboard.models import TaskRecord, search
from powercrud_dashboard.models.search import Words

pytestmark = pytest.mark.django_db(transaction=True)


def found(text: str) -> list[str]:
    wanted = [Words.of(text, "task", "text")]
    return list(search.matching(TaskRecord.objects.all(), wanted).values_list("task_name", flat=True))


def make(name: str, **fields: str) -> TaskRecord:
    return TaskRecord.objects.create(task_name=name, func="f", **fields)


def test_the_index_follows_changes_and_deletions():
    record = make("one", label="Rebuild Größen")
    assert found("größ rebu") == ["one"]
    TaskRecord.objects.filter(pk=record.pk).update(label="Something else")
    assert found("rebuild") == []
    assert found("something") == ["one"]
    record.delete()
    assert found("something") == []


def test_words_can_be_looked_up_as_whole_ones():
    make("one", label="Close the year 2025")
    make("two", label="closest year2025")

    def found_whole(text: str) -> list[str]:
        wanted = [Words.of(text, "task", are_whole=True)]
        return list(search.matching(TaskRecord.objects.all(), wanted).values_list("task_name", flat=True))

    assert sorted(found("year close")) == ["one", "two"]
    assert found_whole("year close") == ["one"]
    assert found_whole("year2025") == ["two"]
    assert found_whole("clos") == []


def test_the_index_is_made_anew_after_a_migration_there_and_back():
    make("one", label="Rebuild")
    call_command("migrate", "powercrud_dashboard", "0001", verbosity=0)
    call_command("migrate", "powercrud_dashboard", verbosity=0)
    assert found("rebuild") == ["one"]
    make("two", label="Rebuild")
    assert sorted(found("rebuild")) == ["one", "two"]


@pytest.fixture
def without_fts5():
    """Use another connection, to an SQLite that says that it was built without FTS5."""
    original = connections[DEFAULT_DB_ALIAS]
    connections[DEFAULT_DB_ALIAS] = other = original.copy()
    other.ensure_connection()
    other.connection.create_function("sqlite_compileoption_used", 1, lambda name: 0)
    yield
    other.close()
    connections[DEFAULT_DB_ALIAS] = original


@pytest.mark.skipif(connection.vendor != "sqlite", reason="PostgreSQL always has the index")
def test_a_database_without_the_index_is_searched_column_by_column(without_fts5):
    make("one", label="Rebuild all")
    make("two", label="All")
    assert found("all rebuild") == ["one"]


@pytest.mark.skipif(connection.vendor != "sqlite", reason="triggers are SQLite's")
def test_lost_triggers_are_made_anew():
    with connection.cursor() as cursor:
        cursor.execute(f"DROP TRIGGER {search.INDEX}_insert")
    make("one", label="Rebuild")
    assert found("rebuild") == []
    search.ensure_index(connection)
    assert found("rebuild") == ["one"]
