"""Django's ``flush``, as the tests that commit need it after each of them."""

from __future__ import annotations

from typing import Any, ClassVar

from django.core.management.color import no_style
from django.core.management.commands import flush
from django.db import connections


class Command(flush.Command):
    """Empty the tables that hold rows, and leave those alone that hold what ``migrate`` has put there.

    Django empties all of them, and makes content types and permissions again: that takes longer than most tests.
    """

    #: By database: the tables that hold rows after ``migrate``, and these rows.
    after_migrate: ClassVar[dict[str, dict[str, set[tuple[Any, ...]]]]] = {}

    def handle(self, **options: Any) -> None:
        database = options["database"]
        expected = self.after_migrate.get(database)
        filled = self._filled_tables(database)
        if expected is None or any(
            table not in filled or self._rows(database, table) != expected[table] for table in expected
        ):
            super().handle(**options)
            self.after_migrate[database] = {
                table: self._rows(database, table) for table in self._filled_tables(database)
            }
        elif surplus := [table for table in filled if table not in expected]:
            operations = connections[database].ops
            operations.execute_sql_flush(operations.sql_flush(no_style(), surplus, allow_cascade=True))

    def _filled_tables(self, database: str) -> list[str]:
        connection = connections[database]
        tables = connection.introspection.django_table_names(only_existing=True, include_views=False)
        questions = [
            f"SELECT '{table}' WHERE EXISTS (SELECT 1 FROM {connection.ops.quote_name(table)})" for table in tables
        ]
        with connection.cursor() as cursor:
            cursor.execute(" UNION ALL ".join(questions))
            return [table for (table,) in cursor.fetchall()]

    def _rows(self, database: str, table: str) -> set[tuple[Any, ...]]:
        connection = connections[database]
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT * FROM {connection.ops.quote_name(table)}")
            return set(cursor.fetchall())
