"""The types of the public names: a project that uses all of them passes mypy's strict checks."""

from __future__ import annotations

import ast
import os
import subprocess
import sys

import pytest
from django.conf import settings

from tests.unit.test_docs import public_names

# It is the same on every database, too.
pytestmark = pytest.mark.markup

EXAMPLE = settings.ROOT / "tests" / "example"


def used_names() -> set[str]:
    """Return the paths of the package's names that the example imports and uses."""
    used = set()
    for path in EXAMPLE.glob("*.py"):
        tree = ast.parse(path.read_text())
        loaded = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                used |= {f"{node.module}.{item.name}" for item in node.names if (item.asname or item.name) in loaded}
    return used


def test_the_example_uses_every_public_name():
    assert sorted(set(public_names()) - used_names()) == []


@pytest.mark.long
def test_the_example_passes_strict_checks():
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "tests/example"],
        cwd=settings.ROOT,
        env={**os.environ, "PYTHONPATH": str(settings.ROOT)},
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
