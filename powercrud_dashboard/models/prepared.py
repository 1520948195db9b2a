"""Statements that Django writes once, and that from then on only get their values.

To have Django write a statement takes several times as long as to execute it, and whoever wants to write waits for a
transaction in which that is done. What every task needs is therefore written for the first one only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from django.db import connections, models, router, transaction
from django.db.models import Expression
from django.db.models.expressions import DatabaseDefault
from django.db.models.signals import post_save, pre_save
from django.db.models.sql import DeleteQuery, InsertQuery, UpdateQuery
from django.utils.functional import cached_property

Row = TypeVar("Row", bound=models.Model)

#: Databases whose INSERT tells what it has put into the row, in the way of a SELECT.
RETURN_WHAT_THEY_INSERT = ("sqlite", "postgresql")


class Slot(Expression):
    """Stands in a statement for the value of this field that is given when the statement is executed."""

    def __init__(self, field: str) -> None:
        super().__init__()
        self.field_name = field

    def as_sql(self, compiler: Any, connection: Any) -> tuple[str, Any]:
        return "%s", [self]


@dataclass(frozen=True)
class _Statement:
    sql: str
    #: Fixed values, and a field for each that is to come.
    params: tuple[Any, ...]
    #: The columns that it reads, and the positions of those whose values have to be converted.
    selected: tuple[Any, ...]
    converted: tuple[int, ...]

    def read(self, row: Iterable[Any], connection: Any) -> list[Any]:
        """Return a row that it has read as the fields have it."""
        values = list(row)
        for position in self.converted:
            column = self.selected[position]
            for convert in (*connection.ops.get_db_converters(column), *column.get_db_converters(connection)):
                values[position] = convert(values[position], column, connection)
        return values


class _Prepared(Generic[Row]):
    def __init__(self, model: type[Row]) -> None:
        self._model = model
        self._statements: dict[tuple[str, ...], _Statement] = {}

    def _query(self, columns: Iterable[str]) -> Any:
        raise NotImplementedError

    def _compiler(self, using: str, columns: Iterable[str]) -> Any:
        return self._query(columns).get_compiler(using)

    def _selected(self, compiler: Any) -> tuple[Any, ...]:
        """Return the columns that the statement reads, which ``compiler`` has written."""
        return tuple(column for column, *_names in compiler.select or ())

    @contextmanager
    def _executed(self, values: Mapping[str, Any], columns: Iterable[str] = ()) -> Iterator[tuple[Any, _Statement]]:
        using = router.db_for_write(self._model)
        connection = connections[using]
        key = (using, *columns)
        if (statement := self._statements.get(key)) is None:
            statement = self._statements[key] = self._written(using, columns)
        params = [
            param.get_db_prep_save(values[param.name], connection) if isinstance(param, models.Field) else param
            for param in statement.params
        ]
        with transaction.mark_for_rollback_on_error(using), connection.cursor() as cursor:
            cursor.execute(statement.sql, params)
            yield cursor, statement

    def _written(self, using: str, columns: Iterable[str]) -> _Statement:
        compiler = self._compiler(using, columns)
        written = compiler.as_sql()
        # Django thinks of an INSERT as several statements; of one row it is one.
        sql, params = written[0] if isinstance(written, list) else written
        selected = self._selected(compiler)
        get_field = self._model._meta.get_field
        return _Statement(
            sql,
            tuple(get_field(param.field_name) if isinstance(param, Slot) else param for param in params),
            selected,
            tuple(compiler.get_converters(selected)),
        )


class _PreparedOfRows(_Prepared[Row]):
    def __init__(self, model: type[Row], rows: Callable[[], models.QuerySet[Row]]) -> None:
        """``rows`` returns a queryset that has a :class:`Slot` in the place of each value that is to come."""
        super().__init__(model)
        self._rows = rows


class PreparedSelect(_PreparedOfRows[Row]):
    def _query(self, columns: Iterable[str]) -> Any:
        return self._rows().query

    def first(self, **values: Any) -> Row | None:
        """Return the first row, or None if there is none."""
        with self._executed(values) as (cursor, statement):
            row, connection = cursor.fetchone(), cursor.db
        if row is None:
            return None
        names = [column.target.attname for column in statement.selected]
        return self._model.from_db(connection.alias, names, statement.read(row, connection))

    def keys(self, **values: Any) -> list[Any]:
        """Return what the first column has in each row, as the database returns it."""
        with self._executed(values) as (cursor, _statement):
            return [row[0] for row in cursor.fetchall()]


class PreparedUpdate(_PreparedOfRows[Row]):
    def __init__(self, model: type[Row], rows: Callable[[], models.QuerySet[Row]], **columns: Any) -> None:
        """``columns`` get the same expressions, or slots, each time."""
        super().__init__(model, rows)
        self._columns = columns

    def _query(self, columns: Iterable[str]) -> Any:
        query: Any = self._rows().query.chain(UpdateQuery)
        query.add_update_values({**self._columns, **{name: Slot(name) for name in columns}})
        return query

    def execute(self, columns: Iterable[str] = (), **values: Any) -> int:
        """Set ``columns`` as well, whose values are among the ``values``. Return the number of rows."""
        with self._executed(values, columns) as (cursor, _statement):
            return int(cursor.rowcount)


class PreparedDelete(_PreparedOfRows[Row]):
    """Sends no signals, and leaves what refers to the rows alone."""

    def _query(self, columns: Iterable[str]) -> Any:
        return self._rows().query.chain(DeleteQuery)

    def execute(self, **values: Any) -> int:
        """Return the number of rows."""
        with self._executed(values) as (cursor, _statement):
            return int(cursor.rowcount)


class PreparedInsert(_Prepared[Row]):
    """Sends no signals, and doesn't tell the row's key."""

    @cached_property
    def _fields(self) -> list[models.Field[Any, Any]]:
        return [field for field in self._model._meta.concrete_fields if not field.primary_key]

    def _query(self, columns: Iterable[str]) -> Any:
        fields = [field for field in self._fields if field.name not in columns]
        query = InsertQuery(self._model)
        query.insert_values(fields, [self._model(**{field.attname: Slot(field.name) for field in fields})])
        return query

    @contextmanager
    def _inserted(self, row: Row) -> Iterator[tuple[Any, _Statement]]:
        values = {field.name: field.pre_save(row, add=True) for field in self._fields}
        left_to_database = [name for name, value in values.items() if isinstance(value, DatabaseDefault)]
        with self._executed(values, left_to_database) as executed:
            yield executed

    def execute(self, row: Row) -> None:
        with self._inserted(row):
            pass


class PreparedSave(PreparedInsert[Row]):
    """Inserts a row as its own ``save(force_insert=True)`` does: it gets its key, and signals are sent."""

    def _compiler(self, using: str, columns: Iterable[str]) -> Any:
        compiler = super()._compiler(using, columns)
        options = self._model._meta
        compiler.returning_fields = [options.pk, *map(options.get_field, columns)]
        return compiler

    def _selected(self, compiler: Any) -> tuple[Any, ...]:
        return tuple(field.get_col(self._model._meta.db_table) for field in compiler.returning_fields)

    def execute(self, row: Row) -> None:
        using = router.db_for_write(self._model)
        # Who listens ahead may put anything into the row that Django takes, such as expressions.
        if connections[using].vendor not in RETURN_WHAT_THEY_INSERT or pre_save.has_listeners(self._model):
            row.save(force_insert=True, using=using)
            return
        with self._inserted(row) as (cursor, statement):
            given = statement.read(cursor.fetchone(), connections[using])
        for column, value in zip(statement.selected, given, strict=True):
            setattr(row, column.target.attname, value)
        row._state.adding, row._state.db = False, using
        post_save.send(self._model, instance=row, created=True, raw=False, using=using, update_fields=None)
