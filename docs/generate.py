"""Writes the pages of the reference that are made from the code: ``make reference``.

A test compares them with the code, so that they are never out of date.
"""

from __future__ import annotations

import ast
import dataclasses
import os
import re
from collections.abc import Iterator
from importlib import import_module
from inspect import getdoc, getsource
from pathlib import Path

import django

DOCS = Path(__file__).parent
PACKAGE = DOCS.parent / "powercrud_dashboard"


def pages() -> dict[str, str]:
    """Return the text of each page that is made from the code, by the name of its file."""
    return {
        "settings.md": settings_page(),
        "checks.md": checks_page(),
        "urls.md": urls_page(),
        "templates.md": templates_page(),
        "fields.md": fields_page(),
    }


def table(*rows: tuple[str, ...]) -> str:
    head, *body = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join([head, "|" + " --- |" * len(rows[0]), *body])


def as_markdown(text: str) -> str:
    """Return a text of the code: with code in single backticks, and links where it names a page."""
    text = re.sub(r"``(.+?)``", r"`\1`", " ".join(text.split()))
    # A name of several parts that differ.
    text = text.replace("….…", "…")
    return re.sub(r"docs/([a-z0-9-]+\.md(?:#[a-z0-9-]+)?)", _link, text)


def _link(match: re.Match[str]) -> str:
    page, _, anchor = match[1].partition("#")
    text = (DOCS / page).read_text()
    titles = {slug(title): title for title in re.findall(r"^#+ (.+)$", text, re.M)}
    title = titles[anchor] if anchor else text.partition("\n")[0].removeprefix("# ")
    return f"[{title}]({match[1]})"


def slug(heading: str) -> str:
    """Return the anchor of a heading, as GitHub and MyST make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


# Settings


def settings_page() -> str:
    from powercrud_dashboard.conf import CHOICES, MINIMUMS, Settings

    defaults = Settings()
    rows = []
    comments = _comments(Settings)
    for field in dataclasses.fields(Settings):
        meaning = as_markdown(comments[field.name])
        if field.name in MINIMUMS:
            meaning += f" At least {MINIMUMS[field.name]}."
        default = getattr(defaults, field.name)
        shown = f'"{default}"' if isinstance(default, str) else str(default)
        kind = " or ".join(f'`"{choice}"`' for choice in CHOICES.get(field.name, ())) or f"`{field.type}`"
        rows.append((f"`{field.name}`", kind, f"`{shown}`", meaning))
    return f"""# Settings

All settings are in one dict, `POWERCRUD_SETTINGS`. None is required. `manage.py check` reports unknown keys and wrong
types, see [System checks](checks.md). Durations are in seconds, unless the name says otherwise.

```python
POWERCRUD_SETTINGS = {{
    "DASHBOARD_RETENTION_DAYS": {{"success": 30, "failed": 365}},
}}
```

{table(("key", "type", "default", "meaning"), *rows)}
"""


def _comments(of: type) -> dict[str, str]:
    """Return the comments above the attributes of a class."""
    found, comment = {}, []
    for line in getsource(of).splitlines():
        if marked := re.match(r"    #: (.*)", line):
            comment.append(marked[1])
        elif comment and (attribute := re.match(r"    (\w+)(?::| =)", line)):
            found[attribute[1]] = " ".join(comment)
            comment = []
        else:
            comment = []
    return found


# System checks


def checks_page() -> str:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        source = path.read_text()
        if "django.core.checks" in source:
            for check_id, text, hint in _Checks(path, ast.parse(source)).messages():
                found.setdefault(check_id, dict.fromkeys([(text, hint)])).update(dict.fromkeys([(text, hint)]))
    rows = [
        (f"`{check_id}`", as_markdown(text), as_markdown(hint))
        for check_id in sorted(found)
        for text, hint in found[check_id]
    ]
    return f"""# System checks

`manage.py check` reports what is wrong with the settings. Ids begin with `powercrud_dashboard.`. One with an E is an
error, one with a W a warning. "…" stands for what differs. Silence a warning with Django's `SILENCED_SYSTEM_CHECKS`:
`["powercrud_dashboard.W005"]`.

`W008`, `W010`, `W041` and `W043` read the database, so that only `manage.py check --database default` and
`manage.py migrate` report them. `W008` and `W041` are reported as soon as a worker has run or a task was recorded, and
so not by `manage.py test`.

{table(("id", "text", "hint"), *rows)}
"""


class _Checks:
    """The messages that a module's checks make, by their ids."""

    def __init__(self, path: Path, tree: ast.Module) -> None:
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        self.module = import_module(name)
        self.functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]

    def messages(self) -> Iterator[tuple[str, str, str]]:
        for function in self.functions:
            for call in self._calls(function, {"Error", "Warning"}):
                options = {keyword.arg: keyword.value for keyword in call.keywords}
                if "id" not in options:
                    continue
                check_id = self._text(options["id"], function).removeprefix("powercrud_dashboard.")
                parameters = [argument.arg for argument in function.args.args]
                text = call.args[0]
                if isinstance(text, ast.Name) and text.id in parameters:
                    # The function makes one for its callers.
                    for caller in self.functions:
                        for made in self._calls(caller, {function.name}):
                            yield check_id, self._text(made.args[0], caller), self._text(made.args[1], caller)
                else:
                    yield check_id, self._text(text, function), self._text(options.get("hint"), function)

    @staticmethod
    def _calls(function: ast.FunctionDef, names: set[str]) -> Iterator[ast.Call]:
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
                yield node

    def _text(self, node: ast.expr | None, function: ast.FunctionDef) -> str:
        match node:
            case None:
                return ""
            case ast.Constant(str(text)):
                return text
            case ast.JoinedStr(values):
                return "".join(self._text(value, function) for value in values)
            case ast.FormattedValue(value):
                return self._text(value, function)
            case ast.IfExp(_, first, second):
                return f"{self._text(first, function)} / {self._text(second, function)}"
            case ast.Name(name) if isinstance(known := getattr(self.module, name, None), str | int):
                return str(known)
            case ast.Name(name):
                for assigned in ast.walk(function):
                    if isinstance(assigned, ast.Assign) and getattr(assigned.targets[0], "id", "") == name:
                        return self._text(assigned.value, function)
        return "…"


# URL names


def urls_page() -> str:
    from powercrud_dashboard.dashboard.urls import dashboard_urls

    rows = []
    for pattern in dashboard_urls():
        view = getattr(pattern.callback, "view_class", None)
        address = f"`{pattern.pattern}`" if str(pattern.pattern) else ""
        rows.append((f"`{pattern.name}`", address, as_markdown(_first_line(getdoc(view)))))
    return f"""# URL names

In an admin site the names are in the namespace `admin`: `reverse("admin:powercrud_dashboard_taskrecord_changelist")`.
With `include("powercrud_dashboard.urls")` they are in the namespace `powercrud_dashboard`. Addresses are relative to
where the pages are mounted; in the admin that is `powercrud_dashboard/taskrecord/`.

{table(("name", "address", "page"), *rows)}

The progress endpoint is `async_progress` in the namespace `powercrud`, see [Pages of your own](own-pages.md).
"""


def _first_line(text: str | None) -> str:
    return (text or "").partition("\n\n")[0]


# Models


def fields_page() -> str:
    from django.db.models import Model

    from powercrud_dashboard import models

    described = []
    for model in (item for name in models.__all__ if issubclass(item := getattr(models, name), Model)):
        comments = _comments(model)
        rows = []
        for field in model._meta.concrete_fields:
            name = str(field.verbose_name)
            meaning = as_markdown(comments.get(field.name, f"{name[:1].upper()}{name[1:]}."))
            if field.choices:
                meaning += f" One of {', '.join(f'`{value}`' for value, _label in field.choices)}."
            rows.append((f"`{field.name}`", field.get_internal_type(), meaning))
        about = as_markdown(_first_line(getdoc(model)))
        described.append(f"## {model.__name__}\n\n{about}\n\n{table(('field', 'type', 'meaning'), *rows)}")
    return (
        "# Fields of the models\n\nWhat each model is for is said under [Models](models.md).\n\n"
        + "\n\n".join(described)
        + "\n"
    )


# Templates

#: The tags for templates of a project; the others are for the package's own.
PUBLIC_TAGS = ("task_panel", "task_tray")


def templates_page() -> str:
    from powercrud_dashboard.templatetags.powercrud_dashboard import register

    tags = [(f"`{{% {name} %}}`", as_markdown(_first_line(getdoc(register.tags[name])))) for name in PUBLIC_TAGS]
    folder = DOCS.parent / "templates" / "powercrud_dashboard"
    rows = []
    for path in sorted(folder.rglob("*.*")):
        source = path.read_text()
        parent = re.search(r"{% extends (.+?) %}", source)
        if not path.name.startswith("_") and (parent or path.parent.name == "mail"):
            blocks = ", ".join(f"`{name}`" for name in re.findall(r"{% block (\w+) %}", source))
            extends = f"`{parent[1].strip(chr(34))}`" if parent else ""
            rows.append((f"`{path.relative_to(folder)}`", extends, blocks))
    return f"""# Templates

## Tags

Load them with `{{% load powercrud_dashboard %}}`.

{table(("tag", "what it shows"), *tags)}

## Blocks

To change a page, put a file of the same name into a template folder of your project that comes before the package's.
The names are below `powercrud_dashboard/`. A page has the blocks of the templates that it extends as well. `pcrud_base`
is the template that the admin would have used without this package.

{table(("template", "extends", "blocks that it fills or adds"), *rows)}

Templates whose names begin with `_` are parts of the pages. They, and the CSS classes, may change in any release.
"""


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings.sqlite")
    django.setup()
    for name, text in pages().items():
        (DOCS / name).write_text(text)
