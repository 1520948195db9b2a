"""Test the cluster."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from powercrud_dashboard.async_manager import AsyncManager
from powercrud_dashboard.engine import smoke
from powercrud_dashboard.exceptions import EnqueueError
from powercrud_dashboard.management.pcrud.base import Subcommand, add_user_argument, failed, misused, operator
from powercrud_dashboard.management.pcrud.console import Console
from powercrud_dashboard.models import TaskRecord

#: Seconds to wait by default, and between two looks.
TIMEOUT, LOOK = 30.0, 0.05


class Test(Subcommand):
    name = "test"
    help = "Test the cluster with a real task, and say at which step it stops."
    details = "The task and its record are deleted afterwards."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--cluster", default="", metavar="NAME", help="The cluster (queue). Default: the usual.")
        parser.add_argument(
            "--timeout",
            type=float,
            default=TIMEOUT,
            metavar="SECONDS",
            help=f"How long to wait for the end of the test. Default: {TIMEOUT:g}.",
        )
        add_user_argument(parser)

    def handle(self, console: Console, options: dict[str, Any]) -> None:
        if not options["timeout"] > 0:
            raise misused("--timeout is a number of seconds above 0.")
        try:
            report = run_test(options["cluster"], operator(options).actor, options["timeout"], tell=console.line)
        except NOT_LAUNCHED as error:
            reason = why_not_launched(error)
            self._print_not_launched(console, options["cluster"], reason)
            raise failed(f"Not launched: {reason}") from error
        except DeletedMeanwhile as error:
            raise failed(f"Not passed: {error}") from error
        console.document(self._document(report))
        if (stopped := report.next_step) is not None:
            raise failed(f"Not passed within {options['timeout']:g} s: {told(stopped)}\n{report.advice}".strip())
        console.line(f"The cluster works ({report.place}).", console.style.SUCCESS)

    @staticmethod
    def _document(report: smoke.Report) -> dict[str, Any]:
        stopped = report.next_step
        return {
            "passed": report.has_passed,
            "cluster": report.cluster,
            "steps": [
                {"step": step.name, "done": step.is_done, "milliseconds": step.milliseconds} for step in report.steps
            ],
            "stopped_at": stopped.name if stopped else None,
            "place": report.place,
            "advice": str(report.advice),
        }

    @staticmethod
    def _print_not_launched(console: Console, cluster: str, error: str) -> None:
        steps = [{"step": name, "done": False, "milliseconds": None} for name in smoke.STEPS]
        console.document(
            {"passed": False, "cluster": cluster, "steps": steps, "stopped_at": smoke.LAUNCHED, "advice": error}
        )


#: Why a test can't be launched.
NOT_LAUNCHED = (smoke.NotTestable, EnqueueError, ValueError)


def why_not_launched(error: Exception) -> str:
    """Return the reason. The test of which a broker's error tells is not there any more to be retried."""
    if not isinstance(error, EnqueueError):
        return str(error)
    reason = error.reason.removesuffix(".")
    return f"the broker does not take it. {reason}. Check that it is running, and its address in Q_CLUSTER."


class DeletedMeanwhile(Exception):
    """Somebody has deleted the test that is waited for."""

    def __init__(self) -> None:
        super().__init__("somebody has deleted the test before its end. Run it again.")


def run_test(cluster: str, actor: Any, timeout: float, tell: Callable[[str], None] = lambda text: None) -> smoke.Report:
    """Test a cluster, and return the report of the end of the test, or of the end of the time.

    Args:
        cluster: the queue; "" for the default one.
        actor: who tests it.
        timeout: seconds to wait.
        tell: is called with a line for each step as soon as it is done.

    Raises:
        NotTestable, EnqueueError, ValueError: if it can't be launched.
        DeletedMeanwhile: if somebody deletes it, as another test does after some minutes.
    """
    began = time.monotonic()
    name = smoke.start(AsyncManager.resolve_manager(), cluster, actor)
    launch_took = timedelta(seconds=time.monotonic() - began)
    told_of = 0
    try:
        while True:
            record = TaskRecord.objects.filter(task_name=name).first()
            if record is None:
                raise DeletedMeanwhile
            report = smoke.report(record, launch_took)
            for step in report.steps[told_of:]:
                if not step.is_done:
                    break
                told_of += 1
                took = "" if step.milliseconds is None else f"{step.milliseconds:g} ms"
                tell(f"{took:>12}  {step.label}")
            if report.has_ended or time.monotonic() - began > timeout:
                return report
            time.sleep(LOOK)
    finally:
        smoke.forget(name)


def told(step: smoke.Step) -> str:
    """Return a sentence for the step at which a test stops."""
    return f"it stops before “{step.label}”."
