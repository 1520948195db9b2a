from __future__ import annotations

import ast
import pkgutil
import re
import runpy
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from django.apps import apps
from django.conf import settings
from django.contrib.auth import get_permission_codename
from django.dispatch import Signal

import powercrud_dashboard
from powercrud_dashboard.templatetags.powercrud_dashboard import EVENT_LABELS

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


def test_every_page_is_in_the_order_of_the_site():
    index = (settings.ROOT / "docs" / "index.md").read_text()
    listed = [line for block in re.findall(r"```{toctree}\n(.*?)```", index, re.S) for line in block.split("\n")]
    pages = sorted(page.stem for page in DOCS[1:] if page.stem != "index")
    assert sorted(line for line in listed if line and not line.startswith(":")) == pages


#: Modules at the root whose names are not for users: django-q2, Django and the other modules use them. ``conf`` has the
#: settings, which have a page.
NOT_FOR_USERS = {"apps", "async_hooks", "checks", "conf", "schedule_checks", "text", "urls"}


def public_names() -> list[str]:
    """Return the paths of what users import."""
    names = []
    for found in pkgutil.iter_modules(powercrud_dashboard.__path__):
        module = import_module(f"powercrud_dashboard.{found.name}")
        public = getattr(module, "__all__", None)
        if public is None and not found.ispkg and found.name not in NOT_FOR_USERS:
            own = [name for name, item in vars(module).items() if getattr(item, "__module__", "") == module.__name__]
            signals = [name for name, item in vars(module).items() if isinstance(item, Signal)]
            public = [name for name in (*own, *signals) if not name.startswith("_")]
        names += [f"{module.__name__}.{name}" for name in public or ()]
    return names


def test_every_public_name_is_documented():
    text = "".join((settings.ROOT / "docs" / f"{page}.md").read_text() for page in ("api", "exceptions"))
    whole = re.findall(r"automodule:: (\S+)\n(?!   :no-members:)", text)
    single = re.findall(r"auto(?:class|function|decorator|data):: (\S+)", text)
    models = (settings.ROOT / "docs" / "models.md").read_text()
    missing = [
        path
        for path in public_names()
        if path not in single
        and path.rpartition(".")[0] not in whole
        and not (path.startswith("powercrud_dashboard.models.") and f"`{path.rpartition('.')[2]}`" in models)
    ]
    assert missing == []
    assert "powercrud_dashboard.signals.task_started" in public_names()


def test_every_permission_is_documented():
    described = re.findall(
        r"^\| `powercrud_dashboard\.(\w+)`", (settings.ROOT / "docs/permissions.md").read_text(), re.M
    )
    models = apps.get_app_config("powercrud_dashboard").get_models()
    own = [get_permission_codename(kind, model._meta) for model in models for kind in model._meta.default_permissions]
    models = apps.get_app_config("powercrud_dashboard").get_models()
    assert sorted(described) == sorted([*own, *(name for model in models for name, _ in model._meta.permissions)])


def test_every_event_is_documented():
    text = (settings.ROOT / "docs/hooks.md").read_text()
    # Lines of the timeline that no hook hears of.
    assert [event for event in EVENT_LABELS if f"`{event}`" not in text] == ["resolve", "hook_error"]


def test_the_changelog_knows_this_version():
    assert f"## {powercrud_dashboard.__version__}" in (settings.ROOT / "CHANGELOG.md").read_text()
