from __future__ import annotations

import ast
import re
import runpy
from importlib.util import find_spec
from pathlib import Path

import pytest
from django.conf import settings

import powercrud_dashboard

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


def anchors(page: Path) -> set[str]:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", text, re.M)}


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_links_between_the_pages_lead_somewhere(page):
    for path, _, anchor in re.findall(r"\]\(([^)#:\s]*)(#([^)\s]+))?\)", page.read_text()):
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


GENERATED = runpy.run_path(str(settings.ROOT / "docs" / "generate.py"))["pages"]()


@pytest.mark.parametrize("name", GENERATED)
def test_pages_that_are_made_from_the_code_are_up_to_date(name):
    found = (settings.ROOT / "docs" / name).read_text()
    assert found == GENERATED[name], "Run 'make reference' and commit docs/."


def test_the_changelog_knows_this_version():
    assert f"## {powercrud_dashboard.__version__}" in (settings.ROOT / "CHANGELOG.md").read_text()
