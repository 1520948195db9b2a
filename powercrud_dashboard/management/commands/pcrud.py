"""Manage tasks from the command line. Each subcommand is a class in ``powercrud_dashboard.management.pcrud``."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from typing import Any

from django.core.management.base import CommandParser, no_translations

from powercrud_dashboard.management.pcrud.base import Parser, StrictCommand, Subcommand
from powercrud_dashboard.management.pcrud.bulk import Cancel, Retry
from powercrud_dashboard.management.pcrud.console import Console
from powercrud_dashboard.management.pcrud.doctor import Doctor
from powercrud_dashboard.management.pcrud.locks import Locks, Release
from powercrud_dashboard.management.pcrud.pausing import Pause, Resume
from powercrud_dashboard.management.pcrud.show import Show
from powercrud_dashboard.management.pcrud.smoke import Test
from powercrud_dashboard.management.pcrud.stats import Stats
from powercrud_dashboard.management.pcrud.tasks import Tasks

#: In the order of the help.
CLASSES = (Tasks, Show, Retry, Cancel, Pause, Resume, Locks, Release, Stats, Test, Doctor)
SUBCOMMANDS: dict[str, Subcommand] = {subcommand.name: subcommand() for subcommand in CLASSES}

EXIT_CODES = "Exit codes: 0 done, 1 something failed or was refused, 2 wrong arguments."


class Command(StrictCommand):
    help = f"Manages background tasks. {EXIT_CODES}"
    # It is needed most when something is wrong. The doctor runs the checks.
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        subparsers = parser.add_subparsers(dest="subcommand", metavar="subcommand", required=True, parser_class=Parser)
        for name, subcommand in SUBCOMMANDS.items():
            subparser = subparsers.add_parser(
                name,
                help=subcommand.help,
                description=f"{subcommand.help} {subcommand.details}".strip(),
                epilog=EXIT_CODES,
            )
            _add_general_options(subparser)
            subcommand.add_arguments(subparser)

    # In English, as Django's own commands: texts of the pages are part of the output.
    @no_translations
    def handle(self, *args: Any, **options: Any) -> None:
        console = Console(
            self.stdout, self.stderr, self.style, is_json=options["json"], verbosity=options.get("verbosity", 1)
        )
        logged = nullcontext() if options.get("traceback") else console.log_lines_as_notes()
        with logged, console.one_document():
            SUBCOMMANDS[options["subcommand"]].handle(console, options)


def _add_general_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that each subcommand has. Django's own are taken after its name, too."""
    parser.add_argument("--json", action="store_true", help="Print the result as JSON.")
    hidden: dict[str, Any] = {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
    parser.add_argument("--settings", **hidden)
    parser.add_argument("--pythonpath", **hidden)
    parser.add_argument("-v", "--verbosity", type=int, choices=range(4), **hidden)
    for flag in ("--traceback", "--no-color", "--force-color"):
        parser.add_argument(flag, action="store_true", **hidden)
