"""The index that finds words in task records: FTS5 on SQLite, a ``tsvector`` with GIN on PostgreSQL.

Words are matched by prefix, without regard to case. A SQLite without FTS5 has no index: its columns are searched one
by one, which takes longer the more records there are.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from functools import reduce
from operator import or_
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import F, Lookup, Q, QuerySet, Transform
from django.db.models.functions import Lower

from powercrud_dashboard.models.history import TaskRecord, TaskRecordQuerySet
from powercrud_dashboard.models.objects import TaskObject
from powercrud_dashboard.text import is_storable

TABLE = TaskRecord._meta.db_table
INDEX = f"{TABLE}_words"

#: Columns by the kind of search. The letters are PostgreSQL's weights, of which there are four.
FIELDS = {
    "task": ("A", ("label", "func")),
    "person": ("B", ("user_label",)),
    "text": ("C", ("message", "error", "task_name")),
    "model": ("D", ("model_labels",)),
    "status": ("D", ("status", "resolution")),
}
COLUMNS = tuple(column for __, columns in FIELDS.values() for column in columns)

#: Up to this number of expected matches, all are looked up in the index first. With more, PostgreSQL's planner decides
#: and may walk along the primary key instead. The planner takes words for independent of each other: for frequent words
#: that never occur together, such as an error's among the completed tasks, such a walk would visit every row.
LOOKED_UP_AT_ONCE = 25_000

#: The newest records, in which the first page of a frequent word is searched for first.
LOOKED_THROUGH = 10_000

#: SQLite lists all matches before it filters any, so that it considers only this number of the newest matches.
CONSIDERED = 10_000


#: Words of a search that are looked for; more make an expression that SQLite refuses.
MAX_WORDS = 50


@dataclass(frozen=True)
class Words:
    """Words that must all be found in columns of the same kinds (keys of ``FIELDS``)."""

    kinds: tuple[str, ...]
    words: tuple[str, ...]
    #: Whole words next to each other, in this order, instead of prefixes in any order.
    is_phrase: bool = False
    #: Whole words in any order, which are found faster than prefixes.
    are_whole: bool = False

    @classmethod
    def of(cls, text: str, *kinds: str, is_phrase: bool = False, are_whole: bool = False) -> Words:
        words = tuple(re.findall(r"[^\W_]+", text.lower())[:MAX_WORDS])
        return cls(kinds, words, is_phrase, is_phrase or are_whole)

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
    records: TaskRecordQuerySet,
    wanted: Iterable[Words],
    *,
    status: str = "",
    considers_all: bool = False,
    to_count: bool = False,
) -> TaskRecordQuerySet:
    """Return those of the records in which all of the words are found.

    ``status`` is a status or a resolution that the caller filters by as well, which the index knows too. SQLite
    considers only the newest ``CONSIDERED`` matches, unless ``considers_all``. With ``to_count`` the records are
    returned in no order.
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
            # Without an order there is no index to walk along, and each row is visited once.
            return records.filter(_Matches(F("pk"), parts)).order_by()
        return records.filter(_Matches(F("pk"), parts, _Way.AT_ONCE if at_once else _Way.PLANNED))
    return records.filter(_Matches(F("pk"), parts, at_most=None if considers_all else CONSIDERED))


def matching_newest(
    records: QuerySet[TaskRecord], wanted: Iterable[Words], *, status: str = ""
) -> QuerySet[TaskRecord] | None:
    """Return those of the ``LOOKED_THROUGH`` newest records in which all of the words are found.

    None where this is not the fastest way to the newest matches. On PostgreSQL it is the fastest if there are many
    matches: its index does not know which are the newest, so that all would be visited.
    """
    parts = _with_status(wanted, status)
    if _kind(connections[records.db]) != "postgresql" or not all(part.words for part in parts):
        return None
    newest = TaskRecord.objects.using(records.db).order_by("-pk").values_list("pk", flat=True).first() or 0
    return records.filter(_Matches(F("pk"), parts, _Way.ROW_BY_ROW), pk__gt=newest - LOOKED_THROUGH)


def _with_status(wanted: Iterable[Words], status: str) -> list[Words]:
    return [*wanted, *([Words.of(status, "status", is_phrase=True)] if status else ())]


class _Unindexed(Transform):
    """The column itself, but without the use of its index on SQLite."""

    lookup_name = "unindexed"

    template = "%(expressions)s"

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> tuple[str, Any]:
        return self.as_sql(compiler, connection, template="+%(expressions)s")


#: Columns that lists are filtered by, each of which has an index. SQLite does not know how many rows an index leads
#: to: it would use theirs and search for the words in each row.
_INDEXED = ("status", "created_at", "finished_at", "run_time", "group", "cluster")
for _name in (*_INDEXED, "error_pattern", "exception_class", "failure_reason", "resolution"):
    TaskRecord._meta.get_field(_name).register_lookup(_Unindexed)  # type: ignore[union-attr]


def beside_words(column: str) -> str:
    """Return the lookup of a column in a query that searches for words too."""
    return f"{column}__{_Unindexed.lookup_name}"


def is_bounded(wanted: Iterable[Words], *, status: str = "", using: str) -> bool:
    """Return whether there are more matches than :func:`matching` considers."""
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
    """Return the number of matches that PostgreSQL's planner expects."""
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

    #: As its planner decides.
    PLANNED = "{table}.words @@ to_tsquery('simple', %s)"
    #: All by the index: the array is computed first, so that the planner can't choose a walk or a join.
    AT_ONCE = f"{{pk}} = ANY (ARRAY(SELECT id FROM {TABLE} WHERE words @@ to_tsquery('simple', %s)))"  # noqa: S608
    #: Only in the rows that other conditions leave: by the operator's own function, which uses no index.
    ROW_BY_ROW = "ts_match_vq({table}.words, to_tsquery('simple', %s))"


class _Matches(Lookup):
    """Whether the record with this primary key matches the words.

    It is a lookup, as Django writes that into WHERE unchanged. It may compare a boolean expression with true, and
    then SQLite does not use the index.
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
    """Create the index on a database that supports it, unless it is complete.

    It is called after each ``migrate``, as SQLite changes a table by copying it, which loses the triggers. A migration
    that changes a column of the index on PostgreSQL drops the ``words`` column first.
    """
    tables = connection.introspection.table_names()
    if OBJECTS in tables:
        with connection.cursor() as cursor:
            cursor.execute(_CREATE_OBJECT_INDEX[connection.vendor])
    kind = _kind(connection)
    if not kind or TABLE not in tables:
        return
    with connection.cursor() as cursor:
        cursor.execute(*_COUNT_PARTS[kind])
        if cursor.fetchone()[0] == PARTS[kind]:
            return
        columns = {column.name for column in connection.introspection.get_table_description(cursor, TABLE)}
        if not columns.issuperset(COLUMNS):
            # Migrated back to before the index.
            return
        for statement in (*_DROP[kind], *_CREATE[kind]):
            cursor.execute(statement)


OBJECTS = TaskObject._meta.db_table

#: An index in which names that begin alike are next to each other, whatever the collation of the database is.
_CREATE_OBJECT_INDEX = {
    "sqlite": f"CREATE INDEX IF NOT EXISTS pcrud_object_name ON {OBJECTS} (lower(text))",
    "postgresql": f"CREATE INDEX IF NOT EXISTS pcrud_object_name ON {OBJECTS} (lower(text) varchar_pattern_ops)",
}
TaskObject._meta.get_field("text").register_lookup(Lower)

#: Entries of objects that are looked at to find different ones.
OBJECTS_LOOKED_AT = 200


def named_objects(entries: QuerySet[TaskObject], text: str, at_most: int) -> list[TaskObject]:
    """Return entries of the first objects that have this key, or whose names begin with this text.

    Args:
        entries: the entries to look in.
        text: the key, or the beginning of the name in upper or lower case.
        at_most: how many objects are returned.
    """
    start = text.strip().lower()
    if not start or not is_storable(start):
        return []
    if connections[entries.db].vendor == "postgresql":
        begins = Q(text__lower__startswith=start)
    else:
        # Its LIKE does not use the index.
        begins = Q(text__lower__gte=start, text__lower__lt=start + chr(sys.maxunicode))
    found: dict[tuple[str, str], TaskObject] = {}
    for condition in (Q(object_id=text.strip()), begins):
        for entry in entries.filter(condition).defer("traceback", "error")[:OBJECTS_LOOKED_AT]:
            found.setdefault((entry.model_label, entry.object_id), entry)
    return list(found.values())[:at_most]


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
#: The number of parts of a complete index: table and triggers, or the index alone, which needs its column.
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
