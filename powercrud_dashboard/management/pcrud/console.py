"""How the subcommands print: text, tables that fit the terminal, JSON, questions and progress bars."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from django.core.management.base import CommandError, OutputWrapper
from django.core.management.color import Style
from django.core.serializers.json import DjangoJSONEncoder
from django.db import Error as DatabaseError

from powercrud_dashboard.text import error_summary

Item = TypeVar("Item")

#: Columns where the output is no terminal and ``COLUMNS`` is not set.
DEFAULT_WIDTH = 80
#: Characters that a column which gives way keeps.
LEAST_WIDTH = 8
#: Characters of a progress bar.
BAR = 30

MARK = "…"
BETWEEN = "  "


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    title: str
    is_number: bool = False
    #: Whether it is shortened if the table is too wide for the terminal.
    gives_way: bool = False
    #: Whether its end is shown then, and not its beginning.
    keeps_end: bool = False


class Console:
    """Where a subcommand prints to, and whom it asks."""

    def __init__(
        self, stdout: OutputWrapper, stderr: OutputWrapper, style: Style, *, is_json: bool, verbosity: int = 1
    ) -> None:
        self._stdout = stdout
        self._stderr = stderr
        self.style: Any = style
        #: Whether the result is printed as one JSON document.
        self.is_json = is_json
        self._is_quiet = verbosity == 0
        self._document: Any = None

    @property
    def width(self) -> int:
        """The columns of the terminal."""
        return shutil.get_terminal_size((DEFAULT_WIDTH, 24)).columns

    def line(self, text: object = "", style: Any = None) -> None:
        """Print a line, or several, without what would control the terminal; nothing where JSON is printed."""
        if not self.is_json:
            # What the terminal has no character for is no reason to print nothing.
            encoding = self._encoding
            _write(self._stdout, printable(str(text)).encode(encoding, "replace").decode(encoding), style)

    def note(self, text: str) -> None:
        """Print a remark that is not part of the result."""
        if not self._is_quiet:
            _write(self._stderr, printable(text))

    @contextmanager
    def log_lines_as_notes(self) -> Iterator[None]:
        """Print warnings of this package that its block logs in one line each, where no handler takes them.

        Python would print them with their tracebacks, beside what the command says of the same.
        """
        logger = logging.getLogger("powercrud_dashboard")
        if logger.hasHandlers():
            yield
            return
        handler = _Notes(self)
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)

    def document(self, value: Any) -> None:
        """Note the result that is printed as JSON, where it is wanted, at the end."""
        self._document = value

    @contextmanager
    def one_document(self) -> Iterator[None]:
        """Print what the block has noted as its result, with its error if it raises one, where JSON is wanted.

        Raises:
            CommandError: in the place of an error of the database, and of Ctrl-C.
        """
        try:
            yield
        except CommandError as error:
            self._print_error(str(error))
            raise
        except DatabaseError as error:
            text = database_failed(error)
            self._print_error(text)
            raise CommandError(text) from error
        except KeyboardInterrupt:
            text = "Interrupted."
            self._print_error(text)
            raise CommandError(text) from None
        except Exception as error:
            self._print_error(f"{type(error).__name__}: {error}")
            raise
        self._print_json(self._document)
        _guarded(self._stdout, self._stdout.flush)

    def _print_error(self, error: str) -> None:
        known = self._document if isinstance(self._document, dict) else {}
        self._print_json({**known, "error": error})

    def _print_json(self, value: Any) -> None:
        if not self.is_json:
            return
        write = partial(json.dumps, value, indent=2, cls=DjangoJSONEncoder)
        text = write(ensure_ascii=False)
        try:
            text.encode(self._encoding)
        except UnicodeEncodeError:
            text = write()
        _write(self._stdout, text)

    @property
    def _encoding(self) -> str:
        """The encoding of the standard output; a text buffer takes any character."""
        return getattr(self._stdout, "encoding", None) or "utf-8"

    def table(self, columns: Sequence[Column], rows: Iterable[Sequence[object]]) -> None:
        """Print a table of texts. Columns that give way are shortened until it fits."""
        cells = [[in_one_line(str(cell)) for cell in row] for row in rows]
        widths = _fitting(columns, cells, self.width)
        heads = [column.title for column in columns]
        self.line(_row(columns, heads, widths), self.style.MIGRATE_HEADING)
        for row in cells:
            self.line(_row(columns, row, widths))

    def ask(self, question: str) -> bool | None:
        """Return whether the person says yes; None if there is no terminal to ask at."""
        # A job of cron or systemd may have no standard input.
        if sys.stdin is None or sys.stdin.closed or not sys.stdin.isatty():
            return None
        self._stderr.write(f"{printable(question)} [y/N] ", ending="")
        self._stderr.flush()
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def progress(self, items: Iterable[Item], total: int) -> Iterator[Item]:
        """Yield the items. On a terminal a bar shows how many are done."""
        if self._is_quiet or total < 2 or not self._stderr.isatty():
            yield from items
            return
        try:
            for number, item in enumerate(items):
                self._stderr.write(f"\r{_bar(number, total)}", ending="")
                self._stderr.flush()
                yield item
        finally:
            # The bar is no part of what stays on the screen.
            self._stderr.write(f"\r{' ' * len(_bar(total, total))}\r", ending="")
            self._stderr.flush()


class _Notes(logging.Handler):
    """Prints log records as remarks."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self._console.note(f"{record.getMessage()} ({error_summary(error)})" if error else record.getMessage())


def _write(stream: OutputWrapper, text: str, style: Any = None) -> None:
    _guarded(stream, lambda: stream.write(text, style))


def _guarded(stream: OutputWrapper, print_to: Callable[[], object]) -> None:
    """Print. Who reads a pipe may have seen enough, as ``head`` has; what is to be done is done nevertheless."""
    try:
        print_to()
    except BrokenPipeError:
        # For Python as well, which flushes the stream at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def database_failed(error: Exception) -> str:
    """Return what is said of an error of the database."""
    return f"The database has failed: {str(error).strip()}\n'manage.py pcrud doctor' looks for the reason."


def _bar(done: int, total: int) -> str:
    filled = BAR * done // total
    return f"[{'#' * filled}{'.' * (BAR - filled)}] {done:>{len(str(total))}}/{total}"


def counted(number: int, noun: str) -> str:
    """Return "1 task", "2 tasks"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def printable(text: str) -> str:
    """Return a text without control characters but for line breaks and tabs: it may be anybody's."""
    if text.isprintable():
        return text
    return "".join(
        character
        if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cs")
        else "\N{REPLACEMENT CHARACTER}"
        for character in text.replace("\r\n", "\n")
    )


def in_one_line(text: str) -> str:
    """Return a text for a cell of a table."""
    return printable(" ".join(text.split()))


def cells_of(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def shortened(text: str, width: int, *, keeps_end: bool = False) -> str:
    """Return the beginning of a text, or its end, that takes so many columns at most."""
    if cells_of(text) <= width:
        return text
    while text and cells_of(text) > width - 1:
        text = text[1:] if keeps_end else text[:-1]
    return f"{MARK}{text}" if keeps_end else f"{text}{MARK}"


def _fitting(columns: Sequence[Column], rows: Sequence[Sequence[str]], available: int) -> list[int]:
    """Return the width of each column: what it needs, or less if it gives way, the widest first."""
    widths = [
        max(cells_of(column.title), *(cells_of(row[number]) for row in rows)) if rows else cells_of(column.title)
        for number, column in enumerate(columns)
    ]
    flexible = [number for number, column in enumerate(columns) if column.gives_way]
    excess = sum(widths) + len(BETWEEN) * (len(columns) - 1) - available
    while excess > 0 and flexible:
        widest = max(flexible, key=lambda number: widths[number])
        if widths[widest] <= LEAST_WIDTH:
            break
        widths[widest] -= 1
        excess -= 1
    return widths


def _row(columns: Sequence[Column], cells: Sequence[str], widths: Sequence[int]) -> str:
    shown = []
    for column, cell, width in zip(columns, cells, widths, strict=True):
        text = shortened(cell, width, keeps_end=column.keeps_end)
        space = " " * (width - cells_of(text))
        shown.append(f"{space}{text}" if column.is_number else f"{text}{space}")
    return BETWEEN.join(shown).rstrip()
