"""The code in docs/schedules.md does what the page says."""

from __future__ import annotations

import re
import sys
import types

import pytest
from django.conf import settings as django_settings
from django.core.checks import run_checks
from django_q.models import Schedule

from powercrud_dashboard import schedules
from powercrud_dashboard.models import TaskRecord
from powercrud_dashboard.schedules import run_scheduled

pytestmark = pytest.mark.django_db(transaction=True)

PAGE = django_settings.ROOT / "docs" / "schedules.md"
DECLARED, FROM_PYTHON, LOCKED = (
    block.replace("myapp.Product", "testapp.Project")
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
)


@pytest.fixture
def project(monkeypatch):
    """The module of a project that has declared the page's schedules."""
    schedules.declarations()
    before = list(schedules.registry)
    schedules.registry.clear()
    made = types.ModuleType("project_of_the_docs")
    monkeypatch.setitem(sys.modules, made.__name__, made)
    exec(DECLARED, made.__dict__)
    yield made
    schedules.registry[:] = before


def test_the_declared_schedules_are_made_and_run(project, capsys):
    exec(FROM_PYTHON, {})
    names = ["project_of_the_docs.reprice", "import orders"]
    assert capsys.readouterr().out == f"{names} {sorted(names)}\n"
    assert not Schedule.objects.exists()
    schedules.sync_schedules()
    reprice, orders = Schedule.objects.order_by("pk")
    assert (reprice.cron, orders.minutes) == ("0 2 * * *", 15)
    assert [item for item in run_checks() if item.id == "powercrud_dashboard.E040"] == []
    run_scheduled(names[0])
    run_scheduled(names[1])
    first, second = TaskRecord.objects.order_by("pk")
    assert (first.label, first.conflict_ids) == ("Re-price the catalogue", {"testapp.project": ["*"]})
    assert second.task_kwargs == {"shop": "north"}


def test_the_settings_are_valid(settings):
    found: dict[str, dict[str, object]] = {}
    exec(LOCKED, found)
    settings.POWERCRUD_SETTINGS = found["POWERCRUD_SETTINGS"]
    assert set(found["POWERCRUD_SETTINGS"]["DASHBOARD_SCHEDULE_LOCKS"]) == {"nightly", "import"}
    assert [item for item in run_checks() if "LOCKS" in item.msg] == []
