"""What the subcommands share: their base class, their exit codes, and the person whom the history records."""

from __future__ import annotations

import argparse
import getpass
import json
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError, CommandParser

from powercrud_dashboard.management.pcrud.console import Console
from powercrud_dashboard.text import storable

#: Exit codes beside 0: something failed or was refused, and arguments that make no sense.
FAILED, USAGE = 1, 2


def failed(text: str) -> CommandError:
    """Return the error of a command that has not done all that it was told to do."""
    return CommandError(text, returncode=FAILED)


def misused(text: str) -> CommandError:
    """Return the error of a command that can't do anything with its arguments."""
    return CommandError(text, returncode=USAGE)


class Parser(CommandParser):
    """Refuses arguments with the same exit code, whoever has called the command."""

    def error(self, message: str) -> Any:
        if not self.called_from_command_line:
            raise misused(f"Error: {message}")
        if "--json" in sys.argv:
            self._print_message(f"{json.dumps({'error': message}, indent=2)}\n", sys.stdout)
        super().error(message)


class StrictCommand(BaseCommand):
    """A command whose exit code for wrong arguments is always that of usage errors."""

    def create_parser(self, *args: Any, **kwargs: Any) -> CommandParser:
        parser = super().create_parser(*args, **kwargs)
        # Django leaves no choice of the class.
        parser.__class__ = Parser
        return parser


class Interruptible(AbstractContextManager["Interruptible"]):
    """Iterates over items. Ctrl-C stops that after the item at hand; only a second one interrupts that item, too."""

    def __init__(self, items: Iterable[Any]) -> None:
        self._items = items
        #: Whether items were left out.
        self.is_interrupted = False
        self._is_to_stop = False
        self._earlier: Any = None

    def __enter__(self) -> Interruptible:
        if threading.current_thread() is threading.main_thread():
            self._earlier = signal.signal(signal.SIGINT, self._stop_soon)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> bool:
        self._listen_no_more()
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self.is_interrupted = True
            return True
        return False

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            if self._is_to_stop:
                self.is_interrupted = True
                return
            yield item

    def _stop_soon(self, number: int, frame: object) -> None:
        self._is_to_stop = True
        self._listen_no_more()

    def _listen_no_more(self) -> None:
        if self._earlier is not None:
            signal.signal(signal.SIGINT, self._earlier)
            self._earlier = None


class Subcommand:
    """One subcommand. Its result is printed; it raises :func:`failed` or :func:`misused` for another exit code."""

    name = ""
    #: One line, for the list of subcommands and the head of its own help.
    help = ""
    #: What its own help adds.
    details = ""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare its arguments. ``--json`` is there already."""

    def handle(self, console: Console, options: dict[str, Any]) -> None:
        """Do it, and print the result: with ``console.is_json`` one JSON document and nothing else."""
        raise NotImplementedError


@dataclass(frozen=True)
class Operator:
    """Whoever has a shell of the project. To the rules of the pages it is a user who may do everything."""

    #: Whom the history records: a user, or a text.
    actor: Any

    is_active = is_authenticated = True

    @property
    def pk(self) -> Any:
        return getattr(self.actor, "pk", None)

    def has_perm(self, permission: str, obj: object = None) -> bool:
        return True


def add_user_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--user", metavar="NAME", help="Who does it, for the history: a user name, or any text. Default: who you are."
    )


#: Rows that a table may have; more are exported from the pages.
MAX_ROWS = 10_000


def add_limit(parser: argparse.ArgumentParser, default: int, what: str) -> None:
    """Add the option for how many rows are printed."""

    def number(text: str) -> int:
        if not (text.isdecimal() and 1 <= int(text) <= MAX_ROWS):
            raise argparse.ArgumentTypeError(f"give a number from 1 to {MAX_ROWS:,}")
        return int(text)

    parser.add_argument(
        "--limit", type=number, default=default, metavar="NUMBER", help=f"{what} at most, by default {default}."
    )


def add_yes(parser: argparse.ArgumentParser) -> None:
    """Add the option that answers the question."""
    names = ("-y", "--yes", "--no-input", "--noinput")
    parser.add_argument(*names, action="store_true", dest="yes", help="Do not ask.")


def confirm(console: Console, question: str, options: dict[str, Any]) -> None:
    """Ask, unless ``--yes`` was given.

    Raises:
        CommandError: if the answer is no, or there is nobody to ask.
    """
    if options["yes"]:
        return
    answer = console.ask(question)
    if answer is None:
        raise misused("There is no terminal to ask at. Confirm with --yes.")
    if not answer:
        raise failed("Nothing was changed.")


def operator(options: dict[str, Any]) -> Operator:
    """Return who does it: the user of the name that ``--user`` gives, else that text, else the system's user."""
    if not (name := storable(options.get("user") or "")):
        return Operator(_system_user())
    users: Any = get_user_model()
    found = users._default_manager.filter(**{users.USERNAME_FIELD: name}).first()
    return Operator(found if found is not None else f"{name} (command line)")


def _system_user() -> str:
    try:
        return f"{getpass.getuser()} (command line)"
    except (OSError, KeyError, ImportError):
        # A container may run under a user id without a name.
        return "command line"
