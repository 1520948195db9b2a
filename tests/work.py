"""How much a database does for a query, counted and not timed."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from typing import Any

from django.db import connection
from django.db.models.sql import compiler
from django.test.utils import CaptureQueriesContext

#: Where Django writes SQL.
COMPILER = compiler.__file__
RECORDS = "powercrud_dashboard_taskrecord"


def of_request(ask, *tables: str) -> tuple[Any, int, int, list[str]]:
    """Call ``ask``; return its answer, its queries, the work of the heaviest, and the plan of that.

    Only queries of these tables are looked at, by default of the records'.
    """
    with CaptureQueriesContext(connection) as queries, counted(tables or (RECORDS,)) as done:
        answer = ask()
    heaviest = max(done, key=lambda entry: entry[0], default=(0, [""]))
    return answer, len(queries), *heaviest


class counted:
    """Collect the work and the plan of each SELECT from these tables that runs meanwhile, as a list of pairs."""

    def __init__(self, tables: tuple[str, ...]) -> None:
        self.tables = tables

    def __enter__(self) -> list[tuple[int, list[str]]]:
        self.done: list[tuple[int, list[str]]] = []
        self.wrapper = connection.execute_wrapper(self._count)
        self.wrapper.__enter__()
        return self.done

    def __exit__(self, *error: object) -> None:
        self.wrapper.__exit__(*error)

    def _count(self, execute, sql, params, many, context):
        if sql.lstrip().upper().startswith("SELECT") and any(table in sql for table in self.tables):
            on_postgresql = connection.vendor == "postgresql"
            self.done.append(_postgresql_work(sql, params, self.tables) if on_postgresql else _sqlite_work(sql, params))
        return execute(sql, params, many, context)


def compiled_models(act: Callable[[], object]) -> list[type]:
    """Call ``act``; return the model of each INSERT, UPDATE and DELETE whose SQL Django writes meanwhile."""
    written = []

    def note(frame, event, argument):
        code = frame.f_code
        if event == "call" and (code.co_name, code.co_filename) == ("as_sql", COMPILER):
            by = frame.f_locals["self"]
            if type(by) is not compiler.SQLCompiler:
                written.append(by.query.model)

    previous = sys.getprofile()
    sys.setprofile(note)
    try:
        act()
    finally:
        sys.setprofile(previous)
    return written


def _sqlite_work(sql: str, params: Any) -> tuple[int, list[str]]:
    """Return the steps of SQLite's machine in tens, about what it takes to look at a row, and the plan."""
    steps = 0

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    with closing(sqlite3.Connection.cursor(connection.connection)) as cursor:
        cursor.execute(f"EXPLAIN QUERY PLAN {_plain(sql)}", params or ())
        plan = [row[3] for row in cursor.fetchall()]
        connection.connection.set_progress_handler(step, 10)
        try:
            cursor.execute(_plain(sql), params or ()).fetchall()
        finally:
            connection.connection.set_progress_handler(None, 0)
    return steps, plan


def _plain(sql: str) -> str:
    return sql.replace("%s", "?").replace("%%", "%")


def _postgresql_work(sql: str, params: Any, tables: tuple[str, ...]) -> tuple[int, list[str]]:
    """Return the rows of the tables that were looked at, and the plan."""
    with connection.connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}", params or ())
        found = cursor.fetchone()[0]
    tree = (json.loads(found) if isinstance(found, str) else found)[0]["Plan"]
    nodes = list(_nodes(tree))
    looked_at = sum(
        (node["Actual Rows"] + node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0))
        * node["Actual Loops"]
        for node in nodes
        if node.get("Relation Name") in tables
    )
    return int(looked_at), [_line(node) for node in nodes]


def _nodes(tree: dict[str, Any]):
    yield tree
    for child in tree.get("Plans", ()):
        yield from _nodes(child)


def _line(node: dict[str, Any]) -> str:
    return " ".join(
        str(part) for part in (node["Node Type"], node.get("Relation Name", ""), node.get("Index Name", "")) if part
    )
