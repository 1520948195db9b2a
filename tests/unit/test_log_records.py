from __future__ import annotations

import contextvars
import io
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.conf import settings as django_settings

from powercrud_dashboard.async_context import task_context
from powercrud_dashboard.engine.spec import TaskCall, TaskSpec
from powercrud_dashboard.log_records import TaskContextFilter
from tests.testapp import tasks
from tests.workers import run_queue

pytestmark = pytest.mark.django_db(transaction=True)

logger = logging.getLogger("tests.log_records")
PAGE = django_settings.ROOT / "docs" / "logs.md"


def say(*texts: str) -> None:
    for text in texts:
        logger.warning(text)


def say_in_threads() -> None:
    inside = contextvars.copy_context()
    for target in (lambda: inside.run(say, "with"), lambda: say("without")):
        thread = threading.Thread(target=target)
        thread.start()
        thread.join()


def say_with_extra() -> None:
    logger.warning("own", extra={"task_name": "mine"})


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    """The records that a handler with the filter gets."""
    kept: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = kept.append  # type: ignore[method-assign]
    handler.addFilter(TaskContextFilter(default="-"))
    logger.addHandler(handler)
    yield kept
    logger.removeHandler(handler)


def facts_of(record: Any) -> tuple[Any, ...]:
    return record.task_name, record.task_func, record.task_label, record.task_user, record.task_attempt


NO_TASK = ("-",) * 5


def test_records_of_a_task_tell_which_it_is(manager, records, make_user):
    path = f"{__name__}.say"
    first = manager.launch_async_task(path, "in a worker", label="Say it", user=make_user("anna"))
    run_queue()
    second = manager.launch_async_task(path, "at once", user="cron", sync=True)
    say("outside")
    by_message = {record.getMessage(): facts_of(record) for record in records}
    assert by_message == {
        "in a worker": (first, path, "Say it", "anna", 1),
        "at once": (second, path, path, "cron", 1),
        "outside": NO_TASK,
    }


def test_a_retry_tells_who_has_asked_for_it(manager, records):
    name = manager.launch_async_task(f"{__name__}.say", "again", user="anna", sync=True)
    new = manager.retry_task(name, user="boris")
    run_queue()
    assert [facts_of(record)[::3] for record in records] == [(name, "anna"), (new, "boris")]


def test_a_thread_belongs_to_the_task_if_it_has_its_context(manager, records):
    name = manager.launch_async_task(f"{__name__}.say_in_threads", sync=True)
    assert [(record.getMessage(), record.task_name) for record in records] == [("with", name), ("without", "-")]


def test_what_the_call_gives_itself_stays(manager, records):
    manager.launch_async_task(f"{__name__}.say_with_extra", sync=True)
    (record,) = records
    assert record.task_name == "mine"
    assert record.task_attempt == 1


def test_a_block_that_is_made_a_task_is_told(manager, records):
    name = manager.launch_async_task(tasks.add, 1, label="Add", user="anna")
    with task_context(name):
        say("in the block")
    assert facts_of(records[0]) == (name, "tests.testapp.tasks.add", "Add", "anna", "-")


def example() -> tuple[str, dict[str, Any]]:
    """Return the settings of the docs that name the filter, as code and as a dict."""
    (block,) = [text for text in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "Filter" in text]
    found: dict[str, Any] = {}
    exec(block, found)
    return block, found["LOGGING"]


def test_the_example_of_the_docs_names_the_task(manager):
    logging_settings = example()[1]
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter(logging_settings["formatters"]["with_task"]["format"], style="{"))
    options = {key: value for key, value in logging_settings["filters"]["task"].items() if key != "()"}
    handler.addFilter(TaskContextFilter(**options))
    logger.addHandler(handler)
    try:
        name = manager.launch_async_task(f"{__name__}.say", "in a task", sync=True)
    finally:
        logger.removeHandler(handler)
    assert stream.getvalue() == f"WARNING tests.log_records [{name}] in a task\n"


def test_django_sets_the_example_up_before_there_are_models(tmp_path):
    module = os.environ["DJANGO_SETTINGS_MODULE"]
    (tmp_path / "with_logging.py").write_text(f"from {module} import *\n{example()[0]}")
    process = subprocess.run(
        [sys.executable, "-c", "import logging, django; django.setup(); logging.getLogger('myapp').info('hello')"],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "with_logging",
            "PYTHONPATH": f"{django_settings.ROOT}{os.pathsep}{tmp_path}",
        },
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert "INFO myapp [-] hello" in process.stderr


def test_what_is_logged_about_a_task_outside_of_it_names_it_too(manager, caplog):
    caplog.set_level(logging.INFO, "powercrud_dashboard")
    name = manager.launch_async_task(tasks.add, 1)
    missing = TaskCall(name, TaskSpec(tasks.add.__module__, label="x").to_text(), "x")
    manager.cancel_task(name)
    assert missing() is not None
    (record,) = [entry for entry in caplog.records if "runs elsewhere" in entry.getMessage()]
    assert record.task_name == name
