from __future__ import annotations

from tests.settings.postgresql import *
from tests.settings.postgresql import DATABASES as WITHOUT_POOL

DATABASES = {
    **WITHOUT_POOL,
    "default": {**WITHOUT_POOL["default"], "OPTIONS": {"pool": {"min_size": 2, "max_size": 5}}},
}
