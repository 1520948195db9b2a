"""The tests in docs/testing.md pass, with the project of these tests in the place of the reader's."""

from __future__ import annotations

import re
import sys
from types import ModuleType

import pytest
from django.conf import settings
from django.test import TransactionTestCase

from tests.testapp import models

PAGE = (settings.ROOT / "docs/testing.md").read_text()
FUNCTION, *BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def made_up(name: str, **contents: object) -> ModuleType:
    module = sys.modules[name] = ModuleType(name)
    vars(module).update(contents)
    return module


#: The reader's project. A task that runs in the test's process finds its function there.
made_up("myapp", tasks=made_up("myapp.tasks"), models=models)
exec(FUNCTION, vars(sys.modules["myapp.tasks"]))
sys.modules["myapp.models"] = models

for block in BLOCKS:
    names: dict[str, object] = {"__name__": __name__}
    code = block.replace('"myapp.project"', '"testapp.project"').replace("admin:myapp_", "admin:testapp_")
    exec(compile(code, "docs/testing.md", "exec"), names)
    # pytest finds them here.
    globals().update(
        {name: item for name, item in names.items() if isinstance(item, type) and item.__module__ == __name__}
    )

CASES = [item for item in list(globals().values()) if isinstance(item, type) and item.__module__ == __name__]
for case in CASES:
    if case.__name__ == "ClusterTest":
        pytest.mark.cluster(case)


def test_each_block_has_tests():
    assert len(CASES) == len(BLOCKS) == 5
    assert all(issubclass(case, TransactionTestCase) for case in CASES)
