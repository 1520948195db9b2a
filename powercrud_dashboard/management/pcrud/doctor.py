"""Examine the whole installation, and say what is wrong and what to do."""

from __future__ import annotations

import argparse
import logging
import textwrap
from collections.abc import Iterator
from typing import Any

from powercrud_dashboard.management.pcrud.base import Subcommand, add_user_argument, failed, misused, operator
from powercrud_dashboard.management.pcrud.console import Console, counted
from powercrud_dashboard.management.pcrud.diagnosis import EXAMINATIONS, NEEDED, NOTE, OK, PROBLEM, Context, Finding

logger = logging.getLogger(__name__)

#: Seconds to wait for the test task of each queue.
TIMEOUT = 15.0
#: What stands before the lines of a finding but for the first, and the columns that lines have at least.
INDENT, LEAST_WIDTH = " " * 19, 60


class Doctor(Subcommand):
    name = "doctor"
    help = "Examine settings, database, broker, cache, clusters, clocks, cleanup and history."
    details = "It exits with 1 if there is a problem. A note is no problem, but worth to be known."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--no-test", action="store_true", help="Run no test task. Then nothing is written.")
        parser.add_argument(
            "--timeout",
            type=float,
            default=TIMEOUT,
            metavar="SECONDS",
            help=f"How long to wait for the test task of each queue. Default: {TIMEOUT:g}.",
        )
        add_user_argument(parser)

    def handle(self, console: Console, options: dict[str, Any]) -> None:
        if not options["timeout"] > 0:
            raise misused("--timeout is a number of seconds above 0.")
        context = Context(operator(options).actor, 0.0 if options["no_test"] else options["timeout"])
        findings: list[tuple[str, Finding]] = []
        styles = {OK: console.style.SUCCESS, NOTE: console.style.WARNING, PROBLEM: console.style.ERROR}
        for name, finding in _examine(context):
            findings.append((name, finding))
            console.line(_wrapped(f"{finding.level:<8} {name:<9} ", finding.text, console), styles[finding.level])
            if finding.hint:
                console.line(_wrapped(INDENT, finding.hint, console))
        problems = [finding for _name, finding in findings if finding.level == PROBLEM]
        console.document(
            {
                "ok": not problems,
                "findings": [
                    {"examination": name, "level": finding.level, "text": finding.text, "hint": finding.hint}
                    for name, finding in findings
                ],
            }
        )
        if problems:
            raise failed(f"{counted(len(problems), 'problem')} found.")
        console.line("No problem was found.", console.style.SUCCESS)


def _wrapped(head: str, text: str, console: Console) -> str:
    """Return a text after its head, in lines that fit the terminal."""
    width = max(console.width, LEAST_WIDTH)
    return textwrap.fill(text, width, initial_indent=head, subsequent_indent=INDENT, break_long_words=False)


def _examine(context: Context) -> Iterator[tuple[str, Finding]]:
    for name, examination in EXAMINATIONS.items():
        try:
            for finding in examination(context):
                yield name, finding
        except Exception as error:
            # One that fails keeps no other from being done.
            logger.debug("The examination %s failed", name, exc_info=True)
            hint = "Nothing else can be examined without it." if name in NEEDED else ""
            yield name, Finding(PROBLEM, f"This can't be examined. {type(error).__name__}: {error}".strip(), hint)
            if name in NEEDED:
                return
