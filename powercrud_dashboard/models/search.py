"""The index that finds words in task records: FTS5 on SQLite, a ``tsvector`` with GIN on PostgreSQL.

Words are found by their beginnings, without regard to case. Other databases have no index here; they
look into the columns one by one, which takes longer the more records there are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from functools import reduce
from operator import or_
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import F, Lookup, Q, QuerySet, Transform

from powercrud_dashboard.models.history import TaskRecord

TABLE = TaskRecord._meta.db_table
INDEX = f"{TABLE}_words"

#: Columns by the kind of question. The letters are PostgreSQL's weights, of which there are four.
FIELDS = {
    "task": ("A", ("label", "func")),
    "person": ("B", ("user_label",)),
    "text": ("C", ("message", "error", "task_name")),
    "model": ("D", ("model_labels",)),
    "status": ("D", ("status",)),
}
COLUMNS = tuple(column for __, columns in FIELDS.values() for column in columns)

#: PostgreSQL looks up words all at once if it expects no more matches than these, and otherwise meets them on its walk
#: along the primary key. It takes words for independent of each other, so that for words which are frequent but
#: never meet, such as an error's among the completed tasks, it would walk to the end.
LOOKED_UP_AT_ONCE = 25_000

#: Records among which the newest matches of many are looked for first.
LOOKED_THROUGH = 10_000

#: SQLite makes a list of all that match before it looks at any: the newest so many are enough to page through.
CONSIDERED = 10_000


@dataclass(frozen=True)
class Words:
    """Words that all have to be found in the same kind of columns (a key, or keys, of ``FIELDS``)."""

    kinds: tuple[str, ...]
    words: tuple[str, ...]
    #: Whole words next to each other, in this order, instead of beginnings in any order.
    is_phrase: bool = False
    #: Whole words in any order, which are found sooner than all that begin with them.
    are_whole: bool = False

    @classmethod
    def of(cls, text: str, *kinds: str, is_phrase: bool = False, are_whole: bool = False) -> Words:
        return cls(kinds, tuple(re.findall(r"[^\W_]+", text.lower())), is_phrase, is_phrase or are_whole)

    @property
    def columns(self) -> list[str]:
        return [column for kind in self.kinds for column in FIELDS[kind][1]]

    def as_fts5(self) -> str:
        quoted = [f'"{word}"' for word in self.words]
        beginning = "" if self.are_whole else "*"
        wanted = " + ".join(quoted) if self.is_phrase else " AND ".join(f"{word}{beginning}" for word in quoted)
        return f"{{{' '.join(self.columns)}}} : ({wanted})"

    def as_tsquery(self) -> str:
        weights = "".join(FIELDS[kind][0] for kind in self.kinds)
        beginning = "" if self.are_whole else "*"
        quoted = [f"'{word}':{beginning}{weights}" for word in self.words]
        return f"({(' <-> ' if self.is_phrase else ' & ').join(quoted)})"

    def as_lookups(self) -> Q:
        found = Q()
        for word in self.words:
            found &= reduce(or_, (Q((f"{column}__icontains", word)) for column in self.columns))
        return found


def matching(
    records: QuerySet[TaskRecord],
    wanted: Iterable[Words],
    *,
    status: str = "",
    considers_all: bool = False,
    to_count: bool = False,
) -> QuerySet[TaskRecord]:
    """Return those of the records in which all of the words are found.

    ``status`` is one that the caller filters by as well: it helps the index. SQLite looks at the newest
    ``CONSIDERED`` matches only, unless ``considers_all``. ``to_count`` are records whose order may be given up.
    """
    words = list(wanted)
    if not all(part.words for part in words):
        return records.none()
    if not has_index(records.db):
        return records.filter(*(part.as_lookups() for part in words))
    parts = _with_status(words, status)
    if _kind(connections[records.db]) == "postgresql":
        at_once = _expected(parts, records.db) <= LOOKED_UP_AT_ONCE
        if at_once and to_count:
            # Without an order there is nothing to walk along, and each row is visited once.
            return records.filter(_Matches(F("pk"), parts)).order_by()
        return records.filter(_Matches(F("pk"), parts, _Way.AT_ONCE if at_once else _Way.PLANNED))
    return records.filter(_Matches(F("pk"), parts, at_most=None if considers_all else CONSIDERED))


def matching_newest(
    records: QuerySet[TaskRecord], wanted: Iterable[Words], *, status: str = ""
) -> QuerySet[TaskRecord] | None:
    """Return those of the ``LOOKED_THROUGH`` newest records in which all of the words are found.

    None where this is not the quickest way to the newest matches. On PostgreSQL it is, if there are many: the index
    does not know which are the newest, so that all would have to be visited.
    """
    parts = _with_status(wanted, status)
    if _kind(connections[records.db]) != "postgresql" or not all(part.words for part in parts):
        return None
    newest = TaskRecord.objects.using(records.db).order_by("-pk").values_list("pk", flat=True).first() or 0
    return records.filter(_Matches(F("pk"), parts, _Way.ROW_BY_ROW), pk__gt=newest - LOOKED_THROUGH)


def _with_status(wanted: Iterable[Words], status: str) -> list[Words]:
    return [*wanted, *([Words.of(status, "status", is_phrase=True)] if status else ())]


class _Unindexed(Transform):
    """The column as it is, but on SQLite not by way of its index."""

    lookup_name = "unindexed"

    template = "%(expressions)s"

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> tuple[str, Any]:
        return self.as_sql(compiler, connection, template="+%(expressions)s")


#: Columns that lists are filtered by, each of which has an index. SQLite, which knows nothing of how many rows an
#: index leads to, would take theirs and look for the words in each row.
for _name in ("status", "created_at", "finished_at", "run_time", "group", "cluster", "error_pattern"):
    TaskRecord._meta.get_field(_name).register_lookup(_Unindexed)  # type: ignore[union-attr]


def beside_words(column: str) -> str:
    """Return how to filter by a column in a query that is about words as well."""
    return f"{column}__{_Unindexed.lookup_name}"


def is_bounded(wanted: Iterable[Words], *, status: str = "", using: str) -> bool:
    """Return whether more match than :func:`matching` looks at."""
    connection = connections[using]
    if _kind(connection) != "sqlite":
        return False
    parts = _with_status(wanted, status)
    if not all(part.words for part in parts):
        return False
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT COUNT(*) FROM ({_fts5_rows(CONSIDERED + 1)})", [_fts5_query(parts)])  # noqa: S608
        return bool(cursor.fetchone()[0] > CONSIDERED)


def _expected(parts: Iterable[Words], using: str) -> int:
    """Return how many matches PostgreSQL's planner expects."""
    with connections[using].cursor() as cursor:
        cursor.execute(
            f"EXPLAIN (FORMAT JSON) SELECT 1 FROM {TABLE} WHERE words @@ to_tsquery('simple', %s)",  # noqa: S608
            [_tsquery(parts)],
        )
        (plan,) = cursor.fetchone()
    return int(plan[0]["Plan"]["Plan Rows"])


def _tsquery(parts: Iterable[Words]) -> str:
    return " & ".join(part.as_tsquery() for part in parts)


def _fts5_rows(at_most: int | None) -> str:
    rows = f"SELECT rowid FROM {INDEX} WHERE {INDEX} MATCH %s"  # noqa: S608
    return rows if at_most is None else f"{rows} ORDER BY rowid DESC LIMIT {at_most:d}"


def _fts5_query(parts: Iterable[Words]) -> str:
    return " AND ".join(part.as_fts5() for part in parts)


def has_index(using: str) -> bool:
    """Return whether this database has the index."""
    return _kind(connections[using]) != ""


class _Way(Enum):
    """How PostgreSQL finds the words of a query."""

    #: As its planner likes.
    PLANNED = "{table}.words @@ to_tsquery('simple', %s)"
    #: All of them by the index: an array is made before anything else, so that no walk or join can come of it.
    AT_ONCE = f"{{pk}} = ANY (ARRAY(SELECT id FROM {TABLE} WHERE words @@ to_tsquery('simple', %s)))"  # noqa: S608
    #: In the rows that other conditions leave: by the operator's own function, which no index helps.
    ROW_BY_ROW = "ts_match_vq({table}.words, to_tsquery('simple', %s))"


class _Matches(Lookup):
    """Whether the record with this primary key is in the index under the wanted words.

    A lookup, which Django writes into WHERE as it is: a boolean expression it may compare with true first,
    and then SQLite does not look into the index.
    """

    prepare_rhs = False

    def __init__(
        self, pk: Any, parts: Iterable[Words], way: _Way = _Way.PLANNED, *, at_most: int | None = None
    ) -> None:
        super().__init__(pk, (tuple(parts), way, at_most))

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> tuple[str, tuple[Any, ...]]:
        pk, params = compiler.compile(self.lhs)
        parts, __, at_most = self.rhs
        return f"{pk} IN ({_fts5_rows(at_most)})", (*params, _fts5_query(parts))

    def as_postgresql(self, compiler: Any, connection: Any, **context: Any) -> tuple[str, tuple[Any, ...]]:
        pk, params = compiler.compile(self.lhs)
        parts, way, __ = self.rhs
        table, __, __ = pk.rpartition(".")
        return way.value.format(pk=pk, table=table), (*params, _tsquery(parts))


def ensure_index(connection: BaseDatabaseWrapper) -> None:
    """Make the index on a database that can have it, unless it is there and complete.

    Called after each ``migrate``, as SQLite changes a table by copying it, which loses the triggers. A migration
    that changes a column of the index on PostgreSQL drops the ``words`` column first.
    """
    kind = _kind(connection)
    if not kind or TABLE not in connection.introspection.table_names():
        return
    with connection.cursor() as cursor:
        cursor.execute(*_COUNT_PARTS[kind])
        if cursor.fetchone()[0] == PARTS[kind]:
            return
        columns = {column.name for column in connection.introspection.get_table_description(cursor, TABLE)}
        if not columns.issuperset(COLUMNS):
            # Migrated back to a state of before the index.
            return
        for statement in (*_DROP[kind], *_CREATE[kind]):
            cursor.execute(statement)


def _kind(connection: BaseDatabaseWrapper) -> str:
    if connection.vendor == "sqlite":
        return "sqlite" if _sqlite_has_fts5(connection) else ""
    return "postgresql" if connection.vendor == "postgresql" else ""


def _sqlite_has_fts5(connection: Any) -> bool:
    known = getattr(connection, "_pcrud_has_fts5", None)
    if known is None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT sqlite_compileoption_used('ENABLE_FTS5')")
            known = connection._pcrud_has_fts5 = bool(cursor.fetchone()[0])
    return bool(known)


def _values(row: str) -> str:
    return ", ".join(f'{row}."{column}"' for column in COLUMNS)


_NAMES = ", ".join(f'"{column}"' for column in COLUMNS)
_FORGET = f"INSERT INTO {INDEX} ({INDEX}, rowid, {_NAMES}) VALUES ('delete', old.id, {_values('old')});"  # noqa: S608
_ADD = f"INSERT INTO {INDEX} (rowid, {_NAMES}) VALUES (new.id, {_values('new')});"  # noqa: S608

_TRIGGERS = {
    "insert": f"AFTER INSERT ON {TABLE} BEGIN {_ADD} END",
    "delete": f"AFTER DELETE ON {TABLE} BEGIN {_FORGET} END",
    "update": f"AFTER UPDATE OF {_NAMES} ON {TABLE} BEGIN {_FORGET} {_ADD} END",
}

#: PostgreSQL's parser takes "a.b" for a host and "a/b" for a path: punctuation goes first.
_PUNCTUATION = "[!-/:-@\\[-`{-~]+"


def _tsvector(weight: str, columns: tuple[str, ...]) -> str:
    text = " || ' ' || ".join(f'"{column}"' for column in columns)
    return f"setweight(to_tsvector('simple', regexp_replace({text}, '{_PUNCTUATION}', ' ', 'g')), '{weight}')"


_CREATE = {
    "sqlite": (
        f"CREATE VIRTUAL TABLE {INDEX} USING fts5({', '.join(COLUMNS)}, content='{TABLE}', content_rowid='id')",
        f"INSERT INTO {INDEX} ({INDEX}) VALUES ('rebuild')",  # noqa: S608
        *(f"CREATE TRIGGER {INDEX}_{name} {body}" for name, body in _TRIGGERS.items()),
    ),
    "postgresql": (
        f"ALTER TABLE {TABLE} ADD COLUMN words tsvector GENERATED ALWAYS AS "
        f"({' || '.join(_tsvector(*kind) for kind in FIELDS.values())}) STORED",
        f"CREATE INDEX {INDEX} ON {TABLE} USING gin (words)",
    ),
}
_DROP = {
    "sqlite": (
        *(f"DROP TRIGGER IF EXISTS {INDEX}_{name}" for name in _TRIGGERS),
        f"DROP TABLE IF EXISTS {INDEX}",
    ),
    "postgresql": (f"DROP INDEX IF EXISTS {INDEX}", f"ALTER TABLE {TABLE} DROP COLUMN IF EXISTS words"),
}
#: What a complete index consists of: table and triggers, or the index alone, which needs its column.
PARTS = {"sqlite": 1 + len(_TRIGGERS), "postgresql": 1}
_COUNT_PARTS: dict[str, tuple[str, list[str]]] = {
    "sqlite": (
        "SELECT COUNT(*) FROM sqlite_master WHERE name = %s OR (type = 'trigger' AND tbl_name = %s AND name LIKE %s)",
        [INDEX, TABLE, f"{INDEX}_%"],
    ),
    "postgresql": (
        "SELECT COUNT(*) FROM pg_indexes "
        "WHERE indexname = %s AND tablename = %s AND schemaname = ANY (current_schemas(false))",
        [INDEX, TABLE],
    ),
}
