"""The page about PowerCRUD, whose code needs the package."""

from __future__ import annotations

import re

from django.conf import settings
from django.utils.module_loading import import_string

PAGE = (settings.ROOT / "docs/powercrud.md").read_text()


def test_the_code_of_the_page_runs():
    names: dict[str, object] = {"__name__": "docs.powercrud"}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(block, "docs/powercrud.md", "exec"), names)
    paths = set(re.findall(r"powercrud[\w.]*\.[A-Z]\w+Manager\b", PAGE))
    assert "powercrud_dashboard.contrib.powercrud.PowerCrudManager" in paths
    assert all(map(import_string, paths))
