"""Statements whose SQL Django writes once for each process; after that only their values change.

Django takes several times as long to write a short statement as the database takes to execute it, and it does so
while a transaction is open that others wait for. The statements of every launch and every task are prepared for that
reason. What each of them gains is in the documentation, on the page about performance. So are those of the task list,
which many people refresh.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from django.db import connections, models, router, transaction
from django.db.models import Expression
from django.db.models.expressions import DatabaseDefault
from django.db.models.signals import post_save, pre_save
from django.db.models.sql import DeleteQuery, InsertQuery, Query, UpdateQuery
from django.utils.functional import cached_property

from powercrud_dashboard.models.database import coordination_db

Row = TypeVar("Row", bound=models.Model)


class Slot(Expression):
    """Stands in a statement for a value of this field, which is given when the statement is executed.

    It is given by the name of the field, or by another one.
    """

    def __init__(self, field: str, given_as: str = "") -> None:
        super().__init__()
        self.field_name = field
        self.given_as = given_as or field

    def as_sql(self, compiler: Any, connection: Any) -> tuple[str, Any]:
        return "%s", [self]


@dataclass(frozen=True)
class _Given:
    """A value that is given later, and the field whose form it gets."""

    field: models.Field[Any, Any]
    name: str
    #: Whether it is a text. An empty one is stored as it is, as ``None`` is in each column of this package.
    is_text: bool


@dataclass(frozen=True)
class _Statement:
    sql: str
    #: Fixed values, and a field for each value that is given later.
    params: tuple[Any, ...]
    #: The columns that it returns, and the positions of those whose values are converted.
    returned: tuple[Any, ...]
    converted: tuple[int, ...]

    def read(self, row: Iterable[Any], connection: Any) -> list[Any]:
        """Return the values of a row in the form that the fields have in Python."""
        values = list(row)
        for position in self.converted:
            column = self.returned[position]
            for convert in (*connection.ops.get_db_converters(column), *column.get_db_converters(connection)):
                values[position] = convert(values[position], column, connection)
        return values


def values_of(expressions: Callable[[], Iterable[Any]], *kept_as: Hashable) -> list[Any]:
    """Return the values of expressions such as subqueries, which belong to no row of a table, in one query.

    Args:
        expressions: returns them.
        *kept_as: tells them from all others, if they are the same each time: then they are asked for once.
    """
    using = coordination_db()
    connection = connections[using]
    key = (using, *kept_as)
    if (statement := _selects.get(key)) is None:
        query = Query(None)
        for number, expression in enumerate(expressions()):
            query.add_annotation(expression, f"value{number}")
        compiler = query.get_compiler(using)
        sql, params = compiler.as_sql()
        columns = tuple(column for column, *_sql in compiler.select)
        statement = _Statement(sql, params, columns, tuple(compiler.get_converters(columns)))
        if kept_as:
            _selects[key] = statement
    with connection.cursor() as cursor:
        cursor.execute(statement.sql, statement.params)
        return statement.read(cursor.fetchone(), connection)


_selects: dict[tuple[Hashable, ...], _Statement] = {}


class _Prepared(Generic[Row]):
    def __init__(self, model: type[Row]) -> None:
        self._model = model
        self._statements: dict[tuple[object, ...], _Statement] = {}

    def _query(self, columns: Sequence[str], rows: int) -> Any:
        raise NotImplementedError

    def _returned(self, columns: Sequence[str]) -> Sequence[str]:
        """Return the names of the fields whose values the statement returns."""
        return ()

    @contextmanager
    def _executed(
        self, values: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()
    ) -> Iterator[tuple[Any, _Statement]]:
        """Execute the statement for one or more rows of values. ``columns`` tell apart the forms that it has."""
        using = router.db_for_write(self._model)
        connection = connections[using]
        statement = self._statement(using, columns, len(values))
        slots_of_row = len(statement.params) // len(values)
        params = [
            _in_form_of(param, values[number // slots_of_row][param.name], connection)
            if isinstance(param, _Given)
            else param
            for number, param in enumerate(statement.params)
        ]
        with transaction.mark_for_rollback_on_error(using), connection.cursor() as cursor:
            cursor.execute(statement.sql, params)
            yield cursor, statement

    def _statement(self, using: str, columns: Sequence[str], rows: int) -> _Statement:
        key = (using, rows, *columns)
        if (statement := self._statements.get(key)) is None:
            statement = self._statements[key] = self._written(using, columns, rows)
        return statement

    def _written(self, using: str, columns: Sequence[str], rows: int) -> _Statement:
        compiler = self._query(columns, rows).get_compiler(using)
        written = compiler.as_sql()
        # An INSERT is a list of statements for Django; without returned columns of its own it is always one.
        sql, params = written[0] if isinstance(written, list) else written
        options = self._model._meta
        fields: Any = [options.get_field(name) for name in self._returned(columns)]
        if fields:
            names = ", ".join(compiler.connection.ops.quote_name(field.column) for field in fields)
            sql = f"{sql} RETURNING {names}"
        returned = tuple(field.get_col(options.db_table) for field in fields)
        return _Statement(
            sql,
            tuple(_given(param, options) if isinstance(param, Slot) else param for param in params),
            returned,
            tuple(compiler.get_converters(returned)),
        )


def _given(slot: Slot, options: Any) -> _Given:
    field = options.get_field(slot.field_name)
    return _Given(field, slot.given_as, is_text=isinstance(field, models.CharField | models.TextField))


def _in_form_of(given: _Given, value: Any, connection: Any) -> Any:
    """Return a value as the database takes it. Most columns of most rows are empty, which needs no conversion."""
    if value is None or (given.is_text and type(value) is str and not value):
        return value
    return given.field.get_db_prep_save(value, connection)


def _column(field: models.Field[Any, Any], rows: Sequence[Mapping[str, Any]], connection: Any) -> list[Any]:
    given = _given(Slot(field.name), field.model._meta)
    forms: list[Any] = []
    form: Any = None
    default, last = object(), object()
    for row in rows:
        value = row.get(field.name, default)
        # Most columns of most rows have their default, or the value of the row before.
        if value is not last:
            last = value
            form = _in_form_of(given, field.get_default() if value is default else value, connection)
        forms.append(form)
    return forms


class PreparedUpdate(_Prepared[Row]):
    """An UPDATE, which may return the row that it has changed."""

    def __init__(
        self,
        model: type[Row],
        rows: Callable[[], models.QuerySet[Row]],
        returned: Sequence[str] | None = None,
        **columns: Any,
    ) -> None:
        """Prepare it.

        Args:
            model: the model of the rows.
            rows: returns a queryset with a :class:`Slot` in the place of each value that is given later.
            returned: names of the fields that :meth:`first` loads; all, if None.
            **columns: expressions or slots that are set each time.
        """
        super().__init__(model)
        self._rows = rows
        self._columns = columns
        self._loaded = returned

    def _query(self, columns: Sequence[str], rows: int) -> Any:
        query: Any = self._rows().query.chain(UpdateQuery)
        names = [name for name in columns if name != _RETURNING]
        query.add_update_values({**self._columns, **{name: Slot(name) for name in names}})
        return query

    def _returned(self, columns: Sequence[str]) -> Sequence[str]:
        if _RETURNING not in columns:
            return ()
        # In the order of the model's fields, as from_db() takes them.
        names = [field.name for field in self._model._meta.concrete_fields]
        return names if self._loaded is None else [name for name in names if name in self._loaded]

    def execute(self, columns: Iterable[str] = (), **values: Any) -> int:
        """Set ``columns`` as well, whose values are among ``values``. Return the number of rows changed."""
        with self._executed([values], list(columns)) as (cursor, _statement):
            return int(cursor.rowcount)

    def first(self, columns: Iterable[str] = (), **values: Any) -> Row | None:
        """Do the same and return the row; None if no row was changed."""
        with self._executed([values], [*columns, _RETURNING]) as (cursor, statement):
            row, connection = cursor.fetchone(), cursor.db
        if row is None:
            return None
        names = [column.target.attname for column in statement.returned]
        return self._model.from_db(connection.alias, names, statement.read(row, connection))


#: Tells the form of an UPDATE that returns its row; no field has such a name.
_RETURNING = "+"


class PreparedDelete(_Prepared[Row]):
    """A DELETE that sends no signals and leaves alone what refers to the rows."""

    def __init__(self, model: type[Row], rows: Callable[[], models.QuerySet[Row]]) -> None:
        super().__init__(model)
        self._rows = rows

    def _query(self, columns: Sequence[str], rows: int) -> Any:
        return self._rows().query.chain(DeleteQuery)

    def execute(self, **values: Any) -> int:
        """Return the number of rows deleted."""
        with self._executed([values]) as (cursor, _statement):
            return int(cursor.rowcount)


class PreparedInsert(_Prepared[Row]):
    """An INSERT that sends no signals and does not return the keys of the rows."""

    def __init__(self, model: type[Row]) -> None:
        super().__init__(model)
        self._with_arrays: dict[str, str] = {}

    @cached_property
    def _fields(self) -> list[models.Field[Any, Any]]:
        return [field for field in self._model._meta.concrete_fields if not field.primary_key]

    def _query(self, columns: Sequence[str], rows: int) -> Any:
        fields = [field for field in self._fields if field.name not in columns]
        query = InsertQuery(self._model)
        row = {field.attname: Slot(field.name) for field in fields}
        query.insert_values(fields, [self._model(**row) for _ in range(rows)])
        return query

    def execute(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Insert the rows, given by the values of all of their fields, in one statement."""
        with self._executed(rows):
            pass

    def converted(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the rows for :meth:`insert`, with the values in the form that the database takes.

        Fields that a row does not have get their defaults. It takes longer than the statement itself, and can be done
        before a transaction begins.
        """
        connection = connections[router.db_for_write(self._model)]
        columns = [_column(field, rows, connection) for field in self._fields]
        names = [field.name for field in self._fields]
        return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]

    def insert(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Insert any number of converted rows in this way."""
        using = router.db_for_write(self._model)
        if using not in self._with_arrays:
            self._with_arrays[using] = self._written_with_arrays(using)
        sql = self._with_arrays[using]
        with transaction.mark_for_rollback_on_error(using), connections[using].cursor() as cursor:
            if sql:
                cursor.execute(sql, [[row[field.name] for row in rows] for field in self._fields])
                return
            statement = self._statement(using, (), 1)
            cursor.executemany(
                statement.sql,
                [
                    [row[param.name] if isinstance(param, _Given) else param for param in statement.params]
                    for row in rows
                ],
            )

    def _written_with_arrays(self, using: str) -> str:
        """Return Django's INSERT of several rows if its text is the same for any number of them, or "".

        On PostgreSQL it takes an array for each column, which costs the server half of what single rows do.
        """
        query = InsertQuery(self._model)
        query.insert_values(self._fields, [self._model(), self._model()], raw=True)
        ((sql, params),) = query.get_compiler(using).as_sql()
        return str(sql) if len(params) == len(self._fields) else ""


class PreparedSave(PreparedInsert[Row]):
    """Inserts one row as ``save(force_insert=True)`` does: the row gets its key, and signals are sent."""

    def _returned(self, columns: Sequence[str]) -> Sequence[str]:
        return [self._model._meta.pk.name, *columns]

    def save(self, row: Row) -> None:
        """Insert the row."""
        using = router.db_for_write(self._model)
        if pre_save.has_listeners(self._model):
            # A receiver may put anything into the row that Django's own save takes, such as expressions.
            row.save(force_insert=True, using=using)
            return
        values = {field.name: field.pre_save(row, add=True) for field in self._fields}
        left_to_database = [name for name, value in values.items() if isinstance(value, DatabaseDefault)]
        with self._executed([values], left_to_database) as (cursor, statement):
            given = statement.read(cursor.fetchone(), connections[using])
        for column, value in zip(statement.returned, given, strict=True):
            setattr(row, column.target.attname, value)
        row._state.adding, row._state.db = False, using
        post_save.send(self._model, instance=row, created=True, raw=False, using=using, update_fields=None)
