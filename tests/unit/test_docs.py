from __future__ import annotations

import ast
import dataclasses
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from django.conf import settings

import powercrud_dashboard
from powercrud_dashboard.conf import Settings

DOCS = [settings.ROOT / "README.md", *sorted((settings.ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_the_code_in_the_docs_is_python_and_its_imports_exist(page):
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        for node in ast.walk(ast.parse(block.replace("[...,", "[0,"))):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("powercrud_dashboard"):
                if node.module == "powercrud_dashboard.contrib.powercrud" and find_spec("powercrud") is None:
                    # tests/powercrud/ imports it.
                    continue
                exec(f"from {node.module} import {', '.join(name.name for name in node.names)}", {})


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_links_between_the_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_every_setting_is_documented_with_its_default():
    rows = dict(
        re.findall(r"^\| `([A-Z_]+)` \| `?([^|`]+)`? \|", (settings.ROOT / "docs/operating.md").read_text(), re.M)
    )
    defaults = Settings()
    assert rows == {field.name: str(getattr(defaults, field.name)) for field in dataclasses.fields(Settings)}


def test_every_check_is_documented():
    text = Path(settings.ROOT / "docs/operating.md").read_text()
    used = set(
        re.findall(r"powercrud_dashboard\.([EW]\d+)", Path(settings.ROOT / "powercrud_dashboard/checks.py").read_text())
    )
    assert used
    within = {"E001", "E002", "E003", "E004", "E005"}
    assert all(check in within or check in text for check in used)
    assert "`powercrud_dashboard.E001` to `E005`" in text


def test_the_changelog_knows_this_version():
    assert f"## {powercrud_dashboard.__version__}" in (settings.ROOT / "CHANGELOG.md").read_text()
