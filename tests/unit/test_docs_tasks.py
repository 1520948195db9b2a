"""The code in docs/django-tasks.md does what the page says."""

from __future__ import annotations

import re
import sys
import types
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.core.checks import run_checks

if not django_settings.TASKS_FRAMEWORK:
    pytest.skip("There is no tasks framework.", allow_module_level=True)

from powercrud_dashboard.contrib.django_tasks.framework import TaskResultStatus
from powercrud_dashboard.contrib.django_tasks.options import NAMES
from powercrud_dashboard.models import TaskRecord
from tests.workers import run_queue

pytestmark = pytest.mark.django_db(transaction=True)

PAGE = django_settings.ROOT / "docs" / "django-tasks.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
USUAL, DECLARED, ENQUEUED, FOUND, TRACKED, WITH_OPTIONS, OWN_ONLY = BLOCKS


def settings_of(block: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    exec(block, found)
    return {name: value for name, value in found.items() if name.isupper()}


@pytest.fixture
def module(monkeypatch):
    """The module of a project that the page's functions are in."""
    made = types.ModuleType("project_of_the_docs")
    monkeypatch.setitem(sys.modules, made.__name__, made)

    def run(*blocks: str) -> types.ModuleType:
        for block in blocks:
            exec(block.replace("django.tasks", django_settings.TASKS_FRAMEWORK), made.__dict__)
        return made

    return run


@pytest.fixture
def apply(settings):
    def set_all(block: str) -> None:
        for name, value in settings_of(block).items():
            setattr(settings, name, value)

    return set_all


def test_tasks_are_enqueued_run_and_found(apply, module, capsys):
    apply(USUAL)
    code = module(DECLARED, ENQUEUED)
    assert code.result.status == TaskResultStatus.READY
    run_queue()
    module(FOUND)
    assert capsys.readouterr().out == "SUCCESSFUL invoice 7 sent\n"
    prices = code.sync_prices.enqueue("north")
    run_queue()
    prices.refresh()
    assert prices.return_value == {"shop": "north", "attempt": 1}


def test_progress_is_reported(apply, module):
    apply(USUAL)
    result = module(DECLARED, TRACKED).rebuild_index.enqueue([1, 2, 3])
    run_queue()
    record = TaskRecord.objects.get(task_name=result.id)
    assert (record.progress_current, record.progress_total, record.message) == (3, 3, "Rebuilding")


def test_the_options_are_right(apply):
    apply(WITH_OPTIONS)
    problems = [
        message for message in run_checks() if message.id in ("powercrud_dashboard.E030", "powercrud_dashboard.W030")
    ]
    assert problems == []


def test_every_option_is_documented():
    assert tuple(re.findall(r"^\| `(\w+)` \| `(?:None|\{\})` \|", PAGE.read_text(), re.M)) == NAMES


def test_only_own_tasks_can_be_shown(apply, settings):
    apply(OWN_ONLY)
    assert not [message for message in run_checks() if message.id == "powercrud_dashboard.E002"]
